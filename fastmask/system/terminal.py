"""What is said while work goes on: on stderr, because stdout is for results."""

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

# set by --quiet
_quiet = False
# replacements for the characters that fastmask prints, where an encoding lacks them
_ASCII = {"…": "...", "–": "-", "−": "-", "→": "->", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "━": "=", "─": "-"}
_IN_ASCII = "fastmask.ascii"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: what is printed of characters that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error(_IN_ASCII, _in_ascii)


def print_in_any_code_page() -> None:
    """Let stdout and stderr print every text, in ASCII where their code page lacks a character.

    Consoles and pipes of Windows have code pages of 256 characters or of one language, and stdout raises for all
    others. Errors that the user has set, as by PYTHONIOENCODING=cp437:replace, stay.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
            with suppress(AttributeError):
                stream.reconfigure(errors=_IN_ASCII)  # type: ignore[union-attr]


def quote(word: str) -> str:
    """A word quoted for the user's shell; cmd does not know single quotes."""
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


def launched() -> tuple[int, int]:
    """The number of this process and how many a launcher has started, as the environment says; (0, 1) without one."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def say(message: str, stream: TextIO | None = None, important: bool = False) -> None:
    """Print a line to a stream, by default stderr; where nobody reads it any more, the work goes on without.

    A process that is quiet prints on stderr only what is `important`: warnings and errors.
    """
    stream = stream or sys.stderr
    if _quiet and not important and stream is sys.stderr:
        return
    with suppress(OSError):
        try:
            print(message, file=stream, flush=True)
        except UnicodeEncodeError:
            # of a code page, where `print_in_any_code_page` was not called
            print(message.encode(stream.encoding, _IN_ASCII).decode(stream.encoding), file=stream, flush=True)


def between_words(text: str, stream: TextIO | None = None) -> str:
    """A text in lines that end between words where a stream, by default stderr, is a terminal, which breaks anywhere.

    Elsewhere it stays one line, and nothing that is to be copied from a terminal should be given here.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns - 1
    return textwrap.fill(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """A block with a bar on a terminal, to be called with (done, total); elsewhere nothing is shown."""
    if _quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
