"""Scoring: macro-F1 and accuracy of the joint class and of each head, with intervals by bootstrap over persons.

Differences between predictions for the same photos are paired: both are scored on the same draws of persons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array, vstack

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.system.errors import UsageError
from fastmask.system.randomness import Counted, Stream

DRAWS = 2000
# weight of the imaginary groups; examples/benchmarks/coverage.py measures its effect on the intervals
_IMAGINARY = 0.5
# per class; intervals of differences covered the truth in 92 % of simulated trials with 105, in 84 % with 28
_FEW_GROUPS = 30
# the only monitored value of which lower is better
LOSS = "valid_loss"


CELLS = f"{'macro-F1':24}  accuracy"


def plain(value: Any) -> Any:
    """A value in plain JSON types: fields and mappings as objects, tables as lists of rows, sequences as lists."""
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "to_dict"):
        return value.to_dict("records")
    return str(value) if isinstance(value, Path) else value


class Plain:
    """A mixin of dataclasses that are converted to plain values."""

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def goodness(values: ArrayLike, monitor: str) -> np.ndarray:
    """Values of the metric `monitor`, negated where lower is better, so that higher is better; NaN becomes -inf."""
    array = np.asarray(values, np.float64)
    return np.where(np.isnan(array), -np.inf, -array if monitor == LOSS else array)


@dataclass(frozen=True)
class Score(Plain):
    """Macro-F1 and accuracy of one target over `n` photos, each with its 95 % interval (None without bootstrap)."""

    macro_f1: float
    accuracy: float
    n: int
    macro_f1_interval: tuple[float, float] | None = None
    accuracy_interval: tuple[float, float] | None = None

    @property
    def texts(self) -> tuple[str, str]:
        """Its macro-F1 and its accuracy, each with its interval."""
        macro_f1 = format_interval(self.macro_f1, self.macro_f1_interval)
        return macro_f1, format_interval(self.accuracy, self.accuracy_interval)

    def __str__(self) -> str:
        return "macro-F1 {}, accuracy {}".format(*self.texts)

    @property
    def cells(self) -> str:
        """Macro-F1 with its interval, and accuracy, as cells of a table with the header `CELLS`."""
        return f"{self.texts[0]:24}  {self.accuracy:.4f}  "


@dataclass(frozen=True)
class Difference(Plain):
    """The difference of two predictions for the same photos, with 95 % intervals of the paired bootstrap."""

    macro_f1: float
    accuracy: float
    macro_f1_interval: tuple[float, float]
    accuracy_interval: tuple[float, float]

    @property
    def is_noise(self) -> bool:
        """Whether the interval of macro-F1 contains 0."""
        low, high = self.macro_f1_interval
        return not (low > 0 or high < 0)

    def __str__(self) -> str:
        return f"{self.cell}{', within noise' if self.is_noise else ''}"

    @property
    def cell(self) -> str:
        """The difference of macro-F1 with its interval as a cell of a table."""
        low, high = self.macro_f1_interval
        return f"{self.macro_f1:+.4f} ({low:+.4f} … {high:+.4f})"


@dataclass(frozen=True)
class Scores(Plain):
    """The score of the joint class and of each head; `notes` qualify them."""

    joint: Score
    heads: dict[str, Score]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(JOINT, self.joint), *self.heads.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'macro-F1':24}  accuracy"]
        for name, score in rows:
            f1, accuracy = score.texts
            lines.append(f"{name:{width}}  {f1:24}  {accuracy}")
        return "\n".join([*lines, *self.notes])


def format_interval(value: float, interval: tuple[float, float] | None) -> str:
    """A score with its interval as tables show it."""
    return f"{value:.4f}" + (f" ({interval[0]:.4f} … {interval[1]:.4f})" if interval else "")


def interval_columns(name: str, value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None]:
    """A score and the ends of its interval as the columns NAME, NAME_low and NAME_high of a table."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Counts of hits, predictions and truths per class -> F1 per class.

    A class without truth has F1 0, as in scikit-learn with `zero_division=0`.
    """
    both = predicted + true
    return np.where(true > 0, np.divide(2 * hits, both, where=both > 0, out=np.zeros(both.shape)), 0.0)


def macro_f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Counts (..., classes) -> (...) the mean F1 over the classes; classes without truth count as 0."""
    return f1(hits, predicted, true).mean(-1)


def score(
    predicted: np.ndarray,
    true: np.ndarray,
    classes: Sequence[int] | None = None,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Score:
    """Macro-F1 and accuracy of (N,) class numbers; photos with truth -1 are left out.

    The mean is over `classes`, by default those of the truth. With `groups` (N,), such as persons, 95 % intervals by a
    bootstrap over whole groups: the percentiles 2.5 and 97.5 of `draws` draws, all over the same classes. Half an
    imaginary group, partly always right and partly always wrong, is added, because otherwise the intervals of classes
    with few groups would be too narrow.
    """
    return score_together([(predicted, true, classes)], groups, draws, seed)[0]


Target = tuple[np.ndarray, np.ndarray, Sequence[int] | None]


def score_together(
    targets: Sequence[Target], groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> list[Score]:
    """`score` of several (predicted, true, classes) on the same photos and the same draws."""
    return [target.score() for target in draw_scores(targets, groups, draws, seed)]


def score_differences(
    targets: Sequence[Target], groups: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> list[Difference]:
    """The difference of each later (predicted, true, classes) from the first, for the same photos.

    Both are scored on the same draws of groups (paired bootstrap), so that common difficulties cancel out.
    """
    first, *others = draw_scores(targets, groups, draws, seed)
    return [other.minus(first) for other in others]


def draw_scores(
    targets: Sequence[Target], groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> list[TargetDraws]:
    """Targets of the same photos with their values in the same draws, for scores and differences."""
    n = len(targets[0][1])
    owner = np.zeros(n, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    counted = [TargetDraws(predicted, true, classes, owner) for predicted, true, classes in targets]
    if groups is not None and draws and n:
        for weights in _bootstrap_weights(int(owner.max()) + 1, draws, seed):
            for target in counted:
                target.draw(weights)
    return counted


class TargetDraws:
    """One target's counts, and its values in each draw of groups."""

    def __init__(
        self, predicted: np.ndarray, true: np.ndarray, classes: Sequence[int] | None, owner: np.ndarray
    ) -> None:
        known = true != UNKNOWN
        self.n = int(known.sum())
        self.classes = np.unique(true[known]) if classes is None else np.asarray(sorted(classes), dtype=np.int64)
        self.draws: list[tuple[np.ndarray, np.ndarray]] = []
        if self.n and len(self.classes):
            groups = int(owner.max()) + 1
            counts = _counts(predicted[known], true[known], self.classes, owner[known], groups)
            self.each, self.accuracy = _rates(counts.sum(axis=0)[None, :], len(self.classes))
            self.counts = vstack([counts, _imaginary_groups(counts, len(self.classes))], format="csr")

    def draw(self, weights: np.ndarray) -> None:
        """Add the values for (draws, groups + 2) weights, the last two of the imaginary groups."""
        if self.n and len(self.classes):
            each, accuracy = _rates(weights @ self.counts, len(self.classes))
            # a draw without any of these photos has no value
            self.draws.append((each.mean(1)[~np.isnan(accuracy)], accuracy[~np.isnan(accuracy)]))

    def score(self) -> Score:
        """The score of all photos, with intervals if there were draws."""
        if not self.n or not len(self.classes):
            return Score(float("nan"), float("nan"), 0)
        point = float(self.each.mean()), float(self.accuracy[0])
        if not self.draws:
            return Score(*point, self.n)
        f1_draws, accuracy_draws = self._figures()
        return Score(*point, self.n, _interval(f1_draws, point[0]), _interval(accuracy_draws, point[1]))

    def minus(self, other: TargetDraws) -> Difference:
        """The difference of this and `other`, draw by draw."""
        here, there = self.score(), other.score()
        points = here.macro_f1 - there.macro_f1, here.accuracy - there.accuracy
        if not self.draws:
            return Difference(*points, (float("nan"),) * 2, (float("nan"),) * 2)
        drawn = [a - b for a, b in zip(self._figures(), other._figures(), strict=True)]
        intervals = [_interval(values, point) for values, point in zip(drawn, points, strict=True)]
        return Difference(*points, *intervals)

    def _figures(self) -> list[np.ndarray]:
        """Macro-F1 and accuracy of all draws."""
        return [np.concatenate(part) for part in zip(*self.draws, strict=True)]


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
    # duplicate places are summed
    return csr_array((np.ones(len(row)), (row, column)), shape=(groups, 3 * k + 2))


def _imaginary_groups(counts: csr_array, k: int) -> csr_array:
    """(2, 3 * classes + 2): a group that is always right and one that is always wrong.

    They have as many photos of each class as an average group with that class, and do not change the accuracy.
    """
    true = counts[:, 2 * k : 3 * k]
    photos = true.sum(axis=0) / np.maximum((true > 0).sum(axis=0), 1)
    return csr_array(np.stack([np.r_[hits, photos, photos, 0, 0] for hits in (photos, 0 * photos)]))


def _rates(counts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(draws, 3 * classes + 2) counts -> (draws, classes) F1, (draws,) accuracy."""
    hits, predicted, true = (counts[:, i * k : (i + 1) * k] for i in range(3))
    with np.errstate(invalid="ignore"):
        return f1(hits, predicted, true), counts[:, -2] / counts[:, -1]


def _bootstrap_weights(groups: int, draws: int, seed: int, at_once: int = 250) -> Any:
    """How often each group is drawn with replacement, in batches of (draws, groups + 2).

    The last two weights are of the imaginary groups: exponential ones would be a whole group each (Rubin 1981).
    """
    rng = Counted(Stream.BOOTSTRAP, seed).at(0)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=size)
        yield np.hstack([drawn, rng.gamma(_IMAGINARY / 2, size=(size, 2))])


def _interval(values: np.ndarray, point: float) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return min(float(low), point), max(float(high), point)


def why_optimistic(folds: int) -> str:
    """Why the optimistic score of a run with `folds` folds flatters, for scores.json."""
    others = "chosen by the other folds" if folds > 1 else "the last ones, because with one fold no other can choose"
    return f"each fold's epochs are chosen by the fold's own score, which flatters; the headline's are {others}"


def few_groups_caveat(true: np.ndarray, groups: np.ndarray) -> list[str]:
    """The caveat of score differences if half of the classes of (N,) truths, without -1, have few groups; else none."""
    known = true != UNKNOWN
    seen = np.unique(np.stack([true[known], np.unique(groups[known], return_inverse=True)[1]]), axis=1)
    if not known.any() or np.median(np.unique(seen[0], return_counts=True)[1]) >= _FEW_GROUPS:
        return []
    return [f"Half of the joint classes have under {_FEW_GROUPS} persons: the intervals of differences are too narrow."]


def target_of(heads: Heads, y: np.ndarray, target: str) -> np.ndarray:
    """(N, heads) class numbers -> (N,) those of one head, or of the joint class; raises UsageError for any other."""
    if target != JOINT and target not in heads.names:
        raise UsageError(
            f"There is no head {target!r}; the heads are {', '.join(heads.names)}, and {JOINT} is all of them together."
        )
    return np.asarray(heads.joint(y) if target == JOINT else y[:, heads.position(target)])


def make_target(heads: Heads, predicted: np.ndarray, true: np.ndarray, target: str, whole: np.ndarray) -> Target:
    """(N, heads) predictions and labels -> those of one head or the joint class; the classes are those of `whole`."""
    answers, labels = target_of(heads, predicted, target), target_of(heads, true, target)
    return answers, labels, known_classes(target_of(heads, whole, target))


def score_heads(
    heads: Heads,
    predicted: np.ndarray,
    true: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    whole: np.ndarray | None = None,
) -> Scores:
    """(N, heads) class numbers -> the scores of the joint class and of each head, except for distributions.

    A head counts the photos with a known label, the joint class those with all labels known. The means are over the
    classes of `true`, or of `whole`, the labels (M, heads) of the table that `true` is a part of.
    """
    whole = true if whole is None else whole
    (drawn,) = draw_heads(heads, [predicted], true, whole, groups, draws)
    joint, *each = (one.score() for one in drawn.values())
    notes = []
    if joint.n < len(true):
        notes.append(f"{len(true) - joint.n} of {len(true)} photos lack a label and are left out of the joint score.")
    return Scores(joint, dict(zip(heads.classified, each, strict=True)), notes)


def draw_heads(
    heads: Heads,
    predicted: Sequence[np.ndarray],
    true: np.ndarray,
    whole: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
) -> list[dict[str, TargetDraws]]:
    """For each of several (N, heads) answers the joint class and each head, all in the same draws."""
    names = (JOINT, *heads.classified)
    targets = [make_target(heads, answers, true, name, whole) for answers in predicted for name in names]
    drawn = iter(draw_scores(targets, groups, draws))
    return [{name: next(drawn) for name in names} for _ in predicted]


def known_classes(labels: np.ndarray) -> list[int]:
    """The classes of (N,) labels, without -1."""
    return np.unique(labels[labels != UNKNOWN]).tolist()
