"""Blocks: what a section of a report is made of, before anything is said of how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from fastmask.system.text import NOTHING, shorten, shorten_middle

# what a line under a photo says: of an answer that is right, of one that is wrong, or beside the point
RIGHT, WRONG, QUIET = "right", "wrong", "quiet"


@dataclass(frozen=True)
class Text:
    """A paragraph; one that is a `warning` stands out."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and what is known of each."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of the columns; the first cell of a row is its name."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture of numbers, `name` that of its file; `alt` says what it shows to who does not see it, `table` all."""

    kind: ClassVar[str] = "drawing"
    name: str
    picture: Figure
    alt: str
    caption: str = ""
    table: Table | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """A small photo, (height, width, 3) uint8, and the lines under it, each with RIGHT, WRONG, QUIET or nothing."""

    image: np.ndarray
    alt: str
    lines: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Album:
    """Photos, in rows of `columns` where they belong together, else as many as there is room for."""

    kind: ClassVar[str] = "album"
    name: str
    photos: Sequence[Shown]
    caption: str = ""
    columns: int = 0


Block = Text | Facts | Table | Drawing | Album


@dataclass(frozen=True)
class Section:
    """A part of a report; one that is left out says why in `missing`, and has no blocks."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default=())
    missing: str = ""


def rounded(value: float | None, digits: int = 4) -> str:
    """A figure as a table shows it."""
    return NOTHING if value is None or value != value else f"{value:.{digits}f}"


def squeezed_parts(parts: Sequence[str], most: int) -> str:
    """Names beside each other, the longest shortened until they fit into `most` characters."""
    room = most - (len(parts) - 1)
    each = next((n for n in range(most, 1, -1) if sum(min(len(part), n) for part in parts) <= room), 1)
    return shorten(" ".join(shorten_middle(part, each) for part in parts), most)
