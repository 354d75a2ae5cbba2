"""Alignment: the members of an ensemble on the photos that all have OOF predictions of, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastmask.data.auxiliary import auxiliary_labels
from fastmask.data.groups import name_groups
from fastmask.data.table import SAME_AS, TRAIN_ONLY
from fastmask.heads import JOINT, Head, Heads
from fastmask.inference.blend import widen
from fastmask.inference.members import align_column, all_heads, judge_of, learned_heads
from fastmask.run.caveats import training_caveats
from fastmask.run.directory import RunDirectory
from fastmask.run.overlap import (
    describe_photos,
    describe_relabelled,
    find_trained,
    join_persons,
    rows_of,
    shared_photos,
)
from fastmask.system.errors import UsageError


@dataclass(frozen=True)
class Alignment:
    """Members with their OOF predictions of the same photos, in the order of the first run's.

    `folds` has the first run's photos, with the labels that all are scored by; those that a member has no OOF
    prediction of, or was trained on, have fold -1. `oof` are its rows with predictions, `y` (N, heads) their labels,
    `members` the (N, classes of `heads`) probabilities of each run, as `widen` gives them. `caveats` and `notes` say
    what the score leaves out, and in what the runs differ.
    """

    heads: Heads
    folds: pd.DataFrame
    oof: pd.DataFrame
    y: np.ndarray
    members: list[np.ndarray]
    caveats: list[str]
    notes: list[str]

    @property
    def groups(self) -> np.ndarray:
        """(N,) the group of each photo of `oof`: its person, or persons who are one in any of the runs."""
        return self.oof[SAME_AS if SAME_AS in self.oof else "person"].to_numpy(object)


def align(runs: Mapping[str, RunDirectory]) -> Alignment:
    """Align runs that `check_members` accepts, by their names.

    Where persons who are one in a run are two in another, a photo whose person a member was trained on is left out.
    Raises DataError if the runs share no photo, UsageError if all shared ones are left out.
    """
    loaded = list(runs.values())
    heads, first, persons = all_heads(loaded), loaded[0], join_persons(loaded)
    shared = shared_photos(pd.Index(first.oof["path"]), ((run.path, pd.Index(run.oof["path"])) for run in loaded[1:]))
    caveats = [describe_photos({name: len(run.oof) for name, run in runs.items()}, len(shared), "runs")]
    photos = shared
    for run, group_of in zip(loaded, persons, strict=True):
        left = photos.intersection(find_trained(run, group_of), sort=False) if not run.is_leaky else []
        if len(left):
            caveats.append(
                f"{len(left)} photos are left out of the score, such as {left[0]}: {run.path} was trained on photos of "
                "persons who are the same by another run."
            )
            photos = photos.difference(left, sort=False)
    if not len(photos):
        raise UsageError(f"There is no photo to score these runs on. {caveats[-1]}")
    folds = _folds(heads, loaded, persons[0], photos)
    oof = folds.iloc[rows_of(folds["path"], photos)].reset_index(drop=True)
    y = heads.encode_frame(oof)
    return Alignment(
        heads,
        folds,
        oof,
        y,
        [oof_of(heads, photos, run) for run in loaded],
        [*filter(None, caveats), *(f"{run.path}: {caveat}" for run in loaded for caveat in training_caveats(run))],
        list(filter(None, _differences(runs, heads, oof))),
    )


def oof_of(heads: Heads, photos: pd.Index | pd.Series, run: RunDirectory) -> np.ndarray:
    """(N, classes of `heads`): a run's OOF probabilities of photos, as `widen` gives them."""
    return widen(heads, run.heads, run.probabilities[rows_of(run.oof["path"], photos)])


def _folds(heads: Heads, runs: Sequence[RunDirectory], group_of: pd.Series, photos: pd.Index) -> pd.DataFrame:
    """The folds of an ensemble in the first run's rows: path, person, a column per head, its other columns, fold."""
    first = runs[0]
    persons, fold = first.folds["person"], first.folds["fold"]
    named = name_groups(group_of.loc[persons].to_numpy(), persons.to_numpy(object))
    scored = first.folds["path"].isin(photos)
    taken = ("path", "person", SAME_AS, "fold", *first.heads.names, *heads.names)
    columns = {
        **{name: first.folds[name] for name in ("path", "person")},
        **({SAME_AS: named} if (named != persons).any() else {}),
        **{name: align_column(first, judge_of(runs, name), name) for name in heads.names},
        **{name: first.folds[name] for name in first.folds.columns if name not in taken},
        "fold": fold.where(scored | ~fold.isin(fold[scored]), TRAIN_ONLY),
    }
    frame = pd.DataFrame(columns)
    # that of the labels of the heads, which may be other runs'
    return frame.assign(**{JOINT: auxiliary_labels(frame, heads)[JOINT]}) if JOINT in heads.names else frame


def _differences(runs: Mapping[str, RunDirectory], heads: Heads, oof: pd.DataFrame) -> Iterator[str]:
    """Sentences about the labels, bounds and folds that differ between the runs."""
    own = {name: run.folds.iloc[rows_of(run.folds["path"], oof["path"])] for name, run in runs.items()}
    judges = {head: next(name for name, run in runs.items() if head in run.heads.names) for head in heads.names}
    for name, run in runs.items():
        for judge in dict.fromkeys(judges.values()):
            judged = [head for head in learned_heads(run) if judges[head] == judge and head != JOINT]
            theirs, labels = (frame[judged].to_numpy(object) for frame in (own[name], oof))
            yield describe_relabelled(name, judge, judged, theirs, labels)
        for head in learned_heads(run):
            theirs, bounds = _words(run.heads[head]), _words(heads[head])
            if theirs != bounds:
                yield f"Bounds of {head} in {name} are {theirs}; all are scored by those of {judges[head]}, {bounds}."
    first, *others = own.items()
    other = [name for name, frame in others if (frame["fold"].to_numpy() != oof["fold"].to_numpy()).any()]
    if other:
        yield f"The ensemble has the folds of {first[0]}; those of {', '.join(other)} differ."


def _words(head: Head) -> str:
    return ", ".join(f"{bound:g}" for bound in head.bounds or ()) or "none"
