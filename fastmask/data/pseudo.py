"""Pseudo-labels: predictions of the models of a run for photos without labels, for a student to learn from.

They are a folder: pseudo.json names the photos and the run, labels.csv has the predictions of each fold's model,
folds.csv the photos that this model has not seen. A student's fold learns only from the model of the same fold, so that
no information on the persons that it validates leaks through the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.extra import Extra
from fastmask.data.seen import Hashes, Validation, hash_names, hashes_to_text, text_to_hashes
from fastmask.data.table import OnFault, Table, raise_fault
from fastmask.heads import Heads
from fastmask.system.errors import DataError, MissingPhotoError, UsageError, cell_error, one_line
from fastmask.system.files import read_json, read_rows, stays_below, write_csv, write_json

MARK, LABELS, FOLDS = "pseudo.json", "labels.csv", "folds.csv"
# the fold of a person that all models have seen
SEEN = -1
# of probabilities, by half precision and means
_ROUNDING = 1e-3
_AGAIN = "make the folder again with fastmask pseudo."


@dataclass(frozen=True)
class Pseudo:
    """Photos below `root`, the (folds, N, classes) predictions of each fold's model, and the photos it has not seen.

    `folds` has a row per photo of the teacher: path, person, and the fold of the model that has not seen it, or SEEN.
    `seen` are hashes (`data.seen`) of all that the model of each fold has seen, including before that training.
    `failed` are photos that could not be predicted, with reasons, and `notes` sentences about the photos.
    """

    root: Path
    paths: list[str]
    heads: Heads
    probabilities: np.ndarray
    folds: pd.DataFrame
    seen: Sequence[Hashes] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def write(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        """Write it into a folder; pseudo.json last, without which the folder is not complete."""
        columns = {
            f"fold{fold}:{column}": values
            for fold, each in enumerate(self.probabilities)
            for column, values in zip(self.heads.columns, each.T, strict=True)
        }
        write_csv(folder / LABELS, pd.DataFrame({"path": self.paths, **columns}))
        write_csv(folder / FOLDS, self.folds[["path", "person", "fold"]])
        of = {"photos": str(self.root.absolute()), "heads": self.heads.to_plain(), "folds": len(self.probabilities)}
        write_json(folder / MARK, {**of, **made_by, "seen": [hashes_to_text(each) for each in self.seen]})

    def soft(self, heads: Heads, least: float) -> np.ndarray:
        """(folds, N, classes of all `heads`) soft labels.

        A head is unknown where its largest probability is below `least`, or where the teacher does not have it; so is a
        distribution over a number. Raises UsageError where the teacher has none of the heads, or other classes.
        """
        known = [head for head in heads if head.name in self.heads.names and head.spread is None]
        other = next((head for head in known if self.heads[head.name].classes != head.classes), None)
        if not known or other is not None:
            what = f"other classes of {other.name}" if other else f"none of {', '.join(heads.names)}"
            raise UsageError(f"The pseudo-labels have {what}; take a teacher that was trained on the same heads.")
        labels = np.zeros((*self.probabilities.shape[:2], heads.n_logits), np.float32)
        for head, place in zip(heads, heads.split(labels), strict=True):
            part = self.heads.probabilities_for(head, self.probabilities)
            if part is not None:
                place[:] = np.where(part.max(-1, keepdims=True) >= least, part, 0)
        return labels

    def extra(self, heads: Heads, weight: float, least: float) -> Extra:
        """The photos as `Extra`, with the soft labels of each fold."""
        blank = {head.name: "" for head in heads}
        numbers = {f"{head.name}_value": np.nan for head in heads if head.bounds}
        frame = pd.DataFrame({"path": self.paths, "person": self.paths, "source": "pseudo"}).assign(**blank, **numbers)
        count = len(self.paths)
        table = Table(frame, heads, self.root)
        seen = [self.seen_by(fold) for fold in range(len(self.probabilities))]
        return Extra(table, np.full(count, weight), np.zeros((count, 0), bool), self.soft(heads, least), seen)

    def check_unseen(self, validation: Validation) -> None:
        """Raise UsageError if the model of a fold has seen a photo, or a person, that the fold validates."""
        count, here = len(self.probabilities), int(validation.folds.max()) + 1
        if here != count:
            raise UsageError(
                f"The pseudo-labels have {count} folds, this run {here}; use those of the teacher: --folds-file with "
                "its folds.csv."
            )
        for fold in validation.chosen_folds:
            wrong = validation.find(self.seen_by(fold), fold)
            if wrong is not None:
                raise UsageError(
                    f"The teacher of fold {fold}, which validates {wrong}, has seen it, so the score would be too "
                    "good; use the folds of the teacher: --folds-file with its folds.csv."
                )

    def seen_by(self, fold: int) -> Hashes:
        """Hashes of the photos and persons that the model of a fold has seen."""
        # a person in two folds has been seen by the models of both
        rows = self.folds[self.folds["fold"] != fold]
        named = hash_names(persons=rows["person"], paths=rows["path"])
        return named | self.seen[fold] if self.seen else named


def read_pseudo(folder: str | Path, on_fault: OnFault = raise_fault) -> Pseudo:
    """Read a folder of pseudo-labels; raises UsageError if it is not one, DataError naming what is invalid.

    The labels are (folds, N, classes of all heads) probabilities, of each fold's model for each photo.
    `on_fault` is called with a MissingPhotoError for each photo that does not exist, which is then left out.

    >>> made = fm.make_pseudo(run, "data/eval/images", "labels")
    >>> pseudo = fm.read_pseudo("labels")
    >>> pseudo.paths == made.paths, pseudo.probabilities.shape
    (True, (2, 28, 8))
    """
    folder = Path(folder)
    mark, labels = folder / MARK, folder / LABELS
    if not mark.is_file():
        raise UsageError(f"{folder} has no {MARK}, so it holds no pseudo-labels; make some with fastmask pseudo.")
    plain = read_json(mark)
    if not isinstance(plain, dict) or not isinstance(plain.get("photos"), str) or type(plain.get("folds")) is not int:
        raise DataError(f"{mark} does not name its photos and folds; {_AGAIN}")
    try:
        heads = Heads.from_plain(plain.get("heads", []))
    except UsageError as error:
        raise DataError(f"{mark}: {error}") from error
    if not 1 <= plain["folds"] <= 9999:
        raise DataError(f"{mark} has {plain['folds']} folds; expected 1 to 9999.")
    columns = [f"fold{fold}:{column}" for fold in range(plain["folds"]) for column in heads.columns]
    cells = _read_rows(labels, ["path", *columns])
    probabilities = _read_probabilities(labels, cells, columns).reshape(len(cells), plain["folds"], heads.n_logits)
    for head, part in zip(heads, heads.split(probabilities), strict=True):
        wrong = np.flatnonzero((abs(part.sum(-1) - 1) > _ROUNDING * len(head.classes)).any(1))
        if len(wrong):
            raise DataError(f"{labels}, line {cells.index[wrong[0]]}: the {head.name} columns do not sum to 1.")
    root = Path(plain["photos"])
    kept = _find_existing(folder, cells["path"], root, on_fault)
    cells, probabilities, paths = cells[kept], probabilities[kept], cells["path"][kept].tolist()
    folds, seen = _read_folds(folder / FOLDS, plain["folds"]), _read_seen(mark, plain)
    return Pseudo(root, paths, heads, np.moveaxis(probabilities, 1, 0), folds, seen)


def _read_seen(mark: Path, plain: Mapping[str, Any]) -> list[Hashes]:
    """What the model of each fold has seen; nothing in folders of earlier versions."""
    texts = plain.get("seen", [])
    try:
        if not isinstance(texts, list) or len(texts) not in (0, plain["folds"]):
            raise ValueError("found another number of folds")
        return [text_to_hashes(text) for text in texts]
    except (TypeError, ValueError) as error:
        raise DataError(f"{mark} does not say what the teacher has seen ({one_line(error)}); {_AGAIN}") from error


def _read_rows(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV of the folder with one row or more."""
    if not file.is_file():
        raise DataError(f"{file} is missing or not a plain file; restore it, or {_AGAIN}")
    return read_rows(file, columns)


def _read_folds(file: Path, count: int) -> pd.DataFrame:
    frame = _read_rows(file, ["path", "person", "fold"])
    folds = frame["fold"].where(frame["fold"].str.fullmatch(f"{SEEN}|[0-9]{{1,4}}"), str(count)).astype(int)
    for line in frame.index[folds >= count]:
        raise cell_error(file, line, "fold", frame["fold"][line], f"a fold from 0 to {count - 1}, or {SEEN}")
    return frame.assign(fold=folds)


def _find_existing(folder: Path, paths: pd.Series, root: Path, on_fault: OnFault) -> np.ndarray:
    """(N,) whether each photo exists; raises DataError unless each path is the only one of a photo below the root."""
    existing = np.full(len(paths), True)
    for line in paths.index[paths.duplicated()]:
        raise DataError(f"{folder / LABELS}, line {line}, column path: found {paths[line]!r} a second time.")
    for row, (line, path) in enumerate(paths.items()):
        if not path or not stays_below(Path(path)):
            raise cell_error(folder / LABELS, line, "path", path, f"a photo below {root}")
        if not (root / path).is_file():
            existing[row] = False
            message = f"{root / path} is missing; put the photos of {folder} back, or {_AGAIN}"
            on_fault(MissingPhotoError(message, path))
    return existing


def _read_probabilities(file: Path, cells: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """(N, columns) probabilities; raises DataError naming an invalid cell."""
    values = cells[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    for row, place in np.argwhere(~((values >= 0) & (values <= 1 + _ROUNDING))):
        column = columns[place]
        raise cell_error(file, cells.index[row], column, cells[column].iloc[row], "a probability from 0 to 1")
    return np.asarray(values)
