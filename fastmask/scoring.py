"""Scores: macro-F1 and accuracy of the joint class and of each head, with intervals by bootstrap over persons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from fastmask.heads import UNKNOWN, Heads
from fastmask.randomness import Counted, Stream

DRAWS = 2000
JOINT = "joint"


@dataclass(frozen=True)
class Score:
    """Macro-F1 and accuracy of one target over `n` photos, each with its 95 % interval (None where not asked for)."""

    macro_f1: float
    accuracy: float
    n: int
    macro_f1_interval: tuple[float, float] | None = None
    accuracy_interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"macro-F1 {_with_interval(self.macro_f1, self.macro_f1_interval)}, accuracy " + _with_interval(
            self.accuracy, self.accuracy_interval
        )


@dataclass(frozen=True)
class Scores:
    """The score of the joint class and of each head; `notes` say what a reader must know to believe them."""

    joint: Score
    heads: dict[str, Score]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(JOINT, self.joint), *self.heads.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'macro-F1':24}  accuracy"]
        for name, s in rows:
            f1 = _with_interval(s.macro_f1, s.macro_f1_interval)
            lines.append(f"{name:{width}}  {f1:24}  {_with_interval(s.accuracy, s.accuracy_interval)}")
        return "\n".join([*lines, *self.notes])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {JOINT: _plain(self.joint), "heads": {k: _plain(s) for k, s in self.heads.items()}, "notes": self.notes}


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.4f}" + (f" ({interval[0]:.4f} … {interval[1]:.4f})" if interval else "")


def _plain(score: Score) -> dict[str, Any]:
    plain: dict[str, Any] = {"macro_f1": score.macro_f1, "accuracy": score.accuracy, "n": score.n}
    for name in ("macro_f1_interval", "accuracy_interval"):
        interval = getattr(score, name)
        plain[name] = list(interval) if interval else None
    return plain


def f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray, absent: np.ndarray | float = 0.0) -> np.ndarray:
    """Counts of right answers, of answers and of truths a class -> the F1 a class.

    A class without truth has F1 `absent`; 0 is what scikit-learn gives, with `zero_division=0`.
    """
    both = predicted + true
    return np.where(true > 0, np.divide(2 * hits, both, where=both > 0, out=np.zeros(both.shape)), absent)


def macro_f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Counts (..., classes) -> (...) the mean F1 over the classes, those without truth and answer counted as 0."""
    return f1(hits, predicted, true).mean(-1)


def score(
    predicted: np.ndarray,
    true: np.ndarray,
    classes: Sequence[int] | None = None,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Score:
    """Macro-F1 and accuracy of (N,) class numbers; photos whose truth is -1 are left out.

    `classes` are those that the mean is over; by default those that the truth has. With `groups` (N,), such as the
    persons, 95 % intervals by a bootstrap that draws whole groups: `draws` times, the percentiles 2.5 and 97.5. The
    mean is over the same classes in every draw; one that a draw happens to lack says nothing about itself there, and
    keeps its F1 of the whole.
    """
    known = true != UNKNOWN
    predicted, true = predicted[known], true[known]
    kept = np.unique(true) if classes is None else np.asarray(sorted(classes), dtype=np.int64)
    if len(true) == 0 or len(kept) == 0:
        return Score(float("nan"), float("nan"), 0)
    owner = np.zeros(len(true), np.int64) if groups is None else np.unique(groups[known], return_inverse=True)[1]
    counts = _counts(predicted, true, kept, owner)
    each, accuracy = _rates(counts.sum(axis=0)[None, :], len(kept))
    point = float(each.mean()), float(accuracy[0]), len(true)
    if groups is None or draws == 0:
        return Score(*point)
    drawn = [_means(weights @ counts, len(kept), each) for weights in _bootstrap_weights(counts.shape[0], draws, seed)]
    f1_draws, accuracy_draws = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return Score(*point, _interval(f1_draws), _interval(accuracy_draws))


def _counts(predicted: np.ndarray, true: np.ndarray, classes: np.ndarray, owner: np.ndarray) -> csr_array:
    """(groups, 3 * classes + 2): per group the hits, answers and truths of each class, all hits, all photos.

    Sparse: with many heads there can be as many joint classes as photos, and a group has seen few of them.
    """
    k, groups = len(classes), int(owner.max()) + 1
    hit = predicted == true
    every = np.ones_like(hit)
    places = []
    for block, (who, rows) in enumerate(((true, hit), (predicted, every), (true, every))):
        rows = rows & np.isin(who, classes)
        places.append((owner[rows], block * k + np.searchsorted(classes, who[rows])))
    places += [(owner[hit], np.full(hit.sum(), 3 * k)), (owner, np.full(len(owner), 3 * k + 1))]
    row, column = (np.concatenate(part) for part in zip(*places, strict=True))
    # places that occur twice are added up
    return csr_array((np.ones(len(row)), (row, column)), shape=(groups, 3 * k + 2))


def _rates(counts: np.ndarray, k: int, absent: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(draws, 3 * classes + 2) counts -> (draws, classes) F1, (draws,) accuracy."""
    hits, predicted, true = (counts[:, i * k : (i + 1) * k] for i in range(3))
    return f1(hits, predicted, true, absent), counts[:, -2] / counts[:, -1]


def _means(counts: np.ndarray, k: int, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(draws, 3 * classes + 2) counts -> (draws,) macro-F1, (draws,) accuracy."""
    each, accuracy = _rates(counts, k, absent)
    return each.mean(1), accuracy


def _bootstrap_weights(groups: int, draws: int, seed: int, at_once: int = 250) -> Any:
    """How often each group is drawn, (draws, groups) in pieces: groups drawn with replacement, as many as there are."""
    rng = Counted(Stream.BOOTSTRAP, seed).at(0)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def score_heads(
    heads: Heads,
    predicted: np.ndarray,
    true: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    whole: np.ndarray | None = None,
) -> Scores:
    """(N, heads) class numbers -> the scores of the joint class and of each head.

    A head counts the photos whose label it knows, the joint class those of which all heads are known. The means are
    over the classes of `true`, or of `whole`: give it the labels (M, heads) of the table that `true` is a part of.
    """
    whole = true if whole is None else whole
    joint = score(heads.joint(predicted), heads.joint(true), _known(heads.joint(whole)), groups, draws)
    notes = []
    if joint.n < len(true):
        notes.append(f"{len(true) - joint.n} of {len(true)} photos lack a label and are left out of the joint score.")
    each = {h.name: score(predicted[:, i], true[:, i], _known(whole[:, i]), groups, draws) for i, h in enumerate(heads)}
    return Scores(joint, each, notes)


def _known(labels: np.ndarray) -> list[int]:
    return np.unique(labels[labels != UNKNOWN]).tolist()
