"""Answers file: somebody's answers to the photos of a run, in a CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.heads import Head, Heads
from fastmask.inference.submission import ANSWER, ID, joint_classes
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError
from fastmask.system.files import read_strings

# rounding may lead beyond 1
_PROBABILITY = (0.0, 1 + 1e-3)


@dataclass(frozen=True, eq=False)
class Answers:
    """What one result says of photos: of each head (N,) class names, and a run's labels likewise."""

    name: str
    path: Path
    photos: pd.Index
    answers: Mapping[str, np.ndarray]
    classes: Mapping[str, frozenset[str]]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    run: RunDirectory | None = None
    caveats: Sequence[str] = ()


def read_answers(file: str | Path, heads: Heads, name: str | None = None) -> Answers:
    """Somebody's answers to a run's photos, from a CSV with the column path (or ImageID) as the run has it.

    Besides it has probabilities (a column HEAD.CLASS each, as in oof.csv), or joint classes (ans, or predicted), or a
    column of class names a head. Raises DataError for a cell that is none of these, a photo twice, a missing column.
    """
    file = Path(file)
    frame = read_strings(file, ())
    key = "path" if "path" in frame.columns else ID
    if key not in frame.columns:
        raise DataError(f"{file} has no column 'path' or {ID!r}; found {', '.join(frame.columns)}.")
    if frame.empty:
        raise DataError(f"{file} has no rows; expected one a photo.")
    twice = frame[key].duplicated()
    if twice.any():
        line = frame.index[twice][0]
        raise DataError(f"{file}, line {line}, column {key}: {frame[key][line]!r} stands twice; remove one row.")
    answers, notes = _answers(file, frame, heads)
    return Answers(
        file.stem if name is None else name,
        file,
        pd.Index(frame[key]),
        answers,
        {head: frozenset(heads[head].classes) for head in answers},
        caveats=["a file: that its answers are out of fold is nobody's word but its maker's.", *notes],
    )


def _answers(file: Path, frame: pd.DataFrame, heads: Heads) -> tuple[dict[str, np.ndarray], list[str]]:
    """The class names of each head that a file answers, and what is to be said of them."""
    known = [heads[name] for name in heads.classified]
    likely = {head.name: _most_likely(file, frame, head) for head in known if _has_probabilities(file, frame, head)}
    joint = next((column for column in (ANSWER, "predicted") if column in frame.columns), None)
    if likely:
        notes = []
        # a file of fewer heads counts its joint classes otherwise
        if joint is not None and len(likely) == len(known):
            other = pd.DataFrame(_of_joint(file, frame, joint, heads)).ne(pd.DataFrame(likely)).any(axis=1).sum()
            if other:
                notes = [f"{other} cells of its column {joint} are not the most probable class, and are not judged."]
        return likely, notes
    if joint is not None:
        return _of_joint(file, frame, joint, heads), []
    named = {head.name: _of_names(file, frame, head) for head in known if head.name in frame.columns}
    if not named:
        expected = f"{heads.columns[0]} and the other classes, or {ANSWER}, or {', '.join(heads.classified)}"
        raise DataError(f"{file} has no answers; found {', '.join(frame.columns)}, expected {expected}.")
    return named, []


def _has_probabilities(file: Path, frame: pd.DataFrame, head: Head) -> bool:
    columns = [f"{head.name}.{c}" for c in head.classes]
    missing = [column for column in columns if column not in frame.columns]
    if 0 < len(missing) < len(columns):
        raise DataError(f"{file} has no column {missing[0]!r} beside those of the other classes of {head.name}.")
    return not missing


def _most_likely(file: Path, frame: pd.DataFrame, head: Head) -> np.ndarray:
    columns = [f"{head.name}.{c}" for c in head.classes]
    numbers = frame[columns].apply(pd.to_numeric, errors="coerce")
    for column in columns:
        _check_cells(file, frame[column], numbers[column].between(*_PROBABILITY), "a probability from 0 to 1")
    return head.decode_all(numbers.to_numpy(np.float64).argmax(axis=1))


def _of_names(file: Path, frame: pd.DataFrame, head: Head) -> np.ndarray:
    names = frame[head.name]
    _check_cells(file, names, names.isin(head.classes), f"one of {', '.join(head.classes)}")
    return names.to_numpy(dtype=object)


def _check_cells(file: Path, cells: pd.Series, right: pd.Series, expected: str) -> None:
    """Raise DataError at the first cell of a column that is not right."""
    if not right.all():
        line = cells.index[~right][0]
        raise DataError(f"{file}, line {line}, column {cells.name}: found {cells[line]!r}, expected {expected}.")


def _of_joint(file: Path, frame: pd.DataFrame, column: str, heads: Heads) -> dict[str, np.ndarray]:
    codes = heads.unjoint(joint_classes(file, frame[column], heads))
    return {heads[i].name: heads[i].decode_all(codes[:, i]) for i in heads.joined}
