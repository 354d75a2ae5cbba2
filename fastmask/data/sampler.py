"""Sampler: which of the training photos an epoch has, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastmask.data.named_classes import find_class, is_of_class
from fastmask.heads import UNKNOWN, Heads
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError

# the group of photos that are in every epoch
EVERY = -1


@dataclass(frozen=True)
class Sampler:
    """The photos of an epoch, as a function of a random generator.

    First, an epoch has `counts[g]` random photos of each group g, or all where a group has fewer, and the photos of
    group EVERY. Then, with `weights` (N,) or `classes` (N,), as many photos are drawn from these with replacement: by
    their weights, and such that the known classes are equally frequent but for the weights. `groups` is (N,).
    """

    groups: np.ndarray
    counts: np.ndarray
    weights: np.ndarray | None = None
    classes: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of photos of an epoch."""
        return int(np.minimum(self._sizes, self.counts).sum() + (self.groups == EVERY).sum())

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of an epoch, in random order."""
        rows = self._choose(rng)
        if self.weights is None and self.classes is None:
            return rng.permutation(rows)
        chances = self._relative(rows, np.ones(len(rows)))
        return rows[rng.choice(len(rows), len(rows), p=chances / chances.sum())]

    def expected(self) -> np.ndarray:
        """(N,) how often an epoch has each photo on average.

        With groups and weights, or classes, the numbers of photos in an epoch are taken at their average.
        """
        grouped = self.groups != EVERY
        present = np.ones(len(self.groups))
        present[grouped] = np.minimum(1, self.counts / np.maximum(self._sizes, 1))[self.groups[grouped]]
        chances = present * self._relative(np.arange(len(present)), present)
        return chances / chances.sum() * len(self)

    @property
    def limits(self) -> bool:
        """Whether an epoch lacks some photos because of the counts."""
        return bool((self._sizes > self.counts).any())

    @property
    def _sizes(self) -> np.ndarray:
        """(groups,) the photos of each."""
        return np.bincount(self.groups[self.groups != EVERY], minlength=len(self.counts))

    def _choose(self, rng: np.random.Generator) -> np.ndarray:
        """The rows that an epoch is made of."""
        if not len(self.counts):
            return np.arange(len(self.groups))
        order = np.lexsort((rng.random(len(self.groups)), self.groups))
        ordered = self.groups[order]
        places = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        return np.sort(order[(ordered == EVERY) | (places < self.counts[ordered])])

    def _relative(self, rows: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(rows,) relative chances of rows that are in an epoch with the probabilities `present`."""
        chances = np.ones(len(rows)) if self.weights is None else self.weights[rows].astype(np.float64)
        if self.classes is None:
            return chances
        known = self.classes[rows] != UNKNOWN
        _, which = np.unique(self.classes[rows][known], return_inverse=True)
        totals = np.bincount(which, present[known])
        chances[known] *= present[known].sum() / (len(totals) * totals[which])
        return chances


def make_sampler(
    heads: Heads,
    y: np.ndarray,
    persons: np.ndarray,
    target: str | None = None,
    per_person: int | Mapping[str, int] | None = None,
    weights: np.ndarray | Mapping[str, float] | None = None,
) -> Sampler | None:
    """The sampler of photos with class numbers `y` (N, heads) and `persons` (N,); None if all are in every epoch once.

    Args:
        target: a head, or joint, whose classes are drawn equally often.
        per_person: the photos of each person in an epoch, or those of classes by their names.
        weights: (N,) weights by which photos are drawn, or those of classes by their names; a photo of several has
            their product, one of none 1.
    """
    if target is None and per_person is None and weights is None:
        return None
    groups, counts = np.full(len(y), EVERY), np.zeros(0, np.int64)
    for rows, count, _ in _limited(heads, y, per_person):
        names, numbers = np.unique(persons[rows].astype(str), return_inverse=True)
        groups[rows] = numbers + len(counts)
        counts = np.concatenate([counts, np.full(len(names), count)])
    if isinstance(weights, Mapping):
        weights = weights_by_class(heads, y, weights)
    return Sampler(groups, counts, weights, None if target is None else target_of(heads, y, target))


def _limited(
    heads: Heads, y: np.ndarray, per_person: int | Mapping[str, int] | None
) -> list[tuple[np.ndarray, int, str]]:
    """The rows (N,) that each count per person applies to; raises UsageError if a photo has two."""
    if not isinstance(per_person, Mapping):
        return [] if per_person is None else [(np.full(len(y), True), per_person, "")]
    found = [(is_of_class(y, find_class(heads, name)), count, name) for name, count in per_person.items()]
    for place, (rows, _, name) in enumerate(found):
        other = next((other for others, _, other in found[:place] if (rows & others).any()), None)
        if other is not None:
            raise UsageError(
                f"Setting per_person names {other!r} and {name!r}, and photos are of both; expected classes of which a "
                "photo has one."
            )
    return found


def weights_by_class(heads: Heads, y: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """(N,) the product of the weights of the named classes that each photo is of, from class numbers (N, heads)."""
    found = np.ones(len(y))
    for name, weight in weights.items():
        found[is_of_class(y, find_class(heads, name))] *= weight
    return found
