"""Interrupts: a first Ctrl-C, or a scheduler's signal to end, waits for the step to end; a second does not."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

# Ctrl-C, what a scheduler sends, a terminal that is closed, and on Windows Ctrl-Break or a console that is closed
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

# seconds
_SOON = 5.0


class Interrupts:
    """A block in which the first signal to end is only noted, as `asked`; the second one ends the work at once.

    Where a launcher `passes_on` what a terminal has sent its processes already, another one soon after is not a second.

    Signals that are ignored stay so (`nohup`), and outside the main thread none is caught, because Python allows it
    only there.
    """

    def __init__(self, passes_on: bool = False) -> None:
        self.asked: int | None = None
        self._until = 0.0
        self._passes_on = passes_on
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._until = number, time.monotonic() + _SOON * self._passes_on
        elif time.monotonic() > self._until:
            end(number)


def end(number: int) -> NoReturn:
    """End the work as Python does on a Ctrl-C, or with the exit code that a shell gives another signal."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
