"""Pseudo-labels: what the models of a run say of photos that nobody has labelled, for a student to learn from.

A folder holds them: pseudo.json says of which photos and by what, labels.csv what each fold's model says, folds.csv
whom that model has not seen. A student's fold learns only from the model of the same fold, so that nothing of the
persons that it is judged on comes back to it by way of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.extra import Extra
from fastmask.data.table import Table
from fastmask.heads import Heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_json, read_strings, stays_below, write_csv, write_json

MARK, LABELS, FOLDS = "pseudo.json", "labels.csv", "folds.csv"
# the fold of whom all models have seen
SEEN = -1
# half precision and means round
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Pseudo:
    """Photos below `root`, what the model of each fold says of them, (folds, N, classes), and whom it has not seen.

    `folds` has a row a photo of the teacher's: path, person, and the fold whose model has not seen it; SEEN: all have.
    """

    root: Path
    paths: list[str]
    heads: Heads
    probabilities: np.ndarray
    folds: pd.DataFrame

    def write(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        """Write it into a folder; pseudo.json last, without which nobody takes it for whole."""
        columns = {
            f"fold{fold}:{column}": values
            for fold, each in enumerate(self.probabilities)
            for column, values in zip(self.heads.columns, each.T, strict=True)
        }
        write_csv(folder / LABELS, pd.DataFrame({"path": self.paths, **columns}))
        write_csv(folder / FOLDS, self.folds[["path", "person", "fold"]])
        of = {"photos": str(self.root.absolute()), "heads": self.heads.to_plain(), "folds": len(self.probabilities)}
        write_json(folder / MARK, {**of, **made_by})

    def soft(self, heads: Heads, least: float) -> np.ndarray:
        """(folds, N, classes of all `heads`) soft labels.

        A head is unknown where its most probable class is less probable than `least`, and where the teacher has no such
        head; so is a distribution over a number. Raises UsageError where the teacher has none of the heads, or one of
        other classes.
        """
        known = [head for head in heads if head.name in self.heads.names and head.spread is None]
        other = next((head for head in known if self.heads[head.name].classes != head.classes), None)
        if not known or other is not None:
            what = f"other classes of {other.name}" if other else f"none of {', '.join(heads.names)}"
            raise UsageError(f"The pseudo-labels have {what}; take a teacher that was trained on the same heads.")
        labels = np.zeros((*self.probabilities.shape[:2], heads.n_logits), np.float32)
        parts = self.heads.split(self.probabilities)
        for head, place in zip(heads, heads.split(labels), strict=True):
            if head in known:
                part = parts[self.heads.position(head.name)]
                place[:] = np.where(part.max(-1, keepdims=True) >= least, part, 0)
        return labels

    def extra(self, heads: Heads, weight: float, least: float) -> Extra:
        """The photos to train on beside a table's, by soft labels of their own for each fold."""
        blank = {head.name: "" for head in heads}
        numbers = {f"{head.name}_value": np.nan for head in heads if head.bounds}
        frame = pd.DataFrame({"path": self.paths, "person": self.paths, "source": "pseudo"}).assign(**blank, **numbers)
        count = len(self.paths)
        table = Table(frame, heads, self.root)
        return Extra(table, np.full(count, weight), np.zeros((count, 0), bool), self.soft(heads, least))

    def check_unseen(self, table: Table, folds: np.ndarray, group: str) -> None:
        """Raise UsageError if the model of a fold has seen a photo, or a person, that the fold is judged on."""
        if int(folds.max()) + 1 != len(self.probabilities):
            raise UsageError(
                f"The pseudo-labels are of {len(self.probabilities)} folds, here are {int(folds.max()) + 1}; deal them "
                "as the teacher's: --folds-file with its folds.csv."
            )
        for column in ("path", "person") if group == "person" else ("path",):
            own = table.frame[column].to_numpy()
            theirs: dict[str, int] = {}
            for name, fold in zip(self.folds[column], self.folds["fold"].tolist(), strict=True):
                # who is of two folds has been seen by the models of both
                theirs[name] = fold if theirs.get(name, fold) == fold else SEEN
            wrong = next((name for name, fold in zip(own, folds, strict=True) if theirs.get(name, fold) != fold), None)
            if wrong is not None:
                raise UsageError(
                    f"The fold that {column} {wrong} validates here is another than the teacher's, which has seen it: "
                    "the score would flatter. Deal the folds as the teacher's: --folds-file with its folds.csv."
                )


def read_pseudo(folder: str | Path) -> Pseudo:
    """Read a folder of pseudo-labels; raises UsageError where it is none, DataError naming what of it is broken."""
    folder = Path(folder)
    if not (folder / MARK).is_file():
        raise UsageError(f"{folder} is no folder of pseudo-labels (it has no {MARK}); make one: fastmask pseudo.")
    plain = read_json(folder / MARK)
    if not isinstance(plain, dict) or not isinstance(plain.get("photos"), str) or type(plain.get("folds")) is not int:
        raise DataError(f"{folder / MARK} does not say of which photos and folds it is; make it anew: fastmask pseudo.")
    try:
        heads = Heads.from_plain(plain.get("heads", []))
    except UsageError as error:
        raise DataError(f"{folder / MARK}: {error}") from error
    if not 2 <= plain["folds"] <= 9999:
        raise DataError(f"{folder / MARK} says that it is of {plain['folds']} folds; expected 2 to 9999.")
    columns = [f"fold{fold}:{column}" for fold in range(plain["folds"]) for column in heads.columns]
    cells = _rows(folder / LABELS, ["path", *columns])
    probabilities = _numbers(folder / LABELS, cells, columns).reshape(len(cells), plain["folds"], heads.n_logits)
    for head, part in zip(heads, heads.split(probabilities), strict=True):
        wrong = np.flatnonzero((abs(part.sum(-1) - 1) > _ROUNDING * len(head.classes)).any(1))
        if len(wrong):
            raise DataError(
                f"{folder / LABELS}, line {cells.index[wrong[0]]}: the {head.name} columns do not sum to 1."
            )
    root, paths = Path(plain["photos"]), cells["path"].tolist()
    _check_paths(folder, cells["path"], root)
    return Pseudo(root, paths, heads, np.moveaxis(probabilities, 1, 0), _read_folds(folder / FOLDS, plain["folds"]))


def _rows(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV of the folder, of a row or more."""
    if not file.is_file():
        raise DataError(f"{file} is not there, or no plain file; restore it, or make the folder anew: fastmask pseudo.")
    frame = read_strings(file, columns)
    if frame.empty:
        raise DataError(f"{file} has no rows; restore it, or make the folder anew: fastmask pseudo.")
    return frame


def _read_folds(file: Path, count: int) -> pd.DataFrame:
    frame = _rows(file, ["path", "person", "fold"])
    folds = frame["fold"].where(frame["fold"].str.fullmatch(f"{SEEN}|[0-9]{{1,4}}"), str(count)).astype(int)
    odd = folds >= count
    if odd.any():
        line = frame.index[odd][0]
        raise DataError(
            f"{file}, line {line}, column fold: found {frame['fold'][line]!r}, expected one of the {count} folds from "
            f"0 on, or {SEEN}."
        )
    return frame.assign(fold=folds)


def _check_paths(folder: Path, paths: pd.Series, root: Path) -> None:
    """Raise DataError unless each path is a photo's, below the root, and none stands twice."""
    twice = paths.duplicated()
    if twice.any():
        line = paths.index[twice][0]
        raise DataError(f"{folder / LABELS}, line {line}, column path: found {paths[line]!r} a second time.")
    for line, path in paths.items():
        if not path or not stays_below(Path(path)):
            raise DataError(
                f"{folder / LABELS}, line {line}, column path: found {path!r}, expected a photo below {root}."
            )
        if not (root / path).is_file():
            raise DataError(f"{root / path} is not there; put the photos of {folder} back, or make it anew.")


def _numbers(file: Path, cells: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """(N, columns) probabilities; raises DataError naming a cell that is none."""
    values = cells[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~((values >= 0) & (values <= 1 + _ROUNDING))
    if bad.any():
        row, column = (int(where[0]) for where in bad.nonzero())
        raise DataError(
            f"{file}, line {cells.index[row]}, column {columns[column]}: found {cells[columns[column]].iloc[row]!r}, "
            "expected a probability from 0 to 1."
        )
    return np.asarray(values)
