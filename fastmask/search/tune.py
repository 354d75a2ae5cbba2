"""Tune: a search for the settings of the highest out-of-fold (OOF) macro-F1, by Optuna.

A trial is a whole cross-validation, a run below the search's folder. A search that was stopped, by whatever, goes on
with the trial that was being trained; several processes on one machine may share one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from fastmask.config import Config, make_config
from fastmask.data.table import Table
from fastmask.inference.teacher import open_teacher
from fastmask.run.directory import CONFIG, STATE, RunDirectory, resumed
from fastmask.run.environment import name_of
from fastmask.run.oof import best_epochs, finish
from fastmask.scoring import LOSS
from fastmask.search.result import COMPLETE, FAILED, IMPORTANCE, PRUNED, REFUSED, RUNNING, Tuned, judge
from fastmask.search.settings import Search, check_new_search, digest_of, gone_on_with
from fastmask.search.space import Space, parse_space, read_space
from fastmask.search.study import Study, check_optuna, open_study, quiet
from fastmask.system.errors import DataError, FastmaskError, UntrainableError, UsageError
from fastmask.system.lock import held
from fastmask.training.crossval import create, reopen, saying_how_to_go_on, taught, threads, train
from fastmask.training.plan import LossFunc, Plan, prepare
from fastmask.training.progress.terminal import Log, view_on
from fastmask.training.rehearsal import fitted

if TYPE_CHECKING:
    from optuna.trial import Trial

# refused trials after which a search in which nothing else happened makes no sense
_MOST_REFUSED = 5


def tune(
    table: Table,
    space: Space | Mapping[str, Any] | str | Path | None = None,
    config: Config | None = None,
    *,
    out: str | Path,
    trials: int | None = None,
    hours: float | None = None,
    pruner: str | None = None,
    keep: int | None = None,
    resume: bool = False,
    loss_func: LossFunc | None = None,
    log: TextIO | None = None,
    **settings: Any,
) -> Tuned:
    """Search a space of settings for the highest OOF macro-F1, each trial a run in the folder `out`.

    `space` is a mapping as `parse_space` takes it, or a YAML file; `settings` are those of `Config` that all trials
    have, over `config`. `trials` is how many there are to be in all, 30 where nobody says, those that were pruned or
    refused included; with `hours` none begins that would not end in time, by the median of those before. After each
    fold the `pruner` ("median" or "none") may end a trial. The checkpoints of the best `keep` trials stay.

    `resume` goes on with a search that was stopped, with the trial that was being trained from its last state, or joins
    one that another process is at. One process proposes the same trials whether it was stopped or not.
    """
    check_optuna()
    start, view = time.monotonic(), view_on(log)
    if hours is not None and not hours > 0:
        raise UsageError(f"--hours is {hours:g}; expected more than 0.")
    given = make_config(config.model_dump(exclude_unset=True) if config else {}, settings)
    now = Search(
        Path(out),
        space_of(space),
        given.model_dump(exclude_unset=True),
        data=digest_of(table),
        loss=name_of(loss_func),
    )
    search = gone_on_with(now.out, now, given, trials, keep, pruner) if resume else begun(now, trials, keep, pruner)
    with quiet():
        worker = Worker(open_study(search), table, loss_func, view)
        worker.work(None if hours is None else start + hours * 3600)
        return worker.conclude()


def space_of(space: Space | Mapping[str, Any] | str | Path | None) -> Space:
    """A space, of whatever describes it; an empty one of nothing."""
    if space is None or isinstance(space, Space):
        return space or Space(())
    return read_space(space) if isinstance(space, str | Path) else parse_space(space)


def begun(search: Search, trials: int | None, keep: int | None, pruner: str | None) -> Search:
    """The search, in a folder of its own; raises UsageError where it cannot be, or the folder is in use."""
    asked = {"trials": trials, "keep": keep, "pruner": pruner}
    told: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    search = replace(search, **told)
    if not search.space.dimensions:
        raise UsageError("A search needs a space: --space FILE, a YAML of settings and the values that each may take.")
    search.check()
    check_new_search(search.out)
    search.write()
    return search


class _Pruned(Exception):  # noqa: N818 - nothing is wrong
    """A trial is worth no other fold."""


@dataclass(frozen=True)
class Worker:
    """A process at a search: its study, the photos, and what shows where it stands."""

    study: Study
    table: Table
    loss_func: LossFunc | None
    view: Log

    @property
    def search(self) -> Search:
        """What the search is of."""
        return self.study.search

    def work(self, until: float | None = None) -> None:
        """Train trials until there are as many as asked for, or none would end before `until`, a `time.monotonic()`."""
        while not self._is_late(until):
            with ExitStack() as claim:
                with self.study.alone():
                    trial = self.study.take(claim)
                    if trial is None:
                        break
                    params = self.study.propose(trial)
                self.try_out(trial, params)
                with self.study.alone():
                    self.clear()
                    Tuned(self.search.out, self.study.trials, self.search.settings).write()
            self._check_hope()

    def _is_late(self, until: float | None) -> bool:
        if until is None:
            return False
        took = [one.seconds for one in self.study.trials if one.state == COMPLETE and one.seconds]
        late = time.monotonic() + (float(np.median(took)) if took else 0) >= until
        if late:
            line = f"No other trial would end within the hours given. To go on: {self.search.go_on}"
            self.view.say(line, important=True)
        return late

    def try_out(self, trial: Trial, params: Mapping[str, Any]) -> None:
        """Train a trial, or what is left of it, and tell the study what came of it."""
        words = next(one for one in self.study.trials if one.number == trial.number).words
        self.view.say(f"trial {trial.number} of {self.search.trials}: {words}")
        path = self.search.path(trial.number)
        try:
            plan = self._plan(path, params)
        except UsageError as error:
            self._end(trial, REFUSED, str(error))
            return
        try:
            plan = fitted(plan, self.view.say)
            run = self._train(trial, plan, path)
        except _Pruned:
            self._end(
                trial, PRUNED, f"{len(RunDirectory.load(path).trained_folds)} of {plan.config.folds} folds were enough"
            )
        except UntrainableError as error:
            # how to go on with its run is no help where the search goes on without it
            self._end(trial, FAILED, f"{str(error).split('. ')[0].rstrip('.')}.")
        else:
            self._complete(trial, run)

    def _complete(self, trial: Trial, run: RunDirectory) -> None:
        joint = run.scores["joint"]
        if joint["macro_f1"] is None:
            raise DataError(f"{run.path} has no macro-F1, because no photo has a label of all heads.")
        self.study.complete(trial, joint["macro_f1"], joint["macro_f1_interval"], seconds_of(run.path) or 0.0)
        self.view.say(f"trial {trial.number} {COMPLETE}: OOF macro-F1 {joint['macro_f1']:.4f}")

    def _end(self, trial: Trial, state: str, why: str) -> None:
        self.study.end(trial, state, why, seconds_of(self.search.path(trial.number)))
        self.view.say(f"trial {trial.number} {state}: {why}", important=state == FAILED)

    def _plan(self, path: Path, params: Mapping[str, Any]) -> Plan:
        """What a trial does; raises UsageError where its settings do not go together, or not with the photos."""
        config = self.search.config_of(params)
        if (path / CONFIG).is_file():
            # what bs auto found stays
            config = resumed(config, path)
        return prepare(self.table, config, self.loss_func, self.view.say, open_teacher=open_teacher)

    def _train(self, trial: Trial, plan: Plan, path: Path) -> RunDirectory:
        """Train a trial from its start or its last state; raises _Pruned where it is worth no other fold."""
        start = time.monotonic()
        with held(path), saying_how_to_go_on(self.search.go_on, self.view):
            run = reopen(path, plan) if (path / CONFIG).is_file() else create(path, plan, overwrite=False)
            self.study.check_photos(run.start.get("photos"))
            folds = plan.check_folds(None)
            with threads(run, plan, self.view.say):
                try:
                    plan = taught(plan, run, self.view.say)
                    train(run, plan, folds, self.view, start, after_fold=self._judge(trial, run))
                except _Pruned:
                    finish(run)
                    raise
        return RunDirectory.load(path)

    def _judge(self, trial: Trial, run: RunDirectory) -> Callable[[int], None]:
        """What to call after each fold of a trial; it raises _Pruned where that is enough."""
        scores: list[float] = []

        def after_fold(fold: int) -> None:
            scores.append(fold_score(run, fold))
            worth = self.study.is_worth_more(trial, len(scores) - 1, float(np.mean(scores)))
            if not worth and len(scores) < run.config.folds:
                raise _Pruned

        return after_fold

    def clear(self) -> None:
        """Remove the checkpoints of all trials that are done but for the best; their OOF predictions stay."""
        tuned = Tuned(self.search.out, self.study.trials, self.search.settings)
        kept = {one.number for one in tuned.ranked[: self.search.keep]}
        cleared = []
        for one in tuned.trials:
            if one.state != RUNNING and one.number not in kept:
                files = [*one.path.glob("fold*/epoch*.safetensors"), *one.path.glob(f"fold*/{STATE}")]
                for file in files:
                    file.unlink()
                cleared += [str(one.number)] if files else []
        if cleared:
            which = f"trial {', '.join(cleared)}"
            self.view.say(f"Removed the checkpoints of {which}; --keep {self.search.keep}: those of the best stay")

    def _check_hope(self) -> None:
        """Raise UsageError where all trials are refused: something is wrong with what they have in common."""
        states = [(one.state, one.why) for one in self.study.trials if one.state != RUNNING]
        if len(states) >= _MOST_REFUSED and all(state == REFUSED for state, _ in states):
            raise UsageError(f"All {len(states)} trials so far were refused, the last: {states[-1][1]}")

    def conclude(self) -> Tuned:
        """Judge what there is, write all that is to be written, and say what is not."""
        trials, notes = self.study.trials, []
        tuned = Tuned(self.search.out, trials, self.search.settings, importance=self.study.importance())
        at = [str(one.number) for one in trials if one.state == RUNNING]
        if at:
            notes.append(f"Another process is at trial {', '.join(at)}, or has left it: {self.search.go_on}")
        if not tuned.importance:
            notes.append(f"No {IMPORTANCE}: it needs two complete trials of different scores.")
        try:
            tuned = replace(tuned, judged=judge(tuned.ranked))
        except DataError as error:
            notes.append(f"The best is not judged by others' photos: {error}")
        tuned = replace(tuned, notes=notes)
        with self.study.alone():
            self.clear()
            tuned.write()
            tuned.draw()
        if not tuned.ranked and not at:
            last = next((f", the last: {one.why}" for one in reversed(trials) if one.why), ".")
            raise FastmaskError(f"None of {len(trials)} trials in {self.search.out} came to a score{last}")
        return tuned


def fold_score(run: RunDirectory, fold: int) -> float:
    """The macro-F1 of a fold's own photos, in the epoch that is best by its own monitor: for pruning alone."""
    history = run.history(fold)
    curve = history[run.config.monitor].to_numpy(np.float64)
    curve = np.nan_to_num(-curve if run.config.monitor == LOSS else curve, nan=-np.inf)
    return float(np.nan_to_num(history["macro_f1"].iloc[best_epochs(curve)[0]]))


def seconds_of(path: Path) -> float | None:
    """How long the folds of a run have trained."""
    if not (path / CONFIG).is_file():
        return None
    run = RunDirectory.load(path)
    return round(sum(float(run.times(fold)["seconds"].sum()) for fold in run.trained_folds), 3)
