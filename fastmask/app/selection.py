"""Selection: the out-of-fold predictions of a run filtered, in pages, and for one photo."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, Head, Heads
from fastmask.model.number import number_probabilities, quantile
from fastmask.report.sections.mistakes import probability_of
from fastmask.system.errors import UsageError

WRONG, RIGHT, MARKED, ALL = "mistakes", "right", "marked", "all"
SHOWN = (WRONG, RIGHT, MARKED, ALL)
SUREST, LEAST_SURE, TABLE = "surest", "least sure", "table"
ORDERS = (SUREST, LEAST_SURE, TABLE)
# photos per page
PAGE = 24
# classes of a head that are shown individually
_MOST_CLASSES = 8


@dataclass(frozen=True)
class Filter:
    """Which predictions of a head or the joint class are shown, and in which order.

    `true` and `predicted` are class names, "" for an unknown label; None selects all. `least` and `most` are inclusive
    bounds of the probability. `text` is a part of the person's name or of the path.
    """

    show: str = WRONG
    true: str | None = None
    predicted: str | None = None
    fold: int | None = None
    least: float = 0.0
    most: float = 1.0
    text: str = ""
    order: str = SUREST

    def __post_init__(self) -> None:
        for what, given, known in (("show", self.show, SHOWN), ("order", self.order, ORDERS)):
            if given not in known:
                raise UsageError(f"{what} is {given!r}; expected one of {', '.join(known)}.")


def select(found: pd.DataFrame, wanted: Filter, marked: Collection[int] = ()) -> pd.DataFrame:
    """The rows of `answers` that a filter selects, in its order; `marked` are the rows with a mark.

    A photo without a label is neither right nor wrong.
    """
    keep = found["probability"].between(wanted.least, wanted.most)
    if wanted.show == MARKED:
        keep &= found["row"].isin(list(marked))
    elif wanted.show != ALL:
        keep &= (found["true"] != "") & ((found["true"] == found["predicted"]) == (wanted.show == RIGHT))
    for column in ("true", "predicted", "fold"):
        value = getattr(wanted, column)
        if value is not None:
            keep &= found[column] == value
    part = wanted.text.strip().lower()
    if part:
        keep &= sum(found[c].str.lower().str.contains(part, regex=False) for c in ("path", "person")) > 0
    if wanted.order == TABLE:
        return found[keep]
    return found[keep].sort_values("probability", ascending=wanted.order == LEAST_SURE, kind="stable")


@dataclass(frozen=True)
class Page:
    """A page of a selection: its `rows` and `number` (from 1), and the number of `pages` and photos in all."""

    rows: pd.DataFrame
    number: int
    pages: int
    total: int


def page_of(selection: pd.DataFrame, number: int = 1, size: int = PAGE) -> Page:
    """The page with this number, or the nearest one."""
    pages = max(1, -(-len(selection) // size))
    number = min(max(number, 1), pages)
    return Page(selection.iloc[(number - 1) * size : number * size], number, pages, len(selection))


@dataclass(frozen=True)
class HeadAnswer:
    """The prediction of one head: its class and probability, and those of its `classes` in order.

    `label` is the true class, "" if unknown, None if there are no labels. Classes beyond the eight most probable are
    left out and summed up in `others`. A distribution over a number has no classes, but the `interval` in which the
    number is with a probability of 80 %.
    """

    name: str
    answer: str
    probability: float
    classes: tuple[tuple[str, float], ...] = ()
    others: float = 0.0
    label: str | None = None
    interval: tuple[float, float] | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether there is a label and the prediction differs from it."""
        return bool(self.label) and self.label != self.answer


@dataclass(frozen=True)
class PhotoAnswer:
    """The predictions of one photo: of each head, and of the joint class."""

    heads: tuple[HeadAnswer, ...]
    joint: HeadAnswer


def photo_answer(heads: Heads, probabilities: np.ndarray, y: np.ndarray | None = None) -> PhotoAnswer:
    """(classes of all heads,) probabilities, and (heads,) labels if there are any -> the predictions of one photo."""
    codes = heads.argmax(probabilities[None])
    each = []
    for i, (head, part) in enumerate(zip(heads, heads.split(probabilities), strict=True)):
        label = None if y is None else head.decode(int(y[i]))
        if head.spread is not None:
            each.append(_number(head, part, label))
        elif head.joint_share is None:
            each.append(_classes(head, part, int(codes[0, i]), label))
    joint = HeadAnswer(
        JOINT,
        heads.joint_name(int(heads.joint(codes)[0])),
        float(probability_of(heads, probabilities[None], codes)[0]),
        label=None if y is None else heads.joint_name(int(heads.joint(y[None])[0])),
    )
    return PhotoAnswer(tuple(each), joint)


def _classes(head: Head, part: np.ndarray, code: int, label: str | None) -> HeadAnswer:
    shown = np.sort(np.argsort(-part, kind="stable")[:_MOST_CLASSES])
    return HeadAnswer(
        head.name,
        head.classes[code],
        float(part[code]),
        tuple((head.classes[i], float(part[i])) for i in shown),
        max(0.0, 1 - float(part[shown].sum())) if len(shown) < len(part) else 0.0,
        label,
    )


def _number(head: Head, part: np.ndarray, label: str | None) -> HeadAnswer:
    probabilities = number_probabilities(head, part[None])
    low, code, high = (int(quantile(probabilities, share)[0]) for share in (0.1, 0.5, 0.9))
    ends = float(head.numbers[low]), float(head.numbers[high])
    return HeadAnswer(head.name, head.classes[code], float(probabilities[0, code]), label=label, interval=ends)
