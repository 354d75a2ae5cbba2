"""Temperature: the confidence of a head's probabilities, changed by one number, which labels fit (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from fastmask.heads import UNKNOWN

# the bounds of a temperature; beyond them the labels hardly depend on the predictions
LEAST, MOST = 0.05, 20.0
# replaces a probability of 0, to keep the logarithm finite
TINY = 1e-30


def log_probabilities(probabilities: np.ndarray, least: float = TINY) -> np.ndarray:
    """The logarithms of probabilities, or of `least` where they are smaller, so that they are finite also for 0."""
    return np.log(np.maximum(probabilities, least, dtype=np.float64))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(N, classes) probabilities of one head as softmax(logits / temperature); less confident above 1."""
    scaled = log_probabilities(probabilities) / temperature
    return np.exp(scaled - logsumexp(scaled, axis=-1, keepdims=True))


def fit_temperature(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Fit the temperature of (N, classes) probabilities with the highest likelihood of (N,) labels (Guo et al. 2017).

    Labels of -1 are left out; without labels it is 1. The most probable class does not change.
    """
    known = y != UNKNOWN
    logs, labels = log_probabilities(probabilities[known]), y[known]
    if not len(labels):
        return 1.0
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[rows, labels]).mean())

    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded")
    return float(np.exp(found.x))
