"""Live: the progress of a run and of its current fold, estimated from the pace of its steps, for a display."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastai.learner import Recorder

from fastmask.config import Config
from fastmask.run.directory import RunDirectory
from fastmask.system.files import require_columns
from fastmask.training.budget import Deadline
from fastmask.training.callbacks import History, TrainedEpochs
from fastmask.training.progress.display import Log
from fastmask.training.progress.status import Epochs, Status, TimeLeft, folds_table
from fastmask.training.step import AsyncCopy

# seconds between two reads of the loss
_LOOK = 1.0
# the weight of a step relative to the next one: the last hundred or so determine the pace
_MEMORY = 0.99
# of a training step's time, until a validation has been timed: it has no backward pass
_VALIDATION = 1 / 3


@dataclass(frozen=True)
class Steps:
    """Numbers of steps of training and of validation."""

    training: float = 0
    validation: float = 0

    def __add__(self, other: Steps) -> Steps:
        return Steps(self.training + other.training, self.validation + other.validation)

    def __mul__(self, times: float) -> Steps:
        return Steps(self.training * times, self.validation * times)

    def __sub__(self, other: Steps) -> Steps:
        return self + other * -1


class Pace:
    """Exponential means of the seconds of training and validation steps."""

    def __init__(self) -> None:
        self._seconds = {True: 0.0, False: 0.0}
        self._steps = {True: 0.0, False: 0.0}
        self._photos = 0.0

    def step(self, training: bool, seconds: float, photos: int) -> None:
        """Count a step, its seconds and its photos."""
        self._seconds[training] = self._seconds[training] * _MEMORY + seconds
        self._steps[training] = self._steps[training] * _MEMORY + 1
        if training:
            self._photos = self._photos * _MEMORY + photos

    def step_seconds(self, training: bool) -> float | None:
        """The seconds of a step; None before the first one of training."""
        if self._steps[training]:
            return self._seconds[training] / self._steps[training]
        train = None if training else self.step_seconds(True)
        return None if train is None else train * _VALIDATION

    def seconds(self, steps: Steps) -> float | None:
        """The seconds of several steps; None before the first step."""
        train, valid = self.step_seconds(True), self.step_seconds(False)
        if train is None or valid is None:
            return None
        return train * steps.training + valid * steps.validation

    @property
    def photos_per_second(self) -> float | None:
        """The speed of training; None before the first step."""
        return self._photos / self._seconds[True] if self._seconds[True] else None


def steps_left_in_fold(epoch: Steps, done: Steps, epochs_after: int, validations: int | None = None) -> Steps:
    """The steps left in a fold: those of the current epoch that are not done, and the epochs after it.

    `validations` are those from the current epoch on, by default one per epoch.
    """
    number = epochs_after + 1 if validations is None else validations
    return Steps(epoch.training * (epochs_after + 1), epoch.validation * number) - done


def steps_left_in_refits(epoch: Steps, epochs: int, folds: int) -> Steps:
    """The steps of `epochs` on all photos, without validation; `epoch` has those of one on all `folds` but one."""
    return Steps(epoch.training * folds / (folds - 1)) * epochs


class RunProgress:
    """The progress of a run: its display, the pace of its steps, and how many folds are left after the current one.

    `folds` and `refits` are how many are to be trained, `end` is a `time.monotonic()` by which they must finish.
    """

    def __init__(self, view: Log, config: Config, folds: int, refits: int, end: float | None = None) -> None:
        self.view, self.config, self.end = view, config, end
        self.folds, self.refits = folds, refits
        self.pace = Pace()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.view.say(line)

    def fold(self, fold: int, history: History, deadline: Deadline | None = None) -> FoldProgress:
        """The callback of the next fold, which is also a context manager for its fit."""
        self.folds -= 1
        return FoldProgress(self, f"fold {fold + 1}/{self.config.folds}", history, deadline)

    def refit(self, fold: int, deadline: Deadline | None = None) -> FoldProgress:
        """The callback of the next fold that is trained on all photos."""
        self.refits -= 1
        return FoldProgress(self, f"refit of fold {fold + 1}/{self.config.folds}", deadline=deadline)

    def summary(self, run: RunDirectory, folds: Sequence[int]) -> None:
        """Show a table of the trained folds."""
        if self.view.is_live:
            self.view.summary(folds_table({fold: epochs_of(run, fold) for fold in folds}, self.config.folds))

    def steps_after(self, epoch: Steps, refitting: bool) -> Steps:
        """The steps of the run after those of the current fold, given those of an epoch of it."""
        refits = self.refits * self.config.refit
        if refitting:
            return epoch * refits
        fold = Steps(epoch.training * self.config.epochs, epoch.validation * self.config.validations)
        return fold * self.folds + steps_left_in_refits(epoch, refits, self.config.folds)


def epochs_of(run: RunDirectory, fold: int) -> Epochs:
    """The epochs of a trained fold, read from its files."""
    history = run.history(fold)
    require_columns(run.fold_path(fold) / "history.csv", list(history.columns), ["macro_f1"])
    seconds = run.times(fold).set_index("epoch")["seconds"].reindex(history["epoch"])
    return Epochs(history.to_dict("records"), seconds.tolist(), run.config.monitor)


class FoldProgress(TrainedEpochs):
    """Shows the progress of a fold's fit, inside its own context; without a `history` the fit is a refit.

    With a log it does nothing in a step; otherwise it looks at the clock, and reads the loss once the device has sent
    it, without waiting.
    """

    order, optional = Recorder.order + 2, True

    def __init__(
        self, of_run: RunProgress, title: str, history: History | None = None, deadline: Deadline | None = None
    ) -> None:
        self._of_run, self._view, self._pace = of_run, of_run.view, of_run.pace
        self._title, self._history, self._deadline = title, history, deadline
        self._copy: AsyncCopy | None = None
        self._loss: float | None = None
        self._looked = float("-inf")
        # the time of the step before; None before the first one, which warms up
        self._last: float | None = None

    def __enter__(self) -> FoldProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Restore the terminal however the fit ends: fastai has no event for an exception."""
        epochs, title = self._epochs(), self._title
        if kind is not None:
            title += f", stopped after {len(epochs.rows) if epochs else 0} of {self._of_run.config.epochs} epochs"
        self._view.end(f"{title}: {epochs.verdict}" if epochs else title, epochs.table() if epochs else [])

    def before_fit(self) -> None:
        self._view.begin()

    def before_epoch(self) -> None:
        self._start = time.perf_counter()

    def before_train(self) -> None:
        super().before_train()
        self._show(getattr(self.learn, "first_step", 0))

    def after_batch(self) -> None:
        if not self._view.is_live:
            return
        now = time.perf_counter()
        if self._last is not None:
            self._pace.step(self.training, now - self._last, len(self.learn.yb[0]))
        self._last = now
        if self._view.is_due():
            self._show(self.learn.iter + 1)

    def after_trained_epoch(self) -> None:
        if self._history is not None:
            self._view.epoch(self._line())
        self._show(self.learn.n_iter)

    def _line(self) -> str:
        recorder = self.learn.recorder
        values = dict(zip(recorder.metric_names[1:], recorder.values[-1], strict=False))
        shown = [f"{name} {value:.4f}" for name, value in values.items() if name != "time"]
        # the metrics of the joint class suffice; history.csv has each head
        seconds = time.perf_counter() - self._start
        return (
            f"{self._title} epoch {self.learn.epoch + 1}/{self.learn.n_epoch}  {'  '.join(shown[:4])}  {seconds:.0f} s"
        )

    def _show(self, step: int) -> None:
        if not self._view.is_live:
            return
        learn, refitting = self.learn, self._history is None
        epoch = Steps(len(learn.dls.train), 0 if refitting else len(learn.dls.valid))
        # a refit is not validated
        training = learn.training or refitting
        done = Steps(step) if training else Steps(epoch.training, step)
        self._look()
        status = Status(
            self._title,
            learn.epoch,
            learn.n_epoch,
            training,
            step,
            int(epoch.training if training else epoch.validation),
            self._pace.photos_per_second,
            self._loss,
            self._left(epoch, done),
            self._epochs(),
        )
        self._view.show(status)

    def _look(self) -> None:
        now, smooth = time.monotonic(), self.learn.recorder.smooth_loss
        if self._copy is None and smooth.count and now - self._looked >= _LOOK:
            self._copy, self._looked = AsyncCopy(smooth.value), now
        if self._copy is not None and self._copy.is_complete():
            self._loss, self._copy = float(self._copy.value), None

    def _left(self, epoch: Steps, done: Steps) -> TimeLeft | None:
        after = self.learn.n_epoch - self.learn.epoch - 1
        every = self._of_run.config.validate_every
        validations = math.ceil(self.learn.n_epoch / every) - self.learn.epoch // every
        fold = self._pace.seconds(steps_left_in_fold(epoch, done, after, validations))
        others = self._pace.seconds(self._of_run.steps_after(epoch, self._history is None))
        if fold is None or others is None:
            return None
        now, end, patience = time.monotonic(), self._of_run.end, self._of_run.config.patience
        if self._deadline is not None:
            fold = min(fold, max(self._deadline.until - now, 0))
        run = fold + others if end is None else min(fold + others, max(end - now, 0))
        early = self._history is not None and 0 < patience * every < self.learn.n_epoch
        return TimeLeft(fold, run, early and (after > 0 or self._of_run.folds > 0))

    def _epochs(self) -> Epochs | None:
        history = self._history
        if history is None or not history.rows:
            return None
        return Epochs(list(history.rows), [row["seconds"] for row in history.times], self._of_run.config.monitor)
