"""Explained: where the networks look on a few photos, head by head, by the fold that has not seen them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image

from fastmask.heads import JOINT, UNKNOWN
from fastmask.report.blocks import QUIET, RIGHT, WRONG, Album, Block, Shown, Text
from fastmask.report.explain import Explanation, answer_of, explain, networks_of, scored_epochs
from fastmask.report.material import Material, kept_epochs
from fastmask.report.mistakes import mistakes
from fastmask.report.photos import plot_sheet, small
from fastmask.report.style import Picture
from fastmask.report.top_losses import MOST as _MISTAKES
from fastmask.report.top_losses import losses, photos_at, surest
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some, percent, shorten_middle

# photos of each kind, and heads, each of which needs the networks once more
_MOST, _HEADS = 3, 3
# of pictures in memory those that are kept in a file as they are
_MODES = ("L", "RGB", "RGBA", "P", "I;16")
# characters of the name of a class under a photo
_CLASS = 32


def look(
    run: RunDirectory,
    paths: Sequence[Path],
    heads: Sequence[str],
    fold: int | None = None,
    boxes: str | Path | None = None,
    root: Path | None = None,
    rows: Sequence[int] | None = None,
) -> list[list[Explanation]]:
    """For each photo where the networks of a fold look for a class of each head.

    That is what they answer, or, of photos of the run, whose `rows` of `oof` these are, what was answered out of fold.
    """
    each = []
    for head in heads:
        label = None if rows is None else [answer_of(run.heads, head, run.probabilities[row])[0] for row in rows]
        each.append(explain(run, paths, head, label, fold=fold, boxes=boxes, root=root))
    return [list(of) for of in zip(*each, strict=True)]


def plot_explanation(
    run: RunDirectory,
    photo: str | Path | Image.Image | np.ndarray,
    heads: str | Sequence[str] | None = None,
    *,
    fold: int | None = None,
    boxes: str | Path | None = None,
    data: str | None = None,
) -> Picture:
    """A photo as the networks of a fold see it, and where they look for the answer of each head (Grad-CAM).

    A photo of the run, named by its path there, is explained by the fold that has not seen it, for its answer out of
    fold; any other (a file, a PIL image, or (height, width, 3) uint8) by `fold`, the first by default, for the answer
    of that. The networks are the kept ones; where they answer otherwise than out of fold, a line says so. `boxes` is
    the CSV of the faces of other photos than the run's, `data` says where those lie where they have moved. Raises
    UsageError as `explain` does.
    """
    names = _names(run, heads)
    with _as_file(photo) as path:
        root, row = None, None
        rows = np.flatnonzero(run.oof["path"] == str(path))
        if len(rows):
            table, row = Material(run, data).table, int(rows[0])
            path, root, boxes = table.root / path, table.root, boxes or run.config.boxes
            fold = int(run.oof["fold"].iloc[row]) if fold is None else fold
        (found,) = look(run, [path], names, fold, boxes, root, None if row is None else [row])
    return plot_sheet(_shown(run, found, row), columns=1 + len(names))


def _names(run: RunDirectory, heads: object) -> list[str]:
    """The heads that are asked for, one by its name or several; raises UsageError for none."""
    if heads is None:
        return list(run.heads.classified)
    names = [heads] if isinstance(heads, str) else list(heads) if isinstance(heads, Sequence) else []
    if not names:
        raise UsageError(f"heads is {heads!r}; expected some of {', '.join([*run.heads.names, JOINT])}.")
    for name in names:
        target_of(run.heads, run.true[:1], name)
    return names


@contextmanager
def _as_file(photo: object) -> Iterator[Path]:
    """A photo as a file, which one that lies in memory is for the while; raises UsageError for what is no photo."""
    if isinstance(photo, str | Path):
        if not str(photo).strip() or str(photo) == ".":
            raise UsageError("The name of the photo is empty; expected a file, or the path of a photo of the run.")
        yield Path(photo)
        return
    if isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3 == photo.shape[2] and photo.size:
        photo = Image.fromarray(photo)
    if not isinstance(photo, Image.Image):
        what = f"an array of {photo.dtype} {photo.shape}" if isinstance(photo, np.ndarray) else repr(photo)
        raise UsageError(
            f"The photo is {what}; expected a file, the path of a photo of the run, a PIL image, or an array of uint8 "
            "(height, width, 3)."
        )
    with TemporaryDirectory(prefix="fastmask-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "photo.png"
        (photo if photo.mode in _MODES else photo.convert("RGB")).save(place)
        yield place


def _shown(run: RunDirectory, found: Sequence[Explanation], row: int | None) -> list[Shown]:
    """A photo and a map a head; under the photo whose maps these are, under each map what it is for.

    Of a photo of the run, by its row of `oof`, that is its answer out of fold, with what is true and what the network
    of the map answers itself, where these are others.
    """
    first = found[0]
    seen = [("as the network sees it", ""), (first.by, QUIET)]
    shown = [Shown(small(first.image), f"The photo as the network sees it, {first.by}", seen)]
    for one in found:
        label, chance = "", one.answer_probability
        if row is not None:
            label = _label(run, one.head, row)
            _, chance = answer_of(run.heads, one.head, run.probabilities[row])
        lines = [(f"{one.head}: {shorten_middle(one.label, _CLASS)} {percent(chance)}", _kind(label, one.label))]
        if label not in ("", one.label):
            lines.append((f"true: {shorten_middle(label, _CLASS)}", ""))
        alt = f"Map of what speaks for {one.label} in {one.head}{f'; true is {label}' if label else ''}"
        if one.answer != one.label:
            own = f"this network: {shorten_middle(one.answer, _CLASS)} {percent(one.answer_probability)}"
            lines.append((own, QUIET))
            alt += f"; {own}"
        shown.append(Shown(small(one.overlay), alt, lines))
    return shown


def _label(run: RunDirectory, head: str, row: int) -> str:
    """The true class of a head, or of the joint class; "" where it is unknown."""
    code = int(target_of(run.heads, run.true[row][None], head)[0])
    return "" if code == UNKNOWN else run.heads.joint_name(code) if head == JOINT else run.heads[head].decode(code)


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
    found = look(run, paths, heads, fold, config.boxes, table.root, rows)
    shown = [one for of, row in zip(found, rows, strict=True) for one in _shown(run, of, row)]
    which = "" if len(heads) == len(run.heads.classified) else f" Shown are {join_some(heads)}, the least often right."
    said = (
        f"Grad-CAM (Selvaraju et al. 2017) by the network of {networks_of(run, fold)}, which has not seen these "
        f"photos: red is what speaks most for the answer, blue what says nothing. "
        f"{_which_mistakes(material, wrong)}, then {len(right)} sure right answers of different classes."
        f"{which}{_which_answers(run, fold)}"
    )
    return [Text(said), Album("explained", shown, columns=1 + len(heads))]


def _which_mistakes(material: Material, rows: Sequence[int]) -> str:
    """What the mistakes are, and where they stand among those that are shown above."""
    shown, *_ = surest(material, mistakes(material.run, material.target))
    places = {row: place for place, row in enumerate(shown["row"], start=1)}
    numbers = [str(places[row]) for row in rows if row in places]
    told = f"First {len(rows)} of the most confident mistakes of this fold, of different true classes where there are"
    if not numbers or len(numbers) < len(rows):
        return told
    listed = ", ".join(numbers[:-1]) + f" and {numbers[-1]}" if len(numbers) > 1 else numbers[0]
    return f"{told} (number{'s' * (len(numbers) > 1)} {listed} of those shown above)"


def _which_answers(run: RunDirectory, fold: int) -> str:
    """A sentence where the answers out of fold are of another epoch than the maps."""
    epochs = scored_epochs(run, fold)
    if not epochs or epochs == sorted(epoch + 1 for epoch in kept_epochs(run, fold)):
        return ""
    named = ", ".join(map(str, epochs))
    return (
        f" The answers are those out of fold, of epoch {named}, which the other folds chose, and whose weights are not "
        "kept; where the network of the map answers otherwise, the line below says so."
    )


def worst_heads(material: Material) -> list[str]:
    """The few heads that are right least often, in their order."""
    heads = [name for name in material.run.heads.classified if material.known(name).any()]
    worst = sorted(heads, key=lambda head: material.scores.heads[head].accuracy)[:_HEADS]
    return [head for head in heads if head in worst]


def picked(material: Material, fold: int) -> tuple[list[int], list[int]]:
    """Rows of `oof` of one fold: its surest mistakes, one a person, and the surest right answers, one a class.

    Of photos that can be read.
    """
    run, target = material.run, material.target
    wrong = mistakes(run, target)
    here, *_ = surest(material, wrong[wrong["fold"] == fold])
    # of the surest ones those that are wrong in different ways first
    different = here.drop_duplicates("true")["row"].tolist()
    mistaken = [*different, *(row for row in here["row"] if row not in different)][:_MOST]
    right = _right(material, target)
    sure = right[right["fold"] == fold].drop_duplicates("true")["row"].head(_MISTAKES).tolist()
    there = [row for row, photo in zip(sure, photos_at(material, sure), strict=True) if photo is not None]
    return mistaken, there[:_MOST]


def _right(material: Material, target: str) -> pd.DataFrame:
    """The photos that are answered rightly, the surest first: row, fold, true."""
    found = losses(material.run, target)
    return found[found["true"] == found["predicted"]].sort_values("loss", kind="stable")
