"""Folds file: a CSV that assigns photos or persons to folds, in the spellings of several tools."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.columns import PHOTO_COLUMNS, plain
from fastmask.data.folds import check_persons_whole
from fastmask.data.paths import name_paths
from fastmask.data.table import FOLD, LEFT_OUT, SPLITS, TRAIN_ONLY, VALIDATED, Table
from fastmask.system.errors import DataError, FastmaskWarning, cell_error
from fastmask.system.files import read_strings
from fastmask.system.text import count, join_some

# the names that a column of folds has in other tools; the last is fastai's, with True for a validation photo
_FOLD_COLUMNS = (FOLD, "folds", "kfold", "split", "isvalid")
_FLAGS = {**dict.fromkeys(("true", "1", "1.0"), VALIDATED), **dict.fromkeys(("false", "0", "0.0"), TRAIN_ONLY)}
# next to a run's folds.csv
_SKIPPED = "skipped.csv"
_EXPECTED = "a whole number from 0, -1 for a photo to train on only, or train, val or test"


def read_folds(table: Table, file: str | Path, group: str | None = "person") -> np.ndarray:
    """The fold of every photo, (N,) int64, from a CSV of folds and of photos or persons, such as a run's folds.csv.

    Folds are numbers from 0 or from 1, and TRAIN_ONLY (-1); or the words of a fixed split, with which "val" is fold 0,
    "train" TRAIN_ONLY and "test" LEFT_OUT, as are photos that a run has left out, of which the file is the folds.csv.
    A photo is named by its path, with or without folder and ending. Warns of folds that are counted from 1, and of rows
    that name nothing in the table. Raises DataError for a row with an invalid fold, for a photo without a fold, a gap
    in the folds, and, unless `group` is "none", a person in two folds.

    >>> folds = fm.read_folds(table, run.path / "folds.csv")
    >>> folds.shape, np.unique(folds).tolist()
    ((84,), [0, 1])
    """
    file = Path(file)
    frame = read_strings(file, ())
    fold_column = _find_column(file, frame, _FOLD_COLUMNS)
    numbers = _read_fold_cells(file, frame[fold_column])
    folds = _assign_rows(table, file, frame, numbers, fold_column)
    _check_gaps(file, folds)
    if group == "person":
        kept = folds != LEFT_OUT
        check_persons_whole(table.persons[kept], folds[kept])
    return folds


def _find_column(file: Path, frame: pd.DataFrame, names: tuple[str, ...]) -> str:
    """The first of the names that a CSV has as a column, see `plain`."""
    there = {plain(column): column for column in reversed(frame.columns)}
    found = next((there[name] for name in names if name and name in there), None)
    if found is None:
        others = f", nor {' or '.join(filter(None, names[1:]))}" if any(names[1:]) else ""
        raise DataError(f"{file} has no column {names[0]!r}{others}; found {join_some(list(frame.columns), 30)}.")
    return found


def _read_fold_cells(file: Path, cells: pd.Series) -> pd.Series:
    """The folds of the cells of a column, from 0; raises DataError for an invalid one, and for words beside numbers."""
    words = _FLAGS if plain(str(cells.name)) == "isvalid" else SPLITS
    is_word = cells.str.lower().isin(words)
    is_number = cells.str.fullmatch(r"-1(\.0*)?|[0-9]{1,4}(\.0*)?") & (words is SPLITS)
    invalid = ~is_word & ~is_number
    if invalid.any():
        line = invalid.idxmax()
        raise cell_error(file, line, str(cells.name), cells[line], "True or False" if words is _FLAGS else _EXPECTED)
    folds = cells.where(is_word, "0").str.lower().map(words).where(is_word, cells.where(~is_word, "0").astype(float))
    folds = folds.astype(np.int64)
    numbered = folds[~is_word & (folds >= 0)]
    if len(numbered) and (folds[is_word] == VALIDATED).any():
        raise DataError(f"{file} has both numbers and words of a validation split as folds; use one of the two.")
    if not len(numbered) or numbered.min() != 1:
        return folds
    last = numbered.max()
    warnings.warn(
        f"The folds 1 … {last} of {file} are counted from 1: here, and for --fold, they are 0 … {last - 1}.",
        FastmaskWarning,
        stacklevel=3,
    )
    return folds.where(folds < 1, folds - 1)


def _assign_rows(table: Table, file: Path, frame: pd.DataFrame, numbers: pd.Series, fold_column: str) -> np.ndarray:
    """(N,) the fold of each photo of a table by the rows of a CSV."""
    key, find = _find_key(table, file, frame)
    folds, lines = np.full(len(table), LEFT_OUT - 1), np.zeros(len(table), np.int64)
    spare = []
    for line, name, fold in zip(frame.index, frame[key], numbers, strict=True):
        rows = find(name)
        spare += [] if len(rows) else [name]
        differing = rows[(lines[rows] > 0) & (folds[rows] != fold)]
        if len(differing):
            first = lines[differing[0]]
            both = f"{frame[fold_column][first]} in line {first} and {frame[fold_column][line]}"
            raise DataError(f"{file}, line {line}, column {fold_column}: {name!r} has fold {both}.")
        folds[rows], lines[rows] = fold, line
    skipped = _read_skipped(file)
    folds[(lines == 0) & table.frame["path"].isin(skipped)] = LEFT_OUT
    missing = np.flatnonzero(folds < LEFT_OUT)
    if len(missing):
        path = table.frame["path"].iat[missing[0]]
        other = f" (found {spare[0]!r}, which is not in the data)" if spare else ""
        raise DataError(
            f"{file} has no fold for {count(len(missing), 'photo')}, such as {path!r}{other}; add them, with fold -1 "
            "to train on them only."
        )
    if spare:
        warnings.warn(
            f"{count(len(spare), 'row')} of {file} name nothing in the data, such as {key} {spare[0]!r}; they are "
            "ignored.",
            FastmaskWarning,
            stacklevel=3,
        )
    return folds


def _read_skipped(file: Path) -> list[str]:
    """The photos that a run has left out, if the file is its folds.csv."""
    skipped = file.with_name(_SKIPPED)
    return read_strings(skipped, ("path",))["path"].tolist() if skipped.is_file() else []


def _find_key(table: Table, file: Path, frame: pd.DataFrame) -> tuple[str, Callable[[str], np.ndarray]]:
    """The column of photos or of persons, and a function of a cell that finds the rows of the table."""
    of_person = {name: np.asarray(rows) for name, rows in table.frame.groupby("person").indices.items()}
    image, group = (plain(table.reading.get(f"{name}_column") or "") for name in ("image", "group"))
    photo_columns, none = ("path", image, *PHOTO_COLUMNS), np.empty(0, np.int64)
    if not set(map(plain, frame.columns)) & set(filter(None, photo_columns)):
        return _find_column(file, frame, ("person", group)), lambda name: of_person.get(name, none)
    column = _find_column(file, frame, photo_columns)
    names = name_paths(frame[column], table.frame["path"], table.root)
    of_photo = {path: np.array([row]) for row, path in enumerate(table.frame["path"])}
    # the column path of a contest's train.csv has persons
    return column, lambda cell: of_photo.get(names[cell], of_person.get(cell, none))


def _check_gaps(file: Path, folds: np.ndarray) -> None:
    """Raise DataError unless the folds are 0, 1, … without a gap, and each leaves photos to train on."""
    numbers = sorted(set(folds[folds >= 0].tolist()))
    if not numbers:
        raise DataError(
            f"{file} has no photo to validate; expected the folds 0, 1, …, or the words train and val (test is left "
            "out)."
        )
    if numbers != list(range(len(numbers))):
        raise DataError(f"{file} has the folds {numbers}; expected 0, 1, … without a gap.")
    if len(numbers) == 1 and not (folds == TRAIN_ONLY).any():
        raise DataError(
            f"{file} has the one fold {numbers[0]}, which leaves nothing to train on; give the photos to train on "
            "fold -1, or the word train."
        )
