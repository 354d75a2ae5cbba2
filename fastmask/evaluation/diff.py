"""Diff: the differences of two submissions, and the change of the score expected from OOF predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.decision.rule import PLAIN
from fastmask.evaluation.decisions import answers_of, score_of
from fastmask.evaluation.ledger import Entry, digest, read_ledger
from fastmask.heads import UNKNOWN, Heads
from fastmask.inference.answers import AnswersFile, heads_of, name_photos
from fastmask.run.directory import RunDirectory
from fastmask.run.overlap import join_groups
from fastmask.scoring import DRAWS, Difference, Plain, counted_classes, score_differences
from fastmask.system.errors import DataError, FastmaskError, UsageError
from fastmask.system.files import write_csv

# the maximum of changes shown in a terminal
_SHOWN = 20
# the tolerance of a score that was rounded in a file
_ROUNDED = 1e-6


@dataclass(frozen=True, eq=False)
class Diff:
    """Two predictions `a` and `b`, (N,) joint classes, for the same N `photos`."""

    heads: Heads
    photos: Sequence[str]
    a: np.ndarray
    b: np.ndarray

    @property
    def differing(self) -> int:
        """The number of photos that differ."""
        return int((self.a != self.b).sum())

    @cached_property
    def by_head(self) -> dict[str, int]:
        """The number of photos that differ in each head."""
        differs = self.heads.unjoint(self.a) != self.heads.unjoint(self.b)
        return dict(zip(self.heads.names, differs.sum(axis=0).tolist(), strict=True))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per photo that differs, in the order of A: photo, and the names of its classes a and b."""
        rows = self.a != self.b
        photos = np.array(self.photos, dtype=object)[rows]
        return pd.DataFrame(
            {"photo": photos, "a": self._names(self.a[rows]), "b": self._names(self.b[rows])}, dtype=str
        )

    @cached_property
    def changes(self) -> pd.DataFrame:
        """One row per change of the joint class, the commonest first: the names from and to, count."""
        rows = self.a != self.b
        pairs, counts = np.unique(np.stack([self.a[rows], self.b[rows]], axis=1), axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        before, after = (self._names(joint[order]) for joint in pairs.T)
        return pd.DataFrame({"from": before, "to": after, "count": counts[order]})

    @cached_property
    def classes(self) -> pd.DataFrame:
        """One row per joint class that occurs, in order: its name (class), and its numbers of photos in a and in b."""
        there = np.unique(np.concatenate([self.a, self.b]))
        a, b = (pd.Series(joint).value_counts().reindex(there, fill_value=0).to_numpy() for joint in (self.a, self.b))
        return pd.DataFrame({"class": self._names(there), "a": a, "b": b})

    def _names(self, joint: np.ndarray) -> list[str]:
        names = {number: self.heads.joint_name(number) for number in np.unique(joint).tolist()}
        return [names[number] for number in joint.tolist()]

    def __str__(self) -> str:
        if not self.differing:
            return f"{len(self.photos)} photos, all the same"
        heads = ", ".join(f"{name} {self.by_head[name]}" for name in self.heads.classified)
        share = self.differing / len(self.photos)
        lines = [f"{len(self.photos)} photos, {self.differing} differ ({share:.1%}); in {heads}", ""]
        width = max(map(len, [*self.classes["class"], "class"]))
        lines.append(f"{'from A':{width}}  {'to B':{width}}  photos")
        shown, rest = self.changes[:_SHOWN], self.changes[_SHOWN:]
        lines += [f"{a:{width}}  {b:{width}}  {count:6}" for a, b, count in shown.itertuples(index=False)]
        lines += [f"and {len(rest)} other changes of {rest['count'].sum()} photos"] if len(rest) else []
        lines += ["", f"{'class':{width}}  {'A':>6}  {'B':>6}  {'B - A':>6}"]
        lines += [f"{c:{width}}  {a:6}  {b:6}  {b - a:+6}" for c, a, b in self.classes.itertuples(index=False)]
        return "\n".join(lines)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "photos": len(self.photos),
            "differing": self.differing,
            "heads": self.by_head,
            "changes": self.changes.to_dict("records"),
            "classes": self.classes.to_dict("records"),
        }

    def to_csv(self, out: str | Path) -> None:
        """Write `frame`."""
        write_csv(out, self.frame)


def diff_files(a: str | Path, b: str | Path, heads: Heads | None = None) -> Diff:
    """Compare two submissions, or two files written by `predict`; photos are matched by file name.

    `heads` default to those that the columns name. Raises DataError if one lacks a photo of the other, or has other
    heads.

    >>> for name, answers in {"a.csv": [0, 3], "b.csv": [0, 5]}.items():
    ...     pd.DataFrame({"ImageID": ["1.jpg", "2.jpg"], "ans": answers}).to_csv(name, index=False)
    >>> diff = fm.diff_files("a.csv", "b.csv", fm.contest_heads())
    >>> diff.differing, diff.by_head
    (1, {'mask': 0, 'gender': 0, 'age': 1})
    """
    files = AnswersFile.read(a), AnswersFile.read(b)
    heads = heads or heads_of(files)
    first, second = (pd.Series(heads.joint(f.encode(heads)), name_photos(f, files)) for f in files)
    for one, other, lacking, whole in ((a, b, first, second), (b, a, second, first)):
        missing = whole.index.difference(lacking.index, sort=False)
        if len(missing):
            raise DataError(
                f"{one} lacks {len(missing)} of the {len(whole)} photos of {other}, such as {missing[0]}; expected two "
                "answers to the same photos."
            )
    return Diff(heads, first.index.tolist(), first.to_numpy(), second.loc[first.index].to_numpy())


@dataclass(frozen=True)
class Expectation(Plain):
    """The change of the score from one run to another, expected from their OOF predictions.

    `difference` is None if it is unknown, and `reason` says why. `runs` are named with their decision rules.
    """

    difference: Difference | None = None
    runs: tuple[str, str] = ("", "")
    photos: int = 0
    notes: Sequence[str] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.difference is None:
            return f"No expectation of the score: {self.reason}"
        change = f"{self.difference}; accuracy {self.difference.accuracy:+.4f}"
        lines = [
            f"Expected change of macro-F1 from A to B, by OOF: {change}.",
            f"It is of the OOF predictions of {self.runs[0]} and {self.runs[1]}, each photo by the one model that had "
            f"not seen it ({self.photos} photos of both), not of the photos and the averaged models of these files.",
        ]
        return "\n".join([*lines, *self.notes])


def expected_change(
    run_a: RunDirectory,
    run_b: RunDirectory,
    decisions: tuple[str, str] = (PLAIN, PLAIN),
    draws: int = DRAWS,
    seed: int = 0,
) -> Expectation:
    """How much better `run_b` is than `run_a` on the photos that both predicted out of fold, matched by path.

    `decisions` are rules as the ledger names them. The interval is that of a paired bootstrap over the persons of
    `run_a`, the macro-F1 over the classes of its table and of both predictions. Raises DataError if the runs have other
    classes, other labels, or no labelled photo in common.
    """
    runs = (run_a, run_b)
    first, second = (pd.Index(run.oof["path"]) for run in runs)
    paths = first[first.isin(second)]
    if not len(paths):
        raise DataError(
            f"{run_a.path} and {run_b.path} have no photo in common, the first has {first[0]!r}, the second "
            f"{second[0]!r}; expected runs on the same data."
        )
    rows = first.get_indexer(paths), second.get_indexer(paths)
    _check_labels(runs, rows, paths)
    true, persons = run_a.heads.joint(run_a.true[rows[0]]), join_groups(runs, paths)
    if (true == UNKNOWN).all():
        raise DataError(f"{run_a.path} and {run_b.path} have no photo in common of which all labels are known.")
    answers, names = [], []
    for run, kept, rule in zip(runs, rows, decisions, strict=True):
        answers.append(run.heads.joint(answers_of(run, rule)[kept]))
        names.append(f"{run.path}" + (f" ({rule})" if rule not in ("", PLAIN) else ""))
    notes = dict.fromkeys(f"{run.path}: {text}" for run in runs for text in run.score(draws=0).notes)
    classes = counted_classes(true, *answers, whole=run_a.heads.joint(run_a.y))
    (difference,) = score_differences([(one, true, classes) for one in answers], persons, draws, seed)
    return Expectation(difference, (names[0], names[1]), len(paths), tuple(notes))


def _check_labels(runs: Sequence[RunDirectory], rows: Sequence[np.ndarray], paths: pd.Index) -> None:
    """Raise DataError if two runs have other classes, or other labels in the rows that they share."""
    heads, other = ([run.heads[name] for name in run.heads.classified] for run in runs)
    if [(head.name, head.classes) for head in heads] != [(head.name, head.classes) for head in other]:
        raise DataError(f"{runs[0].path} has {Heads(heads)}, {runs[1].path} {Heads(other)}; expected the same.")
    # heads that are distributions over a number are not scored
    a, b = (run.true[kept][:, run.heads.joined] for run, kept in zip(runs, rows, strict=True))
    if (a != b).any():
        row, column = np.argwhere(a != b)[0]
        found = " and ".join(repr(heads[column].decode(int(y[row, column]))) for y in (a, b))
        raise DataError(
            f"{runs[0].path} and {runs[1].path} differ in the label of {paths[row]}: {heads[column].name} {found}; "
            "expected runs with the same labels and fixes."
        )


def expect_files(
    a: str | Path,
    b: str | Path,
    runs: tuple[str | Path, str | Path] | None = None,
    ledger: str | Path | None = None,
) -> Expectation:
    """The expected change of the score from submission `a` to `b`, by OOF of `runs`, or of those in the ledger.

    The decision rules are those in the ledger, if the files are in it. Without `runs`, an error becomes the `reason` of
    the expectation; with `runs` it is raised.
    """
    entries = {entry.sha256: entry for entry in read_ledger(ledger)} if ledger is not None else {}
    known = [entries.get(digest(file)) for file in (a, b)]
    first, second = ((entry.decision if entry else "") or PLAIN for entry in known)
    if runs is not None:
        return expected_change(RunDirectory.load(runs[0]), RunDirectory.load(runs[1]), (first, second))
    try:
        opened = [RunDirectory.load(_run_of(*each, ledger)) for each in zip((a, b), known, strict=True)]
        expected = expected_change(opened[0], opened[1], (first, second))
    except FastmaskError as error:
        return Expectation(reason=str(error))
    notes = dict.fromkeys(expected.notes)
    for run, entry in zip(opened, known, strict=True):
        before = entry.oof_macro_f1 if entry else None
        if entry and before is not None and abs(score_of(run, entry.decision or PLAIN, 0).macro_f1 - before) > _ROUNDED:
            notes[f"{run.path} has been retrained since."] = None
    return replace(expected, notes=tuple(notes))


def _run_of(file: str | Path, entry: Entry | None, ledger: str | Path | None) -> Path:
    """The run of a submission: next to the ledger, which may have moved, or else at its recorded path."""
    if entry is None or not entry.run or ledger is None:
        where = "there is no ledger" if ledger is None else f"{ledger} has no run for it"
        raise UsageError(f"the run of {file} is unknown, {where}; name the two runs by --runs.")
    moved = Path(ledger).parent / Path(entry.run).name
    return moved if moved.is_dir() else Path(entry.run)
