"""Extra: photos of another source that are trained on and never validated, with whatever labels they have."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.config import MOST_WEIGHT
from fastmask.data.cache import digest_photos
from fastmask.data.readers import read_csv
from fastmask.data.table import Table
from fastmask.data.training_set import TrainingSet, training_set
from fastmask.heads import Heads, number_of
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_strings

WEIGHT, PERSON = "weight", "person"


@dataclass(frozen=True)
class Extra:
    """Photos to train on beside those of a table.

    `table` has their labels, "" where unknown, `weights` (N,) how much each counts beside a photo of the data itself,
    `without` (N, folds) which folds' training leaves it out, because it is a photo, or shows a person, of that fold.
    `soft` (folds, N, classes of all heads) are soft labels in place of the table's, each fold's own.
    """

    table: Table
    weights: np.ndarray
    without: np.ndarray
    soft: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    def training_set(self, fold: int) -> TrainingSet:
        """What a fold trains on of it: not the photos that it leaves out, nor those that would teach it nothing."""
        labels = self._labels(fold)
        kept = labels.any(axis=1)
        if self.without.size:
            kept &= ~self.without[:, fold]
        photos = [str(self.table.photo(row)) for row in np.flatnonzero(kept).tolist()]
        return TrainingSet(photos, labels[kept])

    @property
    def teaches(self) -> np.ndarray:
        """(N,) whether a photo has a label, and a weight, in any fold."""
        each = [self._labels(fold).any(axis=1) for fold in range(1 if self.soft is None else len(self.soft))]
        return np.any(each, axis=0)

    def _labels(self, fold: int) -> np.ndarray:
        """(N, classes of all heads) float32 soft labels by their weights."""
        labels = self.soft[fold] if self.soft is not None else self._hard
        return (labels * self.weights[:, None]).astype(np.float32)

    @cached_property
    def _hard(self) -> np.ndarray:
        return training_set(self.table, np.full(len(self), True)).soft(self.table.heads)

    def select(self, rows: np.ndarray) -> Extra:
        """Some of the photos, (N,) bool."""
        kept = np.flatnonzero(rows)
        soft = None if self.soft is None else self.soft[:, kept]
        return Extra(self.table.select(kept), self.weights[kept], self.without[kept], soft)

    def digests(self) -> list[str]:
        """SHA-256 of each photo."""
        return digest_photos([self.table.photo(row) for row in range(len(self))])

    def digest(self, photos: Sequence[str]) -> str:
        """SHA-256 of all that training takes from it: labels, weights, and `photos`, which are their digests."""
        made = hashlib.sha256("".join(photos).encode())
        made.update((self.table.train_y if self.soft is None else self.soft).tobytes())
        made.update(self.weights.tobytes() + self.without.tobytes())
        return made.hexdigest()

    def kept_apart(self, table: Table, folds: np.ndarray, digests: Sequence[str], own: Sequence[str]) -> Extra:
        """The same photos, each kept out of the fold that validates the same photo or person.

        `digests` are those of the table's photos, `own` of these.
        """
        without = np.zeros((len(self), int(folds.max()) + 1), bool)
        for theirs, ours in ((table.persons, self.table.persons), (digests, own)):
            lies_in: dict[str, set[int]] = {}
            for name, fold in zip(theirs, folds.tolist(), strict=True):
                lies_in.setdefault(name, set()).add(fold)
            for row, name in enumerate(ours):
                without[row, list(lies_in.get(name, ()))] = True
        return replace(self, without=without)

    def frame(self) -> pd.DataFrame:
        """What extra.csv of a run holds: one row a photo with its path, person, and the folds that leave it out."""
        left = [" ".join(map(str, np.flatnonzero(row))) for row in self.without]
        return pd.DataFrame({"path": self.table.frame["path"], "person": self.table.persons, "without": left})


def read_extra(
    file: str | Path,
    heads: Heads,
    images: str | Path | None = None,
    weight: float = 1.0,
    group: str | None = None,
) -> Extra:
    """Read a CSV of photos for training alone: path, a column for any of the heads, and person and weight if you like.

    `group` is the column that says whose photo it is, by default person; without one there is a warning. A head that is
    bands of a number takes the number. An empty cell, and a head without a column, is a label that nobody knows. The
    weight of a photo is its cell in the column weight, or 1, times `weight`. `images` is the folder that the paths
    start from, by default the CSV's own. Raises DataError naming line and column of what cannot be used.
    """
    columns = read_strings(Path(file), ("path",))
    known = [head for head in heads if head.name in columns and head.spread is None]
    if not known:
        raise UsageError(f"{file} has no column of {', '.join(heads.names)}, so there is nothing to learn from it.")
    group = group if group in columns else PERSON
    if group not in columns:
        warnings.warn(
            f"{file} has no column {group!r}, so nobody knows whether the data has the same people: they would be "
            "trained on in the fold that is judged on them.",
            FastmaskWarning,
            stacklevel=2,
        )
    with warnings.catch_warnings():
        # said above, as it matters here
        warnings.filterwarnings("ignore", "No column of .* says whose photo", FastmaskWarning)
        group = group if group in columns else None
        table = read_csv(file, Heads(known), images, group, image_column="path", option="--extra-images")
    weights = np.full(len(table), weight)
    if WEIGHT in columns:
        weights *= [_weight(file, line, cell) for line, cell in columns[WEIGHT].items()]
    return Extra(_with_all_heads(table, heads), weights, np.zeros((len(table), 0), bool))


def _weight(file: str | Path, line: object, cell: str) -> float:
    try:
        weight = float(cell or 1)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MOST_WEIGHT:
        raise DataError(
            f"{file}, line {line}, column {WEIGHT}: found {cell!r}, expected a number from 0 to {MOST_WEIGHT:.0f}."
        )
    return weight


def _with_all_heads(table: Table, heads: Heads) -> Table:
    """The table with every head: "" where it had no such column, but a number where it is behind another head."""
    frame = table.frame.assign(**{head.name: "" for head in heads if head.name not in table.frame})
    for head in heads:
        value = f"{head.name}_value"
        if head.bounds and value not in frame:
            frame[value] = math.nan
        beside = number_of(head.name)
        if head.bounds and beside in heads.names:
            # a number that the data itself never has is no class of the distribution
            texts = frame[value].round().map(lambda number: "" if math.isnan(number) else f"{number:.0f}")
            frame[beside] = texts.where(texts.isin(heads[beside].classes), "")
    return replace(table, frame=frame, heads=heads)
