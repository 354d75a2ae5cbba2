"""Fragments: pieces of HTML about photos, predictions and marks, with all text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np

from fastmask.app.marks import Mark
from fastmask.app.selection import HeadAnswer, PhotoAnswer
from fastmask.data.photo import read_photo
from fastmask.report.thumbnails import thumbnail, to_uri
from fastmask.system.errors import DataError
from fastmask.system.text import percent

# pixels of the longer side, JPEG quality, tiles that are cached
_SMALL, _LARGE, _QUALITY, _CACHED = 240, 1024, 85, 512


def picture(image: np.ndarray, alt: str, side: int = _LARGE) -> str:
    """(height, width, 3) uint8 -> an <img> with its data, scaled down to `side` pixels."""
    return f'<img src="{to_uri(thumbnail(image, side, side), _QUALITY)}" alt="{escape(alt)}">'


@lru_cache(maxsize=_CACHED)
def tile_picture(photo: Path) -> str:
    """A small <img> of a photo, without alternative text; a placeholder if the photo cannot be read."""
    try:
        return picture(read_photo(photo), "", _SMALL)
    except DataError:
        return '<span class="fm-gone">cannot be read</span>'


def empty(text: str) -> str:
    """A sentence in place of content."""
    return f'<p class="fm-empty">{escape(text)}</p>'


def figure(inside: str, caption: str) -> str:
    """A picture with a caption."""
    return f'<figure class="fm-figure">{inside}<figcaption>{escape(caption)}</figcaption></figure>'


def notice(text: str, kind: str = "info") -> str:
    """A sentence of a `kind`: info, good, or bad, which screen readers announce at once; "" for no text."""
    if not text:
        return ""
    return f'<p class="fm-notice fm-{kind}" role="{"alert" if kind == "bad" else "status"}">{escape(text)}</p>'


def answer(found: PhotoAnswer, remark: str = "") -> str:
    """The joint class, then the prediction of each head with its probabilities as bars."""
    joint = _joint(found.joint) if len(found.heads) > 1 else ""
    return f'<div class="fm-answer">{notice(remark)}{joint}{"".join(map(_head, found.heads))}</div>'


def _joint(found: HeadAnswer) -> str:
    label = "" if found.label is None else f'<span class="fm-against">{_verdict(found)}</span>'
    return (
        f'<div class="fm-joint"><span class="fm-name">Joint class</span><strong>{escape(found.answer)}</strong>'
        f'<span class="fm-value">{escape(percent(found.probability, 1))}</span>{label}</div>'
    )


def _verdict(found: HeadAnswer) -> str:
    if not found.label:
        return '<span class="fm-tag">no label</span>'
    if found.is_wrong:
        return f'<span class="fm-tag fm-wrong">label: {escape(found.label)}</span>'
    return '<span class="fm-tag fm-right">as labelled</span>'


def _head(found: HeadAnswer) -> str:
    verdict = "" if found.label is None else _verdict(found)
    title = f'<h3 class="fm-name">{escape(found.name)} {verdict}</h3>'
    if found.mean is not None and found.interval is not None:
        low, high = found.interval
        return (
            f'<section class="fm-head">{title}<p class="fm-number"><strong>{found.mean:.1f}</strong> on average, '
            f"{low:g} to {high:g} with 80 %</p></section>"
        )
    bars = "".join(_bar(name, share, found) for name, share in found.classes)
    others = f'<p class="fm-others">all others {escape(percent(found.others, 1))}</p>' if found.others else ""
    return f'<section class="fm-head">{title}<ul class="fm-bars">{bars}</ul>{others}</section>'


def _bar(name: str, share: float, found: HeadAnswer) -> str:
    kinds = ["fm-said"] * (name == found.answer) + ["fm-labelled"] * (name == found.label)
    return (
        f'<li class="{" ".join(kinds)}"><span class="fm-class">{escape(name)}</span>'
        f'<span class="fm-bar" aria-hidden="true"><i style="width:{share:.2%}"></i></span>'
        f'<span class="fm-value">{escape(percent(share, 1))}</span></li>'
    )


def grid(photos: Sequence[Mapping[str, object]], chosen: int | None) -> str:
    """Small photos to choose from, each with row, image (HTML), label, answer, probability, marked.

    The tab key reaches one of them, the arrow keys the others.
    """
    if not photos:
        return empty("No photo matches.")
    return f'<div class="fm-grid" role="group" aria-label="Photos">{"".join(_tile(p, chosen) for p in photos)}</div>'


def _tile(photo: Mapping[str, object], chosen: int | None) -> str:
    label, said = str(photo["label"]), str(photo["answer"])
    if label == said:
        words, spoken = f'<span class="fm-is">{escape(said)}</span>', f"{said}, as labelled"
    else:
        words = f'<span class="fm-was">{escape(label or "no label")}</span><span class="fm-is">{escape(said)}</span>'
        spoken = f"labelled {label}, predicted {said}" if label else f"predicted {said}, no label"
    kind = "fm-right" if label == said else "fm-wrong" if label else ""
    share = escape(percent(float(str(photo["probability"])), 1))
    mark = '<span class="fm-marked" title="marked">✎</span>' if photo["marked"] else ""
    here = photo["row"] == chosen
    said_too = ", marked" if photo["marked"] else ""
    return (
        f'<button type="button" class="fm-tile {kind}" data-row="{photo["row"]}" tabindex="{0 if here else -1}"'
        f'{" aria-current=true" if here else ""} aria-label="{escape(f"{spoken}, {share}{said_too}")}">'
        f'<span class="fm-frame">{photo["image"]}<span class="fm-share">{share}</span>{mark}</span>'
        f'<span class="fm-words">{words}</span></button>'
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="fm-facts">{rows}</dl>'


def correction(mark: Mark) -> str:
    """A mark as text."""
    value = mark.value or "unknown"
    return f"{mark.column}: {mark.label} → {value}" if mark.label else f"{mark.column} → {value}"


def marks(found: Sequence[Mark], file: Path, most: int = 500) -> str:
    """A table of marks, each with a button to remove it."""
    if not found:
        return empty(f"No label is marked in {file}.")
    rows = "".join(map(_mark_row, found[:most]))
    more = f'<p class="fm-others">and {len(found) - most} more</p>' if len(found) > most else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Photos", "Head", "Label", "Correct label", ""))
    return f'<div class="fm-scroll"><table class="fm-marks"><tr>{head}</tr>{rows}</table></div>{more}'


def _mark_row(mark: Mark) -> str:
    whom = mark.path or f"all photos of {mark.person}"
    key = escape(json.dumps(mark.target))
    proposed = ' <span class="fm-tag">proposed by a model</span>' if mark.proposed else ""
    cells = (
        f"<td>{escape(whom)}{proposed}</td><td>{escape(mark.column)}</td><td>{escape(mark.label)}</td>"
        f"<td>{escape(mark.value or 'unknown')}</td>"
    )
    name = escape(f"Remove {correction(mark)} of {whom}")
    button = f'<button type="button" class="fm-back" data-target="{key}" aria-label="{name}">Remove</button>'
    return f"<tr>{cells}<td>{button}</td></tr>"
