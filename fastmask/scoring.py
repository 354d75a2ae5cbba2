"""Scores: macro-F1 and accuracy of the joint class and of each head, with intervals by bootstrap over persons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.randomness import Counted, Stream

DRAWS = 2000
# a draw lacks a class of one person in 37 % of cases, of five in under 1 %
FEW_GROUPS = 5
# the figure to monitor of which less is better; every other is a metric of which more is
LOSS = "valid_loss"


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
    keeps its F1 of the whole. Where most classes have few groups that makes the interval too narrow: see `is_thin`.
    """
    return score_together([(predicted, true, classes)], groups, draws, seed)[0]


Target = tuple[np.ndarray, np.ndarray, Sequence[int] | None]


def score_together(
    targets: Sequence[Target], groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> list[Score]:
    """`score` of several (predicted, true, classes) on the same photos and the same draws."""
    n = len(targets[0][1])
    owner = np.zeros(n, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    counted = [_Counted(predicted, true, classes, owner) for predicted, true, classes in targets]
    if groups is None or draws == 0 or n == 0:
        return [target.score() for target in counted]
    for weights in _bootstrap_weights(int(owner.max()) + 1, draws, seed):
        for target in counted:
            target.draw(weights)
    return [target.score() for target in counted]


class _Counted:
    """One target's counts, and the figures of the draws so far."""

    def __init__(
        self, predicted: np.ndarray, true: np.ndarray, classes: Sequence[int] | None, owner: np.ndarray
    ) -> None:
        known = true != UNKNOWN
        self.n = int(known.sum())
        self.classes = np.unique(true[known]) if classes is None else np.asarray(sorted(classes), dtype=np.int64)
        self.draws: list[tuple[np.ndarray, np.ndarray]] = []
        if self.n and len(self.classes):
            groups = int(owner.max()) + 1
            self.counts = _counts(predicted[known], true[known], self.classes, owner[known], groups)
            self.each, self.accuracy = _rates(self.counts.sum(axis=0)[None, :], len(self.classes))

    def draw(self, weights: np.ndarray) -> None:
        """Add the figures of (draws, groups) weights."""
        if self.n and len(self.classes):
            each, accuracy = _rates(weights @ self.counts, len(self.classes), self.each)
            # a draw without any of these photos says nothing
            self.draws.append((each.mean(1)[~np.isnan(accuracy)], accuracy[~np.isnan(accuracy)]))

    def score(self) -> Score:
        """The figures of the whole, with intervals where there were draws."""
        if not self.n or not len(self.classes):
            return Score(float("nan"), float("nan"), 0)
        point = float(self.each.mean()), float(self.accuracy[0])
        if not self.draws:
            return Score(*point, self.n)
        f1_draws, accuracy_draws = (np.concatenate(part) for part in zip(*self.draws, strict=True))
        return Score(*point, self.n, _interval(f1_draws, point[0]), _interval(accuracy_draws, point[1]))


def _counts(predicted: np.ndarray, true: np.ndarray, classes: np.ndarray, owner: np.ndarray, groups: int) -> csr_array:
    """(groups, 3 * classes + 2): per group the hits, answers and truths of each class, all hits, all photos.

    Sparse: with many heads there can be as many joint classes as photos, and a group has seen few of them.
    """
    k = len(classes)
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
    with np.errstate(invalid="ignore"):
        return f1(hits, predicted, true, absent), counts[:, -2] / counts[:, -1]


def _bootstrap_weights(groups: int, draws: int, seed: int, at_once: int = 250) -> Any:
    """How often each group is drawn, (draws, groups) in pieces: groups drawn with replacement, as many as there are."""
    rng = Counted(Stream.BOOTSTRAP, seed).at(0)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)


def _interval(values: np.ndarray, point: float) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return min(float(low), point), max(float(high), point)


def is_thin(true: np.ndarray, groups: np.ndarray) -> bool:
    """Whether half of the classes of (N,) truths, -1 left out, stand on fewer than FEW_GROUPS groups.

    Then draws lack many of them, and the bootstrap's interval of macro-F1 is too narrow.
    """
    known = true != UNKNOWN
    seen = np.unique(np.stack([true[known], np.unique(groups[known], return_inverse=True)[1]]), axis=1)
    return bool(known.any() and np.median(np.unique(seen[0], return_counts=True)[1]) < FEW_GROUPS)


def target_of(heads: Heads, y: np.ndarray, target: str) -> np.ndarray:
    """(N, heads) class numbers -> (N,) those of one head, or of the joint class."""
    return np.asarray(heads.joint(y) if target == JOINT else y[:, heads.position(target)])


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
    names = (JOINT, *heads.names)
    targets = [
        (target_of(heads, predicted, t), target_of(heads, true, t), _known(target_of(heads, whole, t))) for t in names
    ]
    joint, *each = score_together(targets, groups, draws)
    notes = []
    if groups is not None and draws and is_thin(targets[0][1], groups):
        notes.append(
            f"Half of the joint classes have under {FEW_GROUPS} persons: the interval of their macro-F1 is too narrow."
        )
    if joint.n < len(true):
        notes.append(f"{len(true) - joint.n} of {len(true)} photos lack a label and are left out of the joint score.")
    return Scores(joint, dict(zip(heads.names, each, strict=True)), notes)


def _known(labels: np.ndarray) -> list[int]:
    return np.unique(labels[labels != UNKNOWN]).tolist()
