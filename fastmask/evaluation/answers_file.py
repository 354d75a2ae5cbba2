"""Answers file: predictions of any photos in a CSV, whose columns name the heads and their classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.data.frames import check_frame, frame_to_text
from fastmask.evaluation.answers import check_cells, joint_classes
from fastmask.heads import RESERVED, UNKNOWN, Head, Heads, number_of
from fastmask.inference.submission import ANSWER, ID, check_names
from fastmask.system.errors import DataError
from fastmask.system.files import read_rows

PREDICTED = "predicted"
# the name of a band of numbers: <30, 30-59, 60+
_BAND = re.compile(r"<(?P<below>\d+)|(?P<first>\d+)-(?P<last>\d+)|(?P<least>\d+)\+")
# the sum of a photo's probabilities, rounded in a file
_ROUNDED = 0.01


@dataclass(frozen=True, eq=False)
class AnswersFile:
    """A CSV with a row per photo, every cell as text; `key` is the column of the photos."""

    path: Path
    frame: pd.DataFrame
    key: str

    @classmethod
    def read(cls, source: str | Path | pd.DataFrame) -> AnswersFile:
        """Read predictions: the photos are in the column path or ImageID, or else in the first one."""
        file, frame = read_cells(source, "predictions")
        key = next((name for name in ("path", ID) if name in frame.columns), str(frame.columns[0]))
        check_names(file, frame[key])
        return cls(file, frame, key)

    @property
    def photos(self) -> list[str]:
        """The photos as the file names them."""
        return self.frame[self.key].tolist()

    @property
    def columns(self) -> list[str]:
        """The columns that may be heads or classes."""
        return [name for name in self.frame.columns if name and name not in (self.key, *RESERVED)]

    @cached_property
    def named_heads(self) -> Heads | None:
        """The heads by the columns of probabilities, HEAD.CLASS or, of one head, CLASS; None if there are none."""
        named = _heads_of_columns(self.columns)
        return named if named or PREDICTED in self.frame.columns else _head_of_shares(self.frame, self.columns)

    @property
    def heads(self) -> Heads | None:
        """The heads that the columns name, or the contest's if there are joint classes alone.

        None if the file has only names of classes, so other classes than those in it are unknown.
        """
        has_joint_alone = PREDICTED in self.frame.columns and not self.columns
        return contest_heads() if ANSWER in self.frame.columns or has_joint_alone else self.named_heads

    def encode(self, heads: Heads) -> np.ndarray:
        """(photos, heads) predicted classes; raises DataError for other heads, and for a cell that is not a class."""
        columns = self.frame.columns
        if ANSWER in columns:
            return heads.unjoint(joint_classes(self.path, self.frame[ANSWER], heads))
        decided = self._decided(heads)
        if PREDICTED not in columns or decided or self.named_heads:
            self._check(heads)
        if PREDICTED in columns and not decided:
            return heads.unjoint(joint_classes(self.path, self.frame[PREDICTED], heads))
        y = np.full((len(self.frame), len(heads)), UNKNOWN)
        for name in heads.classified:
            y[:, heads.position(name)] = (
                self._names(heads[name], decided[name]) if decided else self._most_likely(heads[name])
            )
        return y

    def _decided(self, heads: Heads) -> dict[str, str]:
        """head -> its column of names of classes; the only column of the file is that of the only head."""
        if len(self.columns) == len(heads.classified) == 1:
            return {heads.classified[0]: self.columns[0]}
        return {name: name for name in heads.classified if name in self.columns}

    def _check(self, heads: Heads) -> None:
        """Raise DataError if the file has other heads: its joint classes are others, too."""
        own, expected = self.named_heads, heads.classified
        found = own.classified if own else (*self._decided(heads), *self.columns)
        if not set(expected) <= set(found):
            raise DataError(
                f"{self.path} has predictions of {', '.join(found)}; expected those of {', '.join(expected)}."
            )
        if own and any(own[name].classes != heads[name].classes for name in expected):
            both = [Heads([each[name] for name in expected]) for each in (own, heads)]
            raise DataError(f"{self.path} has {both[0]}; expected {both[1]}.")

    def _names(self, head: Head, column: str) -> np.ndarray:
        cells = self.frame[column]
        check_cells(self.path, cells, cells.isin(head.classes), f"one of {', '.join(head.classes)}")
        return np.array([head.encode(cell) for cell in cells])

    def _most_likely(self, head: Head) -> np.ndarray:
        whole = [f"{head.name}.{name}" for name in head.classes]
        columns = whole if set(whole) <= set(self.frame.columns) else list(head.classes)
        shares = self.frame[columns].apply(pd.to_numeric, errors="coerce")
        for column in columns:
            check_cells(self.path, self.frame[column], shares[column].between(0, 1 + _ROUNDED), "a probability")
        return shares.to_numpy(np.float64).argmax(axis=1)


def read_cells(source: str | Path | pd.DataFrame, name: str) -> tuple[Path, pd.DataFrame]:
    """The cells of a CSV as text, or those of a DataFrame by the lines of a CSV of it, called `name` in messages."""
    if not isinstance(source, pd.DataFrame):
        return Path(source), read_rows(Path(source), ())
    check_frame(source)
    frame = frame_to_text(source)
    return Path(name), frame.set_axis(range(2, 2 + len(frame)))


def _head_of_shares(frame: pd.DataFrame, columns: Sequence[str]) -> Heads | None:
    """The head whose classes the columns are, if their cells are probabilities that sum to 1."""
    if len(columns) < 2:
        return None
    # a row of labels may be unknown
    known = frame[columns][(frame[columns] != "").any(axis=1)]
    shares = known.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    is_head = len(known) and (shares >= 0).all() and (abs(shares.sum(axis=1) - 1) <= _ROUNDED).all()
    return Heads([Head("class", tuple(columns))]) if is_head else None


def _heads_of_columns(columns: Sequence[str]) -> Heads | None:
    """The heads of the columns HEAD.CLASS, without distributions over a number; None if there are none."""
    classes: dict[str, list[str]] = {}
    for head, name in _split_columns(columns):
        classes.setdefault(head, []).append(name)
    classes = {head: names for head, names in classes.items() if len(names) > 1 and all(names)}
    numbers = {number_of(head) for head in classes}
    return Heads([_make_head(name, each) for name, each in classes.items() if name not in numbers]) if classes else None


def _split_columns(columns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(head, class) of each column HEAD.CLASS; HEAD is a column, too, if there are such."""
    known, found = set(columns), False
    for column in columns:
        dots = [dot for dot, character in enumerate(column) if character == "."]
        cut = next((dot for dot in reversed(dots) if column[:dot] in known), None)
        if cut is not None:
            found = True
            yield column[:cut], column[cut + 1 :]
    if not found:
        # with a colon it is of one member
        yield from ((head, name) for head, dot, name in (c.partition(".") for c in columns) if dot and ":" not in head)


def _make_head(name: str, classes: Sequence[str]) -> Head:
    return Head(name, tuple(classes), bounds=_bounds_of(classes))


def _bounds_of(classes: Sequence[str]) -> tuple[float, ...] | None:
    """The bounds of classes that are called like bands of a number, such as <30, 30-59, 60+; None for any others."""
    bands = [_BAND.fullmatch(name) for name in classes]
    if not all(bands):
        return None
    parts = [{name: int(text) for name, text in band.groupdict().items() if text} for band in bands if band]
    firsts = [part.get("first", part.get("least", 0)) for part in parts]
    ends = [part.get("below", part.get("last", -1) + 1) for part in parts]
    # 20-30 may end before 30 or with it
    joined = all(
        low < high and end in (high, high + 1) for (low, high), end in zip(pairwise(firsts), ends, strict=False)
    )
    return tuple(float(first) for first in firsts[1:]) if joined else None


def heads_of(files: Sequence[AnswersFile]) -> Heads:
    """The heads of the first file whose columns say them, or else of the class names in all of them."""
    return next((heads for file in files if (heads := file.heads)), None) or _heads_of_names(files)


def _heads_of_names(files: Sequence[AnswersFile]) -> Heads:
    """The heads of files with class names alone: the columns that all have, with the classes in any of them."""
    shared = [name for name in files[0].columns if all(name in file.columns for file in files)]
    if not shared:
        found = "; ".join(f"{file.path}: {', '.join(file.frame.columns)}" for file in files)
        raise DataError(f"No column of classes is in all files ({found}); give the column of a head the same name.")
    return Heads([_make_head(name, _find_classes(name, files)) for name in shared])


def _find_classes(column: str, files: Sequence[AnswersFile]) -> list[str]:
    names = sorted({cell for file in files for cell in file.frame[column] if cell})
    if len(names) < 2:
        where = " and ".join(dict.fromkeys(str(file.path) for file in files))
        raise DataError(
            f"{where}, column {column}: found only {', '.join(names) or 'empty cells'}, expected two or more classes."
        )
    return names
