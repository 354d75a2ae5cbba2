import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from fastmask.config import make_config
from fastmask.data.augment import Augmentation, report_pipelines
from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.table import Table
from fastmask.heads import Head, Heads
from fastmask.preparation import check
from fastmask.preparation.check import (
    Finding,
    Look,
    check_data,
    check_table,
    findings_frame,
    look_at_photos,
    summary,
)
from fastmask.system.errors import DataError, UsageError

AUGMENTS = dict(zip(("training", "validation"), map(Augmentation, report_pipelines()), strict=True))


def found(table, **options):
    return check_table(table, **{"folds": 2, "augments": AUGMENTS, **options})


@pytest.fixture
def table(contest_copy):
    return read_contest(contest_copy)


@pytest.fixture
def photos(table):
    """Each photo's file, in the table's order: seven a person."""
    return [table.photo(row) for row in range(len(table))]


def save(picture, file, **options):
    picture.convert("RGB").save(file, **options)


def test_nothing_is_wrong_with_the_sample(contest):
    assert found(read_contest(contest)) == []


def test_photos_that_cannot_be_read(table, photos):
    photos[1].write_bytes(photos[1].read_bytes()[:-999])
    photos[2].write_bytes(b"")
    photos[3].write_text("no photo")
    photos[4].unlink()
    findings = found(table)
    assert [(f.level, f.kind, f.photo) for f in findings] == [
        ("error", "unreadable", table.frame["path"][row]) for row in (1, 2, 3, 4)
    ]
    assert findings[0].person == table.persons[0]
    for finding, words in zip(findings, ("damaged or cut short", "empty", "not an image", "not a file"), strict=True):
        assert finding.detail.startswith("The photo is ")
        assert words in finding.detail


def test_a_photo_too_small_for_the_crop_is_an_error_and_tiny_without_one(table, photos):
    save(Image.open(photos[0]).resize((15, 20)), photos[0])
    (small,) = found(table)
    assert (small.level, small.kind, small.photo) == ("error", "does not fit", table.frame["path"][0])
    assert "The photo is 20 high and 15 wide, and training does not fit it" in small.detail
    (tiny,) = found(table, augments=None)
    assert (tiny.level, tiny.kind, tiny.photo) == ("warning", "tiny", table.frame["path"][0])


def test_a_crop_that_fits_nothing_is_one_finding(contest):
    crops = {"training": Augmentation(report_pipelines((600, 200))[0])}
    (finding,) = found(read_contest(contest), augments=crops)
    assert finding.level == "error"
    assert "The same holds for 84 of 84 photos" in finding.detail


def test_pipelines_that_end_in_two_sizes(table, photos):
    save(Image.open(photos[0]).resize((192, 256)), photos[0])
    (finding,) = found(table, augments={"nothing": lambda image, rng: image})
    assert (finding.level, finding.kind) == ("error", "sizes differ")
    assert "comes out 256 high and 192 wide" in finding.detail


def test_odd_shapes_are_those_unlike_the_commonest(table, photos):
    save(Image.open(photos[0]).rotate(90, expand=True), photos[0])
    save(Image.open(photos[1]).resize((96, 128)), photos[1])
    (finding,) = found(table, augments=None)
    assert (finding.level, finding.kind, finding.photo) == ("warning", "odd shape", table.frame["path"][0])
    assert "384 high and 512 wide, most are 512 high and 384 wide" in finding.detail


def test_a_mixed_collection_has_no_odd_shapes(table, photos):
    for row in range(0, 84, 3):
        save(Image.open(photos[row]).rotate(90, expand=True), photos[row])
    assert found(table, augments=None) == []


def test_blank_photos_are_blank_and_no_copies_of_each_other(table, photos):
    for row in (0, 8):
        save(Image.new("RGB", (384, 512), (90, 100, 110)), photos[row], quality=40)
    assert [(f.kind, f.photo) for f in found(table)] == [("blank", table.frame["path"][row]) for row in (0, 8)]


def copy(source, target):
    """Put the photo `source` in the place of `target`, whatever their extensions are."""
    save(Image.open(source), target.with_suffix(".png"))
    save(Image.open(source), source.with_suffix(".png"))
    for file in {source, target} - {source.with_suffix(".png"), target.with_suffix(".png")}:
        file.unlink()


def test_one_photo_under_three_persons_is_one_finding(contest_copy, photos):
    for row in (13, 20):
        copy(photos[6].with_suffix(".png") if row == 20 else photos[6], photos[row])
    table = read_contest(contest_copy)
    for head in ("gender", "age"):
        table.frame[head] = table.frame[head].iloc[0]
    (finding,) = [f for f in found(table, folds=2) if f.kind not in ("nothing to learn", "contradicting labels")]
    paths = table.frame["path"]
    assert (finding.level, finding.kind, finding.photo) == ("warning", "duplicate", paths[6])
    assert finding.other == f"{paths[13]}; {paths[20]}"
    assert f"1 photo with the same pixels as one of persons {table.persons[7]}, {table.persons[14]}" in finding.detail


def test_a_person_copied_whole_is_one_finding(contest_copy, photos):
    for row in range(7):
        copy(photos[row], photos[row + 7])
    duplicates = [f for f in found(read_contest(contest_copy)) if f.kind == "duplicate"]
    assert len(duplicates) == 1
    assert duplicates[0].other.count("; ") == 12
    assert "7 photos with the same pixels as those of person" in duplicates[0].detail


def test_copies_of_a_person_s_own_only_matter_where_their_labels_differ(contest_copy, photos):
    copy(photos[0], photos[1])
    assert found(read_contest(contest_copy)) == []
    copy(photos[13], photos[7])
    table = read_contest(contest_copy)
    (finding,) = found(table)
    assert (finding.kind, finding.photo, finding.other) == ("contradicting labels", *table.frame["path"][[7, 13]])
    assert "are mask wear and none" in finding.detail


def test_near_copies_are_named_by_the_best_pair_of_two_persons(contest_copy, photos):
    picture = ImageOps.mirror(Image.open(photos[6]).convert("RGB")).resize((288, 384))
    photos[13].unlink()
    save(picture, photos[13].with_suffix(".jpg"), quality=50)
    table = read_contest(contest_copy)
    (finding,) = found(table, augments=None)
    assert (finding.level, finding.kind) == ("warning", "near duplicate")
    assert (finding.photo, finding.other) == tuple(table.frame["path"][[6, 13]])
    assert "The same picture mirrored" in finding.detail


def labelled(rows, heads):
    """A table of photos that nobody opens: (person, a label a head)."""
    frame = pd.DataFrame(rows, columns=["person", *heads.names])
    return Table(frame.assign(path=[f"{i}.jpg" for i in range(len(frame))]), heads, root=None)


@pytest.fixture
def unopened(monkeypatch):
    """Tables of labels alone: every photo is another one."""
    look = Look((8, 6), b"", np.zeros(1153, np.float32), blank=True)
    monkeypatch.setattr(check, "look_at_photos", lambda paths, *_: [look for _ in paths])
    monkeypatch.setattr(Table, "photo", lambda self, row: None)
    monkeypatch.setattr(check, "_blank", lambda *_: [])
    monkeypatch.setattr(check, "TINY", 0)


@pytest.mark.usefixtures("unopened")
def test_classes_by_the_persons_that_have_them():
    heads = Heads(
        [Head("hat", ("none", "cap", "helmet", "crown")), Head("bag", ("no", "yes")), Head("cane", ("n", "y"))]
    )
    rows = [(f"p{i}", "cap" if i < 2 else "none", "no", "") for i in range(5)] + [("p0", "cap", "no", "")] * 9
    findings = found(labelled(rows, heads), folds=3, augments=None, stratify="hat")
    assert [(f.level, f.kind) for f in findings] == [
        ("warning", kind)
        for kind in ("empty class", "empty class", "nothing to learn", "nothing to learn", "rare class")
    ]
    details = " ".join(f.detail for f in findings)
    for words in (
        "hat 'helmet' has no photo",
        "hat 'crown' has no",
        "'bag' has only the class 'no'",
        "'cane' has no label",
    ):
        assert words in details
    assert "hat 'cap' has 2 persons for 3 folds" in details


@pytest.mark.usefixtures("unopened")
def test_joint_classes_count_where_folds_are_stratified_on_them():
    heads = Heads([Head("hat", ("none", "cap")), Head("bag", ("no", "yes"))])
    rows = [(f"p{i}", "cap" if i < 3 else "none", "yes" if 1 < i < 5 else "no") for i in range(8)]
    table = labelled(rows, heads)
    assert found(table, folds=3, stratify="hat", augments=None) == []
    joint = found(table, folds=3, stratify="joint", augments=None)
    counts = {"cap no": 2, "cap yes": 1, "none yes": 2}
    assert [f.kind for f in joint] == ["rare class"] * 3
    assert all(any(f"joint {k!r} has {n} person" in f.detail for f in joint) for k, n in counts.items())


def test_fewer_persons_than_folds_fail_the_training(contest):
    error, *rest = found(read_contest(contest), folds=13)
    assert (error.level, error.kind) == ("error", "too few persons")
    assert "there are only 12 persons" in error.detail
    assert {f.kind for f in rest} == {"rare class"}


def test_what_is_asked_wrongly_is_no_finding(contest):
    table = read_contest(contest)
    with pytest.raises(UsageError, match="no head 'hat'"):
        found(table, stratify="hat")
    with pytest.raises(UsageError, match="--folds is 1"):
        found(table, folds=1)


def test_a_table_that_lost_all_its_rows(contest):
    findings = found(read_contest(contest).select([]))
    assert [f.kind for f in findings] == ["too few persons", *["nothing to learn"] * 3]


def test_a_person_s_own_label_that_one_photo_contradicts(contest):
    table = read_contest(contest)
    other = {"male": "female", "female": "male"}[table.frame["gender"][3]]
    table.frame.loc[[3, 5], "gender"] = other
    (finding,) = found(table)
    assert (finding.level, finding.kind, finding.person) == ("warning", "contradicting labels", table.persons[0])
    assert (finding.photo, finding.other) == tuple(table.frame["path"][[3, 5]])
    assert f"gender is {other} in 2 photos" in finding.detail


def test_folders_whose_names_contradict_the_table(contest):
    table = read_contest(contest)
    person, second = table.persons[0], table.persons[7]
    gender = person.split("_")[1]
    wrong = "male" if gender == "female" else "female"
    table.frame.loc[:6, "gender"] = wrong
    table.frame.loc[7:13, "age_value"] += 0.5
    details = {(f.person, f.detail.split(";")[0]) for f in found(table) if f.kind == "contradicting labels"}
    assert details == {
        (person, f"The folder name says gender {gender}, the table {wrong}"),
        (second, f"The folder name says age {second.split('_')[3]}, the table {second.split('_')[3]}.5"),
    }


@pytest.mark.usefixtures("unopened")
def test_an_id_of_two_folders_and_only_where_all_names_are_of_the_contest():
    names = ["003397_female_Asian_19", "003397_female_Asian_22", "003398_male_Asian_70", "003399_male_Asian_40"]
    rows = [(n, "none", n.split("_")[1], "<30" if i < 2 else "") for i, n in enumerate(names)]
    heads = Heads([replace(head, bounds=None, train_bounds=None) for head in contest_heads()])
    table = labelled(rows, heads)
    (finding,) = [f for f in found(table, augments=None) if f.kind == "contradicting ids"]
    assert (finding.person, finding.other) == (names[0], names[1])
    assert "Id 003397 is in the names of folders of age 19 and 22" in finding.detail
    table.frame.loc[3, "person"] = "somebody"
    assert "contradicting ids" not in {f.kind for f in found(table, augments=None)}


def test_progress_counts_every_photo_and_unreadable_ones_too(table, photos):
    photos[5].write_bytes(b"")
    told = []
    looks = look_at_photos(photos, lambda done, total: told.append((done, total)), workers=2)
    assert told == [(i + 1, 84) for i in range(84)]
    assert isinstance(looks[5], DataError)
    assert sum(isinstance(look, Look) for look in looks) == 83
    # what 18,900 photos keep, 90 MB
    assert max(look.signature.nbytes for look in looks if isinstance(look, Look)) < 5_000


def test_an_interrupted_reading_does_not_read_on(contest, monkeypatch):
    started, table = [], read_contest(contest)
    monkeypatch.setattr(check, "_look", lambda path: (started.append(path), time.sleep(0.005)))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_at_photos([table.photo(row) for row in range(84)] * 10, interrupt, workers=1)
    assert len(started) < 840


def test_faults_of_the_table_stand_beside_those_of_the_photos(contest_copy, photos, tmp_path):
    photos[0].unlink()
    photos[1].write_bytes(b"")
    text = (contest_copy / "train" / "train.csv").read_text()
    (contest_copy / "train" / "train.csv").write_text(text + "x,robot,Asian,20,x\n")
    (tmp_path / "folds.csv").write_text("person,fold\nnobody,0\n")
    config = make_config({"data": str(contest_copy), "folds": 2, "folds_file": str(tmp_path / "folds.csv")})
    findings = check_data(config)
    assert [f.kind for f in findings] == ["bad folds", "bad table", "bad table", "unreadable"]
    assert "'nobody' is not in the data" in findings[0].detail
    assert "found 'robot'" in findings[1].detail
    assert "no photo called mask1" in findings[2].detail


def test_a_file_of_folds_that_cannot_be_read_is_a_finding_beside_the_others(contest_copy, photos, tmp_path):
    photos[1].write_bytes(b"")
    (tmp_path / "folds.csv").write_text("person,fold\nnobody,first\n")
    config = make_config({"data": str(contest_copy), "folds": 2, "folds_file": str(tmp_path / "folds.csv")})
    findings = check_data(config)
    assert [f.kind for f in findings] == ["bad folds", "unreadable"]
    assert "found 'first', expected a whole number" in findings[0].detail


FINDINGS = [
    Finding("warning", "tiny", "The photo is tiny.", "b/1.jpg", "b"),
    *[Finding("error", "unreadable", "The photo is empty; expected a photo.", f"a/{i:02}.jpg", "a") for i in range(12)],
    Finding("error", "too few persons", "There are 3."),
]


def test_the_frame_has_errors_first_and_its_columns_even_when_empty():
    frame = findings_frame(FINDINGS)
    assert frame.columns.tolist() == ["level", "kind", "photo", "person", "other", "detail"]
    assert frame["kind"].tolist() == ["too few persons", *["unreadable"] * 12, "tiny"]
    assert findings_frame([]).columns.tolist() == frame.columns.tolist()


def test_the_summary_counts_each_kind_and_lists_ten():
    lines = summary(FINDINGS, width=60).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["error", "too", "few", "persons", "1"],
        ["error", "unreadable", "12"],
        ["warning", "tiny", "1"],
    ]
    assert sum("a/" in line for line in lines) == 10
    assert "  ... and 2 more; the CSV of --out has all" in lines
    assert max(map(len, lines)) <= 60
    assert summary([]) == "Nothing wrong found."


def test_long_names_are_wrapped_not_cut():
    text = summary([Finding("error", "unreadable", "The photo is empty.", "q" * 90 + ".jpg")], width=50)
    assert max(map(len, text.splitlines())) <= 50
    assert text.count("q") == 90
