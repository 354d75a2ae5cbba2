"""A terminal to watch a fit on, and settings for the tests of screening."""

import io
import re
from typing import Any

import pytest

_PIECES = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Terminal(io.StringIO):
    """A stream that is a terminal, and what a terminal shows of what was written to it."""

    def isatty(self):
        return True

    @property
    def shown(self):
        """All its lines, the scrollback included; as far as rich's live display asks for it."""
        lines, row, column = [""], 0, 0
        for match in _PIECES.finditer(self.getvalue()):
            argument, command, control, text = match.groups()
            if text:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
            elif control == "\n":
                row, column = row + 1, 0
                lines += [""] * (row - len(lines) + 1)
            elif control == "\r":
                column = 0
            elif command == "A":
                row -= int(argument or 1)
            elif command == "K":
                assert argument == "2"
                lines[row] = ""
            else:
                assert command in "mhl", match[0]
        return [line.rstrip() for line in lines]

    @property
    def cursor_is_shown(self):
        return "\x1b[?25h" in self.getvalue().rpartition("\x1b[?25l")[2]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "30")
    return Terminal()


@pytest.fixture(scope="session")
def screening_settings(small_settings: dict[str, Any]) -> dict[str, Any]:
    """`small_settings` but for those that a screening takes as arguments or has no use for."""
    return {name: value for name, value in small_settings.items() if name not in ("arch", "epochs", "bs", "folds")}
