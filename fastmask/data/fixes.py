"""Fixes: a table of corrected labels, applied once to what was read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.table import OnFault, Table, strict
from fastmask.errors import DataError, UsageError
from fastmask.files import read_strings, require_columns
from fastmask.heads import Heads

PERSON = "person"
# the first letters that a misspelt name still has
_ALIKE = 4
# for "person" and "path", which rows have which value
RowsOf = Mapping[str, Mapping[str, np.ndarray]]


def apply_fixes(table: Table, file: str | Path, on_fault: OnFault = strict) -> Table:
    """The table with the corrections of a CSV: person or path (or both columns), column, value.

    `column` is a head, and `value` its class, the number that its class follows from, or nothing for unknown; or
    `person`, for photos of one person that stand under two names. `on_fault` is called with a DataError for a row that
    matches no photo, asks for what is not there, or corrects what another row has corrected. Raises UsageError for a
    table that has been corrected by another file.
    """
    if table.reading.get("fixes"):
        raise UsageError(f"{table.reading['fixes']} corrects the table already; put the rows of {file} into that.")
    fixes = read_strings(Path(file), ("column", "value"))
    keys = [c for c in (PERSON, "path") if c in fixes.columns]
    if not keys:
        require_columns(Path(file), list(fixes.columns), (PERSON,))
    frame = table.frame.copy()
    # found by what was read: a correction does not hide the rows of the next one
    rows_of = {key: table.frame.groupby(key, sort=False).indices for key in keys}
    done: set[tuple[str, int]] = set()
    for line, fix in fixes.iterrows():
        if fault := _correct(frame, table.heads, fix, rows_of, done):
            on_fault(DataError(f"{file}, line {line}, {fault}"))
    return replace(table, frame=frame, reading={**table.reading, "fixes": str(file)})


def _correct(
    frame: pd.DataFrame, heads: Heads, fix: pd.Series, rows_of: RowsOf, done: set[tuple[str, int]]
) -> DataError | None:
    """Make one correction in `frame`; return what is wrong with it."""
    try:
        rows = _rows(fix, rows_of)
        _once(done, fix["column"], rows)
        _set(frame, heads, rows, fix["column"], fix["value"])
    except DataError as fault:
        return fault
    return None


def _rows(fix: pd.Series, rows_of: RowsOf) -> np.ndarray:
    """The photos that a correction names: a person's, one by its path, or one of a person's."""
    named = [key for key in rows_of if fix[key]]
    if not named:
        raise DataError(f"column {next(iter(rows_of))}: found nothing, expected a person or a photo of the data.")
    found = None
    for key in named:
        rows = rows_of[key].get(fix[key], np.array([], np.int64))
        found = rows if found is None else np.intersect1d(found, rows)
        if not len(found):
            # looking through the names of all photos takes a second a row
            alike = [name for name in rows_of[key] if name[:_ALIKE] == fix[key][:_ALIKE]]
            near = difflib.get_close_matches(fix[key], alike, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and near[0] != fix[key] else "."
            raise DataError(f"column {key}: no photo of the data matches {fix[key]!r}{hint}")
    return np.asarray(found)


def _once(done: set[tuple[str, int]], column: str, rows: np.ndarray) -> None:
    cells = {(column, int(row)) for row in rows}
    if cells & done:
        raise DataError(
            f"column column: a line before has corrected {column} of the same photo; remove one of the two."
        )
    done |= cells


def _set(frame: pd.DataFrame, heads: Heads, rows: np.ndarray, column: str, value: str) -> None:
    if column == PERSON and value:
        frame.loc[rows, PERSON] = value
        return
    if column not in heads.names:
        raise DataError(f"column column: found {column!r}, expected one of {', '.join(heads.names)}, {PERSON}.")
    head = heads[column]
    try:
        name, number = head.read(value)
    except DataError as fault:
        raise DataError(f"column value: {fault}") from fault
    frame.loc[rows, column] = name
    if head.bounds:
        frame.loc[rows, f"{column}_value"] = number
