from pathlib import Path

import pytest

from fastmask.errors import DataError, UsageError
from fastmask.run import Run, check_free


def test_a_run_is_opened_by_its_directory(finished_run):
    run = Run.load(finished_run.path)
    assert run.config == finished_run.config
    assert run.heads == finished_run.heads
    assert run.trained_folds == [0, 1]
    assert run.history(1)["epoch"].tolist() == [0, 1]
    assert str(run.score()) == str(finished_run.score())


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UsageError, match="is not a run directory: it has no config.yaml"):
        Run.load(tmp_path)


@pytest.mark.parametrize("content", ["lr: [", "[]", "!!python/object/apply:os.system ['true']", "lr: much", "hat: 1"])
def test_a_broken_configuration_is_said_and_runs_nothing(run_copy, content):
    (run_copy / "config.yaml").write_text(content)
    with pytest.raises(DataError):
        Run.load(run_copy)


@pytest.mark.parametrize("content", ["{", "[]", '[{"name": "a"}]', '{"a": 1}', "3"])
def test_broken_heads_are_said(run_copy, content):
    (run_copy / "heads.json").write_text(content)
    with pytest.raises(DataError):
        Run.load(run_copy)


def test_a_run_that_has_not_finished_says_so(run_copy):
    (run_copy / "oof.csv").unlink()
    with pytest.raises(UsageError, match=r"has no oof\.csv: the run has not finished"):
        Run.load(run_copy).score()


def test_an_overwrite_that_fails_gives_the_old_run_back(finished_run, run_copy, monkeypatch):
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
