"""Readers: a CSV with a column per head as a Table, or data of any kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmask.data.contest import CONTEST_COLUMNS, is_contest, read_contest, read_header
from fastmask.data.fixes import apply_fixes
from fastmask.data.folders import read_folders
from fastmask.data.formats import SUFFIXES
from fastmask.data.mistaken import check_csv_name, check_kind
from fastmask.data.paths import locate_photos
from fastmask.data.table import NO_PERSONS, OnFault, Table, raise_fault
from fastmask.heads import RESERVED, Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_rows

if TYPE_CHECKING:
    from fastmask.config import Config

# a column with more different values than this is a head only where it is named as one
MOST_CLASSES = 100
# columns; or each column's classes, or the arguments of its Head; or Heads
GivenHeads = Sequence[str | Head] | Mapping[str, Sequence[str] | Mapping[str, Any]] | Heads


def read_csv(
    file: str | Path,
    heads: GivenHeads | None = None,
    images: str | Path | None = None,
    group: str | None = None,
    *,
    image_column: str | None = None,
    on_fault: OnFault = raise_fault,
    option: str = "--images",
    trust_links: str | Path | None = None,
) -> Table:
    """Read a CSV with one row per photo and one column per head; an empty cell is an unknown label.

    Args:
        heads: names of columns, with the sorted values as classes; or {name: classes in order}, or, where classes are
            bands of a number, {name: {"classes": ..., "bounds": ...}}; or `Head`s. None takes every column that repeats
            a few values, and warns of the others.
        images: the folder that the photos' paths are relative to; by default the CSV's.
        group: the column of persons, for folds that keep persons whole; by default `person`. Without one every photo
            counts as a different person, with a warning.
        image_column: by default `path`, or the one column of names that end like photos. A name without a suffix
            matches a file with any.
        on_fault: called with a DataError naming line and column for each invalid row, which is left out.
        option: the command-line option of `images`, for messages.
        trust_links: a folder that photos may be links to; any folder, where `images` is given.
    """
    file = Path(file)
    frame = read_rows(file, [c for c in (image_column, group) if c])
    image_column = image_column or _find_image_column(file, frame)
    group = group or ("person" if "person" in frame.columns else None)
    made = _make_heads(file, frame, heads, {image_column, group})
    folder = Path(images) if images is not None else file.parent
    paths = _find_paths(file, frame[image_column], folder, images is not None, option, trust_links)
    persons = _persons(frame, group)
    rows = pd.DataFrame({"path": paths, "person": paths if persons is None else persons, "source": file.stem})
    for head in made:
        rows[head.name], numbers = _read_cells(frame[head.name], head)
        if head.bounds:
            rows[f"{head.name}_value"] = numbers
    named = [(image_column, paths), *((h.name, rows[h.name]) for h in made), (group, persons)]
    kept = _drop_faults([(name, cells) for name, cells in named if cells is not None], file, on_fault)
    if persons is None:
        hint = "Name the column of persons with --group-column."
        warnings.warn(f"No column of {file} {NO_PERSONS} {hint}", FastmaskWarning, stacklevel=2)
    reading = {
        "data": str(file),
        "heads": {head.name: _head_to_plain(head) for head in made},
        "images": None if images is None else str(images),
        "image_column": image_column,
        "group_column": group,
        "trust_links": None if trust_links is None else str(trust_links),
    }
    return Table(rows[kept].reset_index(drop=True), made, folder, reading)


def read_data(config: Config, on_fault: OnFault = raise_fault, log: Callable[[str], None] = lambda _: None) -> Table:
    """The table of a configuration: a CSV, a contest folder, a folder per class or the sample, with its fixes applied.

    `log` reports where the sample is drawn. Raises UsageError where `data` is none of these, or a setting does not go
    with it.
    """
    table = _read(config, on_fault, log)
    return table if config.fixes is None else apply_fixes(table, config.fixes, on_fault)


def _read(config: Config, on_fault: OnFault, log: Callable[[str], None]) -> Table:
    if not config.data:
        raise UsageError("--data is empty; name a contest folder, a CSV, a folder per class, or sample.")
    if config.trust_links is not None and not Path(config.trust_links).is_dir():
        raise UsageError(f"--trust-links {config.trust_links} is not a folder; expected one that links lead to.")
    if config.data == "sample":
        from fastmask.data.sample import cached_sample

        data = cached_sample(log=log)
    else:
        data = Path(config.data)
        check_kind(config.data)
    if data.suffix.lower() == ".csv" and not _is_contest_csv(data):
        check_csv_name(data)
        _check_unset(config, ("age_bounds", "score_age_bounds"), "the contest's folder, not with a CSV")
        return read_csv(
            data,
            config.to_plain()["heads"],
            config.images,
            config.group_column,
            image_column=config.image_column,
            on_fault=on_fault,
            trust_links=config.trust_links,
        )
    _check_unset(config, ("heads", "images", "image_column", "group_column"), f"a CSV, and --data is {config.data}")
    if data.is_dir() and not is_contest(data):
        table = read_folders(data, on_fault=on_fault, trust_links=config.trust_links)
        _check_unset(config, ("age_bounds", "score_age_bounds"), "the contest's folder, not with a folder per class")
        return table
    return read_contest(data, config.age_bounds, config.score_age_bounds, on_fault, config.trust_links)


def _check_unset(config: Config, settings: Sequence[str], why: str) -> None:
    given = [s for s in settings if s in config.model_fields_set and config.is_set(s)]
    if given:
        # the setting of a recipe cannot be left out, only reset
        back = " ".join(f"{bound:g}" for bound in config.default(given[0]) or ())
        raise UsageError(f"Setting {given[0]} goes with {why}; leave it out{f', or set it to {back}' if back else ''}.")


def _is_contest_csv(file: Path) -> bool:
    return file.name == "train.csv" and file.is_file() and set(CONTEST_COLUMNS) <= set(read_header(file))


def _find_image_column(file: Path, frame: pd.DataFrame) -> str:
    if "path" in frame.columns:
        return "path"
    found = [c for c in frame.columns if frame[c].str.lower().str.endswith(SUFFIXES).all()]
    if len(found) != 1:
        what = f"several columns of photos ({', '.join(found)})" if found else "no column of photos"
        raise UsageError(
            f"{file} has {what} among {', '.join(frame.columns)}; name the one to use with --image-column."
        )
    return str(found[0])


def _make_heads(file: Path, frame: pd.DataFrame, given: GivenHeads | None, taken: set[str | None]) -> Heads:
    if given is None:
        given = _find_heads(file, frame, taken)
    entries: Any = list(given.items()) if isinstance(given, Mapping) else [(entry, None) for entry in given]
    heads = []
    for entry, classes in entries:
        name = entry.name if isinstance(entry, Head) else entry
        if name not in frame.columns or name in taken:
            others = [c for c in frame.columns if c not in taken]
            raise UsageError(f"{file} has no column {name!r} for a head; expected some of {', '.join(others)}.")
        if not isinstance(entry, Head):
            named = (
                classes if isinstance(classes, Mapping) else {"classes": classes or _unique_values(file, frame[name])}
            )
            entry = Head(name, **{**named, "classes": tuple(named["classes"])})
        heads.append(entry)
    return Heads(heads)


def _find_heads(file: Path, frame: pd.DataFrame, taken: set[str | None]) -> list[str]:
    """The columns that repeat a few values; warns of the others."""
    found: list[str] = []
    left: list[str] = []
    for column in (c for c in frame.columns if c and c not in taken):
        values = frame[column][frame[column] != ""]
        count = values.nunique()
        is_head = 2 <= count <= min(MOST_CLASSES, (len(values) + 1) // 2) and column not in RESERVED
        why = "a reserved name" if column in RESERVED else f"{count} different values"
        (found if is_head else left).append(column if is_head else f"{column} ({why})")
    if not found:
        others = f" (found {', '.join(left)})" if left else ""
        raise UsageError(f"{file} has no column that repeats a few values, as a head does{others}; see --heads.")
    if left:
        warnings.warn(
            f"Of {file} these columns are not taken as heads: {', '.join(left)}; --heads names those to take.",
            FastmaskWarning,
            stacklevel=4,
        )
    return found


def _unique_values(file: Path, cells: pd.Series) -> tuple[str, ...]:
    """The different values of a column, sorted, numbers by their size."""
    values = sorted({c for c in cells if c != ""})
    if len(values) < 2:
        raise DataError(
            f"{file}, column {cells.name}: found {len(values)} class ({', '.join(values) or 'all cells are empty'}), "
            "expected two or more; leave the column out of --heads."
        )
    numbers = pd.to_numeric(pd.Series(values), errors="coerce")
    order = np.argsort(numbers.to_numpy(), kind="stable") if numbers.notna().all() else range(len(values))
    return tuple(values[i] for i in order)


def _find_paths(
    file: Path, cells: pd.Series, folder: Path, linked: bool, option: str, trust_links: str | Path | None
) -> pd.Series:
    """The photos' paths relative to `folder`; a DataError in the cells without a photo.

    `linked` allows links out of the folder, for one that was named explicitly; `trust_links` those into another one.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected the one that the paths in {file} start from ({option}).")
    where = f"{file}, column {cells.name}"
    paths = cells.map(locate_photos(list(cells.unique()), folder, where, linked, option, trust_links))
    again = paths.duplicated() & paths.map(lambda p: isinstance(p, str))
    return paths.where(~again, cells.map(lambda cell: DataError(f"found {cell!r} a second time; remove one row.")))


def _read_cells(cells: pd.Series, head: Head) -> tuple[pd.Series, pd.Series]:
    """The class names of a column, a DataError in the invalid cells, and the numbers of its bands."""

    def read(cell: str) -> tuple[str | DataError, float]:
        try:
            return head.read(cell)
        except DataError as fault:
            return fault, float("nan")

    values = {cell: read(cell) for cell in cells.unique()}
    return cells.map(lambda cell: values[cell][0]), cells.map(lambda cell: values[cell][1])


def _head_to_plain(head: Head) -> list[str] | dict[str, Any]:
    """A head as `Config.heads` has it."""
    if head.bounds is None:
        return list(head.classes)
    train_bounds = None if head.train_bounds is None else list(head.train_bounds)
    return {"classes": list(head.classes), "bounds": list(head.bounds), "train_bounds": train_bounds}


def _persons(frame: pd.DataFrame, group: str | None) -> pd.Series | None:
    if group is None:
        return None
    return frame[group].where(frame[group] != "", DataError("found an empty cell, expected the person of the photo."))


def _drop_faults(columns: Sequence[tuple[str | None, pd.Series]], file: Path, on_fault: OnFault) -> pd.Series:
    """Which rows have no DataError in any column; each one is reported, with its line and column."""
    faults = [(name, cells, cells.map(lambda cell: isinstance(cell, DataError))) for name, cells in columns]
    broken = pd.concat([found for *_, found in faults], axis=1).any(axis=1)
    for line in broken.index[broken]:
        for name, cells, found in faults:
            if found[line]:
                on_fault(type(cells[line])(f"{file}, line {line}, column {name}: {cells[line]}"))
    return ~broken
