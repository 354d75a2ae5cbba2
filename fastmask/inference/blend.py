"""Blend: the probabilities of several runs combined per head, by one of MIXTURES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmask.heads import UNKNOWN, Head, Heads
from fastmask.inference.mixture import Arrays, Mean, Mixture, Vote, Weighted
from fastmask.inference.stack import Stack
from fastmask.run.directory import RunDirectory
from fastmask.run.files import ENSEMBLE
from fastmask.system.errors import DataError, UsageError

MIXTURES: dict[str, type[Mixture]] = {one.HOW: one for one in (Mean, Vote, Weighted, Stack)}
BLENDS = tuple(MIXTURES)
MEAN, VOTE = Mean.HOW, Vote.HOW
# weights of the members by hand: the same for all heads, or by head
Weights = Sequence[float] | Mapping[str, Sequence[float]]


def blended_heads(heads: Heads) -> list[Head]:
    """The heads with a mixture: with a joint head those of the joint class have none, since they are its sums."""
    return [head for i, head in enumerate(heads) if heads.joint_head is None or i not in heads.joined]


def mixture_of(how: str, head: Head) -> type[Mixture]:
    """The mixture of a head: a distribution over a number is averaged, since it has no single class to vote for."""
    return Mean if head.spread is not None else MIXTURES[how]


@dataclass(frozen=True)
class Blend:
    """How members are blended: by the mixture of each head of `blended_heads`."""

    how: str
    heads: Heads
    mixtures: Mapping[str, Mixture]

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted on labels, so that its score must be cross-fitted."""
        return MIXTURES[self.how].FITTED

    def mix(self, members: Sequence[np.ndarray]) -> np.ndarray:
        """Blend the members' (N, classes of all heads) probabilities, as returned by `widen`."""
        own = {name: self._mix(name, members) for name in self.mixtures}
        if self.heads.joint_head is not None:
            sums = self.heads.sum_joint(own[self.heads[self.heads.joint_head].name])
            own.update(zip(self.heads.classified, sums, strict=True))
        return np.concatenate([own[name] for name in self.heads.names], axis=-1)

    def _mix(self, name: str, members: Sequence[np.ndarray]) -> np.ndarray:
        mixture, place = self.mixtures[name], self.heads.position(name)
        parts = [self.heads.split(members[i])[place] for i in mixture.members]
        return mixture.mix(Arrays(), parts, self.heads.sizes[place])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"blend": self.how, "weights": {name: each.to_plain() for name, each in self.mixtures.items()}}

    @classmethod
    def of(cls, run: RunDirectory) -> Blend:
        """Read the blend of an ensemble; raises DataError if its file has no valid one."""
        how, plain, count = run.ensemble["blend"], run.ensemble["weights"], len(run.ensemble["members"])
        try:
            own = {head.name: head for head in blended_heads(run.heads)}
            if how not in MIXTURES or not set(own) <= set(plain) <= set(run.heads.names):
                raise ValueError(how)
            kinds = {name: mixture_of(how, head) for name, head in own.items()}
            return cls(how, run.heads, {n: kinds[n].from_plain(plain[n], count, len(own[n].classes)) for n in own})
        except ValueError as error:
            expected = MIXTURES.get(how, Mean).EXPECTED
            raise DataError(
                f"{run.path / ENSEMBLE} does not hold one of the blends {', '.join(BLENDS)} and, for each head, "
                f"{count} {expected}; restore it."
            ) from error


def check_blend(how: str, weights: Weights | None = None) -> None:
    """Raise UsageError for a name that is not in MIXTURES, and for weights of a blend that fits its own."""
    if how not in MIXTURES:
        raise UsageError(f"There is no blend {how!r}; expected one of {', '.join(BLENDS)}.")
    if weights is not None and MIXTURES[how].FITTED:
        by_hand = " or ".join(name for name, one in MIXTURES.items() if not one.FITTED)
        raise UsageError(f"The blend {how} fits its own weights; leave --weights out, or use --blend {by_hand}.")


def fit_blend(
    how: str,
    heads: Heads,
    members: Sequence[np.ndarray],
    y: np.ndarray,
    groups: np.ndarray | None = None,
    weights: Weights | None = None,
) -> Blend:
    """Fit a blend of members' (N, classes of all heads) probabilities on (N, heads) labels.

    Heads that a member lacks are NaN. Labels of -1 are left out. `groups` (N,) are the persons of the photos, by
    default all different. `weights` are those of the members by hand. Raises UsageError if `how` is not in MIXTURES, if
    weights do not fit, or if the members that have a head have weights of 0.
    """
    check_blend(how, weights)
    given = _by_head(heads, weights, len(members))
    groups = np.arange(len(y)) if groups is None else groups
    mixtures = {}
    for head in blended_heads(heads):
        place = heads.position(head.name)
        parts = [heads.split(member)[place] for member in members]
        start = _start(head.name, np.array([not np.isnan(part).any() for part in parts]), given[head.name])
        rows = np.flatnonzero(y[:, place] != UNKNOWN)
        used = [parts[i][rows] for i in np.flatnonzero(start)]
        mixtures[head.name] = mixture_of(how, head).fit(start, used, y[rows, place], groups[rows])
    return Blend(how, heads, mixtures)


def _by_head(heads: Heads, weights: Weights | None, members: int) -> dict[str, np.ndarray]:
    """The (members,) weights of each head that is blended, by default 1; raises UsageError if they do not fit."""
    names, equal = [head.name for head in blended_heads(heads)], [1.0] * members
    given = weights if isinstance(weights, Mapping) else dict.fromkeys(names, equal if weights is None else weights)
    unknown = next((head for head in given if head not in names), None)
    if unknown is not None:
        raise UsageError(f"There are weights of {unknown}; the heads that are blended are {', '.join(names)}.")
    return {name: weights_by_hand(given.get(name, equal), members) for name in names}


def weights_by_hand(given: Sequence[float], count: int, what: str = "run", above_0: bool = False) -> np.ndarray:
    """(count,) weights; raises UsageError unless they are one number of 0 or more, or above 0, for each `what`."""
    try:
        weights = np.array([float(weight) for weight in given], np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"The weights are {given!r}; expected {count} numbers, one per {what}.") from error
    right = np.isfinite(weights) & ((weights > 0) if above_0 else (weights >= 0))
    if len(weights) != count or not right.all():
        texts, least = ", ".join(f"{weight:g}" for weight in weights), "above 0" if above_0 else "of 0 or more"
        raise UsageError(f"The weights are {texts}; expected {count} numbers {least}, one per {what}.")
    return weights


def _start(head: str, has: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The (members,) shares of those that have a head."""
    shares = has * weights
    if not shares.any():
        raise UsageError(f"The runs that have learned {head} have weights of 0; give one of them more.")
    return np.asarray(shares / shares.sum())


def cross_blend(
    how: str,
    heads: Heads,
    members: Sequence[np.ndarray],
    y: np.ndarray,
    parts: np.ndarray,
    groups: np.ndarray | None = None,
    weights: Weights | None = None,
) -> np.ndarray:
    """(N, classes of all heads): the cross-fitted blend, each part blended as fitted on the other parts."""
    groups = np.arange(len(y)) if groups is None else groups
    mixed = np.empty((len(y), heads.n_logits))
    for part in np.unique(parts):
        here = parts == part
        fitted = fit_blend(how, heads, [member[~here] for member in members], y[~here], groups[~here], weights)
        mixed[here] = fitted.mix([member[here] for member in members])
    return mixed


def widen(heads: Heads, own: Heads, probabilities: np.ndarray) -> np.ndarray:
    """(N, classes of `own`) probabilities -> (N, classes of `heads`): NaN for heads that `own` has not learned.

    Those of a joint head are the joint probabilities, also of a run without one.
    """
    wide = np.full((len(probabilities), heads.n_logits), np.nan, probabilities.dtype)
    parts = heads.split(wide)
    for head, part in zip(own, own.split(probabilities), strict=True):
        if head.weight > 0 and head.name in heads.names:
            # a view of `wide`
            parts[heads.position(head.name)][:] = part
    if heads.joint_head is not None:
        parts[heads.joint_head][:] = own.joint_probabilities(probabilities)
    return wide
