"""Tables: the CSVs of a run, read with every cell checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.table import SAME_AS, TRAIN_ONLY
from fastmask.heads import Heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings


def read_table(file: Path, columns: Sequence[str], heads: Heads, folds: int) -> pd.DataFrame:
    """A CSV of a run with these heads and folds: text in paths, persons and labels, numbers in other columns.

    Raises UsageError if there is no such file, DataError naming the cell or column that is wrong.
    """
    if not file.is_file():
        raise UsageError(f"{file.parent} has no {file.name}: the run has not finished.")
    frame = read_strings(file, columns)
    if frame.empty:
        raise DataError(f"{file} has no rows; restore it.")
    if "path" in columns and frame["path"].duplicated().any():
        path = frame["path"][frame["path"].duplicated()].iloc[0]
        raise DataError(f"{file} has two rows for {path!r}; restore it.")
    text = {"path", "person", SAME_AS, *heads.names}
    # what is not validated has no predictions
    lowest = 0 if "predicted" in columns else TRAIN_ONLY
    made = {
        c: frame[c] if c in text else _to_numbers(file, frame[c], heads, (lowest, folds - 1)) for c in frame.columns
    }
    return pd.DataFrame(made).reset_index(drop=True)


def _to_numbers(file: Path, cells: pd.Series, heads: Heads, folds: tuple[int, int]) -> pd.Series:
    joint = (-1, heads.n_joint - 1)
    whole = {"fold": folds, "true": joint, "predicted": joint}.get(str(cells.name))
    numbers = pd.to_numeric(cells, errors="coerce")
    if whole is not None:
        good = numbers.between(*whole) & (numbers % 1 == 0)
        expected = f"a whole number from {whole[0]} to {whole[1]}"
    elif cells.name in heads.columns:
        # half precision and means round
        good, expected = numbers.between(0, 1 + 1e-3), "a probability from 0 to 1"
    else:
        good, expected = numbers.notna() | cells.isin(["", "nan"]), "a number"
    if not good.all():
        line = good.index[~good][0]
        raise DataError(f"{file}, line {line}, column {cells.name}: found {cells[line]!r}, expected {expected}.")
    return numbers if whole is None else numbers.astype(np.int64)
