"""Display: a fit as lines in a log, as live lines on a terminal, or as one output of a notebook that is replaced."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from typing import Any, TextIO

from fastmask.system.terminal import is_quiet, say
from fastmask.training.progress.status import Line, Status, plain_text, status_lines

# seconds between two frames, and the fraction of the time that drawing them may take
_EVERY, _SHARE = 0.25, 0.005
# epochs of the fold that are shown while it trains, and the lines of a terminal that are left free
_EPOCHS, _FREE = 8, 8
_NOTEBOOK_WIDTH = 90


class Log:
    """Prints lines to a stream: messages of the run, and one line per epoch."""

    # whether it draws the status of a fold
    is_live = False

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def say(self, line: str, important: bool = False) -> None:
        """Print a line that stays."""
        say(line, self.stream, important)

    def begin(self) -> None:
        """Called at the start of a fold."""

    def is_due(self) -> bool:
        """Whether a new status is wanted."""
        return False

    def show(self, status: Status) -> None:
        """Show the status of a fold."""

    def epoch(self, line: str) -> None:
        """Called after an epoch with a line about it."""
        self.say(line)

    def end(self, title: str, epochs: Sequence[Line]) -> None:
        """Called at the end of a fold, also after an error, with a table of its epochs."""

    def summary(self, folds: Sequence[Line]) -> None:
        """Called at the end of a run, with a table of its folds."""


class _Frames(Log):
    """Draws the status of a fold at most four times per second, in at most a two-hundredth of the time."""

    is_live = True
    _due = 0.0

    def epoch(self, line: str) -> None:
        """Nothing: it is in the table."""

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def show(self, status: Status) -> None:
        start = time.monotonic()
        self._draw(status)
        now = time.monotonic()
        self._due = now + max(_EVERY, (now - start) / _SHARE)

    def _draw(self, status: Status) -> None:
        raise NotImplementedError


class Terminal(_Frames):
    """Redraws a few lines at the bottom of a terminal; tables of finished folds go into its scrollback."""

    def __init__(self, stream: TextIO, console: Any) -> None:
        super().__init__(stream)
        self.console = console
        self._live: Any = None

    def say(self, line: str, important: bool = False) -> None:
        if self._live is None:
            super().say(line, important)
        else:
            self._print([[(line, "")]])

    def begin(self) -> None:
        from rich.live import Live

        ours = self.stream is sys.stderr
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            # prints of other code go above it, unless stdout is a file
            redirect_stdout=ours and sys.stdout.isatty(),
            redirect_stderr=ours,
        )
        self._live.start()

    def _draw(self, status: Status) -> None:
        if self._live is None:
            return
        width, height = self.console.size
        epochs = status.done.table(max(0, min(_EPOCHS, height - _FREE))) if status.done else []
        # some terminals wrap a line that is exactly as wide as they are
        now = status_lines(status, width - 1, self.console.options.ascii_only)
        self._live.update(_text([[], *epochs, *now]), refresh=True)

    def end(self, title: str, epochs: Sequence[Line]) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if epochs:
            self._print([[], [(title, "bold")], *epochs])

    def summary(self, folds: Sequence[Line]) -> None:
        self._print([[], *folds, []])

    def _print(self, lines: Sequence[Line]) -> None:
        self.console.print(_text(lines), soft_wrap=True)


def _text(lines: Sequence[Line]) -> Any:
    """Lines as a rich text, cropped at the width of the terminal."""
    from rich.text import Text

    return Text("\n", no_wrap=True, overflow="crop").join([Text.assemble(*line) for line in lines])


class Notebook(_Frames):
    """Replaces one output of a cell during the run; a saved notebook holds the last of it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._handle: Any = None
        self._ended: list[Line] = []

    def _draw(self, status: Status) -> None:
        epochs = status.done.table(_EPOCHS) if status.done else []
        self._put([*self._ended, *epochs, *status_lines(status, _NOTEBOOK_WIDTH)])

    def end(self, title: str, epochs: Sequence[Line]) -> None:
        self._ended.append([(title, "")])
        self._put([*self._ended, *epochs])

    def summary(self, folds: Sequence[Line]) -> None:
        self._put(folds)

    def _put(self, lines: Sequence[Line]) -> None:
        from IPython.display import display

        text = "\n".join(plain_text(line) for line in lines)
        shown = {"text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class _Unbroken:
    """A stream that ignores errors of writing, such as those of a terminal that was closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def pick_display(log: TextIO | None) -> Log:
    """The display on the stream `log`, by default on stderr or in the notebook's cell."""
    stream = log or sys.stderr
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if log is None and hasattr(shell, "kernel"):
        return Notebook(stream)
    if stream.isatty() and not is_quiet():
        from rich.console import Console

        console = Console(file=_Unbroken(stream))  # type: ignore[arg-type]
        if console.is_terminal and not console.is_dumb_terminal:
            return Terminal(stream, console)
    return Log(stream)
