"""Losses: the photos that cost a run the most, and its most confident mistakes, as small photos with their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastmask.decision.calibration import log_probabilities
from fastmask.heads import JOINT, UNKNOWN, Head
from fastmask.report.blocks import QUIET, RIGHT, WRONG, Album, Block, Shown, Text
from fastmask.report.confusion import name_of
from fastmask.report.material import Material
from fastmask.report.mistakes import mistakes, probability_of
from fastmask.report.photos import plot_sheet, read_small
from fastmask.report.style import Picture
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import percent, shorten, shorten_middle, shorten_start

# mistakes in a report, and heads of one of them that have a line of their own
MOST, _LINES, _NAME = 24, 4, 60
# photos of one picture, which is as many rows high
_MOST_PLOTTED = 200
# characters of the name of a class under a photo
_CLASS = 32


def losses(run: RunDirectory, head: str = JOINT) -> pd.DataFrame:
    """One row a photo whose label of a head, or of all, is known: the highest loss first.

    The loss is -log of the probability of the true class, out of fold; of the joint class the sum of its heads'. The
    columns are those of `mistakes` and loss. It is not the loss of the training, which may weigh classes.
    """
    true = target_of(run.heads, run.true, head)
    rows = np.flatnonzero(true != UNKNOWN)
    of_truth = probability_of(run.heads, run.probabilities[rows], run.true[rows], head)
    predicted = target_of(run.heads, run.predicted, head)[rows]
    frame = pd.DataFrame(
        {
            "row": rows,
            **{column: run.oof[column].to_numpy()[rows] for column in ("path", "person", "fold")},
            "true": [name_of(run.heads, head, int(code)) for code in true[rows]],
            "predicted": [name_of(run.heads, head, int(code)) for code in predicted],
            "probability": probability_of(run.heads, run.probabilities[rows], run.predicted[rows], head),
            "probability_true": of_truth,
            "loss": -log_probabilities(of_truth),
        }
    )
    return frame.sort_values("loss", ascending=False, kind="stable").reset_index(drop=True)


def plot_top_losses(run: RunDirectory, n: int = 16, head: str = JOINT, data: str | None = None) -> Picture:
    """The photos of the highest loss, each with its true and its predicted class; see `losses`.

    `data` says where the photos lie, where they have moved. Raises UsageError where they are not there.
    """
    found = losses(run, head).head(_count(n))
    if found.empty:
        raise UsageError(f"No photo has a label of {'all heads' if head == JOINT else head}.")
    material = Material(run, data)
    shown = []
    for row, photo in zip(found.itertuples(), photos_at(material, found["row"]), strict=True):
        if photo is not None:
            kind = RIGHT if row.true == row.predicted else WRONG
            lines = [
                (f"loss {row.loss:.2f}: true {percent(row.probability_true)}", QUIET),
                (row.true, ""),
                (f"said {row.predicted}" if kind == WRONG else "said so", kind),
                # a line of its own: what is too long for its place loses its end
                *([(f"with {percent(row.probability)}", kind)] if kind == WRONG else []),
            ]
            shown.append(Shown(photo, row.path, lines))
    return plot_sheet(shown, title=f"Highest loss, {head}: -log of the probability of the true class")


def _count(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= _MOST_PLOTTED:
        raise UsageError(f"n is {n!r}; expected a whole number of photos to show, 1 to {_MOST_PLOTTED}.")
    return int(n)


def photos_at(material: Material, rows: Sequence[int]) -> list[np.ndarray | None]:
    """The photos of some rows of `oof`, small; None for one that cannot be read."""
    paths = pd.Index(material.table.frame["path"]).get_indexer(pd.Index(material.run.oof["path"].iloc[list(rows)]))
    return read_small(material.table, paths.tolist())


def answer_lines(run: RunDirectory, row: int) -> list[tuple[str, str]]:
    """What a run says of the photo of a row of `oof`: a line a head that is wrong, then those that are right in one."""
    heads, true, said = run.heads, run.true[row], run.predicted[row]
    parts = heads.split(run.probabilities[row])
    wrong = [i for i in heads.joined if true[i] not in (UNKNOWN, said[i])]
    right = [heads[i].decode(said[i]) for i in heads.joined if true[i] == said[i]]
    lines = [
        (
            f"{shorten_middle(heads[i].decode(true[i]), _CLASS)}{_number(run, heads[i], row)}, answered "
            f"{shorten_middle(heads[i].decode(said[i]), _CLASS)} {percent(parts[i][said[i]])}",
            WRONG,
        )
        for i in wrong[:_LINES]
    ]
    if len(wrong) > _LINES:
        lines.append((f"and {len(wrong) - _LINES} heads more", WRONG))
    return lines + ([(f"right: {shorten(', '.join(right), _NAME)}", RIGHT)] if right else [])


def _sure(run: RunDirectory, target: str, probability: float) -> list[tuple[str, str]]:
    """A line of how sure the joint answer was; none where there is no other than that of a head."""
    if target != JOINT or len(run.heads.classified) == 1:
        return []
    return [(f"all heads together {percent(probability)}", "")]


def _number(run: RunDirectory, head: Head, row: int) -> str:
    """The number behind the class of a photo, in brackets, where the run keeps it."""
    column = f"{head.name}_value"
    if not head.bounds or column not in run.folds:
        return ""
    value = run.folds[column].iloc[row_in_folds(run, row)]
    return "" if np.isnan(value) else f" ({value:g})"


def row_in_folds(run: RunDirectory, row: int) -> int:
    """The row of `folds` of the photo of a row of `oof`, which lacks the photos of folds that are not trained."""
    return int(np.flatnonzero(run.folds["path"] == run.oof["path"].iloc[row])[0])


def section(material: Material) -> list[Block]:
    """The most confident mistakes, one a person."""
    run, target = material.run, material.target
    found = mistakes(run, target)
    if found.empty:
        return [Text("No photo was answered wrongly.")]
    told, (shown, photos, unread) = len(found), surest(material, found)
    album = [
        Shown(
            photo,
            f"Photo of a true {row.true}, answered {row.predicted} ({percent(row.probability)})",
            [
                *_sure(run, target, row.probability),
                *answer_lines(run, row.row),
                (shorten_start(row.path, _NAME), QUIET),
            ],
        )
        for row, photo in zip(shown.itertuples(), photos, strict=True)
    ]
    known = int(material.known(target).sum())
    said = (
        f"{told:,} of {known:,} photos ({percent(told / known)}) are answered wrongly"
        f"{'' if target == JOINT else f' in {target}'}. These are the {len(album)} that the models were surest of, at "
        "most one of each person: under each what is true, what was answered and how sure that was."
    )
    if _sure(run, target, 0):
        said += " They are in the order of how sure the answer of all heads together was, the product of its heads."
    return [
        *_gone(material),
        Text(said),
        *([Text(f"{unread} more cannot be read.")] if unread else []),
        Album("mistakes", album),
    ]


def surest(material: Material, found: pd.DataFrame) -> tuple[pd.DataFrame, list[np.ndarray], int]:
    """The first mistakes of `found`, one a person, that can be read, with their photos; and how many cannot be."""
    first = found.drop_duplicates("person").head(MOST)
    photos = photos_at(material, first["row"])
    there = [photo is not None for photo in photos]
    return first[there], [photo for photo in photos if photo is not None], there.count(False)


def _gone(material: Material) -> list[Block]:
    """How many of the run's photos are not there any more, where some are."""
    if not material.gone:
        return []
    said = (
        f"{len(material.gone):,} of the {len(material.run.folds):,} photos of this run are not there any more, such as "
        f"{material.gone[0]}. Here and below they are not shown; the figures above are of all."
    )
    return [Text(said, warning=True)]
