import io
import shlex
import shutil
from contextlib import ExitStack
from unittest.mock import Mock

import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from fastmask.api import Run, cross_validate
from fastmask.config import make_config, read_settings
from fastmask.data.contest import read_contest
from fastmask.search import tune as module
from fastmask.search.space import parse_space
from fastmask.search.spec import SearchSpec
from fastmask.search.study import open_study, silence_optuna
from fastmask.search.trials import COMPLETE, FAILED, PRUNED, REFUSED
from fastmask.search.tune import tune
from fastmask.system.errors import DataError, FastmaskError, UntrainableError, UsageError
from fastmask.training import crossval

SPACE = {"lr": {"low": 1e-3, "high": 1e-2, "log": True}, "focal_gamma": [0, 2]}


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


@pytest.fixture(scope="module")
def search(table, small_settings):
    """A function that searches quietly, with small trials."""

    def search(space, out, **options):
        settings = {**small_settings, "epochs": 1, "workers": 0}
        return tune(table, space, out=out, **{"log": io.StringIO(), **settings, **options})

    return search


@pytest.fixture(scope="module")
def searched(search, tmp_path_factory):
    """A search of two trials; for reading only."""
    return search(SPACE, tmp_path_factory.mktemp("tunes") / "whole", trials=2)


def rows(out):
    return pd.read_csv(out / "trials.csv").drop(columns="seconds")


def test_a_trial_is_a_run_and_its_score_that_of_the_run(searched):
    assert [one.state for one in searched.trials] == [COMPLETE] * 2
    for one in searched.trials:
        run = Run.load(one.path)
        assert {name: getattr(run.config, name) for name in SPACE} == one.settings
        assert run.environment["near_copies"] == {"pairs": []}
        expected = f1_score(run.oof["true"], run.oof["predicted"], labels=run.oof["true"].unique(), average="macro")
        assert np.isclose(one.macro_f1, expected)
        assert one.interval[0] <= one.macro_f1 <= one.interval[1]
    best = searched.best
    assert best.macro_f1 == max(one.macro_f1 for one in searched.trials)
    assert searched.run.path == best.path
    frame = rows(searched.out)
    assert np.allclose(frame["macro_f1"], [one.macro_f1 for one in searched.trials])
    assert frame["lr"].tolist() == pytest.approx([one.settings["lr"] for one in searched.trials])
    assert len(set(frame["lr"])) == 2
    assert "of 2 is chosen by that same score, which is therefore optimistic" in str(searched)
    # the checkpoints of the best stay
    assert [one for one in searched.trials if list(one.path.glob("fold*/epoch*.safetensors"))] == [best]
    assert list(searched.out.glob("trials/*/fold*/state.safetensors")) == []
    assert sorted(path.name for path in (searched.out / "trials").iterdir()) == ["0000", "0001"]


def test_pictures_and_the_best_settings_are_written(searched, table, tmp_path):
    for name in ("history.png", "importance.png"):
        assert (searched.out / name).read_bytes().startswith(b"\x89PNG")
        assert (searched.out / name).stat().st_size > 5000
    assert sum(searched.importance.values()) == pytest.approx(1)
    config = make_config(read_settings(searched.out / "best.yaml"))
    again = cross_validate(table, config, out=tmp_path / "again", log=io.StringIO(), workers=0)
    assert again.oof.equals(searched.run.oof)
    # the score that the settings were chosen by is repeated
    assert again.score(draws=0).joint.macro_f1 == searched.best.macro_f1
    assert "tune" in again.caveats[0]
    assert again.caveats == searched.run.caveats
    assert again.identity == searched.run.identity


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_same_results(searched, search, table, tmp_path, monkeypatch):
    out, trained = tmp_path / "killed", []
    train_fold = crossval.train_fold

    def killed(run, plan, fold, *rest):
        trained.append((run.path.name, fold))
        if trained.count(trained[-1]) == 1 and trained[-1] in (("0000", 1), ("0001", 0)):
            raise KeyboardInterrupt
        train_fold(run, plan, fold, *rest)

    monkeypatch.setattr(crossval, "train_fold", killed)
    log = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, out, trials=1, log=log)
    assert f"Interrupted. To resume: fastmask tune --resume --out {shlex.quote(str(out))}" in log.getvalue()
    with pytest.raises(KeyboardInterrupt):
        tune(table, out=out, resume=True, trials=2, log=io.StringIO())
    tuned = tune(table, SPACE, out=out, resume=True, trials=2, log=io.StringIO(), cache="off")
    # finished folds are not trained again
    assert trained.count(("0000", 0)) == 1
    assert len(trained) == 4 + 2
    assert rows(out).equals(rows(searched.out))
    for one, other in zip(tuned.trials, searched.trials, strict=True):
        assert Run.load(one.path).oof.equals(Run.load(other.path).oof)
    best = read_settings(out / "best.yaml")
    assert not {"workers", "cache"} & set(best)


def test_processes_that_share_a_search_take_different_trials(tmp_path):
    spec = SearchSpec(tmp_path / "shared", parse_space(SPACE), {}, trials=3)
    spec.write()
    with silence_optuna(), ExitStack() as first, ExitStack() as second, ExitStack() as third:
        one, other = open_study(spec), open_study(spec)
        taken = one.take(first)
        assert taken.number == 0
        params = one.propose(taken)
        assert other.take(second).number == 1
        # the first process dies: its trial is free, with the same settings
        first.close()
        again = other.take(third)
        assert again.number == 0
        assert other.propose(again) == params
        with ExitStack() as fourth, ExitStack() as fifth:
            assert one.take(fourth).number == 2
            assert one.take(fifth) is None


@pytest.mark.slow
def test_a_trial_that_is_worse_than_those_before_is_pruned(search, tmp_path, monkeypatch):
    median = optuna.pruners.MedianPruner
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda: median(n_startup_trials=1))
    monkeypatch.setattr(module, "fold_score", lambda run, fold: 0.5 if run.path.name == "0000" else 0.2)
    log = io.StringIO()
    tuned = search(SPACE, tmp_path / "pruned", trials=2, log=log)
    assert [one.state for one in tuned.trials] == [COMPLETE, PRUNED]
    pruned = tuned.trials[1]
    assert (pruned.folds, pruned.fold_macro_f1, pruned.macro_f1) == (1, 0.2, None)
    run = Run.load(pruned.path)
    assert run.trained_folds == [0]
    assert set(run.oof["fold"]) == {0}
    assert list(pruned.path.glob("fold*/*.safetensors")) == [pruned.path / "fold0" / "oof-000.safetensors"]
    assert "trial 1 pruned: 1 of 2 folds were enough" in log.getvalue()
    assert "Removed the checkpoints of trial 1" in log.getvalue()
    assert tuned.run.checkpoints(0)
    assert "No importance.png" in str(tuned)
    assert not (tmp_path / "pruned" / "importance.png").exists()


def test_a_trial_of_incompatible_settings_is_refused(search, tmp_path):
    never = {"mix_prob": [0.3, 0.5]}
    with pytest.raises(UsageError, match="All 5 trials so far were refused, the last: mix_prob "):
        search(never, tmp_path / "never")
    assert rows(tmp_path / "never")["state"].tolist() == [REFUSED] * 5
    with pytest.raises(FastmaskError, match="None of 2 trials in .* has a score, the last: mix_prob"):
        search(never, tmp_path / "twice", trials=2)


def test_a_trial_that_diverges_has_failed_and_other_errors_end_the_search(search, tmp_path, monkeypatch):
    for name, error, message in (
        (
            "diverged",
            UntrainableError("Fold 1 diverged in epoch 1. Likely causes: too high a learning rate. Go on: fit"),
            r"has a score, the last: Fold 1 diverged in epoch 1\.$",
        ),
        ("full", OSError(28, "No space left on device"), "device. Once that is fixed: fastmask tune --resume"),
    ):
        monkeypatch.setattr(module, "train_folds", Mock(side_effect=error))
        with pytest.raises(FastmaskError, match=message):
            search(SPACE, tmp_path / name, trials=1)
    assert rows(tmp_path / "diverged")["state"].tolist() == [FAILED]


def test_a_search_resumes_only_with_the_same_settings_and_data(searched, table, tmp_path):
    copy = shutil.copytree(searched.out, tmp_path / "copied")
    quietly = {"out": copy, "resume": True, "log": io.StringIO()}
    for words, options in {
        "started with other space": {"space": {"lr": [0.1, 0.2]}},
        "started with epochs 1, now it is 2; --resume needs the same": {"epochs": 2},
        "started with other pruner": {"pruner": "none"},
        "other photos, persons or labels than now": {"table": table.select(np.arange(70))},
        "--trials is 0; expected 1 to 10000": {"trials": 0},
        "--keep is 0; expected 1 or more": {"keep": 0},
        "--hours is 0; expected more than 0": {"hours": 0.0},
        "is not a search: it has no tune.yaml": {"out": tmp_path},
        "exists; name another folder with --out, or resume its search with --resume": {"resume": False, "space": SPACE},
        **{
            f"cannot have the setting {name}": {"out": tmp_path / "new", "resume": False, "space": SPACE, "config": one}
            for name, one in (("hours", make_config({"hours": 2})), ("refit", make_config({"refit": 2})))
        },
    }.items():
        with pytest.raises(UsageError) as caught:
            tune(**{"table": table, **quietly, **options})
        assert words in str(caught.value)
    assert not (tmp_path / "new").exists()
    # no trial would end within the hours
    log = io.StringIO()
    assert len(tune(table, **{**quietly, "log": log}, trials=9, hours=1e-6).trials) == 2
    assert "No further trial would end within --hours" in log.getvalue()
    (copy / "study.db").write_bytes(b"no database, but long enough to be looked at")
    with pytest.raises(DataError, match="cannot be opened as the study of a search"):
        tune(table, **quietly)
