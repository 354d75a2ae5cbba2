"""Extra: photos of another source that are trained on and never validated; any of their labels may be missing."""

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
from fastmask.data.auxiliary import auxiliary_labels
from fastmask.data.columns import find_person_column
from fastmask.data.digests import digest_photos
from fastmask.data.groups import connect_tables
from fastmask.data.readers import read_csv
from fastmask.data.seen import Hashes
from fastmask.data.table import OnFault, Table, raise_fault
from fastmask.data.training_set import TrainingSet, draw_weights, training_set
from fastmask.heads import Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError, cell_error
from fastmask.system.files import read_strings

WEIGHT, PERSON = "weight", "person"


@dataclass(frozen=True)
class Extra:
    """Photos to train on in addition to those of a table.

    `table` has their labels, "" where unknown, `weights` (N,) the weight of each relative to a photo of the data,
    `excluded` (N, folds) the folds whose training excludes it, because they validate the same photo or person. `soft`
    (folds, N, classes of all heads) are soft labels of each fold in place of the table's, `seen` hashes of what the
    models that made these have seen. If they are versions of the table's photos, `origins` (N,) are the rows of these.

    >>> frame = pd.DataFrame({"path": table.frame["path"][:2], "person": ["x", "y"], "mask": ["wear", ""]})
    >>> frame.to_csv("extra.csv", index=False)
    >>> extra = fm.read_extra("extra.csv", table.heads, images=table.root, weight=0.5)
    >>> extra.weights, extra.table.y.tolist()
    (array([0.5, 0.5]), [[0, -1, -1], [-1, -1, -1]])
    """

    table: Table
    weights: np.ndarray
    excluded: np.ndarray
    soft: np.ndarray | None = None
    seen: Sequence[Hashes] = ()
    origins: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    def training_set(self, fold: int, whole: bool = False) -> TrainingSet:
        """The photos that a fold, or with `whole` its refit, trains on: see `trained_rows`."""
        kept = self.trained_rows(fold, whole)
        photos = [str(self.table.photo(row)) for row in np.flatnonzero(kept).tolist()]
        return TrainingSet(photos, self._labels(fold)[kept], self.table.persons[kept])

    def draw_weights(self, fold: int, column: str, whole: bool = False) -> np.ndarray:
        """The numbers in a column of draw weights of the photos of `training_set`; 1 without the column."""
        weights = draw_weights(self.table, column) if column in self.table.frame else np.ones(len(self))
        return weights[self.trained_rows(fold, whole)]

    def trained_rows(self, fold: int, whole: bool = False) -> np.ndarray:
        """(N,) whether a fold trains on a photo: it does not exclude it, and the photo has a label and a weight.

        A refit, `whole`, which trains on all photos of the table, trains on all their versions.
        """
        labelled = np.asarray(self._labels(fold).any(axis=1))
        if whole and self.origins is not None:
            return labelled
        return labelled & ~self.excluded[:, fold] if self.excluded.size else labelled

    @property
    def origin_rows(self) -> np.ndarray:
        """(N,) `origins`, of versions."""
        return np.zeros(0, int) if self.origins is None else self.origins

    @property
    def useful(self) -> np.ndarray:
        """(N,) whether a photo has a label and a weight in any fold."""
        each = [self._labels(fold).any(axis=1) for fold in range(1 if self.soft is None else len(self.soft))]
        return np.any(each, axis=0)

    def _labels(self, fold: int) -> np.ndarray:
        """(N, classes of all heads) float32 soft labels times the weights."""
        labels = self.soft[fold] if self.soft is not None else self._table_labels
        return (labels * self.weights[:, None]).astype(np.float32)

    @cached_property
    def _table_labels(self) -> np.ndarray:
        return training_set(self.table, np.full(len(self), True)).soft(self.table.heads)

    def select(self, rows: np.ndarray) -> Extra:
        """Some of the photos, (N,) bool."""
        kept = np.flatnonzero(rows)
        soft = None if self.soft is None else self.soft[:, kept]
        origins = None if self.origins is None else self.origins[kept]
        return Extra(self.table.select(kept), self.weights[kept], self.excluded[kept], soft, self.seen, origins)

    def digests(self) -> list[str]:
        """SHA-256 of each photo."""
        return digest_photos([self.table.photo(row) for row in range(len(self))])

    def digest(self, photos: Sequence[str]) -> str:
        """SHA-256 of all that training depends on: labels, weights, and `photos`, which are their digests."""
        made = hashlib.sha256("".join(photos).encode())
        made.update((self.table.train_y if self.soft is None else self.soft).tobytes())
        made.update(self.weights.tobytes() + self.excluded.tobytes())
        return made.hexdigest()

    def exclude_validated(
        self,
        table: Table,
        folds: np.ndarray,
        digests: Sequence[str],
        own: Sequence[str],
        versions: Sequence[tuple[Table, Sequence[str]]] = (),
    ) -> Extra:
        """The same photos, each excluded from the folds that validate the same photo or person.

        `digests` are those of the table's photos, `own` those of these photos. Each of the `versions` of the table,
        with its digests, is the same photo as its own.
        """
        tables, each = [table, *(one for one, _ in versions)], [digests, *(one for _, one in versions)]
        groups = connect_tables([*tables, self.table], [digest for one in (*each, own) for digest in one])
        lies_in = np.zeros((int(groups.max()) + 1, int(folds.max()) + 1), bool)
        validated = np.flatnonzero(folds >= 0)
        lies_in[groups[validated], folds[validated]] = True
        return replace(self, excluded=lies_in[groups[sum(map(len, tables)) :]])

    def frame(self) -> pd.DataFrame:
        """extra.csv of a run: one row per photo with its path, person, and the folds that exclude it."""
        left = [" ".join(map(str, np.flatnonzero(row))) for row in self.excluded]
        paths = self.table.frame["path"]
        if self.origins is not None:
            # which are the same in all versions
            paths = [self.table.photo(row).as_posix() for row in range(len(self))]
        return pd.DataFrame({"path": paths, "person": self.table.persons, "without": left})


def read_extra(
    file: str | Path,
    heads: Heads,
    images: str | Path | None = None,
    weight: float = 1.0,
    group: str | None = None,
    on_fault: OnFault = raise_fault,
    draw_weights: str | None = None,
) -> Extra:
    """Read a CSV of photos for training only: path, a column for any of the heads, and optionally person and weight.

    `group` is the column of persons, by default person; warns where there is none. A head of bands takes the number.
    An empty cell, or a head without a column, is an unknown label. The weight of a photo is its cell in the column
    weight, or 1, times `weight`; photos may be drawn by the column `draw_weights`. `images` is the folder that the
    paths start from, by default the CSV's. Raises DataError naming line and column of an invalid cell.

    >>> frame = pd.DataFrame({"path": table.frame["path"][:3], "person": "x", "gender": ["male", "female", ""]})
    >>> frame.to_csv("extra.csv", index=False)
    >>> extra = fm.read_extra("extra.csv", table.heads, images=table.root)
    >>> extra.table.y[:, 1].tolist()
    [0, 1, -1]
    """
    columns = read_strings(Path(file), ())
    named = set(columns.columns)
    known = [head for head in heads if (head.name in named or set(head.classes) <= named) and not head.is_auxiliary]
    if not known:
        raise UsageError(f"{file} has no column of {', '.join(heads.names)}, so there is nothing to learn from it.")
    group = group if group in columns else find_person_column(columns)
    if group is None:
        warnings.warn(
            f"{file} has no column {PERSON!r}, so a person of the data may be trained on in the fold that validates "
            "the same person.",
            FastmaskWarning,
            stacklevel=2,
        )
    with warnings.catch_warnings():
        # the warning above replaces it
        warnings.filterwarnings("ignore", "No column of .* names the person", FastmaskWarning)
        faults: list[DataError] = []
        table = read_csv(
            file,
            Heads(known),
            images,
            group,
            draw_weights=draw_weights if draw_weights in columns else None,
            on_fault=faults.append,
            option="--extra-images",
        )
    for fault in faults:
        on_fault(fault)
    kept = columns.drop(index=[fault.line for fault in faults])
    weights = np.full(len(table), weight)
    if WEIGHT in columns:
        weights *= [_read_weight(file, line, cell) for line, cell in kept[WEIGHT].items()]
    return Extra(_add_missing_heads(table, heads), weights, np.zeros((len(table), 0), bool))


def _read_weight(file: str | Path, line: object, cell: str) -> float:
    try:
        weight = float(cell or 1)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MOST_WEIGHT:
        raise cell_error(file, line, WEIGHT, cell, f"a number from 0 to {MOST_WEIGHT:.0f}")
    return weight


def _add_missing_heads(table: Table, heads: Heads) -> Table:
    """The table with all heads: "" for a head without a column, and the labels of the auxiliary heads."""
    frame = table.frame.assign(**{head.name: "" for head in heads if head.name not in table.frame})
    for head in heads:
        value = f"{head.name}_value"
        if head.bounds and value not in frame:
            frame[value] = math.nan
    return replace(table, frame=frame.assign(**auxiliary_labels(frame, heads)), heads=heads)
