"""Persons: the heads with one label per person, and the persons of photos to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastmask.heads import UNKNOWN, Heads
from fastmask.inference.submission import ANSWER, ID
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_rows

# the `column` of `persons_of` that means one person per folder
FOLDER = "folder"
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


def persons_of(photos: Sequence[Path], column: str, info: Path | None = None) -> np.ndarray:
    """(N,) the person of each photo: a column of a submission's CSV, in its order, or its folder for "folder".

    Raises UsageError if the column is missing, DataError if it has an empty cell.
    """
    if column == FOLDER:
        folders = np.array([str(photo.parent) for photo in photos], dtype=object)
        if len(photos) > 1 and len(set(folders)) == 1:
            raise UsageError(
                f"--same-person {FOLDER}: all {len(photos)} photos are in one folder, {folders[0]}, which does not "
                "separate persons; name a column of the file of --submission."
            )
        return folders
    if info is None:
        raise UsageError(
            f"--same-person {column} is a column of the file of --submission, which is not given; without it, use "
            f"--same-person {FOLDER}, for photos in a folder per person."
        )
    frame = read_rows(info, ())
    others = [name for name in frame.columns if name not in (ID, ANSWER)]
    if column not in others:
        found = ", ".join(others) or f"only {ID} and {ANSWER}"
        raise UsageError(f"{info} has no column {column!r} of persons; found {found}.")
    empty = frame.index[frame[column] == ""]
    if len(empty):
        raise DataError(f"{info}, line {empty[0]}, column {column}: found nothing, expected a person.")
    if len(frame) > 1 and frame[column].nunique() == 1:
        raise UsageError(
            f"{info}, column {column}: all {len(frame)} photos would be one person's; name another column."
        )
    return frame[column].to_numpy(dtype=object)
