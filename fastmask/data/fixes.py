"""Fixes: a CSV of corrected labels, applied to a table."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.paths import name_paths
from fastmask.data.table import OnFault, Table, raise_fault
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_strings

PERSON = "person"
# the column that is not empty for corrections that a model proposes and no person has checked
PROPOSED = "proposed"
# first letters that a misspelt name has in common with the right one
_ALIKE = 4


def apply_fixes(table: Table, file: str | Path, on_fault: OnFault = raise_fault) -> Table:
    """The table with the corrections of a CSV: person or path (or both columns), column, value.

    `column` is a head, with a `value` that is its class, the number of its band, or nothing for unknown; or `person`,
    with a `value` that is another person, to whom these photos belong. `on_fault` is called with a DataError for a row
    that matches no photo, has an invalid column or value, or corrects a cell again. Raises UsageError for a table that
    another file has corrected; warns of a class without photos.

    >>> person = table.persons[0]
    >>> fixes = pd.DataFrame({"person": [person], "column": ["gender"], "value": ["female"]})
    >>> fixes.to_csv("fixes.csv", index=False)
    >>> fixed = fm.apply_fixes(table, "fixes.csv")
    >>> fixed.frame.loc[fixed.persons == person, "gender"].unique().tolist()
    ['female']
    """
    if table.reading.get("fixes"):
        raise UsageError(f"{table.reading['fixes']} corrects the table already; add the rows of {file} to that file.")
    fixes = read_strings(Path(file), ("column", "value"))
    keys = [c for c in (PERSON, "path") if c in fixes.columns]
    if not keys:
        raise DataError(f"{file} has neither column person nor path; found {', '.join(fixes.columns)}.")
    if "path" in keys:
        fixes["path"] = fixes["path"].map(name_paths(fixes["path"], table.frame["path"], table.root))
    # rows are found in the original table, so that corrections do not depend on each other
    fixing = _Fixing(table, {key: table.frame.groupby(key, sort=False).indices for key in keys}, _moved_persons(fixes))
    for line, fix in fixes.iterrows():
        try:
            fixing.correct(fix)
        except DataError as fault:
            on_fault(DataError(f"{file}, line {line}, {fault}"))
    _warn_of_emptied(table, fixing.frame, file)
    unseen = int((fixes[PROPOSED] != "").sum()) if PROPOSED in fixes.columns else 0
    if unseen:
        warnings.warn(
            f"{unseen} corrections of {file} are proposed by a model (column {PROPOSED}): a score on labels that "
            "predictions have changed is too good. Look at each photo, and empty the cell where you agree.",
            FastmaskWarning,
            stacklevel=2,
        )
    return replace(table, frame=fixing.frame, reading={**table.reading, "fixes": str(file)}, proposed=unseen)


def _warn_of_emptied(table: Table, corrected: pd.DataFrame, file: str | Path) -> None:
    for head in table.heads.names:
        gone = sorted(set(table.frame[head]) - set(corrected[head]) - {""})
        if gone:
            warnings.warn(
                f"After {file} no photo has {head} {', '.join(gone)}, which is still a class; to drop it, correct the "
                "labels in the data itself.",
                FastmaskWarning,
                stacklevel=3,
            )


def _moved_persons(fixes: pd.DataFrame) -> set[str]:
    """The persons with all photos assigned to another person."""
    if PERSON not in fixes.columns:
        return set()
    whole = (fixes["column"] == PERSON) & (fixes["path"] == "" if "path" in fixes.columns else True)
    return set(fixes[PERSON][whole]) - {""}


class _Fixing:
    """The frame that is corrected, the rows of each person and path, and the cells that are corrected already."""

    def __init__(self, table: Table, rows_of: Mapping[str, Mapping[str, np.ndarray]], moved: set[str]) -> None:
        self.frame, self.heads, self.rows_of, self.moved = table.frame.copy(), table.heads, rows_of, moved
        self.persons = set(table.frame[PERSON])
        self.done: set[tuple[str, int]] = set()

    def correct(self, fix: pd.Series) -> None:
        """Make one correction; raises DataError for an invalid one."""
        rows, column = self._rows(fix), fix["column"]
        cells = {(column, int(row)) for row in rows}
        if cells & self.done:
            raise DataError(f"column column: another line corrects {column} of the same photo; remove one of them.")
        self._set(rows, column, fix["value"])
        self.done |= cells

    def _rows(self, fix: pd.Series) -> np.ndarray:
        """The photos of a correction: those of a person, or one by its path, or both."""
        named = [key for key in self.rows_of if fix[key]]
        if not named:
            either = " or ".join(self.rows_of)
            raise DataError(f"column {either}: found nothing, expected a person or a photo of the data.")
        for key in named:
            if fix[key] not in self.rows_of[key]:
                hint = _hint(fix[key], self.rows_of[key])
                raise DataError(f"column {key}: no photo of the data matches {fix[key]!r}{hint}")
        found, *others = (self.rows_of[key][fix[key]] for key in named)
        rows = np.intersect1d(found, others[0]) if others else np.asarray(found)
        if not len(rows):
            raise DataError(f"column path: {fix['path']!r} is not a photo of person {fix[PERSON]!r}.")
        return rows

    def _set(self, rows: np.ndarray, column: str, value: str) -> None:
        if column == PERSON:
            self._move(rows, value)
            return
        if column not in self.heads.names:
            raise DataError(
                f"column column: found {column!r}, expected one of {', '.join(self.heads.names)}, {PERSON}."
            )
        head = self.heads[column]
        try:
            name, number = head.read(value)
        except DataError as fault:
            raise DataError(f"column value: {fault}") from fault
        self.frame.loc[rows, column] = name
        if head.bounds:
            self.frame.loc[rows, f"{column}_value"] = number

    def _move(self, rows: np.ndarray, person: str) -> None:
        if person not in self.persons:
            raise DataError(f"column value: {person!r} is not a person of the data{_hint(person, self.persons)}")
        if person in self.moved:
            # otherwise the result would depend on the order of the rows
            raise DataError(f"column value: another line assigns {person!r} to another person; use that one here too.")
        self.frame.loc[rows, PERSON] = person


def _hint(name: str, names: Iterable[str]) -> str:
    """The end of a sentence, with the nearest of `names`; searching all photos would take a second per row."""
    alike = [n for n in names if n[:_ALIKE] == name[:_ALIKE]]
    near = [n for n in alike if n.startswith(name)][:1] or difflib.get_close_matches(name, alike, n=1)
    return f"; did you mean {near[0]!r}?" if near and name else "."
