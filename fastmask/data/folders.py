"""Folders: a folder per class, as a Table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fastmask.data.photo import SUFFIXES, links_outside, list_photos
from fastmask.data.table import NO_PERSONS, OnFault, Table, raise_fault
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

# names of folders that are splits, or hold photos, and are not classes
_NO_CLASSES = {"train", "val", "valid", "validation", "test", "eval", "images"}


def read_folders(folder: str | Path, head: str = "class", on_fault: OnFault = raise_fault) -> Table:
    """Read a folder per class: FOLDER/CLASS/…/photo; the one head is called `head`.

    Every photo counts as a different person. Hidden files and folders are left out; a folder without photos is a fault.
    """
    folder = Path(folder)
    names = _check_classes(folder)
    loose = sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(SUFFIXES) and e.name[0] != ".")
    if loose:
        on_fault(DataError(f"{folder / loose[0]} is not in the folder of a class; move it into one, or away."))
    rows = []
    for name in names:
        photos = list_photos(folder / name)
        if not photos:
            endings = ", ".join(SUFFIXES)
            on_fault(DataError(f"{folder / name} holds no photos (any of {endings}); add some or remove it."))
        linked = next((p for p in photos if links_outside(p, folder)), None)
        if linked is not None:
            on_fault(DataError(f"{linked} is a link out of {folder}; copy the photo there."))
        rows += [(p.relative_to(folder).as_posix(), name) for p in photos]
    _warn_of_others(folder, names)
    frame = pd.DataFrame(rows, columns=["path", head])
    frame = frame.assign(person=frame["path"], source=folder.name)
    hint = "Use a CSV with the columns path, person and a head instead."
    warnings.warn(f"Nothing in {folder} {NO_PERSONS} {hint}", FastmaskWarning, stacklevel=2)
    return Table(frame, Heads([Head(head, tuple(names))]), folder, {"data": str(folder)})


def _check_classes(folder: Path) -> list[str]:
    """The folders inside `folder`; raises UsageError where they cannot be the classes."""
    names = class_folders(folder)
    parts = sorted(_NO_CLASSES & set(names))
    if parts:
        raise UsageError(
            f"{folder} holds {', '.join(parts)}, which are not classes; expected a folder per class, such as those in "
            f"{folder / parts[-1]}, a contest folder with train.csv, or a CSV."
        )
    if len(names) < 2:
        raise UsageError(
            f"{folder} holds {len(names)} folders; expected two or more, one per class, with photos inside."
        )
    return names


def _warn_of_others(folder: Path, names: Sequence[str]) -> None:
    files = (p for name in names for p in (folder / name).rglob("*") if p.is_file() and not p.name.startswith("."))
    others = sorted(str(p) for p in files if p.suffix.lower() not in SUFFIXES)
    if others:
        warnings.warn(
            f"{len(others)} files, such as {others[0]}, are left out: a photo ends in {', '.join(SUFFIXES)}.",
            FastmaskWarning,
            stacklevel=3,
        )


def class_folders(folder: Path) -> list[str]:
    """The folders inside `folder`, sorted, without hidden ones; none where it is not a folder."""
    if not folder.is_dir():
        return []
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith((".", "__")))
