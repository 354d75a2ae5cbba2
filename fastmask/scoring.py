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

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.system.errors import UsageError
from fastmask.system.randomness import Counted, Stream

DRAWS = 2000
# the most classes that a note names
_NAMED = 5
# how intervals are made, for reports
HOW_INTERVALS = (
    "The 95 % intervals are from a Bayesian bootstrap of whole persons, with an imaginary person added whose photos "
    "are all wrong (for the lower end) or all right (for the upper end), so they are valid with few persons too."
)
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
    """Macro-F1 and accuracy of one target over `n` photos, each with its 95 % interval (None without bootstrap).

    >>> score = fm.Score(macro_f1=0.5, accuracy=0.75, n=4)
    >>> print(score)
    macro-F1 0.5000, accuracy 0.7500
    """

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
    """The score of the joint class and of each head; `notes` qualify them.

    >>> scores = run.score(draws=0)
    >>> list(scores.heads), scores.joint.n
    (['mask', 'gender', 'age'], 84)
    """

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

    The mean is over `classes`, by default those of the truth and of the predictions, as in scikit-learn. With `groups`
    (N,), such as persons, 95 % intervals by a Bayesian bootstrap of whole groups (Rubin 1981) with `draws` draws. Each
    group counts by how much it changes the score of the others (jackknife, Tukey 1958). An imaginary group is added,
    for the lower end a wrong one, for the upper end a right one (Gaffke 2005); for the accuracy of one photo per group
    that is the interval of Clopper and Pearson (1934).
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

    Both are scored on the same draws of groups, so that common difficulties cancel out. Two imaginary groups are added,
    each of which only one of both predicts right, as by Bonett and Price (2012), so even equal predictions have an
    interval: other groups may be predicted differently. Without `classes`, those of the truth and of all predictions.
    """
    every = counted_classes(targets[0][1], *(predicted for predicted, _, _ in targets))
    targets = [(predicted, true, every if classes is None else classes) for predicted, true, classes in targets]
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
    """The macro-F1 and the accuracy of one target, and their values in each draw of groups."""

    def __init__(
        self, predicted: np.ndarray, true: np.ndarray, classes: Sequence[int] | None, owner: np.ndarray
    ) -> None:
        known = true != UNKNOWN
        predicted, true, owner = predicted[known], true[known], owner[known]
        self.classes = np.union1d(true, predicted) if classes is None else np.unique(np.asarray(classes, np.int64))
        self.n = len(true) if len(self.classes) else 0
        self._macro_f1 = _Figure(_Counts.of_classes(predicted, true, self.classes, owner))
        self._accuracy = _Figure(_Counts.of_photos(predicted == true, owner))

    @property
    def each(self) -> np.ndarray:
        """(classes,) F1."""
        return self._macro_f1.each

    def draw(self, weights: np.ndarray) -> None:
        """Add the values for (draws, groups + 2) weights, the last two of the imaginary groups."""
        if self.n:
            self._macro_f1.draw(weights)
            self._accuracy.draw(weights)

    def score(self) -> Score:
        """The score of all photos, with intervals if there were draws."""
        if not self.n:
            return Score(float("nan"), float("nan"), 0)
        macro_f1, accuracy = self._macro_f1, self._accuracy
        return Score(macro_f1.value, accuracy.value, self.n, macro_f1.interval(), accuracy.interval())

    def minus(self, other: TargetDraws) -> Difference:
        """The difference of this and `other`, which has the same truth and classes."""
        return Difference(
            self._macro_f1.value - other._macro_f1.value,
            self._accuracy.value - other._accuracy.value,
            self._macro_f1.interval_of_difference(other._macro_f1),
            self._accuracy.interval_of_difference(other._accuracy),
        )

    def draws_minus(self, other: TargetDraws) -> np.ndarray:
        """(2 * draws,) differences of macro-F1, of which `minus` gives the interval."""
        return self._macro_f1.draws_minus(other._macro_f1)


@dataclass(frozen=True, eq=False)
class _Counts:
    """The photos of each pair of a group and a class that occurs: hits, truths and predictions; of `k` classes.

    With many heads there can be as many joint classes as photos, and a group has seen few of them.
    """

    group: np.ndarray
    column: np.ndarray
    hits: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    k: int

    @classmethod
    def of_classes(cls, predicted: np.ndarray, true: np.ndarray, classes: np.ndarray, owner: np.ndarray) -> _Counts:
        """Of (N,) predictions and truths."""
        k = len(classes)
        asked, said = (np.flatnonzero(np.isin(y, classes)) for y in (true, predicted))
        places = [owner[rows] * k + np.searchsorted(classes, y[rows]) for rows, y in ((asked, true), (said, predicted))]
        pair, at = np.unique(np.concatenate(places), return_inverse=True)
        at_true, at_predicted = np.split(at, [len(asked)])
        hit = at_true[(predicted == true)[asked]]
        hits, truths, predictions = (np.bincount(part, minlength=len(pair)) for part in (hit, at_true, at_predicted))
        return cls(pair // max(k, 1), pair % max(k, 1), hits, truths, predictions, k)

    @classmethod
    def of_photos(cls, hit: np.ndarray, owner: np.ndarray) -> _Counts:
        """Of one class of all photos, whose F1 is the accuracy."""
        group, at = np.unique(owner, return_inverse=True)
        photos = np.bincount(at, minlength=len(group))
        return cls(group, 0 * group, np.bincount(at[hit], minlength=len(group)), photos, photos, 1)

    def total(self, counts: np.ndarray) -> np.ndarray:
        """(pairs,) counts -> (k,) their sums."""
        return np.bincount(self.column, counts, self.k)


class _Figure:
    """A mean of F1 over classes, and its draws."""

    def __init__(self, counts: _Counts) -> None:
        self.counts = counts
        self.true = counts.total(counts.true)
        self.each = f1(counts.total(counts.hits), counts.total(counts.predicted), self.true)
        self.value = float(self.each.mean()) if counts.k else float("nan")
        # a class without truth has F1 0 whatever the predictions
        self.highest = float((self.true > 0).mean()) if counts.k else 0.0
        self._drawn: list[np.ndarray] = []
        self._changes, self._parts = np.zeros(0), np.zeros(0)
        self._size, self._loss, self._gain = 0.0, 0.0, 0.0

    def _by_group(self, groups: int) -> np.ndarray:
        """(groups, 4): the change of the score by each group, its part of it, and of what it could lose and gain.

        The change is that of the score of the other groups. An average group that is as right as the score is one of
        them, because a class of one group has no others.
        """
        counts, column = self.counts, self.counts.column
        both, having = counts.predicted + counts.true, counts.total(counts.true > 0)
        hits, photos = (counts.total(part) for part in (counts.hits, both))
        average = 2 * self.true / np.maximum(having, 1)
        others = np.maximum((photos + average)[column] - both, 1)
        rate = (2 * (hits[column] - counts.hits) + self.value * average[column]) / others
        change = np.where(self.true[column] > 0, (2 * counts.hits - rate * both) / photos[column], 0.0)
        part = counts.true / np.maximum(self.true[column], 1)
        each = self.each[column]
        columns = [
            np.bincount(counts.group, one, groups) / counts.k for one in (change, part, part * each, part * (1 - each))
        ]
        return np.stack(columns, axis=1)

    def draw(self, weights: np.ndarray) -> None:
        """Add the values for (draws, groups + 2) weights, the last two of a right and a wrong imaginary group."""
        if not self.highest:
            return
        groups = weights.shape[1] - 2
        if not self._drawn:
            self._weigh_groups(groups)
        drawn = weights[:, :groups] @ np.stack([self._changes, self._parts], axis=1)
        self._drawn.append(np.hstack([drawn, weights[:, groups:]]))

    def _weigh_groups(self, groups: int) -> None:
        """The change of the score by each of the groups, its part of it, and the sizes of the imaginary groups."""
        by_group = self._by_group(groups)
        parts = by_group[:, 1:] / np.maximum(by_group[:, 1:].sum(axis=0), 1e-12)
        # an imaginary group is as large as that of an average photo (Kish 1965), or of an average loss or gain
        self._size, self._loss, self._gain = (parts**2).sum(axis=0)
        self._parts = parts[:, 0]
        self._changes = by_group[:, 0] - self._parts * by_group[:, 0].sum()

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None without draws."""
        if not self._drawn:
            return None
        change, part, right, wrong = np.concatenate(self._drawn).T
        real = change + part * self.value
        low = real / (part + wrong * self._loss)
        high = (real + right * self._gain * self.highest) / (part + right * self._gain)
        return _ends(low, high, self.value, (0.0, self.highest))

    def draws_minus(self, other: _Figure) -> np.ndarray:
        """(2 * draws,) differences of this and `other`."""
        change, part, right, wrong = np.concatenate(self._drawn).T
        change = change - np.concatenate(other._drawn)[:, 0]
        real = change + part * (self.value - other.value)
        # as large as an average change of the difference, those by two whole groups included
        changes = np.append(abs(self._changes - other._changes), [self._size] * 2)
        size = (changes**2).sum() / changes.sum()
        gap, whole = (right - wrong) * size * self.highest, part + (right + wrong) * size
        # both ways round, so that the other order gives the same with the opposite sign
        return np.concatenate([(real + gap) / whole, (real - gap) / whole])

    def interval_of_difference(self, other: _Figure) -> tuple[float, float]:
        """The 95 % interval of the difference of this and `other`; NaN without draws."""
        if not self._drawn:
            return float("nan"), float("nan")
        drawn = self.draws_minus(other)
        return _ends(drawn, drawn, self.value - other.value, (-self.highest, self.highest))


def _ends(low: np.ndarray, high: np.ndarray, value: float, limits: tuple[float, float]) -> tuple[float, float]:
    """The percentiles 2.5 and 97.5, at most `limits`, around `value`."""
    ends = np.percentile(low, 2.5), np.percentile(high, 97.5)
    return max(limits[0], min(float(ends[0]), value)), min(limits[1], max(float(ends[1]), value))


def _bootstrap_weights(groups: int, draws: int, seed: int, at_once: int = 250) -> Any:
    """Exponential weights of the groups and of two imaginary ones, in batches of (draws, groups + 2)."""
    rng = Counted(Stream.BOOTSTRAP, seed).at(0)
    for start in range(0, draws, at_once):
        yield rng.standard_exponential((min(at_once, draws - start), groups + 2))


def why_optimistic(folds: int) -> str:
    """Why the optimistic score of a run with `folds` folds flatters, for scores.json."""
    others = "chosen by the other folds" if folds > 1 else "the last ones, because with one fold no other can choose"
    return f"each fold's epochs are chosen by the fold's own score, which flatters; the headline's are {others}"


def target_of(heads: Heads, y: np.ndarray, target: str) -> np.ndarray:
    """(N, heads) class numbers -> (N,) those of one head, or of the joint class; raises UsageError for any other."""
    if target != JOINT and target not in heads.names:
        raise UsageError(
            f"There is no head {target!r}; the heads are {', '.join(heads.names)}, and {JOINT} is all of them together."
        )
    return np.asarray(heads.joint(y) if target == JOINT else y[:, heads.position(target)])


def scored_classes(
    heads: Heads, predicted: Sequence[np.ndarray], true: np.ndarray, whole: np.ndarray | None = None
) -> dict[str, list[int]]:
    """The classes that macro-F1 is the mean over, of the joint class and of each head, except for distributions.

    They are those of the labels `true` (N, heads), or of `whole`, the labels (M, heads) of the table that they are a
    part of, and of all (N, heads) predictions for photos with a label, as in scikit-learn.
    """
    return {target: target_classes(heads, target, predicted, true, whole) for target in (JOINT, *heads.classified)}


def target_classes(
    heads: Heads, target: str, predicted: Sequence[np.ndarray], true: np.ndarray, whole: np.ndarray | None = None
) -> list[int]:
    """The `scored_classes` of one head, or of the joint class."""
    labels, *answers = (target_of(heads, y, target) for y in (true, *predicted))
    return counted_classes(labels, *answers, whole=None if whole is None else target_of(heads, whole, target))


def absent_classes(heads: Heads, classes: Mapping[str, Sequence[int]], true: np.ndarray) -> list[str]:
    """Notes on the classes of `scored_classes` that none of the (N, heads) labels has; usually none."""
    notes = []
    for target, numbers in classes.items():
        absent = sorted(set(numbers) - set(known_classes(target_of(heads, true, target))))
        if absent and len(absent) < len(numbers):
            name = heads.joint_name if target == JOINT else heads[target].decode
            names = ", ".join(name(number) for number in absent[:_NAMED])
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            what = (
                f"{len(absent)} count as 0 because no photo has them"
                if absent[1:]
                else "1 counts as 0 because no photo has it"
            )
            notes.append(
                f"Macro-F1 of {target} is the mean over {len(numbers)} classes, of which {what}: {names}{more}."
            )
    return notes


def make_target(
    heads: Heads, predicted: np.ndarray, true: np.ndarray, target: str, classes: Mapping[str, Sequence[int]]
) -> Target:
    """(N, heads) predictions and labels -> those of one head or the joint class, with their `scored_classes`."""
    return target_of(heads, predicted, target), target_of(heads, true, target), classes[target]


def score_heads(
    heads: Heads,
    predicted: np.ndarray,
    true: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    classes: Mapping[str, Sequence[int]] | None = None,
) -> Scores:
    """(N, heads) class numbers -> the scores of the joint class and of each head, except for distributions.

    A head counts the photos with a known label, the joint class those with all labels known. The means are over
    `classes`, by default the `scored_classes` of these photos.
    """
    classes = scored_classes(heads, [predicted], true) if classes is None else classes
    (drawn,) = draw_heads(heads, [predicted], true, classes, groups, draws)
    joint, *each = (one.score() for one in drawn.values())
    notes = []
    if joint.n < len(true):
        notes.append(f"{len(true) - joint.n} of {len(true)} photos lack a label and are left out of the joint score.")
    notes += absent_classes(heads, classes, true)
    return Scores(joint, dict(zip(heads.classified, each, strict=True)), notes)


def draw_heads(
    heads: Heads,
    predicted: Sequence[np.ndarray],
    true: np.ndarray,
    classes: Mapping[str, Sequence[int]],
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
) -> list[dict[str, TargetDraws]]:
    """For each of several (N, heads) answers the joint class and each head, all in the same draws."""
    names = (JOINT, *heads.classified)
    targets = [make_target(heads, answers, true, name, classes) for answers in predicted for name in names]
    drawn = iter(draw_scores(targets, groups, draws))
    return [{name: next(drawn) for name in names} for _ in predicted]


def counted_classes(true: np.ndarray, *predicted: np.ndarray, whole: np.ndarray | None = None) -> list[int]:
    """The classes that macro-F1 is the mean over: those of (N,) labels, and of (N,) predictions for photos with one.

    The labels are `whole` (M,) if these are a part of a table.
    """
    known = true != UNKNOWN
    return known_classes(np.concatenate([true if whole is None else whole, *(one[known] for one in predicted)]))


def known_classes(labels: np.ndarray) -> list[int]:
    """The classes of (N,) labels, without -1."""
    return np.unique(labels[labels != UNKNOWN]).tolist()
