"""Terminal: messages on stderr, because stdout is for results."""

from __future__ import annotations

import codecs
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

Progress = Callable[[int, int], None]
Say = Callable[[str], None]

# set by --quiet
_quiet = False
# replacements for the characters that fastmask prints, where an encoding lacks them
_ASCII = {"…": "...", "–": "-", "−": "-", "→": "->", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "━": "=", "─": "-"}
_IN_ASCII = "fastmask.ascii"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs` that replaces characters by ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error(_IN_ASCII, _in_ascii)


def replace_unencodable() -> None:
    """Let stdout and stderr print any text, with ASCII in place of characters that their encoding lacks.

    Consoles and pipes of Windows have code pages with few characters, and print raises for all others. An error handler
    that the user has set, for example by PYTHONIOENCODING=cp437:replace, is kept.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
            with suppress(AttributeError):
                stream.reconfigure(errors=_IN_ASCII)  # type: ignore[union-attr]


def quote(word: str) -> str:
    """A word quoted for the user's shell; cmd has no single quotes."""
    if os.name != "nt":
        return shlex.quote(word)
    return word if re.fullmatch(r"[\w.,:/\\+-]+", word) else '"' + word.replace('"', r"\"") + '"'


def set_quiet(quiet: bool) -> None:
    """Set whether stderr shows only important lines (--quiet)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether stderr shows only important lines."""
    return _quiet


def launcher_rank() -> tuple[int, int]:
    """(rank of this process, number of processes) as set by a launcher such as torchrun; (0, 1) without one."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def say(message: str, stream: TextIO | None = None, important: bool = False) -> None:
    """Print a line to a stream, by default stderr; a closed stream is ignored.

    With --quiet only `important` lines, warnings and errors, are printed to stderr.
    """
    stream = stream or sys.stderr
    if _quiet and not important and stream is sys.stderr:
        return
    with suppress(OSError):
        try:
            print(message, file=stream, flush=True)
        except UnicodeEncodeError:
            # `replace_unencodable` was not called
            print(message.encode(stream.encoding, _IN_ASCII).decode(stream.encoding), file=stream, flush=True)


def say_warning(message: object) -> None:
    """Print a warning to stderr, with --quiet too."""
    say(f"fastmask: warning: {message}", important=True)


def wrap_words(text: str, stream: TextIO | None = None) -> str:
    """A text wrapped between words if a stream, by default stderr, is a terminal; otherwise one line.

    Not for text that users copy from the terminal.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns - 1
    return textwrap.fill(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A context with a progress bar on a terminal: a function of (done, total), which does nothing elsewhere."""
    if _quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
