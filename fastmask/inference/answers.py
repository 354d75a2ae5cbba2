"""Answers: the classes that a run predicts out of fold, or those in a CSV, by the names of its columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.data.frames import check_frame, frame_to_text
from fastmask.heads import JOINT, RESERVED, UNKNOWN, Head, Heads, bands_of, number_of
from fastmask.inference.submission import ANSWER, ID, check_names, read_form
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_rows
from fastmask.system.text import shorten_repr

PREDICTED = "predicted"
# the name of a band of numbers: <30, 30-59, 60+
_BAND = re.compile(r"<(?P<below>\d+)|(?P<first>\d+)-(?P<last>\d+)|(?P<least>\d+)\+")
# the sum of a photo's probabilities, rounded in a file
_ROUNDED = 0.01


@dataclass(frozen=True, eq=False)
class Answers:
    """The predicted classes of one result: (N,) class names of each head, and also of a run's labels."""

    name: str
    path: Path
    photos: pd.Index
    answers: Mapping[str, np.ndarray]
    classes: Mapping[str, frozenset[str]]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    run: RunDirectory | None = None
    caveats: Sequence[str] = ()

    def encode(self, heads: Heads, photos: pd.Index) -> np.ndarray:
        """(photos, heads) class numbers of the answers."""
        return self._encode(self.answers, heads, photos)

    def encode_labels(self, heads: Heads, photos: pd.Index) -> np.ndarray:
        """(photos, heads) class numbers of the labels."""
        return self._encode(self.labels, heads, photos)

    def _encode(self, names: Mapping[str, np.ndarray], heads: Heads, photos: pd.Index) -> np.ndarray:
        rows = self.photos.get_indexer(photos)
        return heads.encode_frame(pd.DataFrame({name: names[name][rows] for name in heads.names}))


def answers_of_run(run: RunDirectory, name: str) -> Answers:
    """A run's out-of-fold answers and labels."""
    heads, predicted, true = [(i, run.heads[i]) for i in run.heads.joined], run.predicted, run.true
    return Answers(
        name,
        run.path,
        pd.Index(run.oof["path"]),
        {head.name: head.decode_all(predicted[:, i]) for i, head in heads},
        {head.name: frozenset(head.classes) for _, head in heads},
        {head.name: head.decode_all(true[:, i]) for i, head in heads},
        run,
        run.caveats,
    )


@dataclass(frozen=True, eq=False)
class AnswersFile:
    """A CSV with a row per photo, every cell as text; `key` is the column of the photos."""

    path: Path
    frame: pd.DataFrame
    key: str

    @classmethod
    def read(cls, source: str | Path | pd.DataFrame, name: str = "predictions") -> AnswersFile:
        """Read predictions: the photos are in the column path or ImageID, or else in the first one.

        A DataFrame is called `name` in messages.
        """
        file, frame = read_cells(source, name)
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

    @property
    def has_joint_head(self) -> bool:
        """Whether there are probabilities of a joint head, so that heads' most probable classes may not be answers."""
        return any(column.startswith(f"{JOINT}.") for column in self.frame)

    @property
    def member_columns(self) -> list[str]:
        """The columns MEMBER:HEAD.CLASS of the members of a prediction, next to those of HEAD.CLASS."""
        columns = set(self.frame)
        return [name for name in self.frame if any(name[i + 1 :] in columns for i, s in enumerate(name) if s == ":")]

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
            codes = self.read_names(heads[name], decided[name]) if decided else self.most_likely(heads[name])
            y[:, heads.position(name)] = codes
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

    def read_names(self, head: Head, column: str) -> np.ndarray:
        """(photos,) class numbers of a column of names of classes."""
        cells = self.frame[column]
        check_cells(self.path, cells, cells.isin(head.classes), f"one of {', '.join(head.classes)}")
        return np.array([head.encode(cell) for cell in cells])

    def has_probabilities(self, head: Head) -> bool:
        """Whether there is a column HEAD.CLASS for each class; raises DataError if some are missing."""
        columns = [f"{head.name}.{name}" for name in head.classes]
        missing = [column for column in columns if column not in self.frame]
        if 0 < len(missing) < len(columns):
            raise DataError(
                f"{self.path} has no column {missing[0]!r}, only those of the other classes of {head.name}."
            )
        return not missing

    def columns_of(self, head: Head) -> list[str]:
        """The columns of the probabilities of a head: HEAD.CLASS or, without these, CLASS."""
        columns = [f"{head.name}.{name}" for name in head.classes]
        return columns if set(columns) <= set(self.frame) else list(head.classes)

    def probabilities(self, head: Head) -> np.ndarray:
        """(photos, classes) the probabilities of a head; raises DataError for any other cell."""
        columns = self.columns_of(head)
        shares = self.frame[columns].apply(pd.to_numeric, errors="coerce")
        for column in columns:
            check_cells(
                self.path, self.frame[column], shares[column].between(0, 1 + _ROUNDED), "a probability from 0 to 1"
            )
        return shares.to_numpy(np.float64)

    def most_likely(self, head: Head) -> np.ndarray:
        """(photos,) class numbers of the most probable classes of a head."""
        return np.asarray(self.probabilities(head).argmax(axis=1))

    def to_submission(self, form: str | Path, out: str | Path) -> Path:
        """Fill in a form with the answers, see `read_form`; raises UsageError for a file without probabilities."""
        heads = self.named_heads
        if heads is None:
            raise UsageError(f"{form} is filled in from probabilities, as predict writes them without --submission.")
        opened = read_form(form, heads, self.photos)
        probabilities = np.hstack([self.probabilities(head) for head in heads])
        return opened.fill(heads, self.photos, self.encode(heads), probabilities, out)


def read_answers(file: str | Path, heads: Heads, name: str | None = None) -> Answers:
    """Read the predictions for a run's photos from a CSV: see `AnswersFile`.

    Of probabilities (HEAD.CLASS each, as in oof.csv), joint classes (ans, or predicted) and class names, one column per
    head, the first that the file has are taken. Raises DataError for any other cell, a duplicated photo, a missing
    column.
    """
    given = AnswersFile.read(file)
    codes, notes = _read_codes(given, heads)
    return Answers(
        given.path.stem if name is None else name,
        given.path,
        pd.Index(given.photos),
        {head: heads[head].decode_all(each) for head, each in codes.items()},
        {head: frozenset(heads[head].classes) for head in codes},
        caveats=["a file: whether its answers are out of fold cannot be checked.", *notes],
    )


def _read_codes(given: AnswersFile, heads: Heads) -> tuple[dict[str, np.ndarray], list[str]]:
    """head -> (photos,) class numbers in a file, and notes on them."""
    decides = given.has_joint_head and PREDICTED in given.frame
    shown = [] if decides else [name for name in heads.classified if given.has_probabilities(heads[name])]
    likely = {name: given.most_likely(heads[name]) for name in shown}
    if 0 < len(likely) < len(heads.classified):
        # such a file numbers its joint classes differently
        return likely, []
    column = next((name for name in (ANSWER, PREDICTED) if name in given.frame), None)
    y = None if column is None else heads.unjoint(joint_classes(given.path, given.frame[column], heads))
    joint = {} if y is None else {name: y[:, heads.position(name)] for name in heads.classified}
    if likely:
        other = sum(np.any([joint[name] != likely[name] for name in joint], axis=0)) if joint else 0
        note = f"{other} cells of its column {column} are not the most probable class, and are ignored."
        return likely, [note] if other else []
    named = joint or {name: given.read_names(heads[name], name) for name in heads.classified if name in given.frame}
    if not named:
        expected = f"{heads.columns[0]} and the other classes, or {ANSWER}, or {', '.join(heads.classified)}"
        raise DataError(f"{given.path} has no answers; found {', '.join(given.frame)}, expected {expected}.")
    return named, []


def read_cells(source: str | Path | pd.DataFrame, name: str) -> tuple[Path, pd.DataFrame]:
    """The cells of a CSV as text, or those of a DataFrame by the lines of a CSV of it, called `name` in messages."""
    if not isinstance(source, str | Path | pd.DataFrame):
        raise UsageError(f"{name} is {shorten_repr(source)}; expected a CSV or a DataFrame.")
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
    """The heads of the columns HEAD.CLASS, without auxiliary ones; None if there are none."""
    classes: dict[str, list[str]] = {}
    for head, name in _split_columns(columns):
        classes.setdefault(head, []).append(name)
    classes = {head: names for head, names in classes.items() if len(names) > 1 and all(names)}
    auxiliary = {JOINT, *map(number_of, classes), *map(bands_of, classes)}
    made = [_make_head(name, each) for name, each in classes.items() if name not in auxiliary]
    return Heads(made) if made else None


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
    """The heads by the columns of the first file that names them, or else by the class names in all files."""
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


def check_cells(file: Path, cells: pd.Series, right: pd.Series, expected: str) -> None:
    """Raise DataError at the first cell of a column that is not right."""
    if not right.all():
        line = cells.index[~right][0]
        raise DataError(f"{file}, line {line}, column {cells.name}: found {cells[line]!r}, expected {expected}.")


def joint_classes(file: Path, cells: pd.Series, heads: Heads) -> np.ndarray:
    """(N,) joint classes of a column of a CSV; raises DataError for any other cell."""
    right = cells.map(lambda text: text.isascii() and text.isdecimal() and int(text) < heads.n_joint)
    check_cells(file, cells, right, f"a class from 0 to {heads.n_joint - 1}")
    return cells.astype(np.int64).to_numpy()


def name_photos(file: AnswersFile, files: Sequence[AnswersFile]) -> list[str]:
    """The file names of the photos, without endings if these differ, or their paths if a file name is in two folders.

    Other versions of photos, such as without the background, often have another ending.
    """
    names, stems = ([[short(photo) for photo in each.photos] for each in files] for short in (_name, _stem))
    if not _are_unique(names):
        return file.photos
    # where photos are missing, they are named with their endings
    alike = _are_unique(stems) and len(set(map(frozenset, stems))) == 1
    differ = alike and len(set(map(frozenset, names))) > 1
    return [_stem(photo) if differ else _name(photo) for photo in file.photos]


def _name(photo: str) -> str:
    return Path(photo).name


def _stem(photo: str) -> str:
    return Path(photo).stem


def _are_unique(names: Sequence[Sequence[str]]) -> bool:
    """Whether no file has a name twice."""
    return all(len(set(each)) == len(each) for each in names)
