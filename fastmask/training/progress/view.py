"""Progress: tells a view where a run, and the fold that trains, stand."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastai.learner import Recorder

from fastmask.config import Config
from fastmask.run.directory import RunDirectory
from fastmask.system.files import require_columns
from fastmask.training.budget import Deadline
from fastmask.training.callbacks import History, TrainedEpochs
from fastmask.training.progress.glimpse import Glimpse
from fastmask.training.progress.pace import Pace, Steps, left_of_fold, left_of_refits
from fastmask.training.progress.standing import Epochs, Left, Standing, folds_table
from fastmask.training.progress.terminal import Log

# seconds between two looks at the loss
_LOOK = 1.0


class RunProgress:
    """Where a run stands: what shows it, the pace of its steps, and how many folds are left after the one that trains.

    `folds` are to be trained, `refits` to be trained on all photos after them, until `end` (a `time.monotonic()`) where
    there is one.
    """

    def __init__(self, view: Log, config: Config, folds: int, refits: int, end: float | None = None) -> None:
        self.view, self.config, self.end = view, config, end
        self.folds, self.refits = folds, refits
        self.pace = Pace()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self.view.say(line)

    def fold(self, fold: int, history: History, deadline: Deadline | None = None) -> FoldProgress:
        """The callback of the next fold; a block around its fit gives the terminal back."""
        self.folds -= 1
        return FoldProgress(self, f"fold {fold + 1}/{self.config.folds}", history, deadline)

    def refit(self, fold: int) -> FoldProgress:
        """The callback of the next fold that is trained on all photos."""
        self.refits -= 1
        return FoldProgress(self, f"refit of fold {fold + 1}/{self.config.folds}")

    def summary(self, run: RunDirectory, folds: Sequence[int]) -> None:
        """Show a table of the folds, which are trained."""
        if self.view.lives:
            self.view.summary(folds_table({fold: epochs_of(run, fold) for fold in folds}, self.config.folds))

    def after(self, epoch: Steps, refitting: bool) -> Steps:
        """The steps of the run after those of the fold that trains, by those of an epoch of it."""
        refits = self.refits * self.config.refit
        if refitting:
            return epoch * refits
        return epoch * (self.folds * self.config.epochs) + left_of_refits(epoch, refits, self.config.folds)


def epochs_of(run: RunDirectory, fold: int) -> Epochs:
    """The epochs of a trained fold, as its files say."""
    history = run.history(fold)
    require_columns(run.fold_path(fold) / "history.csv", list(history.columns), ["macro_f1"])
    seconds = run.times(fold).set_index("epoch")["seconds"].reindex(history["epoch"])
    return Epochs(history.to_dict("records"), seconds.tolist(), run.config.monitor)


class FoldProgress(TrainedEpochs):
    """Tells a view where the fit of a fold stands, in a block around it; without a `history` it is a refit.

    In a log it does nothing in a step; elsewhere it looks at the clock, and sees the loss as it comes from the device,
    without waiting for it.
    """

    order, optional = Recorder.order + 2, True

    def __init__(
        self, of_run: RunProgress, title: str, history: History | None = None, deadline: Deadline | None = None
    ) -> None:
        self._of_run, self._view, self._pace = of_run, of_run.view, of_run.pace
        self._title, self._history, self._deadline = title, history, deadline
        self._glimpse: Glimpse | None = None
        self._loss: float | None = None
        self._looked = float("-inf")
        # of the step before, and None before the first one, which warms up
        self._last: float | None = None

    def __enter__(self) -> FoldProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the terminal back, whatever ended the fit: fastai has no event for an exception."""
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
        if not self._view.lives:
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
        # the joint class is enough for a line; history.csv has each head
        seconds = time.perf_counter() - self._start
        return (
            f"{self._title} epoch {self.learn.epoch + 1}/{self.learn.n_epoch}  {'  '.join(shown[:4])}  {seconds:.0f} s"
        )

    def _show(self, step: int) -> None:
        if not self._view.lives:
            return
        learn, refitting = self.learn, self._history is None
        epoch = Steps(len(learn.dls.train), 0 if refitting else len(learn.dls.valid))
        # nothing comes after the training of a refit
        training = learn.training or refitting
        done = Steps(step) if training else Steps(epoch.training, step)
        self._look()
        standing = Standing(
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
        self._view.show(standing)

    def _look(self) -> None:
        now, smooth = time.monotonic(), self.learn.recorder.smooth_loss
        if self._glimpse is None and smooth.count and now - self._looked >= _LOOK:
            self._glimpse, self._looked = Glimpse(smooth.value), now
        if self._glimpse is not None and self._glimpse.arrived():
            self._loss, self._glimpse = float(self._glimpse.value), None

    def _left(self, epoch: Steps, done: Steps) -> Left | None:
        after = self.learn.n_epoch - self.learn.epoch - 1
        fold = self._pace.seconds(left_of_fold(epoch, done, after))
        others = self._pace.seconds(self._of_run.after(epoch, self._history is None))
        if fold is None or others is None:
            return None
        now, end, patience = time.monotonic(), self._of_run.end, self._of_run.config.patience
        if self._deadline is not None:
            fold = min(fold, max(self._deadline.until - now, 0))
        run = fold + others if end is None else min(fold + others, max(end - now, 0))
        early = self._history is not None and 0 < patience < self.learn.n_epoch
        return Left(fold, run, early and (after > 0 or self._of_run.folds > 0))

    def _epochs(self) -> Epochs | None:
        history = self._history
        if history is None or not history.rows:
            return None
        return Epochs(list(history.rows), [row["seconds"] for row in history.times], self._of_run.config.monitor)
