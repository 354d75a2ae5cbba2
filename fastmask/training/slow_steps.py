"""Slow steps: a message if steps of training become many times slower, which no setting explains."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from fastai.callback.core import Callback
from fastai.learner import Recorder

# the steps that are compared, and how many times slower they are when it is worth a message
_STEPS, _TIMES = 20, 4.0


class SlowSteps(Callback):
    """Reports once that the last steps took many times as long as the first ones.

    Not for a fold whose steps change by themselves, such as with progressive resizing.
    """

    order, run_valid = Recorder.order + 3, False

    def __init__(self, say: Callable[[str], None], seconds: Callable[[], float] = time.perf_counter) -> None:
        self._say, self._seconds = say, seconds
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=_STEPS)
        self._is_said = False

    def before_train(self) -> None:
        # the first batch of a pass waits for its loading
        self._last: float | None = None

    def after_batch(self) -> None:
        now = self._seconds()
        if self._last is not None and not self._is_said:
            self._note(now - self._last)
        self._last = now

    def _note(self, step: float) -> None:
        if len(self._first) < _STEPS:
            self._first.append(step)
            return
        self._recent.append(step)
        usual, present = statistics.median(self._first), statistics.median(self._recent)
        if len(self._recent) == _STEPS and present > _TIMES * usual:
            self._is_said = True
            self._say(
                f"Steps take {present / usual:.0f} times as long as at the start of the fold ({present:.2g} s instead "
                f"of {usual:.2g} s), perhaps since another program uses the processor, the memory or the disk. End it, "
                "or stop here (Ctrl-C) and resume later; on a CPU a new run can take --threads 1."
            )
