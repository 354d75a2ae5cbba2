"""Fragments: pieces of HTML about photos, predictions and marks, from the macros of fragments.html."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from fastmask.app.marks import Mark
from fastmask.app.selection import PhotoAnswer
from fastmask.data.photo import read_photo
from fastmask.report.thumbnails import thumbnail, to_uri
from fastmask.system.errors import DataError
from fastmask.system.text import percent

# pixels of the longer side, JPEG quality, the number of cached tiles, rows of the table of marks
_SMALL, _LARGE, _QUALITY, _CACHED, _MOST_MARKS = 240, 1024, 85, 512, 500


def asset(name: str) -> str:
    """The text of a file of the page."""
    return files("fastmask.app").joinpath(name).read_text(encoding="utf-8")


def correction(mark: Mark) -> str:
    """A mark as text."""
    value = mark.value or "unknown"
    return f"{mark.column}: {mark.label} → {value}" if mark.label else f"{mark.column} → {value}"


@lru_cache(maxsize=1)
def _macros() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=lambda share: percent(share, 1), json=json.dumps, correction=correction)
    return environment.from_string(asset("fragments.html")).module


def picture(image: np.ndarray, alt: str, side: int = _LARGE) -> str:
    """(height, width, 3) uint8 -> an <img> with its data, scaled down to `side` pixels."""
    return str(_macros().picture(to_uri(thumbnail(image, side, side), _QUALITY), alt))


@lru_cache(maxsize=_CACHED)
def tile_picture(photo: Path) -> str:
    """A small <img> of a photo, without alternative text; a placeholder if the photo cannot be read."""
    try:
        return picture(read_photo(photo), "", _SMALL)
    except DataError:
        return '<span class="fm-gone">cannot be read</span>'


def empty(text: str) -> str:
    """A sentence in place of content."""
    return str(_macros().empty(text))


def figure(inside: str, caption: str) -> str:
    """A picture with a caption."""
    return str(_macros().figure(inside, caption))


def notice(text: str, kind: str = "info") -> str:
    """A sentence of a `kind`: info, good, or bad, which screen readers announce at once; "" for no text."""
    return str(_macros().notice(text, kind))


def answer(found: PhotoAnswer, remark: str = "") -> str:
    """The joint class, then the prediction of each head with its probabilities as bars."""
    return str(_macros().answer(found, remark))


def grid(photos: Sequence[Mapping[str, object]], chosen: int | None) -> str:
    """Small photos to choose from, each with row, image (HTML), label, answer, probability, marked.

    The tab key reaches one of them, the arrow keys the others.
    """
    return str(_macros().grid(photos, chosen)) if photos else empty("No photo matches.")


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values."""
    return str(_macros().facts(pairs))


def marks(found: Sequence[Mark], file: Path) -> str:
    """A table of marks, each with a button to remove it."""
    return str(_macros().marks(found, _MOST_MARKS)) if found else empty(f"No label is marked in {file}.")
