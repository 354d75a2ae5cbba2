import io
import json
import time
from dataclasses import replace

import pytest

from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.errors import UsageError
from fastmask.training import budget, crossval
from fastmask.training.budget import Deadline, affordable, fit_into
from fastmask.training.crossval import cross_validate
from fastmask.training.plan import prepare
from fastmask.training.rehearsal import Rehearsal

HOUR = 3600.0


def rehearsal(train_step=1.0, train_steps=80, valid_step=0.5, valid_steps=20, folds=5):
    """An epoch of 80 s of training and 10 s of validation."""
    return Rehearsal(train_step, valid_step, train_steps, valid_steps, 20, folds, 0, 0.5, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def plan(contest, small_settings):
    settings = {k: v for k, v in small_settings.items() if k != "folds"}
    return prepare(read_contest(contest), make_config(settings, {"stratify": "gender", "monitor": "gender_macro_f1"}))


@pytest.mark.parametrize(
    ("seconds", "fewest", "expected"),
    [
        # 5 folds x 90 s an epoch
        (4500, 2, (5, 10)),
        (1350, 2, (5, 3)),
        # 4 folds: 80 * (3/4) / (4/5) = 75 s and 12.5 s, so 350 s an epoch of all
        (1349, 2, (4, 3)),
        # 2 folds: 50 s and 25 s, so 150 s an epoch of both
        (500, 2, (2, 3)),
        (300, 2, (2, 2)),
        (149, 2, (2, 0)),
        (1349, 5, (5, 2)),
    ],
)
def test_epochs_are_given_up_before_folds_down_to_three_epochs(seconds, fewest, expected):
    assert affordable(rehearsal(), seconds, 5, fewest) == expected


def test_of_folds_for_several_machines_only_these_count():
    assert affordable(rehearsal(folds=2), 1800, 5, 5) == (5, 10)


def test_the_plan_has_the_epochs_that_fit_and_at_most_its_own(plan, monkeypatch):
    monkeypatch.setattr(budget, "rehearse", lambda *_: rehearsal())
    said = []
    made, kept = fit_into(plan, 100, time.monotonic(), say=said.append)
    assert (made.config.epochs, made.config.folds) == (2, 5)
    assert kept.validation == 10
    assert 0 < kept.end - time.monotonic() < 100 * HOUR
    assert "5 folds of 2 epochs, 90 s each" in said[0]
    longer = replace(plan, config=plan.config.model_copy(update={"epochs": 20}))
    assert fit_into(longer, 1, time.monotonic())[0].config.epochs == int(HOUR * 0.9 / 450)


def test_folds_that_are_given_up_are_dealt_anew_with_persons_whole(plan, monkeypatch):
    monkeypatch.setattr(budget, "rehearse", lambda *_: rehearsal())
    made, _ = fit_into(plan, 500 / HOUR, time.monotonic())
    assert (made.config.folds, set(made.folds.tolist())) == (2, {0, 1})
    persons = made.table.frame["person"]
    assert all(len(set(made.folds[persons == person])) == 1 for person in set(persons))


def test_folds_that_somebody_chose_are_kept(contest, small_settings, monkeypatch):
    monkeypatch.setattr(budget, "rehearse", lambda *_: rehearsal(folds=2))
    given = prepare(read_contest(contest), make_config(small_settings, {"folds": 4}))
    assert fit_into(given, 600 / HOUR, time.monotonic())[0].config.folds == 4
    with pytest.raises(UsageError, match="--hours is too short: 4 folds of one epoch take"):
        fit_into(given, 100 / HOUR, time.monotonic())


def fit(contest, settings, out, **options):
    log = io.StringIO()
    return cross_validate(read_contest(contest), out=out, log=log, **{**settings, **options}), log.getvalue()


def test_a_run_in_ample_time_is_the_run_without_hours(contest, small_settings, finished_run, tmp_path):
    run, log = fit(contest, small_settings, tmp_path / "run", hours=1)
    assert (run.path / "oof.csv").read_bytes() == (finished_run.path / "oof.csv").read_bytes()
    assert "--hours 1: 2 folds of 2 epochs" in log


def test_where_the_foretelling_was_wrong_all_folds_are_scored_in_time(contest, small_settings, tmp_path, monkeypatch):
    # it foretells 2 folds x 500 epochs of 8 ms, of which each takes much longer
    quick = rehearsal(train_step=0.008, train_steps=1, valid_step=0, valid_steps=1, folds=2)
    monkeypatch.setattr(budget, "rehearse", lambda *_: quick)
    start = time.monotonic()
    run, log = fit(contest, small_settings, tmp_path / "run", hours=10 / HOUR, epochs=500, patience=0)
    assert time.monotonic() - start < 20
    assert run.config.epochs == 500
    assert len(run.oof) == len(run.folds)
    done = [json.loads((run.fold_path(f) / "done.json").read_text()) for f in (0, 1)]
    assert all(0 < d["epochs"] < 500 for d in done)
    assert all(f"fold {f + 1} ends after {done[f]['epochs']} of 500 epochs" in log for f in (0, 1))


def test_an_epoch_that_takes_too_long_is_cut_validated_and_counts(contest, small_settings, tmp_path, monkeypatch):
    class Slow(Deadline):
        def before_batch(self):
            if self.training:
                time.sleep(0.2)

    monkeypatch.setattr(budget, "Deadline", Slow)
    monkeypatch.setattr(budget, "rehearse", lambda *_: rehearsal(0.01, 1, 0, 1, 2))
    run, _ = fit(contest, small_settings, tmp_path / "run", hours=1 / HOUR, bs=4)
    for fold in (0, 1):
        history = run.history(fold)
        assert len(history) == 1
        assert history[["train_loss", "valid_loss"]].notna().all(axis=None)
    assert len(run.oof) == len(run.folds)


def test_resuming_keeps_the_epochs_that_were_chosen(contest, small_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "rehearse", lambda *_: rehearsal(folds=2))
    settings = {**small_settings, "epochs": 7}
    train = crossval.train_fold

    def interrupted(run, plan, fold, *options):
        if fold == 1:
            raise KeyboardInterrupt
        train(run, plan, fold, *options)

    monkeypatch.setattr(crossval, "train_fold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(contest, settings, tmp_path / "run", hours=450 / HOUR)
    monkeypatch.setattr(crossval, "train_fold", train)
    run, _ = fit(contest, settings, tmp_path / "run", hours=900 / HOUR, resume=True)
    assert run.config.epochs == 2
    assert run.trained_folds == [0, 1]
