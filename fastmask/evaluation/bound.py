"""Bound: the official score at other values of the last bound of a head such as age, without retraining.

A run that has learned the number behind the head as a distribution (fit --order age) predicts for any bound: the
probability of a class is the sum of the numbers' probabilities between its bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.decision.crossfit import choose_by_others
from fastmask.heads import JOINT, Head, number_of
from fastmask.model.number import number_probabilities
from fastmask.run.directory import RunDirectory
from fastmask.run.oof import parts_of
from fastmask.scoring import CELLS, DRAWS, Difference, Score, counted_classes, draw_scores
from fastmask.system.errors import UsageError

# bounds below the official one that are tried by default
_BELOW = 5


@dataclass(frozen=True)
class Bound:
    """The official score at a bound, and its gain over the run as trained."""

    bound: float
    score: Score
    gain: Difference


@dataclass(frozen=True)
class BoundCurve:
    """The official scores of the joint class at the bounds tried, in ascending order.

    The rows are for predictions from the distribution; `plain` is the score of the run as trained, from the head
    itself. `honest` is the cross-fitted score: each person is predicted by whichever of the bounds and the head itself
    is best for the other persons. All gains are over `plain`.

    >>> curve = fm.bound_curve(ordered, bounds=[56, 58], draws=100)
    >>> curve.official, [row.bound for row in curve.rows]
    (60.0, [56.0, 58.0, 60.0])
    >>> best = curve.best.bound
    """

    head: str
    official: float
    plain: Score
    rows: list[Bound]
    honest: Score
    honest_gain: Difference
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> Bound:
        """The bound with the highest score; among equal ones, the closest to the official bound."""
        return max(self.rows, key=lambda row: (row.score.macro_f1, -abs(row.bound - self.official)))

    def __str__(self) -> str:
        lines = [f"{self.head + ' from':>12}  {CELLS}  gain over as trained"]
        lines.append(f"{'as trained':>12}  {self.plain.cells}".rstrip())
        lines += [f"{row.bound:12g}  {row.score.cells}  {row.gain}" for row in self.rows]
        lines.append(f"{'by others':>12}  {self.honest.cells}  {self.honest_gain}")
        return "\n".join([*lines, "", *self.notes, self.verdict])

    @property
    def verdict(self) -> str:
        """The result in one sentence: whether a bound that is chosen on other persons gains over the run as trained."""
        if self.honest_gain.macro_f1_interval[0] > 0:
            return f"A bound chosen on other persons gains beyond noise; the highest score is at {self.best.bound:g}."
        return "No bound chosen on other persons gains beyond noise over as trained."

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "head": self.head,
            "official": self.official,
            "plain": self.plain.to_plain(),
            "bounds": [{"bound": row.bound, **row.score.to_plain(), "gain": row.gain.to_plain()} for row in self.rows],
            "honest": {**self.honest.to_plain(), "gain": self.honest_gain.to_plain()},
            "notes": self.notes,
        }


def sum_bands(numbers: np.ndarray, distribution: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """Sum (N, K) probabilities of (K,) numbers to (N, classes) probabilities of the bands between `bounds`."""
    edges = [-np.inf, *bounds, np.inf]
    bands = [(low <= numbers) & (numbers < high) for low, high in pairwise(edges)]
    return np.stack([distribution[:, band].sum(1) for band in bands], axis=1)


def bound_curve(
    run: RunDirectory | str | Path, head: str | None = None, bounds: Sequence[float] | None = None, draws: int = DRAWS
) -> BoundCurve:
    """Score a run's out-of-fold predictions officially at each value of the last bound of `head`.

    The default head is the one whose number was learned; the default bounds are the official one and five below it.
    Raises UsageError for a head without bounds or a run that has not learned its number, and for bounds that are not
    above the second last one.

    >>> curve = fm.bound_curve(ordered, "age", bounds=[57, 58, 59], draws=100)
    >>> [row.bound for row in curve.rows]
    [57.0, 58.0, 59.0, 60.0]
    """
    run = RunDirectory.of(run)
    head = head or _learned_head(run)
    tried, name = _bounds(run.heads[head], bounds), number_of(head)
    *others, official = run.heads[head].bounds
    if name not in run.heads.names:
        raise UsageError(
            f"{run.path} has not learned {head} as a number, so another bound needs another training; train with "
            f"--order {head}, or one run per bound{' with --age-bounds' * (head == 'age')}."
        )
    distribution = run.heads.split(run.probabilities)[run.heads.position(name)]
    probabilities = number_probabilities(run.heads[name], distribution)
    as_trained = run.heads.argmax(run.probabilities)
    numbers, y = run.heads[name].numbers, np.tile(as_trained, (len(tried), 1, 1))
    for answers, bound in zip(y, tried, strict=True):
        answers[:, run.heads.position(head)] = sum_bands(numbers, probabilities, (*others, bound)).argmax(1)
    joint, true, own = run.heads.joint(y), run.heads.joint(run.true), run.heads.joint(as_trained)
    classes = counted_classes(true, own, *joint, whole=run.heads.joint(run.y))
    # of equal scores the head's own, then the bound closest to the official one
    order = np.argsort(abs(np.array(tried) - official), kind="stable")
    honest = choose_by_others(np.stack([own, *joint[order]]), true, parts_of(run), classes)
    targets = [(answers, true, classes) for answers in (own, *joint, honest)]
    notes = run.score(draws=0, classes={**run.classes, JOINT: classes}).notes
    plain, *drawn, chosen = draw_scores(targets, run.groups, draws)
    rows = [Bound(bound, one.score(), one.minus(plain)) for bound, one in zip(tried, drawn, strict=True)]
    return BoundCurve(head, official, plain.score(), rows, chosen.score(), chosen.minus(plain), notes)


def _learned_head(run: RunDirectory) -> str:
    """The head whose number was learned, or could be; raises UsageError if there are several or none."""
    bands = [head.name for head in run.heads if head.bounds]
    found = [name for name in bands if number_of(name) in run.heads.names] or bands
    if len(found) == 1:
        return found[0]
    heads = ", ".join(run.heads.classified)
    what = f"several heads of numbers; name one of {', '.join(found)} with --head" if found else "no head of a number"
    raise UsageError(f"{run.path} has {what}" + ("." if found else f", only the classes of {heads}, without bounds."))


def _bounds(head: Head, given: Sequence[float] | None) -> list[float]:
    """The bounds to try in ascending order, including the official one."""
    if head.bounds is None:
        raise UsageError(f"Head {head.name} has no bounds; expected a head with bands of a number as classes.")
    official = head.bounds[-1]
    tried = sorted({*(np.arange(official - _BELOW, official) if given is None else given), official})
    low, high = head.limits or (-np.inf, np.inf)
    if not all(np.isfinite(bound) and low <= bound <= high for bound in tried):
        limits = f" from {low:g} to {high:g}" if head.limits else ""
        raise UsageError(
            f"The bounds of {head.name} are {', '.join(map(str, tried))}; expected finite numbers{limits}."
        )
    if len(head.bounds) > 1 and tried[0] <= head.bounds[-2]:
        raise UsageError(f"Bound {tried[0]:g} of {head.name} is not above {head.bounds[-2]:g}, the one before it.")
    return [float(bound) for bound in tried]
