"""Photos: small ones for a page, read only where they are shown, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fastmask.data.photo import in_threads, read_photo
from fastmask.data.table import Table
from fastmask.report.blocks import QUIET as QUIET_LINE
from fastmask.report.blocks import RIGHT as RIGHT_LINE
from fastmask.report.blocks import WRONG as WRONG_LINE
from fastmask.report.blocks import Shown
from fastmask.report.style import INK, QUIET, RIGHT, WRONG, Picture, styled
from fastmask.system.errors import DataError
from fastmask.system.text import shorten, shorten_start

# pixels of a photo on a page, twice as many as it is large there, and how good its JPEG is
HEIGHT, WIDTH, _QUALITY = 260, 390, 80
_COLOURS = {"": INK, QUIET_LINE: QUIET, RIGHT_LINE: RIGHT, WRONG_LINE: WRONG}
# inches of a photo of a sheet and of a line under it, and characters of that
_CELL, _LINE, _MOST = (1.55, 1.7), 0.15, 27


def small(photo: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> the same photo, of at most HEIGHT x WIDTH pixels."""
    height, width = photo.shape[:2]
    scale = min(1.0, HEIGHT / height, WIDTH / width)
    if scale == 1:
        return photo
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))


def read_small(table: Table, rows: Sequence[int]) -> list[np.ndarray | None]:
    """The photos of some rows of a table, small; None for one that cannot be read.

    Raises DataError, that of the first, where none can.
    """
    photos = list(in_threads(_read, [table.photo(row) for row in rows]))
    faults = [photo for photo in photos if isinstance(photo, DataError)]
    if faults and len(faults) == len(photos):
        raise faults[0]
    return [None if isinstance(photo, DataError) else photo for photo in photos]


def _read(path: Any) -> np.ndarray | DataError:
    try:
        return small(read_photo(path))
    except DataError as error:
        return error


def to_jpeg(image: np.ndarray) -> bytes:
    """(height, width, 3) uint8 -> a JPEG."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


@styled()
def plot_sheet(photos: Sequence[Shown], columns: int = 0, title: str = "") -> Picture:
    """Photos in a grid, each with its lines under it; `columns` a row, by default up to eight."""
    columns = columns or min(8, max(1, len(photos)))
    rows, lines = max(1, -(-len(photos) // columns)), max((len(one.lines) for one in photos), default=0)
    width, high = _CELL[0] * columns, _CELL[1] + _LINE * lines + 0.12
    above = 0.35 if title else 0.05
    figure = Picture(figsize=(width, high * rows + above))
    if title:
        figure.text(0.05 / width, 1 - 0.12 / (high * rows + above), title, va="top", fontweight="bold", fontsize=10)
    for place, one in enumerate(photos):
        row, column = divmod(place, columns)
        top = 1 - (above + high * row) / (high * rows + above)
        tall = _CELL[1] / (high * rows + above)
        axes = figure.add_axes((column / columns + 0.03 / columns, top - tall, 0.94 / columns, tall))
        axes.imshow(one.image)
        axes.set_axis_off()
        for number, (text, kind) in enumerate(one.lines):
            y = top - tall - (0.05 + _LINE * number) / (high * rows + above)
            # of a path the end tells more
            shown = shorten_start(text, _MOST) if kind == QUIET_LINE else shorten(text, _MOST)
            figure.text((column + 0.04) / columns, y, shown, va="top", fontsize=7, color=_COLOURS[kind])
    return figure
