"""Column blend: the columns of several files of answers or probabilities, blended into those of the first file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.heads import JOINT, Head, Heads, bands_of, number_of
from fastmask.inference.answers import PREDICTED, AnswersFile, check_cells, joint_classes
from fastmask.inference.blend import MEAN, VOTE
from fastmask.inference.mixture import TIE
from fastmask.inference.submission import ANSWER
from fastmask.system.errors import DataError, UsageError

# the tolerance of sums of weights, such as 0.1 + 0.2 and 0.3
_ROUNDED = 1e-9


def majority(answers: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(files, N) answers and (files,) weights -> (N,) the answers with the most weight, and (N,) which were tied.

    Of tied answers, that of the first file wins.
    """
    totals = np.stack([weights @ (answers == own) for own in answers])
    leads = totals >= totals.max(axis=0) - _ROUNDED
    chosen = np.take_along_axis(answers, leads.argmax(axis=0)[None], axis=0)[0]
    return chosen, (leads & (answers != chosen)).any(axis=0)


class ColumnBlend(ABC):
    """The columns of files with the same photos in the same order, by `how` and (files,) `weights` that sum to 1.

    `blend` makes `columns`, the new ones, `answers` of each head or column, (files, N), which are compared, `tied`,
    (N,), if anything is `voted` on, and `notes`.
    """

    def __init__(self, files: Sequence[AnswersFile], how: str | None, weights: np.ndarray) -> None:
        self.files, self.how, self.weights = files, how, weights
        self.first = files[0]
        self.columns: dict[str, Any] = {}
        self.answers: dict[str, np.ndarray] = {}
        self.voted = False
        self.tied = np.zeros(len(self.first.frame), bool)
        self.notes: list[str] = []

    @abstractmethod
    def blend(self) -> None:
        """Blend all columns."""

    def vote(self, answers: np.ndarray) -> np.ndarray:
        """(files, N) answers -> (N,) those that win; ties are counted."""
        self.voted = True
        chosen, tied = majority(answers, self.weights)
        self.tied |= tied
        return chosen

    def mean(self, parts: np.ndarray) -> np.ndarray:
        """(files, ...) probabilities -> their weighted mean."""
        return np.asarray(np.tensordot(self.weights, parts, axes=1))

    def numbers(self, column: str) -> np.ndarray:
        """(files, N) the numbers of a column."""
        found = [pd.to_numeric(file.frame[column], errors="coerce") for file in self.files]
        for file, numbers in zip(self.files, found, strict=True):
            check_cells(file.path, file.frame[column], np.isfinite(numbers), "a number")
        return np.stack([numbers.to_numpy(np.float64) for numbers in found])

    def keep(self, name: str, advice: str) -> None:
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


class ProbabilityColumns(ColumnBlend):
    """The columns of files of probabilities of `heads`: HEAD.CLASS or, of one head, CLASS."""

    def __init__(self, files: Sequence[AnswersFile], how: str | None, weights: np.ndarray, heads: Heads) -> None:
        super().__init__(files, how, weights)
        self.heads = heads

    def blend(self) -> None:
        """As `ColumnBlend.blend`; raises UsageError for files of a joint head."""
        if self.first.has_joint_head:
            raise UsageError(
                f"{self.first.path} is of a run with a joint head ({JOINT}.CLASS), and does not say how that is mixed "
                "with the others; blend the runs, or their submissions."
            )
        y = np.stack([self._blend_head(head) for head in self.heads], axis=1)
        for name in self.heads.names:
            self._blend_number(number_of(name))
            self._blend_bands(bands_of(name))
        if PREDICTED in self.first.frame:
            self.columns[PREDICTED] = self.heads.joint(y)
        members = self.first.member_columns
        for name in members:
            if all(name in file.frame for file in self.files):
                self.columns[name] = self.mean(self.numbers(name))
        for name in [name for name in self.first.frame if name not in (*self.columns, *members, self.first.key)]:
            self.keep(name, "remove the column")

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
            self.columns[column] = self.mean(self.numbers(column))
        if name in self.first.frame:
            numbers = self.numbers(name)
            order = np.argsort(numbers, axis=0, kind="stable")
            half = (self.weights[order].cumsum(axis=0) >= 0.5 - _ROUNDED).argmax(axis=0)
            rows = np.take_along_axis(order, half[None], axis=0)[0]
            cells = np.stack([file.frame[name].to_numpy(dtype=object) for file in self.files])
            self.columns[name] = np.take_along_axis(cells, rows[None], axis=0)[0]

    def _blend_bands(self, name: str) -> None:
        """The mean of the probabilities of finer bands, and the most probable band."""
        columns = [column for column in self.first.frame if column.startswith(f"{name}.")]
        for column in columns:
            self.columns[column] = self.mean(self.numbers(column))
        if columns and name in self.first.frame:
            names = np.array([column.removeprefix(f"{name}.") for column in columns], dtype=object)
            self.columns[name] = names[np.stack([self.columns[column] for column in columns]).argmax(axis=0)]


class AnswerColumns(ColumnBlend):
    """The columns of submissions: answers by vote, and columns of one probability by mean."""

    def blend(self) -> None:
        """As `ColumnBlend.blend`; raises UsageError for a mean of answers and a vote on probabilities."""
        for name in [name for name in self.first.frame if name != self.first.key]:
            if name == ANSWER:
                self._vote_joint()
            elif self._are_shares(name):
                self._average(name)
            elif self.how == MEAN:
                self.keep(name, "blend answers by vote")
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
        numbers = self.numbers(name)
        self.columns[name] = self.mean(numbers)
        self.answers[name] = numbers >= 0.5


def _share_in(cells: pd.Series) -> str | None:
    """The first cell of a column between 0 and 1 if all cells are numbers from 0 to 1; else None."""
    numbers = pd.to_numeric(cells, errors="coerce")
    inside = cells[(numbers > 0) & (numbers < 1)]
    return str(inside.iloc[0]) if numbers.between(0, 1).all() and len(inside) else None


def _vote_shares(answers: np.ndarray, chosen: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """(N, classes) shares of the votes; as in the mixture `Vote`, a small part marks the winner of a tie."""
    each = np.eye(classes)
    return np.asarray((np.tensordot(weights, each[answers], axes=1) + TIE * each[chosen]) / (1 + TIE))
