"""Browse: the out-of-fold answers of a run photo by photo: filtered, in pages, one at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, UNKNOWN, Head, Heads
from fastmask.report.sections.mistakes import probability_of
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError

# which answers are shown
WRONG, RIGHT, MARKED, ALL = "mistakes", "right", "marked", "all"
SHOWN = (WRONG, RIGHT, MARKED, ALL)
# in which order
SUREST, LEAST_SURE, TABLE = "surest", "least sure", "table"
ORDERS = (SUREST, LEAST_SURE, TABLE)
# photos a page
PAGE = 24
# classes of a head that are shown by themselves
_MOST_CLASSES = 8


@dataclass(frozen=True)
class Filter:
    """Which answers to a head, or to the joint class, are looked at, and in which order.

    `true` and `predicted` are names of classes, "" of an unknown label; None takes all. `least` and `most` bound the
    probability of the answer, both included. `text` is a part of the person's name or of the path.
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
                raise UsageError(f"There is nothing to {what} called {given!r}; expected one of {', '.join(known)}.")


def answers(run: RunDirectory, head: str = JOINT) -> pd.DataFrame:
    """One row a photo of `oof`, in its order: row, path, person, fold, true, predicted, probability, probability_true.

    As `mistakes` has them, but of all photos: `true` is "" and `probability_true` NaN where the label is unknown.
    Raises UsageError for a head that there is not.
    """
    true, predicted = target_of(run.heads, run.true, head), target_of(run.heads, run.predicted, head)
    known = np.flatnonzero(true != UNKNOWN)
    own = np.full(len(true), np.nan)
    own[known] = probability_of(run.heads, run.probabilities[known], run.true[known], head)
    return pd.DataFrame(
        {
            "row": np.arange(len(true)),
            **{column: run.oof[column].to_numpy() for column in ("path", "person", "fold")},
            "true": _names(run.heads, head, true),
            "predicted": _names(run.heads, head, predicted),
            "probability": probability_of(run.heads, run.probabilities, run.predicted, head),
            "probability_true": own,
        }
    )


def _names(heads: Heads, head: str, codes: np.ndarray) -> list[str]:
    name = heads.joint_name if head == JOINT else heads[head].decode
    known = {int(code): name(int(code)) for code in np.unique(codes)}
    return [known[int(code)] for code in codes]


def select(found: pd.DataFrame, wanted: Filter, marked: Collection[int] = ()) -> pd.DataFrame:
    """The rows of `answers` that a filter lets through, in its order; `marked` are the rows that have a mark.

    A photo without the label is neither right nor wrong.
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
    if wanted.text.strip():
        part = wanted.text.strip().lower()
        keep &= sum(found[c].str.lower().str.contains(part, regex=False) for c in ("path", "person")) > 0
    rows = found[keep]
    if wanted.order == TABLE:
        return rows
    order = np.argsort(rows["probability"].to_numpy() * (1 if wanted.order == LEAST_SURE else -1), kind="stable")
    return rows.iloc[order]


@dataclass(frozen=True)
class Page:
    """A part of a selection: `rows` of it, its `number` counted from 1, of `pages` (1 at least), and `total` photos."""

    rows: pd.DataFrame
    number: int
    pages: int
    total: int


def page_of(selection: pd.DataFrame, number: int = 1, size: int = PAGE) -> Page:
    """The page of that number, or the nearest that there is."""
    pages = max(1, -(-len(selection) // size))
    number = min(max(number, 1), pages)
    return Page(selection.iloc[(number - 1) * size : number * size], number, pages, len(selection))


@dataclass(frozen=True)
class HeadAnswer:
    """What is said of one head: its classes and their probabilities, in order, and the answer.

    `label` is the class that it should be, "" where nobody knows, None where nobody asks. Classes beyond the eight most
    probable are left out, and summed up in `others`. Of a distribution over a number there is `mean` and `interval`, in
    which the number lies with a probability of 80 %, and no classes.
    """

    name: str
    answer: str
    probability: float
    classes: tuple[tuple[str, float], ...] = ()
    others: float = 0.0
    label: str | None = None
    mean: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the answer is another than the label, where there is one to compare with."""
        return bool(self.label) and self.label != self.answer


@dataclass(frozen=True)
class PhotoAnswer:
    """What is said of one photo: of each head, and of their joint class."""

    heads: tuple[HeadAnswer, ...]
    joint: HeadAnswer


def photo_answer(heads: Heads, probabilities: np.ndarray, y: np.ndarray | None = None) -> PhotoAnswer:
    """(classes of all heads,) probabilities, and (heads,) labels where there are any -> what they say of one photo."""
    codes = heads.argmax(probabilities[None])
    each = []
    for i, (head, part) in enumerate(zip(heads, heads.split(probabilities), strict=True)):
        label = None if y is None else head.decode(int(y[i]))
        each.append(_number(head, part, label) if head.spread is not None else _classes(head, part, label))
    joint = HeadAnswer(
        JOINT,
        heads.joint_name(int(heads.joint(codes)[0])),
        float(probability_of(heads, probabilities[None], codes)[0]),
        label=None if y is None else heads.joint_name(int(heads.joint(y[None])[0])),
    )
    return PhotoAnswer(tuple(each), joint)


def _classes(head: Head, part: np.ndarray, label: str | None) -> HeadAnswer:
    code = int(part.argmax())
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
    share = part / part.sum()
    mean, steps = float(share @ head.numbers), np.cumsum(share)
    low, high = head.numbers[np.searchsorted(steps, [0.1, 0.9]).clip(max=len(steps) - 1)].tolist()
    code = int(part.argmax())
    return HeadAnswer(head.name, head.classes[code], float(part[code]), label=label, mean=mean, interval=(low, high))
