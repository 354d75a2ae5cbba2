"""Cross-validation: train every fold of a plan into a run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

from albumentations import Compose

from fastmask.config import Config, make_config
from fastmask.data.augment import to_plain
from fastmask.data.loaders import pick_device
from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory, resume_command, resume_config
from fastmask.run.files import CONFIG, check_free
from fastmask.run.oof import write_scores
from fastmask.system.errors import DataError
from fastmask.system.lock import lock_run
from fastmask.system.terminal import wrap_words
from fastmask.system.threads import free_threads
from fastmask.training.additional import OpenTeacher
from fastmask.training.budget import (
    RESERVE,
    check_all_folds,
    describe_cost,
    make_budget,
    measured_seconds,
    shorten_plan,
)
from fastmask.training.compiling import choose_compile
from fastmask.training.description import describe_plan
from fastmask.training.fold import train_fold
from fastmask.training.near_copies import note_near_copies
from fastmask.training.plan import LossFunc, OptFunc, Plan
from fastmask.training.processes import join_processes
from fastmask.training.progress.display import Log, pick_display
from fastmask.training.progress.live import RunProgress
from fastmask.training.refit import left_to_refit, refit_fold
from fastmask.training.rehearsal import Rehearsal, fit_batch_size, rehearse
from fastmask.training.resume import reopen_run, restore_threads, saved_threads, spell_resume, suggest_resume
from fastmask.training.setup import prepare


def cross_validate(
    table: Table,
    config: Config | None = None,
    *,
    out: str | Path,
    fold: Sequence[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    loss_func: LossFunc | None = None,
    opt_func: OptFunc | None = None,
    log: TextIO | None = None,
    open_teacher: OpenTeacher | None = None,
    launch: Launch | None = None,
    **settings: Any,
) -> RunDirectory:
    """Train every fold of `table` and return the finished run in the directory `out`.

    `open_teacher` opens the teacher of a configuration, `launch` the launcher of its folds; both are passed by
    `fastmask.api.cross_validate`, which documents the other parameters.
    """
    out, start = Path(os.path.expanduser(out)), time.monotonic()
    plain = {name: to_plain(v) if isinstance(v, Compose) else v for name, v in settings.items()}
    wanted = make_config(config.model_dump(exclude_unset=True) if config else {}, plain)
    check_all_folds(wanted, fold)
    processes = join_processes(wanted)
    view = pick_display(log) if processes.is_first else Log(StringIO())
    # locked from here on, so that a second process does not even decode photos
    with (
        lock_run(out) if processes.is_first else nullcontext(),
        _threads(wanted, out if resume else None, processes.count, view.say),
        nullcontext() if launch is None else launch(wanted, table, (loss_func, opt_func), view.say) as launcher,
    ):
        with processes.main_process_first():
            if not resume and processes.is_first:
                check_free(out, overwrite)
            wanted = resume_config(wanted, out, has_table=True) if resume else wanted
            plan = prepare(table, wanted, loss_func, view.say, fold, processes, open_teacher, opt_func)
            plan = plan if resume else note_near_copies(plan, view.say)
            plan.check_folds(fold)
        plan = choose_compile(fit_batch_size(plan, view.say), fold, view.say)
        plan, rehearsal = shorten_to_limit(plan, start, resume, view.say)
        if launcher is not None:
            plan = launcher.adapt_plan(plan, None if not resume else RunDirectory.load(out))
        with processes.main_process_first():
            run = open_run(out, plan, resume, overwrite)
        view.say(wrap_words(f"{describe_plan(plan)}; run {out}", view.stream))
        with (
            suggest_resume(spell_resume(run, plan, fold), view),
            restore_threads(run, plan, view.say) if resume else nullcontext(),
        ):
            train_folds(
                run, add_soft_labels(plan, run, view.say), plan.check_folds(fold), view, start, rehearsal, launcher
            )
    return run


def _threads(
    config: Config, resumed: Path | None, processes: int, say: Callable[[str], None]
) -> AbstractContextManager[None]:
    """A block with the threads of a run on a CPU: those that a resumed one was started with, or as given or picked.

    The processes of a launcher share a machine, and Ray's nodes have cores of their own: they take all, unless given.
    """
    if pick_device(config.device).type != "cpu":
        return nullcontext()
    if resumed is not None:
        return saved_threads(resumed, say)
    alone = processes == 1 and config.launcher == "local"
    return free_threads(config.threads, say) if alone or config.threads is not None else nullcontext()


def add_soft_labels(plan: Plan, run: RunDirectory, say: Callable[[str], None]) -> Plan:
    """The plan with the soft labels of its teacher, if it has one; the teacher's predictions are saved in the run."""
    if plan.teacher is None:
        return plan
    with plan.processes.main_process_first():
        return plan.soften_labels(plan.teacher.load_predictions(run, plan, say))


class Launcher(Protocol):
    """Trains folds in parallel, possibly on other machines."""

    def adapt_plan(self, plan: Plan, run: RunDirectory | None) -> Plan:
        """The plan with settings for a fold's share of the machines; those of a `run` that is resumed stay.

        Raises UsageError if there is no such share.
        """

    def train(self, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        """Train folds."""

    def refit(self, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        """Refit finished folds on all photos."""


# a block in which a launcher trains the folds; None trains them here, one after the other
Launch = Callable[
    [Config, Table, tuple[LossFunc | None, OptFunc | None], Callable[[str], None]],
    AbstractContextManager[Launcher | None],
]


def shorten_to_limit(
    plan: Plan, start: float, resume: bool, say: Callable[[str], None]
) -> tuple[Plan, Rehearsal | None]:
    """The plan shortened to its time limit after `start`, and the rehearsal for that; the same plan without a limit.

    On a `resume` the plan stays as it was shortened at the start of the run.
    """
    limit = plan.config.limit_seconds
    if limit is None:
        return plan, None
    rehearsal = rehearse(plan, least=measured_seconds(limit))
    if resume:
        return plan, rehearsal
    seconds = start + limit - time.monotonic()
    shorter = shorten_plan(plan, rehearsal, seconds * (1 - RESERVE))
    say(describe_cost(plan.config, shorter.config))
    return shorter, rehearsal


def train_folds(
    run: RunDirectory,
    plan: Plan,
    folds: Sequence[int],
    view: Log,
    start: float,
    rehearsal: Rehearsal | None = None,
    launcher: Launcher | None = None,
    after_fold: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the folds that are not trained yet, collect their out-of-fold predictions, and refit them if asked.

    `after_fold` is called with each trained fold, first with those that were trained before; an exception that it
    raises ends the training.
    """
    trained = [fold for fold in folds if run.is_done(fold)]
    left = [fold for fold in folds if fold not in trained]
    refits = left_to_refit(run, plan, folds)
    budget = None
    if rehearsal is not None:
        end = start + (plan.config.limit_seconds or 0.0) * (1 - RESERVE / 2)
        budget = make_budget(plan, rehearsal, end, len(left), len(refits))
    progress = RunProgress(view, plan.config, len(left), len(refits), budget.end if budget else None)
    for fold in tuple(trained):
        after_fold(fold)
    if launcher is not None:
        launcher.train(run, plan, left, progress)
        trained, left = [*trained, *left], []
    for done, fold in enumerate(left):
        check_not_removed(run, trained)
        train_fold(run, plan, fold, progress, budget.deadline(len(left) - done, len(refits)) if budget else None)
        trained.append(fold)
        after_fold(fold)
    check_not_removed(run, trained)
    with plan.processes.main_process_first():
        if plan.processes.is_first:
            write_scores(run)
    if launcher is not None:
        launcher.refit(run, plan, refits, progress)
        refits = []
    for done, fold in enumerate(refits):
        refit_fold(run, plan, fold, progress, budget.refit_deadline(len(refits) - done) if budget else None)
    progress.summary(run, folds)


def check_not_removed(run: RunDirectory, folds: Sequence[int]) -> None:
    """Raise DataError if a run, or a trained fold of it, was removed in the meantime."""
    gone = next((fold for fold in folds if not run.is_done(fold)), None)
    if gone is not None or not (run.path / CONFIG).is_file():
        what = run.path if gone is None else run.fold_path(gone)
        raise DataError(f"{what} was removed while it was in use; restore it, then: {resume_command(run.path)}")


def create_run(out: Path, plan: Plan, overwrite: bool) -> RunDirectory:
    """Create the directory of a new run."""
    return RunDirectory.create(
        out,
        plan.config,
        plan.table.heads,
        pipelines=plan.pipelines,
        folds=plan.folds_frame,
        environment=plan.environment,
        skipped=plan.skipped,
        extra=plan.extra_frame,
        overwrite=overwrite,
    )


def open_run(out: Path, plan: Plan, resume: bool, overwrite: bool) -> RunDirectory:
    """The run directory to train into, a new one or the one to resume, which the first of several processes opens."""
    if not plan.processes.is_first:
        return RunDirectory.load(out)
    return reopen_run(out, plan) if resume else create_run(out, plan, overwrite)
