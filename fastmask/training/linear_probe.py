"""Fitting of linear probes: logistic regression on the features of training photos, see `fastmask.model.probe`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit

from fastmask.data.table import Table
from fastmask.heads import UNKNOWN, Heads
from fastmask.model.probe import ProbeWeights, probed_heads

# more photos hardly make a linear model better, and cost time and memory
MOST_PHOTOS = 6000
# the principal components that are fitted on, and the inverse regularisations to choose from, the strongest first, for
# components whose variances sum up to 1
COMPONENTS, STRENGTHS = 512, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# the part of the persons that the regularisation is chosen on
_CHOOSING = 0.25
# the minimum deviation of a feature
_LEAST_DEVIATION = 1e-6


def fit_probe(features: np.ndarray, table: Table, seed: int) -> ProbeWeights:
    """Fit a linear model per head to (N, features) of a table's photos; a head's unknown labels do not count.

    A head with a class that none of the photos has gets no model, since it would overrule a network that knows the
    class from other photos. The model is scikit-learn's LogisticRegression on the principal components of the
    standardised features. Of `STRENGTHS` a head has the one with the lowest cross-entropy on a quarter of the persons,
    by a model of the others.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > _LEAST_DEVIATION, deviation, 1.0) * np.sqrt(features.shape[1])
    x = (features - mean) / scale
    pca = PCA(min(COMPONENTS, *x.shape), svd_solver="randomized", iterated_power=2, random_state=seed).fit(x)
    inner = pca.transform(x).astype(np.float64)
    parts = list(_fit_heads(inner, table.heads, table.train_y, table.groups, seed))
    weight = np.concatenate([part for part, _ in parts]) @ pca.components_ / scale
    bias = np.concatenate([bias for _, bias in parts]) - weight @ (mean + pca.mean_ * scale)
    return ProbeWeights(*(torch.from_numpy(each.astype(np.float32)) for each in (weight, bias)))


def _fit_heads(
    x: np.ndarray, heads: Heads, y: np.ndarray, groups: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The (classes, components) weights and (classes,) biases of each probed head; 0 if it lacks photos of a class."""
    for position in probed_heads(heads):
        known, classes = y[:, position] != UNKNOWN, heads.sizes[position]
        own = y[known, position]
        if len(np.unique(own)) < classes:
            yield np.zeros((classes, x.shape[1])), np.zeros(classes)
            continue
        model = _fit(x[known], own, _choose_strength(x[known], own, groups[known], seed))
        weight, bias = model.coef_, model.intercept_
        if classes == 2:
            # scikit-learn has one row for two classes: the difference of their logits
            weight, bias = (np.concatenate([-each, each]) / 2 for each in (weight, bias))
        yield weight, bias


def _choose_strength(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """The inverse regularisation with the lowest cross-entropy on some persons; a middle one if they do not suffice."""
    middle = STRENGTHS[len(STRENGTHS) // 2]
    if len(np.unique(groups)) < 2:
        return middle
    train, valid = next(GroupShuffleSplit(1, test_size=_CHOOSING, random_state=seed).split(x, y, groups))
    valid = valid[np.isin(y[valid], y[train])]
    seen = np.unique(y[train])
    if len(seen) < 2 or not len(valid):
        return middle
    losses = [
        log_loss(y[valid], _fit(x[train], y[train], strength).predict_proba(x[valid]), labels=seen)
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmin(losses))]


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        # many classes of few photos each
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        return LogisticRegression(C=strength, solver="newton-cg", max_iter=1000).fit(x, y)
