"""Heatmaps: where the networks look on a few photos, per head, by the fold that has not seen them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from fastmask.heads import JOINT
from fastmask.report.blocks import QUIET, RIGHT, WRONG, Album, Block, Shown, Text
from fastmask.report.gradcam import Explanation, class_of, explain, networks_of
from fastmask.report.material import Material
from fastmask.report.sections.confusion import name_of
from fastmask.report.sections.curves import kept_epochs, scored_epochs
from fastmask.report.sections.mistakes import CLASS, MOST, losses, mistakes, most_confident
from fastmask.report.style import Picture
from fastmask.report.thumbnails import plot_sheet, thumbnail
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some, percent, shorten_middle

# photos of each kind, and heads
_MOST, _HEADS = 3, 3
# modes of PIL images that PNG stores unchanged
_MODES = ("L", "RGB", "RGBA", "P", "I;16")


def look(
    run: RunDirectory,
    paths: Sequence[Path],
    heads: Sequence[str],
    fold: int | None = None,
    boxes: str | Path | None = None,
    root: Path | None = None,
    rows: Sequence[int] | None = None,
) -> list[list[Explanation]]:
    """Per photo and head where the networks of a fold look for a class.

    It is the class that they predict or, for photos of the run with `rows` of `oof`, the out-of-fold prediction.
    """
    each = []
    for head in heads:
        label = None if rows is None else [class_of(run.heads, head, run.probabilities[row])[0] for row in rows]
        each.append(explain(run, paths, head, label, fold=fold, boxes=boxes, root=root))
    return [list(heads) for heads in zip(*each, strict=True)]


def plot_explanation(
    run: RunDirectory,
    photo: str | Path | Image.Image | np.ndarray,
    heads: str | Sequence[str] | None = None,
    *,
    fold: int | None = None,
    boxes: str | Path | None = None,
    data: str | None = None,
) -> Picture:
    """A photo as the networks of a fold see it, and where they look for the class of each head (Grad-CAM).

    A photo of the run, given by its path in the run, is explained by the fold that has not seen it, for its out-of-fold
    prediction; any other (a file, a PIL image, or a uint8 array (height, width, 3)) by `fold`, by default the first,
    for the networks' own prediction. A line says where the kept networks predict something else than out of fold.
    `boxes` is a CSV of faces for photos that are not the run's, `data` says where the run's photos are now. Raises
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
    """The heads given as a name, several, or None for all; raises UsageError for an empty list."""
    if heads is None:
        return list(run.heads.classified)
    names = [heads] if isinstance(heads, str) else list(heads) if isinstance(heads, Sequence) else []
    if not names:
        raise UsageError(f"heads is {heads!r}; expected one or several of {', '.join([*run.heads.names, JOINT])}.")
    for name in names:
        target_of(run.heads, run.true[:1], name)
    return names


@contextmanager
def _as_file(photo: object) -> Iterator[Path]:
    """A photo as a file, temporary if it is in memory; raises UsageError for anything else."""
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
            f"The photo is {what}; expected a file, the path of a photo of the run, a PIL image, or a uint8 array "
            "(height, width, 3)."
        )
    with TemporaryDirectory(prefix="fastmask-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "photo.png"
        (photo if photo.mode in _MODES else photo.convert("RGB")).save(place)
        yield place


def _shown(run: RunDirectory, found: Sequence[Explanation], row: int | None) -> list[Shown]:
    """A photo and a map per head, with lines that say which networks and which class they are for.

    For a photo of the run, given by its `row` of `oof`, that is the out-of-fold prediction, with the true class and the
    network's own prediction if they differ.
    """
    first = found[0]
    lines = [("as the network sees it", ""), (first.by, QUIET)]
    shown = [Shown(thumbnail(first.image), f"The photo as the network sees it, {first.by}", lines)]
    for one in found:
        label, chance = "", one.prediction_probability
        if row is not None:
            label = name_of(run.heads, one.head, int(target_of(run.heads, run.true[row][None], one.head)[0]))
            _, chance = class_of(run.heads, one.head, run.probabilities[row])
        kind = "" if not label else RIGHT if label == one.label else WRONG
        lines = [(f"{one.head}: {shorten_middle(one.label, CLASS)} {percent(chance)}", kind)]
        alt = f"Map of what supports {one.label} in {one.head}"
        if label:
            alt += f"; true is {label}"
        if label not in ("", one.label):
            lines.append((f"true: {shorten_middle(label, CLASS)}", ""))
        if one.prediction != one.label:
            own = f"this network: {shorten_middle(one.prediction, CLASS)} {percent(one.prediction_probability)}"
            lines.append((own, QUIET))
            alt += f"; {own}"
        shown.append(Shown(thumbnail(one.overlay), alt, lines))
    return shown


def section(material: Material) -> list[Block]:
    """Grad-CAM of the most confident mistakes and of some confident right predictions of the first fold."""
    run = material.run
    run.check_trained()
    table, config = material.table, run.config
    fold = next((fold for fold in run.trained_folds if run.checkpoints(fold)), None)
    if fold is None:
        raise UsageError("No fold has a checkpoint.")
    if config.boxes is not None and not Path(config.boxes).is_file():
        raise UsageError(f"The photos were cropped by the boxes in {config.boxes}, which is not found from here.")
    wrong, right = pick_rows(material, fold)
    rows = [*wrong, *right]
    heads = material.worst_heads(_HEADS)
    paths = [table.root / path for path in run.oof["path"].iloc[rows]]
    found = look(run, paths, heads, fold, config.boxes, table.root, rows)
    shown = [one for explained, row in zip(found, rows, strict=True) for one in _shown(run, explained, row)]
    some = f" Shown are {join_some(heads)}, the heads with the lowest accuracy."
    said = (
        f"Grad-CAM (Selvaraju et al. 2017) by the network of {networks_of(run, fold)}, which has not seen these "
        f"photos: red supports the prediction most, blue not at all. {_on_mistakes(material, wrong)}, then "
        f"confident right predictions ({len(right)}), each of another class."
        f"{some if len(heads) < len(run.heads.classified) else ''}{_on_epochs(run, fold)}"
    )
    return [Text(said), Album("explained", shown, columns=1 + len(heads))]


def _on_mistakes(material: Material, rows: Sequence[int]) -> str:
    """What the mistakes are, and their numbers in the section of mistakes."""
    shown, *_ = most_confident(material, mistakes(material.run, material.labelled[0]))
    places = {row: place for place, row in enumerate(shown["row"], start=1)}
    numbers = [str(places[row]) for row in rows if row in places]
    said = f"First {len(rows)} of the most confident mistakes of this fold, if possible of different true classes"
    if not numbers or len(numbers) < len(rows):
        return said
    listed = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
    return f"{said} (number{'s' * (len(numbers) > 1)} {listed} of those shown above)"


def _on_epochs(run: RunDirectory, fold: int) -> str:
    """A sentence if the out-of-fold predictions are of another epoch than the maps."""
    epochs = scored_epochs(run, fold)
    if not epochs or epochs == sorted(epoch + 1 for epoch in kept_epochs(run, fold)):
        return ""
    return (
        f" The predictions are those out of fold, of epoch {', '.join(map(str, epochs))}, which the other folds chose "
        "and which has no checkpoint; a line says where the network of the map predicts something else."
    )


def pick_rows(material: Material, fold: int) -> tuple[list[int], list[int]]:
    """Rows of `oof` of one fold: its most confident mistakes, and confident right predictions of different classes.

    Only photos that can be read, and at most one mistake per person.
    """
    run, target = material.run, material.labelled[0]
    wrong = mistakes(run, target)
    here, *_ = most_confident(material, wrong[wrong["fold"] == fold])
    # different true classes first
    different = here.drop_duplicates("true")["row"].tolist()
    mistaken = [*different, *(row for row in here["row"] if row not in different)][:_MOST]
    found = losses(run, target)
    right = found[(found["fold"] == fold) & (found["true"] == found["predicted"])].sort_values("loss", kind="stable")
    first = right.drop_duplicates("true")["row"].head(MOST).tolist()
    readable = [row for row, photo in zip(first, material.photos_at(first), strict=True) if photo is not None]
    return mistaken, readable[:_MOST]
