"""Suspects: photos with labels that models trained without them contradict, for review."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastmask.evaluation.label_errors import LabelError, find_label_errors
from fastmask.report.blocks import QUIET, WRONG, Album, Block, Shown, Text
from fastmask.report.material import Material
from fastmask.report.sections.mistakes import CLASS
from fastmask.system.text import count, percent, shorten_middle, shorten_start

_MOST, _NAME = 24, 60


def section(material: Material) -> list[Block]:
    """The most suspicious labels, one per person."""
    run = material.run
    errors = find_label_errors(run)
    if not errors:
        return [Text("No label is suspicious.")]
    by_head = pd.Series([error.head for error in errors]).value_counts()
    judged = {error.head: error.of for error in errors}
    counted = ", ".join(f"{head} {n:,} of {judged[head]:,}" for head, n in by_head.items())
    # the most suspicious label of each person
    first = {error.person: error for error in reversed(errors)}
    shown = [error for error in errors if first[error.person] is error][:_MOST]
    rows = pd.Index(run.oof["path"]).get_indexer(pd.Index([error.paths[0] for error in shown]))
    photos = material.photos_at(rows.tolist())
    album = [_shown(error, photo) for error, photo in zip(shown, photos, strict=True) if photo is not None]
    said = (
        f"Labels that confident learning (Northcutt et al. 2021) finds suspicious: {counted}. The {len(album)} most "
        "suspicious are shown, at most one per person. Many are correct, above all near a bound: review each, then "
        "write a fix table with fastmask label-errors and train with fit --fixes."
    )
    blocks: list[Block] = [Text(said), Album("label-errors", album)]
    if run.is_leaky:
        hidden = "The split is leaky (--group none): the models have seen these persons, which hides wrong labels."
        blocks.insert(0, Text(hidden, warning=True))
    return blocks


def _shown(error: LabelError, photo: np.ndarray) -> Shown:
    others = len(error.paths) - 1
    where = error.person if error.whole else error.paths[0]
    lines = [
        (f"{error.head}: labelled {shorten_middle(error.label, CLASS)} {percent(error.self_confidence)}", ""),
        (f"more likely {shorten_middle(error.suggested, CLASS)} {percent(error.probability)}", WRONG),
        (shorten_start(where, _NAME) + (f", and {count(others, 'more photo')}" if others else ""), QUIET),
    ]
    alt = f"Photo labelled {error.label} in {error.head}, more likely {error.suggested}"
    return Shown(photo, alt, lines)
