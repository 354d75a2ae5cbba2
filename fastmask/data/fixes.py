"""Fixes: a table of corrected labels, applied once to what was read."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.table import OnFault, Table, strict
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_strings

PERSON = "person"
# the column that is not empty where a model proposes a correction that nobody has looked at
PROPOSED = "proposed"
# the first letters that a misspelt name still has
_ALIKE = 4


def apply_fixes(table: Table, file: str | Path, on_fault: OnFault = strict) -> Table:
    """The table with the corrections of a CSV: person or path (or both columns), column, value.

    `column` is a head, and `value` its class, the number that its class follows from, or nothing for unknown; or
    `person`, and `value` the person whose photos these are as well. `on_fault` is called with a DataError for a row
    that matches no photo, asks for what is not there, or corrects what another row has corrected. Raises UsageError for
    a table that has been corrected by another file; warns of a class that no photo is left of.
    """
    if table.reading.get("fixes"):
        raise UsageError(f"{table.reading['fixes']} corrects the table already; put the rows of {file} into that.")
    fixes = read_strings(Path(file), ("column", "value"))
    keys = [c for c in (PERSON, "path") if c in fixes.columns]
    if not keys:
        raise DataError(f"{file} has no column 'person' and none 'path'; found {', '.join(fixes.columns)}.")
    if "path" in keys:
        fixes["path"] = [path_in(table.root, cell) for cell in fixes["path"]]
    # found by what was read: a correction does not hide the rows of the next one
    making = _Making(table, {key: table.frame.groupby(key, sort=False).indices for key in keys}, _moved(fixes))
    for line, fix in fixes.iterrows():
        if fault := making.correct(fix):
            on_fault(DataError(f"{file}, line {line}, {fault}"))
    _warn_of_emptied(table, making.frame, file)
    unseen = int((fixes[PROPOSED] != "").sum()) if PROPOSED in fixes.columns else 0
    if unseen:
        warnings.warn(
            f"{unseen} corrections of {file} are a model's own, as their column {PROPOSED} says: a score on labels "
            "that predictions have changed flatters. Look at each photo, and empty that cell of those you have seen.",
            FastmaskWarning,
            stacklevel=2,
        )
    return replace(table, frame=making.frame, reading={**table.reading, "fixes": str(file)}, proposed=unseen)


def _warn_of_emptied(table: Table, corrected: pd.DataFrame, file: str | Path) -> None:
    for head in table.heads.names:
        gone = sorted(set(table.frame[head]) - set(corrected[head]) - {""})
        if gone:
            warnings.warn(
                f"After {file} no photo is left of {head} {', '.join(gone)}, which stays a class nevertheless; "
                "give the classes of a CSV by heads in --config to leave it out.",
                FastmaskWarning,
                stacklevel=3,
            )


def path_in(root: Path, cell: str) -> str:
    """A photo's path as the table has it; "" stays."""
    path = Path(cell)
    inside = path.is_absolute() and path.is_relative_to(root.absolute())
    return (path.relative_to(root.absolute()) if inside else path).as_posix() if cell else ""


def _moved(fixes: pd.DataFrame) -> set[str]:
    """The persons of whom all photos are put under another name."""
    if PERSON not in fixes.columns:
        return set()
    whole = (fixes["column"] == PERSON) & (fixes["path"] == "" if "path" in fixes.columns else True)
    return set(fixes[PERSON][whole]) - {""}


class _Making:
    """The corrected frame in the making: whose rows are where, and which cells are corrected already."""

    def __init__(self, table: Table, rows_of: Mapping[str, Mapping[str, np.ndarray]], moved: set[str]) -> None:
        self.frame, self.heads, self.rows_of, self.moved = table.frame.copy(), table.heads, rows_of, moved
        self.persons = set(table.frame[PERSON])
        self.done: set[tuple[str, int]] = set()

    def correct(self, fix: pd.Series) -> DataError | None:
        """Make one correction, or return what is wrong with it."""
        try:
            rows, column = self._rows(fix), fix["column"]
            cells = {(column, int(row)) for row in rows}
            if cells & self.done:
                raise DataError(
                    f"column column: a line before has corrected {column} of the same photo; remove one of the two."
                )
            self._set(rows, column, fix["value"])
            self.done |= cells
        except DataError as fault:
            return fault
        return None

    def _rows(self, fix: pd.Series) -> np.ndarray:
        """The photos that a correction names: a person's, one by its path, or one of a person's."""
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
            raise DataError(f"column value: {person!r} is no person of the data{_hint(person, self.persons)}")
        if person in self.moved:
            # otherwise who is whom would depend on the order of the rows, and one person could end under two names
            raise DataError(f"column value: another line puts {person!r} under another name; give that one here too.")
        self.frame.loc[rows, PERSON] = person


def _hint(name: str, names: Iterable[str]) -> str:
    """The nearest of `names`, to end a sentence; looking through all photos would take a second a row."""
    alike = [n for n in names if n[:_ALIKE] == name[:_ALIKE]]
    near = [n for n in alike if n.startswith(name)][:1] or difflib.get_close_matches(name, alike, n=1)
    return f"; did you mean {near[0]!r}?" if near and name else "."
