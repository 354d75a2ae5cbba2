"""Explained: where the networks look on a few photos, head by head, by the fold that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.errors import UsageError
from fastmask.report.blocks import RIGHT, WRONG, Album, Block, Shown, Text, joined, percent, squeezed
from fastmask.report.explain import Explanation, explain
from fastmask.report.material import Material
from fastmask.report.mistakes import mistakes
from fastmask.report.photos import plot_sheet, small
from fastmask.report.style import Picture
from fastmask.report.top_losses import MOST as _MISTAKES
from fastmask.report.top_losses import losses
from fastmask.run import Run

# photos of each kind, and heads, each of which needs the networks once more
_MOST, _HEADS = 3, 3
# characters of the name of a class under a photo
_CLASS = 32


def look(
    run: Run,
    paths: Sequence[Path],
    heads: Sequence[str],
    fold: int | None = None,
    boxes: str | Path | None = None,
    root: Path | None = None,
) -> list[list[Explanation]]:
    """For each photo where the networks of a fold look for their answer of each head."""
    each = [explain(run, paths, head, fold=fold, boxes=boxes, root=root) for head in heads]
    return [list(of) for of in zip(*each, strict=True)]


def plot_explanation(
    run: Run,
    photo: str | Path,
    heads: Sequence[str] | None = None,
    *,
    fold: int | None = None,
    boxes: str | Path | None = None,
    data: str | None = None,
) -> Picture:
    """A photo as the networks of a fold see it, and where they look for their answer of each head (Grad-CAM).

    A photo of the run, named by its path there, is explained by the fold that has not seen it; any other by `fold`,
    the first by default. `boxes` is the CSV of the faces of other photos than the run's, `data` says where those lie
    where they have moved. Raises UsageError as `explain` does.
    """
    names = list(run.heads.classified if heads is None else heads)
    path, root, true = Path(photo), None, None
    rows = np.flatnonzero(run.oof["path"] == str(photo))
    if len(rows):
        table = Material(run, data).table
        path, root, boxes = table.root / str(photo), table.root, boxes or run.config.boxes
        fold, true = int(run.oof["fold"].iloc[rows[0]]) if fold is None else fold, run.true[rows[0]]
    (found,) = look(run, [path], names, fold, boxes, root)
    return plot_sheet(_shown(run, found, true), columns=1 + len(names))


def _shown(run: Run, found: Sequence[Explanation], true: np.ndarray | None) -> list[Shown]:
    """A photo and a map a head, each with what is answered and, where that is known and differs, what is true."""
    shown = [Shown(small(found[0].image), "The photo as the network sees it", [("as the network sees it", "")])]
    for one in found:
        label = "" if true is None else run.heads[one.head].decode(int(true[run.heads.position(one.head)]))
        lines = [(f"{one.head}: {squeezed(one.label, _CLASS)} {percent(one.probability)}", _kind(label, one.label))]
        if label not in ("", one.label):
            lines.append((f"true: {squeezed(label, _CLASS)}", ""))
        alt = f"Map of what speaks for {one.label} in {one.head}{f'; true is {label}' if label else ''}"
        shown.append(Shown(small(one.overlay), alt, lines))
    return shown


def _kind(label: str, said: str) -> str:
    return "" if not label else RIGHT if label == said else WRONG


def section(material: Material) -> list[Block]:
    """Grad-CAM of the surest mistakes and of some sure right answers of the first fold."""
    run = material.run
    run.check_trained()
    table, config = material.table, run.config
    fold = next((fold for fold in run.trained_folds if run.checkpoints(fold)), None)
    if fold is None:
        raise UsageError("No fold has a network.")
    if config.boxes is not None and not Path(config.boxes).is_file():
        raise UsageError(f"The photos were cut by {config.boxes}, which is not there, or not from here.")
    wrong, right = picked(material, fold)
    rows = [*wrong, *right]
    heads = worst_heads(material)
    paths = [table.root / path for path in run.oof["path"].iloc[rows]]
    found = look(run, paths, heads, fold, config.boxes, table.root)
    shown = [one for of, row in zip(found, rows, strict=True) for one in _shown(run, of, run.true[row])]
    which = "" if len(heads) == len(run.heads.classified) else f" Shown are {joined(heads)}, the least often right."
    said = (
        f"Grad-CAM (Selvaraju et al. 2017) by the networks of fold {fold}, which have not seen these photos: red "
        f"is what speaks most for the answer, blue what says nothing. First {len(wrong)} of the surest mistakes, then "
        f"{len(right)} sure right answers of different classes.{which}"
    )
    return [Text(said), Album("explained", shown, columns=1 + len(heads))]


def worst_heads(material: Material) -> list[str]:
    """The few heads that are right least often, in their order."""
    heads = [name for name in material.run.heads.classified if material.known(name).any()]
    worst = sorted(heads, key=lambda head: material.scores.heads[head].accuracy)[:_HEADS]
    return [head for head in heads if head in worst]


def picked(material: Material, fold: int) -> tuple[list[int], list[int]]:
    """Rows of `oof` of one fold: its surest mistakes, one a person, and the surest right answers, one a class."""
    run, target = material.run, material.target
    wrong = mistakes(run, target)
    here = wrong[wrong["fold"] == fold].drop_duplicates("person").head(_MISTAKES)
    # of the surest ones those that are wrong in different ways first
    different = here.drop_duplicates("true")["row"].tolist()
    mistaken = [*different, *(row for row in here["row"] if row not in different)][:_MOST]
    right = _right(material, target)
    sure = right[right["fold"] == fold].drop_duplicates("true")["row"].tolist()
    return mistaken, sure[:_MOST]


def _right(material: Material, target: str) -> pd.DataFrame:
    """The photos that are answered rightly, the surest first: row, fold, true."""
    found = losses(material.run, target)
    return found[found["true"] == found["predicted"]].sort_values("loss", kind="stable")
