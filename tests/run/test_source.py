"""Source: the table of a run, found by its settings or by a new path."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.api import Run
from fastmask.config import make_config
from fastmask.heads import Head, Heads
from fastmask.run.source import photos_of, table_of
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_yaml


def test_the_table_has_the_rows_of_the_run_with_the_columns_of_the_data(finished_run):
    table = table_of(finished_run)
    assert table.frame["path"].tolist() == finished_run.folds["path"].tolist()
    assert table.photo(3).is_file()
    np.testing.assert_array_equal(table.y, finished_run.y)
    assert table.frame["age_value"].between(0, 150).all()


def test_moved_data_is_found_by_its_path(finished_run, contest_copy):
    assert table_of(finished_run, str(contest_copy)).root == contest_copy / "train" / "images"


def test_other_data_is_refused(finished_run, tmp_path):
    from fastmask.data.sample import write_sample

    other = write_sample(tmp_path / "other", persons=6, seed=5)
    with pytest.raises(UsageError, match=r"lacks \d+ of the photos of .*; name their folder with --data"):
        table_of(finished_run, str(other))


@pytest.fixture
def csv_run(run_of, guess, labels, tmp_path):
    """A run of a CSV with photos in another folder, and that folder."""
    heads, y = Heads([Head("mask", ("a", "b", "c")), Head("sex", ("f", "m")), Head("old", tuple("xyz"))]), labels[:180]
    run = run_of(guess(y, 0, heads=heads), y, heads=heads, folds=3)
    photos, file = tmp_path / "made-photos", tmp_path / "made.csv"
    photos.mkdir()
    for path in run.folds["path"]:
        Image.new("RGB", (30, 40)).save(photos / path)
    run.folds.drop(columns="fold").to_csv(file, index=False)
    classes = {head.name: list(head.classes) for head in run.heads}
    settings = {"data": str(file), "images": str(photos), "heads": classes}
    write_yaml(run.path / "config.yaml", make_config({**run.config.model_dump(), **settings}).to_plain())
    return Run.load(run.path), photos


def test_moved_photos_of_a_csv_are_found_by_their_folder(csv_run, tmp_path):
    run, photos = csv_run
    there = photos.rename(tmp_path / "moved")
    for place in ({"data": str(there)}, {"images": str(there)}):
        assert photos_of(run, **place).root == there
        table = table_of(run, **place)
        assert (table.root, len(table)) == (there, len(run.folds))
    file = (tmp_path / "made.csv").rename(tmp_path / "new.csv")
    assert table_of(run, str(file), images=str(there)).root == there
    with pytest.raises(UsageError, match=r"made-photos is not a folder; .*\(--images\)"):
        photos_of(run, str(file))


@pytest.mark.parametrize("option", ["data", "images"])
def test_a_folder_without_the_photos_is_refused(csv_run, tmp_path, option):
    (tmp_path / "empty").mkdir()
    for read in (photos_of, table_of):
        with pytest.raises(UsageError, match="nowhere is not a folder; expected the current one of the photos of"):
            read(csv_run[0], **{option: str(tmp_path / "nowhere")})
        with pytest.raises(UsageError, match="empty lacks 180 of the photos of .*, such as 00000.jpg"):
            read(csv_run[0], **{option: str(tmp_path / "empty")})


def test_a_missing_photo_has_the_labels_of_the_run(finished_run, contest_copy):
    path = finished_run.folds["path"][0]
    (contest_copy / "train" / "images" / path).unlink()
    table = table_of(finished_run, str(contest_copy))
    columns = ["path", "person", *table.heads.names, "age_value"]
    pd.testing.assert_frame_equal(table.frame[columns], table_of(finished_run).frame[columns])
    assert photos_of(finished_run, str(contest_copy)).root == table.root
    # one that is there, and that the table no longer has, is another matter
    csv = contest_copy / "train" / "train.csv"
    csv.write_text("".join(line for line in csv.open() if finished_run.folds["person"][0] not in line))
    with pytest.raises(UsageError, match="lacks 7 of the photos"):
        table_of(finished_run, str(contest_copy))


def test_photos_have_the_labels_of_the_run(finished_run, contest):
    table = photos_of(finished_run)
    assert table.root == (contest / "train" / "images").resolve()
    assert table.heads == finished_run.heads
    pd.testing.assert_frame_equal(
        table.frame[["path", "person", *table.heads.names, "age_value"]],
        finished_run.folds[["path", "person", *table.heads.names, "age_value"]],
    )
    assert all(table.photo(row).is_file() for row in range(len(table)))


def test_photos_are_found_by_the_path_of_the_data(finished_run, contest_copy):
    assert photos_of(finished_run, str(contest_copy)).root == contest_copy / "train" / "images"


def test_a_run_without_ages_has_photos_without(run_copy):
    folds = pd.read_csv(run_copy / "folds.csv", dtype=str).drop(columns="age_value")
    folds.to_csv(run_copy / "folds.csv", index=False)
    assert photos_of(Run.load(run_copy)).frame["age_value"].isna().all()


@pytest.mark.parametrize("path", ["../a.jpg", "/etc/a.jpg", "a/../../b.jpg", "C:/a.jpg", "a\\..\\b.jpg", ".."])
def test_a_path_out_of_the_folder_is_refused(run_copy, path):
    for name in ("folds.csv", "oof.csv"):
        text = (run_copy / name).read_text()
        first = text.splitlines()[1].split(",")[0]
        (run_copy / name).write_text(text.replace(f"{first},", f"{path},", 1))
    with pytest.raises(DataError, match="is outside its data"):
        photos_of(Run.load(run_copy))
