"""Suspects: photos whose label the models that have not seen them contradict, to be looked at."""

from __future__ import annotations

import pandas as pd

from fastmask.evaluation.label_errors import LabelError, find_label_errors
from fastmask.report.blocks import QUIET, WRONG, Album, Block, Shown, Text
from fastmask.report.material import Material
from fastmask.report.top_losses import photos_at
from fastmask.system.text import count, percent, shorten_middle, shorten_start

_MOST, _NAME, _CLASS = 24, 60, 32


def section(material: Material) -> list[Block]:
    """The most suspicious labels, one a person."""
    run = material.run
    errors = find_label_errors(run)
    if not errors:
        return [Text("No label is suspicious.")]
    by_head = pd.Series([error.head for error in errors]).value_counts()
    whole = {error.head: error.of for error in errors}
    counted = ", ".join(f"{head} {n:,} of {whole[head]:,}" for head, n in by_head.items())
    first = {error.person: error for error in reversed(errors)}
    # a person once, where it is most suspicious
    shown = [error for error in errors if first[error.person] is error][:_MOST]
    rows = pd.Index(run.oof["path"]).get_indexer(pd.Index([error.paths[0] for error in shown]))
    photos = photos_at(material, rows.tolist())
    album = [_shown(error, photo) for error, photo in zip(shown, photos, strict=True) if photo is not None]
    blocks: list[Block] = [
        Text(
            f"Labels that confident learning (Northcutt et al. 2021) finds suspicious: {counted}. The {len(album)} "
            "most suspicious, at most one of each person. Many are right as they are, above all near a bound: look at "
            "each, then write them by fastmask label-errors and train with fit --fixes."
        ),
        Album("label-errors", album),
    ]
    if run.is_leaky:
        hidden = (
            "The split is leaky (--group none): the models have seen these persons, and their wrong labels are hidden."
        )
        blocks.insert(0, Text(hidden, warning=True))
    return blocks


def _shown(error: LabelError, photo: object) -> Shown:
    others = len(error.paths) - 1
    where = error.person if error.whole else error.paths[0]
    lines = [
        (f"{error.head}: labelled {shorten_middle(error.label, _CLASS)} {percent(error.self_confidence)}", ""),
        (f"more likely {shorten_middle(error.suggested, _CLASS)} {percent(error.probability)}", WRONG),
        (shorten_start(where, _NAME) + (f", and {count(others, 'more photo')}" if others else ""), QUIET),
    ]
    alt = f"Photo labelled {error.label} in {error.head}, more likely {error.suggested}"
    return Shown(photo, alt, lines)  # type: ignore[arg-type]
