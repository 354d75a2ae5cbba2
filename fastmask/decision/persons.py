"""Persons: the heads with one label per person, averaged over the photos of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmask.heads import UNKNOWN, Heads

# in a head that belongs to the person, the share of persons that may have contradicting labels by mistake
_CONTRADICTING = 0.01


def shared_heads(heads: Heads, y: np.ndarray, persons: np.ndarray) -> tuple[str, ...]:
    """The heads that belong to the person, not to the photo, such as gender and age.

    In these, by (N, heads) labels and (N,) persons, at most one in a hundred persons with two or more labels has
    different labels. Without persons with two labels there are no such heads.
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


def average_persons(heads: Heads, probabilities: np.ndarray, persons: np.ndarray, shared: Sequence[str]) -> np.ndarray:
    """Replace the `shared` heads of (N, classes of all heads) probabilities by their mean over each person.

    In a joint head their joint probabilities are replaced, and those of the others given them stay.
    """
    owner = np.unique(persons, return_inverse=True)[1]
    photos = np.bincount(owner)
    averaged = np.array(probabilities, dtype=np.float64)
    for part in (heads.split(averaged)[heads.position(name)] for name in shared):
        # a view of `averaged`
        for column in part.T:
            column[:] = (np.bincount(owner, column) / photos)[owner]
    if heads.joint_head is not None and shared:
        part = heads.split(averaged)[heads.joint_head]
        part[:] = _average_joint(heads, part, owner, photos, shared)
    return averaged


def _average_joint(
    heads: Heads, joint: np.ndarray, owner: np.ndarray, photos: np.ndarray, shared: Sequence[str]
) -> np.ndarray:
    """(N, n_joint) probabilities of a joint head with those of the shared heads averaged over each person.

    `owner` (N,) is the number of the person of each photo, `photos` (persons,) how many each has.
    """
    sizes = [heads.sizes[i] for i in heads.joined]
    others = tuple(axis for axis, name in enumerate(heads.classified, 1) if name not in shared)
    whole = joint.reshape(-1, *sizes)
    own = whole.sum(axis=others, keepdims=True)
    flat = own.reshape(len(own), -1)
    mean = np.stack([(np.bincount(owner, column) / photos)[owner] for column in flat.T], axis=1).reshape(own.shape)
    # where a photo gives the shared classes no probability, the others are as they are without them
    apart = whole.sum(axis=tuple(set(range(1, whole.ndim)) - set(others)), keepdims=True)
    given = np.where(own > 0, whole / np.maximum(own, np.finfo(np.float64).tiny), apart)
    return np.asarray((given * mean).reshape(joint.shape))
