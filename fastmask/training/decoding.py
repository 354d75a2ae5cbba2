"""Decoding: the photos of a plan that can be read, decoded once into a cache, and their size after augmentation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.config import Config
from fastmask.data.augment import Augment, build_augmentations, check_fit
from fastmask.data.cache import PhotoMap
from fastmask.data.extra import Extra
from fastmask.data.loaders import photo_maps
from fastmask.data.photo import check_photos, map_in_threads, read_photo
from fastmask.data.table import Table
from fastmask.system.errors import DataError, UnreadableError
from fastmask.system.text import join_some


def find_readable(table: Table) -> tuple[list[int], list[tuple[str, str]]]:
    """The rows of the photos that can be read, and the paths of the others with what is wrong with them."""
    faults = list(map_in_threads(_find_fault, [table.photo(row) for row in range(len(table))]))
    rows = [row for row, fault in enumerate(faults) if fault is None]
    if not rows:
        raise DataError(f"No photo can be read; the first: {faults[0]}")
    skipped = [(path, fault) for path, fault in zip(table.frame["path"], faults, strict=True) if fault is not None]
    return rows, skipped


def describe_emptied(table: Table, folds: np.ndarray, unreadable: Collection[str]) -> str:
    """The classes, or those of a fold, of which all photos are missing or unreadable, as a sentence, or "".

    `folds` (N,) are those of the whole table, `unreadable` are paths in it.
    """
    kept = ~table.frame["path"].isin(unreadable).to_numpy()
    if kept.all() and not table.missing:
        return ""
    emptied = []
    for column in table.heads.joined:
        for code, name in enumerate(table.heads[column].classes):
            own, named = table.train_y[:, column] == code, f"{table.heads[column].name} {name}"
            lost = np.setdiff1d(folds[own], folds[own & kept])
            emptied += [f"{named} in fold {fold}" for fold in lost] if (own & kept).any() else [named]
    if not emptied:
        return ""
    skipped = len(unreadable) + len(table.missing)
    return (
        f"{skipped:,} of {len(table) + len(table.missing):,} photos cannot be read and are left out, among them all of "
        f"{join_some(emptied)}: restore some, or that is neither learnt nor validated."
    )


def _find_fault(photo: Path) -> str | None:
    try:
        read_photo(photo)
    except UnreadableError as error:
        return str(error)
    return None


def decode_tables(
    table: Table,
    extras: Sequence[Extra],
    pipelines: Mapping[str, Any],
    config: Config,
    digests: Sequence[Sequence[str]],
    say: Callable[[str], None],
) -> tuple[list[PhotoMap], tuple[int, int]]:
    """As `decode`, for the photos of a table and of other sources; raises DataError if their sizes differ.

    `digests` has those of the table's photos, then those of each source.
    """
    maps, size = decode_table(table, pipelines, config, digests[0], say)
    for extra, each in zip(extras, digests[1:], strict=True):
        more, other = decode_table(extra.table, pipelines, config, each, say)
        if other != size:
            raise DataError(
                f"The photos below {extra.table.root} are {other[0]} high and {other[1]} wide after augmentation, the "
                f"others {size[0]} and {size[1]}: both pipelines must end in one size, so add a crop or a resize."
            )
        maps = [*maps, *more]
    return maps, size


def decode_table(
    table: Table, pipelines: Mapping[str, Any], config: Config, digests: Sequence[str], say: Callable[[str], None]
) -> tuple[list[PhotoMap], tuple[int, int]]:
    """Decode each photo once, into a cache if there is one; also returns the (height, width) after augmentation.

    Raises DataError naming a photo that cannot be read or that a pipeline does not fit.
    """
    named = dict(zip(("the training pipeline", "the validation pipeline"), build_augmentations(pipelines), strict=True))
    maps = photo_maps(table, list(named.values()), config.cache, config.cache_dir, digests, say)
    photos = [table.photo(row) for row in range(len(table))]
    whole = None
    fits: dict[str, tuple[Augment, Sequence[tuple[int, int]]]] = {}
    for what, augment in named.items():
        kept = next((m for m in maps if len(m) and m.prefix == augment.prefix.plain), None)
        if kept is None:
            whole = whole or check_photos(photos, table.faces)
        fits[what] = (augment, whole or ()) if kept is None else (augment.vary, kept.sizes(map(str, photos)))
    return maps, check_fit(fits, photos)
