"""Tune: a search for the settings of the highest out-of-fold (OOF) macro-F1, by Optuna.

A trial is a cross-validation: a run in the search's folder. A stopped search resumes with the trial that was being
trained; several processes on one machine may share a search.
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
from fastmask.run.directory import RunDirectory, resume_config
from fastmask.run.environment import qualified_name
from fastmask.run.files import CONFIG, STATE
from fastmask.run.oof import best_epochs, write_scores
from fastmask.search.space import Space, parse_space, read_space
from fastmask.search.spec import SearchSpec, check_new_search, digest_table, resume_spec
from fastmask.search.study import Study, check_optuna, open_study, silence_optuna
from fastmask.search.trials import COMPLETE, FAILED, IMPORTANCE, PRUNED, REFUSED, RUNNING, Tuned, judge
from fastmask.system.errors import DataError, FastmaskError, UntrainableError, UsageError
from fastmask.system.fields import shows_fields
from fastmask.system.lock import lock_run
from fastmask.training.compiling import choose_compile
from fastmask.training.crossval import add_soft_labels, create_run, train_folds
from fastmask.training.near_copies import note_near_copies
from fastmask.training.plan import LossFunc, Plan
from fastmask.training.progress.display import Log, pick_display
from fastmask.training.rehearsal import fit_batch_size
from fastmask.training.resume import reopen_run, restore_threads, suggest_resume
from fastmask.training.setup import prepare

if TYPE_CHECKING:
    from optuna.trial import Trial

# the number of trials after which a search ends if all were refused
_MOST_REFUSED = 5


@shows_fields(Config)
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
    """Search a space of settings for the highest OOF macro-F1; each trial is a run in the folder `out`.

    `space` is a mapping as for `parse_space`, or a YAML file; `settings` are those of `Config` for all trials, over
    `config`. `trials` is their number in all (default 30), pruned and refused ones included; with `hours` no trial
    starts that would end too late, by the median time of earlier trials. After each fold the `pruner` ("median" or
    "none") may end a trial. The checkpoints of the best `keep` trials are kept.

    `resume` resumes a stopped search, with the trial that was being trained from its last state, or joins another
    process. A single process proposes the same trials whether it was stopped or not.

    >>> small = dict(arch="test_resnet", pretrained=False, resize=(32, 24), epochs=1, folds=2)
    >>> tuned = fm.tune(table, {"lr": [1e-3, 1e-2]}, out="search", trials=2, **small)
    >>> len(tuned.trials), tuned.best.settings["lr"] in (1e-3, 1e-2)
    (2, True)
    """
    check_optuna()
    start, view = time.monotonic(), pick_display(log)
    if hours is not None and not hours > 0:
        raise UsageError(f"--hours is {hours:g}; expected more than 0.")
    given = make_config(config.model_dump(exclude_unset=True) if config else {}, settings)
    if isinstance(space, str | Path):
        space = read_space(space)
    elif not isinstance(space, Space):
        space = Space(()) if space is None else parse_space(space)
    search = SearchSpec(
        Path(out), space, given.model_dump(exclude_unset=True), data=digest_table(table), loss=qualified_name(loss_func)
    )
    if resume:
        search = resume_spec(search, trials, keep, pruner)
    else:
        search = search.updated(trials=trials, keep=keep, pruner=pruner)
        if not space.dimensions:
            raise UsageError("A search needs a space: --space FILE, a YAML of settings and the values each may take.")
        search.check()
        check_new_search(search.out)
        search.write()
    with silence_optuna():
        worker = Worker(open_study(search), table, loss_func, view)
        worker.work(None if hours is None else start + hours * 3600)
        return worker.conclude()


class _Pruned(Exception):  # noqa: N818 - not an error
    """A trial was pruned."""


@dataclass(frozen=True)
class Worker:
    """A process that trains trials of a search."""

    study: Study
    table: Table
    loss_func: LossFunc | None
    view: Log

    @property
    def search(self) -> SearchSpec:
        """The specification of the search."""
        return self.study.search

    def work(self, until: float | None = None) -> None:
        """Train the remaining trials, as long as the next would end before `until`, a `time.monotonic()`."""
        while not self._is_late(until):
            with ExitStack() as claim:
                with self.study.locked():
                    trial = self.study.take(claim)
                    if trial is None:
                        break
                    params = self.study.propose(trial)
                self.try_out(trial, params)
                with self.study.locked():
                    self.clear().write()
            ended = [one for one in self.study.trials if one.state != RUNNING]
            if len(ended) >= _MOST_REFUSED and all(one.state == REFUSED for one in ended):
                raise UsageError(f"All {len(ended)} trials so far were refused, the last: {ended[-1].why}")

    def _is_late(self, until: float | None) -> bool:
        if until is None:
            return False
        took = [one.seconds for one in self.study.trials if one.state == COMPLETE and one.seconds]
        late = time.monotonic() + (float(np.median(took)) if took else 0) >= until
        if late:
            line = f"No further trial would end within --hours. To resume: {self.search.resume_line}"
            self.view.say(line, important=True)
        return late

    def try_out(self, trial: Trial, params: Mapping[str, Any]) -> None:
        """Train a trial, or the rest of it, and record its result."""
        text = next(one for one in self.study.trials if one.number == trial.number).text
        self.view.say(f"trial {trial.number} of {self.search.trials}: {text}")
        path = self.search.path(trial.number)
        try:
            plan = self._plan(path, params)
        except UsageError as error:
            self._end(trial, REFUSED, str(error))
            return
        try:
            plan = choose_compile(fit_batch_size(plan, self.view.say), say=self.view.say)
            run = self._train(trial, plan, path)
        except _Pruned:
            trained = len(RunDirectory.load(path).trained_folds)
            self._end(trial, PRUNED, f"{trained} of {plan.config.folds} folds were enough")
        except UntrainableError as error:
            # without the hint to resume the run, since the search continues with other trials
            self._end(trial, FAILED, f"{str(error).split('. ')[0].rstrip('.')}.")
        else:
            joint = run.scores["joint"]
            if joint["macro_f1"] is None:
                raise DataError(f"{run.path} has no macro-F1, because no photo has a label of all heads.")
            self.study.complete(trial, joint["macro_f1"], joint["macro_f1_interval"], seconds_of(run.path) or 0.0)
            self.view.say(f"trial {trial.number} {COMPLETE}: OOF macro-F1 {joint['macro_f1']:.4f}")

    def _end(self, trial: Trial, state: str, why: str) -> None:
        self.study.end(trial, state, why, seconds_of(self.search.path(trial.number)))
        self.view.say(f"trial {trial.number} {state}: {why}", important=state == FAILED)

    def _plan(self, path: Path, params: Mapping[str, Any]) -> Plan:
        """The plan of a trial; raises UsageError if its settings contradict each other or the photos."""
        config = self.search.config_of(params)
        resumed = (path / CONFIG).is_file()
        if resumed:
            # keeps the batch size that --bs auto found
            config = resume_config(config, path)
        plan = prepare(self.table, config, self.loss_func, self.view.say, open_teacher=open_teacher)
        return plan if resumed else note_near_copies(plan, self.view.say)

    def _train(self, trial: Trial, plan: Plan, path: Path) -> RunDirectory:
        """Train a trial from its start or its last state; raises _Pruned if the trial is pruned."""
        start = time.monotonic()
        with lock_run(path), suggest_resume(self.search.resume_line, self.view):
            run = reopen_run(path, plan) if (path / CONFIG).is_file() else create_run(path, plan, overwrite=False)
            self.study.check_photos(run.start.get("photos"))
            folds = plan.check_folds(None)
            with restore_threads(run, plan, self.view.say):
                try:
                    plan = add_soft_labels(plan, run, self.view.say)
                    train_folds(run, plan, folds, self.view, start, after_fold=self._pruner(trial, run))
                except _Pruned:
                    write_scores(run)
                    raise
        return RunDirectory.load(path)

    def _pruner(self, trial: Trial, run: RunDirectory) -> Callable[[int], None]:
        """A function to call after each fold of a trial; it raises _Pruned if the trial is pruned."""
        scores: list[float] = []

        def after_fold(fold: int) -> None:
            scores.append(fold_score(run, fold))
            worth = self.study.is_worth_more(trial, len(scores) - 1, float(np.mean(scores)))
            if not worth and len(scores) < run.config.folds:
                raise _Pruned

        return after_fold

    def clear(self) -> Tuned:
        """Remove the checkpoints of all trials that have ended except the best; their OOF predictions stay."""
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
            self.view.say(f"Removed the checkpoints of {which}; --keep {self.search.keep}: those of the best are kept")
        return tuned

    def conclude(self) -> Tuned:
        """Judge the trials, and write their table, the best settings and the pictures."""
        trials, notes = self.study.trials, list[str]()
        tuned = Tuned(self.search.out, trials, self.search.settings, importance=self.study.importance(), notes=notes)
        running = [str(one.number) for one in trials if one.state == RUNNING]
        if running:
            numbers = ", ".join(running)
            notes.append(f"Another process is training trial {numbers}, or was stopped: {self.search.resume_line}")
        if not tuned.importance:
            notes.append(f"No {IMPORTANCE}: it needs two complete trials with different scores.")
        try:
            tuned = replace(tuned, judged=judge(tuned.ranked))
        except DataError as error:
            notes.append(f"The score of the best trial is not cross-fitted: {error}")
        with self.study.locked():
            self.clear()
            tuned.write()
            tuned.draw()
        if not tuned.ranked and not running:
            last = next((f", the last: {one.why}" for one in reversed(trials) if one.why), ".")
            raise FastmaskError(f"None of {len(trials)} trials in {self.search.out} has a score{last}")
        return tuned


def fold_score(run: RunDirectory, fold: int) -> float:
    """The macro-F1 of a fold's photos at its own best epoch, only for pruning."""
    return float(np.nan_to_num(run.history(fold)["macro_f1"].iloc[best_epochs(run.curve(fold))[0]]))


def seconds_of(path: Path) -> float | None:
    """The training time of a run's folds."""
    if not (path / CONFIG).is_file():
        return None
    run = RunDirectory.load(path)
    return round(sum(float(run.times(fold)["seconds"].sum()) for fold in run.trained_folds), 3)
