"""Tuned: what a search has come to, a row a trial, and what it is worth to choose the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastmask.data.folds import whole_parts
from fastmask.run.directory import RunDirectory
from fastmask.scoring import DRAWS, Difference, Score, draw_scores, known_classes, score, with_ends, with_interval
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import replacing, write_csv, write_yaml
from fastmask.system.terminal import quote
from fastmask.system.text import shorten

COMPLETE, PRUNED, REFUSED, FAILED, RUNNING = "complete", "pruned", "refused", "failed", "running"
TABLE, BEST, HISTORY, IMPORTANCE = "trials.csv", "best.yaml", "history.png", "importance.png"
# settings of this machine that another run is not to inherit
_ELSEWHERE = ("workers", "device", "cache", "cache_dir", "save_every", "tensorboard", "wandb", "mlflow")
# trials in a table for people, and characters of a setting's value there
_SHOWN = 10


@dataclass(frozen=True)
class Tried:
    """A trial: what became of it, the settings that it tried, its run, its OOF macro-F1 with its interval.

    `fold_macro_f1` is the mean of its first `folds` folds, each in its own best epoch, by which trials are pruned.
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
    def words(self) -> str:
        """Its settings in words."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.settings.items())

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON and CSV."""
        ends = with_ends("macro_f1", self.macro_f1, self.interval)
        return {
            "number": self.number,
            "state": self.state,
            **ends,
            "folds": self.folds,
            "fold_macro_f1": self.fold_macro_f1,
            "seconds": self.seconds,
            **self.settings,
            "why": self.why,
        }


def shown(value: Any) -> str:
    """A setting's value as a table shows it."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shorten(text, 25)


@dataclass(frozen=True)
class Judged:
    """The `best` trial's score, and the `honest` one, where other persons' photos choose each photo's trial."""

    best: Score
    honest: Score
    less: Difference

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: one.to_plain() for name, one in vars(self).items()}


@dataclass(frozen=True)
class Tuned:
    """The trials of a search below `out`, the `base` settings of all, and how the best one is `judged`.

    `notes` say what is missing.
    """

    out: Path
    trials: list[Tried]
    base: Mapping[str, Any]
    judged: Judged | None = None
    importance: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> list[Tried]:
        """The complete trials, the best first; of equal ones the earlier."""
        scored = [(one.macro_f1, one) for one in self.trials if one.macro_f1 is not None]
        return [one for value, one in sorted(scored, key=lambda pair: (-pair[0], pair[1].number))]

    @property
    def best(self) -> Tried | None:
        """The trial of the highest OOF macro-F1, if any is complete."""
        return next(iter(self.ranked), None)

    @property
    def run(self) -> RunDirectory:
        """The best trial's run; raises UsageError where no trial is complete."""
        if self.best is None:
            raise UsageError(f"No trial of {self.out} is complete yet.")
        return RunDirectory.load(self.best.path)

    @property
    def settings(self) -> dict[str, Any]:
        """The best trial's settings, as `fit --config` takes them; where it was computed and followed is no part."""
        base = {name: value for name, value in self.base.items() if name not in _ELSEWHERE}
        return {**base, **(self.best.settings if self.best else {})}

    def __str__(self) -> str:
        return "\n".join([*self._rows(), "", *self._words(), *self.notes])

    def _rows(self) -> list[str]:
        ranked = self.ranked
        lines = [f"{'trial':>5}  {'macro-F1':24}  settings"]
        for one in ranked[:_SHOWN]:
            cells = with_interval(one.macro_f1 or 0.0, one.interval)
            lines.append(f"{one.number:5}  {cells:24}  {one.words}")
        if len(ranked) > _SHOWN:
            lines.append(f"and {len(ranked) - _SHOWN} more in {self.out / TABLE}")
        return lines

    def _words(self) -> list[str]:
        counts = {state: sum(one.state == state for one in self.trials) for state in (PRUNED, REFUSED, FAILED, RUNNING)}
        others = "".join(f", {n} {state}" for state, n in counts.items() if n)
        said = [f"{len(self.trials)} trials: {len(self.ranked)} complete{others}."]
        if self.judged is not None:
            said += [
                f"The best of {len(self.ranked)} is chosen by that same score, which flatters. Each photo scored by "
                "the trial that other persons choose:",
                f"macro-F1 {with_interval(self.judged.honest.macro_f1, self.judged.honest.macro_f1_interval)}, "
                f"{self.judged.less.cell} against the best.",
            ]
        if self.importance:
            said.append("Importance: " + ", ".join(f"{name} {value:.2f}" for name, value in self.importance.items()))
        return said

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "best": None if self.best is None else self.best.number,
            "settings": self.settings if self.best else None,
            "judged": None if self.judged is None else self.judged.to_plain(),
            "importance": dict(self.importance),
            "trials": [{**one.to_plain(), "path": str(one.path)} for one in self.trials],
            "notes": self.notes,
        }

    @property
    def next(self) -> str:
        """What to type with what is best."""
        return f"fastmask fit --config {quote(str(self.out / BEST))} --out runs/{quote(self.out.absolute().name)}"

    def write(self) -> None:
        """Write the table of the trials, and the best one's settings."""
        plain = [one.to_plain() for one in self.trials]
        for row, one in zip(plain, self.trials, strict=True):
            row.update({name: str(v) for name, v in one.settings.items() if isinstance(v, list | dict)})
        # what is told last stands last
        frame = pd.DataFrame(plain)
        write_csv(self.out / TABLE, frame[[name for name in frame if name != "why"] + ["why"]])
        if self.best is not None:
            write_yaml(self.out / BEST, self.settings)

    def plot_history(self) -> Figure:
        """The score of each trial with its interval, pruned ones by the mean of their folds, and the best so far."""
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
        # above, where no trial is
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
        return figure

    def plot_importance(self) -> Figure:
        """How much of the difference between the trials each setting explains."""
        names = list(self.importance)
        figure = Figure(figsize=(7, 1.2 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(names)), list(self.importance.values()), color="C0")
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel=f"importance (fANOVA) over {len(self.ranked)} trials", xlim=(0, 1))
        return figure

    def draw(self) -> list[Path]:
        """Write the pictures that there is enough for."""
        drawn = []
        for name, there, plot in (
            (HISTORY, self.ranked, self.plot_history),
            (IMPORTANCE, self.importance, self.plot_importance),
        ):
            if there:
                with replacing(self.out / name) as beside:
                    plot().savefig(beside, format="png", dpi=110)
                drawn.append(self.out / name)
        return drawn


def judge(trials: Sequence[Tried], draws: int = DRAWS) -> Judged | None:
    """What choosing the best of complete trials is worth, by their OOF predictions; None for fewer than two.

    What TPE proposed after it had seen the scores of all photos stays as it is: only the choice is made anew. Raises
    DataError where the trials' runs are gone, or not of the same photos and folds.
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
    true, persons = first["true"].to_numpy(), runs[0].persons
    if len(set(persons)) < 2:
        raise DataError("There is one person only, so none can choose for others.")
    classes = known_classes(runs[0].heads.joint(runs[0].y))
    answers = np.stack([oof["predicted"].to_numpy() for oof in oofs])
    chosen = cross_chosen(answers, true, whole_parts(first["fold"].to_numpy(), persons), classes)
    best, honest = draw_scores([(answers[0], true, classes), (chosen, true, classes)], persons, draws)
    return Judged(best.score(), honest.score(), honest.less(best))


def cross_chosen(answers: np.ndarray, true: np.ndarray, parts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """(N,) the answers of the trial that is best on all other parts, part by part, of (trials, N) answers."""
    chosen = np.empty_like(true)
    for part in np.unique(parts):
        here = parts == part
        scores = [score(one[~here], true[~here], classes, draws=0).macro_f1 for one in answers]
        chosen[here] = answers[int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0][here]
    return chosen
