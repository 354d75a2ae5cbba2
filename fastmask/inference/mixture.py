"""Mixtures: how the members' probabilities of one head become one; a class each, listed in MIXTURES.

A mixture is computed by `Operations`, of arrays here and of ONNX nodes in an exported file, so that it is defined once.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from scipy.special import softmax

from fastmask.decision.temperature import LEAST, MOST, TINY, fit_temperature, log_probabilities

V = TypeVar("V")
# the weight of the mean probability in a vote: it breaks ties, and is less than one vote even of the most members
TIE = 1e-3
# of EM: the tolerance of the log loss, the maximum of steps, the minimum likelihood, since half precision rounds to 0
_NEAR, _STEPS, _LEAST = 1e-6, 5000, 1e-7
# the tolerance of the sum of weights read from a file
_ROUNDED = 1e-6


class Operations(Protocol[V]):
    """What mixtures are made of; a value has (N, classes) probabilities, or their logarithms."""

    def mean(self, values: Sequence[V], weights: Sequence[float]) -> V:
        """The sum of values times weights."""

    def one_hot(self, value: V, classes: int) -> V:
        """1 for the most probable class, 0 for the others."""

    def log(self, value: V, least: float) -> V:
        """The logarithms of probabilities, or of `least` where they are smaller."""

    def linear(self, values: Sequence[V], coefficients: np.ndarray, intercepts: np.ndarray) -> V:
        """The sum of values times (values, classes, classes) coefficients, plus (classes,) intercepts."""

    def softmax(self, value: V) -> V:
        """The softmax over classes."""


class Arrays:
    """The operations of numpy arrays."""

    def mean(self, values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        return np.tensordot(weights, np.stack(values), axes=1)

    def one_hot(self, value: np.ndarray, classes: int) -> np.ndarray:
        return np.eye(classes)[value.argmax(-1)]

    def log(self, value: np.ndarray, least: float) -> np.ndarray:
        return log_probabilities(value, least)

    def linear(self, values: Sequence[np.ndarray], coefficients: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
        parts = (value @ each for value, each in zip(values, coefficients, strict=True))
        return np.asarray(sum(parts, start=intercepts))

    def softmax(self, value: np.ndarray) -> np.ndarray:
        return np.asarray(softmax(value, axis=-1))


@dataclass(frozen=True)
class Mixture(ABC):
    """A mixture of one head: (members,) `weights` that sum to 1, with 0 for a member that it does not use.

    A member of weight 0 need not have the head. `FITTED` is a mixture that is fitted on labels, so that its score is
    cross-fitted; the others take weights by hand.
    """

    HOW: ClassVar[str]
    FITTED: ClassVar[bool] = False
    # what its file must hold for a head, after the number of members
    EXPECTED: ClassVar[str] = "weights of 0 or more that sum to 1"

    weights: np.ndarray

    @property
    def members(self) -> list[int]:
        """The members that it uses."""
        return np.flatnonzero(self.weights).tolist()

    @property
    def shares(self) -> list[float]:
        """The weights of the members that it uses."""
        return self.weights[self.members].tolist()

    @classmethod
    def fit(cls, weights: np.ndarray, parts: Sequence[np.ndarray], y: np.ndarray, groups: np.ndarray) -> Self:
        """Fit on (N, classes) probabilities of each member of `weights` above 0, and (N,) known labels.

        (N,) `groups` are the persons of the photos, for what is chosen on other persons than it is fitted on.
        """
        return cls(weights)

    def mix(self, operations: Operations[V], parts: Sequence[V], classes: int) -> V:
        """The mixture of the members that it uses."""
        return operations.mean(parts, self.shares)

    def describe(self, names: Sequence[str]) -> str:
        """What it was made with, for a reader, of the members' names; "" if their shares are equal."""
        shares = self.shares
        if len(set(shares)) < 2:
            return ""
        return ", ".join(f"{names[i]} {share:.3f}" for i, share in zip(self.members, shares, strict=True))

    def to_plain(self) -> Any:
        """Plain values for JSON."""
        return self.weights.tolist()

    @classmethod
    def from_plain(cls, plain: Any, members: int, classes: int) -> Self:
        """The inverse of `to_plain`; raises ValueError for any other value."""
        return cls(read_weights(plain, members))


class Mean(Mixture):
    """The weighted mean of the probabilities (soft voting)."""

    HOW = "mean"


class Vote(Mixture):
    """Shares of the votes of the members, each for its most probable class.

    The mean of the members' probabilities breaks ties, as a small part: (share + mean / 1000) / (1 + 1 / 1000).
    """

    HOW = "vote"

    def mix(self, operations: Operations[V], parts: Sequence[V], classes: int) -> V:
        votes, shares = [operations.one_hot(part, classes) for part in parts], np.array(self.shares) / (1 + TIE)
        return operations.mean([*votes, *parts], [*shares.tolist(), *(TIE * shares).tolist()])


@dataclass(frozen=True)
class Weighted(Mixture):
    """The mean, with the weights of the least log loss, of probabilities at the (members,) `temperatures` of it."""

    HOW = "oof"
    FITTED = True
    EXPECTED = f"{Mixture.EXPECTED}, with temperatures"

    temperatures: np.ndarray

    @classmethod
    def fit(cls, weights: np.ndarray, parts: Sequence[np.ndarray], y: np.ndarray, groups: np.ndarray) -> Self:
        used, temperatures, fitted = np.flatnonzero(weights), np.ones(len(weights)), weights.astype(np.float64)
        # one member is not weighed against others, and stays as it is
        if len(y) and len(parts) > 1:
            temperatures[used] = [fit_temperature(part, y) for part in parts]
            sure = [_soften(Arrays(), part, t) for part, t in zip(parts, temperatures[used], strict=True)]
            fitted[used] = fit_weights(np.stack([part[np.arange(len(y)), y] for part in sure], axis=1))
        return cls(fitted, temperatures)

    def mix(self, operations: Operations[V], parts: Sequence[V], classes: int) -> V:
        temperatures = self.temperatures[self.members].tolist()
        softened = [_soften(operations, part, t) for part, t in zip(parts, temperatures, strict=True)]
        return operations.mean(softened, self.shares)

    def describe(self, names: Sequence[str]) -> str:
        used = zip(self.members, self.shares, self.temperatures[self.members], strict=True)
        return ", ".join(f"{names[i]} {share:.3f} (temperature {t:.2f})" for i, share, t in used)

    def to_plain(self) -> Any:
        return {"weights": self.weights.tolist(), "temperatures": self.temperatures.tolist()}

    @classmethod
    def from_plain(cls, plain: Any, members: int, classes: int) -> Self:
        # ensembles of earlier versions have no temperatures
        given = plain if isinstance(plain, Mapping) else {"weights": plain, "temperatures": [1.0] * members}
        temperatures = read_numbers(given.get("temperatures"), (members,))
        if not ((temperatures >= LEAST / 2) & (temperatures <= 2 * MOST)).all():
            raise ValueError("temperatures")
        return cls(read_weights(given.get("weights"), members), temperatures)


def _soften(operations: Operations[V], part: V, temperature: float) -> V:
    """Probabilities at a temperature, as `apply_temperature`."""
    if temperature == 1:
        return part
    return operations.softmax(operations.mean([operations.log(part, TINY)], [1 / temperature]))


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


def read_weights(plain: Any, members: int) -> np.ndarray:
    """The (members,) weights of a mixture from a list; raises ValueError for anything else."""
    weights = read_numbers(plain, (members,))
    if not ((weights >= 0).all() and math.isclose(weights.sum(), 1, abs_tol=_ROUNDED)):
        raise ValueError("weights")
    return weights


def read_numbers(plain: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a shape from lists of numbers; raises ValueError for anything else."""
    if not shape:
        if type(plain) not in (int, float) or not abs(plain) < math.inf:
            raise ValueError("number")
        return np.array(plain, np.float64)
    if not isinstance(plain, list) or len(plain) != shape[0]:
        raise ValueError("list")
    return np.array([read_numbers(each, shape[1:]) for each in plain], np.float64).reshape(shape)
