"""Budget: a cross-validation that ends within a time limit (`fit --hours`, `fit --minutes`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastai.callback.core import CancelFitException, CancelTrainException

from fastmask.config import Config, make_config, spell_option
from fastmask.system.errors import UsageError
from fastmask.system.text import count, duration
from fastmask.training.additional import digest_extras, exclude_validated
from fastmask.training.callbacks import EarlyStopping, TrainedEpochs
from fastmask.training.effective_config import check_monitored_labels, resolve_folds
from fastmask.training.photo_size import size_of_pixels
from fastmask.training.plan import Plan
from fastmask.training.rehearsal import Rehearsal, photo_seconds

# with fewer epochs a fold learns too little, so the number of folds is reduced first; a linear probe has learned before
FEWEST_EPOCHS, FEWEST_PROBED, FEWEST_FOLDS = 3, 1, 2
# the fraction of the time for what a rehearsal does not measure: building networks, saving, scoring, other work
RESERVE = 0.06
# the smallest share of their pixels that photos shrink to while folds may be left out, such as 128 x 96 of 224 x 168,
# and at all
_LEAST_SHARE, _SMALLEST_SHARE = 0.32, 1 / 16
# photos shrink until all folds have so many epochs, or fewer folds have `fewest_epochs`
_WANTED_EPOCHS = 2
# the seconds of a run before its first epoch, without the features for a probe; and the fraction of the time that a
# single epoch of the fewest folds may take, since nothing is left to reduce if it turns out to take longer
_SETUP_SECONDS, _SAFE = 25.0, 0.85
# the share of a time limit that each measurement takes, and at most so many seconds
_MEASURED, _MOST_SECONDS = 0.01, 10.0
# the cost of predicting a photo relative to that of training on it
_FORWARD = 1 / 4


@dataclass(frozen=True)
class Budget:
    """The time by which all folds are to be trained and refitted (a `time.monotonic()`).

    `validation` are the seconds of a validation, `refit` the time of a fold's refit relative to that of its training.
    """

    end: float
    validation: float
    refit: float = 0.0

    def deadline(self, folds_left: int, refits_left: int = 0) -> Deadline:
        """The callback of the next fold, which gets an equal part of the time that is not for the refits."""
        now = time.monotonic()
        return Deadline(now + (self.end - now) / (folds_left + refits_left * self.refit), self.validation)

    def refit_deadline(self, refits_left: int) -> Deadline:
        """The callback of the next refit, which gets an equal part of the time left."""
        now = time.monotonic()
        return Deadline(now + (self.end - now) / refits_left, 0.0)


class Deadline(TrainedEpochs):
    """Ends a fold in time: after an epoch if the next one would be late, or within one if the estimate was wrong.

    It ends after an epoch that is validated. An epoch that is cut short is validated and counts; `cut` is whether the
    fold has fewer epochs than planned.
    """

    # after the callbacks that save or judge an epoch
    order = EarlyStopping.order + 2

    def __init__(self, until: float, validation: float) -> None:
        self.until, self.validation, self.cut = until, validation, False

    def before_epoch(self) -> None:
        self._start, self._late = time.monotonic(), False

    def after_batch(self) -> None:
        if self.training and time.monotonic() + self.validation > self.until:
            self._late = True
            raise CancelTrainException

    def after_cancel_train(self) -> None:
        # otherwise the recorder would omit the loss of the trained part
        self.learn.recorder.cancel_train = False

    def is_last(self) -> bool:
        """Whether an epoch that has been trained, and is not validated yet, is the last one in time."""
        now = time.monotonic()
        return self._late or 2 * now - self._start + self.validation > self.until

    def after_trained_epoch(self) -> None:
        now = time.monotonic()
        more = self.learn.epoch + 1 < self.learn.n_epoch
        if self._late or (more and self.validated and 2 * now - self._start > self.until):
            self.cut = self._late or more
            raise CancelFitException


def check_all_folds(config: Config, fold: Sequence[int] | None) -> None:
    """Raise UsageError for a time limit of single folds.

    Other machines would choose other epochs, and the folds could not be merged.
    """
    if config.time_limit is not None and fold is not None:
        raise UsageError(
            f"--{config.time_limit} chooses the epochs of a whole run; for folds that are trained apart give all the "
            "same --epochs."
        )


def fewest_epochs(config: Config) -> int:
    """The epochs that a time limit leaves a fold, if it can reduce something else."""
    return min(FEWEST_PROBED if config.has_probe else FEWEST_EPOCHS, config.epochs)


def fewest_folds(plan: Plan) -> int:
    """The folds that a time limit leaves: all that are given, or that each learn from the same fold of another run."""
    config = plan.config
    given = bool({"folds", "folds_file"} & config.model_fields_set)
    from_run = config.weights is not None and Path(config.weights).is_dir()
    of_another = from_run or config.pseudo is not None or config.teacher is not None
    return config.folds if given or of_another else min(FEWEST_FOLDS, config.folds)


def measured_seconds(limit: float) -> float:
    """The seconds of a measurement: the more of the time limit it takes, the less it varies with other work."""
    return min(_MEASURED * limit, _MOST_SECONDS)


def shrink_photos(plan: Plan, say: Callable[[str], None]) -> Plan:
    """The plan with smaller photos, if the epochs of its folds would exceed its time limit.

    Folds are left out before photos have less than a third of their pixels. If not even one epoch of the fewest folds
    fits then, photos shrink further; they have a third of their pixels if the memory does not suffice. The time is
    estimated by a few steps of the network.
    """
    config, size = plan.config, plan.config.resize
    if config.limit_seconds is None or size is None:
        return plan
    left = max(config.limit_seconds * (1 - RESERVE) - _SETUP_SECONDS, 0.0)
    fewest, epochs = fewest_folds(plan), fewest_epochs(config)

    def fit(epochs: int, folds: int) -> float:
        """The seconds that a photo may take, with so many epochs and folds."""
        safe = _SAFE if (epochs, folds) == (1, fewest) else 1.0
        return safe * left / count_passes(plan, epochs, folds)

    each = [fit(epochs, folds) for folds in range(config.folds, fewest - 1, -1)]
    each.insert(0, fit(max(epochs, min(_WANTED_EPOCHS, config.epochs)), config.folds))

    def shrink(seconds: float) -> tuple[int, int]:
        """The size that fits, if a photo of `size` takes so many seconds."""
        least = max(min(fit(1, fewest) / seconds, _LEAST_SHARE), _SMALLEST_SHARE)
        share = next((fits / seconds for fits in each if fits / seconds >= _LEAST_SHARE), least)
        return size if share >= 1 else size_of_pixels(config.arch, math.prod(size) * share, size[0] / size[1])

    measured = measured_seconds(config.limit_seconds)
    seconds = photo_seconds(plan, size, measured)
    if math.isinf(seconds):
        made = size_of_pixels(config.arch, math.prod(size) * _LEAST_SHARE, size[0] / size[1])
    else:
        made = shrink(seconds)
        if made != size:
            # a pixel takes less time in a smaller photo, so more of them fit
            made = shrink(photo_seconds(plan, made, measured) * math.prod(size) / math.prod(made))
    if made == size:
        return plan
    say(f"{_spell_limit(config)}: photos of {made[0]} x {made[1]} pixels instead of {size[0]} x {size[1]}")
    config = config.model_copy(update={"resize": made})
    return plan.with_config(config)


def count_passes(plan: Plan, epochs: int, folds: int) -> float:
    """The photos that `folds` train on in so many epochs, and in the refits, and what they predict in proportion.

    With fewer folds than the plan's, each trains on fewer photos.
    """
    config, photos = plan.config, plan.count_trained()
    # a single fold, such as of the data's own split, is never left out
    share = (folds - 1) / (config.folds - 1) if folds < config.folds else 1
    trained = sum(photos[: config.folds]) * epochs * share
    refits = sum(photos[config.folds :]) * config.refit * folds / config.folds
    # a probe has a network of its own, which also sees each photo once before training
    views, networks = 1 + len(config.views) + config.flip, 1 + config.has_probe
    predicted = math.ceil(epochs / config.validate_every) * views * networks + config.has_probe
    return trained + refits + _FORWARD * predicted * len(plan.table)


def shorten_plan(plan: Plan, rehearsal: Rehearsal, seconds: float) -> Plan:
    """The plan with as many of its epochs as fit into `seconds`, estimated by `rehearsal`.

    If fewer than `fewest_epochs` would fit, the number of folds is reduced first, down to `fewest_folds`. Raises
    UsageError if not even one epoch fits.
    """
    config, fewest = plan.config, fewest_folds(plan)
    folds, epochs = pick_folds_and_epochs(rehearsal, seconds, config.folds, fewest, fewest_epochs(config))
    if epochs < 1:
        raise too_short_error(plan, folds * (epoch_seconds(rehearsal, config.folds, folds) + rehearsal.refit_seconds))
    return replan(plan, min(epochs, config.epochs), folds)


def describe_cost(wanted: Config, made: Config) -> str:
    """A line about the epochs and folds that the time limit allows."""
    now, before = (f"{count(config.folds, 'fold')} of {count(config.epochs, 'epoch')}" for config in (made, wanted))
    return f"{_spell_limit(wanted)}: {now}" + (f" instead of {before}" if now != before else ", as configured")


def _spell_limit(config: Config) -> str:
    name = str(config.time_limit)
    return " ".join(spell_option(name, getattr(config, name)))


def make_budget(plan: Plan, rehearsal: Rehearsal, end: float, folds: int, refits: int = 0) -> Budget:
    """The budget of the `folds` left to train, and of the `refits`, until `end`.

    `rehearsal` may be of the plan before it was shortened. Raises UsageError if one epoch of each fold and the refits
    do not fit.
    """
    epoch = epoch_seconds(rehearsal, rehearsal.of_folds, plan.config.folds)
    seconds = folds * epoch + refits * rehearsal.refit_seconds
    if time.monotonic() + seconds > end:
        raise too_short_error(plan, seconds)
    validation = rehearsal.valid_step * rehearsal.valid_steps * rehearsal.of_folds / plan.config.folds
    fold = plan.config.epochs * (epoch - validation) + plan.config.validations * validation
    return Budget(end, validation, rehearsal.refit_seconds / fold)


def too_short_error(plan: Plan, seconds: float) -> UsageError:
    """The error of a time limit that is too short for one epoch of each fold and the refits."""
    refits = " with --refit" if plan.config.refit else ""
    return UsageError(
        f"--{plan.config.time_limit} is too short: one epoch of all folds{refits} takes {duration(seconds)}, and "
        f"{100 * RESERVE:.0f} % of the time is kept for what is not training; give it more, or take a smaller --arch "
        "or fewer pixels (--crop, --resize; see fastmask guide train)."
    )


def pick_folds_and_epochs(
    rehearsal: Rehearsal, seconds: float, folds: int, fewest: int, epochs: int = FEWEST_EPOCHS
) -> tuple[int, int]:
    """(folds, epochs of each) that fit into `seconds`, with their refits.

    These are the most folds, at least `fewest`, that have `epochs` each.
    """
    tried = [
        (count, count_epochs(rehearsal, seconds / count - rehearsal.refit_seconds, folds, count))
        for count in range(folds, fewest - 1, -1)
    ]
    return next((both for both in tried if both[1] >= epochs), tried[-1])


def count_epochs(rehearsal: Rehearsal, seconds: float, folds: int, count: int) -> int:
    """The epochs of a fold that fit into `seconds`, if there are `count` folds instead of `folds`."""
    every, epoch = rehearsal.validate_every, epoch_seconds(rehearsal, folds, count)
    if every == 1:
        return int(seconds / epoch)
    validation = rehearsal.valid_step * rehearsal.valid_steps * folds / count
    training = epoch - validation
    whole, left = divmod(seconds, training * every + validation)
    # the last one is validated, too
    more = max(0, int((left - validation) / training))
    return int(whole) * every + min(more, every - 1)


def epoch_seconds(rehearsal: Rehearsal, folds: int, count: int) -> float:
    """The seconds of an epoch if there are `count` folds instead of `folds`."""
    if count == folds:
        return rehearsal.epoch_seconds
    training = rehearsal.train_step * rehearsal.train_steps * (1 - 1 / count) / (1 - 1 / folds)
    return training + rehearsal.valid_step * rehearsal.valid_steps * folds / count


def _update_extras_digest(plan: Plan) -> Plan:
    """The plan with the digest of its extra photos as of its folds, by which a resumed run compares them."""
    if not plan.extras:
        return plan
    start = {**plan.environment["start"], "extra": digest_extras(plan)}
    return replace(plan, environment={**plan.environment, "start": start})


def replan(plan: Plan, epochs: int, folds: int) -> Plan:
    """The plan with other numbers of epochs and folds; new folds are assigned if their number changes.

    Raises UsageError where the other settings do not go together with these, such as swa with a single epoch.
    """
    config = plan.config.model_copy(update={"epochs": epochs})
    if folds != config.folds:
        config, assigned = resolve_folds(plan.table, config.model_copy(update={"folds": folds}))
        check_monitored_labels(config, plan.table, assigned)
        plan = _update_extras_digest(exclude_validated(replace(plan, folds=assigned)))
    try:
        # as when config.yaml is read
        make_config(config.model_dump())
    except UsageError as error:
        left = f"--{config.time_limit} leaves time for {count(folds, 'fold')} of {count(epochs, 'epoch')}"
        raise UsageError(f"{left}, too few for another setting: {error}") from error
    return replace(plan, config=config)
