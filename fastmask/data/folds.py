"""Folds: the fold that validates each photo, the same for all photos of a person, and of persons who share photos."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from fastmask.data.table import FOLD, SAME_AS, TRAIN_ONLY, Table
from fastmask.heads import JOINT, UNKNOWN
from fastmask.scoring import target_of
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.text import count, join_some

LEAK_WARNING = (
    "--group none puts photos of one person on both sides of a split, so the network is scored on faces, clothes and "
    "backgrounds that it has seen: the score is too good, and not one for new people. Use it to measure the leak."
)
# parts of the persons, where the folds do not separate them
_PARTS = 5
# with more combinations of classes than this, each head is stratified by itself
MOST_COMBINATIONS = 200


def assign_folds(
    table: Table, k: int, stratify: str = JOINT, group: str | None = "person", seed: int = 0
) -> np.ndarray:
    """The fold 0 ... k-1 of every photo, (N,) int64, by scikit-learn's stratified group K-fold.

    `stratify` is a head's name (its training labels) or "joint": the classes of every head and their combinations, see
    `strata_of`. `group` "person" keeps each person in one fold, and the persons of a group of `join_identical`; None or
    "none" is the leaky split of the report, with a warning. Warns of classes with fewer persons than folds; raises
    UsageError unless there are 2 folds or more, and as many persons.

    >>> folds = fm.assign_folds(table, 3)
    >>> folds.shape, np.unique(folds).tolist()
    ((84,), [0, 1, 2])
    >>> int(pd.Series(folds).groupby(table.persons).nunique().max())
    1
    """
    if group not in ("person", "none", None):
        raise UsageError(f"group is 'person' or 'none', found {group!r}.")
    grouped = group == "person"
    units = table.groups if grouped else np.arange(len(table))
    shared = ", counting those who share identical photos as one" if SAME_AS in table.frame else ""
    _check_count(k, len(set(units)), unit_of(table) if grouped else "photo", shared if grouped else "")
    labels = target_of(table.heads, table.train_y, stratify)
    _warn_of_rare(table, labels, units, k, stratify)
    if not grouped:
        warnings.warn(LEAK_WARNING, FastmaskWarning, stacklevel=2)
    folds = _split(*strata_of(table, units, stratify), units, k, seed)
    empty = sorted(set(range(k)) - set(folds.tolist()))
    if empty:
        raise UsageError(f"Fold {empty[0]} of {k} would be empty; take fewer folds.")
    if grouped:
        check_persons_whole(units, folds)
    return folds


def strata_of(table: Table, units: np.ndarray, stratify: str = JOINT) -> tuple[np.ndarray, np.ndarray]:
    """The strata to spread evenly over the folds: (M,) rows of photos, each with a stratum of (M,).

    With "joint" a photo has several: one that all photos share, the class of each head, and their combination; but none
    for an unknown label, or for a combination that only one of the (N,) `units` has, which cannot be spread. With the
    name of a head it has one, the unknown label included.
    """
    y = table.train_y
    if stratify != JOINT:
        return np.arange(len(y)), target_of(table.heads, y, stratify)
    columns = [np.zeros(len(y), np.int64), *y[:, table.heads.joined].T]
    joint = table.heads.joint(y)
    counts = count_units(joint, units)
    spreadable = counts.index[counts > 1]
    if len(table.heads.joined) > 1 and len(spreadable) <= MOST_COMBINATIONS:
        columns.append(np.where(np.isin(joint, spreadable), joint, UNKNOWN))
    rows = [np.flatnonzero(column != UNKNOWN) for column in columns]
    each = [np.unique(column[own], return_inverse=True)[1] for column, own in zip(columns, rows, strict=True)]
    starts = np.cumsum([0, *(len(np.unique(strata)) for strata in each[:-1])])
    return np.concatenate(rows), np.concatenate([s + start for s, start in zip(each, starts, strict=True)])


def fixed_folds(table: Table) -> np.ndarray | None:
    """The (N,) int64 folds of the fixed split that the data itself has; None without one."""
    return table.frame[FOLD].to_numpy(np.int64) if FOLD in table.frame else None


def check_persons_whole(persons: np.ndarray, folds: np.ndarray) -> None:
    """Raise UsageError naming a person with photos in two folds."""
    first: dict[str, int] = {}
    for person, fold in zip(persons, folds, strict=True):
        if first.setdefault(person, fold) != fold:
            both = " and ".join(_fold_name(each) for each in (first[person], fold))
            raise UsageError(f"Person {person} is in {both}; all photos of a person must be in one fold.")


def _fold_name(fold: int) -> str:
    return "the photos to train on only (fold -1)" if fold == TRAIN_ONLY else f"fold {fold}"


def person_parts(folds: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """(N,) parts of the photos by which a rule is fitted on some of the (N,) persons and scored on the others.

    They are the folds, or, where there is only one fold or persons are split, a fifth of the persons each. Needs two
    persons or more.
    """
    owner = np.unique(persons, return_inverse=True)[1]
    count = int(owner.max()) + 1
    whole = len(np.unique(np.stack([folds, owner]), axis=1).T) == count
    if whole and len(np.unique(folds)) > 1:
        return folds
    parts = np.empty_like(folds)
    for part, (_, rows) in enumerate(GroupKFold(min(_PARTS, count)).split(folds, groups=owner)):
        parts[rows] = part
    return parts


def unit_of(table: Table) -> str:
    """What folds keep whole, for messages: `person`, or `photo` where each photo counts as a different person."""
    return "photo" if (table.frame["person"] == table.frame["path"]).all() else "person"


def _check_count(k: int, units: int, unit: str, shared: str) -> None:
    if k < 2:
        raise UsageError(f"--folds is {k}; expected 2 or more.")
    if k > units:
        are = "is" if units == 1 else "are"
        raise UsageError(f"--folds is {k}, but there {are} only {count(units, unit)}{shared}; take at most {units}.")


def count_units(labels: np.ndarray, units: np.ndarray) -> pd.Series:
    """The number of persons (or photos) of each class of (N,) labels; -1 is left out."""
    known = labels != UNKNOWN
    return pd.Series(units[known]).groupby(labels[known]).nunique()


def _warn_of_rare(table: Table, labels: np.ndarray, units: np.ndarray, k: int, stratify: str) -> None:
    counts = count_units(labels, units)
    rare = [
        (table.heads.joint_name(label) if stratify == JOINT else table.heads[stratify].decode(label), number)
        for label, number in counts[counts < k].items()
    ]
    if not rare:
        return
    shown = join_some([f"{name!r} ({number})" for name, number in rare])
    warnings.warn(
        f"Classes with fewer {unit_of(table)}s than the {k} folds: {shown}. Some folds validate none of them, and "
        "their F1 will be noisy.",
        FastmaskWarning,
        stacklevel=3,
    )


def _split(rows: np.ndarray, strata: np.ndarray, units: np.ndarray, k: int, seed: int) -> np.ndarray:
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    folds = np.full(len(units), -1, np.int64)
    # scikit-learn raises when every stratum is smaller than k, so then all are one
    strata = np.unique(strata, return_inverse=True)[1]
    strata = strata if np.bincount(strata).max() >= k else np.zeros_like(strata)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, valid) in enumerate(splitter.split(rows, strata, units[rows])):
            folds[rows[valid]] = fold
    return folds
