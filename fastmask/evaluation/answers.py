"""Answers: the classes predicted by a run out of fold, or by a CSV for the photos of a run, as names by photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.groups import connect, name_groups
from fastmask.data.table import SAME_AS
from fastmask.heads import Head, Heads
from fastmask.inference.submission import ANSWER, ID, check_names
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError
from fastmask.system.files import read_strings

# rounding may exceed 1
_PROBABILITY = (0.0, 1 + 1e-3)


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


def join_groups(runs: Sequence[RunDirectory], photos: pd.Index) -> np.ndarray:
    """(photos,) the groups of the first run; persons who share identical photos in any of the runs are in one."""
    each = [run.groups[pd.Index(run.oof["path"]).get_indexer(photos)] for run in runs]
    joined = [own for run, own in zip(runs, each, strict=True) if SAME_AS in run.folds]
    return name_groups(connect(each[0], *joined), each[0])


def read_answers(file: str | Path, heads: Heads, name: str | None = None) -> Answers:
    """Read the predictions for a run's photos from a CSV with the run's paths in the column path (or ImageID).

    The other columns are probabilities (HEAD.CLASS each, as in oof.csv), or joint classes (ans, or predicted), or class
    names, one column per head. Raises DataError for any other cell, a duplicated photo, a missing column.
    """
    file = Path(file)
    frame = read_strings(file, ())
    key = "path" if "path" in frame.columns else ID
    if key not in frame.columns:
        raise DataError(f"{file} has no column 'path' or {ID!r}; found {', '.join(frame.columns)}.")
    check_names(file, frame[key])
    answers, notes = _answers(file, frame, heads)
    return Answers(
        file.stem if name is None else name,
        file,
        pd.Index(frame[key]),
        answers,
        {head: frozenset(heads[head].classes) for head in answers},
        caveats=["a file: whether its answers are out of fold cannot be checked.", *notes],
    )


def _answers(file: Path, frame: pd.DataFrame, heads: Heads) -> tuple[dict[str, np.ndarray], list[str]]:
    """The class names of each head in a file, and notes on them."""
    known = [heads[name] for name in heads.classified]
    likely = {head.name: _most_likely(file, frame, head) for head in known if _has_probabilities(file, frame, head)}
    if 0 < len(likely) < len(known):
        # such a file numbers its joint classes differently
        return likely, []
    column = next((name for name in (ANSWER, "predicted") if name in frame.columns), None)
    joint = None if column is None else heads.unjoint(joint_classes(file, frame[column], heads))
    named = {} if joint is None else {heads[i].name: heads[i].decode_all(joint[:, i]) for i in heads.joined}
    if likely:
        other = pd.DataFrame(named).ne(pd.DataFrame(likely)).any(axis=1).sum() if named else 0
        note = f"{other} cells of its column {column} are not the most probable class, and are ignored."
        return likely, [note] if other else []
    named = named or {head.name: _names(file, frame[head.name], head) for head in known if head.name in frame.columns}
    if not named:
        expected = f"{heads.columns[0]} and the other classes, or {ANSWER}, or {', '.join(heads.classified)}"
        raise DataError(f"{file} has no answers; found {', '.join(frame.columns)}, expected {expected}.")
    return named, []


def _has_probabilities(file: Path, frame: pd.DataFrame, head: Head) -> bool:
    columns = [f"{head.name}.{c}" for c in head.classes]
    missing = [column for column in columns if column not in frame.columns]
    if 0 < len(missing) < len(columns):
        raise DataError(f"{file} has no column {missing[0]!r}, only those of the other classes of {head.name}.")
    return not missing


def _most_likely(file: Path, frame: pd.DataFrame, head: Head) -> np.ndarray:
    columns = [f"{head.name}.{c}" for c in head.classes]
    numbers = frame[columns].apply(pd.to_numeric, errors="coerce")
    for column in columns:
        check_cells(file, frame[column], numbers[column].between(*_PROBABILITY), "a probability from 0 to 1")
    return head.decode_all(numbers.to_numpy(np.float64).argmax(axis=1))


def _names(file: Path, cells: pd.Series, head: Head) -> np.ndarray:
    check_cells(file, cells, cells.isin(head.classes), f"one of {', '.join(head.classes)}")
    return cells.to_numpy(dtype=object)


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
