"""Submission: a CSV with a row per photo to fill in, such as the contest's info.csv or a sample_submission.csv."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.data.formats import list_files
from fastmask.data.paths import find_named, match_paths
from fastmask.heads import Head, Heads
from fastmask.inference.sources import Found, find_cells
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_rows, require_columns, write_csv
from fastmask.system.text import join_some

# the `column` of `persons_of` that means one person per folder
FOLDER = "folder"
# the contest's columns
ID, ANSWER = "ImageID", "ans"
# a head, and the number of one of its classes for the probability of that
Fill = tuple[Head, int | None]
_CONTEST: Mapping[str, Fill | None] = {ANSWER: None}


@dataclass(frozen=True, eq=False)
class Form:
    """A CSV to fill in: every cell as text, `key` is the column of the photos.

    `columns` are those to fill: with the names of the classes of a head, or with the probability of one of its classes;
    None is the joint class, for the contest's `ans`.
    """

    path: Path
    frame: pd.DataFrame
    key: str
    columns: Mapping[str, Fill | None]

    @property
    def photos(self) -> list[str]:
        """The photos as the file names them."""
        return self.frame[self.key].tolist()

    def find(self, folder: str | Path) -> Found:
        """The photos of the form in a folder, in its order; one that is not there is its error."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; expected the photos that {self.path} names.")
        return find_cells(self.path, self.frame[self.key], folder, "IMAGES")

    def fill(
        self, heads: Heads, photos: Sequence[str], y: np.ndarray, probabilities: np.ndarray, out: str | Path
    ) -> Path:
        """Write the form with the (N, heads) classes and (N, classes of all heads) probabilities of N photos.

        A photo is found by its name, or by its file name if that is unique. Raises DataError, and writes nothing, if a
        photo of the form was not predicted or its file name is ambiguous.
        """
        check_out(self.path, Path(out))
        rows = self._rows(photos)
        filled = {name: _values(what, heads, y, probabilities)[rows] for name, what in self.columns.items()}
        write_csv(out, self.frame.assign(**filled))
        return Path(out)

    def _rows(self, photos: Sequence[str]) -> list[int]:
        row_of = {photo: row for row, photo in enumerate(photos)}
        matches = match_paths(self.photos, row_of, Path())
        by_file: dict[str, list[str]] = {}
        for photo in photos:
            by_file.setdefault(Path(photo).name, []).append(photo)
        rows = []
        for line, name in self.frame[self.key].items():
            exact = [name] if name in row_of else matches[name]
            found = exact or by_file.get(Path(name).name, [])
            if len(found) != 1:
                what = "was not predicted" if not found else f"is the file name of {len(found)} predicted photos"
                raise DataError(f"{self.path}, line {line}, column {self.key}: {name} {what}.")
            rows.append(row_of[found[0]])
        return rows


def _values(fill: Fill | None, heads: Heads, y: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) the cells of a column of a form."""
    if fill is None:
        joint, numbers = np.asarray(heads.joint(y)), _contest_numbers(heads)
        return joint if numbers is None else numbers[joint]
    head, number = fill
    position = heads.position(head.name)
    return head.decode_all(y[:, position]) if number is None else probabilities[:, heads.offsets[position] + number]


def read_form(file: str | Path, heads: Heads, photos: Collection[str] | Path, kept: Collection[str] = ()) -> Form:
    """Read a form to fill with predictions of `heads`: the contest's info.csv, or any with a column of photos.

    The other columns are filled by their names: a head gets names of classes, a class, or HEAD.CLASS, its probability;
    with one head, one other column gets the names of its classes. `photos` are those that the key column may name, with
    or without ending, or their folder; `kept` are columns that stay. Raises UsageError for any other column, and for a
    head that was not learned, DataError for a photo that is empty or duplicated.
    """
    file = Path(file)
    frame = read_rows(file, ())
    header = list(frame.columns)
    if {ID, ANSWER} <= set(header) or (is_contest(heads) and {ID, ANSWER} & set(header)):
        require_columns(file, header, (ID, ANSWER))
        _check_contest(heads, file)
        _check_learned(file, heads, heads.classified)
        key, columns = ID, _CONTEST
    else:
        key = _find_key(file, frame, heads, photos, kept)
        columns = _columns(file, frame.drop(columns=[key, *(set(kept) & set(header) - {key})]), heads, key)
        _check_learned(file, heads, {fill[0].name for fill in columns.values() if fill})
    check_names(file, frame[key])
    return Form(file, frame, key, columns)


def _find_key(
    file: Path, frame: pd.DataFrame, heads: Heads, photos: Collection[str] | Path, kept: Collection[str]
) -> str:
    """The column that names the most photos, of those that are not called like a head or a class."""
    if isinstance(photos, Path):
        photos = [photo.relative_to(photos).as_posix() for photo in list_files(photos)[0]]
    named = _named_columns(heads)
    others = [name for name in frame.columns if name not in named and name not in kept]
    if not others:
        raise UsageError(f"{file} has no column of photos; found {', '.join(frame.columns)}, expected one such as id.")
    counts = {name: len(find_named(frame[name], photos)) for name in others}
    return max(others, key=lambda name: counts[name])


def _named_columns(heads: Heads) -> dict[str, Fill]:
    """column name -> what it is filled with."""
    classes = [(head, number, name) for head in heads for number, name in enumerate(head.classes)]
    shared = Counter(name for *_, name in classes)
    alone = {name: (head, number) for head, number, name in classes if shared[name] == 1}
    whole = {f"{head.name}.{name}": (head, number) for head, number, name in classes}
    return {**alone, **whole, **{head.name: (head, None) for head in heads}}


def _columns(file: Path, frame: pd.DataFrame, heads: Heads, key: str) -> Mapping[str, Fill | None]:
    """What the columns are filled with; raises UsageError if one is unknown."""
    named, names = _named_columns(heads), list(frame.columns)
    if len(names) == 1 and len(heads.classified) == 1 and names[0] not in named:
        head = heads[heads.classified[0]]
        _warn_of_numbers(file, frame[names[0]], head)
        return {names[0]: (head, None)}
    unknown = [name for name in names if name not in named]
    if unknown or not names:
        found = f"the column {unknown[0]!r}" if unknown else "no column to fill in"
        raise UsageError(f"{file} has {found}; expected, in addition to {key}, {_expected(heads)}.")
    return {name: named[name] for name in names}


def _expected(heads: Heads) -> str:
    first = heads[heads.classified[0]]
    if len(heads.classified) == 1:
        return f"one column for the class, or one per class for its probability: {join_some(first.classes)}"
    return f"columns called {join_some(heads.classified)} for classes, or such as {heads.columns[0]} for probabilities"


def _warn_of_numbers(file: Path, cells: pd.Series, head: Head) -> None:
    """Warn if a column has numbers, but gets names."""
    if pd.to_numeric(cells, errors="coerce").notna().all() and not all(name.isdecimal() for name in head.classes):
        warnings.warn(
            f"{file}, column {cells.name}: numbers, such as {cells.iloc[0]}, are replaced by names of classes, such as "
            f"{head.classes[0]}; for the probability of a class, call the column like the class.",
            FastmaskWarning,
            stacklevel=4,
        )


def _check_learned(file: Path, heads: Heads, filled: Collection[str]) -> None:
    unlearned = [name for name in heads.unlearned if name in filled]
    if unlearned:
        raise UsageError(
            f"The run has not learned {', '.join(unlearned)} (weight 0), which {file} needs; blend it with runs that "
            "have: fastmask ensemble."
        )


def check_names(file: Path, names: pd.Series) -> None:
    """Raise DataError if a CSV names no photos, or if a name is empty or duplicated."""
    if names.empty:
        raise DataError(f"{file} has no rows; expected one per photo.")
    for problem, rows in (("is duplicated", names.duplicated()), ("is empty", names == "")):
        if rows.any():
            line = names.index[rows][0]
            raise DataError(f"{file}, line {line}, column {names.name}: {names[line]!r} {problem}; remove the row.")


def _contest_numbers(heads: Heads) -> np.ndarray | None:
    """(classes,) the contest's joint class of each class of a single head of all of them; None for other heads.

    They are called by their numbers or their names.
    """
    contest = contest_heads()
    if len(heads.joined) > 1 or heads.n_joint != contest.n_joint:
        return None
    classes = heads[heads.classified[0]].classes
    for names in ([str(number) for number in range(contest.n_joint)], contest.joint_names()):
        if set(classes) == set(names):
            return np.array([names.index(name) for name in classes])
    return None


def is_contest(heads: Heads) -> bool:
    """Whether the joint classes of `heads` are the contest's."""
    contest = contest_heads()
    return (heads.classified, tuple(heads.sizes[i] for i in heads.joined)) == (contest.names, contest.sizes)


def _check_contest(heads: Heads, info: Path) -> None:
    """Raise UsageError if the joint classes of `heads` are not those of the contest's info.csv."""
    if not is_contest(heads) and _contest_numbers(heads) is None:
        raise UsageError(
            f"{info} has {ID} and {ANSWER}, which holds joint classes of {', '.join(contest_heads().names)}; the run's "
            f"are of {', '.join(heads.classified)}: name a file of your own contest, or leave --submission out."
        )


def check_out(info: Path, out: Path) -> None:
    """Raise UsageError if a submission would be written over its info.csv."""
    # realpath, unlike Path.resolve, does not raise for a symlink loop
    if os.path.realpath(out) == os.path.realpath(info):
        raise UsageError(f"--out {out} is the file of --submission itself; name another file.")


def persons_of(photos: Sequence[Path], column: str, info: Path | None = None) -> np.ndarray:
    """(N,) the person of each photo: a column of a submission's CSV, in its order, or its folder for "folder".

    Raises UsageError if the column is missing, DataError if it has an empty cell.
    """
    if column == FOLDER:
        folders = np.array([str(photo.parent) for photo in photos], dtype=object)
        if len(photos) > 1 and len(set(folders)) == 1:
            raise UsageError(
                f"--same-person {FOLDER}: all {len(photos)} photos are in one folder, {folders[0]}, which does not "
                "separate persons; name a column of the file of --submission."
            )
        return folders
    if info is None:
        raise UsageError(
            f"--same-person {column} is a column of the file of --submission, which is not given; without it, use "
            f"--same-person {FOLDER}, for photos in a folder per person."
        )
    frame = read_rows(info, ())
    others = [name for name in frame.columns if name not in (ID, ANSWER)]
    if column not in others:
        found = ", ".join(others) or f"only {ID} and {ANSWER}"
        raise UsageError(f"{info} has no column {column!r} of persons; found {found}.")
    empty = frame.index[frame[column] == ""]
    if len(empty):
        raise DataError(f"{info}, line {empty[0]}, column {column}: found nothing, expected a person.")
    if len(frame) > 1 and frame[column].nunique() == 1:
        raise UsageError(
            f"{info}, column {column}: all {len(frame)} photos would be one person's; name another column."
        )
    return frame[column].to_numpy(dtype=object)
