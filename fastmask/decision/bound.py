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

from fastmask.errors import UsageError
from fastmask.files import replacing
from fastmask.heads import JOINT, Head, number_of
from fastmask.run import Run
from fastmask.scoring import DRAWS, Difference, Score, draw_scores, make_target, thin, with_interval

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

    `honest` is the score where each fold's bound is the best one of the others: what choosing the best has to show for.
    """

    head: str
    official: float
    rows: list[Bound]
    honest: Score
    honest_gain: Difference
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> Bound:
        """The bound of the highest score."""
        return max(self.rows, key=lambda row: row.score.macro_f1)

    def __str__(self) -> str:
        lines = [f"{self.head + ' from':>12}  {'macro-F1':24}  accuracy  gain over {self.official:g}"]
        for row in self.rows:
            f1 = with_interval(row.score.macro_f1, row.score.macro_f1_interval)
            lines.append(f"{row.bound:12g}  {f1:24}  {row.score.accuracy:.4f}    {row.gain or ''}".rstrip())
        f1 = with_interval(self.honest.macro_f1, self.honest.macro_f1_interval)
        lines.append(f"{'by others':>12}  {f1:24}  {self.honest.accuracy:.4f}    {self.honest_gain}")
        noise = "within noise" if self.honest_gain.is_noise else "beyond noise"
        verdict = f"Chosen by the other folds a bound's gain is {noise}; the highest score is at {self.best.bound:g}."
        return "\n".join([*lines, "", *self.notes, verdict])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [
            {"bound": row.bound, **row.score.to_plain(), "gain": row.gain and row.gain.to_plain()} for row in self.rows
        ]
        honest = {**self.honest.to_plain(), "gain": self.honest_gain.to_plain()}
        return {"head": self.head, "official": self.official, "bounds": rows, "honest": honest, "notes": self.notes}

    def plot(self, out: str | Path) -> Path:
        """Write a PNG of the score against the bound."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        bounds, scores = [row.bound for row in self.rows], [row.score for row in self.rows]
        low, high = np.array([score.macro_f1_interval for score in scores]).T
        axes.fill_between(bounds, low, high, alpha=0.2, label="95 % interval")
        axes.plot(bounds, [score.macro_f1 for score in scores], "o-", label="official macro-F1")
        axes.axvline(self.official, color="0.6", linewidth=1, label="official bound")
        axes.set(xlabel=f"{self.head}: the last class from", ylabel="official macro-F1", xticks=bounds)
        axes.legend()
        with replacing(out) as beside:
            figure.savefig(beside, format="png", dpi=110)
        return Path(out)


def in_bands(numbers: np.ndarray, distribution: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """(N, K) probabilities of (K,) numbers -> (N, classes) those of the bands that `bounds` part."""
    edges = [-np.inf, *bounds, np.inf]
    bands = [(low <= numbers) & (numbers < high) for low, high in pairwise(edges)]
    return np.stack([distribution[:, band].sum(1) for band in bands], axis=1)


def bound_curve(
    run: Run | str | Path, head: str = "age", bounds: Sequence[float] | None = None, draws: int = DRAWS
) -> BoundCurve:
    """The official score of a run's out-of-fold answers at each last bound of `head`; by default five below its own.

    Raises UsageError for a head without bounds or a run that has not learned its number, and for bounds that do not lie
    above the bound before.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    banded = run.heads[head]
    distribution = _distribution(run, banded)
    assert banded.bounds is not None
    tried = _tried(banded, bounds)
    every = {bound: _answers(run, banded, distribution, bound) for bound in tried}
    honest = _chosen_by_others(run, every)
    targets = [make_target(run.heads, y, run.true, JOINT, run.y) for y in (*every.values(), honest)]
    *drawn, chosen = draw_scores(targets, run.persons, draws)
    official = drawn[tried.index(banded.bounds[-1])]
    rows = [
        Bound(bound, one.score(), None if one is official else one.less(official))
        for bound, one in zip(tried, drawn, strict=True)
    ]
    notes = run.score(draws=0).notes + thin(run.heads.joint(run.true), run.persons)
    return BoundCurve(head, banded.bounds[-1], rows, chosen.score(), chosen.less(official), notes)


def _distribution(run: Run, head: Head) -> np.ndarray:
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
    tried = sorted({*(bounds or np.arange(own - _BELOW, own)), own})
    if len(head.bounds) > 1 and tried[0] <= head.bounds[-2]:
        raise UsageError(f"Bound {tried[0]:g} of {head.name} lies not above {head.bounds[-2]:g}, the one before it.")
    return [float(bound) for bound in tried]


def _answers(run: Run, head: Head, distribution: np.ndarray, bound: float) -> np.ndarray:
    """(N, heads) answers, those of `head` by its distribution with another last bound."""
    assert head.bounds is not None
    y, place = run.predicted.copy(), run.heads.position(head.name)
    numbers = run.heads[number_of(head.name)].numbers
    y[:, place] = in_bands(numbers, distribution, (*head.bounds[:-1], bound)).argmax(1)
    return y


def _chosen_by_others(run: Run, every: dict[float, np.ndarray]) -> np.ndarray:
    """(N, heads) answers to each fold by the bound that is best for the other folds."""
    folds = run.oof["fold"].to_numpy()
    chosen = np.empty_like(run.predicted)
    for fold in np.unique(folds):
        others, here = folds != fold, folds == fold
        if not others.any():
            raise UsageError(f"{run.path} has one fold only; a bound is chosen by some and scored on others.")
        scores = {
            bound: draw_scores([make_target(run.heads, y[others], run.true[others], JOINT, run.y)], None)[0].score()
            for bound, y in every.items()
        }
        chosen[here] = every[max(scores, key=lambda bound: scores[bound].macro_f1)][here]
    return chosen
