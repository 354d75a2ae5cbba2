import os
from pathlib import Path

import pytest
from run_files import edit

from fastmask.api import Run
from fastmask.run.directory import RunDirectory
from fastmask.run.files import check_free
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings, read_yaml, write_csv, write_yaml


def test_a_run_is_opened_by_its_directory(finished_run):
    run = Run.load(finished_run.path)
    assert run.config == finished_run.config
    assert run.heads == finished_run.heads
    assert run.trained_folds == [0, 1]
    assert run.history(1)["epoch"].tolist() == [0, 1]
    assert str(run.score()) == str(finished_run.score())


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({}, {"fit": "contest", "crop": (400, 200)}),
        # a pipeline of its own was saved next to the default crop
        ({"train_pipeline": {"a": 1}, "valid_pipeline": {"b": 2}, "resize": None}, {"fit": None, "crop": None}),
    ],
)
def test_a_run_of_an_earlier_version_cut_photos_like_the_contest_s(run_copy, earlier, now):
    saved = {**read_yaml(run_copy / "config.yaml"), "train_pipeline": None, "valid_pipeline": None}
    del saved["fit"]
    write_yaml(run_copy / "config.yaml", {**saved, "crop": [400, 200], **earlier})
    assert RunDirectory.load(run_copy).config.model_dump(include={"fit", "crop"}) == now


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a run directory: it has no config.yaml"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("config.yaml", text)
            for text in ("lr: [", "[]", "!!python/object/apply:os.system ['true']", "lr: a", "hat: 1")
        ),
        *(("heads.json", text) for text in ("{", "[]", '[{"name": "a"}]', '{"a": 1}', "3")),
    ],
)
def test_broken_files_are_refused_and_run_nothing(run_copy, name, content):
    (run_copy / name).write_text(content)
    with pytest.raises(DataError):
        Run.load(run_copy)


def test_an_unfinished_run_has_no_score(run_copy):
    (run_copy / "oof.csv").unlink()
    with pytest.raises(UsageError, match=r"has no oof\.csv: the run has not finished"):
        Run.load(run_copy).score()


def test_a_failed_overwrite_restores_the_old_run(finished_run, run_copy, monkeypatch):
    rename = Path.rename

    def fails_for_the_new_one(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    made = {"pipelines": {}, "folds": finished_run.folds, "environment": {}}
    with pytest.raises(KeyboardInterrupt):
        Run.create(run_copy, finished_run.config, finished_run.heads, overwrite=True, **made)
    assert str(Run.load(run_copy).score()) == str(finished_run.score())
    assert [p.name for p in run_copy.parent.iterdir()] == [run_copy.name]


def test_a_free_place_is_empty_or_new(tmp_path):
    check_free(tmp_path)
    check_free(tmp_path / "new")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="exists"):
        check_free(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        check_free(tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("name", ["oof.csv", "config.yaml", "fold0", "fold0/history.csv"])
def test_a_link_out_of_a_run_is_not_followed(run_copy, name):
    moved = (run_copy / name).rename(run_copy.parent / "elsewhere")
    (run_copy / name).symlink_to(moved)
    with pytest.raises(DataError, match=f"{name} is a link out of the run"):
        Run.load(run_copy)


def test_a_link_to_a_run_and_one_inside_it_are_followed(run_copy, finished_run, tmp_path):
    (run_copy / "oof.csv").rename(run_copy / "fold0" / "collected.csv")
    (run_copy / "oof.csv").symlink_to("fold0/collected.csv")
    (tmp_path / "link").symlink_to(run_copy)
    assert str(Run.load(tmp_path / "link").score()) == str(finished_run.score())


@pytest.mark.parametrize("name", ["scores.json", "fold1/epoch009.safetensors"])
def test_a_pipe_in_a_run_is_not_opened(run_copy, name):
    (run_copy / name).unlink(missing_ok=True)
    os.mkfifo(run_copy / name)
    with pytest.raises(DataError, match=f"{name} is not a plain file"):
        Run.load(run_copy)


@pytest.mark.parametrize(
    ("name", "column", "cell", "message"),
    [
        ("oof.csv", "mask.wear", "nan", "found 'nan', expected a probability"),
        ("oof.csv", "true", "0.5", "found '0.5', expected a whole number from -1 to 17"),
        ("oof.csv", "fold", "", "found '', expected a whole number from 0 to 1"),
        ("folds.csv", "fold", "2", "found '2', expected a whole number from -1 to 1"),
        ("folds.csv", "age_value", "old", "found 'old', expected a number"),
        ("folds.csv", "gender", "robot", "found 'robot', expected one of male, female, or nothing if unknown"),
    ],
)
def test_an_invalid_cell_is_named(run_copy, name, column, cell, message):
    frame = read_strings(run_copy / name, ())
    if column not in frame.columns:
        frame[column] = "1"
    frame.iloc[3, list(frame.columns).index(column)] = cell
    write_csv(run_copy / name, frame)
    with pytest.raises(DataError, match=f"{name}.* column {column}: {message}"):
        Run.load(run_copy).score()


@pytest.mark.parametrize("name", ["folds.csv", "oof.csv"])
def test_a_duplicated_photo_is_refused(run_copy, name):
    text = (run_copy / name).read_text()
    (run_copy / name).write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(DataError, match=f"{name} has two rows for"):
        Run.load(run_copy).score()


def test_the_folds_of_a_run_are_those_on_the_disk(run_copy):
    edit(run_copy / "config.yaml", "\nfolds: 2\n", "\nfolds: 9000\n")
    assert Run.load(run_copy).trained_folds == [0, 1]
    edit(run_copy / "config.yaml", "\nfolds: 9000\n", "\nfolds: 1000000000\n")
    with pytest.raises(DataError, match="folds: found 1000000000, expected a whole number from 1 to 9999"):
        Run.load(run_copy)


@pytest.mark.parametrize("content", ["[]", '{"start": 1}', '{"packages": []}'])
def test_an_invalid_environment_is_refused(run_copy, content):
    (run_copy / "environment.json").write_text(content)
    with pytest.raises(DataError, match="environment.json holds"):
        Run.load(run_copy).start  # noqa: B018
