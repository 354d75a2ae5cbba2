"""The contest's folder: train.csv with a row per person, and seven photos of each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fastmask.config import CONTEST
from fastmask.data.formats import SUFFIXES, describe_left_out, is_hidden, is_photo
from fastmask.data.links import leads_outside, link_fault
from fastmask.data.paths import name_paths
from fastmask.data.photo import warn_of_others
from fastmask.data.table import OnFault, Table, raise_fault
from fastmask.heads import Head, Heads
from fastmask.system import limits
from fastmask.system.errors import DataError, MissingPhotoError, UsageError
from fastmask.system.files import read_rows

OFFICIAL_AGE_BOUNDS = (30.0, 60.0)
AGES = (0.0, 150.0)
CONTEST_COLUMNS = ("id", "gender", "race", "age", "path")
# the name of a person's folder, such as 000001_female_Asian_45: id, gender, race, age
PERSON_FOLDER = re.compile(r"([^_]+)_(male|female)_[^_]+_(\d+)")
# a train.csv with fewer of the contest's columns is another one
_LEAST_COLUMNS = 3
MASK_OF_STEM = {**{f"mask{i}": "wear" for i in range(1, 6)}, "incorrect_mask": "incorrect", "normal": "none"}


def contest_heads(
    age_bounds: Sequence[float] = OFFICIAL_AGE_BOUNDS, score_age_bounds: Sequence[float] = OFFICIAL_AGE_BOUNDS
) -> Heads:
    """The contest's three heads; `age_bounds` are trained on, `score_age_bounds` name and score the classes.

    >>> heads = fm.contest_heads()
    >>> heads.names, heads.n_joint
    (('mask', 'gender', 'age'), 18)
    >>> heads["age"].classes
    ('<30', '30-59', '60+')
    """
    if len(age_bounds) != 2 or len(score_age_bounds) != 2:
        raise UsageError(
            f"Age bounds are two numbers, such as 30 60; found {tuple(age_bounds)}, {tuple(score_age_bounds)}."
        )
    low, high = score_age_bounds
    return Heads(
        [
            Head("mask", ("wear", "incorrect", "none")),
            Head("gender", ("male", "female")),
            Head(
                "age",
                (f"<{low:g}", f"{low:g}-{high - 1:g}", f"{high:g}+"),
                bounds=tuple(score_age_bounds),
                train_bounds=tuple(age_bounds),
                limits=AGES,
            ),
        ]
    )


def contest_folder(data: str | Path) -> Path:
    """The folder that holds train.csv: `data` itself or its `train`; raises UsageError if there is neither."""
    folder = Path(data)
    if folder.is_file() and folder.name == "train.csv":
        return folder.parent
    for candidate in (folder, folder / "train"):
        if (candidate / "train.csv").is_file():
            return candidate
    found = "an empty or other folder" if folder.is_dir() else "no such folder"
    raise UsageError(
        f"{folder} is not a contest folder ({found}): expected {folder / 'train.csv'} or "
        f"{folder / 'train' / 'train.csv'}. Name one with --data, or a CSV, a folder per class, or sample."
    )


def is_contest(data: Path) -> bool:
    """Whether there is a contest folder at `data`, with a train.csv that does not have other columns."""
    try:
        columns = read_header(contest_folder(data) / "train.csv")
    except UsageError:
        return False
    # one that is empty or not text is invalid, and not another
    is_text = "".join(columns).isprintable() and any(columns)
    return not is_text or len(set(CONTEST_COLUMNS) & set(columns)) >= _LEAST_COLUMNS


def read_header(file: Path) -> list[str]:
    """The cells of the first line of a CSV, with any separator."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as opened:
        cells = re.split("[,;\t|]", opened.readline(limits.LINE))
    return [cell.strip().strip('"') for cell in cells]


def read_contest(
    data: str | Path,
    age_bounds: Sequence[float] = OFFICIAL_AGE_BOUNDS,
    score_age_bounds: Sequence[float] = OFFICIAL_AGE_BOUNDS,
    on_fault: OnFault = raise_fault,
    trust_links: str | Path | None = None,
) -> Table:
    """Read the contest's train.csv and the seven photos of each of its persons.

    The person is the column `path`, not `id`, which repeats. `on_fault` is called with a DataError naming file, row and
    column for each fault, and what it is about is then left out. Photos are found by their stem, with any extension,
    but not opened (`check_photos` does). Links out of the folder `images` may lead into `trust_links`.

    >>> table = fm.read_contest("data")
    >>> len(table), len(set(table.persons)), table.heads.names
    (84, 12, ('mask', 'gender', 'age'))
    """
    folder = contest_folder(data)
    heads = contest_heads(age_bounds, score_age_bounds)
    persons = _read_persons(folder / "train.csv", heads, on_fault)
    rows = []
    others: list[Path] = []
    places = name_paths(persons["path"], _folders_in(folder / "images"), folder / "images")
    for person in persons.itertuples(index=False):
        place = places[person.path]
        photos = _photos_of(folder / "images" / place, folder / "train.csv", on_fault, others, trust_links)
        for stem in [s for s in MASK_OF_STEM if s in photos]:
            path, mask = f"{place}/{photos[stem]}", MASK_OF_STEM[stem]
            rows.append((path, person.path, mask, person.gender, person.age_band, person.age, "contest"))
    warn_of_others(others)
    columns = ["path", "person", "mask", "gender", "age", "age_value", "source"]
    reading = {
        "data": str(data),
        "age_bounds": tuple(age_bounds),
        "score_age_bounds": tuple(score_age_bounds),
        "trust_links": trust_links and str(trust_links),
    }
    return Table(pd.DataFrame(rows, columns=columns), heads, folder / "images", reading=reading, fit=CONTEST)


def _read_persons(file: Path, heads: Heads, on_fault: OnFault) -> pd.DataFrame:
    frame = read_rows(file, CONTEST_COLUMNS, "person")
    faults = [_fault_of(row, heads) for row in frame.itertuples()]
    for i in frame["path"].duplicated().to_numpy().nonzero()[0]:
        faults[i] = faults[i] or f"column path: {frame['path'].iloc[i]!r} is duplicated; remove one row."
    for line, fault in zip(frame.index, faults, strict=True):
        if fault:
            on_fault(DataError(f"{file}, line {line}, {fault}"))
    frame = frame[[not fault for fault in faults]].copy()
    frame["age"] = frame["age"].astype(float)
    frame["age_band"] = heads["age"].decode_all(heads["age"].band(frame["age"].to_numpy()))
    return frame


def _fault_of(row: Any, heads: Heads) -> str:
    """What is wrong with a row of train.csv; "" if nothing is."""
    if row.gender not in heads["gender"].classes:
        return f"column gender: found {row.gender!r}, expected male or female."
    if not row.age:
        return "column age: found '', expected a number of years."
    try:
        heads["age"].read(row.age)
    except DataError as fault:
        return f"column age: {fault}"
    if not row.path or Path(row.path).name != row.path or row.path in (".", "..") or "\0" in row.path:
        return f"column path: found {row.path!r}, expected the name of a folder in images."
    return ""


def _folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if os.path.isdir(entry.path)] if folder.is_dir() else []


def _photos_of(
    folder: Path, csv: Path, on_fault: OnFault, others: list[Path], trust_links: str | Path | None
) -> dict[str, str]:
    """stem -> file name of the photos in a person's folder; seven without faults. Other files are added to `others`."""
    try:
        names = sorted(e.name for e in os.scandir(folder) if not is_hidden(e.name) and not os.path.isdir(e.path))
    except OSError as error:
        message = f"{folder} cannot be read ({error.strerror}), but is in {csv}; add it or remove the row."
        is_missing = isinstance(error, FileNotFoundError)
        on_fault(MissingPhotoError(message, folder.name) if is_missing else DataError(message))
        return {}
    linked = next((name for name in names if leads_outside(folder / name, folder.parent, trust_links)), None)
    if linked is not None:
        on_fault(link_fault(folder / linked, folder.parent, trust_links))
        return {}
    photos: dict[str, str] = {}
    left_out = [folder / name for name in names if not is_photo(name)]
    others += left_out
    for name in filter(is_photo, names):
        stem, _ = os.path.splitext(name.lower())
        if stem not in MASK_OF_STEM:
            expected = ", ".join(MASK_OF_STEM)
            on_fault(DataError(f"{folder / name} is not one of the seven photos {expected}; remove or rename it."))
        elif stem in photos:
            on_fault(DataError(f"{folder} has both {photos[stem]} and {name}; expected one photo called {stem}."))
        else:
            photos[stem] = name
    hint = f" {describe_left_out(left_out)}" if left_out else ""
    for stem in (s for s in MASK_OF_STEM if s not in photos):
        message = f"{folder} has no photo called {stem} (such as {stem}{SUFFIXES[0]}); expected seven photos.{hint}"
        on_fault(MissingPhotoError(message, f"{folder.name}/{stem}"))
    return photos
