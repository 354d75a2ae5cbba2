"""Frames: the cells of a pandas DataFrame as the texts that a CSV of it would have."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from fastmask.system.errors import UsageError
from fastmask.system.text import shorten_repr


def check_frame(frame: Any) -> None:
    """Raise UsageError for anything but a DataFrame with rows."""
    if not isinstance(frame, pd.DataFrame):
        raise UsageError(f"Found {shorten_repr(frame)}; read_frame takes a pandas DataFrame, and read_csv also a file.")
    if frame.empty:
        raise UsageError("The DataFrame has no rows; expected one per photo.")


def frame_to_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every cell as text, "" where it is missing; an index with a name becomes a column.

    Whole numbers have no decimals, also in a column that has become float because cells are missing. Raises UsageError
    for columns with several levels or with the same name.
    """
    if frame.columns.nlevels > 1:
        raise UsageError("The DataFrame has columns of several levels; join them into one name each.")
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    frame = frame.reset_index(level=named) if named else frame
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise UsageError(f"The DataFrame has two columns called {str(twice[0])!r}; rename one, or remove it.")
    texts = {str(name): [cell_text(cell) for cell in frame[name].astype(object)] for name in frame.columns}
    return pd.DataFrame(texts, index=frame.index, dtype=str)


def texts_in(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The frame with the cells of some columns as text, and rows numbered from 0; itself where it is so already."""
    others = [name for name in columns if not _holds_texts(frame[name])]
    if others:
        frame = frame.assign(**{name: [cell_text(cell) for cell in frame[name].astype(object)] for name in others})
    numbered = isinstance(frame.index, pd.RangeIndex) and (frame.index.start, frame.index.step) == (0, 1)
    return frame if numbered or frame.index.equals(pd.RangeIndex(len(frame))) else frame.reset_index(drop=True)


def _holds_texts(cells: pd.Series) -> bool:
    return (
        not isinstance(cells.dtype, pd.CategoricalDtype) and pd.api.types.is_string_dtype(cells) and cells.notna().all()
    )


def cell_text(cell: Any) -> str:
    """A cell of a DataFrame as text."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, PurePath):
        return cell.as_posix()
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return ""
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:.0f}" if cell.is_integer() else repr(float(cell))
    return str(cell)


def ordered_classes(frame: pd.DataFrame) -> dict[str, Sequence[str]]:
    """The categories, in their order, of each column that has them."""
    categorical = {str(name): frame[name].dtype for name in frame.columns if frame.columns.is_unique}
    return {
        name: [cell_text(value) for value in kind.categories]
        for name, kind in categorical.items()
        if isinstance(kind, pd.CategoricalDtype)
    }


def common_folder(paths: Iterable[str]) -> Path:
    """The innermost folder of all paths if they are absolute, else the working directory."""
    folders = [os.path.dirname(path) for path in paths if path]
    absolute = bool(folders) and all(map(os.path.isabs, folders)) and any(map(os.path.isdir, folders))
    return Path(os.path.commonpath(folders)) if absolute else Path()
