"""Trials: the ranked trials of a search, and the cross-fitted score of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastmask.config import Config, Kind
from fastmask.data.folds import person_parts
from fastmask.decision.crossfit import choose_by_others
from fastmask.run.directory import RunDirectory
from fastmask.scoring import (
    DRAWS,
    Difference,
    Plain,
    Score,
    counted_classes,
    draw_scores,
    format_interval,
    interval_columns,
    plain,
)
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import atomic_write, write_csv, write_yaml
from fastmask.system.terminal import quote
from fastmask.system.text import shorten

COMPLETE, PRUNED, REFUSED, FAILED, RUNNING = "complete", "pruned", "refused", "failed", "running"
TABLE, BEST, HISTORY, IMPORTANCE = "trials.csv", "best.yaml", "history.png", "importance.png"
# in a table for the terminal: the number of trials, the characters of a value
_SHOWN, _MOST_SHOWN = 10, 25


@dataclass(frozen=True)
class TrialResult:
    """A trial: its state, its settings of the space, its run, its OOF macro-F1 with its interval.

    `fold_macro_f1` is the mean of its first `folds` folds, each at its own best epoch; it decides about pruning.
    """

    number: int
    state: str
    settings: Mapping[str, Any]
    path: Path
    macro_f1: float | None = None
    interval: tuple[float, float] | None = None
    folds: int = 0
    fold_macro_f1: float | None = None
    seconds: float | None = None
    why: str = ""

    @property
    def text(self) -> str:
        """Its settings as text."""
        texts = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in self.settings.items()}
        return ", ".join(f"{name} {shorten(text, _MOST_SHOWN)}" for name, text in texts.items())

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON and CSV."""
        return {
            "number": self.number,
            "state": self.state,
            **interval_columns("macro_f1", self.macro_f1, self.interval),
            "folds": self.folds,
            "fold_macro_f1": self.fold_macro_f1,
            "seconds": self.seconds,
            **self.settings,
            "why": self.why,
        }


@dataclass(frozen=True)
class Selection(Plain):
    """The score of the `best` trial, and the `honest` score, with each person's trial chosen on other persons."""

    best: Score
    honest: Score
    less: Difference


@dataclass(frozen=True)
class Tuned:
    """The trials of a search in `out`, the `base` settings of all, and the cross-fitted score of the best: `judged`.

    >>> small = dict(arch="test_resnet", pretrained=False, resize=(32, 24), epochs=1, folds=2)
    >>> tuned = fm.tune(table, {"lr": {"low": 1e-3, "high": 1e-2}}, out="search", trials=1, **small)
    >>> tuned.best.number, 1e-3 <= tuned.settings["lr"] <= 1e-2
    (0, True)
    """

    out: Path
    trials: list[TrialResult]
    base: Mapping[str, Any]
    judged: Selection | None = None
    importance: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> list[TrialResult]:
        """The complete trials, the best first; among equal ones, the earlier first."""
        scored = [(-one.macro_f1, one.number, one) for one in self.trials if one.macro_f1 is not None]
        return [one for *_, one in sorted(scored)]

    @property
    def best(self) -> TrialResult | None:
        """The trial with the highest OOF macro-F1, if any is complete."""
        return next(iter(self.ranked), None)

    @property
    def run(self) -> RunDirectory:
        """The best trial's run; raises UsageError if no trial is complete."""
        if self.best is None:
            raise UsageError(f"No trial of {self.out} is complete yet.")
        return RunDirectory.load(self.best.path)

    @property
    def settings(self) -> dict[str, Any]:
        """The best trial's settings for `fit --config`, without those of the machine and of tracking.

        They are marked as `tuned`, as those of each trial, since a run with them repeats a score that chose them.
        """
        base = {name: value for name, value in self.base.items() if name not in Config.of_kind(Kind.MACHINE)}
        return {**base, **(self.best.settings if self.best else {}), "tuned": True}

    def __str__(self) -> str:
        ranked = self.ranked
        lines = [f"{'trial':>5}  {'macro-F1':24}  settings"]
        lines += [
            f"{one.number:5}  {format_interval(one.macro_f1 or 0.0, one.interval):24}  {one.text}"
            for one in ranked[:_SHOWN]
        ]
        lines += [f"and {len(ranked) - _SHOWN} more in {self.out / TABLE}"] if len(ranked) > _SHOWN else []
        counts = {state: sum(one.state == state for one in self.trials) for state in (PRUNED, REFUSED, FAILED, RUNNING)}
        others = "".join(f", {n} {state}" for state, n in counts.items() if n)
        lines += ["", f"{len(self.trials)} trials: {len(ranked)} complete{others}."]
        if self.judged is not None:
            lines += [
                f"The best of {len(ranked)} is chosen by that same score, which is therefore optimistic. Each photo "
                "scored by the trial that other persons choose:",
                f"macro-F1 {self.judged.honest.texts[0]}, {self.judged.less.cell} against the best.",
            ]
        if self.importance:
            lines.append("Importance: " + ", ".join(f"{name} {value:.2f}" for name, value in self.importance.items()))
        return "\n".join([*lines, *self.notes])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "best": None if self.best is None else self.best.number,
            "settings": self.settings if self.best else None,
            "judged": plain(self.judged),
            "importance": dict(self.importance),
            "trials": [{**one.to_plain(), "path": str(one.path)} for one in self.trials],
            "notes": self.notes,
        }

    @property
    def next(self) -> str:
        """The command that trains with the best settings."""
        return f"fastmask fit --config {quote(str(self.out / BEST))} --out runs/{quote(self.out.absolute().name)}"

    def write(self) -> None:
        """Write the table of the trials, and the best settings."""
        rows = [
            {name: str(v) if isinstance(v, list | dict) else v for name, v in one.to_plain().items()}
            for one in self.trials
        ]
        frame = pd.DataFrame(rows)
        write_csv(self.out / TABLE, frame[[*frame.columns.drop("why"), "why"]])
        if self.best is not None:
            write_yaml(self.out / BEST, self.settings)

    def plot_history(self) -> Figure:
        """The score of each trial with its interval, the mean of the folds of pruned ones, and the best so far."""
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        done = sorted(self.ranked, key=lambda one: one.number)
        for one in done:
            value = one.macro_f1 or 0.0
            low, high = one.interval or (value, value)
            axes.errorbar(one.number, value, yerr=[[value - low], [high - value]], fmt="o", capsize=3, color="C0")
        axes.step(
            [one.number for one in done],
            np.maximum.accumulate([one.macro_f1 or 0.0 for one in done]),
            where="post",
            color="0.6",
            label="best so far",
        )
        pruned = [(one.number, one.fold_macro_f1) for one in self.trials if one.state == PRUNED and one.folds]
        if pruned:
            axes.plot(*zip(*pruned, strict=True), "x", color="C1", label="pruned, mean of its folds")
        axes.set(xlabel="trial", ylabel="OOF macro-F1, 95 % interval")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # outside, above the axes
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
        return figure

    def plot_importance(self) -> Figure:
        """A bar per setting: the share of the variance between trials that it explains."""
        names = list(self.importance)
        figure = Figure(figsize=(7, 1.2 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(names)), list(self.importance.values()), color="C0")
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel=f"importance (fANOVA) over {len(self.ranked)} trials", xlim=(0, 1))
        return figure

    def draw(self) -> list[Path]:
        """Write the plots for which there are enough trials."""
        plots = {HISTORY: (self.ranked, self.plot_history), IMPORTANCE: (self.importance, self.plot_importance)}
        files = []
        for name, (enough, plot) in plots.items():
            if enough:
                with atomic_write(self.out / name) as partial:
                    plot().savefig(partial, format="png", dpi=110)
                files.append(self.out / name)
        return files


def judge(trials: Sequence[TrialResult], draws: int = DRAWS) -> Selection | None:
    """Cross-fit the choice of the best complete trial, by OOF predictions; None for fewer than two trials.

    Only the choice is cross-fitted, not TPE's proposals, which used the scores of all photos. Raises DataError if the
    trials' runs are missing, or have different photos or folds.
    """
    if len(trials) < 2:
        return None
    try:
        runs = [RunDirectory.load(one.path) for one in trials]
        oofs = [run.oof for run in runs]
    except UsageError as error:
        raise DataError(str(error)) from error
    first = oofs[0]
    if any(not oof[["path", "fold", "true"]].equals(first[["path", "fold", "true"]]) for oof in oofs):
        raise DataError("The trials are not of the same photos, labels and folds.")
    true, persons = first["true"].to_numpy(), runs[0].groups
    if len(set(persons)) < 2:
        raise DataError("There is only one person; expected two or more, to choose by some persons for others.")
    answers = np.stack([oof["predicted"].to_numpy() for oof in oofs])
    classes = counted_classes(true, *answers, whole=runs[0].heads.joint(runs[0].y))
    chosen = choose_by_others(answers, true, person_parts(first["fold"].to_numpy(), persons), classes)
    best, honest = draw_scores([(answers[0], true, classes), (chosen, true, classes)], persons, draws)
    return Selection(best.score(), honest.score(), honest.minus(best))
