"""Numbers: how often a head is wrong by the number behind its classes, such as the age in years."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from fastmask.heads import UNKNOWN, Head, number_of
from fastmask.model.number import predict_numbers
from fastmask.report.blocks import Block, Drawing, Table, Text
from fastmask.report.material import Material
from fastmask.report.sections.confusion import file_names
from fastmask.report.style import FAINT, INK, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.run.source import table_of
from fastmask.system.errors import UsageError
from fastmask.system.text import percent, shorten

# most bars of a plot; more distinct numbers, or fractions, are put into this many ranges
_MOST_BARS, _RANGES = 110, 50
# at most this far from a bound is "near"
_NEAR = 3


@dataclass(frozen=True, eq=False)
class NumberErrors:
    """Predictions of a head by the number behind it: (N,) `numbers` of the photos that have one.

    `lower` and `higher` say which predictions are too low or too high by the bounds of the score; `learned` (N,) are
    the predicted numbers if the run has learned the number itself.
    """

    head: Head
    numbers: np.ndarray
    lower: np.ndarray
    higher: np.ndarray
    learned: np.ndarray | None = None

    @property
    def wrong(self) -> np.ndarray:
        """(N,) which predictions are wrong."""
        return self.lower | self.higher


def number_errors(run: RunDirectory, head: str, data: str | None = None) -> NumberErrors:
    """The predictions of a head with bands of a number as classes.

    Raises UsageError for a head without bounds, or if no photo has a number.
    """
    banded = run.heads[head]
    if banded.bounds is None:
        raise UsageError(f"Head {head} has no bounds, so its classes are not bands of a number.")
    place = run.heads.position(head)
    numbers, true = _numbers(run, banded, data), run.true[:, place]
    known = (true != UNKNOWN) & np.isfinite(numbers)
    if not known.any():
        raise UsageError(f"No photo has a number for {head}.")
    predicted = run.predicted[known, place]
    name = number_of(head)
    learned = None
    if name in run.heads.names:
        distribution = run.heads.split(run.probabilities)[run.heads.position(name)][known]
        learned = run.heads[name].numbers[predict_numbers(run.heads[name], distribution)]
    return NumberErrors(banded, numbers[known], predicted < true[known], predicted > true[known], learned)


def _numbers(run: RunDirectory, head: Head, data: str | None) -> np.ndarray:
    """(N,) the number of each photo of `oof`, from the run or else from its data."""
    column = f"{head.name}_value"
    frame = run.folds if column in run.folds else table_of(run, data).frame.assign(path=run.folds["path"])
    values = frame.set_index("path")[column].reindex(run.oof["path"])
    return np.asarray(values.to_numpy(np.float64))


def by_number(errors: NumberErrors) -> pd.DataFrame:
    """One row per number or range of numbers: number (the middle), width, n, and the shares lower and higher.

    With a learned number also off, its mean absolute error, and bias, the mean of learned minus true.
    """
    numbers = errors.numbers
    values = np.unique(numbers)
    whole = bool((values % 1 == 0).all()) and values[-1] - values[0] < _MOST_BARS
    ends = np.linspace(values[0], values[-1], _RANGES + 1)
    width = 1.0 if whole else float(ends[1] - ends[0])
    middle = numbers
    if not whole:
        middle = ends[0] + (np.clip(np.searchsorted(ends, numbers, "right"), 1, _RANGES) - 0.5) * width
    frame = pd.DataFrame({"number": middle, "lower": errors.lower, "higher": errors.higher})
    if errors.learned is not None:
        frame = frame.assign(off=np.abs(errors.learned - numbers), bias=errors.learned - numbers)
    grouped = frame.groupby("number")
    return grouped.mean().assign(n=grouped.size(), width=width).reset_index()


@styled()
def plot_numbers(errors: NumberErrors) -> Picture:
    """The shares of predictions that are too low and too high by number, the bounds, and the number of photos below.

    With a learned number also its error.
    """
    frame, head = by_number(errors), errors.head
    heights = [3.0, 1.0] if errors.learned is None else [3.0, 2.0, 1.0]
    figure = Picture(figsize=(9.0, 1.05 * sum(heights) + 0.6), layout="constrained")
    every = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    shares, photos = every[0], every[-1]
    bar = {"width": frame["width"] * 0.85}
    shares.bar(frame["number"], frame["lower"], color=SERIES[0], label="predicted too low", **bar)
    too_high = {"bottom": frame["lower"], "color": SERIES[1], "label": "predicted too high"}
    shares.bar(frame["number"], frame["higher"], **too_high, **bar)
    overall = errors.wrong.mean()
    shares.axhline(overall, color=INK, linewidth=1, linestyle=(0, (4, 2)), label=f"all: {percent(overall)}")
    highest = float((frame["lower"] + frame["higher"]).max())
    shares.set(
        ylabel="share wrong",
        ylim=(0, max(0.1, min(1, 1.1 * highest))),
        title=f"Wrong predictions of {shorten(head.name, 24)}",
    )
    shares.axvline(np.nan, color=INK, linewidth=1.2, label="bounds")
    shares.legend(loc="lower right", ncols=4, bbox_to_anchor=(1, 0.99), borderaxespad=0, columnspacing=1.2)
    if errors.learned is not None:
        middle = every[1]
        middle.bar(frame["number"], frame["off"], color=FAINT, label="mean absolute error", **bar)
        middle.plot(frame["number"], frame["bias"], color=SERIES[3], linewidth=1.4, label="learned minus true")
        middle.axhline(0, color=QUIET, linewidth=0.8)
        middle.set(ylabel="learned number")
        middle.legend(loc="upper center", ncols=2)
    photos.bar(frame["number"], frame["n"], color=QUIET, **bar)
    photos.set(xlabel=head.name, ylabel="photos")
    for axes in every:
        axes.grid(axis="y")
        for bound in head.bounds or ():
            # between two bars if numbers are whole
            axes.axvline(bound - 0.5 * bool((frame["number"] % 1 == 0).all()), color=INK, linewidth=1.2)
    return figure


def near_bounds(errors: NumberErrors, near: float = _NEAR) -> tuple[float, float, float]:
    """The shares of wrong predictions within `near` of a bound and elsewhere, and the share of photos that is near."""
    distance = np.min([np.abs(errors.numbers - bound) for bound in errors.head.bounds or ()], axis=0)
    close = distance <= near
    with np.errstate(invalid="ignore"):
        wrong = [errors.wrong[rows].mean() if rows.any() else np.nan for rows in (close, ~close)]
    return float(wrong[0]), float(wrong[1]), float(close.mean())


def section(material: Material) -> list[Block]:
    """The errors of each head with bands of a number as classes."""
    banded = [head.name for head in material.run.heads if head.bounds]
    if not banded:
        raise UsageError("No head has classes that are bands of a number, such as an age in years.")
    return [block for head, file in file_names(banded).items() for block in _blocks(material, head, f"numbers-{file}")]


def _blocks(material: Material, head: str, name: str) -> list[Block]:
    errors = number_errors(material.run, head, material.data)
    near, far, share = near_bounds(errors)
    bounds = ", ".join(f"{bound:g}" for bound in errors.head.bounds or ())
    said = (
        f"{head}: the class changes at {bounds}. {percent(share)} of the photos are within {_NEAR} of a bound; of "
        f"these {percent(near)} have a wrong prediction, of the others {percent(far)}."
    )
    if errors.learned is not None:
        off = errors.learned - errors.numbers
        median = float(np.median(errors.numbers))
        baseline = np.abs(errors.numbers - median).mean()
        said += (
            f" The learned number has a mean absolute error of {np.abs(off).mean():.2f} and a mean error of "
            f"{off.mean():+.2f}; always predicting the median, {median:g}, has a mean absolute error of {baseline:.2f}."
        )
    columns = ["", "photos", "wrong", "too low", "too high"]
    table = Table(f"Thirds of the classes of {head}", columns, _rows(errors))
    alt = f"Bars of the share of wrong predictions of {head} by number. {said}"
    return [Text(said), Drawing(name, plot_numbers(errors), alt, table=table)]


def _rows(errors: NumberErrors) -> list[list[str]]:
    """Per third of each class: numbers, photos, and the shares that are wrong, too low and too high."""
    rows, edges = [], _thirds(errors)
    for start, end in pairwise(edges):
        here = (errors.numbers >= start) & (errors.numbers < end)
        if here.any():
            shares = (errors.wrong[here].mean(), errors.lower[here].mean(), errors.higher[here].mean())
            name = f"{start:g} to under {end:g}" if end < edges[-1] else f"{start:g} and more"
            rows.append([name, f"{here.sum():,}", *map(percent, shares)])
    return rows


def _thirds(errors: NumberErrors) -> list[float]:
    """Where each third of a class begins, whole if all numbers are; the last edge is above all numbers."""
    low, high = float(errors.numbers.min()), float(errors.numbers.max())
    whole = bool((errors.numbers % 1 == 0).all())
    above = high + 1 if whole else float(np.nextafter(high, np.inf))
    # a bound belongs to the class above it, so it may be the highest number
    ends = [low, *(bound for bound in errors.head.bounds or () if low < bound <= high), above]
    cuts = [np.linspace(a, b, 4)[1:3] for a, b in pairwise(ends)]
    return sorted({*ends, *(float(cut.round() if whole else cut) for pair in cuts for cut in pair)})
