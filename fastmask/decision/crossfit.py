"""Cross-fitting: what is fitted on some persons, applied to others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmask.decision.rule import fit_rule
from fastmask.heads import Heads
from fastmask.scoring import score


def cross_fit(
    rule: str,
    heads: Heads,
    probabilities: np.ndarray,
    y: np.ndarray,
    parts: np.ndarray,
    persons: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated and averaged probabilities (N, classes of all heads) and classes (N, heads) of photos.

    The rule for the photos of each of (N,) parts is fitted on those of the other parts, by their (N, heads) labels; see
    `fit_rule`.
    """
    decided, classes = np.empty_like(probabilities), np.empty_like(y)
    for part in np.unique(parts):
        here = parts == part
        own, others = (None, None) if persons is None else (persons[here], persons[~here])
        fitted = fit_rule(rule, heads, probabilities[~here], y[~here], others)
        decided[here] = fitted.averaged(fitted.calibrated(probabilities[here]), own)
        classes[here] = fitted.choose(decided[here])
    return decided, classes


def choose_by_others(answers: np.ndarray, true: np.ndarray, parts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """For each part, the one of (K, N) predictions that is best on the other parts; of equal ones the first."""
    chosen = np.empty_like(true)
    for part in np.unique(parts):
        here = parts == part
        scores = [score(one[~here], true[~here], classes, draws=0).macro_f1 for one in answers]
        chosen[here] = answers[int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0][here]
    return chosen
