"""Bound: what moving the last bound of a head such as age is worth by the official score, without training again.

A run that has learned the number behind the head as a distribution (fit --order age) can be asked for any bound: the
classes are the sums of the distribution between the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.decision.decide import notes_of
from fastmask.decision.persons import parts_of
from fastmask.heads import JOINT, Head, number_of
from fastmask.run.directory import RunDirectory
from fastmask.scoring import CELLS, DRAWS, Difference, Score, draw_scores, make_target, score_together
from fastmask.system.errors import UsageError

# how far below the official bound is tried where nobody says
_BELOW = 5


@dataclass(frozen=True)
class Bound:
    """What a bound comes to by the official score: `gain` is over the official bound, None for that itself."""

    bound: float
    score: Score
    gain: Difference | None


@dataclass(frozen=True)
class BoundCurve:
    """The bounds tried, rising, by the official score of the joint class, and what to read the figures with.

    The rows are of the answers that the distribution gives; `plain` are those of the head itself, as the run is scored.
    `honest` is the score where each person's bound is the one that is best for others: what choosing has to show for.
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
        """The bound of the highest score, of equal ones the nearest to the official."""
        return max(self.rows, key=lambda row: (row.score.macro_f1, -abs(row.bound - self.official)))

    def __str__(self) -> str:
        lines = [f"{self.head + ' from':>12}  {CELLS}  gain over {self.official:g}"]
        lines.append(f"{'as trained':>12}  {self.plain.cells}".rstrip())
        lines += [f"{row.bound:12g}  {row.score.cells}  {row.gain or ''}".rstrip() for row in self.rows]
        lines.append(f"{'by others':>12}  {self.honest.cells}  {self.honest_gain}")
        noise = "within noise" if self.honest_gain.is_noise else "beyond noise"
        verdict = f"Chosen on other persons a bound's gain is {noise}; the highest score is at {self.best.bound:g}."
        return "\n".join([*lines, "", *self.notes, verdict])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [
            {"bound": row.bound, **row.score.to_plain(), "gain": row.gain and row.gain.to_plain()} for row in self.rows
        ]
        honest = {**self.honest.to_plain(), "gain": self.honest_gain.to_plain()}
        plain = self.plain.to_plain()
        return {
            "head": self.head,
            "official": self.official,
            "plain": plain,
            "bounds": rows,
            "honest": honest,
            "notes": self.notes,
        }


def in_bands(numbers: np.ndarray, distribution: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """(N, K) probabilities of (K,) numbers -> (N, classes) those of the bands that `bounds` part."""
    edges = [-np.inf, *bounds, np.inf]
    bands = [(low <= numbers) & (numbers < high) for low, high in pairwise(edges)]
    return np.stack([distribution[:, band].sum(1) for band in bands], axis=1)


def bound_curve(
    run: RunDirectory | str | Path, head: str = "age", bounds: Sequence[float] | None = None, draws: int = DRAWS
) -> BoundCurve:
    """The official score of a run's out-of-fold answers at each last bound of `head`; by default five below its own.

    Raises UsageError for a head without bounds or a run that has not learned its number, and for bounds that do not lie
    above the bound before.
    """
    run = RunDirectory.of(run)
    banded = run.heads[head]
    distribution = _distribution(run, banded)
    assert banded.bounds is not None
    tried = _tried(banded, bounds)
    every = {bound: _answers(run, banded, distribution, bound) for bound in tried}
    honest = _chosen_by_others(run, every, banded.bounds[-1])
    answers = (run.predicted, *every.values(), honest)
    targets = [make_target(run.heads, y, run.true, JOINT, run.y) for y in answers]
    plain, *drawn, chosen = draw_scores(targets, run.persons, draws)
    official = drawn[tried.index(banded.bounds[-1])]
    rows = [
        Bound(bound, one.score(), None if one is official else one.less(official))
        for bound, one in zip(tried, drawn, strict=True)
    ]
    return BoundCurve(
        head, banded.bounds[-1], plain.score(), rows, chosen.score(), chosen.less(official), notes_of(run)
    )


def _distribution(run: RunDirectory, head: Head) -> np.ndarray:
    if head.bounds is None:
        raise UsageError(f"Head {head.name} has no bounds; expected one whose classes are bands of a number.")
    name = number_of(head.name)
    if name not in run.heads.names:
        raise UsageError(
            f"{run.path} has not learned {head.name} as a number, so another bound needs another training: train it "
            f"with --order {head.name}, or a run a bound with --age-bounds."
        )
    return np.asarray(run.heads.split(run.probabilities)[run.heads.position(name)])


def _tried(head: Head, bounds: Sequence[float] | None) -> list[float]:
    assert head.bounds is not None
    own = head.bounds[-1]
    tried = sorted({*(np.arange(own - _BELOW, own) if bounds is None else bounds), own})
    low, high = head.limits or (-np.inf, np.inf)
    if not all(np.isfinite(bound) and low <= bound <= high for bound in tried):
        limits = f" from {low:g} to {high:g}" if head.limits else ""
        raise UsageError(
            f"The bounds of {head.name} are {', '.join(map(str, tried))}; expected finite numbers{limits}."
        )
    if len(head.bounds) > 1 and tried[0] <= head.bounds[-2]:
        raise UsageError(f"Bound {tried[0]:g} of {head.name} lies not above {head.bounds[-2]:g}, the one before it.")
    return [float(bound) for bound in tried]


def _answers(run: RunDirectory, head: Head, distribution: np.ndarray, bound: float) -> np.ndarray:
    """(N, heads) answers, those of `head` by its distribution with another last bound."""
    assert head.bounds is not None
    y, place = run.predicted.copy(), run.heads.position(head.name)
    numbers = run.heads[number_of(head.name)].numbers
    y[:, place] = in_bands(numbers, distribution, (*head.bounds[:-1], bound)).argmax(1)
    return y


def _chosen_by_others(run: RunDirectory, every: dict[float, np.ndarray], official: float) -> np.ndarray:
    """(N, heads) answers to each person by the bound best for others; of equal ones the nearest to the official."""
    parts, chosen = parts_of(run), np.empty_like(run.predicted)
    for part in np.unique(parts):
        others, here = parts != part, parts == part
        targets = [make_target(run.heads, y[others], run.true[others], JOINT, run.y) for y in every.values()]
        scores = dict(zip(every, score_together(targets), strict=True))
        best = max(every, key=lambda bound: (scores[bound].macro_f1, -abs(bound - official)))
        chosen[here] = every[best][here]
    return chosen
