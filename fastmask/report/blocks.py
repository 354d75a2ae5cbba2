"""Blocks: what a section of a report consists of, and how figures and names are written in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from fastmask.system.text import NOTHING, shorten, shorten_middle

# the kinds of a line under a photo: about a right prediction, about a wrong one, or a detail such as the path
RIGHT, WRONG, QUIET = "right", "wrong", "quiet"


@dataclass(frozen=True)
class Text:
    """A paragraph, highlighted if it is a `warning`."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and a value."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names; the first cell of a row is its name."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A plot; `name` is its file name, `alt` its text alternative, `table` has its figures."""

    kind: ClassVar[str] = "drawing"
    name: str
    picture: Figure
    alt: str
    caption: str = ""
    table: Table | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """A small photo, (height, width, 3) uint8, and the lines under it, each with RIGHT, WRONG, QUIET or ""."""

    image: np.ndarray
    alt: str
    lines: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Album:
    """Photos in rows of `columns`; 0 means as many as fit."""

    kind: ClassVar[str] = "album"
    name: str
    photos: Sequence[Shown]
    caption: str = ""
    columns: int = 0


Block = Text | Facts | Table | Drawing | Album


@dataclass(frozen=True)
class Section:
    """A section of a report; if it is left out, `missing` says why and there are no blocks."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default=())
    missing: str = ""


def rounded(value: float | None, digits: int = 4) -> str:
    """A figure in a table; NOTHING for None and NaN."""
    return NOTHING if value is None or value != value else f"{value:.{digits}f}"


def shorten_parts(parts: Sequence[str], most: int) -> str:
    """Names separated by spaces in at most `most` characters, the longest ones shortened first."""
    room = most - (len(parts) - 1)
    each = next((n for n in range(most, 1, -1) if sum(min(len(part), n) for part in parts) <= room), 1)
    return shorten(" ".join(shorten_middle(part, each) for part in parts), most)


def interval(ends: Sequence[float] | None, digits: int = 4) -> str:
    """Both ends of an interval; NOTHING for None."""
    return f"{ends[0]:.{digits}f} … {ends[1]:.{digits}f}" if ends else NOTHING


def subset_note(shown: int, of: int, which: str) -> list[Block]:
    """A paragraph on which heads are shown; nothing if all are."""
    return [Text(f"Only the {shown} of {of} heads {which} are shown.")] if shown < of else []
