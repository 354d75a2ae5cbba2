"""Named classes: how settings name classes, such as age.60+ of one head, or the joint class incorrect female 60+."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastmask.heads import UNKNOWN, Head, Heads
from fastmask.system.errors import UsageError


def find_class(heads: Heads, name: str) -> tuple[int, ...]:
    """(heads,) the class numbers that `name` means, UNKNOWN where it means any.

    `name` is HEAD.CLASS, or a joint class: a class of each of its heads in order. Raises UsageError for any other.
    """
    codes = np.full(len(heads), UNKNOWN)
    if name in heads.columns:
        column = heads.columns.index(name)
        position = int(np.searchsorted(heads.offsets, column, "right")) - 1
        codes[position] = column - heads.offsets[position]
        return tuple(codes.tolist())
    joined = [heads[place] for place in heads.joined]
    found = next(_read(joined, name), None)
    if found is None:
        raise UsageError(
            f"There is no class {name!r}; expected one of a head, such as {heads.columns[0]!r}, or a joint class: one "
            f"of each of {', '.join(head.name for head in joined)}, such as {heads.joint_name(0)!r}."
        )
    codes[list(heads.joined)] = found
    return tuple(codes.tolist())


def is_of_class(y: Any, codes: Sequence[int]) -> Any:
    """(..., heads) class numbers, an array or a tensor -> (...) whether they are those of `find_class`."""
    found = y[..., 0] == y[..., 0]
    for position, code in enumerate(codes):
        if code != UNKNOWN:
            found = found & (y[..., position] == code)
    return found


def is_of_any(y: Any, heads: Heads, names: Iterable[str]) -> Any:
    """(..., heads) class numbers, an array or a tensor -> (...) whether they are of one of the named classes."""
    found = y[..., 0] != y[..., 0]
    for name in names:
        found = found | is_of_class(y, find_class(heads, name))
    return found


def check_present(heads: Heads, y: np.ndarray, named: Mapping[str, Iterable[str]], fold: int) -> None:
    """Raise UsageError if the (N, heads) labels of a fold's training lack a class that a setting names."""
    for setting, names in named.items():
        for name in names:
            if not is_of_class(y, find_class(heads, name)).any():
                raise UsageError(f"Setting {setting} names {name!r}, but fold {fold} has no photo of it to train on.")


def _read(heads: Sequence[Head], text: str) -> Iterator[tuple[int, ...]]:
    """The class numbers that a text may name, one per head; without listing joint classes, which may be billions."""
    for code, name in enumerate(heads[0].classes):
        if len(heads) > 1 and text.startswith(f"{name} "):
            yield from ((code, *rest) for rest in _read(heads[1:], text[len(name) + 1 :]))
        elif len(heads) == 1 and text == name:
            yield (code,)
