"""Submission: the contest's CSV of ImageID and ans, read and filled in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.data.paths import locate_photos, match_paths
from fastmask.heads import Heads
from fastmask.inference.sources import Found
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings, write_csv

ID, ANSWER = "ImageID", "ans"


def read_info(file: str | Path) -> pd.DataFrame:
    """Read an info.csv as text; raises DataError for a missing column, a duplicated or an empty ImageID."""
    frame = read_strings(Path(file), (ID, ANSWER))
    check_names(Path(file), frame[ID])
    return frame


def check_names(file: Path, names: pd.Series) -> None:
    """Raise DataError if a CSV names no photos, or if a name is empty or duplicated."""
    if names.empty:
        raise DataError(f"{file} has no rows; expected one per photo.")
    for problem, rows in (("is duplicated", names.duplicated()), ("is empty", names == "")):
        if rows.any():
            line = names.index[rows][0]
            raise DataError(f"{file}, line {line}, column {names.name}: {names[line]!r} {problem}; remove the row.")


def photos_of_info(file: str | Path, images: str | Path) -> Found:
    """The photos of an info.csv in the folder `images`, in its order; one that is not there is its error."""
    folder, frame = Path(images), read_info(file)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected the photos that {file} names.")
    where = locate_photos(list(frame[ID]), folder, f"{file}, column {ID}", option="IMAGES")
    photos = Found([], [])
    for line, name in frame[ID].items():
        found = where[name]
        photos.names.append(found if isinstance(found, str) else name)
        wrong = DataError(f"{file}, line {line}, column {ID}: {found}")
        photos.sources.append(folder / found if isinstance(found, str) else wrong)
    return photos


def check_heads(heads: Heads) -> None:
    """Raise UsageError if the joint classes of `heads` are not the contest's."""
    contest = contest_heads()
    sizes = tuple(heads.sizes[i] for i in heads.joined)
    if (heads.classified, sizes) != (contest.names, contest.sizes):
        raise UsageError(
            f"A submission holds classes of {', '.join(contest.names)}, the run's are of "
            f"{', '.join(heads.classified)}; leave --submission out: the CSV of --out has a column per head."
        )
    if heads.unlearned:
        raise UsageError(
            f"The run has not learned {', '.join(heads.unlearned)} (weight 0), so a submission would be a guess; blend "
            "it with runs that have: fastmask ensemble."
        )


def check_out(info: Path, out: Path) -> None:
    """Raise UsageError if a submission would be written over its info.csv."""
    # realpath, unlike Path.resolve, does not raise for a symlink loop
    if os.path.realpath(out) == os.path.realpath(info):
        raise UsageError(f"--out {out} is the file of --submission itself; name another file.")


def write_submission(classes: Mapping[str, int], info: Path, out: Path) -> Path:
    """Write `info` with `ans` filled in from photo -> joint class.

    A photo is found by its name, or by its file name if that is unique. Raises DataError, and writes nothing, if a
    photo of `info` was not predicted or its file name is ambiguous.
    """
    check_out(info, out)
    frame = read_info(info)
    matches = match_paths(frame[ID], classes, Path())
    by_file: dict[str, list[int]] = {}
    for name, value in classes.items():
        by_file.setdefault(Path(name).name, []).append(value)
    answers = []
    for line, name in frame[ID].items():
        exact = [name] if name in classes else matches[name]
        found = [classes[path] for path in exact] or by_file.get(Path(name).name, [])
        if len(found) != 1:
            what = "was not predicted" if not found else f"is the file name of {len(found)} predicted photos"
            raise DataError(f"{info}, line {line}, column {ID}: {name} {what}.")
        answers.append(found[0])
    write_csv(out, frame.assign(**{ANSWER: answers}))
    return out
