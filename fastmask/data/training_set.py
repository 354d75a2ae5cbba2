"""Training set: the photos that a fold trains on, their labels, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from fastmask.config import MOST_WEIGHT
from fastmask.data.sampler import Sampler, make_sampler
from fastmask.data.table import Table
from fastmask.heads import Heads
from fastmask.labels import join_parts, soft_labels
from fastmask.system.errors import UsageError


@dataclass(frozen=True)
class TrainingSet:
    """Photos to train on.

    `photos` are paths, `labels` (N, heads) int64 class numbers or float32 soft labels, (N, classes of all heads) or in
    two parts, see `fastmask.labels`, `persons` (N,) who is in each photo, by default another in each. A `sampler` says
    which photos an epoch has; without one it has each once.

    >>> train = fm.TrainingSet(["a.jpg", "b.jpg"], np.array([[0, 1, 2], [2, 0, -1]]))
    >>> train.soft(fm.contest_heads())
    array([[1., 0., 0., 0., 1., 0., 0., 1.],
           [0., 0., 1., 1., 0., 0., 0., 0.]], dtype=float32)
    """

    photos: Sequence[str]
    labels: np.ndarray
    persons: np.ndarray | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        parts = [self.labels, self.persons, None if self.sampler is None else self.sampler.groups]
        if any(part is not None and len(part) != len(self) for part in parts):
            raise UsageError("A training set needs a row of labels per photo, and a person per photo or none.")

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def photos_per_epoch(self) -> int:
        """The number of photos of an epoch."""
        return len(self) if self.sampler is None else len(self.sampler)

    def classes(self, heads: Heads) -> np.ndarray:
        """(N, heads) class numbers; for soft labels the class of most weight, -1 where there is none."""
        return heads.harden(self.soft(heads)) if self.labels.dtype.kind == "f" else self.labels

    def soft(self, heads: Heads) -> np.ndarray:
        """(N, classes of all heads) float32 soft labels."""
        return join_parts(soft_labels(torch.from_numpy(self.labels), heads)).numpy()

    def join(self, other: TrainingSet, heads: Heads) -> TrainingSet:
        """The photos of both, with soft labels."""
        both = [soft_labels(torch.from_numpy(each.labels), heads) for each in (self, other)]
        if any(labels.dim() == 3 for labels in both):
            # labels without parts are all own
            both = [labels if labels.dim() == 3 else F.pad(labels[:, None], (0, 0, 0, 1)) for labels in both]
        persons = np.concatenate([self._persons, other._persons])
        return TrainingSet([*self.photos, *other.photos], torch.cat(both).numpy(), persons)

    def sample(
        self,
        heads: Heads,
        target: str | None = None,
        per_person: int | Mapping[str, int] | None = None,
        weights: np.ndarray | Mapping[str, float] | None = None,
    ) -> TrainingSet:
        """The same photos with the sampler of `make_sampler`."""
        sampler = make_sampler(heads, self.classes(heads), self._persons, target, per_person, weights)
        return replace(self, sampler=sampler)

    @property
    def _persons(self) -> np.ndarray:
        return np.array(self.photos, object) if self.persons is None else self.persons


def training_set(table: Table, rows: np.ndarray, scored: bool = False) -> TrainingSet:
    """The rows (N,) bool of a table with their training labels, or those of the score.

    >>> folds = fm.assign_folds(table, 3)
    >>> train = fm.training_set(table, folds != 0)
    >>> train.labels.shape == ((folds != 0).sum(), 3)
    True
    """
    photos = [str(table.root / path) for path in table.frame["path"][rows]]
    return TrainingSet(photos, (table.y if scored else table.train_y)[rows], table.persons[rows])


def dropped_rows(table: Table, drop: Mapping[str, Sequence[tuple[float, float]]] | None) -> np.ndarray:
    """(N,) whether training drops a photo: {head: ranges of the number of its bands}, ends included."""
    rows = np.zeros(len(table), bool)
    for name, ranges in (drop or {}).items():
        if name not in table.heads.names:
            raise UsageError(
                f"Setting drop names the head {name}, and the heads are {', '.join(table.heads.names)}; --drop-ages is "
                "of age, for others --set drop.HEAD=[[LOW, HIGH]]."
            )
        if table.heads[name].bounds is None:
            raise UsageError(f"Setting drop: head {name} is not made of bands of a number, so no range can be dropped.")
        numbers = table.frame[f"{name}_value"]
        rows |= np.any([numbers.between(low, high) for low, high in ranges], axis=0)
    return rows


def draw_weights(table: Table, column: str) -> np.ndarray:
    """(N,) the numbers in a column of a table, by which photos are drawn; raises UsageError if they are not above 0."""
    if column not in table.frame:
        raise UsageError(
            f"Setting draw_weights names the column {column!r}, which the table does not have; give it where the table "
            "is read, as in read_csv(..., draw_weights=...), or name a YAML file of classes."
        )
    weights = pd.to_numeric(table.frame[column], errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~((weights > 0) & (weights <= MOST_WEIGHT)))
    if len(wrong):
        raise UsageError(
            f"Column {column!r} of draw weights has {table.frame[column].iat[wrong[0]]!r} for "
            f"{table.frame['path'].iat[wrong[0]]}; expected a number above 0, up to {MOST_WEIGHT:.0f}."
        )
    return weights


def check_weights_differ(trains: Sequence[TrainingSet]) -> None:
    """Raise UsageError if the draw weights of the samplers draw all photos equally often."""
    weights = [train.sampler.weights for train in trains if train.sampler is not None]
    if all(each is not None and np.ptp(each) == 0 for each in weights):
        raise UsageError(
            "Setting draw_weights gives all photos to train on the same weight, so it has no effect: leave it out."
        )


def check_limits(trains: Sequence[TrainingSet], heads: Heads, per_person: int | Mapping[str, int] | None) -> None:
    """Raise UsageError if one of the counts per person leaves each of the training sets as it is."""
    if per_person is None:
        return
    for name, count in (per_person if isinstance(per_person, Mapping) else {"": per_person}).items():
        samplers = [train.sample(heads, per_person={name: count} if name else count).sampler for train in trains]
        if not any(sampler is not None and sampler.limits for sampler in samplers):
            of = f" of {name}" if name else ""
            raise UsageError(
                f"Setting per_person is {count}{of}, but no person has more photos{of} to train on; give less, leave "
                "it out, or name the column of persons (--group-column)."
            )


def class_weights(labels: np.ndarray, heads: Heads) -> list[list[float] | None]:
    """A row of weights per head that makes each class count the same: photos / (classes x photos of the class).

    scikit-learn's "balanced", with soft labels (N, classes of all heads) in place of counts. A class without labels has
    weight 1; None is for a distribution over a number, and for a head that merges the classes of another.
    """
    rows: list[list[float] | None] = []
    for head, part in zip(heads, heads.split(labels), strict=True):
        counts = part.sum(axis=0, dtype=np.float64)
        there = counts > 0
        balanced = np.where(there, counts.sum() / (max(there.sum(), 1) * np.where(there, counts, 1)), 1.0)
        rows.append(None if head.spread is not None or head.name in heads.merged else balanced.tolist())
    return rows
