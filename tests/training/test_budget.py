import io
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fastai.callback.core import CancelFitException, CancelTrainException
from small_learners import rehearsal

from fastmask.config import make_config
from fastmask.data.augment import build_augmentations
from fastmask.system.errors import UsageError
from fastmask.training import budget, crossval
from fastmask.training import rehearsal as rehearsals
from fastmask.training.budget import Deadline, make_budget, pick_folds_and_epochs, shorten_plan, shrink_photos
from fastmask.training.rehearsal import photo_seconds
from fastmask.training.setup import prepare

HOUR = 3600.0


def _shrunk(plan, say=lambda line: None, **settings):
    """The plan whose photos, at first of 128 x 96, fit into the time limit of the settings."""
    config = make_config({"arch": "test_resnet", "fit": "pad", "resize": [128, 96], **settings})
    return shrink_photos(replace(plan, config=config), say)


@pytest.fixture
def a_second_per_photo(monkeypatch):
    """A photo of 128 x 96 takes a second to train on, others in proportion to their pixels."""
    monkeypatch.setattr(budget, "photo_seconds", lambda plan, size, least: size[0] * size[1] / (128 * 96))


@pytest.fixture(scope="module")
def plan(table, small_settings):
    settings = {k: v for k, v in small_settings.items() if k != "folds"}
    return prepare(table, make_config(settings, {"stratify": "gender", "monitor": "gender_macro_f1", "hours": 1}))


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
def test_epochs_are_reduced_before_folds_down_to_three_epochs(seconds, fewest, expected):
    assert pick_folds_and_epochs(rehearsal(), seconds, 5, fewest) == expected


def test_a_refit_takes_its_time_from_the_epochs():
    # two epochs of 100 s on all photos in each of 5 folds
    given = rehearsal(refit=2, refit_steps=100)
    assert given.run_seconds == 5 * (20 * 90 + 200)
    assert pick_folds_and_epochs(given, 5 * (200 + 4 * 90), 5, 2) == (5, 4)
    assert pick_folds_and_epochs(given, 5 * (200 + 3 * 90) - 1, 5, 2) == (4, 4)
    assert pick_folds_and_epochs(given, 5 * 200 - 1, 5, 5) == (5, 0)


@pytest.mark.parametrize(
    ("seconds", "epochs"),
    # two epochs of 80 s and a validation of 10 s, or an odd one
    [(89, 0), (90, 1), (169, 1), (170, 2), (259, 2), (260, 3), (340, 4)],
)
def test_fewer_validations_leave_time_for_more_epochs(seconds, epochs):
    given = rehearsal(validate_every=2, folds=1)
    assert budget.count_epochs(given, seconds, 5, 5) == epochs
    assert replace(given, epochs=epochs).run_seconds <= seconds < replace(given, epochs=epochs + 1).run_seconds


def test_a_setting_of_few_epochs_reduces_no_folds(plan):
    # 5 folds of 1 epoch take 450 s
    one = replace(plan, config=plan.config.model_copy(update={"epochs": 1}))
    made = shorten_plan(one, rehearsal(), 451)
    assert (made.config.folds, made.config.epochs) == (5, 1)


def test_the_plan_has_the_epochs_that_fit_and_at_most_its_own(plan):
    assert shorten_plan(plan, rehearsal(), 10**6).config.epochs == plan.config.epochs == 2
    longer = replace(plan, config=plan.config.model_copy(update={"epochs": 20}))
    assert shorten_plan(longer, rehearsal(), 3240).config.epochs == 7


@pytest.mark.parametrize("settings", [{"swa": 0.75}, {"freeze": "body", "unfreeze": 10}])
def test_a_limit_that_leaves_too_few_epochs_for_another_setting_is_refused(plan, settings):
    """Such a run would train, and its config.yaml would be refused by `--resume` and `predict`."""
    changes = {"epochs": 20, "hours": 1, **settings}
    longer = replace(plan, config=make_config(plan.config.model_dump(), changes))
    with pytest.raises(UsageError, match=r"^--hours leaves time for 5 folds of 7 epochs, too few for another"):
        shorten_plan(longer, rehearsal(), 3240)


def test_fewer_folds_are_dealt_anew_with_persons_whole(plan):
    made = shorten_plan(plan, rehearsal(), 301)
    assert (made.config.folds, made.config.epochs, set(made.folds.tolist())) == (2, 2, {0, 1})
    persons = made.table.frame["person"]
    assert all(len(set(made.folds[persons == person])) == 1 for person in set(persons))


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        # 56 of 84 photos in 3 folds, 3 epochs of 1 s per photo of 128 x 96, validated in a quarter of that: 567 s, in
        # 0.94 of 660 s less 25 s
        (11, (128, 96)),
        # 313 s: 6792 pixels, 95.2 x 71.4, in multiples of 8
        (6, (96, 72)),
        # 0.32 of the pixels, where one epoch takes 0.32 of 189 s, less than 0.85 of 87.8 s: 72.4 x 54.3
        (2, (72, 56)),
        # 0.85 of 31.4 s: an epoch of 1735 pixels, 48.1 x 36.1
        (1, (48, 40)),
        # a sixteenth
        (0.1, (32, 24)),
    ],
)
@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 3 folds")
@pytest.mark.usefixtures("a_second_per_photo")
def test_photos_of_a_chosen_size_shrink_to_fit_three_epochs_into_the_limit(plan_of, minutes, expected):
    said = []
    made = _shrunk(plan_of(folds=3), said.append, folds=3, epochs=9, minutes=minutes)
    assert made.config.resize == expected
    if expected == (128, 96):
        assert not said
    else:
        high, wide = expected
        assert said == [f"--minutes {minutes:g}: photos of {high} x {wide} pixels instead of 128 x 96"]
        assert build_augmentations(made.pipelines)[1](np.zeros((512, 384, 3), np.uint8), None).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        # 3 epochs of 5, 4, 3 and 2 folds, of 84 photos, validated in a quarter of the time: 1071, 819, 567, 315 s, of
        # which 257 s for 3 folds are 0.453: 5570 pixels, 86.2 x 64.6
        (5, (88, 64)),
        # 116 s are 0.368 of 315 s: 4525 pixels, 77.7 x 58.2
        (2.5, (80, 56)),
        # 50.2 s are 0.159, less than 0.32, and enough for an epoch of 2 folds, 105 s, with 0.32 of the pixels: 3932,
        # 72.4 x 54.3
        (1.25, (72, 56)),
    ],
)
@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 5 folds")
@pytest.mark.usefixtures("a_second_per_photo")
def test_folds_are_left_out_before_photos_shrink_below_a_third_of_their_pixels(plan_of, minutes, expected):
    made = _shrunk(plan_of(folds=5), epochs=9, minutes=minutes)
    assert made.config.resize == expected


@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 3 folds")
def test_the_photos_of_a_single_fold_count(plan_of):
    given = plan_of(folds=3)
    one = replace(given, folds=np.where(given.folds == 0, 0, -1), config=given.config.model_copy(update={"folds": 1}))
    # the photos of the other folds, and two validations in a quarter of the time
    assert budget.count_passes(one, 2, 1) == pytest.approx(2 * (given.folds != 0).sum() + 2 * 84 / 4)


@pytest.mark.parametrize(("minutes", "expected"), [(5, (96, 72)), (3, (72, 56))])
@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 3 folds")
def test_photos_shrink_less_if_their_pixels_take_less_time_when_they_are_small(plan_of, monkeypatch, minutes, expected):
    """5 min are 257 s of 567 s: 88 x 64, of which a pixel takes 0.823 of the time, so 0.551 of the pixels fit."""
    monkeypatch.setattr(budget, "photo_seconds", lambda plan, size, least: (size[0] * size[1] / (128 * 96)) ** 1.25)
    made = _shrunk(plan_of(folds=3), folds=3, epochs=9, minutes=minutes)
    assert made.config.resize == expected


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        # of 84 photos each of 5 folds trains on 4/5, predicts 1/5 with two networks after each epoch, and sees all once
        # before: 2 epochs take 672 + 105 s, of which 313 s are 0.403: 4956 pixels, 81.3 x 61.0, in multiples of 8
        (6, (80, 64)),
        # 144 s are 0.186 of that, but 0.361 of the 399 s of 1 epoch: 4441 pixels, 76.9 x 57.7
        (3, (80, 56)),
        # 99.1 s are 0.248 of 399 s, 0.315 of the 315 s of 4 folds, 0.429 of the 231 s of 3: 5270 pixels, 83.8 x 62.9
        (2.2, (80, 64)),
        # 65.2 s are 0.282 of 231 s, and 0.85 of them 0.377 of the 147 s of 2 folds: 4635 pixels, 78.6 x 59.0
        (1.6, (80, 56)),
    ],
)
@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 5 folds")
@pytest.mark.usefixtures("a_second_per_photo")
def test_photos_with_a_linear_probe_shrink_to_two_epochs_or_one(plan_of, minutes, expected):
    made = _shrunk(plan_of(folds=5), epochs=9, minutes=minutes, linear_probe=True, pretrained=True)
    assert made.config.resize == expected


def test_with_a_linear_probe_an_epoch_is_enough(plan):
    longer = replace(plan, config=plan.config.model_copy(update={"epochs": 20}))
    probed = replace(plan, config=longer.config.model_copy(update={"linear_probe": True, "pretrained": True}))
    # an epoch of 5 folds takes 450 s
    made = [shorten_plan(each, rehearsal(), 899).config for each in (longer, probed)]
    assert [(config.folds, config.epochs) for config in made] == [(3, 3), (5, 1)]


def test_photos_that_do_not_fit_into_memory_shrink(plan_of, monkeypatch):
    def fail(*args):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(rehearsals, "_step_seconds", fail)
    made = _shrunk(plan_of(), folds=2, hours=100, pretrained=False)
    assert made.config.resize == (72, 56)


def test_a_photo_takes_the_time_of_its_pixels(plan_of):
    plan = plan_of()
    small, large = (photo_seconds(plan, (side, side)) for side in (32, 256))
    assert 0 < small < large / 4


def test_folds_that_were_chosen_are_kept(plan_of):
    given = plan_of(folds=4, stratify="gender", minutes=9)
    assert shorten_plan(given, rehearsal(of_folds=4), 600).config.folds == 4
    with pytest.raises(UsageError, match="--minutes is too short: one epoch of all folds takes 6 min"):
        shorten_plan(given, rehearsal(of_folds=4), 100)


@pytest.mark.parametrize("name", ["weights", "pseudo", "teacher"])
def test_folds_of_another_run_are_kept(plan, tmp_path, name):
    """Fold 0 of fewer folds would validate what fold 0 of the other run was trained on."""
    given = replace(plan, config=plan.config.model_copy(update={name: str(tmp_path)}))
    made = shorten_plan(given, rehearsal(), 500)
    assert (made.config.folds, made.config.epochs) == (5, 1)


def test_extra_photos_are_kept_out_of_the_fewer_folds_that_validate_them(table, small_settings, tmp_path):
    table.frame[["path", "person", "mask"]].iloc[::7].to_csv(tmp_path / "extra.csv", index=False)
    settings = {k: v for k, v in small_settings.items() if k != "folds"}
    extra = {"extra": str(tmp_path / "extra.csv"), "extra_images": str(table.root)}
    given = prepare(table, make_config(settings, extra, {"stratify": "gender", "monitor": "gender_macro_f1"}))
    made = shorten_plan(given, rehearsal(), 301)
    assert made.config.folds == 2
    for fold in (0, 1):
        validated = set(table.persons[made.folds == fold])
        of_photo = {str(table.photo(row)): table.persons[row] for row in range(len(table))}
        assert not validated & {of_photo[photo] for photo in made.training_set(fold).photos}
        assert len(made.training_set(fold)) == (made.folds != fold).sum() + 12 - len(validated)
    # as a resumed run finds them, with its folds
    two = prepare(table, make_config(made.config.model_dump(exclude_unset=True), {"folds": 2}))
    assert made.environment["start"] == two.environment["start"]


def test_the_budget_knows_the_validation_of_fewer_folds(plan):
    made = shorten_plan(plan, rehearsal(), 301)
    end = time.monotonic() + 1000
    assert make_budget(made, rehearsal(), end, 2).validation == 25
    # each fold left in a resumed run needs an epoch: 75 s per fold
    with pytest.raises(UsageError, match="--hours is too short"):
        make_budget(made, rehearsal(), time.monotonic() + 149, 2)
    assert make_budget(made, rehearsal(), time.monotonic() + 80, 1)


def test_the_folds_and_the_refits_share_the_time(plan, monkeypatch):
    monkeypatch.setattr(budget.time, "monotonic", lambda: 0.0)
    # two epochs of a fold take 180 s, its refit 90 s: half as long
    made = make_budget(plan, rehearsal(refit=1, refit_steps=90), 1500, folds=2, refits=4)
    assert made.deadline(2, 4).until == 1500 / (2 + 4 / 2)
    assert (made.deadline(2).until, made.refit_deadline(3).until) == (750, 500)
    # 90 s of an epoch of each fold, and the refits
    with pytest.raises(UsageError, match="one epoch of all folds"):
        make_budget(plan, rehearsal(refit=1, refit_steps=90), 539, folds=2, refits=4)


def test_hours_are_of_a_whole_run(train, tmp_path):
    with pytest.raises(UsageError, match="for folds that are trained apart give all the same --epochs"):
        train(tmp_path / "run", hours=1, fold=[0])
    assert not (tmp_path / "run").exists()


class Clock:
    """Time that a test advances, and the fit of a callback."""

    def __init__(self, callback, epochs):
        self.now, self.callback, self.skips = 0.0, callback, False
        self.training, self.epoch, self.n_epoch = True, 0, epochs
        self.dls, self.recorder = None, SimpleNamespace(cancel_valid=False)
        callback.learn, callback.trained = self, False

    def epoch_of(self, steps, step_seconds, validation):
        self.callback.before_epoch()
        for _ in range(steps):
            self.now += step_seconds
            self.callback.after_batch()
        self.recorder.cancel_valid = self.skips and not self.callback.is_last()
        self.now += validation * (not self.recorder.cancel_valid)
        self.callback.after_trained_epoch()
        self.epoch += 1


def clocked(monkeypatch, until, validation, epochs=10):
    clock = Clock(Deadline(until, validation), epochs)
    monkeypatch.setattr(budget.time, "monotonic", lambda: clock.now)
    return clock


def test_an_epoch_that_would_be_late_is_not_begun(monkeypatch):
    clock = clocked(monkeypatch, until=39, validation=2)
    for _ in range(2):
        clock.epoch_of(steps=8, step_seconds=1, validation=2)
    with pytest.raises(CancelFitException):
        clock.epoch_of(steps=8, step_seconds=1, validation=2)
    assert (clock.now, clock.callback.cut) == (30, True)


def test_the_last_epoch_in_time_is_validated(monkeypatch):
    # of those that would not be: the fourth would end at 32, and with a validation at 41
    clock = clocked(monkeypatch, until=40, validation=9)
    clock.skips = True
    for _ in range(2):
        clock.epoch_of(steps=8, step_seconds=1, validation=9)
    with pytest.raises(CancelFitException):
        clock.epoch_of(steps=8, step_seconds=1, validation=9)
    assert (clock.now, clock.epoch, clock.callback.cut) == (33, 2, True)


def test_training_stops_where_only_the_validation_has_time_left(monkeypatch):
    clock = clocked(monkeypatch, until=39, validation=5)
    with pytest.raises(CancelTrainException):
        clock.epoch_of(steps=100, step_seconds=1, validation=5)
    assert clock.now == 35


def test_a_run_in_ample_time_is_the_run_without_hours(train, finished_run, tmp_path):
    log = io.StringIO()
    run = train(tmp_path / "run", log=log, hours=1)
    assert (run.path / "oof.csv").read_bytes() == (finished_run.path / "oof.csv").read_bytes()
    assert "--hours 1: 2 folds of 2 epochs, as configured" in log.getvalue()


@pytest.mark.slow
def test_where_the_estimate_was_wrong_all_folds_are_scored_in_time(train, tmp_path, monkeypatch):
    # the estimate is 2 folds of 500 epochs of 1 ms, of which each takes much longer
    quick = rehearsal(train_step=0.001, train_steps=1, valid_step=0, valid_steps=1, folds=2, of_folds=2)
    monkeypatch.setattr(crossval, "rehearse", lambda *_, **given: quick)
    start, log = time.monotonic(), io.StringIO()
    train(tmp_path / "one", epochs=1)
    # what a run takes on this machine, whatever its epochs
    least, start = time.monotonic() - start, time.monotonic()
    given = 8 + least
    run = train(tmp_path / "run", log=log, hours=given / HOUR, epochs=500, patience=0)
    assert time.monotonic() - start < given + max(10, least)
    assert run.config.epochs == 500
    assert len(run.oof) == len(run.folds)
    done = [json.loads((run.fold_path(f) / "done.json").read_text()) for f in (0, 1)]
    assert all(0 < d["epochs"] < 500 for d in done)
    assert all(f"fold {f + 1}/2 ends after {done[f]['epochs']} of 500 epochs" in log.getvalue() for f in (0, 1))


def test_an_epoch_that_takes_too_long_is_cut_validated_and_counts(train, tmp_path, monkeypatch):
    real, late = time.monotonic, [0]

    class Slow(Deadline):
        def before_batch(self):
            if self.training:
                late[0] += 720

    # compared with such steps everything else takes no time
    monkeypatch.setattr(time, "monotonic", lambda: real() + late[0])
    monkeypatch.setattr(budget, "Deadline", Slow)
    monkeypatch.setattr(crossval, "rehearse", lambda *_, **given: rehearsal(36, 1, 0, 1, 2, 2))
    run = train(tmp_path / "run", hours=1, bs=4)
    for fold in (0, 1):
        history = run.history(fold)
        assert len(history) == 1
        assert history[["train_loss", "valid_loss"]].notna().all(axis=None)
    assert len(run.oof) == len(run.folds)


def test_resuming_keeps_the_epochs_that_were_chosen(train, tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "rehearse", lambda *_, **given: rehearsal(folds=2, of_folds=2))
    train_fold = crossval.train_fold

    def interrupted(run, plan, fold, *options):
        if fold == 1:
            raise KeyboardInterrupt
        train_fold(run, plan, fold, *options)

    monkeypatch.setattr(crossval, "train_fold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", epochs=7, hours=450 / HOUR)
    monkeypatch.setattr(crossval, "train_fold", train_fold)
    run = train(tmp_path / "run", epochs=7, hours=900 / HOUR, resume=True)
    assert run.config.epochs == 2
    assert run.trained_folds == [0, 1]
    with pytest.raises(UsageError, match=r"epochs 2, now it is 7.*--hours had chosen that"):
        train(tmp_path / "run", epochs=7, resume=True)


def test_a_refit_that_takes_too_long_is_cut(train, tmp_path, monkeypatch):
    real, late, log = time.monotonic, [0], io.StringIO()

    class Slow(Deadline):
        def after_batch(self):
            # ten minutes in each step of a refit, which has no other callback that saves
            late[0] += 0 if hasattr(self.learn, "state_saver") else 600
            super().after_batch()

    monkeypatch.setattr(time, "monotonic", lambda: real() + late[0])
    monkeypatch.setattr(budget, "Deadline", Slow)
    monkeypatch.setattr(crossval, "rehearse", lambda *_, **given: rehearsal(1, 1, 0, 1, 2, 2, refit=9, refit_steps=1))
    run = train(tmp_path / "run", minutes=60, epochs=1, refit=9, log=log)
    # 57 minutes: steps of 10 in 28.5 minutes each, the third of which ends too late
    assert late[0] == 2 * 3 * 600
    assert run.refitted == [0, 1]
    # of five steps each
    assert log.getvalue().count("ends after 1 of 9 epochs on all photos, to be in time") == 2


def test_the_cost_of_a_limit_is_logged():
    wanted = make_config({"hours": 2})
    made = wanted.model_copy(update={"folds": 3, "epochs": 4})
    assert budget.describe_cost(wanted, made) == "--hours 2: 3 folds of 4 epochs instead of 5 folds of 20 epochs"
    assert budget.describe_cost(make_config({"minutes": 90}), made).startswith("--minutes 90: 3 folds of 4 epochs")
