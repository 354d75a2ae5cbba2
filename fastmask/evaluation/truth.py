"""Truth: the labels of a CSV or of folders, and the score of a file of predictions by them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.config import Config
from fastmask.data.columns import find_image_column, find_person_column, join_one_hot
from fastmask.data.contest import contest_heads
from fastmask.data.formats import SUFFIXES
from fastmask.data.paths import find_named, match_photos
from fastmask.data.readers import read_data
from fastmask.data.table import NO_PERSONS, SAME_AS
from fastmask.heads import Head, Heads
from fastmask.inference.answers import PREDICTED, AnswersFile, check_cells, heads_of, joint_classes, read_cells
from fastmask.inference.submission import ANSWER, check_names
from fastmask.scoring import Scores, score_heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


@dataclass(frozen=True, eq=False)
class Truth:
    """The labels of `photos`: (N, heads) class numbers `y` of `heads`, and the (N,) persons where they are known.

    A file in the contest's format is `complete`: all its photos must be predicted.
    """

    path: Path
    photos: Sequence[str]
    heads: Heads
    y: np.ndarray
    persons: np.ndarray | None = None
    complete: bool = False
    notes: Sequence[str] = field(default_factory=list)


def score_files(
    predictions: str | Path | pd.DataFrame, labels: str | Path | pd.DataFrame, heads: Heads | None = None
) -> Scores:
    """Score predictions by labels of the same photos, whatever the order; each head on the photos with a label of it.

    Photos are matched by path, or by the end of it where the two name other folders. Macro-F1 is the mean over the
    classes of both, as in scikit-learn. Intervals are from a bootstrap over persons if the labels have a column
    `person`, else over photos, which makes them too narrow. What is left out is in the notes.

    Args:
        predictions: a CSV of `predict`, or a submission; or a DataFrame like it, such as `Predictions.frame`.
        labels: a CSV with a column per head (classes, numbers of bands, nothing if unknown), with one-hot columns, or
            with the contest's joint classes; or a DataFrame like it; or a folder per class, or the contest's.
        heads: by default those that the columns of the predictions name.

    Raises UsageError for a run in place of its predictions, DataError for a cell that is not a class, for a duplicated
    photo, for files without a photo or a head in common, and if the contest's format has a photo without a prediction.

    Example:
        >>> labels = pd.DataFrame({"path": ["1.jpg", "2.jpg", "3.jpg", "4.jpg"], "mask": ["a", "a", "b", "b"]})
        >>> predictions = labels.assign(mask=["a", "a", "b", "a"])
        >>> scores = fm.score_files(predictions, labels)
        >>> scores.joint.accuracy, round(scores.joint.macro_f1, 4)
        (0.75, 0.7333)
    """
    if not isinstance(predictions, pd.DataFrame) and Path(predictions).is_dir():
        raise UsageError(
            f"{predictions} is a folder; expected the CSV of its predictions: fastmask predict RUN IMAGES --out FILE."
        )
    predicted = AnswersFile.read(predictions)
    truth = read_truth(labels, predicted, heads)
    rows = _rows_of(truth, predicted)
    there = rows >= 0
    answers = _encode(predicted, heads, truth)[rows[there]]
    groups = np.array(truth.photos, dtype=object) if truth.persons is None else truth.persons
    scores = score_heads(truth.heads, answers, truth.y[there], groups=groups[there])
    scores.notes.extend([*truth.notes, *_notes(truth, predicted, there)])
    return scores


def _encode(predicted: AnswersFile, heads: Heads | None, truth: Truth) -> np.ndarray:
    """(photos, heads of the labels) predicted classes."""
    heads = heads or predicted.heads or truth.heads
    return predicted.encode(heads)[:, [heads.position(name) for name in truth.heads.names]]


def _notes(truth: Truth, predicted: AnswersFile, there: np.ndarray) -> list[str]:
    """What is left out of the score, and which intervals are too narrow."""
    extra, missing, notes = len(predicted.photos) - int(there.sum()), np.flatnonzero(~there), []
    if extra:
        notes.append(
            f"{extra} of the {len(predicted.photos)} predictions have no answer in {truth.path} and are left out."
        )
    if len(missing):
        notes.append(
            f"{len(missing)} of the {len(truth.photos)} photos of {truth.path} have no prediction in {predicted.path} "
            f"and are left out, such as {truth.photos[missing[0]]}."
        )
    if truth.persons is None:
        notes.append(f"{truth.path} has no column person: the intervals take photos as independent and are too narrow.")
    return notes


def _rows_of(truth: Truth, predicted: AnswersFile) -> np.ndarray:
    """(N,) the row of each labelled photo in the predictions, -1 where there is none."""
    found = match_photos(truth.photos, predicted.photos)
    several = next((photo for photo in truth.photos if len(found[photo]) > 1), None)
    if several is not None:
        raise DataError(
            f"{truth.path}: {several} may be {' or '.join(found[several][:2])} of {predicted.path}; write "
            "the same paths in both."
        )
    row_of = {photo: row for row, photo in enumerate(predicted.photos)}
    rows = np.array([row_of[found[photo][0]] if found[photo] else -1 for photo in truth.photos])
    _check_rows(truth, predicted, rows)
    return rows


def _check_rows(truth: Truth, predicted: AnswersFile, rows: np.ndarray) -> None:
    """Raise DataError if no photo is predicted, if one is not that must be, or if two have one prediction."""
    there, lacking = rows[rows >= 0], np.flatnonzero(rows < 0)
    if not len(there):
        raise DataError(
            f"{predicted.path} and {truth.path} have no photo in common; the first has {predicted.photos[0]}, the "
            f"second {truth.photos[0]}."
        )
    if truth.complete and len(lacking):
        raise DataError(
            f"{predicted.path} lacks {len(lacking)} of the {len(rows)} photos of {truth.path}, such as "
            f"{truth.photos[lacking[0]]}."
        )
    row, count = max(zip(*np.unique(there, return_counts=True), strict=True), key=lambda each: each[1])
    if count > 1:
        raise DataError(
            f"{truth.path} has {count} photos that may be {predicted.photos[row]} of {predicted.path}; write the same "
            "paths in both."
        )


def read_truth(source: str | Path | pd.DataFrame, predicted: AnswersFile, heads: Heads | None = None) -> Truth:
    """Read the labels of predicted photos: see `score_files`."""
    if not isinstance(source, pd.DataFrame) and Path(source).is_dir():
        return _read_folder(Path(source), heads or heads_of([predicted]))
    labels, frame = read_cells(source, "labels")
    if PREDICTED in frame.columns and predicted.heads is None:
        raise UsageError(f"{predicted.path} has no predictions, {labels} has; name the predictions first.")
    key = _photo_column(labels, frame, predicted)
    check_names(labels, frame[key])
    heads = heads or heads_of([predicted, AnswersFile(labels, frame, key)])
    made = partial(Truth, labels, frame[key].tolist(), persons=_read_persons(labels, frame))
    columns = _label_columns(frame, key, heads)
    joint = _joint_column(frame, heads, columns)
    if joint is not None:
        return made(heads, heads.unjoint(joint_classes(labels, frame[joint], heads)), complete=True)
    scored, notes = _scored_heads(labels, frame, heads, columns)
    return made(scored, _read_heads(labels, columns, scored), notes=notes)


def _photo_column(file: Path, frame: pd.DataFrame, predicted: AnswersFile) -> str:
    """The column that names the most of the predicted photos; raises DataError if none names one."""
    named = {column: find_named(frame[column], predicted.photos) for column in _likely_columns(frame, predicted)}
    if not any(named.values()):
        named = {column: find_named(frame[column], predicted.photos) for column in frame.columns}
    counts = {
        column: (len(found), sum(cell.lower().endswith(SUFFIXES) for cell in found)) for column, found in named.items()
    }
    best = max(counts, key=lambda column: counts[column])
    if not counts[best][0]:
        raise DataError(
            f"{file} has no column with photos of {predicted.path}, such as {predicted.photos[0]}; found "
            f"{', '.join(f'{c} ({frame[c].iloc[0]})' for c in frame.columns)}."
        )
    return str(best)


def _likely_columns(frame: pd.DataFrame, predicted: AnswersFile) -> list[str]:
    """The column called like that of the predictions, else the one that names photos by its header or its cells."""
    if predicted.key in frame.columns:
        return [predicted.key]
    try:
        return [find_image_column("", frame)]
    except UsageError:
        return []


def _read_persons(file: Path, frame: pd.DataFrame) -> np.ndarray | None:
    """(N,) the person of each photo; None if there is no such column."""
    column = find_person_column(frame)
    if column is None:
        return None
    # empty cells would count as one person
    check_cells(file, frame[column], frame[column] != "", "the person of the photo")
    return frame[SAME_AS if SAME_AS in frame.columns else column].to_numpy(dtype=object)


def _label_columns(frame: pd.DataFrame, key: str, heads: Heads) -> dict[str, pd.Series]:
    """head -> its labels as text, from the column called like it, or one-hot columns called like its classes.

    If there is one head, any column whose cells are all classes of it is taken, if it is the only one.
    """
    columns = {}
    for head in (heads[name] for name in heads.classified):
        if head.name in frame.columns:
            columns[head.name] = frame[head.name]
        elif set(head.classes) <= set(frame.columns):
            columns[head.name] = join_one_hot(frame, head.classes).rename(", ".join(head.classes))
    if columns or len(heads.classified) > 1:
        return columns
    (name,) = heads.classified
    likely = [c for c in frame.columns if c not in (key, "person") and _are_classes(frame[c], heads[name])]
    return {name: frame[likely[0]]} if len(likely) == 1 else {}


def _joint_column(frame: pd.DataFrame, heads: Heads, columns: Collection[str]) -> str | None:
    """The column of joint classes: the contest's, or one of a file of `predict` or an oof.csv without a head."""
    if ANSWER in frame.columns and heads.classified == contest_heads().names:
        return ANSWER
    return PREDICTED if PREDICTED in frame.columns and not columns else None


def _are_classes(cells: pd.Series, head: Head) -> bool:
    return bool(cells.isin([*head.classes, ""]).all() and (cells != "").any())


def _scored_heads(
    file: Path, frame: pd.DataFrame, heads: Heads, columns: Mapping[str, pd.Series]
) -> tuple[Heads, list[str]]:
    """The heads with labels, and notes on the others."""
    if not columns:
        raise DataError(
            f"{file} has no labels of {', '.join(heads.classified)}; found {', '.join(frame.columns)}, expected a "
            "column per head."
        )
    lacking = [name for name in heads.classified if name not in columns]
    notes = [f"{file} has no labels of {', '.join(lacking)}, which are not scored."] if lacking else []
    renamed = [
        f"The labels of {head} are those of {c.name} in {file}." for head, c in columns.items() if head != c.name
    ]
    return Heads([heads[name] for name in heads.classified if name in columns]), [*notes, *renamed]


def _read_heads(file: Path, columns: Mapping[str, pd.Series], heads: Heads) -> np.ndarray:
    """(N, heads) class numbers."""
    return np.stack([_read_labels(file, columns[head.name], head) for head in heads], axis=1)


def _read_labels(file: Path, cells: pd.Series, head: Head) -> np.ndarray:
    """(N,) class numbers of a column: classes by name, or by the number behind them; raises DataError for others."""
    numbers = {cell: _read_label(cell, head) for cell in cells.unique()}
    for line, cell in cells.items():
        if isinstance(found := numbers[cell], DataError):
            raise DataError(f"{file}, line {line}, column {cells.name}: {found}")
    return cells.map(numbers).to_numpy(np.int64)


def _read_label(cell: str | DataError, head: Head) -> int | DataError:
    if isinstance(cell, DataError):
        # of one-hot columns
        return cell
    try:
        return head.encode(head.read(cell)[0])
    except DataError as fault:
        if cell in head.classes:
            return head.encode(cell)
        bands = "; if these are bands of numbers, name the run with --run" * (not head.bounds and _is_number(cell))
        return DataError(f"{str(fault).removesuffix('.')}{bands}.")


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdecimal()


def _read_folder(folder: Path, heads: Heads) -> Truth:
    """The labels of a folder per class, or of a contest folder."""
    with warnings.catch_warnings():
        # it is about folds
        warnings.filterwarnings("ignore", f".*{re.escape(NO_PERSONS)}", FastmaskWarning)
        table = read_data(Config(data=str(folder)))
    frame = table.frame.drop(columns=["path", "person", "source"])
    columns = _label_columns(frame, "", heads)
    scored, notes = _scored_heads(folder, frame, heads, columns)
    y = _read_heads(folder, columns, scored)
    known = bool((table.frame["person"] != table.frame["path"]).any())
    return Truth(folder, table.frame["path"].tolist(), scored, y, table.groups if known else None, notes=notes)
