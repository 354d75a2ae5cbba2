"""Other versions: what is wrong with the folders of other versions of the photos of a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastmask.config import Config
from fastmask.data.photo import map_in_threads, read_photo
from fastmask.data.table import Table
from fastmask.data.versions import check_different, cut_extra, read_versions
from fastmask.system.errors import DataError, UnreadableError, UsageError


class Fault(NamedTuple):
    """A sentence on a photo, or on a folder, and whether training would fail."""

    detail: str
    photo: str = ""
    is_error: bool = True


def find_version_faults(table: Table, config: Config) -> Iterator[Fault]:
    """Everything that is wrong with the versions that a configuration, with its fit, names; decodes each once."""
    folders = config.images_also or []
    try:
        check_different(folders)
    except UsageError as error:
        yield Fault(str(error))
    for folder in folders:
        try:
            ((found, extra),) = read_versions(table, config.model_copy(update={"images_also": [folder]}))
            cut_extra(extra, table, config)
        except (UsageError, DataError) as error:
            yield Fault(str(error))
            continue
        if found.lacking or found.stray:
            yield Fault(f"{found}.", is_error=False)
        photos = [extra.table.photo(row) for row in range(len(extra))]
        for photo, fault in zip(photos, map_in_threads(_read, photos), strict=True):
            if fault is not None:
                yield Fault(str(fault), str(photo))


def _read(photo: Path) -> UnreadableError | None:
    try:
        read_photo(photo)
    except UnreadableError as error:
        return error
    return None
