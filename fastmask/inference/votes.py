"""Votes: files of answers or of probabilities for the same photos, blended by photo without any run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.heads import JOINT, Head, Heads, bands_of, number_of
from fastmask.inference.answers import PREDICTED, AnswersFile, check_cells, joint_classes, name_photos
from fastmask.inference.blend import MEAN, VOTE
from fastmask.inference.mixture import TIE
from fastmask.inference.submission import ANSWER
from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import real, require_columns
from fastmask.system.text import count, percent, table_lines

FILE_BLENDS = (MEAN, VOTE)
# the endings of files, for paths that do not exist
_ENDINGS = (".csv", ".tsv", ".txt")
# the tolerance of sums of weights, such as 0.1 + 0.2 and 0.3
_ROUNDED = 1e-9


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
    """
    return combine_files(files, how, weights).frame


def combine_files(
    files: Sequence[str | Path | pd.DataFrame], how: str | None = None, weights: Sequence[float] | None = None
) -> BlendedFiles:
    """As `blend_files`, with the agreement of the files and the number of ties."""
    if how not in (None, *FILE_BLENDS):
        raise UsageError(f"Files are blended by {' or '.join(FILE_BLENDS)}; found {how!r}, which needs runs.")
    _check_count(files)
    given = _check_weights(weights, len(files))
    opened = [AnswersFile.read(file, f"file {number}") for number, file in enumerate(files, 1)]
    heads = [file.named_heads for file in opened]
    if any(heads) and not all(heads):
        one, other = (opened[[bool(each) for each in heads].index(kind)] for kind in (True, False))
        raise DataError(
            f"{one.path} has probabilities and {other.path} has none; blend files of one kind: CSVs of predict, or "
            "submissions."
        )
    for file in opened[1:]:
        _check_columns(opened[0], file)
    made = _Columns(_align(opened), how, given)
    if heads[0]:
        made.blend_heads(heads[0])
    else:
        made.blend_columns()
    return made.finish()


def _check_count(files: Sequence[str | Path | pd.DataFrame]) -> None:
    """Raise UsageError unless there are two or more different files."""
    if isinstance(files, str | Path | pd.DataFrame) or not 2 <= len(files) <= limits.MEMBERS:
        found = 1 if isinstance(files, str | Path | pd.DataFrame) else len(files)
        raise UsageError(f"A blend is made of 2 to {limits.MEMBERS} files; found {found}.")
    places: list[Path] = []
    for file in files:
        if isinstance(file, pd.DataFrame):
            continue
        if real(file) in places:
            raise UsageError(f"{file} is named twice; name each file once, and give it a larger weight (--weights).")
        places.append(real(file))


def _check_weights(weights: Sequence[float] | None, files: int) -> np.ndarray:
    """(files,) weights; raises UsageError if they are not one number above 0 per file."""
    given = np.array([1.0] * files if weights is None else list(weights), np.float64)
    if len(given) != files:
        raise UsageError(f"Found {count(len(given), 'weight')} for {files} files; expected one each, in their order.")
    odd = given[~(np.isfinite(given) & (given > 0))]
    if len(odd):
        raise UsageError(f"Found a weight of {odd[0]:g}; expected numbers above 0: leave out a file without weight.")
    return given


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
    own, expected = ([name for name in each.frame if name not in _members(each)] for each in (file, first))
    require_columns(file.path, own, expected)
    extra = next((name for name in own if name not in expected), None)
    if extra is not None:
        raise DataError(f"{file.path} has the column {extra!r}, which {first.path} lacks; expected the same columns.")


def _members(file: AnswersFile) -> dict[str, str]:
    """MEMBER:HEAD.CLASS -> HEAD.CLASS for the columns of the members of a prediction."""
    columns = set(file.frame)
    ends = ((name, name[i + 1 :]) for name in file.frame for i, sign in enumerate(name) if sign == ":")
    return {name: end for name, end in ends if end in columns}


def majority(answers: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(files, N) answers and (files,) weights -> (N,) the answers with the most weight, and (N,) which were tied.

    Of tied answers, that of the first file wins.
    """
    totals = np.stack([weights @ (answers == own) for own in answers])
    leads = totals >= totals.max(axis=0) - _ROUNDED
    chosen = np.take_along_axis(answers, leads.argmax(axis=0)[None], axis=0)[0]
    return chosen, (leads & (answers != chosen)).any(axis=0)


class _Columns:
    """The columns of a blend as they are made, and the answers that are compared."""

    def __init__(self, files: Sequence[AnswersFile], how: str | None, weights: np.ndarray) -> None:
        self.files, self.how, self.given, self.weights = files, how, weights, weights / weights.sum()
        self.first = files[0]
        self.columns: dict[str, Any] = {}
        # head or column -> (files, N) answers
        self.answers: dict[str, np.ndarray] = {}
        self.voted = False
        self.tied = np.zeros(len(self.first.frame), bool)
        self.notes: list[str] = []

    def finish(self) -> BlendedFiles:
        """The result, with the columns of the first file that all files have."""
        members = _members(self.first)
        kept = [name for name in self.first.frame if name in self.columns or name not in members]
        lost = len(self.first.frame.columns) - len(kept)
        if lost:
            self.notes.append(f"{count(lost, 'column')} of members of {self.first.path} left out: not in all files.")
        frame = self.first.frame[kept].assign(**self.columns).reset_index(drop=True)
        names = [str(file.path) for file in self.files]
        ties = int(self.tied.sum()) if self.voted else None
        how = VOTE if self.voted else MEAN
        agreement = list(self._agreement(names))
        return BlendedFiles(frame, how, names, self.given.tolist(), agreement, ties, self.notes)

    def _agreement(self, names: Sequence[str]) -> Iterator[Agreement]:
        for i, j in combinations(range(len(self.files)), 2):
            equal = {name: each[i] == each[j] for name, each in self.answers.items()}
            parts = {name: float(one.mean()) for name, one in equal.items()} if len(equal) > 1 else {}
            yield Agreement(names[i], names[j], float(np.all(list(equal.values()), axis=0).mean()), parts)

    def vote(self, answers: np.ndarray) -> np.ndarray:
        """(files, N) answers -> (N,) those that win; ties are counted."""
        self.voted = True
        chosen, tied = majority(answers, self.weights)
        self.tied |= tied
        return chosen

    def mean(self, parts: np.ndarray) -> np.ndarray:
        """(files, ...) probabilities -> their weighted mean."""
        return np.asarray(np.tensordot(self.weights, parts, axes=1))

    def blend_heads(self, heads: Heads) -> None:
        """Blend files of probabilities, which have the columns HEAD.CLASS or, of one head, CLASS."""
        if any(column.startswith(f"{JOINT}.") for column in self.first.frame):
            raise UsageError(
                f"{self.first.path} is of a run with a joint head ({JOINT}.CLASS), and does not say how that is mixed "
                "with the others; blend the runs, or their submissions."
            )
        y = np.stack([self._blend_head(head) for head in heads], axis=1)
        for name in heads.names:
            self._blend_number(number_of(name))
            self._blend_bands(bands_of(name))
        if PREDICTED in self.first.frame:
            self.columns[PREDICTED] = heads.joint(y)
        members = _members(self.first)
        for name in members:
            if all(name in file.frame for file in self.files):
                self.columns[name] = self.mean(self._numbers(name))
        for name in [name for name in self.first.frame if name not in (*self.columns, *members, self.first.key)]:
            self._keep(name, "remove the column")

    def _blend_head(self, head: Head) -> np.ndarray:
        """(N,) class numbers of a head, and its columns."""
        codes = np.stack([file.most_likely(head) for file in self.files])
        decided = codes
        if head.name in self.first.frame:
            decided = np.stack([file.read_names(head, head.name) for file in self.files])
        self.answers[head.name] = decided
        parts = np.stack([file.probabilities(head) for file in self.files])
        if self.how == VOTE:
            chosen = self.vote(decided)
            mixed = _vote_shares(decided, chosen, self.weights, len(head.classes))
        else:
            mixed = self.mean(parts)
            chosen = mixed.argmax(axis=1)
            self._note_decided(head, codes, decided)
        self.columns.update(zip(self.first.columns_of(head), mixed.T, strict=True))
        if head.name in self.first.frame:
            self.columns[head.name] = head.decode_all(chosen)
        return np.asarray(chosen)

    def _note_decided(self, head: Head, codes: np.ndarray, decided: np.ndarray) -> None:
        for file, other in zip(self.files, (codes != decided).sum(axis=1).tolist(), strict=True):
            if other:
                self.notes.append(
                    f"{file.path}: {other:,} answers of {head.name} are not the most probable class (--decision); the "
                    "mean ignores them, --blend vote takes them."
                )

    def _blend_number(self, name: str) -> None:
        """The mean of distributions over a number, and of the answers the weighted median."""
        for column in [each for each in self.first.frame if each.startswith(f"{name}.")]:
            self.columns[column] = self.mean(self._numbers(column))
        if name in self.first.frame:
            numbers = self._numbers(name)
            order = np.argsort(numbers, axis=0, kind="stable")
            half = (self.weights[order].cumsum(axis=0) >= 0.5 - _ROUNDED).argmax(axis=0)
            rows = np.take_along_axis(order, half[None], axis=0)[0]
            cells = np.stack([file.frame[name].to_numpy(dtype=object) for file in self.files])
            self.columns[name] = np.take_along_axis(cells, rows[None], axis=0)[0]

    def _blend_bands(self, name: str) -> None:
        """The mean of the probabilities of finer bands, and the most probable band."""
        columns = [column for column in self.first.frame if column.startswith(f"{name}.")]
        for column in columns:
            self.columns[column] = self.mean(self._numbers(column))
        if columns and name in self.first.frame:
            names = np.array([column.removeprefix(f"{name}.") for column in columns], dtype=object)
            self.columns[name] = names[np.stack([self.columns[column] for column in columns]).argmax(axis=0)]

    def _numbers(self, column: str) -> np.ndarray:
        """(files, N) the numbers of a column."""
        found = [pd.to_numeric(file.frame[column], errors="coerce") for file in self.files]
        for file, numbers in zip(self.files, found, strict=True):
            check_cells(file.path, file.frame[column], np.isfinite(numbers), "a number")
        return np.stack([numbers.to_numpy(np.float64) for numbers in found])

    def _keep(self, name: str, advice: str) -> None:
        """A column that is not blended; raises DataError if the files differ in it."""
        expected = self.first.frame[name].to_numpy(dtype=object)
        for file in self.files[1:]:
            odd = np.flatnonzero(file.frame[name].to_numpy(dtype=object) != expected)
            if len(odd):
                line, found = file.frame.index[odd[0]], file.frame[name].iloc[odd[0]]
                raise DataError(
                    f"{file.path}, line {line}, column {name}: found {found!r}, expected {expected[odd[0]]!r} as in "
                    f"{self.first.path}; {advice}."
                )

    def blend_columns(self) -> None:
        """Blend submissions: answers by vote, and columns of one probability by mean."""
        for name in [name for name in self.first.frame if name != self.first.key]:
            if name == ANSWER:
                self._vote_joint()
            elif self._are_shares(name):
                self._average(name)
            elif self.how == MEAN:
                self._keep(name, "blend answers by vote")
            else:
                self._vote_names(name)
        if self.how == MEAN and not self.columns:
            raise UsageError(f"{self.first.path} has answers without probabilities; blend them by vote.")

    def _vote_joint(self) -> None:
        heads = contest_heads()
        joint = np.stack([joint_classes(file.path, file.frame[ANSWER], heads) for file in self.files])
        if self.how == MEAN:
            raise UsageError(f"{self.first.path} has joint classes ({ANSWER}), which have no mean; blend them by vote.")
        self.columns[ANSWER] = self.vote(joint)
        y = heads.unjoint(joint)
        self.answers.update({name: y[..., heads.position(name)] for name in heads.classified})

    def _vote_names(self, name: str) -> None:
        cells = np.stack([file.frame[name].to_numpy(dtype=object) for file in self.files])
        blank = (cells == "").all(axis=0)
        for file in self.files:
            check_cells(file.path, file.frame[name], (file.frame[name] != "") | blank, "an answer")
        self.answers[name] = cells
        self.columns[name] = self.vote(cells)

    def _are_shares(self, name: str) -> bool:
        """Whether a column has probabilities in all files; raises DataError if it has in some."""
        kinds = [_share_in(file.frame[name]) for file in self.files]
        if any(kinds) and not all(kinds):
            one, other = (self.files[[bool(kind) for kind in kinds].index(there)] for there in (True, False))
            cell, shown = other.frame[name].iloc[0], next(filter(None, kinds))
            raise DataError(
                f"{other.path}, column {name}: found {cell!r}, expected a probability such as {shown} in {one.path}; "
                "blend files of one kind."
            )
        return all(kinds)

    def _average(self, name: str) -> None:
        if self.how == VOTE:
            raise UsageError(f"{self.first.path}, column {name} has probabilities, which are blended by mean.")
        numbers = self._numbers(name)
        self.columns[name] = self.mean(numbers)
        self.answers[name] = numbers >= 0.5


def _share_in(cells: pd.Series) -> str | None:
    """The first cell of a column between 0 and 1 if all cells are numbers from 0 to 1; else None."""
    numbers = pd.to_numeric(cells, errors="coerce")
    inside = cells[(numbers > 0) & (numbers < 1)]
    return str(inside.iloc[0]) if numbers.between(0, 1).all() and len(inside) else None


def _vote_shares(answers: np.ndarray, chosen: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """(N, classes) shares of the votes; as in `votes`, a small part of the value marks the winner of a tie."""
    each = np.eye(classes)
    return np.asarray((np.tensordot(weights, each[answers], axes=1) + TIE * each[chosen]) / (1 + TIE))
