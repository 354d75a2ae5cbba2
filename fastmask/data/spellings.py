"""Spellings: classes or persons of a table that may be the same one, and classes that mean an unknown label."""

from __future__ import annotations

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable

import pandas as pd

from fastmask.heads import NUMBER, Head
from fastmask.system.errors import FastmaskWarning
from fastmask.system.text import join_some

# texts that often stand for an unknown label
_UNKNOWN = {
    *("n/a", "na", "#n/a", "nan", "null", "nil", "unknown", "unk", "undefined", "missing", "not available"),
    *("?", "-", "--", ".", "tbd"),
}


def warn_of_spellings(table: str, head: Head, cells: pd.Series, chosen: bool = False) -> None:
    """Warn of values of a head's column that look like one class, and, unless `chosen`, of classes like N/A.

    `cells` are those of the table, with the blanks at their ends. `chosen` classes are named by the user.
    """
    counts = cells[cells.map(str.strip) != ""].value_counts()
    for spelled in group_spellings(counts.index):
        _warn(f"{table}, column {head.name}: {_describe([(text, int(counts[text])) for text in spelled])}")
    stripped = counts.groupby(counts.index.map(str.strip)).sum()
    unknown = [f"{name!r} ({stripped[name]})" for name in head.classes if is_unknown(name) and name in stripped]
    if unknown and not chosen:
        _warn(
            f"{table}, column {head.name}: {join_some(unknown)} counts as a class; for an unknown label leave the cell "
            "empty, or list the classes with heads in --config."
        )


def warn_of_persons(table: str, column: str, persons: pd.Series) -> None:
    """Warn of persons whose names look like one, which folds would separate."""
    counts = persons[persons != ""].value_counts()
    groups = group_spellings(counts.index)
    if groups:
        same = [" and ".join(f"{_visible(name)} ({counts[name]})" for name in group) for group in groups]
        _warn(
            f"{table}, column {column}: {join_some(same)} count as different persons; if they are one, write the name "
            "the same way in all rows, or merge them with --fixes, or the photos of one person leak across folds."
        )


def group_spellings(values: Iterable[str]) -> list[list[str]]:
    """Values that differ only in case, blanks, the form of Unicode or the digits of a number, in groups."""
    groups = defaultdict(list)
    for value in values:
        groups[spelling_key(value)].append(value)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def spelling_key(text: str) -> str:
    """A text without its spelling: the same for `RED` and ` red`, `1` and `1.0`, `sports_car` and `sports car`."""
    key = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").split())
    return f"{float(key):g}" if NUMBER.fullmatch(key) and len(key) < 15 else key


def is_unknown(text: str) -> bool:
    """Whether a class looks like a missing label."""
    # "none" is often a class, but "None" is how Python writes a missing value
    return text.casefold() in _UNKNOWN or text == "None"


def _describe(spelled: list[tuple[str, int]]) -> str:
    shown = join_some([f"{_visible(text)} ({count})" for text, count in spelled])
    classes = len({text.strip() for text, _ in spelled})
    if classes == 1:
        return f"{shown} are one class; the blanks at the ends are ignored."
    return (
        f"{shown} are {classes} classes; if they are one, write it the same way in all rows (with --fixes its photos "
        "get the other label, but the class stays)."
    )


def _visible(text: str) -> str:
    """A text in quotes; in ASCII if its form cannot be seen."""
    return repr(text) if unicodedata.is_normalized("NFKC", text) else ascii(text)


def _warn(text: str) -> None:
    warnings.warn(text, FastmaskWarning, stacklevel=5)
