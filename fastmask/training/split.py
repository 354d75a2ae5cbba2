"""Split: the folds of a plan, and the photos that are in one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastmask.config import Config
from fastmask.data.digests import digest_photos
from fastmask.data.groups import describe_separated, find_trained_copies, join_identical
from fastmask.data.table import LEFT_OUT, Table
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.text import count
from fastmask.training.decoding import describe_emptied, find_readable
from fastmask.training.effective_config import resolve_folds, split_of_data
from fastmask.training.plan import Plan


def split_plan(plan: Plan) -> Plan:
    """The plan with its folds, without the photos that are to be skipped, and with the digests of the others.

    Persons who share identical photos are in one fold, except in a leaky split; a file of folds that separates them is
    refused. Photos to train on only are left out if they are those of a validated person, or the same.
    """
    # invalid folds are refused before all photos are read
    with warnings.catch_warnings(record=True) as warned:
        config, folds = resolve_folds(plan.table, plan.config)
    table, folds, left = _leave_out(plan.table, folds, config)
    rows, skipped = find_readable(table) if config.on_bad_photo == "skip" else (list(range(len(table))), [])
    digests = _digest_rows(table, rows)
    if config.group == "person":
        copies = find_trained_copies(table, folds, digests)
        left = [*left, *_describe_copies(table, copies)]
        rows = sorted({*rows} - {*copies})
        digests = [None if row in copies else digest for row, digest in enumerate(digests)]
        joined = _join_persons(table, folds, digests, config)
        if joined is not table and not _is_fixed(table, config):
            # with the warnings of these folds alone
            warned = []
            config, folds = resolve_folds(joined, config)
        table = joined
    for each in warned:
        warnings.warn(each.message, stacklevel=2)
    emptied = describe_emptied(table, folds, [path for path, _ in skipped])
    if emptied:
        warnings.warn(emptied, FastmaskWarning, stacklevel=2)
    return replace(
        plan,
        config=config,
        table=table.select(rows) if len(rows) < len(table) else table,
        folds=folds[rows],
        digests=[digest for digest in digests if digest is not None],
        skipped=[*table.missing, *left, *skipped],
    )


def _is_fixed(table: Table, config: Config) -> bool:
    """Whether a file, or the data itself, assigns the photos to folds."""
    return bool(config.folds_file) or split_of_data(table, config) is not None


def _join_persons(table: Table, folds: np.ndarray, digests: Sequence[str | None], config: Config) -> Table:
    """The table with persons who share identical photos joined; raises UsageError if fixed folds separate them."""
    separated = describe_separated(table, folds, digests) if _is_fixed(table, config) else ""
    if separated:
        raise UsageError(
            f"{config.folds_file or config.data}: {separated}; give both persons the same fold, or remove one of the "
            "photos."
        )
    return join_identical(table, digests)


def _digest_rows(table: Table, rows: Sequence[int]) -> list[str | None]:
    """The digest of the photo of each row of a table, None for those that are not in `rows`."""
    digests: list[str | None] = [None] * len(table)
    for row, digest in zip(rows, digest_photos([table.photo(row) for row in rows]), strict=True):
        digests[row] = digest
    return digests


def _leave_out(table: Table, folds: np.ndarray, config: Config) -> tuple[Table, np.ndarray, list[tuple[str, str]]]:
    """The table and its (N,) folds without the photos of a test split; also their paths, with the reason."""
    left = table.frame["path"][folds == LEFT_OUT].tolist()
    if not left:
        return table, folds, []
    source = config.folds_file or config.data
    warnings.warn(
        f"{source} leaves out {count(len(left), 'photo')}, such as {left[0]}: neither trained on nor validated.",
        FastmaskWarning,
        stacklevel=2,
    )
    kept = np.flatnonzero(folds != LEFT_OUT)
    return table.select(kept), folds[kept], [(path, f"{source} leaves it out.") for path in left]


def _describe_copies(table: Table, copies: Sequence[int]) -> list[tuple[str, str]]:
    """The paths of the rows of `find_trained_copies`, with the reason to leave them out; warns of them."""
    if not copies:
        return []
    paths, why = table.frame["path"].iloc[copies].tolist(), "identical to a validated photo, or of the same person"
    warnings.warn(
        f"{count(len(paths), 'photo')} to train on will be left out, such as {paths[0]}: {why}.",
        FastmaskWarning,
        stacklevel=3,
    )
    return [(path, f"It is {why}.") for path in paths]
