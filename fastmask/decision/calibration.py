"""Calibration: the difference between a head's confidence and accuracy, and the temperature that reduces it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastmask.decision.temperature import fit_temperature
from fastmask.heads import UNKNOWN, Heads
from fastmask.scoring import Plain

BINS = 15


@dataclass(frozen=True)
class Calibration(Plain):
    """A head's temperature and its reliability before and after: see `reliability`, `calibration_error`."""

    temperature: float
    before: pd.DataFrame
    after: pd.DataFrame
    error_before: float
    error_after: float

    def __str__(self) -> str:
        return f"{self.temperature:11.3f}  {self.error_before:.4f} -> {self.error_after:.4f}"


def reliability(probabilities: np.ndarray, y: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """The accuracy of the most probable class by its probability: low, high, n, confidence, accuracy per bin.

    Takes (N, classes) probabilities of one head and (N,) labels; those of -1 are left out. Bins have equal width; empty
    ones are left out.
    """
    known = y != UNKNOWN
    sure, right = probabilities[known].max(-1), probabilities[known].argmax(-1) == y[known]
    bin_of = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    n = np.bincount(bin_of, minlength=bins)
    some = np.flatnonzero(n)
    mean = [np.bincount(bin_of, weights, minlength=bins)[some] / n[some] for weights in (sure, right)]
    return pd.DataFrame(
        {"low": some / bins, "high": (some + 1) / bins, "n": n[some], "confidence": mean[0], "accuracy": mean[1]}
    )


def calibration_error(probabilities: np.ndarray, y: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (ECE): the mean distance of confidence and accuracy, bins weighted by photos.

    NaN without labels. See `reliability`; Naeini et al. 2015, Guo et al. 2017.
    """
    table = reliability(probabilities, y, bins)
    distance = (table["confidence"] - table["accuracy"]).abs()
    return float((distance * table["n"]).sum() / table["n"].sum()) if len(table) else float("nan")


def calibrations(heads: Heads, before: np.ndarray, after: np.ndarray, y: np.ndarray) -> dict[str, Calibration]:
    """The calibration of each head, from (N, classes of all heads) probabilities before and after, (N, heads) labels.

    `after` should be fitted on other photos; the temperature is fitted on all of these. A distribution over a number is
    left out, since it need not hit the exact number, and so is a head of weight 0, which was not learned.
    """
    return {
        head.name: Calibration(
            fit_temperature(raw, labels),
            reliability(raw, labels),
            reliability(scaled, labels),
            calibration_error(raw, labels),
            calibration_error(scaled, labels),
        )
        for head, raw, scaled, labels in zip(heads, heads.split(before), heads.split(after), y.T, strict=True)
        if head.spread is None and head.weight
    }
