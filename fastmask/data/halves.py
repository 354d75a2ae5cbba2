"""Halves: half-face CutMix: one side of a photo is replaced by a partner's (CutMix: Yun et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmask.data.named_classes import find_class, is_of_any, is_of_class
from fastmask.heads import UNKNOWN, Heads
from fastmask.labels import mix_labels, soft_labels
from fastmask.system.errors import UsageError

# partners of the same joint class, or of any; otherwise the name of a class
SAME, ANY = "same", "any"


@dataclass(frozen=True)
class Half:
    """A `share` of a photo's width, on the left or the right, that is replaced by the row `partner`."""

    partner: int
    share: float
    left: bool

    def paste(self, photo: np.ndarray, other: np.ndarray) -> float:
        """Write the partner's side into a photo, both (height, width, 3), and return its actual share."""
        width = photo.shape[1]
        count = round(self.share * width)
        columns = slice(0, count) if self.left else slice(width - count, width)
        photo[:, columns] = other[:, columns]
        return count / width


class Halves:
    """Draws for each photo whether a side of it is replaced, by which partner, and how much of it.

    A photo is changed with `probability`; the share of its width that is the partner's is uniform in `shares`. The
    partner is any photo of the same joint class (`partner` "same"), of any class ("any"), or of a class by its name,
    such as "age.60+" or "incorrect female 60+". A photo without a partner is not changed, nor, with names in `classes`,
    one of another class. `y` are the (N, heads) class numbers of all photos.

    >>> halves = fm.Halves(table.y, table.heads, probability=1.0, partner="any")
    >>> half = halves.draw(np.random.default_rng(0), row=0)
    >>> half.share
    0.5
    """

    def __init__(
        self,
        y: np.ndarray,
        heads: Heads,
        probability: float,
        shares: Sequence[float] = (0.5, 0.5),
        partner: str = SAME,
        classes: Sequence[str] = (),
    ) -> None:
        low, high = shares
        if not 0 < low <= high < 1:
            raise UsageError(f"The shares of half-face CutMix are {low:g} to {high:g}; expected two between 0 and 1.")
        self.heads, self.partner = heads, partner
        self.probability, self.shares = probability, (low, high)
        self._joint = heads.joint(y)
        self._changed = is_of_any(y, heads, classes) if classes else np.full(len(y), True)
        if partner in (SAME, ANY):
            self._of_class = {int(c): np.flatnonzero(self._joint == c) for c in np.unique(self._joint)}
        else:
            self._of_class = {-1: np.flatnonzero(is_of_class(y, find_class(heads, partner)))}

    def draw(self, rng: np.random.Generator, row: int) -> Half | None:
        """The change of the photo of a row, or None."""
        if rng.random() >= self.probability or not self._changed[row]:
            return None
        others = self._others(row)
        if not len(others):
            return None
        partner = int(others[rng.integers(len(others))])
        return None if partner == row else Half(partner, float(rng.uniform(*self.shares)), bool(rng.integers(2)))

    def labels(self, own: Tensor, others: Tensor, shares: Sequence[float]) -> Tensor:
        """The soft labels of photos with these shares of a partner, from the labels of both, hard or soft."""
        labels, partners = (soft_labels(y, self.heads) for y in (own, others))
        return mix_labels(labels, partners, torch.tensor(shares), self.heads)

    def _others(self, row: int) -> np.ndarray:
        """The rows that the partner is drawn from."""
        if self.partner == ANY:
            return np.arange(len(self._joint))
        if self.partner != SAME:
            return self._of_class[-1]
        own = int(self._joint[row])
        return self._of_class[own] if own != UNKNOWN else np.empty(0, np.int64)
