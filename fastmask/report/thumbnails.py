"""Thumbnails: small photos for a page, and sheets of them with lines of text."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fastmask.data.photo import map_in_threads, read_photo
from fastmask.data.table import Table
from fastmask.report import blocks
from fastmask.report.blocks import Shown
from fastmask.report.style import INK, QUIET, RIGHT, WRONG, Picture, styled
from fastmask.system.errors import DataError
from fastmask.system.text import shorten, shorten_start

# pixels of a photo, twice its size on a page
HEIGHT, WIDTH = 260, 390
_COLOURS = {"": INK, blocks.QUIET: QUIET, blocks.RIGHT: RIGHT, blocks.WRONG: WRONG}
# on a sheet: inches of a photo and of a line under it, and characters of a line
_CELL, _LINE, _MOST = (1.55, 1.7), 0.15, 25


def thumbnail(photo: np.ndarray, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8 -> the photo scaled down to at most `height` x `width` pixels."""
    scale = min(height / photo.shape[0], width / photo.shape[1])
    if scale >= 1:
        return photo
    size = max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))


def read_thumbnails(table: Table, rows: Sequence[int]) -> list[np.ndarray | None]:
    """The photos of some rows of a table, small; None for a photo that cannot be read.

    Raises the DataError of the first one if none can be read.
    """
    photos = list(map_in_threads(_read, [table.photo(row) for row in rows]))
    errors = [photo for photo in photos if isinstance(photo, DataError)]
    if errors and len(errors) == len(photos):
        raise errors[0]
    return [None if isinstance(photo, DataError) else photo for photo in photos]


def _read(path: Path) -> np.ndarray | DataError:
    try:
        return thumbnail(read_photo(path))
    except DataError as error:
        return error


def to_uri(image: np.ndarray, quality: int = 80) -> str:
    """(height, width, 3) uint8 -> a JPEG as a data URI."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


@styled()
def plot_sheet(photos: Sequence[Shown], columns: int = 0, title: str = "") -> Picture:
    """Photos in a grid of `columns` (by default up to eight), each with its lines under it."""
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
            # a path is recognised by its end
            short = shorten_start(text, _MOST) if kind == blocks.QUIET else shorten(text, _MOST)
            figure.text((column + 0.04) / columns, y, short, va="top", fontsize=7, color=_COLOURS[kind])
    return figure
