"""Blend: the probabilities of several runs combined per head, by mean, vote or weighted mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.run.directory import RunDirectory
from fastmask.run.files import ENSEMBLE
from fastmask.system.errors import DataError, UsageError

MEAN, VOTE, OOF_WEIGHTS = "mean", "vote", "oof"
BLENDS = (MEAN, VOTE, OOF_WEIGHTS)
# the weight of the mean probability in a vote: it breaks ties, and is less than one vote even of the most members
TIE = 1e-3
# of EM: the tolerance of the log loss, the maximum of steps, the minimum likelihood, since half precision rounds to 0
_NEAR, _STEPS, _LEAST = 1e-6, 5000, 1e-7
# the tolerance of the sum of weights read from a file
_ROUNDED = 1e-6


@dataclass(frozen=True)
class Blend:
    """How members are blended: (members,) weights per head that sum to 1, with 0 for a member that lacks the head.

    With a joint head its probabilities are blended, and those of the heads of the joint class are their sums.
    """

    how: str
    heads: Heads
    weights: dict[str, np.ndarray]

    def mix(self, members: Sequence[np.ndarray]) -> np.ndarray:
        """Blend the members' (N, classes of all heads) probabilities, as returned by `widen`."""
        made = []
        for place, head in enumerate(self.heads):
            weights = self.weights[head.name]
            there = np.flatnonzero(weights).tolist()
            parts = np.stack([self.heads.split(members[i])[place] for i in there])
            # a distribution over a number is averaged: votes for single numbers would be meaningless
            voted = self.how == VOTE and head.spread is None
            made.append(votes(parts) if voted else np.tensordot(weights[there], parts, axes=1))
        if self.heads.joint_head is not None:
            sums = self.heads.sum_joint(made[self.heads.joint_head])
            made = [sums[self.heads.joined.index(i)] if i in self.heads.joined else part for i, part in enumerate(made)]
        return np.concatenate(made, axis=-1)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"blend": self.how, "weights": {name: each.tolist() for name, each in self.weights.items()}}

    @classmethod
    def of(cls, run: RunDirectory) -> Blend:
        """Read the blend of an ensemble; raises DataError if its file has no valid one."""
        plain, count = run.ensemble, len(run.ensemble["members"])
        weights = plain["weights"]
        whole = set(weights) == set(run.heads.names) and all(_are_weights(each, count) for each in weights.values())
        if plain["blend"] not in BLENDS or not whole:
            raise DataError(
                f"{run.path / ENSEMBLE} does not hold one of the blends {', '.join(BLENDS)} and, for each head, "
                f"{count} weights of 0 or more that sum to 1; restore it."
            )
        return cls(plain["blend"], run.heads, {name: np.array(weights[name], np.float64) for name in run.heads.names})


def _are_weights(each: Any, count: int) -> bool:
    return (
        isinstance(each, list)
        and len(each) == count
        and all(type(weight) in (int, float) and 0 <= weight <= 1 for weight in each)
        and math.isclose(sum(each), 1, abs_tol=_ROUNDED)
    )


def votes(members: np.ndarray) -> np.ndarray:
    """(members, N, classes) probabilities of one head -> (N, classes) shares of votes, which sum to 1.

    Each member votes for its most probable class. The mean of the members' probabilities breaks ties, as a small part
    of the value: (share + mean / 1000) / (1 + 1 / 1000).
    """
    shares = np.eye(members.shape[-1])[members.argmax(-1)].mean(0)
    return np.asarray((shares + TIE * members.mean(0)) / (1 + TIE))


def fit_weights(likelihoods: np.ndarray) -> np.ndarray:
    """(N, members) probabilities of the true class -> the (members,) weights of the mean with the least log loss.

    EM for the proportions of a mixture (Dempster, Laird, Rubin 1977), as in stacking density estimators by their
    out-of-fold predictions (Smyth, Wolpert 1999). The loss is convex and exceeds its minimum by at most the largest
    gradient minus 1, which is the stopping criterion.
    """
    likelihoods = np.maximum(likelihoods, _LEAST)
    weights = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    if not len(likelihoods):
        return weights
    for _ in range(_STEPS):
        gains = (likelihoods / (likelihoods @ weights)[:, None]).mean(0)
        if gains.max() - 1 <= _NEAR:
            break
        weights = weights * gains
    return np.asarray(weights / weights.sum())


def check_blend(how: str) -> None:
    """Raise UsageError for a name that is not in BLENDS."""
    if how not in BLENDS:
        raise UsageError(f"There is no blend {how!r}; expected one of {', '.join(BLENDS)}.")


def fit_blend(how: str, heads: Heads, members: Sequence[np.ndarray], y: np.ndarray) -> Blend:
    """Fit a blend of members' (N, classes of all heads) probabilities, with weights fitted on (N, heads) labels.

    Heads that a member lacks are NaN. Labels of -1 are left out. Members have equal weights in a head without labels,
    in a distribution over a number, and if `how` is not "oof". Raises UsageError if it is not in BLENDS.
    """
    check_blend(how)
    weights = {}
    for place, head in enumerate(heads):
        parts = [heads.split(member)[place] for member in members]
        has = np.array([not np.isnan(part).any() for part in parts])
        weights[head.name] = has / has.sum()
        if how == OOF_WEIGHTS and head.spread is None:
            rows = np.flatnonzero(y[:, place] != UNKNOWN)
            true = [part[rows, y[rows, place]] for part, there in zip(parts, has, strict=True) if there]
            weights[head.name][has] = fit_weights(np.stack(true, axis=1))
    if heads.joint_head is not None:
        weights.update(dict.fromkeys(heads.classified, weights[JOINT]))
    return Blend(how, heads, weights)


def cross_blend(how: str, heads: Heads, members: Sequence[np.ndarray], y: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """(N, classes of all heads): the cross-fitted blend, each part with weights fitted on the other parts."""
    mixed = np.empty((len(y), heads.n_logits))
    for part in np.unique(parts):
        here = parts == part
        fitted = fit_blend(how, heads, [member[~here] for member in members], y[~here])
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
