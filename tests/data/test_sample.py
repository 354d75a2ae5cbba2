"""The drawn sample: the contest's format, the same bytes again, and all or nothing on disk."""

import csv
import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from fastmask.data import sample
from fastmask.data.drawing import STEMS, Person
from fastmask.data.sample import CONTEST_PERSONS, cached_sample, class_of, shares, write_sample
from fastmask.system.errors import UsageError

PERSONS, EVAL_PERSONS = 6, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "drawn", PERSONS, eval_persons=EVAL_PERSONS)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_table_and_seven_photos_per_person_with_one_extension(folder):
    rows = read_rows(folder / "train/train.csv")
    assert (folder / "train/train.csv").read_bytes().startswith(b"id,gender,race,age,path\n")
    assert [row["id"] for row in rows] == [f"{number:06d}" for number in range(1, PERSONS + 1)]
    assert {path.name for path in (folder / "train/images").iterdir()} == {row["path"] for row in rows}
    extensions, groups = Counter(), Counter()
    for row in rows:
        age = int(row["age"])
        assert row["path"] == f"{row['id']}_{row['gender']}_Asian_{age}"
        assert row["race"] == "Asian"
        assert 18 <= age <= 60
        photos = list((folder / "train/images" / row["path"]).iterdir())
        assert sorted(photo.stem for photo in photos) == sorted(STEMS)
        (extension,) = {photo.suffix for photo in photos}
        extensions[extension] += 1
        groups[row["gender"], 0 if age < 30 else 1 if age < 60 else 2] += 1
    assert set(extensions) == {".jpg", ".jpeg", ".png"}
    assert extensions[".jpg"] > PERSONS / 2
    assert groups == {(gender, band): 1 for gender in ("male", "female") for band in range(3)}


def test_shares_follow_the_contest():
    assert shares(2700) == CONTEST_PERSONS
    for count in (1, 2, 6, 11, 12, 40, 120, 121):
        assert sum(shares(count).values()) == count
        assert min(shares(count).values()) >= min(2, count // 6)
    assert shares(120)[0, 2] == 4


def test_eval_tables_hold_seven_photos_per_person(folder):
    info, answers = (read_rows(folder / "eval" / name) for name in ("info.csv", "answers.csv"))
    names = [row["ImageID"] for row in info]
    assert list(info[0]) == list(answers[0]) == ["ImageID", "ans"]
    assert {row["ans"] for row in info} == {"0"}
    assert names == [row["ImageID"] for row in answers]
    assert len(set(names)) == len(names)
    assert set(names) == {path.name for path in (folder / "eval/images").iterdir()}
    assert all(re.fullmatch(r"[0-9a-f]{40}\.(jpg|jpeg|png)", name) for name in names)
    classes = [int(row["ans"]) for row in answers]
    by_mask = [Counter(number % 6 for number in classes if number // 6 == mask) for mask in range(3)]
    assert [sum(counts.values()) for counts in by_mask] == [5 * EVAL_PERSONS, EVAL_PERSONS, EVAL_PERSONS]
    assert by_mask[1] == by_mask[2]
    assert by_mask[0] == {group: 5 * count for group, count in by_mask[1].items()}
    assert classes != sorted(classes)
    assert any(abs(a - b) % 6 for a, b in pairwise(classes[:7])), "shuffled across persons"


def test_answers_follow_the_contest_classes():
    old_woman, young_man = Person((0, 1, 0), gender=1, band=2), Person((0, 1, 1), gender=0, band=0)
    assert [class_of(old_woman, stem) for stem in STEMS] == [5, 5, 5, 5, 5, 11, 17]
    assert [class_of(young_man, stem) for stem in STEMS] == [0, 0, 0, 0, 0, 6, 12]


def test_the_same_seed_gives_the_same_bytes_and_all_photos_differ(folder, tmp_path):
    files = tree(folder)
    assert len(set(files.values())) == len(files)
    assert tree(write_sample(tmp_path, PERSONS, eval_persons=EVAL_PERSONS)) == files


def test_other_seed_other_photos(monkeypatch, tmp_path, folder):
    monkeypatch.setattr(sample, "STEMS", ("normal",))
    other = tree(write_sample(tmp_path, PERSONS, seed=1, eval_persons=EVAL_PERSONS))
    assert len(other) == PERSONS + EVAL_PERSONS + 3
    assert not set(other.values()) & set(tree(folder).values())


@pytest.fixture
def undrawn(monkeypatch):
    """Files without photos in them, where only the files matter."""
    monkeypatch.setattr(sample, "take_photo", lambda person, stem: b"")


@pytest.mark.usefixtures("undrawn")
def test_third_of_the_persons_for_evaluation_by_default(tmp_path):
    folder = write_sample(tmp_path / "new" / "folder", 6)
    assert len(list((folder / "eval/images").iterdir())) == 14
    assert folder.stat().st_mode == (folder / "train").stat().st_mode, "readable like any other folder"


@pytest.mark.usefixtures("undrawn")
def test_empty_folder_is_filled_but_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert write_sample(".", 6, eval_persons=1) == tmp_path
    assert tmp_path.stat().st_ino == before
    assert sorted(path.name for path in Path().iterdir()) == ["eval", "train"]


@pytest.mark.usefixtures("undrawn")
def test_cached_sample_is_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    log = []
    folder = cached_sample(6, log=log.append)
    assert cached_sample(6, log=log.append) == folder
    assert len(log) == 1
    assert (folder / "train/train.csv").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("moment", ["before the check", "while drawing"])
def test_cached_sample_of_a_faster_process_is_used(tmp_path, monkeypatch, moment):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place, write_eval = tmp_path / "fastmask" / f"sample{sample.VERSION}-6-0", sample._write_eval

    def overtaken(*arguments):
        monkeypatch.setattr(sample, "_write_eval", write_eval)
        write_sample(place, 6)
        write_eval(*arguments)

    if moment == "while drawing":
        monkeypatch.setattr(sample, "_write_eval", overtaken)
    assert cached_sample(6, log=lambda _: moment == "while drawing" or write_sample(place, 6)) == place
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert sorted(path.name for path in place.iterdir()) == ["eval", "train"]


@pytest.mark.parametrize(("persons", "message"), [(5, "at least 6"), (10**12, "at most 999999")])
def test_cached_sample_passes_failures_on(persons, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=message):
        cached_sample(persons)


@pytest.mark.usefixtures("undrawn")
def test_where_the_home_cannot_be_written_a_sentence_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "file")
    with pytest.raises(UsageError, match=r"written to .*file.*sample.* \(Not a directory\); set XDG_CACHE_HOME"):
        cached_sample(6)

    # a user without a name
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    with pytest.raises(UsageError, match="Cannot find a home directory for the cache; set XDG_CACHE_HOME"):
        cached_sample(6)


def test_refuses_a_folder_in_use_and_leaves_it_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    notes = tmp_path / "mine/notes.txt"
    notes.write_text("keep")
    for place in (notes.parent, notes):
        with pytest.raises(UsageError, match="choose another folder"):
            write_sample(place, 6)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    assert notes.read_text() == "keep"


@pytest.mark.parametrize("wrong", [{"persons": 5}, {"eval_persons": 0}, {"seed": -1}])
def test_refuses_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(UsageError):
        write_sample(tmp_path / "drawn", **{"persons": 6, **wrong})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("interruption", "photos"), [(KeyboardInterrupt, 10), (OSError, 45)])
@pytest.mark.parametrize("name", ["new", ""])
def test_interruption_leaves_nothing(tmp_path, monkeypatch, interruption, photos, name):
    done = []

    def fail_midway(person, stem):
        done.append(stem)
        if len(done) > photos:
            raise interruption
        return b""

    monkeypatch.setattr(sample, "take_photo", fail_midway)
    with pytest.raises(interruption):
        write_sample(tmp_path / name, 6, eval_persons=1)
    assert len(done) == photos + 1
    assert not list(tmp_path.iterdir())
