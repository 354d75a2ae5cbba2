"""Marks: labels that somebody has looked at and found wrong, kept as rows of a fix table that `fit --fixes` takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fastmask.data.fixes import PERSON, PROPOSED, apply_fixes, path_in
from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import check_new, check_target, frame_to_csv, read_strings, real, replacing
from fastmask.system.lock import changing

# `label` is for who reads the table: what stood there
COLUMNS = (PERSON, "path", "column", "value", "label")
FILE = "fixes.csv"
# seconds to wait for another process that writes to the table: one of a thousand rows takes it one or two
_WAIT = 30.0


@dataclass(frozen=True)
class Mark:
    """A row of a fix table: `value` is what `column` (a head, or person) is to be; "" is unknown.

    Of the photo at `path`, or, where that is "", of all photos of `person`. `label` is what stood there, `proposed`
    says that a model asks for it and nobody has looked, `line` is that of the file, 0 before it is written.
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
        """What it corrects: a person's photos, or one photo, whosever it is; and the column."""
        return ("" if self.path else self.person, self.path, self.column)

    def covers(self, person: str, path: str) -> bool:
        """Whether it corrects the photo at `path`, which is of `person`."""
        return self.path == path if self.path else self.person == person


def place_of(run: RunDirectory, file: str | Path | None = None) -> Path:
    """Where marks on a run go: `file`, or the table that the run was corrected by, or `fixes.csv` beside the run.

    Raises UsageError for a file that is something else, or lies in a run, whose files are nobody's to change.
    """
    if file is None:
        own = run.config.fixes
        file = own if own is not None and Path(own).is_file() else real(run.path).parent / FILE
    place = Path(file)
    if real(place).is_relative_to(real(run.path)):
        raise UsageError(
            f"{file} lies in the run {run.path}, which keeps what it was trained on; name another --fixes."
        )
    check_target(place)
    check_new(place, True)
    return place


def read_marks(file: Path, root: Path | None = None) -> list[Mark]:
    """The rows of a fix table in their order, none where there is no file; paths start from `root`, as a table's do.

    Raises DataError for a file that is no fix table.
    """
    if not file.exists():
        return []
    return [_mark(line, row, root) for line, row in _read(file).iterrows()]


def marks_on(marks: Iterable[Mark], person: str, path: str) -> dict[str, Mark]:
    """By column, the marks that correct the photo at `path`, which is of `person`; its own goes over the person's."""
    there = [mark for mark in marks if mark.covers(person, path)]
    return {mark.column: mark for mark in sorted(there, key=lambda mark: bool(mark.path))}


def add_mark(file: Path, mark: Mark, table: Table) -> Mark | None:
    """Write a mark into a fix table, in the place of one of the same target, which it returns; else at its end.

    All other rows stay as they are. The file is replaced whole, once `apply_fixes` takes it for the `table` (which is
    not corrected yet), by one process at a time. Raises UsageError where another row says something else of the same
    photos, DataError where the file is broken or the value is none of the column.
    """
    before: list[Mark] = []

    def changed(frame: pd.DataFrame) -> pd.DataFrame:
        marks = [_mark(line, row, table.root) for line, row in frame.iterrows()]
        _check_apart(file, marks, mark, table)
        for name in (*COLUMNS[:4], *(COLUMNS[4:] if frame.empty else ())):
            if name not in frame.columns:
                frame[name] = ""
        cells = {**dict.fromkeys(frame.columns, ""), **_cells(mark)}
        same = [place for place, there in enumerate(marks) if there.target == mark.target]
        if same:
            before.append(marks[same[0]])
            # what a row of a model says besides stays, but for that nobody has seen it
            kept = {name: cell for name, cell in frame.iloc[same[0]].items() if name not in (*COLUMNS[:4], PROPOSED)}
            frame.iloc[same[0]] = [{**cells, **kept}[name] for name in frame.columns]
            return frame
        return pd.concat([frame, pd.DataFrame([cells])[list(frame.columns)]], ignore_index=True)

    _change(file, table, changed)
    return before[0] if before else None


def take_back(file: Path, target: tuple[str, str, str], table: Table) -> Mark:
    """Remove the mark of a target from a fix table, and return it; raises UsageError where it is gone already."""
    before: list[Mark] = []

    def changed(frame: pd.DataFrame) -> pd.DataFrame:
        marks = [_mark(line, row, table.root) for line, row in frame.iterrows()]
        before.extend(mark for mark in marks if mark.target == target)
        if not before:
            raise UsageError(f"There is no such mark in {file} any more; somebody has taken it back.")
        return frame[[mark.target != target for mark in marks]]

    _change(file, table, changed)
    return before[0]


def check_marks(file: Path, table: Table) -> None:
    """Raise DataError where `fit --fixes` would refuse a fix table for the photos of `table`."""
    if file.exists():
        _apply(file, table)


def _change(file: Path, table: Table, changed: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    with changing(file, _WAIT) as place:
        frame = changed(_read(place) if place.exists() else pd.DataFrame(columns=list(COLUMNS), dtype=str))
        with replacing(place) as beside:
            with beside.open("w", encoding="utf-8", newline="") as opened:
                frame_to_csv(frame, opened)
            try:
                _apply(beside, table)
            except DataError as fault:
                raise DataError(str(fault).replace(str(beside), str(file))) from fault


def _apply(file: Path, table: Table) -> None:
    with warnings.catch_warnings():
        # they are for who trains on it
        warnings.simplefilter("ignore", FastmaskWarning)
        apply_fixes(table, file)


def _read(file: Path) -> pd.DataFrame:
    frame = read_strings(file, ("column", "value"))
    if not {PERSON, "path"} & set(frame.columns):
        raise DataError(f"{file} has no column 'person' and none 'path'; found {', '.join(frame.columns)}.")
    return frame


def _mark(line: object, row: pd.Series, root: Path | None) -> Mark:
    path = row.get("path", "")
    return Mark(
        person=row.get(PERSON, ""),
        path=path if root is None else path_in(root, path),
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
    """Raise UsageError where another row corrects the same column of some of the same photos."""
    owner = dict(zip(table.frame["path"], table.frame[PERSON], strict=True))
    for mark in marks:
        if mark.column != new.column or mark.target == new.target:
            continue
        if mark.path and not new.path and owner.get(mark.path) == new.person:
            raise UsageError(
                f"{file}, line {mark.line}, corrects {mark.column} of one of these photos, {mark.path}, already; take "
                "that back first, or mark the photos one by one."
            )
        if new.path and not mark.path and owner.get(new.path) == mark.person:
            raise UsageError(
                f"{file}, line {mark.line}, corrects {mark.column} of all photos of {mark.person} already; take that "
                "back first, or mark all of them."
            )
