"""Numbers: where along the number behind a head, such as the age in years, its answers go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from fastmask.heads import UNKNOWN, Head, number_of
from fastmask.report.blocks import Block, Drawing, Table, Text
from fastmask.report.confusion import file_names
from fastmask.report.material import Material
from fastmask.report.style import FAINT, INK, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.run.source import table_of
from fastmask.system.errors import UsageError
from fastmask.system.text import percent, shorten

# bars of a picture: of more different numbers than these, or of any that are not whole, so many ranges
_MOST_BARS, _RANGES = 110, 50
# how near to a bound is "near"
_NEAR = 3


@dataclass(frozen=True, eq=False)
class NumberErrors:
    """Answers of a head along the number behind it: (N,) `numbers` of the photos that have one, by the score's bounds.

    `lower` and `higher` say whose answer is a class too low, or too high; `learned` (N,) is the mean of the
    distribution of a run that has learned the number itself, None of any other.
    """

    head: Head
    numbers: np.ndarray
    lower: np.ndarray
    higher: np.ndarray
    learned: np.ndarray | None = None

    @property
    def wrong(self) -> np.ndarray:
        """(N,) whose answer is wrong."""
        return self.lower | self.higher


def number_errors(run: RunDirectory, head: str, data: str | None = None) -> NumberErrors:
    """How a head whose classes are bands of a number answers along that number.

    Raises UsageError for a head without bounds, or where no photo's number is known.
    """
    banded = run.heads[head]
    if banded.bounds is None:
        raise UsageError(f"Head {head} has no bounds, so there is no number behind its classes.")
    place = run.heads.position(head)
    numbers, true = _numbers(run, banded, data), run.true[:, place]
    known = (true != UNKNOWN) & np.isfinite(numbers)
    if not known.any():
        raise UsageError(f"No photo's number behind {head} is known.")
    said = run.predicted[known, place]
    name = number_of(head)
    learned = None
    if name in run.heads.names:
        distribution = run.heads.split(run.probabilities)[run.heads.position(name)][known]
        learned = distribution @ run.heads[name].numbers / distribution.sum(axis=1)
    return NumberErrors(banded, numbers[known], said < true[known], said > true[known], learned)


def _numbers(run: RunDirectory, head: Head, data: str | None) -> np.ndarray:
    """(N,) the number of each photo of `oof`, as the run keeps it, or else as its data has it."""
    column = f"{head.name}_value"
    frame = run.folds if column in run.folds else table_of(run, data).frame.assign(path=run.folds["path"])
    values = frame.set_index("path")[column].reindex(run.oof["path"])
    return np.asarray(values.to_numpy(np.float64))


def by_number(errors: NumberErrors) -> pd.DataFrame:
    """One row a number, or a range of one width where there are many: number (its middle), width, n, lower, higher.

    With a learned number also off, its mean distance from the true one, and bias, learned minus true.
    """
    numbers = errors.numbers
    values = np.unique(numbers)
    whole = bool((values % 1 == 0).all()) and values[-1] - values[0] < _MOST_BARS
    ends = np.linspace(values[0], values[-1], _RANGES + 1)
    width = 1.0 if whole else float(ends[1] - ends[0])
    middle = (
        numbers if whole else ends[0] + (np.clip(np.searchsorted(ends, numbers, "right"), 1, _RANGES) - 0.5) * width
    )
    frame = pd.DataFrame({"number": middle, "lower": errors.lower, "higher": errors.higher})
    if errors.learned is not None:
        frame = frame.assign(off=np.abs(errors.learned - numbers), bias=errors.learned - numbers)
    grouped = frame.groupby("number")
    return grouped.mean().assign(n=grouped.size(), width=width).reset_index()


@styled()
def plot_numbers(errors: NumberErrors) -> Picture:
    """The share of wrong answers by the number, parted into too low and too high, the bounds marked; photos below.

    Of a run that has learned the number also how far it is off.
    """
    frame, head = by_number(errors), errors.head
    heights = [3.0, 1.0] if errors.learned is None else [3.0, 2.0, 1.0]
    figure = Picture(figsize=(9.0, 1.05 * sum(heights) + 0.6), layout="constrained")
    every = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    shares, photos = every[0], every[-1]
    bar = {"width": frame["width"] * 0.85}
    shares.bar(frame["number"], frame["lower"], color=SERIES[0], label="answered too low", **bar)
    shares.bar(
        frame["number"], frame["higher"], bottom=frame["lower"], color=SERIES[1], label="answered too high", **bar
    )
    overall = errors.wrong.mean()
    shares.axhline(overall, color=INK, linewidth=1, linestyle=(0, (4, 2)), label=f"all: {percent(overall)}")
    highest = float((frame["lower"] + frame["higher"]).max())
    shares.set(
        ylabel="share wrong",
        ylim=(0, max(0.1, min(1, 1.1 * highest))),
        title=f"Wrong answers of {shorten(head.name, 24)}",
    )
    shares.axvline(np.nan, color=INK, linewidth=1.2, label="bounds")
    shares.legend(loc="lower right", ncols=4, bbox_to_anchor=(1, 0.99), borderaxespad=0, columnspacing=1.2)
    if errors.learned is not None:
        middle = every[1]
        middle.bar(frame["number"], frame["off"], color=FAINT, label="mean distance", **bar)
        middle.plot(frame["number"], frame["bias"], color=SERIES[3], linewidth=1.4, label="learned minus true")
        middle.axhline(0, color=QUIET, linewidth=0.8)
        middle.set(ylabel="learned number")
        middle.legend(loc="upper center", ncols=2)
    photos.bar(frame["number"], frame["n"], color=QUIET, **bar)
    photos.set(xlabel=head.name, ylabel="photos")
    for axes in every:
        axes.grid(axis="y")
        for bound in head.bounds or ():
            # of whole numbers a bound lies between two bars
            axes.axvline(bound - 0.5 * bool((frame["number"] % 1 == 0).all()), color=INK, linewidth=1.2)
    return figure


def near_bounds(errors: NumberErrors, near: float = _NEAR) -> tuple[float, float, float]:
    """The share of wrong answers within `near` of a bound and farther off, and the share of photos that is near."""
    distance = np.min([np.abs(errors.numbers - bound) for bound in errors.head.bounds or ()], axis=0)
    close = distance <= near
    with np.errstate(invalid="ignore"):
        wrong = [errors.wrong[rows].mean() if rows.any() else np.nan for rows in (close, ~close)]
    return float(wrong[0]), float(wrong[1]), float(close.mean())


def section(material: Material) -> list[Block]:
    """The errors of each head that has a number behind it."""
    run = material.run
    banded = [head.name for head in run.heads if head.bounds]
    if not banded:
        raise UsageError("No head has classes that are bands of a number, such as an age in years.")
    names = file_names(banded)
    return [block for head in banded for block in _blocks(material, head, f"numbers-{names[head]}")]


def _blocks(material: Material, head: str, name: str) -> list[Block]:
    errors = number_errors(material.run, head, material.data)
    near, far, share = near_bounds(errors)
    bounds = ", ".join(f"{bound:g}" for bound in errors.head.bounds or ())
    said = (
        f"{head}: classes change at {bounds}. Within {_NEAR} of a bound lie {percent(share)} of the photos; there "
        f"{percent(near)} of the answers are wrong, elsewhere {percent(far)}."
    )
    if errors.learned is not None:
        off = errors.learned - errors.numbers
        median = float(np.median(errors.numbers))
        always = np.abs(errors.numbers - median).mean()
        said += (
            f" The learned number is off by {np.abs(off).mean():.2f} on average, {off.mean():+.2f} with its sign; who "
            f"always said the median, {median:g}, would be off by {always:.2f}."
        )
    drawing = Drawing(
        name,
        plot_numbers(errors),
        f"Bars of the share of wrong answers of {head} by its number. {said}",
        table=Table(f"{head} from bound to bound", ["", "photos", "wrong", "too low", "too high"], _rows(errors)),
    )
    return [Text(said), drawing]


def _rows(errors: NumberErrors) -> Sequence[Sequence[str]]:
    """A row a third of each class: the two that lie at its bounds, and the one between."""
    rows, edges = [], _thirds(errors)
    for start, end in pairwise(edges):
        here = (errors.numbers >= start) & (errors.numbers < end)
        if here.any():
            shares = (errors.wrong[here].mean(), errors.lower[here].mean(), errors.higher[here].mean())
            name = f"{start:g} to under {end:g}" if end < edges[-1] else f"{start:g} and more"
            rows.append([name, f"{here.sum():,}", *map(percent, shares)])
    return rows


def _thirds(errors: NumberErrors) -> list[float]:
    """Where each third of a class begins, of whole numbers at a whole one; the last is above all numbers."""
    low, high = float(errors.numbers.min()), float(errors.numbers.max())
    whole = bool((errors.numbers % 1 == 0).all())
    above = high + 1 if whole else float(np.nextafter(high, np.inf))
    # a bound is the first number of its class, which may be the highest there is
    ends = [low, *(bound for bound in errors.head.bounds or () if low < bound <= high), above]
    cuts = [np.linspace(a, b, 4)[1:3] for a, b in pairwise(ends)]
    return sorted({*ends, *(float(cut.round() if whole else cut) for pair in cuts for cut in pair)})
