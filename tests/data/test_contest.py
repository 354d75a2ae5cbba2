import shutil

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import contest_folder, read_contest
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


def rewrite(folder, change):
    """Change train.csv of a contest folder by a function of its frame."""
    file = folder / "train" / "train.csv"
    frame = pd.read_csv(file, dtype=str)
    changed = change(frame)
    (frame if changed is None else changed).to_csv(file, index=False)


def persons(folder):
    return sorted((folder / "train" / "images").iterdir())


def test_seven_photos_a_person_in_the_order_of_the_csv(contest):
    table, csv = read_contest(contest), pd.read_csv(contest / "train" / "train.csv", dtype=str)
    assert table.frame["person"].tolist() == csv["path"].repeat(7).tolist()
    assert table.frame["mask"].tolist() == ([*["wear"] * 5, "incorrect", "none"]) * len(csv)
    assert table.frame["gender"].tolist() == csv["gender"].repeat(7).tolist()
    assert table.frame["age_value"].tolist() == csv["age"].astype(float).repeat(7).tolist()
    assert all(table.photo(i).is_file() for i in range(len(table)))


def test_labels_are_numbers_in_the_contest_s_order(contest):
    table = read_contest(contest)
    age = np.digitize(table.frame["age_value"], (30, 60))
    gender = (table.frame["gender"] == "female").astype(int)
    assert table.y.tolist() == np.column_stack([[0, 0, 0, 0, 0, 1, 2] * 12, gender, age]).tolist()


def test_the_folder_may_be_train_or_what_holds_it(contest):
    assert contest_folder(contest) == contest_folder(contest / "train") == contest / "train"


def test_junk_is_left_out_and_any_extension_is_found(contest_copy):
    one, two = persons(contest_copy)[:2]
    (one / "._mask1.jpg").write_bytes(b"junk")
    (one / ".ipynb_checkpoints").mkdir()
    (one / ".ipynb_checkpoints" / "mask1-checkpoint.jpg").write_bytes(b"junk")
    (one / "Thumbs.db").write_bytes(b"junk")
    photo = next(two.glob("normal.*"))
    photo.rename(two / "normal.JPEG")
    table = read_contest(contest_copy)
    assert len(table) == 7 * len(persons(contest_copy))
    assert f"{two.name}/normal.JPEG" in set(table.frame["path"])


def test_a_repeated_id_is_two_persons(contest_copy):
    rewrite(contest_copy, lambda frame: frame.__setitem__("id", ["000001"] * len(frame)))
    table = read_contest(contest_copy)
    assert len(set(table.persons)) == len(persons(contest_copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="age"), r"train\.csv has no column 'age'; found id, gender, race, path"),
        (lambda f: f.__setitem__("gender", "robot"), r"line 2, column gender: found 'robot', expected male or female"),
        (lambda f: f.__setitem__("gender", ""), r"line 2, column gender: found '', expected male or female"),
        (lambda f: f.__setitem__("age", ""), r"line 2, column age: found '', expected a number"),
        (lambda f: f.__setitem__("path", ""), r"line 2, column path: found '', expected the name"),
        (lambda f: f.__setitem__("age", "old"), r"line 2, column age: found 'old', expected a number"),
        (lambda f: f.__setitem__("age", "nan"), r"line 2, column age: found 'nan', expected a number"),
        (lambda f: f.__setitem__("age", "-1"), r"line 2, column age: found '-1', expected a number"),
        (lambda f: f.__setitem__("path", "../../secret"), r"column path: found '../../secret', expected the name"),
        (lambda f: f.__setitem__("path", f["path"].iloc[0]), r"line 3, column path: .* is duplicated"),
        (lambda f: f.iloc[:0], r"has no rows"),
    ],
)
def test_a_bad_row_is_named_by_line_and_column(contest_copy, change, message):
    rewrite(contest_copy, change)
    with pytest.raises(DataError, match=message):
        read_contest(contest_copy)


BAD_FOLDERS = {
    "has no photo called mask3": lambda person: next(person.glob("mask3.*")).unlink(),
    r"cannot be read .*but is in .*train\.csv": shutil.rmtree,
    "has both mask1": lambda person: [(person / f"mask1.{ending}").touch() for ending in ("png", "jpg")],
    r"mask9\.jpg is not one of the seven photos": lambda person: (person / "mask9.jpg").touch(),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_missing_doubled_and_foreign_photos_are_named(contest_copy, message):
    person = persons(contest_copy)[0]
    BAD_FOLDERS[message](person)
    with pytest.raises(DataError, match=f"{person.name}.*{message}"):
        read_contest(contest_copy)


def test_no_folder_is_a_mistake_of_the_command(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere is not a contest folder \(no such folder\)"):
        read_contest(tmp_path / "nowhere")


@pytest.mark.parametrize("what", ["photo", "folder"])
def test_a_link_out_of_images_is_refused(contest_copy, what):
    one = persons(contest_copy)[0]
    linked = next(one.glob("mask1.*")) if what == "photo" else one
    moved = linked.rename(contest_copy / linked.name)
    linked.symlink_to(moved)
    with pytest.raises(DataError, match=f"{one.name}.* is a link out of .*images, to .*--trust-links"):
        read_contest(contest_copy)


def test_the_folder_of_images_may_be_a_link(contest_copy):
    count = len(read_contest(contest_copy))
    (contest_copy / "train" / "images").rename(contest_copy / "elsewhere")
    (contest_copy / "train" / "images").symlink_to(contest_copy / "elsewhere")
    assert len(read_contest(contest_copy)) == count


def test_other_files_in_the_folders_of_persons_are_counted(contest_copy):
    images = contest_copy / "train" / "images"
    person = sorted(images.iterdir())[0]
    for name in ("notes.txt", "Thumbs.db", ".DS_Store"):
        (person / name).touch()
    with pytest.warns(FastmaskWarning, match=r"^1 file is left out \(1 \.txt\), such as .*notes\.txt"):
        read_contest(contest_copy)
    (photo,) = person.glob("mask1.*")
    photo.rename(person / "mask1.HEIC")
    with pytest.raises(DataError, match=r"no photo called mask1 .* seven photos\. 2 files are left out .*\.heic"):
        read_contest(contest_copy)
