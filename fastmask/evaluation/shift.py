"""Shift: how far the predictions on new photos are from the out-of-fold (OOF) predictions.

Black-box shift detection (Lipton et al. 2018; Rabanser et al. 2019): if a model's predictions on new photos differ from
those on the labelled photos, its score on the labelled photos may not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from fastmask.data.table import groups_of
from fastmask.heads import Heads
from fastmask.inference.predictions import Predictions
from fastmask.run.directory import RunDirectory
from fastmask.run.tensors import read_oof
from fastmask.system.errors import DataError, UsageError
from fastmask.system.randomness import Counted, Stream

DRAWS = 500
BINS = 100
# decimals of a probability, since OOF predictions may have been computed in half precision
_DECIMALS = 4
# the minimum of persons per fold for meaningful draws
_FEW_PERSONS = 20
_ALPHA = 0.05


class Distance(NamedTuple):
    """A distance, its p-value, and the 95 % quantile of the distances of random persons of OOF.

    There is no p if the persons of the new photos are unknown, since `usual` is then that of persons with as many
    photos as those of OOF.
    """

    distance: float
    p: float | None
    usual: float


@dataclass(frozen=True)
class Shift:
    """The distance of predictions on new photos from the OOF predictions, over all heads and per head.

    `shares` has a row per class of each head, such as "age.60+", with the share of photos with that prediction.
    """

    overall: Distance
    heads: dict[str, Distance]
    shares: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def distance(self) -> float:
        return self.overall.distance

    @property
    def p(self) -> float | None:
        return self.overall.p

    @property
    def shifted(self) -> list[str]:
        """The heads that differ beyond chance (p times the number of heads), the farthest beyond `usual` first."""
        far = [name for name, d in self.heads.items() if d.p is not None and d.p * len(self.heads) <= _ALPHA]
        return sorted(far, key=lambda name: self.heads[name].usual - self.heads[name].distance)

    def __str__(self) -> str:
        width = max(map(len, self.shares["class"]))
        rows = [f"{row[0]:{width}}  {row[1]:6.1%}  {row[2]:6.1%}" for row in self.shares.itertuples(index=False)]
        return "\n".join([self.verdict, f"{'predicted':{width}}  {'OOF':>6}  {'new':>6}", *rows, *self.notes])

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        distance, p, usual = self.overall
        chance = f"random persons of OOF: at most {usual:.3f} 19 times in 20"
        if p is None:
            return (
                f"Predictions on the new photos differ from OOF's by {distance:.3f} ({chance}, if new persons have as "
                "many photos each; they are unknown, so there is no p)."
            )
        figures = f"{distance:.3f} ({chance}; p {p:.3f})"
        most = f"; most: {', '.join(self.shifted)}" if self.shifted else ""
        if p > _ALPHA:
            return f"Predictions on the new photos are as close to OOF's as those of random persons: {figures}{most}."
        return f"Predictions on the new photos differ from OOF's by {figures}: the OOF score may not hold there{most}."

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.overall._asdict(),
            "heads": {name: distance._asdict() for name, distance in self.heads.items()},
            "shares": self.shares.to_dict("records"),
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Member:
    """One model's probabilities, a column per class: OOF rows of (N,) `persons`, and the new photos."""

    oof: np.ndarray
    persons: np.ndarray
    new: np.ndarray


def shift(run: RunDirectory, predictions: Predictions, persons: np.ndarray | None = None, draws: int = DRAWS) -> Shift:
    """Measure how far `predictions` on new photos are from `run`'s OOF predictions, and whether by chance.

    Photos of one person are alike, so chance depends on the (N,) `persons` of the new photos. If they are unknown,
    there is no p.

    Each fold's model, with the checkpoints used by `predict`, is compared on the photos that it validated and on the
    new ones, since the mean of models is less confident than each of them. So predict with the run's views: the
    mean of more of them is less confident, too. Raises UsageError if no model of the run is a member of the
    predictions, DataError if a fold lacks its checkpoints or their OOF probabilities.

    >>> found = fm.shift(run, fm.predict(run, "data/eval/images"), draws=50)
    >>> list(found.heads), found.distance >= 0
    (['mask', 'gender', 'age'], True)
    """
    if draws < 1:
        raise UsageError(f"Found {draws} draws; expected 1 or more.")
    if predictions.heads != run.heads:
        raise UsageError(f"The predictions are of other heads than those of {run.path}.")
    if predictions.decided is not None:
        raise UsageError("These predictions have been calibrated by a rule, unlike OOF's; give those of predict.")
    there = [fold for fold in run.trained_folds if f"fold{fold}" in predictions.members]
    if not there or not len(predictions):
        raise UsageError(f"The predictions hold no photos predicted by a fold of {run.path}; predict with that run.")
    if persons is not None and len(persons) != len(predictions):
        raise UsageError(f"Found {len(persons)} persons for {len(predictions)} photos; expected one per photo.")
    members = [_member(run, fold, predictions.members[f"fold{fold}"]) for fold in there]
    known = persons is not None
    persons = _assumed_persons(members) if persons is None else persons
    heads = Heads([run.heads[name] for name in run.heads.classified])
    observed, null = distances(members, persons, draws)
    # per head, the mean over its columns
    own = np.stack([part.mean() for part in heads.split(observed)])
    chance = np.stack([part.mean(-1) for part in heads.split(null)])
    each = {head.name: judge(float(x), drawn, known) for head, x, drawn in zip(heads, own, chance, strict=True)}
    unused = [name for name in predictions.members if name not in {f"fold{fold}" for fold in there}]
    overall = judge(float(own.mean()), chance.mean(0), known)
    return Shift(overall, each, _shares(heads, members), _notes(members, persons, known, unused))


def _member(run: RunDirectory, fold: int, new: np.ndarray) -> Member:
    """A fold's model, with the OOF rows of its checkpoints, since those in oof.csv may be from other epochs."""
    epochs = [int(file.stem[5:]) for file in run.checkpoints(fold) if file.stem[5:].isdecimal()]
    if not epochs:
        raise DataError(f"{run.fold_path(fold)} has no checkpoint to compare; restore it.")
    oof: np.ndarray = np.mean([read_oof(run.fold_path(fold), epoch) for epoch in epochs], axis=0)
    persons = groups_of(run.folds)[run.folds["fold"] == fold]
    if oof.shape != (len(persons), run.heads.n_logits):
        raise DataError(f"{run.fold_path(fold)} does not hold the OOF probabilities of its {len(persons)} photos.")
    # a distribution over the number behind a head would count the head twice
    columns = run.heads.joined_columns
    return Member(np.round(oof[:, columns], _DECIMALS), persons, np.round(new[:, columns], _DECIMALS))


def _shares(heads: Heads, members: Sequence[Member]) -> pd.DataFrame:
    """class, oof, new: the share of the photos that each class is predicted for, averaged over members."""
    weights = [len(member.oof) for member in members]
    shares: dict[str, Any] = {"class": heads.columns}
    for side in ("oof", "new"):
        each = [
            np.concatenate([(part.argmax(1)[:, None] == range(part.shape[1])).mean(0) for part in heads.split(rows)])
            for rows in (getattr(member, side) for member in members)
        ]
        shares[side] = np.average(each, axis=0, weights=weights)
    return pd.DataFrame(shares)


def _assumed_persons(members: Sequence[Member]) -> np.ndarray:
    """(M,) persons of the new photos, each with as many photos as those of OOF on average."""
    return np.arange(len(members[0].new)) // max(1, round(_photos_each(members)))


def _photos_each(members: Sequence[Member]) -> float:
    """Photos per person of OOF."""
    persons = np.concatenate([member.persons for member in members])
    return len(persons) / len(np.unique(persons))


def _notes(members: Sequence[Member], new: np.ndarray, known: bool, unused: Sequence[str]) -> list[str]:
    persons = len(np.unique(np.concatenate([member.persons for member in members])))
    photos, count, each = len(new), len(np.unique(new)), _photos_each(members)
    if not known:
        notes = [
            f"Assumed are {count} persons, with {each:.1f} photos each as in OOF; for a p, name the persons by predict "
            "--same-person."
        ]
    else:
        notes = [f"The {photos} photos are of {count} persons."]
        if photos / count > each:
            notes.append(f"Those of OOF have only {each:.1f} photos each: the p is an upper limit.")
        if each == 1:
            notes.append("The p assumes that each photo of OOF is of another person.")
    if persons / len(members) < _FEW_PERSONS:
        notes.append(f"OOF has {persons} persons in {len(members)} folds: too few to find any but a large shift.")
    if unused:
        notes.append(f"Left out, because the run has no OOF predictions of them: {', '.join(unused)}.")
    return notes


def judge(observed: float, null: np.ndarray, known: bool = True) -> Distance:
    """Compare a distance with those of (draws,) random persons; p includes the distance itself as one of the draws.

    There is a p only if the draws are of the `known` persons of the new photos.
    """
    p = (1 + int((null >= observed).sum())) / (len(null) + 1)
    return Distance(observed, p if known else None, float(np.quantile(null, 1 - _ALPHA)))


def distances(
    members: Sequence[Member], persons: np.ndarray, draws: int = DRAWS, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """(columns,) distances of the new photos, of (M,) `persons`, from OOF, and (draws, columns) distances by chance.

    These are two-sample Kolmogorov-Smirnov distances, averaged over members weighted by OOF rows. A draw has for each
    member, and for the new photos, random persons of OOF with as many photos each, see `draw_photos`. All members
    predict the same new photos, so their errors are correlated, and a draw has one sample of new photos for all
    members. Probabilities are ranked within each model, since models differ in confidence.
    """
    binned = [_bin(member.oof, member.new, bins) for member in members]
    rows = np.array([len(member.oof) for member in members])
    weights = rows / rows.sum()
    observed = np.zeros(members[0].oof.shape[1])
    for weight, sides in zip(weights, binned, strict=True):
        # all rows count as one photo's
        oof, new = (_cumulative(_tally(side, bins, np.zeros(len(side), int)).toarray(), bins) for side in sides)
        observed += weight * np.abs(oof - new).max(-1)[0]
    owner = np.unique(np.concatenate([member.persons for member in members]), return_inverse=True)[1]
    # the photos of each person together, in random order
    order = np.lexsort((Counted(Stream.BOOTSTRAP, 0, fold=1).at(0).random(len(owner)), owner))
    tally = _tally(np.concatenate([oof for oof, _ in binned])[order], bins, np.arange(len(owner)))
    sizes = [np.unique(each, return_counts=True)[1] for each in (*(member.persons for member in members), persons)]
    return observed, _draw_null(tally, owner[order], weights, sizes, draws, bins)


def _draw_null(
    tally: csr_array,
    owner: np.ndarray,
    weights: np.ndarray,
    sizes: Sequence[np.ndarray],
    draws: int,
    bins: int,
    at_once: int = 50,
) -> np.ndarray:
    """(draws, columns) distances between samples of persons; the last of `sizes` are those of the new photos."""
    counted, found = Counted(Stream.BOOTSTRAP, 0, fold=1), []
    # samples with replacement of n persons vary less than persons do, by (n - 1) / n
    widths = [np.sqrt(len(each) / max(len(each) - 1, 1)) for each in sizes[:-1]]
    for start, end in pairwise([*range(0, draws, at_once), draws]):
        samples = [
            _cumulative(draw_photos(counted.at(start + 1, i), owner, each, end - start) @ tally, bins)
            for i, each in enumerate(sizes)
        ]
        apart = [
            np.minimum(wide * np.abs(oof - samples[-1]).max(-1), 1)
            for wide, oof in zip(widths, samples[:-1], strict=True)
        ]
        found.append(np.average(apart, axis=0, weights=weights))
    return np.concatenate(found)


def draw_photos(rng: np.random.Generator, owner: np.ndarray, sizes: np.ndarray, draws: int) -> np.ndarray:
    """(draws, photos) how often each photo of (photos,) ascending `owner` is in a draw of persons with (P,) `sizes`.

    A person is drawn with a probability proportional to its photos, so that a draw is of the same distribution as all
    photos, and with random photos. Those of a person with too few are repeated, as if its others were like them: this
    can only make the distances larger, so a p is then too large rather than too small.
    """
    counts = np.bincount(owner)
    first = (np.cumsum(counts) - counts)[owner]
    # a random photo is of a person drawn so; the next ones of this person follow it, after the last the first
    start = np.repeat((rng.random((draws, len(sizes))) * len(owner)).astype(np.int64), sizes, axis=1)
    after = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    picked = first[start] + (start - first[start] + after) % counts[owner[start]]
    place = picked + len(owner) * np.arange(draws)[:, None]
    return np.bincount(place.ravel(), minlength=draws * len(owner)).reshape(draws, -1).astype(np.float64)


def _bin(oof: np.ndarray, new: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, columns), (M, columns) -> the bin of each value, by the quantiles of both together.

    Except for ties, one of the two has at most 1 / bins of its rows in a bin, which bounds the error of a distance.
    """
    edges = np.quantile(np.concatenate([oof, new]), np.arange(1, bins) / bins, axis=0, method="inverted_cdf")
    places = [[np.searchsorted(edge, column) for edge, column in zip(edges.T, x.T, strict=True)] for x in (oof, new)]
    return np.stack(places[0], axis=1), np.stack(places[1], axis=1)


def _tally(binned: np.ndarray, bins: int, owner: np.ndarray) -> csr_array:
    """(N, columns) bins of rows of (N,) `owner` -> (owners, columns * bins) how often each is in each bin."""
    rows, columns = binned.shape
    place = (np.repeat(owner, columns), (binned + bins * np.arange(columns)).ravel())
    # duplicate entries are summed
    return csr_array((np.ones(rows * columns), place), shape=(int(owner.max()) + 1, columns * bins))


def _cumulative(counts: np.ndarray, bins: int) -> np.ndarray:
    """(draws, columns * bins) counts -> (draws, columns, bins) the share of the rows up to each bin."""
    summed = counts.reshape(len(counts), -1, bins).cumsum(-1)
    return summed / summed[..., -1:]
