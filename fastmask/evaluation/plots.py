"""Plots: comparison of results, reliability of heads, scores by bound, OOF against the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.isotonic import isotonic_regression

from fastmask.evaluation.ledger import both_scores
from fastmask.system.errors import UsageError
from fastmask.system.files import atomic_write
from fastmask.system.text import shorten_start

if TYPE_CHECKING:
    from fastmask.decision.calibration import Calibration
    from fastmask.evaluation.bound import BoundCurve
    from fastmask.evaluation.comparison import Result
    from fastmask.evaluation.ledger import Entry


def plot_comparison(results: Sequence[Result], out: str | Path) -> None:
    """Write a PNG of each result's macro-F1 and its difference from the baseline, with intervals."""
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(results)), layout="constrained")
    scores, differences = figure.subplots(1, 2, sharey=True)
    for row, result in enumerate(results):
        _with_interval(scores, row, result.joint.macro_f1, result.joint.macro_f1_interval)
        if result.against is not None:
            difference = result.against.difference
            _with_interval(differences, row, difference.macro_f1, difference.macro_f1_interval)
    differences.axvline(0, color="0.6", linewidth=1)
    names = [shorten_start(result.name) for result in results]
    scores.set_yticks(range(len(names)), names, parse_math=False)
    scores.invert_yaxis()
    scores.set(title="macro-F1, 95 % interval")
    differences.set_title(f"less {names[0]}, paired", parse_math=False)
    _save(figure, out)


def _with_interval(axes: Any, row: int, value: float, interval: tuple[float, float] | None) -> None:
    low, high = interval or (value, value)
    axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", capsize=3, color="C0")


def plot_reliability(calibration: Mapping[str, Calibration], out: str | Path) -> None:
    """Write a PNG of each head's reliability before and after: see `reliability_figure`."""
    _save(reliability_figure(calibration), out)


def reliability_figure(calibration: Mapping[str, Calibration], kind: type[Figure] = Figure) -> Figure:
    """Each head's reliability before and after, three per row; on the diagonal confidence equals accuracy."""
    columns = min(3, len(calibration))
    rows = -(-len(calibration) // columns)
    # padded, since the last number of one axis would touch the first of the next
    figure = kind(figsize=(3.6 * columns, 4.4 * rows), layout=ConstrainedLayoutEngine(w_pad=0.12))
    every = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in every.flat[len(calibration) :]:
        axes.remove()
    for axes, (head, one) in zip(every.flat, calibration.items(), strict=False):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        named = (("as it is", one.before), (f"at temperature {one.temperature:.2f}", one.after))
        for (label, table), error in zip(named, (one.error_before, one.error_after), strict=True):
            (line,) = axes.plot(table["confidence"], table["accuracy"], label=f"{label}: {error:.3f}")
            size = 10 + 200 * table["n"] / table["n"].sum()
            axes.scatter(table["confidence"], table["accuracy"], size, color=line.get_color())
        axes.set(xlabel="how sure", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_title(shorten_start(head), parse_math=False)
        # below the axes, since a curve may run through any corner
        axes.legend(
            title="calibration error", loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, title_fontsize=8
        )
    for axes in every[:, 0]:
        axes.set_ylabel("how often right")
    return figure


def plot_bound(curve: BoundCurve, out: str | Path) -> None:
    """Write a PNG of the official score against the bound."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    bounds, scores = [row.bound for row in curve.rows], [row.score for row in curve.rows]
    low, high = np.array([score.macro_f1_interval for score in scores]).T
    axes.fill_between(bounds, low, high, alpha=0.2, label="95 % interval")
    axes.plot(bounds, [score.macro_f1 for score in scores], "o-", label="official macro-F1")
    axes.axhline(curve.plain.macro_f1, color="0.3", linewidth=1, linestyle="--", label="as trained")
    axes.axvline(curve.official, color="0.6", linewidth=1, label="official bound")
    axes.set(xlabel=f"{curve.head}: the last class from", ylabel="official macro-F1", xticks=bounds)
    axes.legend()
    _save(figure, out)


def plot_ledger(entries: Sequence[Entry], out: str | Path) -> None:
    """Write a PNG of leaderboard macro-F1 against OOF macro-F1 with its interval, and the diagonal.

    Raises UsageError if no submission has both scores.
    """
    # in ascending order, so that the lines to the labels do not cross
    rows = sorted(both_scores(entries), key=lambda row: row[2])
    if not rows:
        raise UsageError("No submission has both an OOF score and a public one; add what the leaderboard showed first.")
    oof, public = np.array([row[1:] for row in rows]).T
    ends = [(entry.oof_low, entry.oof_high) for entry, *_ in rows]
    lows, highs = np.array([[x if end is None else end for end in both] for both, x in zip(ends, oof, strict=True)]).T
    bottom, top = min(*lows, *public), max(*highs, *public)
    room = (top - bottom or 0.1) / 20
    limits = bottom - room, top + room
    figure = Figure(figsize=(8, max(5.0, len(rows) / 4)), layout="constrained")
    axes = figure.subplots()
    axes.axline((bottom, bottom), slope=1, color="0.6", linestyle=":", label="public = OOF")
    axes.errorbar(oof, public, xerr=[oof - lows, highs - oof], fmt="o", capsize=3, label="submission, 95 % of OOF")
    axes.set(xlim=limits, ylim=limits, xlabel="OOF macro-F1", ylabel="leaderboard macro-F1", title="Submissions")
    axes.legend(loc="upper left")
    _label(axes, [entry.label for entry, *_ in rows], oof, public)
    _save(figure, out)


def _label(axes: Any, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Label the points of a plot, in ascending order, in a column on the right."""
    low, high = axes.get_ylim()
    for name, *point, height in zip(names, x, y, _spread_apart((y - low) / (high - low)), strict=True):
        axes.annotate(
            shorten_start(name),
            point,
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.7, "relpos": (0, 0.5)},
        )


def _spread_apart(heights: np.ndarray) -> np.ndarray:
    """Move ascending heights, 0 to 1, as little as needed to leave room for a line of text between each two."""
    gap, n = min(0.055, 0.8 / len(heights)), len(heights)
    steps = gap * np.arange(n)
    # minus the gaps, the heights only need to ascend, and isotonic regression finds the nearest such heights
    return np.asarray(isotonic_regression(heights - steps, y_min=0, y_max=1 - (n - 1) * gap)) + steps


def _save(figure: Figure, out: str | Path) -> None:
    with atomic_write(out) as partial:
        figure.savefig(partial, format="png", dpi=110)
