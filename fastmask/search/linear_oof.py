"""Linear OOF: out-of-fold probabilities of linear heads on fixed features, their penalties chosen without the fold."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from fastmask.heads import UNKNOWN, Heads
from fastmask.search.linear import fit_linear

# on the weights of standardised features
PENALTIES = (0.01, 0.1, 1.0, 10.0)
# the fewest folds of which two can be left out; with fewer there is nothing to choose by, and this is the penalty
LEAST_FOLDS, UNCHOSEN = 3, PENALTIES[1]
# how well heads are fitted that only choose
_ROUGH = 1e-4
# what a probability of 0 counts as where a logarithm is taken
_LEAST = 1e-7


def oof_of_features(
    features: np.ndarray, y: np.ndarray, heads: Heads, folds: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray, int]:
    """(N, classes of all heads) out-of-fold probabilities of linear heads, (folds, heads) penalties, unfinished fits.

    A fold's heads are fitted on the photos of the others; their penalty is the one of `PENALTIES` whose cross-entropy
    is least on the fold's two neighbours, by models that were fitted without the neighbour and without the fold: no
    label of a fold reaches its predictions. With two folds there is nothing to choose by.
    """
    count = int(folds.max()) + 1
    penalties = np.full((count, len(heads)), UNCHOSEN)
    unfinished = 0
    if count >= LEAST_FOLDS:
        penalties, unfinished = choose_penalties(features, y, heads, folds, device)
    rows = np.stack([folds != fold for fold in range(count)])
    fitted = fit_linear(features, y, heads, rows, penalties, device)
    probabilities = np.empty((len(y), heads.n_logits))
    for fold in range(count):
        probabilities[folds == fold] = fitted.probabilities(fold, features[folds == fold])
    return probabilities, penalties, unfinished + fitted.unfinished


def choose_penalties(
    features: np.ndarray, y: np.ndarray, heads: Heads, folds: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, int]:
    """(folds, heads) penalties: see `oof_of_features`. The folds stand in a ring, a model leaves out two neighbours."""
    count = int(folds.max()) + 1
    edges = [(fold, (fold + 1) % count) for fold in range(count)]
    rows = np.tile([~np.isin(folds, edge) for edge in edges], (len(PENALTIES), 1))
    grid = np.tile(np.repeat(PENALTIES, count)[:, None], len(heads))
    # the weaker a penalty, the slower
    fitted = fit_linear(features, y, heads, rows, grid, device, _ROUGH, together=count)
    losses = np.zeros((count, len(PENALTIES), len(heads)))
    for model, (tried, (one, other)) in enumerate(product(range(len(PENALTIES)), edges)):
        for judged, chooser in ((one, other), (other, one)):
            here = folds == judged
            losses[chooser, tried] += _cross_entropies(heads, fitted.probabilities(model, features[here]), y[here])
    return np.array(PENALTIES)[losses.argmin(axis=1)], fitted.unfinished


def _cross_entropies(heads: Heads, probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(heads,) sums over the photos whose label is known."""
    sums = []
    for part, labels in zip(heads.split(probabilities), y.T, strict=True):
        known = labels != UNKNOWN
        sums.append(-np.log(part[known, labels[known]].clip(_LEAST)).sum())
    return np.array(sums)
