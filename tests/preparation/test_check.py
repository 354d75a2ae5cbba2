import shutil
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from fastmask.config import make_config
from fastmask.data.augment import Augmentation
from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.pipelines import report_pipelines
from fastmask.data.table import Table
from fastmask.heads import Head, Heads
from fastmask.preparation import check
from fastmask.preparation.check import (
    Finding,
    Fingerprint,
    check_data,
    check_table,
    findings_frame,
    fingerprint_photos,
    format_findings,
)
from fastmask.system.errors import DataError, UsageError

AUGMENTS = dict(zip(("training", "validation"), map(Augmentation, report_pipelines((100, 50))), strict=True))


def found(table, **options):
    return check_table(table, **{"folds": 2, "augments": AUGMENTS, **options})


@pytest.fixture(scope="module")
def small(contest, tmp_path_factory):
    """The contest's folder with PNGs of 96 x 128 pixels."""
    folder = tmp_path_factory.mktemp("small") / "contest"
    shutil.copytree(contest / "train", folder / "train")
    for file in [f for f in (folder / "train" / "images").rglob("*") if f.is_file()]:
        picture = Image.open(file).convert("RGB").resize((96, 128), Image.Resampling.BOX)
        file.unlink()
        picture.save(file.with_suffix(".png"))
    return folder


@pytest.fixture
def folder(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "contest"))


@pytest.fixture
def table(folder):
    return read_contest(folder)


@pytest.fixture
def photos(table):
    """Each photo's file, in the table's order: seven per person."""
    return [table.photo(row) for row in range(len(table))]


def edit(file, change):
    change(Image.open(file)).save(file)


def test_nothing_is_wrong_with_the_sample(table):
    assert found(table) == []


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
    edit(photos[0], lambda picture: picture.resize((15, 20)))
    (small,) = found(table)
    assert (small.level, small.kind, small.photo) == ("error", "does not fit", table.frame["path"][0])
    assert "The photo is 20 high and 15 wide, and training does not fit it" in small.detail
    (tiny,) = found(table, augments=None)
    assert (tiny.level, tiny.kind, tiny.photo) == ("warning", "tiny", table.frame["path"][0])


def test_a_crop_that_fits_nothing_is_one_finding(table):
    (finding,) = found(table, augments={"training": Augmentation(report_pipelines((600, 200))[0])})
    assert finding.level == "error"
    assert "The same holds for 84 of 84 photos" in finding.detail


def test_pipelines_that_end_in_two_sizes(table, photos):
    edit(photos[0], lambda picture: picture.resize((48, 64)))
    (finding,) = found(table, augments={"nothing": lambda image, rng: image})
    assert (finding.level, finding.kind) == ("error", "sizes differ")
    assert "is 64 high and 48 wide after augmentation" in finding.detail


def test_odd_shapes_are_those_unlike_the_commonest(table, photos):
    edit(photos[0], lambda picture: picture.rotate(90, expand=True))
    edit(photos[1], lambda picture: picture.resize((48, 64)))
    (finding,) = found(table, augments=None)
    assert (finding.level, finding.kind, finding.photo) == ("warning", "odd shape", table.frame["path"][0])
    assert "96 high and 128 wide, most are 128 high and 96 wide" in finding.detail


def test_a_mixed_collection_has_no_odd_shapes(table, photos):
    for row in range(0, 84, 3):
        edit(photos[row], lambda picture: picture.rotate(90, expand=True))
    assert found(table, augments=None) == []


def test_blank_photos_are_blank_and_not_copies_of_each_other(table, photos):
    for row in (0, 8):
        Image.new("RGB", (96, 128), (90, 100, 110)).save(photos[row])
    assert [(f.kind, f.photo) for f in found(table)] == [("blank", table.frame["path"][row]) for row in (0, 8)]


def test_a_photo_of_fewer_bits_than_its_file_is_dark_or_refused(table, photos):
    for row, bits in ((0, 16), (2, 12), (1, 14)):
        grey = np.asarray(Image.open(photos[row]).convert("L"), np.uint16)
        Image.fromarray(grey * 257 >> 16 - bits).save(photos[row])
        brightest = grey.max()
    refused, dark = found(table)
    assert (refused.level, refused.kind, refused.photo) == ("error", "unreadable", table.frame["path"][2])
    assert refused.detail.startswith("The photo would come out nearly black: no value is above 4,0")
    assert (dark.level, dark.kind, dark.photo) == ("warning", "dark", table.frame["path"][1])
    assert dark.detail.startswith(f"Its brightest pixel is {round(brightest / 4)} of 255")


def test_a_tiff_of_several_pages_is_named(table, photos):
    picture = Image.open(photos[0])
    picture.save(photos[0], "TIFF", save_all=True, append_images=[picture.rotate(180), picture])
    (finding,) = found(table)
    assert (finding.level, finding.kind, finding.photo) == ("warning", "several pages", table.frame["path"][0])
    assert finding.detail.startswith("It has several pages, and only the first is read; ")
    # a page that does not exist changes nothing
    data = bytearray(photos[0].read_bytes())
    first = struct.unpack("<I", data[4:8])[0]
    after = first + 2 + 12 * struct.unpack("<H", data[first : first + 2])[0]
    photos[0].write_bytes(data[:after] + struct.pack("<I", 2**31) + data[after + 4 :])
    assert [f.kind for f in found(table)] == ["several pages"]


def test_one_photo_under_three_persons_is_one_finding(table, photos):
    for row in (13, 20):
        shutil.copy(photos[6], photos[row])
    for head in ("gender", "age"):
        table.frame[head] = table.frame[head].iloc[0]
    (finding,) = [f for f in found(table) if f.kind not in ("nothing to learn", "contradicting labels")]
    paths = table.frame["path"]
    assert (finding.level, finding.kind, finding.photo) == ("warning", "duplicate", paths[6])
    assert finding.other == f"{paths[13]}; {paths[20]}"
    assert f"1 photo with the same pixels as one of persons {table.persons[7]}, {table.persons[14]}" in finding.detail


def test_what_a_fixed_split_does_not_train_on_is_a_warning(folder, table, photos, tmp_path):
    shutil.copy(photos[6], photos[13])
    persons = list(dict.fromkeys(table.persons))
    file = tmp_path / "folds.csv"
    given = make_config({"data": str(folder), "folds_file": str(file), "crop": (100, 50)})
    for folds, copies, errors in (([0, *[-1] * 11], 7, 0), ([-1, *[0] * 11], 0, 1)):
        pd.DataFrame({"person": persons, "fold": folds}).to_csv(file, index=False)
        found = check_data(given)
        assert [f.person for f in found if f.kind == "trained copy"] == [persons[1]] * copies
        bad = [f.detail for f in found if f.kind == "bad folds"]
        assert len(bad) == errors
        assert all(detail.startswith("All photos to train on") for detail in bad)


def test_folds_of_a_file_that_separate_identical_files_are_an_error(folder, table, photos, tmp_path):
    shutil.copy(photos[6], photos[13])
    persons = list(dict.fromkeys(table.persons))
    file = tmp_path / "folds.csv"
    for folds, errors in (([0, 0, *[1] * 10], 0), ([0, 1, *[1] * 10], 1)):
        pd.DataFrame({"person": persons, "fold": folds}).to_csv(file, index=False)
        given = make_config({"data": str(folder), "folds_file": str(file), "crop": (100, 50)})
        found = [f for f in check_data(given) if f.kind == "bad folds"]
        assert [f.level for f in found] == ["error"] * errors
    assert f"{table.frame['path'][6]} and {table.frame['path'][13]} are identical" in found[0].detail


def test_too_few_persons_are_counted_without_those_who_share_files(table, photos):
    few = table.select(range(14))
    assert not [f for f in found(few) if f.kind == "too few persons"]
    shutil.copy(photos[6], photos[13])
    (finding,) = [f for f in found(few) if f.kind == "too few persons"]
    assert "there is only 1 person, counting those who share identical photos as one" in finding.detail


def test_a_person_copied_whole_is_one_finding(table, photos):
    for row in range(7):
        shutil.copy(photos[row], photos[row + 7])
    (duplicate,) = [f for f in found(table) if f.kind == "duplicate"]
    assert duplicate.other.count("; ") == 12
    assert "7 photos with the same pixels as those of person" in duplicate.detail


def test_copies_of_one_person_only_matter_where_their_labels_differ(table, photos):
    shutil.copy(photos[0], photos[1])
    assert found(table) == []
    shutil.copy(photos[13], photos[7])
    (finding,) = found(table)
    assert (finding.kind, finding.photo, finding.other) == ("contradicting labels", *table.frame["path"][[7, 13]])
    assert "are mask wear and none" in finding.detail


def test_near_copies_are_named_by_the_best_pair_of_two_persons(table, photos):
    picture = ImageOps.mirror(Image.open(photos[6])).resize((72, 96))
    picture.save(photos[13], "JPEG", quality=70)
    (finding,) = found(table, augments=None)
    assert (finding.level, finding.kind) == ("warning", "near duplicate")
    assert (finding.photo, finding.other) == tuple(table.frame["path"][[6, 13]])
    assert "The same picture mirrored" in finding.detail


def labelled(rows, heads):
    """A table of photos that are not opened: (person, a label per head)."""
    frame = pd.DataFrame(rows, columns=["person", *heads.names])
    return Table(frame.assign(path=[f"{i}.jpg" for i in range(len(frame))]), heads, root=Path())


@pytest.fixture
def unopened(monkeypatch):
    """Tables of labels alone: photos are neither opened nor compared."""
    blank = Fingerprint((8, 6), "", b"", np.zeros(1153, np.float32), blank=True, brightest=255)
    monkeypatch.setattr(
        check, "fingerprint_photos", lambda paths, *_: [replace(blank, file=str(i)) for i in range(len(paths))]
    )
    monkeypatch.setattr(Table, "photo", lambda self, row: None)
    monkeypatch.setattr(check, "_find_blank", lambda *_: [])
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
        "Class 'helmet' of hat has no photo",
        "Class 'crown' of hat has no",
        "'bag' has only the class 'no'",
        "'cane' has no label",
    ):
        assert words in details
    assert "Class 'cap' of hat has 2 persons for 3 folds" in details


@pytest.mark.usefixtures("unopened")
def test_photos_without_persons_are_called_photos():
    table = labelled([(f"p{i}", "fox" if i < 1 else "cat") for i in range(8)], Heads([Head("class", ("cat", "fox"))]))
    table = replace(table, frame=table.frame.assign(person=table.frame["path"]))
    (finding,) = found(table, folds=3, augments=None)
    assert finding.detail == (
        "Class 'fox' of class has 1 photo for 3 folds, so some cannot validate it; add photos or take fewer folds."
    )
    (finding, *_) = found(table, folds=9, augments=None)
    assert "there are only 8 photos; take at most 8" in finding.detail


@pytest.mark.usefixtures("unopened")
def test_joint_classes_count_where_folds_are_stratified_on_them():
    heads = Heads([Head("hat", ("none", "cap")), Head("bag", ("no", "yes"))])
    rows = [(f"p{i}", "cap" if i < 3 else "none", "yes" if 1 < i < 5 else "no") for i in range(8)]
    table = labelled(rows, heads)
    assert found(table, folds=3, stratify="hat", augments=None) == []
    joint = found(table, folds=3, stratify="joint", augments=None)
    counts = {"cap no": 2, "cap yes": 1, "none yes": 2}
    assert [f.kind for f in joint] == ["rare class"] * 3
    assert all(any(f"Joint class {k!r} has {n} person" in f.detail for f in joint) for k, n in counts.items())


def test_fewer_persons_than_folds_fail_the_training(table):
    error, *rest = found(table, folds=13)
    assert (error.level, error.kind) == ("error", "too few persons")
    assert "there are only 12 persons" in error.detail
    assert {f.kind for f in rest} == {"rare class"}


def test_invalid_arguments_are_not_findings(table):
    with pytest.raises(UsageError, match="no head 'hat'"):
        found(table, stratify="hat")
    with pytest.raises(UsageError, match="--folds is 1"):
        found(table, folds=1)


def test_a_table_without_rows(table):
    assert [f.kind for f in found(table.select([]))] == ["too few persons", *["nothing to learn"] * 3]


def test_a_label_of_a_person_that_one_photo_contradicts(table):
    other = {"male": "female", "female": "male"}[table.frame["gender"][3]]
    table.frame.loc[[3, 5], "gender"] = other
    (finding,) = found(table, stratify="age")
    assert (finding.level, finding.kind, finding.person) == ("warning", "contradicting labels", table.persons[0])
    assert (finding.photo, finding.other) == tuple(table.frame["path"][[3, 5]])
    assert f"gender is {other} in 2 photos" in finding.detail


def test_folders_whose_names_contradict_the_table(table):
    person, second = table.persons[0], table.persons[7]
    gender, age = person.split("_")[1], second.split("_")[3]
    wrong = "male" if gender == "female" else "female"
    table.frame.loc[:6, "gender"] = wrong
    table.frame.loc[7:13, "age_value"] += 0.5
    details = {(f.person, f.detail.split(";")[0]) for f in found(table) if f.kind == "contradicting labels"}
    assert details == {
        (person, f"The folder name says gender {gender}, the table {wrong}"),
        (second, f"The folder name says age {age}, the table {age}.5"),
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


def test_progress_counts_every_photo_and_unreadable_ones_too(photos):
    photos[5].write_bytes(b"")
    counts = []
    fingerprints = fingerprint_photos(photos, lambda done, total: counts.append((done, total)), workers=2)
    assert counts == [(i + 1, 84) for i in range(84)]
    assert isinstance(fingerprints[5], DataError)
    assert sum(isinstance(each, Fingerprint) for each in fingerprints) == 83
    # 90 MB for the 18,900 photos of the contest
    assert max(each.signature.nbytes for each in fingerprints if isinstance(each, Fingerprint)) < 5_000


def test_an_interrupted_reading_stops(photos, monkeypatch):
    started = []
    monkeypatch.setattr(check, "_fingerprint", lambda path: (started.append(path), time.sleep(0.005)))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fingerprint_photos(photos * 10, interrupt, workers=1)
    assert len(started) < 840


@pytest.mark.parametrize(
    ("fold", "fault"),
    [("0", "found 'nobody', which is not in the data"), ("first", "found 'first', expected a whole number")],
)
def test_faults_of_the_table_and_the_folds_are_findings_like_those_of_photos(folder, photos, tmp_path, fold, fault):
    photos[0].unlink()
    photos[1].write_bytes(b"")
    csv = folder / "train" / "train.csv"
    csv.write_text(csv.read_text() + "x,robot,Asian,20,x\n")
    (tmp_path / "folds.csv").write_text(f"person,fold\nnobody,{fold}\n")
    config = make_config({"data": str(folder), "folds": 2, "folds_file": str(tmp_path / "folds.csv"), "crop": [99, 50]})
    findings = check_data(config)
    assert [f.kind for f in findings] == ["bad folds", "bad table", "missing photos", "unreadable"]
    assert fault in findings[0].detail
    assert "found 'robot'" in findings[1].detail
    assert "no photo called mask1" in findings[2].detail


def test_faults_of_other_versions_are_findings(folder, photos, tmp_path):
    root, red = folder / "train" / "images", tmp_path / "red"
    for photo in photos[:20]:
        (red / photo.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 128), "red").save((red / photo.relative_to(root)).with_suffix(".png"))
    broken = (red / photos[3].relative_to(root)).with_suffix(".png")
    broken.write_bytes(b"")
    folders = f"{red},{tmp_path / 'none'},{root}"
    config = make_config({"data": str(folder), "folds": 2, "crop": [99, 50], "images_also": folders})
    kind = [f for f in check_data(config) if f.kind == "other versions"]
    assert [(f.level, f.photo) for f in kind] == [("error", ""), ("error", ""), ("error", str(broken)), ("warning", "")]
    assert "none is not a folder" in kind[0].detail
    assert "holds the photos themselves" in kind[1].detail
    assert "is empty; expected a photo" in kind[2].detail
    assert "has versions of 20 of 84 photos, lacking such as" in kind[3].detail


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
    lines = format_findings(FINDINGS, width=60).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["error", "too", "few", "persons", "1"],
        ["error", "unreadable", "12"],
        ["warning", "tiny", "1"],
    ]
    assert sum("a/" in line for line in lines) == 10
    assert "  ... and 2 more; the CSV of --out has all" in lines
    assert max(map(len, lines)) <= 60
    assert format_findings([]) == "Nothing wrong found."


def test_long_names_are_wrapped_not_cut():
    text = format_findings([Finding("error", "unreadable", "The photo is empty.", "q" * 90 + ".jpg")], width=50)
    assert max(map(len, text.splitlines())) <= 50
    assert text.count("q") == 90
