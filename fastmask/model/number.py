"""Number: the number behind a head, such as the age in years, from its learned distribution.

A distribution is trained towards normal targets, see `fastmask.model.losses.normal_targets`. So it is wider than the
probabilities of the number, and near the least and the greatest number, where targets are cut off, it is not centred.
"""

from __future__ import annotations

import numpy as np

from fastmask.heads import Head, Heads
from fastmask.model.losses import normal_targets

_STEPS = 100
_LEAST = np.float32(1e-30)
_ROUNDED = 1e-6


def number_probabilities(head: Head, distribution: np.ndarray) -> np.ndarray:
    """(N, K) predicted distributions -> (N, K) probabilities of the numbers themselves.

    They are those whose targets, mixed by them, come closest to the prediction: the deconvolution by Richardson (1972)
    and Lucy (1974), the EM for the proportions of a mixture. Where the target of one number is as close, that number.
    """
    assert head.spread is not None
    targets = normal_targets(head.numbers, head.spread).numpy()
    given = (distribution / distribution.sum(axis=1, keepdims=True)).astype(np.float32)
    found = np.full_like(given, 1 / given.shape[1])
    for _ in range(_STEPS):
        found = found * ((given / np.maximum(found @ targets, _LEAST)) @ targets.T)
    alone = given @ np.log(np.maximum(targets, _LEAST)).T
    mixed = (given * np.log(np.maximum(found @ targets, _LEAST))).sum(axis=1)
    # wide targets are so alike that the steps take long to part them
    single = alone.max(axis=1) >= mixed
    found[single] = np.eye(given.shape[1], dtype=np.float32)[alone[single].argmax(axis=1)]
    return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float64)


def predict_numbers(head: Head, distribution: np.ndarray) -> np.ndarray:
    """(N, K) predicted distributions -> (N,) class numbers, those of the medians of `number_probabilities`."""
    return quantile(number_probabilities(head, distribution), 0.5)


def quantile(probabilities: np.ndarray, share: float) -> np.ndarray:
    """(N, K) probabilities -> (N,) the first class number up to which they sum to `share`, from 0 to 1."""
    # the sum of all may be rounded to less than 1
    place = (probabilities.cumsum(axis=1) < share - _ROUNDED).sum(axis=1)
    return np.asarray(place.clip(max=probabilities.shape[1] - 1))


def answer_numbers(heads: Heads, probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, heads) predicted classes, with those of distributions from (N, classes of all heads) `probabilities`."""
    parts = zip(heads, heads.split(probabilities), y.T, strict=True)
    columns = [codes if head.spread is None else predict_numbers(head, part) for head, part, codes in parts]
    return np.stack(columns, axis=1)
