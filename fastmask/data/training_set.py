"""Training set: the photos that a fold trains on, the labels that they are trained by, how often each is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastmask.data.table import Table
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.labels import soft_labels
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError


@dataclass(frozen=True)
class TrainingSet:
    """Photos to train on.

    `photos` are their paths, `labels` (N, heads) int64 class numbers or (N, classes of all heads) float32 soft labels.
    With `chances` (N,), which sum to 1, a pass draws as many photos as there are, each time by these chances; without,
    each photo once.
    """

    photos: Sequence[str]
    labels: np.ndarray
    chances: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.photos) == len(self.labels) == (len(self) if self.chances is None else len(self.chances)):
            raise UsageError("A training set has a row of labels, and a chance if any has, for each photo.")

    def __len__(self) -> int:
        return len(self.photos)

    def classes(self, heads: Heads) -> np.ndarray:
        """(N, heads) class numbers: of soft labels the class of most weight, -1 where there is none."""
        return heads.harden(self.labels) if self.labels.dtype.kind == "f" else self.labels

    def soft(self, heads: Heads) -> np.ndarray:
        """(N, classes of all heads) float32 soft labels."""
        return soft_labels(torch.from_numpy(self.labels), heads).numpy()

    def joined(self, other: TrainingSet, heads: Heads) -> TrainingSet:
        """The photos of both, by soft labels."""
        labels = np.concatenate([self.soft(heads), other.soft(heads)])
        return replace(self, photos=[*self.photos, *other.photos], labels=labels)

    def balanced(self, heads: Heads, target: str = JOINT) -> TrainingSet:
        """The same photos, drawn so that every class of `target` (a head or "joint") is drawn alike.

        Photos whose class is unknown are drawn as often as without chances.
        """
        classes = target_of(heads, self.classes(heads), target)
        known = classes != UNKNOWN
        chances = np.ones(len(self))
        _, which, counts = np.unique(classes[known], return_inverse=True, return_counts=True)
        chances[known] = known.sum() / (len(counts) * counts[which])
        return replace(self, chances=chances / chances.sum())


def training_set(table: Table, rows: np.ndarray, scored: bool = False) -> TrainingSet:
    """Some rows of a table, (N,) bool, by their training labels, or by those that the score uses."""
    photos = [str(table.root / path) for path in table.frame["path"][rows]]
    return TrainingSet(photos, (table.y if scored else table.train_y)[rows])


def left_out(table: Table, drop: Mapping[str, Sequence[tuple[float, float]]] | None) -> np.ndarray:
    """(N,) whether a photo is not to be trained on, because the number behind a head lies in a range, ends included."""
    rows = np.zeros(len(table), bool)
    for name, ranges in (drop or {}).items():
        if table.heads[name].bounds is None:
            raise UsageError(f"Setting drop: head {name} has no number behind it, so no range of it can be left out.")
        numbers = table.frame[f"{name}_value"]
        rows |= np.any([numbers.between(low, high) for low, high in ranges], axis=0)
    return rows


def class_weights(labels: np.ndarray, heads: Heads) -> list[list[float] | None]:
    """A row of weights a head by which each class weighs alike: photos / (classes x photos of the class).

    scikit-learn's "balanced", with the weights of soft labels (N, classes of all heads) in place of counts. A class
    without a label has weight 1, a distribution over a number has no weights.
    """
    rows: list[list[float] | None] = []
    for head, part in zip(heads, heads.split(labels), strict=True):
        counts = part.sum(axis=0, dtype=np.float64)
        there = counts > 0
        balanced = np.where(there, counts.sum() / (max(there.sum(), 1) * np.where(there, counts, 1)), 1.0)
        rows.append(None if head.spread is not None else balanced.tolist())
    return rows
