"""Photos that a table names and that do not exist, in each kind of data."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.config import make_config
from fastmask.data.extra import read_extra
from fastmask.data.missing import MissingPhotos
from fastmask.data.readers import read_data, read_table
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, MissingPhotoError


@pytest.fixture
def folder(tmp_path):
    """Six photos of three persons in a CSV, of which two do not exist."""
    for n in (0, 2, 3, 5):
        Image.new("RGB", (8, 8), (40 * n, 0, 0)).save(tmp_path / f"{n}.png")
    rows = [(f"{n}.png", f"p{n // 2}", "red" if n % 2 else "blue", n) for n in range(6)]
    pd.DataFrame(rows, columns=["path", "person", "colour", "weight"]).to_csv(tmp_path / "my.csv", index=False)
    return tmp_path


def read(data, skip=True, **settings):
    how = {"on_bad_photo": "skip"} if skip else {}
    return read_data(make_config({"data": str(data), **how, **settings}))


def test_rows_of_a_csv_are_left_out_and_listed(folder):
    table = read(folder / "my.csv", heads=["colour"])
    assert table.frame["path"].tolist() == ["0.png", "2.png", "3.png", "5.png"]
    assert [path for path, _ in table.missing] == ["1.png", "4.png"]
    assert "my.csv, line 3, column path:" in table.missing[0][1]
    assert table.select([0]).missing == table.missing


def test_without_skip_the_error_counts_them_and_names_the_option(folder):
    with pytest.raises(MissingPhotoError, match=r"line 3, .*1.png does not exist.* In all 2 photos are missing; --on"):
        read(folder / "my.csv", skip=False, heads=["colour"])
    Image.new("RGB", (8, 8)).save(folder / "4.png")
    with pytest.raises(MissingPhotoError, match=r"1.png does not exist.*--on-bad-photo skip leaves it out\.$"):
        read(folder / "my.csv", skip=False, heads=["colour"])


@pytest.mark.parametrize("skip", [True, False])
def test_where_all_are_missing_another_folder_is_meant(folder, skip):
    (folder / "empty").mkdir()
    with pytest.raises(MissingPhotoError, match="0.png does not exist") as caught:
        read(folder / "my.csv", skip, heads=["colour"], images=str(folder / "empty"))
    assert "leaves" not in str(caught.value)


def test_other_faults_are_raised(folder):
    (folder / "my.csv").write_text((folder / "my.csv").read_text().replace("0.png,p0", "0.png,"))
    with pytest.raises(DataError, match="line 2, column person: found an empty cell"):
        read(folder / "my.csv", heads=["colour"])


def test_a_person_of_the_contest_keeps_the_other_photos(contest_copy):
    persons = sorted((contest_copy / "train" / "images").iterdir())
    next(persons[1].glob("mask3.*")).unlink()
    shutil.rmtree(persons[4])
    table = read(contest_copy)
    assert table.frame["person"].value_counts()[persons[1].name] == 6
    assert persons[4].name not in set(table.persons)
    assert sorted(path for path, _ in table.missing) == sorted([f"{persons[1].name}/mask3", persons[4].name])
    with pytest.raises(MissingPhotoError, match="no photo called mask3.* In all 2 photos are missing"):
        read(contest_copy, skip=False)


@pytest.mark.filterwarnings("ignore:Nothing in")
def test_a_class_without_photos_is_left_out(folder):
    for name in ("a", "b", "c"):
        (folder / "pets" / name).mkdir(parents=True)
    for name, n in (("a", 0), ("a", 2), ("c", 3), ("c", 5)):
        (folder / f"{n}.png").rename(folder / "pets" / name / f"{n}.png")
    table = read(folder / "pets")
    assert table.heads["class"].classes == ("a", "c")
    assert [path for path, _ in table.missing] == ["b"]
    with pytest.raises(MissingPhotoError, match="holds no photos.*--on-bad-photo skip leaves it out"):
        read(folder / "pets", skip=False)


def test_extra_photos_keep_their_own_weights(folder):
    missing = MissingPhotos()
    extra = read_extra(folder / "my.csv", Heads([Head("colour", ("blue", "red"))]), on_fault=missing.note)
    assert extra.table.frame["path"].tolist() == ["0.png", "2.png", "3.png", "5.png"]
    np.testing.assert_array_equal(extra.weights, [0, 2, 3, 5])
    assert [path for path, _ in missing.left_out(skip=True, left=4)] == ["1.png", "4.png"]
    with pytest.raises(MissingPhotoError, match="1.png does not exist"):
        read_extra(folder / "my.csv", Heads([Head("colour", ("blue", "red"))]))


def test_rows_of_a_data_frame_are_left_out_and_listed(folder):
    frame = pd.read_csv(folder / "my.csv")[["path", "person", "colour"]]
    config = make_config({"images": str(folder), "on_bad_photo": "skip"})
    table = read_table(frame, config)
    assert [path for path, _ in table.missing] == ["1.png", "4.png"]
    with pytest.raises(MissingPhotoError, match="In all 2 photos are missing"):
        read_table(frame, make_config({"images": str(folder)}))
