"""What a fit shows while it runs: a bar on a terminal, one plain line an epoch everywhere."""

from __future__ import annotations

import time
from typing import Any, TextIO

from fastai.learner import Recorder

from fastmask.terminal import say
from fastmask.training.callbacks import TrainedEpochs


class EpochLines(TrainedEpochs):
    """Prints one line an epoch to `stream`, and on a terminal a bar of the epoch under it."""

    order = Recorder.order + 2

    def __init__(self, title: str, stream: TextIO) -> None:
        self.title, self.stream = title, stream
        self._bar: Any = None

    def before_fit(self) -> None:
        if not self.stream.isatty() or self._bar is not None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(file=self.stream), transient=True)
        self._bar.start()

    def before_epoch(self) -> None:
        self._start = time.perf_counter()
        if self._bar is not None:
            steps = len(self.learn.dls.train) + len(self.learn.dls.valid)
            self._task = self._bar.add_task(f"{self.title} epoch {self.learn.epoch + 1}", total=steps)

    def after_batch(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def after_trained_epoch(self) -> None:
        if self._bar is None:
            say(self._line(), self.stream)
        else:
            self._bar.remove_task(self._task)
            self._bar.console.print(self._line(), markup=False, highlight=False)

    def __enter__(self) -> EpochLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back, whatever ended the fit: fastai has no event for an exception."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self) -> str:
        recorder = self.learn.recorder
        values = dict(zip(recorder.metric_names[1:], recorder.values[-1], strict=False))
        shown = [f"{name} {value:.4f}" for name, value in values.items() if name != "time"]
        # the joint class is enough for a line; history.csv has each head
        seconds = time.perf_counter() - self._start
        return (
            f"{self.title} epoch {self.learn.epoch + 1}/{self.learn.n_epoch}  {'  '.join(shown[:4])}  {seconds:.0f} s"
        )
