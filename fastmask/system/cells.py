"""Cells: the rows of a CSV as text, in the encodings and with the separators of several programs."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from fastmask.system import limits

_SEPARATORS = (";", "\t", "|")
# the first line that Excel takes a separator from
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
# the first bytes of .xlsx, .ods and .xls
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
# encodings before UTF-8, with the letters that a text in them has outside ASCII
_ENCODINGS = {
    "cp932": ("Japanese", "[\u3040-\u30ff\u4e00-\u9fff]"),
    "cp949": ("Korean", "[\uac00-\ud7a3]"),
    "gb18030": ("Chinese", "[\u4e00-\u9fff]"),
    "cp1252": ("Western European", "."),
}

Row = tuple[int, list[str]]


def read_cells(file: Path, strip: bool = True) -> list[Row]:
    """(line, cells) of each row of a CSV that is not blank, the header first.

    The separator is a comma, or a semicolon, a tab or a bar where the header has no comma; the encoding is UTF-8, or
    UTF-16. Blanks at the ends of cells are removed, with `strip` also below the header. Raises
    ValueError naming the line for any other text.
    """
    with file.open("rb") as raw:
        start = raw.read(4)
    if start in _WORKBOOKS:
        raise ValueError("it is a spreadsheet; save it as CSV UTF-8")
    try:
        with file.open(encoding=encoding_of(start), newline="") as opened:
            rows = _read_rows(_short_lines(opened))
    except UnicodeDecodeError as error:
        raise ValueError(_describe_encoding(file)) from error
    return [(line, [c.strip() for c in cells] if strip or not i else cells) for i, (line, cells) in enumerate(rows)]


def encoding_of(start: bytes) -> str:
    """UTF-16, as PowerShell and editors of Windows write it, by the byte order mark or a zero byte; else UTF-8."""
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    # the zeros of the first letter and of the second, which are in ASCII
    orders = {"utf-16-le": start[1:4:2], "utf-16-be": start[:4:2]}
    return next((order for order, zeros in orders.items() if zeros == b"\0\0"), "utf-8-sig")


def _read_rows(lines: Iterator[str]) -> list[Row]:
    first = next(lines, "").lstrip("\ufeff")
    marked = _SEPARATOR_LINE.fullmatch(first)
    header = next(lines, "") if marked else first
    separator = marked[1] if marked else _find_separator(header)
    reader = csv.reader(chain([header], lines), delimiter=separator, strict=True)
    return _cut_empty_ends(list(_number_rows(reader, 2 if marked else 1)))


def _find_separator(header: str) -> str:
    return next((mark for mark in _SEPARATORS if mark in header and "," not in header), ",")


def _short_lines(opened: TextIO) -> Iterator[str]:
    """The lines of a text file; raises ValueError at one that is too long or not text."""
    number = 0
    while line := opened.readline(limits.LINE + 1):
        number += 1
        if len(line) > limits.LINE:
            raise ValueError(f"line {number} is longer than {limits.LINE} characters")
        if "\0" in line:
            raise ValueError(f"line {number} holds the character \\0")
        yield line


def _number_rows(reader: Iterator[list[str]], first: int) -> Iterator[Row]:
    start = first
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {start}: the quotes of a cell do not match, {error}") from error
        if cells is None:
            return
        if any(len(cell) > limits.CELL for cell in cells):
            raise ValueError(f"line {start} has a cell of more than {limits.CELL} characters")
        if any(map(str.strip, cells)):
            yield start, cells
        start = first + reader.line_num  # type: ignore[attr-defined]


def _cut_empty_ends(rows: list[Row]) -> list[Row]:
    """The rows without empty cells at their ends that no column has a name for, such as those of a trailing comma."""
    width = _width(rows[0][1]) if rows else 0
    if any(_width(cells) > width for _, cells in rows):
        # an error, or a column without a name
        width = len(rows[0][1])
    return [(line, cells[:width] if _width(cells) <= width else cells) for line, cells in rows]


def _width(cells: list[str]) -> int:
    """The number of cells up to the last one that is not blank."""
    return next((n for n in range(len(cells), 0, -1) if cells[n - 1].strip()), 0)


def _describe_encoding(file: Path) -> str:
    """The line of a file that is not UTF-8, its probable encoding, and how to convert it."""
    with file.open("rb") as raw:
        lines = enumerate(iter(lambda: raw.readline(limits.LINE), b""), 1)
        number, line = next((n, line) for n, line in lines if not _decodes(line, "utf-8"))
    words = b"".join(word for word in re.findall(rb"[A-Za-z\x80-\xff]+", line) if not word.isascii())
    # most letters are in ASCII; elsewhere each has two bytes
    is_western = sum(byte >= 0x80 for byte in words) <= len(words) / 2
    for encoding, (language, letters) in _ENCODINGS.items():
        if (is_western <= (encoding == "cp1252")) and _decodes(line, encoding, letters):
            return (
                f"line {number} seems to be {language} in {encoding}; in a spreadsheet save it as CSV UTF-8, or run "
                f"iconv -f {encoding} -t utf-8"
            )
    return f"line {number} is in another encoding"


def _decodes(line: bytes, encoding: str, letters: str = ".") -> bool:
    """Whether bytes are a text in an encoding, all of it in ASCII or some letters."""
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return all(letter.isascii() or re.match(letters, letter) for letter in text)
