"""Comparison: results on the same photos and labels, and which differences are beyond noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.paths import match_photos
from fastmask.evaluation.cost import COST_CELLS, Cost, cost_of
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.inference.answers import Answers, answers_of_run, read_answers
from fastmask.run.directory import RunDirectory
from fastmask.run.overlap import describe_photos, describe_relabelled, join_groups, shared_photos
from fastmask.scoring import (
    DRAWS,
    Difference,
    Plain,
    Score,
    TargetDraws,
    absent_classes,
    draw_heads,
    interval_columns,
    plain,
    scored_classes,
)
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_csv
from fastmask.system.text import shorten_start, table_lines

# fewer draws give arbitrary ends of intervals, more take too long
LEAST_DRAWS, MOST_DRAWS = 100, 100_000
# the significance level, of a single test and of all together
_LEVEL = 0.05
# of a table for a terminal: its width, the characters of a name, the joint classes
_WIDTH, _NAME, _SHOWN = 100, 28, 30


@dataclass(frozen=True)
class Against:
    """How much better a result is than the baseline.

    `p` is two-sided, from the draws of the paired bootstrap; `p_holm` is adjusted for all `comparisons` with the
    baseline (Holm 1979).
    """

    difference: Difference
    p: float
    p_holm: float
    comparisons: int

    @property
    def verdict(self) -> str:
        """Whether the difference is beyond noise, alone and among all comparisons."""
        if self.difference.is_noise:
            return "within noise"
        if self.p_holm < _LEVEL:
            return "beyond noise"
        # the interval and p are from the same draws, but are rounded differently
        return f"beyond noise alone, not among {self.comparisons}" if self.comparisons > 1 else "at the edge of noise"

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.difference.to_plain(), "p": self.p, "p_holm": self.p_holm, "verdict": self.verdict}


@dataclass(frozen=True)
class Result(Plain):
    """One result: its scores on the shared photos, F1 per joint class, its cost and caveats.

    `against` is None for the baseline, `cost` for a file of answers or an ensemble, which was not trained.
    """

    name: str
    path: Path
    joint: Score
    heads: dict[str, Score]
    classes: dict[str, float]
    against: Against | None = None
    cost: Cost | None = None
    caveats: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """Several results, the first of which is the baseline.

    `support` counts the photos of each joint class, `differences[a][b]` is how much better `b` is than `a`.

    >>> comparison = fm.compare([run, other], names=["first", "second"], draws=100)
    >>> comparison.photos, list(comparison.frame["name"])
    (84, ['first', 'second'])
    >>> comparison.to_csv("comparison.csv")
    """

    results: Sequence[Result]
    photos: int
    support: dict[str, int]
    differences: dict[str, dict[str, Difference | None]]
    notes: Sequence[str] = ()

    @property
    def verdicts(self) -> list[str]:
        """One sentence per comparison with the baseline."""
        baseline, *others = self.results
        return [_sentence(other, baseline) for other in others]

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = _WIDTH) -> str:
        """The results as tables that fit into `width` characters, results numbered as given."""
        caveats = [f"{i} {r.name}: {text}" for i, r in enumerate(self.results, 1) for text in r.caveats]
        costs = [[f"{i}", *r.cost.cells] for i, r in enumerate(self.results, 1) if r.cost is not None]
        blocks = [
            *(self._scores(), self._against(), table_lines([["", *COST_CELLS], *costs])),
            *(*self._classes(width), [*self.notes, *caveats]),
        ]
        return "\n\n".join("\n".join(lines) for lines in blocks if lines)

    def _named(self) -> list[tuple[str, Result]]:
        return [(f"{i} {shorten_start(result.name, _NAME)}", result) for i, result in enumerate(self.results, 1)]

    def _scores(self) -> list[str]:
        rows = [[name, *result.joint.texts] for name, result in self._named()]
        return table_lines([["", "macro-F1", "accuracy"], *rows])

    def _against(self) -> list[str]:
        against = [(name, r.against) for name, r in self._named() if r.against is not None]
        rows = [
            [name, a.difference.cell, f"{a.difference.accuracy:+.4f}", f"{a.p_holm:.3f}", a.verdict]
            for name, a in against
        ]
        table = [["less 1", "macro-F1", "accuracy", "p (Holm)", ""], *rows]
        return table_lines(table if len(rows) > 1 else [[*row[:3], row[4]] for row in table])

    def _classes(self, width: int) -> list[list[str]]:
        """F1 by head and joint class, one column per result; as many tables as are needed."""
        common = sorted(self.support, key=lambda name: -self.support[name])[:_SHOWN]
        shown = [name for name in self.support if name in common]
        heads = [[name, "", *(f"{r.heads[name].macro_f1:.4f}" for r in self.results)] for name in self.results[0].heads]
        rows = [[n, str(self.support[n]), *(f"{r.classes[n]:.4f}" for r in self.results)] for n in shown]
        rest = [f"and {len(self.support) - len(shown)} rarer classes"] if len(shown) < len(self.support) else []
        table = [["F1", "photos", *(str(i) for i in range(1, 1 + len(self.results)))], *heads, *rows]
        room = width - max(len(row[0]) for row in table) - 10
        step = max(1, room // 8)
        cuts = ([[*row[:2], *row[i : i + step]] for row in table] for i in range(2, 2 + len(self.results), step))
        return [[*table_lines(cut), *rest] for cut in cuts]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per result, one column per figure; empty if it is unknown."""
        return pd.DataFrame([_row(result) for result in self.results])

    def to_csv(self, out: str | Path) -> None:
        """Write `frame`."""
        write_csv(out, self.frame)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "baseline": self.results[0].name,
            "photos": self.photos,
            "support": self.support,
            **plain({"results": self.results, "differences": self.differences}),
            "verdicts": self.verdicts,
            "notes": list(self.notes),
        }

    def plot(self, out: str | Path) -> None:
        """Write a PNG of each macro-F1 and each difference from the baseline, with intervals."""
        from fastmask.evaluation.plots import plot_comparison

        plot_comparison(self.results, out)


def _sentence(result: Result, baseline: Result) -> str:
    assert result.against is not None
    difference, verdict = result.against.difference, result.against.verdict
    low, high = difference.macro_f1_interval
    if difference.macro_f1 < 0:
        low, high = -high, -low
    how = "better" if difference.macro_f1 >= 0 else "worse"
    by = f"{abs(difference.macro_f1):.4f}, 95 % {low:.4f} … {high:.4f}"
    return f"{result.name} is {how} than {baseline.name} by {by}: {verdict}."


def _row(result: Result) -> dict[str, Any]:
    """A result as a row of a table."""
    row: dict[str, Any] = {"name": result.name, "path": str(result.path), "photos": result.joint.n}
    for prefix, score in (("", result.joint), *((f"{name}_", score) for name, score in result.heads.items())):
        row |= interval_columns(f"{prefix}macro_f1", score.macro_f1, score.macro_f1_interval)
        row |= interval_columns(f"{prefix}accuracy", score.accuracy, score.accuracy_interval)
    against = result.against
    if against is not None:
        row |= interval_columns("difference", against.difference.macro_f1, against.difference.macro_f1_interval)
        row |= {"accuracy_difference": against.difference.accuracy, "p": against.p, "p_holm": against.p_holm}
        row["verdict"] = against.verdict
    if result.cost is not None:
        row |= {**vars(result.cost), "epochs": result.cost.epochs and result.cost.epochs[1]}
    row |= {f"f1 {name}": value for name, value in result.classes.items()}
    return {**row, "caveats": " ".join(result.caveats)}


def compare(
    results: Sequence[RunDirectory | str | Path], names: Sequence[str] | None = None, draws: int = DRAWS
) -> Comparison:
    """Score results on their shared photos, by the labels of the first run; the first result is the baseline.

    A result is a run, or a CSV of answers to the run's photos: see `read_answers`. `names` default to the names of
    their directories or files. Intervals are from `draws` of persons; differences are paired, on the same draws. The
    macro-F1 is over the classes of the first run's table. Heads that are not in all results are left out. Raises
    UsageError if none is a run, DataError if they share no head or no labelled photo.

    >>> comparison = fm.compare([run, other], draws=100)
    >>> len(comparison.results), comparison.results[0].joint.n
    (2, 84)
    >>> sentence = comparison.verdicts[0]
    """
    if len(results) < 2:
        raise UsageError(f"compare takes two or more results; found {len(results)}.")
    if not LEAST_DRAWS <= draws <= MOST_DRAWS:
        raise UsageError(f"--draws is {draws}; expected {LEAST_DRAWS} to {MOST_DRAWS}.")
    opened = [_open(result) for result in results]
    names = _names([one.path if isinstance(one, RunDirectory) else one for one in opened], names)
    judge = next((one for one in opened if isinstance(one, RunDirectory)), None)
    if judge is None:
        raise UsageError("None of these is a run, so there are no labels to score by; name at least one run directory.")
    sides = [
        answers_of_run(one, name) if isinstance(one, RunDirectory) else _read_file(one, judge, name)
        for one, name in zip(opened, names, strict=True)
    ]
    return _compare(sides, judge, draws)


def _read_file(file: Path, judge: RunDirectory, name: str) -> Answers:
    """The answers of a file, with the photos called as in the judging run."""
    answers, paths = read_answers(file, judge.heads, name), judge.oof["path"].tolist()
    found = match_photos(answers.photos.tolist(), paths)
    names = [found[photo][0] if len(found[photo]) == 1 else photo for photo in answers.photos]
    return answers if len(set(names)) < len(names) else replace(answers, photos=pd.Index(names))


def _open(result: RunDirectory | str | Path) -> RunDirectory | Path:
    if isinstance(result, RunDirectory) or Path(result).is_dir():
        return RunDirectory.of(result)
    if not Path(result).is_file():
        raise UsageError(f"{result} does not exist; expected a run directory, or a CSV of answers.")
    return Path(result)


def _names(paths: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    """The names of results: as given, else those of directories and files if they differ, else their paths."""
    twice = next((path for i, path in enumerate(paths) if path.absolute() in [p.absolute() for p in paths[:i]]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; name each result once.")
    if given is not None:
        if len(given) != len(paths) or len(set(given)) < len(given) or not all(given):
            raise UsageError(f"--names {','.join(given)}: expected {len(paths)} different names, one per result.")
        return list(given)
    short = [path.stem if path.is_file() else path.absolute().name for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def _compare(sides: Sequence[Answers], judge: RunDirectory, draws: int) -> Comparison:
    first = next(side for side in sides if side.run is judge)
    heads, notes = _shared_heads(sides, judge)
    photos = shared_photos(first.photos, [(side.path, side.photos) for side in sides])
    others = [side.run for side in sides if side.run is not None and side.run is not judge]
    y, persons = first.encode_labels(heads, photos), join_groups([judge, *others], photos)
    whole = judge.y[:, [judge.heads.position(name) for name in heads.names]]
    true = heads.joint(y)
    if (true == UNKNOWN).all():
        raise DataError(f"None of the {len(photos)} shared photos has a label of all heads in {judge.path}.")
    predicted = [side.encode(heads, photos) for side in sides]
    counted = scored_classes(heads, predicted, y, whole)
    scores = draw_heads(heads, predicted, y, counted, persons, draws)
    classes = {heads.joint_name(number): number for number in counted[JOINT]}
    more = describe_photos({side.name: len(side.photos) for side in sides}, len(photos))
    if more:
        notes.insert(0, more)
    notes += _relabelled(sides, first, photos, heads)
    unknown = int((true == UNKNOWN).sum())
    if unknown:
        notes.append(f"{unknown} of {len(true)} photos lack a label and are left out.")
    notes += absent_classes(heads, counted, y)
    if len(sides) > 2:
        text = "comparisons with one baseline, one in twenty looks beyond noise by chance: p (Holm) allows for that."
        notes.append(f"Of {len(sides) - 1} {text}")
    return Comparison(
        _results(sides, scores, list(classes)),
        len(photos),
        {name: int((true == number).sum()) for name, number in classes.items()},
        _differences([side.name for side in sides], [each[JOINT] for each in scores]),
        notes,
    )


def _results(
    sides: Sequence[Answers], scores: Sequence[Mapping[str, TargetDraws]], classes: Sequence[str]
) -> list[Result]:
    against = [None, *_against([each[JOINT] for each in scores])]
    return [
        Result(
            side.name,
            side.path,
            each[JOINT].score(),
            {name: one.score() for name, one in each.items() if name != JOINT},
            dict(zip(classes, each[JOINT].each.tolist(), strict=True)),
            to_baseline,
            None if side.run is None or side.run.is_ensemble else cost_of(side.run),
            side.caveats,
        )
        for side, each, to_baseline in zip(sides, scores, against, strict=True)
    ]


def _shared_heads(sides: Sequence[Answers], judge: RunDirectory) -> tuple[Heads, list[str]]:
    """The heads that all results have with the same classes, as in the judging run, and a note on those left out."""
    own = {name: frozenset(judge.heads[name].classes) for name in judge.heads.classified}
    shared = [n for n, classes in own.items() if all(side.classes.get(n) == classes for side in sides)]
    if not shared:
        having = "; ".join(f"{side.name}: {', '.join(side.classes)}" for side in sides)
        raise DataError(f"These results have no head with the same classes in common ({having}).")
    lost = [name for name in dict.fromkeys(name for side in sides for name in side.classes) if name not in shared]
    note = f"Compared on {', '.join(shared)} alone: not all results have {', '.join(lost)} with the same classes."
    return Heads([judge.heads[name] for name in shared]), [note] if lost else []


def _relabelled(sides: Sequence[Answers], first: Answers, photos: pd.Index, heads: Heads) -> list[str]:
    own = first.encode_labels(heads, photos)
    each = [(side.name, side.encode_labels(heads, photos)) for side in sides if side.labels]
    notes = (describe_relabelled(name, first.name, heads.names, theirs, own) for name, theirs in each)
    return [note for note in notes if note]


def _against(joints: Sequence[TargetDraws]) -> list[Against]:
    """Compare each later result with the first."""
    baseline, *others = joints
    each = [two_sided_p(other.draws_minus(baseline)) for other in others]
    return [
        Against(other.minus(baseline), p, p_holm, len(others))
        for other, p, p_holm in zip(others, each, holm(each), strict=True)
    ]


def two_sided_p(differences: np.ndarray) -> float:
    """The two-sided p-value of a bootstrap's (draws,) differences, for the hypothesis that the true difference is 0.

    It is twice the smaller share of draws on either side of 0, both shares including the observed value. So it is never
    0, and is under 0.05 if the 95 % interval excludes 0.
    """
    least = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (least + 1) / (len(differences) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons: the family-wise error is at most 0.05, even for dependent comparisons.

    Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate([(len(p) - rank) * p[i] for rank, i in enumerate(order)]).clip(max=1)
    return [float(stepped[rank]) for rank in np.argsort(order)]


def _differences(names: Sequence[str], joints: Sequence[TargetDraws]) -> dict[str, dict[str, Difference | None]]:
    found: dict[str, dict[str, Difference | None]] = {a: dict.fromkeys(names) for a in names}
    for (a, one), (b, other) in combinations(zip(names, joints, strict=True), 2):
        found[a][b], found[b][a] = other.minus(one), one.minus(other)
    return found
