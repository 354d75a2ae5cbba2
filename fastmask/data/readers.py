"""Readers: a CSV with a column per head as a Table, or data of any kind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fastmask.config import MOST_WEIGHT, Config, make_config, recipe_of
from fastmask.data.columns import find_image_column, find_person_column, suggest_person_column
from fastmask.data.contest import CONTEST_COLUMNS, is_contest, read_contest, read_header
from fastmask.data.fixes import apply_fixes
from fastmask.data.folders import read_folders
from fastmask.data.frames import check_frame, common_folder, frame_to_text, ordered_classes
from fastmask.data.head_classes import GivenHeads, are_chosen, head_to_plain, make_heads, read_labels
from fastmask.data.missing import MissingPhotos
from fastmask.data.mistaken import TABLES, check_csv_name, check_kind
from fastmask.data.paths import locate_photos
from fastmask.data.spellings import warn_of_persons, warn_of_spellings
from fastmask.data.table import NO_PERSONS, OnFault, Table, raise_fault
from fastmask.heads import JOINT, RESERVED, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_rows
from fastmask.system.text import join_some, shorten_repr


def read_csv(
    file: str | Path | pd.DataFrame,
    heads: GivenHeads | None = None,
    images: str | Path | None = None,
    group: str | None = None,
    *,
    image_column: str | None = None,
    draw_weights: str | None = None,
    on_fault: OnFault = raise_fault,
    option: str = "--images",
    trust_links: str | Path | None = None,
) -> Table:
    """Read a CSV, or a pandas DataFrame, with a row per photo and a column per head; an empty cell is an unknown label.

    In a DataFrame missing values are unknown labels, the categories of a categorical column are its classes in their
    order, and the paths start from the working directory, or are absolute.

    Args:
        heads: the name of a column, or names, with the sorted values as classes; or {name: classes in order}, where the
            classes may be one-hot columns; or, for bands of a number, {name: {"classes": ..., "bounds": ...}}; or
            `Head`s. None takes every column that repeats a few values, and warns of the others.
        images: the folder that the photos' paths are relative to; by default the CSV's.
        group: the column of persons, for folds that keep persons whole; by default `person`. Without one every photo
            counts as a different person, with a warning.
        image_column: by default `path`, or the one column of names that end like photos, or that is called image,
            filename, image_id … Photos are found as `locate_photos` does.
        draw_weights: a column of numbers above 0 that the table keeps, to draw photos by.
        on_fault: called with a DataError naming line and column for each invalid row, which is left out.
        option: the command-line option of `images`, for messages.
        trust_links: a folder that photos may be links to; any folder, where `images` is given.

    Example:
        >>> frame = pd.DataFrame({"path": table.frame["path"][:3], "person": "a", "mask": ["worn", "none", ""]})
        >>> frame.to_csv("photos.csv", index=False)
        >>> table = fm.read_csv("photos.csv", heads="mask", images=table.root)
        >>> table.heads["mask"].classes, table.y.tolist()
        (('none', 'worn'), [[1], [0], [-1]])
    """
    if not isinstance(file, str | os.PathLike):
        named = {"image_column": image_column, "draw_weights": draw_weights}
        return read_frame(file, heads, images, group, on_fault=on_fault, **named)
    _check_images(images)
    file = Path(os.path.expanduser(file))
    cells = read_rows(file, [c for c in (image_column, group, draw_weights) if c], strip=False)
    columns = _Columns(str(file), "line", cells, image_column, group, draw_weights)
    folder = Path(images) if images is not None else file.parent
    place = _Place(folder, images is not None, option, trust_links)
    table = columns.read(heads, place, file.stem, on_fault)
    places = {"data": str(file), "images": images and str(images), "trust_links": trust_links and str(trust_links)}
    return replace(table, reading={**table.reading, **places})


def read_frame(
    frame: pd.DataFrame,
    heads: GivenHeads | None = None,
    images: str | Path | None = None,
    group: str | None = None,
    *,
    image_column: str | None = None,
    draw_weights: str | None = None,
    on_fault: OnFault = raise_fault,
) -> Table:
    """Read a pandas DataFrame as `read_csv` reads a CSV.

    >>> frame = pd.DataFrame({"path": photos, "person": ["a", "b", "c"], "age": [18, 44, 71]})
    >>> bands = {"classes": ["young", "middle", "old"], "bounds": [30, 60]}
    >>> fm.read_frame(frame, heads={"age": bands}).y.tolist()
    [[0], [1], [2]]
    """
    check_frame(frame)
    _check_images(images)
    cells = frame_to_text(frame).reset_index(drop=True)
    for name in (image_column, group, draw_weights):
        if name and name not in cells.columns:
            raise UsageError(f"The DataFrame has no column {name!r}; found {join_some(list(cells.columns), 30)}.")
    named = image_column, group, draw_weights
    columns = _Columns("the DataFrame", "row", cells, *named, ordered_classes(frame))
    folder = Path(images) if images is not None else common_folder(columns.cells[columns.photos])
    table = columns.read(heads, _Place(folder, True, "images"), "frame", on_fault)
    return replace(table, reading={**table.reading, "images": images and str(images)})


def _check_images(images: Any) -> None:
    if images is not None and not isinstance(images, str | os.PathLike):
        raise UsageError(f"images is {shorten_repr(images)}; expected the path of a folder.")


@dataclass(frozen=True)
class _Place:
    """The folder of the photos, named by `option`, and whether these may be links: to anywhere, or to a folder."""

    folder: Path
    linked: bool
    option: str
    trust_links: str | Path | None = None


class _Columns:
    """The cells of a table as text, with the columns of photos, of persons and of weights."""

    def __init__(
        self,
        name: str,
        unit: str,
        raw: pd.DataFrame,
        photos: str | None,
        persons: str | None,
        weights: str | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.name, self.unit, self.raw, self.classes = name, unit, raw, classes or {}
        self.cells = raw.apply(lambda column: column.str.strip())
        self.photos = photos or find_image_column(name, self.cells)
        self.persons = persons or find_person_column(self.cells)
        self.weights = weights

    def read(self, heads: GivenHeads | None, place: _Place, source: str, on_fault: OnFault) -> Table:
        """The table of the rows without faults."""
        taken = {self.photos, self.persons, self.weights}
        made, labels = make_heads(self.name, self.cells, heads, taken, self.classes)
        self._warn(made, heads)
        paths = self._find_paths(place)
        persons = self._find_persons()
        rows = pd.DataFrame({"path": paths, "person": paths if persons is None else persons, "source": source})
        for head in made:
            rows[head.name], numbers = read_labels(labels[head.name], head)
            if head.bounds:
                rows[f"{head.name}_value"] = numbers
        if self.weights is not None:
            rows[self._check_weights(made, rows)] = self.cells[self.weights].map(_read_weight)
        rows["path"] = self._mark_repeated(rows, made)
        weights = None if self.weights is None else rows[self.weights]
        columns = [(self.photos, rows["path"]), *((h.name, rows[h.name]) for h in made)]
        named = [*columns, (self.persons, persons), (self.weights, weights)]
        kept = self._drop_faults([(name, cells) for name, cells in named if cells is not None], on_fault)
        reading = {
            "heads": {head.name: head_to_plain(head) for head in made},
            "image_column": self.photos,
            "group_column": self.persons,
        }
        return Table(rows[kept].reset_index(drop=True), made, place.folder, reading)

    def _check_weights(self, heads: Heads, rows: pd.DataFrame) -> str:
        """The column of weights; raises UsageError where tables have another meaning for it."""
        if self.weights in {self.photos, self.persons, *RESERVED, *heads.columns, *rows.columns}:
            raise UsageError(f"{self.name}: column {self.weights!r} cannot hold draw weights, it has another meaning.")
        return str(self.weights)

    def _warn(self, heads: Heads, given: GivenHeads | None) -> None:
        if self.persons is None:
            column = suggest_person_column(self.cells, {self.photos, *heads.names})
            hint = f"Is it {column}? " if column else ""
            warnings.warn(
                f"No column of {self.name} {NO_PERSONS} {hint}Name the column of persons with --group-column.",
                FastmaskWarning,
                stacklevel=4,
            )
        else:
            warn_of_persons(self.name, self.persons, self.cells[self.persons])
        for head in (head for head in heads if head.bounds is None and head.name in self.raw):
            warn_of_spellings(self.name, head, self.raw[head.name], are_chosen(given, head.name))

    def _find_paths(self, place: _Place) -> pd.Series:
        """The photos' paths relative to their folder; a DataError in the cells without a photo."""
        if not place.folder.is_dir():
            expected = f"the one that the paths in {self.name} start from ({place.option})"
            raise UsageError(f"{place.folder} is not a folder; expected {expected}.")
        cells, where = self.cells[self.photos], f"{self.name}, column {self.photos}"
        options = place.linked, place.option, place.trust_links
        return cells.map(locate_photos(list(cells.unique()), place.folder, where, *options))

    def _find_persons(self) -> pd.Series | None:
        if self.persons is None:
            return None
        cells = self.cells[self.persons]
        return cells.where(cells != "", DataError("found an empty cell, expected the person of the photo."))

    def _mark_repeated(self, rows: pd.DataFrame, heads: Heads) -> pd.Series:
        """The paths, with a DataError where another row has the same one."""
        paths = dict(rows["path"].items())
        first: dict[str, Hashable] = {}
        for line, path in rows["path"].items():
            if isinstance(path, DataError) or first.setdefault(path, line) == line:
                continue
            pairs = [(head.name, *rows[head.name][[first[path], line]]) for head in heads]
            other = ", ".join(f"{name} {one!s} there and {two!s} here" for name, one, two in pairs if one != two)
            paths[line] = DataError(
                f"found {self.cells[self.photos][line]!r} a second time, after {self.unit} {first[path]}"
                f"{f' ({other})' if other else ''}; keep one row per photo."
            )
        return pd.Series(paths, dtype=object)

    def _drop_faults(self, columns: Sequence[tuple[str | None, pd.Series]], on_fault: OnFault) -> pd.Series:
        """Which rows have no DataError in any column; each one is reported, with its line and column."""
        faults = [(name, cells, cells.map(lambda cell: isinstance(cell, DataError))) for name, cells in columns]
        broken = pd.concat([found for *_, found in faults], axis=1).any(axis=1)
        for line in broken.index[broken]:
            for name, cells, found in faults:
                if found[line]:
                    on_fault(_at(cells[line], f"{self.name}, {self.unit} {line}, column {name}", line))
        return ~broken


def _read_weight(cell: str) -> float | DataError:
    """A cell of the column of draw weights, or what is wrong with it."""
    try:
        weight = float(cell)
    except ValueError:
        weight = 0.0
    if 0 < weight <= MOST_WEIGHT:
        return weight
    return DataError(f"found {cell!r}, expected a number above 0, up to {MOST_WEIGHT:.0f}.")


def _at(fault: DataError, place: str, line: int) -> DataError:
    """A fault of a cell with its place; the rows with the same cell share the fault."""
    placed = copy(fault)
    placed.message, placed.line = f"{place}: {fault}", line
    return placed


def read_table(data: Table | pd.DataFrame | str | Path, config: Config) -> Table:
    """A table as it is; a DataFrame as `read_frame` reads it, or anything else as `read_data`, by a configuration."""
    if isinstance(data, Table):
        return data
    if isinstance(data, str | os.PathLike):
        return read_data(make_config(config.model_dump(exclude_unset=True), {"data": os.fspath(data)}))
    if not isinstance(data, pd.DataFrame):
        raise UsageError(f"The data is {shorten_repr(data)}; expected a Table, a DataFrame, or the path of the data.")
    heads, columns = config.to_plain()["heads"], {"group": config.group_column, "image_column": config.image_column}
    columns["draw_weights"] = column_of_weights(config)
    return _correct(config, None, lambda on_fault: read_frame(data, heads, config.images, on_fault=on_fault, **columns))


def column_of_weights(config: Config) -> str | None:
    """The column that the setting draw_weights names; None without one."""
    return config.draw_weights if isinstance(config.draw_weights, str) else None


def _correct(config: Config, on_fault: OnFault | None, read: Callable[[OnFault], Table]) -> Table:
    """A table without its missing photos, see `read_data`, with its fixes applied."""
    missing = MissingPhotos()
    table = read(on_fault or missing.note)
    table = replace(table, missing=missing.left_out(config.on_bad_photo == "skip", len(table)))
    return table if config.fixes is None else apply_fixes(table, config.fixes, on_fault or raise_fault)


def read_data(config: Config, on_fault: OnFault | None = None, log: Callable[[str], None] = lambda _: None) -> Table:
    """The table of a configuration: a CSV, a contest folder, a folder per class or the sample, with its fixes applied.

    `on_fault` is called with each fault; by default they are raised, but missing photos are left out and listed in the
    table where the setting on_bad_photo is skip. `log` reports where the sample is drawn. Raises UsageError where
    `data` is none of these, or a setting does not go with it.

    >>> table = fm.read_data(fm.Config(data="data", age_bounds=(30, 58)))
    >>> len(table), table.heads["age"].train_bounds
    (84, (30.0, 58.0))
    """
    if not isinstance(config, Config):
        raise UsageError(f"read_data takes a Config, found {shorten_repr(config)}; read_csv takes a path.")
    return _correct(config, on_fault, lambda collect: _read(config, collect, log))


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
    if data.suffix.lower() in TABLES and not _is_contest_csv(data):
        check_csv_name(data)
        _check_unset(config, ("age_bounds", "score_age_bounds"), "the contest's folder, not with a CSV")
        return read_csv(
            data,
            config.to_plain()["heads"],
            config.images,
            config.group_column,
            image_column=config.image_column,
            draw_weights=column_of_weights(config),
            on_fault=on_fault,
            trust_links=config.trust_links,
        )
    why = f"a CSV, and --data is {config.data}"
    if config.heads == [JOINT]:
        raise UsageError(
            f"Setting heads goes with {why}; to learn the joint class as one head, set one_head (--one-head)."
        )
    _check_unset(config, ("heads", "images", "image_column", "group_column"), why)
    if column_of_weights(config):
        _check_unset(config, ("draw_weights",), why)
    if data.is_dir() and not is_contest(data):
        table = read_folders(data, on_fault=on_fault, trust_links=config.trust_links)
        _check_unset(config, ("age_bounds", "score_age_bounds"), "the contest's folder, not with a folder per class")
        return table
    return read_contest(data, config.age_bounds, config.score_age_bounds, on_fault, config.trust_links)


def _check_unset(config: Config, settings: Sequence[str], why: str) -> None:
    given = [s for s in settings if s in config.model_fields_set and config.is_set(s)]
    if given:
        # the setting of a recipe cannot be left out, only reset
        recipe = recipe_of(config, given[0])
        back = " ".join(f"{bound:g}" for bound in config.default(given[0]) or ())
        mend = f"leave {'the recipe' if recipe else 'it'} out{f', or set it to {back}' if back else ''}"
        raise UsageError(f"Setting {given[0]}{recipe} goes with {why}; {mend}.")


def _is_contest_csv(file: Path) -> bool:
    return file.name == "train.csv" and file.is_file() and set(CONTEST_COLUMNS) <= set(read_header(file))
