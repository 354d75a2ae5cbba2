"""Persons: the heads that all photos of a person share, and parts of whole persons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmask.data.folds import whole_parts
from fastmask.heads import UNKNOWN, Heads
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError

# the share of the persons that may have contradicting labels, by mistake, in a head that belongs to the person
_CONTRADICTING = 0.01


def shared_heads(heads: Heads, y: np.ndarray, persons: np.ndarray) -> tuple[str, ...]:
    """The heads whose class belongs to the person, not to the photo, such as gender and age.

    By (N, heads) labels and their (N,) persons: of the persons with two labels or more, at most one in a hundred has
    labels that differ. Without such persons there are none.
    """
    return tuple(head.name for head, labels in zip(heads, y.T, strict=True) if _is_shared(labels, persons))


def _is_shared(labels: np.ndarray, persons: np.ndarray) -> bool:
    known = labels != UNKNOWN
    owner = np.unique(persons[known], return_inverse=True)[1]
    if not len(owner):
        return False
    photos = np.bincount(owner)
    low, high = np.full(len(photos), np.iinfo(np.int64).max), np.full(len(photos), -1)
    np.minimum.at(low, owner, labels[known])
    np.maximum.at(high, owner, labels[known])
    several = photos > 1
    return bool(several.any() and (low < high)[several].mean() <= _CONTRADICTING)


def parts_of(run: RunDirectory) -> np.ndarray:
    """(N,) the part of each OOF photo, to fit on some persons and score on others: see `whole_parts`.

    Raises UsageError for a run of one person.
    """
    if len(set(run.persons)) < 2:
        raise UsageError(f"{run.path} has one person only; a decision is fitted on some and scored on others.")
    return whole_parts(run.oof["fold"].to_numpy(), run.persons)


def average_persons(heads: Heads, probabilities: np.ndarray, persons: np.ndarray, shared: Sequence[str]) -> np.ndarray:
    """(N, classes of all heads) probabilities, those of the `shared` heads replaced by their mean over each person."""
    owner = np.unique(persons, return_inverse=True)[1]
    photos = np.bincount(owner)
    averaged = np.array(probabilities, dtype=np.float64)
    for part in (heads.split(averaged)[heads.position(name)] for name in shared):
        # a view of `averaged`
        for column in part.T:
            column[:] = (np.bincount(owner, column) / photos)[owner]
    return averaged
