"""Submissions: the contest's ImageID,ans files, written and scored."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.heads import Heads
from fastmask.scoring import Scores, score_heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings, require_columns, stays_below, write_csv

ID, ANSWER = "ImageID", "ans"
# photos of one folder are one person's
FOLDER = "folder"


def read_info(file: str | Path) -> pd.DataFrame:
    """Read an info.csv as text; raises DataError for a missing column, a repeated or an empty ImageID."""
    path = Path(file)
    frame = read_strings(path, (ID, ANSWER))
    for problem, rows in (("stands twice", frame[ID].duplicated()), ("is empty", frame[ID] == "")):
        if rows.any():
            first = frame[ID][rows]
            raise DataError(f"{path}, line {first.index[0]}, column {ID}: {first.iloc[0]!r} {problem}; remove the row.")
    if frame.empty:
        raise DataError(f"{path} has no rows; expected one a photo.")
    return frame


def photos_of_info(file: str | Path, images: str | Path) -> list[Path]:
    """Where the photos of an info.csv lie in the folder `images`, in its order; raises DataError for a missing one."""
    folder, frame = Path(images), read_info(file)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected the photos that {file} names.")
    paths = []
    for line, name in frame[ID].items():
        path = folder / name
        if not stays_below(Path(name)):
            raise DataError(
                f"{file}, line {line}, column {ID}: found {name!r}, expected the name of a photo in {folder}."
            )
        if not path.is_file():
            raise DataError(f"{file}, line {line}, column {ID}: {path} does not exist; expected a photo there.")
        paths.append(path)
    return paths


def persons_of(photos: Sequence[Path], column: str, info: Path | None = None) -> np.ndarray:
    """(N,) whose photo each is: by a column of an info.csv in its order, or by `column` "folder" the photo's folder.

    Raises UsageError where the column is not there, DataError where it has an empty cell.
    """
    if column == FOLDER:
        folders = np.array([str(photo.parent) for photo in photos], dtype=object)
        if len(photos) > 1 and len(set(folders)) == 1:
            raise UsageError(
                f"--same-person {FOLDER}: all {len(photos)} photos lie in one folder, {folders[0]}, so it does not say "
                "whose they are; name a column of the file of --submission."
            )
        return folders
    if info is None:
        raise UsageError(
            f"--same-person {column} is a column of the file of --submission, which is not given; without one, "
            f"--same-person {FOLDER} takes the photos of a folder for one person's."
        )
    frame = read_info(info)
    others = [name for name in frame.columns if name not in (ID, ANSWER)]
    if column not in others:
        found = ", ".join(others) or "none besides its own"
        raise UsageError(f"{info} has no column {column!r} that says whose photo it is; found {found}.")
    empty = frame.index[frame[column] == ""]
    if len(empty):
        raise DataError(f"{info}, line {empty[0]}, column {column}: found nothing, expected whose photo it is.")
    if len(frame) > 1 and frame[column].nunique() == 1:
        raise UsageError(
            f"{info}, column {column}: all {len(frame)} photos would be one person's; name another column."
        )
    return frame[column].to_numpy(dtype=object)


def check_heads(heads: Heads) -> None:
    """Raise UsageError if the joint classes of `heads` are not those that the contest counts by."""
    contest = contest_heads()
    sizes = tuple(heads.sizes[i] for i in heads.joined)
    if (heads.classified, sizes) != (contest.names, contest.sizes):
        raise UsageError(
            f"A submission holds classes of {', '.join(contest.names)}, the run's are of "
            f"{', '.join(heads.classified)}; leave --submission out: the CSV of --out has a column a head."
        )
    if heads.unlearned:
        raise UsageError(
            f"The run has not learned {', '.join(heads.unlearned)} (weight 0), so a submission would guess at it; make "
            "one run of it and of those that have: fastmask ensemble."
        )


def check_out(info: Path, out: Path) -> None:
    """Raise UsageError if the answers would be written over the questions."""
    # which, unlike Path.resolve, takes a link to itself for a file that is not there
    if os.path.realpath(out) == os.path.realpath(info):
        raise UsageError(f"--out {out} is the file of questions itself; name another file.")


def write_submission(classes: Mapping[str, int], info: Path, out: Path) -> Path:
    """Write `info` with `ans` filled in from photo -> joint class.

    A photo is found by its name as given, or by its file name where no other photo has it. Raises DataError, and writes
    nothing, if a photo of `info` was not predicted or its file name stands for two.
    """
    check_out(info, out)
    frame = read_info(info)
    by_file: dict[str, list[int]] = {}
    for name, value in classes.items():
        by_file.setdefault(Path(name).name, []).append(value)
    answers = []
    for line, name in frame[ID].items():
        found = [classes[name]] if name in classes else by_file.get(Path(name).name, [])
        if len(found) != 1:
            what = "was not predicted" if not found else f"is the file name of {len(found)} predicted photos"
            raise DataError(f"{info}, line {line}, column {ID}: {name} {what}.")
        answers.append(found[0])
    write_csv(out, frame.assign(**{ANSWER: answers}))
    return out


def score_files(predictions: str | Path, answers: str | Path, heads: Heads | None = None) -> Scores:
    """The scores of a submission, or of a file that `predict` wrote, against answers in the same format.

    Intervals are by bootstrap over the persons where the answers have a column `person`, else over the photos, which
    then look surer than they are.
    """
    heads = heads or contest_heads()
    predicted, true = read_classes(Path(predictions), heads), read_classes(Path(answers), heads)
    missing = true.index.difference(predicted.index)
    if len(missing):
        raise DataError(
            f"{predictions} lacks {len(missing)} of the {len(true)} photos of {answers}, such as {missing[0]}."
        )
    whole_persons = "person" in true.columns
    groups = true["person"].to_numpy(dtype=object) if whole_persons else true.index.to_numpy()
    guesses, truths = (heads.unjoint(f["class"].to_numpy()) for f in (predicted.loc[true.index], true))
    scores = score_heads(heads, guesses, truths, groups=groups)
    if not whole_persons:
        scores.notes.append(
            f"{answers} has no column person: the intervals take photos as independent and are too narrow."
        )
    return scores


def read_classes(file: Path, heads: Heads) -> pd.DataFrame:
    """The joint class of each photo of a submission or of a file of `predict`, by the photos' file names.

    Columns class, and person where the file has it; raises DataError for a class that is none, a photo twice.
    """
    frame = read_strings(file, ())
    name, value = ("path", "predicted") if "predicted" in frame.columns else (ID, ANSWER)
    require_columns(file, list(frame.columns), (name, value))
    if frame.empty:
        raise DataError(f"{file} has no rows; expected one a photo.")
    classes = joint_classes(file, frame[value], heads)
    names = [Path(n).name for n in frame[name]]
    twice = pd.Index(names).duplicated()
    if twice.any():
        i = int(np.flatnonzero(twice)[0])
        raise DataError(f"{file}, line {frame.index[i]}, column {name}: {names[i]!r} stands twice; remove one row.")
    kept = [c for c in ("person",) if c in frame.columns]
    return frame[kept].assign(**{"class": classes}).set_axis(names)


def joint_classes(file: Path, cells: pd.Series, heads: Heads) -> np.ndarray:
    """(N,) joint classes of a column of a CSV, as `read_strings` gives it; raises DataError for a cell that is none."""
    for line, text in cells.items():
        if re.fullmatch("[0-9]{1,19}", text) is None or int(text) >= heads.n_joint:
            raise DataError(
                f"{file}, line {line}, column {cells.name}: found {text!r}, expected a class from 0 to "
                f"{heads.n_joint - 1}."
            )
    return cells.astype(np.int64).to_numpy()
