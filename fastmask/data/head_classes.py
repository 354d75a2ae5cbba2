"""Head classes: the heads of a table with their classes, and the labels in its cells."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.columns import MANY_NUMBERS, Column, are_codes, find_heads, join_one_hot
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.text import join_some, shorten_repr

# a column; or columns; or each column's classes, or the arguments of its Head; or Heads
GivenHeads = str | Sequence[str | Head] | Mapping[str, Sequence[str] | Mapping[str, Any]] | Heads


def make_heads(
    table: str,
    cells: pd.DataFrame,
    given: GivenHeads | None,
    taken: Collection[str | None],
    ordered: Mapping[str, Sequence[str]],
) -> tuple[Heads, dict[str, pd.Series]]:
    """The heads of a table, and the column of text of each.

    `given` is as in `read_csv`, `taken` are columns that are no heads, `ordered` the classes of columns that have an
    order. Raises UsageError for a head without a column, DataError for a column without two classes.
    """
    heads, labels = [], {}
    for entry, classes in _entries(table, cells, given, taken):
        name = entry.name if isinstance(entry, Head) else entry
        labels[name] = _labels_of(table, cells, name, entry.classes if isinstance(entry, Head) else classes, taken)
        heads.append(entry if isinstance(entry, Head) else _make_head(table, labels[name], classes, ordered))
    return Heads(heads), labels


def are_chosen(given: GivenHeads | None, name: str) -> bool:
    """Whether the user has named the classes of a head."""
    if isinstance(given, Mapping):
        return bool(given.get(name))
    return given is not None and any(isinstance(entry, Head) and entry.name == name for entry in given)


def _entries(
    table: str, cells: pd.DataFrame, given: GivenHeads | None, taken: Collection[str | None]
) -> list[tuple[str | Head, Any]]:
    """(name or head, classes or None) of each head."""
    if given is None:
        found, sentence = find_heads(table, cells, taken)
        if sentence:
            warnings.warn(sentence, FastmaskWarning, stacklevel=5)
        return list(found.items())
    if isinstance(given, str):
        given = [given] if given in cells.columns else [name.strip() for name in given.split(",")]
    if isinstance(given, Mapping):
        return list(given.items())
    # a caller of Python may pass any type
    listed: Any = given
    entries = list(listed) if isinstance(listed, Iterable) else []
    if not entries or not all(isinstance(entry, str | Head) for entry in entries):
        raise UsageError(f"heads is {shorten_repr(given)}; expected names of columns, or Heads.")
    return [(entry, None) for entry in entries]


def _labels_of(table: str, cells: pd.DataFrame, name: str, classes: Any, taken: Collection[str | None]) -> pd.Series:
    if name in cells.columns and name not in taken:
        return cells[name]
    if isinstance(classes, list | tuple) and classes and set(classes) <= set(cells.columns) - set(taken):
        return join_one_hot(cells, classes).rename(name)
    others = join_some([column for column in cells.columns if column not in taken], 30)
    raise UsageError(f"{table} has no column {name!r} for a head; expected some of {others}.")


def _make_head(table: str, cells: pd.Series, classes: Any, ordered: Mapping[str, Sequence[str]]) -> Head:
    name = str(cells.name)
    arguments: dict[str, Any] = dict(classes) if isinstance(classes, Mapping) else {"classes": classes}
    arguments["classes"] = arguments.get("classes") or ordered.get(name)
    if not arguments["classes"]:
        arguments["classes"] = _unique_values(table, cells)
        _warn_of_numbers(table, cells)
    try:
        return Head(name, **arguments)
    except UsageError as error:
        raise UsageError(f"{table}, column {name!r}: {error}") from error


def _unique_values(table: str, cells: pd.Series) -> tuple[str, ...]:
    """The different values of a column, sorted, numbers by their size."""
    values = sorted({c for c in cells if c != ""})
    if len(values) < 2:
        raise DataError(
            f"{table}, column {cells.name}: found {len(values)} class ({', '.join(values) or 'all cells are empty'}), "
            "expected two or more; leave the column out of --heads."
        )
    numbers = pd.to_numeric(pd.Series(values), errors="coerce")
    order = np.argsort(numbers.to_numpy(), kind="stable") if numbers.notna().all() else range(len(values))
    return tuple(values[i] for i in order)


def _warn_of_numbers(table: str, cells: pd.Series) -> None:
    column = Column(str(cells.name), cells)
    if len(column.values) > MANY_NUMBERS and column.numbers is not None and not are_codes(column):
        warnings.warn(
            f"{table}, column {column.name}: each of the {len(column.values)} numbers is a class; for bands of a "
            "number give bounds in --config, such as heads: {age: {classes: [<40, 40+], bounds: [40]}}.",
            FastmaskWarning,
            stacklevel=6,
        )


def read_labels(cells: pd.Series, head: Head) -> tuple[pd.Series, pd.Series]:
    """The class names of a column, a DataError in the invalid cells, and the numbers of its bands."""
    names = set() if head.bounds else {*head.classes, ""}

    def read(cell: str | DataError) -> tuple[str | DataError, float]:
        if isinstance(cell, DataError) or cell in names:
            return cell, float("nan")
        try:
            return head.read(cell)
        except DataError as fault:
            return fault, float("nan")

    values = {cell: read(cell) for cell in cells.unique()}
    return cells.map(lambda cell: values[cell][0]), cells.map(lambda cell: values[cell][1])


def head_to_plain(head: Head) -> list[str] | dict[str, Any]:
    """A head as `Config.heads` has it."""
    if head.bounds is None:
        return list(head.classes)
    numbers = {"bounds": head.bounds, "train_bounds": head.train_bounds, "limits": head.limits}
    return {"classes": list(head.classes), **{name: row and list(row) for name, row in numbers.items()}}
