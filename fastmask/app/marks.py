"""Marks: labels that a user marked as wrong, kept as rows of a fix table for `fit --fixes`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from fastmask.data.fixes import PERSON, PROPOSED, apply_fixes
from fastmask.data.paths import name_paths
from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import atomic_write, check_new, check_target, frame_to_csv, read_strings, real
from fastmask.system.lock import lock_file

# `label` is for readers of the table: the label before the correction
COLUMNS = (PERSON, "path", "column", "value", "label")
FILE = "fixes.csv"
T = TypeVar("T")
# seconds to wait for another process that writes to the table, which takes one or two for a thousand rows
_WAIT = 30.0


@dataclass(frozen=True)
class Mark:
    """A row of a fix table: `value` is the correct value of `column` (a head, or person); "" is unknown.

    It is for the photo at `path` or, if `path` is "", for all photos of `person`. `label` is the value before,
    `proposed` means that a model suggests it and no user has confirmed it, `line` is the line in the file, 0 before it
    is written.
    """

    person: str
    path: str
    column: str
    value: str
    label: str = ""
    proposed: bool = False
    line: int = 0

    @property
    def target(self) -> tuple[str, str, str]:
        """What it corrects: (person, "", column) or ("", path, column)."""
        return ("" if self.path else self.person, self.path, self.column)

    def covers(self, person: str, path: str) -> bool:
        """Whether it corrects the photo at `path` of `person`."""
        return self.path == path if self.path else self.person == person


def place_of(run: RunDirectory, file: str | Path | None = None) -> Path:
    """The file for marks on a run: `file`, or the run's own fix table, or `fixes.csv` next to the run.

    Raises UsageError for a file of another kind, or one in the run directory.
    """
    if file is None:
        own = run.config.fixes
        file = own if own is not None and Path(own).is_file() else real(run.path).parent / FILE
    place = Path(file)
    if real(place).is_relative_to(real(run.path)):
        raise UsageError(f"{file} is in the run directory {run.path}, which must not change; name another --fixes.")
    check_target(place)
    check_new(place, True)
    return place


def read_marks(file: Path, table: Table | None = None) -> list[Mark]:
    """The rows of a fix table in order, none if there is no file; with the paths of the photos of `table`.

    Raises DataError for a file that is not a fix table.
    """
    if not file.exists():
        return []
    return _marks(_read(file), table)


def marks_on(marks: Iterable[Mark], person: str, path: str) -> dict[str, Mark]:
    """By column, the marks that correct the photo at `path` of `person`; its own takes precedence over the person's."""
    there = [mark for mark in marks if mark.covers(person, path)]
    return {mark.column: mark for mark in sorted(there, key=lambda mark: bool(mark.path))}


def add_mark(file: Path, mark: Mark, table: Table) -> Mark | None:
    """Write a mark to a fix table, replacing one with the same target, which it returns, or at the end.

    All other rows stay as they are. The file is replaced atomically, by one process at a time, and only if
    `apply_fixes` accepts it for the uncorrected `table`. Raises UsageError if another row corrects the same photos,
    DataError if the file is broken or the value is not valid for the column.
    """

    def add(frame: pd.DataFrame, marks: list[Mark]) -> tuple[pd.DataFrame, Mark | None]:
        _check_apart(file, marks, mark, table)
        for name in (*COLUMNS[:4], *(COLUMNS[4:] if frame.empty else ())):
            if name not in frame.columns:
                frame[name] = ""
        cells = {**dict.fromkeys(frame.columns, ""), **_cells(mark)}
        same = [place for place, there in enumerate(marks) if there.target == mark.target]
        if not same:
            return pd.concat([frame, pd.DataFrame([cells])[list(frame.columns)]], ignore_index=True), None
        # other columns of a row from a model stay, but it is no longer a proposal
        kept = {name: cell for name, cell in frame.iloc[same[0]].items() if name not in (*COLUMNS[:4], PROPOSED)}
        frame.iloc[same[0]] = [{**cells, **kept}[name] for name in frame.columns]
        return frame, marks[same[0]]

    return _change(file, table, add)


def remove_mark(file: Path, target: tuple[str, str, str], table: Table) -> Mark:
    """Remove the mark with a target from a fix table and return it; raises UsageError if there is none."""

    def remove(frame: pd.DataFrame, marks: list[Mark]) -> tuple[pd.DataFrame, Mark]:
        found = [mark for mark in marks if mark.target == target]
        if not found:
            raise UsageError(f"This mark is not in {file} any more; it has already been removed.")
        return frame[[mark.target != target for mark in marks]], found[0]

    return _change(file, table, remove)


def check_marks(file: Path, table: Table) -> None:
    """Raise DataError if `fit --fixes` would refuse a fix table for the photos of `table`."""
    if file.exists():
        _apply(file, table)


def _change(file: Path, table: Table, change: Callable[[pd.DataFrame, list[Mark]], tuple[pd.DataFrame, T]]) -> T:
    """Replace a fix table by what `change` makes of its rows, which are also given as marks."""
    with lock_file(file, _WAIT) as place:
        frame = _read(place) if place.exists() else pd.DataFrame(columns=list(COLUMNS), dtype=str)
        frame, result = change(frame, _marks(frame, table))
        with atomic_write(place) as partial:
            with partial.open("w", encoding="utf-8", newline="") as opened:
                frame_to_csv(frame, opened)
            try:
                _apply(partial, table)
            except DataError as fault:
                raise DataError(str(fault).replace(str(partial), str(file))) from fault
    return result


def _apply(file: Path, table: Table) -> None:
    with warnings.catch_warnings():
        # its warnings are for training
        warnings.simplefilter("ignore", FastmaskWarning)
        apply_fixes(table, file)


def _read(file: Path) -> pd.DataFrame:
    frame = read_strings(file, ("column", "value"))
    if not {PERSON, "path"} & set(frame.columns):
        raise DataError(f"{file} has no column 'person' and none 'path'; found {', '.join(frame.columns)}.")
    return frame


def _marks(frame: pd.DataFrame, table: Table | None) -> list[Mark]:
    if table is not None and "path" in frame:
        frame = frame.assign(path=frame["path"].map(name_paths(frame["path"], table.frame["path"], table.root)))
    return [_mark(line, row) for line, row in frame.iterrows()]


def _mark(line: object, row: pd.Series) -> Mark:
    return Mark(
        person=row.get(PERSON, ""),
        path=row.get("path", ""),
        column=row["column"],
        value=row["value"],
        label=row.get("label", ""),
        proposed=row.get(PROPOSED, "") != "",
        line=int(str(line)),
    )


def _cells(mark: Mark) -> dict[str, str]:
    person, path, column = mark.target
    return {PERSON: person, "path": path, "column": column, "value": mark.value, "label": mark.label}


def _check_apart(file: Path, marks: Iterable[Mark], new: Mark, table: Table) -> None:
    """Raise UsageError if another row corrects the same column of some of the same photos."""
    owner = dict(zip(table.frame["path"], table.frame[PERSON], strict=True))
    for mark in marks:
        if mark.column != new.column or mark.target == new.target:
            continue
        if mark.path and not new.path and owner.get(mark.path) == new.person:
            raise UsageError(
                f"{file}, line {mark.line}, already corrects {mark.column} of one of these photos, {mark.path}; remove "
                "that mark first, or mark the photos one by one."
            )
        if new.path and not mark.path and owner.get(new.path) == mark.person:
            raise UsageError(
                f"{file}, line {mark.line}, already corrects {mark.column} of all photos of {mark.person}; remove that "
                "mark first, or mark all of them."
            )
