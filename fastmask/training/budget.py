"""Budget: a cross-validation that ends in the hours it was given (`fit --hours`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fastai.callback.core import CancelFitException, CancelTrainException

from fastmask.errors import UsageError
from fastmask.training.callbacks import EarlyStopping, TrainedEpochs
from fastmask.training.plan import Plan, check_known, deal
from fastmask.training.rehearsal import Rehearsal, duration, rehearse

# a fold of fewer epochs learns so little that fewer folds are given up first
FEWEST_EPOCHS, FEWEST_FOLDS = 3, 2
# the share of the time that is kept for what no rehearsal tells: building networks, saving, scoring, other work
_RESERVE = 0.1


@dataclass(frozen=True)
class Budget:
    """When all folds are to be trained (a `time.monotonic()`), and what an epoch's validation takes in seconds."""

    end: float
    validation: float

    def deadline(self, folds_left: int) -> Deadline:
        """The callback of the next fold, which gets its share of what is left."""
        now = time.monotonic()
        return Deadline(now + (self.end - now) / folds_left, self.validation)


class Deadline(TrainedEpochs):
    """Ends a fold in time: after an epoch if the next would be late, within one if the foretelling was wrong.

    An epoch that is cut is validated and counts; `cut` says that the fold has fewer epochs than were planned.
    """

    # after everything that keeps or judges an epoch
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
        # the recorder would leave out the loss of the part that was trained
        self.learn.recorder.cancel_train = False

    def after_trained_epoch(self) -> None:
        now = time.monotonic()
        more = self.learn.epoch + 1 < self.learn.n_epoch
        if self._late or (more and 2 * now - self._start > self.until):
            self.cut = self._late or more
            raise CancelFitException


def fit_into(
    plan: Plan,
    hours: float,
    start: float,
    chosen: Sequence[int] | None = None,
    say: Callable[[str], None] = print,
    fixed: bool = False,
) -> tuple[Plan, Budget]:
    """The plan with as many epochs, at most its own, as end `hours` after `start` (a `time.monotonic()`).

    A few steps are timed. Where under three epochs would fit, folds are given up before epochs, down to two, unless
    somebody has chosen them: by `chosen`, by the setting folds or by a file. `say` takes what was given up. With
    `fixed` nothing is, as the run has begun. Raises UsageError where not even one epoch fits.
    """
    rehearsal = rehearse(plan, chosen)
    seconds = hours * 3600
    if not fixed:
        left = start + seconds - time.monotonic()
        plan = shorten(plan, rehearsal, left * (1 - _RESERVE), chosen is not None)
        told = f"{plan.config.folds} folds of {plan.config.epochs} epochs, {duration(rehearsal.epoch_seconds)} each"
        say(f"--hours {hours:g}: {told}")
    return plan, Budget(start + seconds * (1 - _RESERVE / 2), rehearsal.valid_step * rehearsal.valid_steps)


def shorten(plan: Plan, rehearsal: Rehearsal, seconds: float, folds_chosen: bool = False) -> Plan:
    """The plan with as many epochs and folds as fit into `seconds`; see `fit_into`."""
    config = plan.config
    given = folds_chosen or bool({"folds", "folds_file"} & config.model_fields_set)
    folds, epochs = affordable(rehearsal, seconds, config.folds, config.folds if given else FEWEST_FOLDS)
    if epochs < 1:
        raise UsageError(
            f"--hours is too short: {folds} folds of one epoch take {duration(rehearsal.epoch_seconds * folds)}; give "
            "it more, or take a smaller --arch or fewer pixels (--crop, --resize)."
        )
    return replan(plan, min(epochs, config.epochs), folds)


def affordable(rehearsal: Rehearsal, seconds: float, folds: int, fewest: int) -> tuple[int, int]:
    """(folds, epochs of each) that fit into `seconds`."""
    for count in range(folds, fewest - 1, -1):
        # of as many folds as there are, some may be for another machine
        trained = rehearsal.folds if count == folds else count
        epochs = int(seconds / trained / epoch_seconds(rehearsal, folds, count))
        if epochs >= FEWEST_EPOCHS or count == fewest:
            return count, max(epochs, 0)
    raise ValueError(f"{folds} folds are fewer than {fewest}")


def epoch_seconds(rehearsal: Rehearsal, folds: int, count: int) -> float:
    """What an epoch takes where the photos are dealt into `count` folds instead of `folds`."""
    training = rehearsal.train_step * rehearsal.train_steps * (1 - 1 / count) / (1 - 1 / folds)
    return training + rehearsal.valid_step * rehearsal.valid_steps * folds / count


def replan(plan: Plan, epochs: int, folds: int) -> Plan:
    """The plan with another number of epochs, and dealt anew if it has another number of folds."""
    if folds == plan.config.folds:
        return replace(plan, config=plan.config.model_copy(update={"epochs": epochs}))
    config, dealt = deal(plan.table, plan.config.model_copy(update={"epochs": epochs, "folds": folds}))
    check_known(config, plan.table, dealt)
    return replace(plan, config=config, folds=dealt)
