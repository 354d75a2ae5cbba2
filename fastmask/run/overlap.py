"""Overlap: the photos that several results have in common, which of their persons are one, whose labels differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.groups import connect, name_groups
from fastmask.data.table import groups_of
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError


def shared_photos(first: pd.Index, others: Iterable[tuple[Path, pd.Index]]) -> pd.Index:
    """The photos of `first` that all others have, in its order; raises DataError if there are none."""
    photos = first
    for path, own in others:
        kept = photos[photos.isin(own)]
        if not len(kept):
            raise DataError(
                f"{path} shares no photo with the results before it, such as {photos[0]!r}; it has {own[0]!r}: "
                "expected results on the same photos."
            )
        photos = kept
    return photos


def rows_of(photos: pd.Series, wanted: pd.Index | pd.Series) -> np.ndarray:
    """The rows of photos by their paths; -1 for one that is not among them."""
    return pd.Index(photos).get_indexer(pd.Index(wanted))


def have_same_persons(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether the photos of both runs are of the same persons, some of whom one of the runs may have merged."""
    rows = rows_of(other.folds["path"], one.folds["path"])
    ours, theirs = one.folds["person"][rows >= 0], other.folds["person"].to_numpy(object)[rows[rows >= 0]]
    return _are_merged(ours, theirs) or _are_merged(theirs, ours)


def _are_merged(ours: Iterable[str], theirs: Iterable[str]) -> bool:
    """Whether `theirs` are the persons `ours` of the same photos, some of them merged into others that are there."""
    pairs = set(zip(ours, theirs, strict=True))
    into = dict(pairs)
    return len(into) == len(pairs) and all(into.get(person) == person for person in into.values())


def join_persons(runs: Sequence[RunDirectory]) -> list[pd.Series]:
    """The number of the group of each person of each run, extra photos included, by the person's name.

    Persons who are one person in any of the runs, or share identical photos in any, are in one group.
    """
    frames = [_persons(run) for run in runs]
    whole = pd.concat(frames, ignore_index=True)
    groups = connect(*(whole[name] for name in whole))
    starts = np.cumsum([0, *map(len, frames)])
    parts = zip(pairwise(starts.tolist()), frames, strict=True)
    each = (pd.Series(groups[start:end], frame["person"]) for (start, end), frame in parts)
    return [own[~own.index.duplicated()] for own in each]


def _persons(run: RunDirectory) -> pd.DataFrame:
    """Path, person and group of each photo of a run; the paths of extra photos are of other folders, so None."""
    own = run.folds[["path", "person"]].assign(group=groups_of(run.folds))
    if run.extra is None:
        return own.astype(object)
    extra = run.extra[["person"]].assign(path=None, group=run.extra["person"])
    return pd.concat([own, extra[["path", "person", "group"]]], ignore_index=True).astype(object)


def join_groups(runs: Sequence[RunDirectory], photos: pd.Index) -> np.ndarray:
    """(photos,) the groups of photos of the first run, by `join_persons`, each with the name of its first person.

    Runs with other persons are left out.
    """
    first, *others = runs
    (group_of, *_) = join_persons([first, *(run for run in others if have_same_persons(first, run))])
    persons = first.folds["person"].to_numpy(object)[rows_of(first.folds["path"], photos)]
    return name_groups(group_of.loc[persons].to_numpy(), persons)


def find_trained(run: RunDirectory, group_of: pd.Series) -> pd.Index:
    """The OOF photos of a run whose group the models that predict them were trained on; usually none.

    `group_of` is that of `join_persons`: a group can join persons whom the run's folds separate.
    """
    groups, folds = group_of.loc[run.persons].to_numpy(), run.oof["fold"].to_numpy()
    trained = np.zeros(len(folds), bool)
    for fold in np.unique(folds):
        seen = group_of.loc[run.seen_by(int(fold))["person"].unique()]
        trained |= (folds == fold) & np.isin(groups, seen)
    return pd.Index(run.oof["path"][trained])


def describe_photos(counts: Mapping[str, int], shared: int, what: str = "results") -> str:
    """A sentence about the results with more photos than the `shared` ones; "" if there are none."""
    more = ", ".join(f"{name} {number}" for name, number in counts.items() if number > shared)
    return f"Scored on the {shared} photos that all {what} have; {what} with more photos: {more}." if more else ""


def describe_relabelled(name: str, judge: str, heads: Sequence[str], theirs: np.ndarray, labels: np.ndarray) -> str:
    """A sentence about the photos with (N, heads) labels that differ from those of the judging run; "" for none.

    `heads` are the names of the heads.
    """
    differing = theirs != labels
    each = ", ".join(f"{head} {number}" for head, number in zip(heads, differing.sum(0), strict=True) if number)
    photos = int(differing.any(axis=1).sum())
    text = (
        f"{name} has other labels than {judge} for {photos} photos ({each}); all are scored by the labels of {judge}."
    )
    return text if photos else ""
