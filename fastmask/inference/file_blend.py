"""File blend: files of answers or of probabilities for the same photos, blended by photo without their runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.inference.answers import AnswersFile, name_photos
from fastmask.inference.blend import MEAN, VOTE, weights_by_hand
from fastmask.inference.column_blend import AnswerColumns, ColumnBlend, ProbabilityColumns
from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import real, require_columns
from fastmask.system.text import count, percent, table_lines

FILE_BLENDS = (MEAN, VOTE)
# the endings of files, for paths that do not exist
_ENDINGS = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Agreement:
    """The share of photos with equal answers in two files, and that of each head or column of answers."""

    a: str
    b: str
    equal: float
    parts: dict[str, float]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"a": self.a, "b": self.b, "equal": self.equal, **({"parts": self.parts} if self.parts else {})}


@dataclass(frozen=True, eq=False)
class BlendedFiles:
    """The blend of several files: a `frame` with the rows and columns of the first, and the agreement of each pair.

    `ties` is the number of photos of which a vote was tied, None if nothing was voted on.
    """

    frame: pd.DataFrame
    blend: str
    files: list[str]
    weights: list[float]
    agreement: list[Agreement]
    ties: int | None
    notes: list[str]

    def __str__(self) -> str:
        parts = list(self.agreement[0].parts)
        rows = [("files", "equal answers", *parts)]
        for pair in self.agreement:
            shares = (percent(share, 1) for share in (pair.equal, *pair.parts.values()))
            rows.append((f"{pair.a}, {pair.b}", *shares))
        weighted = len(set(self.weights)) > 1
        weights = f"; weights {', '.join(f'{weight:g}' for weight in self.weights)}" if weighted else ""
        head = f"{count(len(self.frame), 'photo')}, {self.blend} of {len(self.files)} files{weights}"
        return "\n".join([head, "", *table_lines(rows), *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        if self.ties is not None:
            photos = count(len(self.frame), "photo")
            yield f"{self.ties:,} of {photos} decided by a tie, for the first of the tied files."
        yield from self.notes

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "blend": self.blend,
            "weights": dict(zip(self.files, self.weights, strict=True)),
            "photos": len(self.frame),
            "ties": self.ties,
            "agreement": [pair.to_plain() for pair in self.agreement],
            "notes": self.notes,
        }


def are_files(paths: Sequence[Path]) -> bool:
    """Whether paths are files of answers, and not runs; raises UsageError if some are."""
    files = [path for path in paths if not path.is_dir() and (path.is_file() or path.suffix.lower() in _ENDINGS)]
    if files and len(files) < len(paths):
        run = next(path for path in paths if path not in files)
        raise UsageError(
            f"{files[0]} is a file and {run} a run; name runs alone, or predict with the run and name files alone."
        )
    return bool(files)


def blend_files(
    files: Sequence[str | Path | pd.DataFrame], how: str | None = None, weights: Sequence[float] | None = None
) -> pd.DataFrame:
    """Blend submissions, or files of probabilities, of the same photos: a frame like the first of them.

    Submissions vote per photo and column; of tied answers that of the first file wins. Probabilities, HEAD.CLASS as
    `predict` writes them, are averaged per head, and the classes follow; with `how="vote"` each file votes for its
    class of each head, and the probability is the share of the votes. `weights` are one per file. Raises DataError or
    UsageError if the files differ in photos, columns or kind.

    >>> a = pd.DataFrame({"ImageID": ["1.jpg", "2.jpg"], "ans": [0, 3]})
    >>> b = pd.DataFrame({"ImageID": ["1.jpg", "2.jpg"], "ans": [0, 4]})
    >>> fm.blend_files([a, b, b])["ans"].tolist()
    [0, 4]
    """
    return combine_files(files, how, weights).frame


def combine_files(
    files: Sequence[str | Path | pd.DataFrame], how: str | None = None, weights: Sequence[float] | None = None
) -> BlendedFiles:
    """As `blend_files`, with the agreement of the files and the number of ties."""
    if how not in (None, *FILE_BLENDS):
        raise UsageError(f"Files are blended by {' or '.join(FILE_BLENDS)}; found {how!r}, which needs runs.")
    _check_count(files)
    given = weights_by_hand([1.0] * len(files) if weights is None else weights, len(files), "file", above_0=True)
    opened = [AnswersFile.read(file, f"file {number}") for number, file in enumerate(files, 1)]
    _check_kinds(opened)
    for file in opened[1:]:
        _check_columns(opened[0], file)
    heads, aligned, shares = opened[0].named_heads, _align(opened), given / given.sum()
    made = ProbabilityColumns(aligned, how, shares, heads) if heads else AnswerColumns(aligned, how, shares)
    made.blend()
    return _finish(made, given)


def _check_kinds(files: Sequence[AnswersFile]) -> None:
    """Raise DataError if some files have probabilities, and others answers."""
    kinds = [file.named_heads is not None for file in files]
    if any(kinds) and not all(kinds):
        one, other = (files[kinds.index(kind)] for kind in (True, False))
        raise DataError(
            f"{one.path} has probabilities and {other.path} has none; blend files of one kind: CSVs of predict, or "
            "submissions."
        )


def _check_count(files: Sequence[str | Path | pd.DataFrame]) -> None:
    """Raise UsageError unless there are two or more different files."""
    if isinstance(files, str | Path | pd.DataFrame) or not 2 <= len(files) <= limits.MEMBERS:
        found = 1 if isinstance(files, str | Path | pd.DataFrame) else len(files)
        raise UsageError(f"A blend is made of 2 to {limits.MEMBERS} files; found {found}.")
    places: list[Path] = []
    for file in files:
        if not isinstance(file, str | Path):
            continue
        if real(file) in places:
            raise UsageError(f"{file} is named twice; name each file once, and give it a larger weight (--weights).")
        places.append(real(file))


def _align(files: Sequence[AnswersFile]) -> list[AnswersFile]:
    """The files with the rows of the first; raises DataError if one lacks a photo of it, or has another."""
    first, *others = files
    names = [pd.Index(name_photos(file, files)) for file in files]
    for file, own in zip(others, names[1:], strict=True):
        for one, there, other, missing in ((file, own, first, names[0]), (first, names[0], file, own)):
            odd = np.flatnonzero(~missing.isin(there))
            if len(odd):
                raise DataError(
                    f"{one.path} lacks {len(odd)} of the {len(missing)} photos of {other.path}, such as "
                    f"{other.photos[odd[0]]} (line {other.frame.index[odd[0]]}); expected the same photos in each file."
                )
    rows = (own.get_indexer(names[0]) for own in names)
    return [replace(file, frame=file.frame.iloc[each]) for file, each in zip(files, rows, strict=True)]


def _check_columns(first: AnswersFile, file: AnswersFile) -> None:
    """Raise DataError unless two files have the same columns, other than those of the members of a prediction."""
    own, expected = ([name for name in each.frame if name not in each.member_columns] for each in (file, first))
    require_columns(file.path, own, expected)
    extra = next((name for name in own if name not in expected), None)
    if extra is not None:
        raise DataError(f"{file.path} has the column {extra!r}, which {first.path} lacks; expected the same columns.")


def _finish(made: ColumnBlend, given: np.ndarray) -> BlendedFiles:
    """The result, with the columns of the first file that all files have."""
    first, members, notes = made.first, made.first.member_columns, [*made.notes]
    kept = [name for name in first.frame if name in made.columns or name not in members]
    lost = len(first.frame.columns) - len(kept)
    if lost:
        notes.append(f"{count(lost, 'column')} of members of {first.path} left out: not in all files.")
    frame = first.frame[kept].assign(**made.columns).reset_index(drop=True)
    names = [str(file.path) for file in made.files]
    ties = int(made.tied.sum()) if made.voted else None
    agreement = list(_compare(names, made.answers))
    return BlendedFiles(frame, VOTE if made.voted else MEAN, names, given.tolist(), agreement, ties, notes)


def _compare(names: Sequence[str], answers: Mapping[str, np.ndarray]) -> Iterator[Agreement]:
    """The agreement of each pair of files, by the (files, N) answers of each head or column."""
    for i, j in combinations(range(len(names)), 2):
        equal = {name: each[i] == each[j] for name, each in answers.items()}
        parts = {name: float(one.mean()) for name, one in equal.items()} if len(equal) > 1 else {}
        yield Agreement(names[i], names[j], float(np.all(list(equal.values()), axis=0).mean()), parts)
