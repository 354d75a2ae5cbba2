"""Interrupts: a first Ctrl-C or other signal to end waits for the end of the step, a second one does not."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

# Ctrl-C, a scheduler, a closed terminal, and on Windows Ctrl-Break or a closed console
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

# seconds
_SOON = 5.0


class Interrupts:
    """A block in which the first signal to end is stored as `received`, and a second one ends the work at once.

    `passes_on` is for a launcher that passes on signals which the processes also get from the terminal: a signal that
    follows soon does not count as a second one. Ignored signals stay ignored (`nohup`); outside the main thread Python
    cannot catch signals.
    """

    def __init__(self, passes_on: bool = False) -> None:
        self.received: int | None = None
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
        if self.received is None:
            self.received, self._until = number, time.monotonic() + _SOON * self._passes_on
        elif time.monotonic() > self._until:
            exit_by_signal(number)


def exit_by_signal(number: int) -> NoReturn:
    """End as Python does on a Ctrl-C, or with the exit code that shells use for other signals."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
