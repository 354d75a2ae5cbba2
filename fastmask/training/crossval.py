"""Cross-validation: train every fold of a plan into a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

import pandas as pd
import torch
from albumentations import Compose

from fastmask.config import Config, Kind, make_config, spell_option
from fastmask.data.augment import to_plain
from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory, resume_command, resume_config
from fastmask.run.files import CONFIG, FOLDS, PIPELINES, check_free
from fastmask.run.identity import differing_settings, differing_start
from fastmask.run.oof import finish
from fastmask.system.errors import DataError, FastmaskError, UnreadableError, UsageError, mark_reported
from fastmask.system.files import frame_to_csv
from fastmask.system.lock import held
from fastmask.system.terminal import wrap_words
from fastmask.training.budget import RESERVE, budget_of, check_whole, given_up, shorten
from fastmask.training.fold import clear_fold, train_fold
from fastmask.training.plan import LossFunc, OpenTeacher, Plan, prepare
from fastmask.training.processes import join
from fastmask.training.progress.display import Log, pick_display
from fastmask.training.progress.live import RunProgress
from fastmask.training.refit import left_to_refit, refit_fold
from fastmask.training.rehearsal import Rehearsal, fitted, rehearse

# more would bring torch down
_MOST_THREADS = 1024


def cross_validate(
    table: Table,
    config: Config | None = None,
    *,
    out: str | Path,
    fold: Sequence[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    loss_func: LossFunc | None = None,
    log: TextIO | None = None,
    open_teacher: OpenTeacher | None = None,
    launch: Launch | None = None,
    **settings: Any,
) -> RunDirectory:
    """Train every fold of `table` and return the finished run in the directory `out`.

    `open_teacher` opens the run that a configuration learns from, `launch` is where folds are trained if not here;
    `fastmask.api.cross_validate` passes both, and says what the other parameters are.
    """
    out, start = Path(out), time.monotonic()
    plain = {name: to_plain(v) if isinstance(v, Compose) else v for name, v in settings.items()}
    wanted = make_config(config.model_dump(exclude_unset=True) if config else {}, plain)
    check_whole(wanted.hours, fold)
    processes = join(wanted)
    view = pick_display(log) if processes.first else Log(StringIO())
    # held from here on, so that a second process does not even decode
    with (
        held(out) if processes.first else nullcontext(),
        nullcontext() if launch is None else launch(wanted, table, loss_func, view.say) as launcher,
    ):
        with processes.first_alone():
            if not resume and processes.first:
                check_free(out, overwrite)
            wanted = resume_config(wanted, out) if resume else wanted
            plan = prepare(table, wanted, loss_func, view.say, fold, processes, open_teacher)
            plan.check_folds(fold)
        plan, rehearsal = in_time(fitted(plan, view.say), start, resume, view.say)
        if launcher is not None:
            plan = launcher.shared(plan, None if not resume else RunDirectory.load(out))
        with processes.first_alone():
            run = open_run(out, plan, resume, overwrite)
        view.say(wrap_words(f"{plan}; run {out}", view.stream))
        with (
            saying_how_to_go_on(line_to_go_on(run, plan, fold), view),
            threads(run, plan, view.say) if resume else nullcontext(),
        ):
            train(run, taught(plan, run, view.say), plan.check_folds(fold), view, start, rehearsal, launcher)
    return run


def taught(plan: Plan, run: RunDirectory, say: Callable[[str], None]) -> Plan:
    """The plan with what its teacher, if it has one, makes of the labels; its answers are kept with the run."""
    if plan.teacher is None:
        return plan
    with plan.processes.first_alone():
        return plan.taught_by(plan.teacher.answers_kept(run, plan, say))


class Launcher(Protocol):
    """Trains folds side by side, on whatever machines."""

    def shared(self, plan: Plan, run: RunDirectory | None) -> Plan:
        """The plan as its folds' shares of the machines allow, of a `run` that is gone on with as it was begun.

        Raises UsageError where there is no such share.
        """

    def train(self, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        """Train folds to their end."""

    def refit(self, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        """Train folds that are done on all photos."""


# a block in which folds are trained elsewhere, or None where they are trained here, in turn
Launch = Callable[[Config, Table, LossFunc | None, Callable[[str], None]], AbstractContextManager[Launcher | None]]


def in_time(plan: Plan, start: float, resume: bool, say: Callable[[str], None]) -> tuple[Plan, Rehearsal | None]:
    """The plan as its hours from `start` on allow, and what was measured for that; as it is where it has no hours.

    What they gave up when the run was begun stays given up on a `resume`.
    """
    if not plan.config.hours:
        return plan, None
    rehearsal = rehearse(plan)
    if resume:
        return plan, rehearsal
    seconds = start + plan.config.hours * 3600 - time.monotonic()
    shorter = shorten(plan, rehearsal, seconds * (1 - RESERVE))
    say(given_up(plan.config, shorter.config))
    return shorter, rehearsal


def train(
    run: RunDirectory,
    plan: Plan,
    folds: Sequence[int],
    view: Log,
    start: float,
    rehearsal: Rehearsal | None = None,
    launcher: Launcher | None = None,
    after_fold: Callable[[int], None] = lambda _: None,
) -> None:
    """Train those of the folds that are not, collect what they say of their photos, and train them on all at last.

    `after_fold` is called with each fold that is trained, those that were before come first; what it raises ends the
    training there.
    """
    trained = [fold for fold in folds if run.is_done(fold)]
    left = [fold for fold in folds if fold not in trained]
    budget = None
    if rehearsal is not None:
        end = start + (plan.config.hours or 0.0) * 3600 * (1 - RESERVE / 2)
        budget = budget_of(plan, rehearsal, end, len(left))
    refits = left_to_refit(run, plan, folds)
    progress = RunProgress(view, plan.config, len(left), len(refits), budget.end if budget else None)
    for fold in tuple(trained):
        after_fold(fold)
    if launcher is not None:
        launcher.train(run, plan, left, progress)
        trained, left = [*trained, *left], []
    for done, fold in enumerate(left):
        check_there(run, trained)
        train_fold(run, plan, fold, progress, budget.deadline(len(left) - done) if budget else None)
        trained.append(fold)
        after_fold(fold)
    check_there(run, trained)
    with plan.processes.first_alone():
        if plan.processes.first:
            finish(run)
    if launcher is not None:
        launcher.refit(run, plan, refits, progress)
        refits = []
    for fold in refits:
        refit_fold(run, plan, fold, progress)
    progress.summary(run, folds)


@contextmanager
def saying_how_to_go_on(line: str, view: Log) -> Iterator[None]:
    """A block in which the end of a training, whatever brings it, comes with the line to type to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        view.say(f"Interrupted. To go on: {line}", important=True)
        mark_reported(error)
        raise
    except UnreadableError as error:
        raise UnreadableError(f"{error} To go on once it is there again: {line}") from error
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise FastmaskError(f"{error.strerror or error}{where}. Once that is mended: {line}") from error


def line_to_go_on(run: RunDirectory, plan: Plan, fold: Sequence[int] | None) -> str:
    """What to type to go on with the same folds, and what else was asked for and is no setting of the run."""
    if plan.loss_func is not None:
        return f"cross_validate(..., out={str(run.path)!r}, resume=True)"
    options = [] if fold is None else ["--fold", ",".join(map(str, fold))]
    restated = Config.of_kind(Kind.RESTATED)
    for name in Config.of_kind(Kind.MACHINE | Kind.FAULT | Kind.PATH):
        value = getattr(plan.config, name)
        saved = plan.config.default(name) if name in restated else getattr(run.config, name)
        if value not in (None, saved):
            options += spell_option(name, value)
    return resume_command(run.path, *options)


def check_there(run: RunDirectory, folds: Sequence[int]) -> None:
    """Raise DataError where a run, or a fold that was trained, has been taken away in the meantime."""
    gone = next((fold for fold in folds if not run.is_done(fold)), None)
    if gone is not None or not (run.path / CONFIG).is_file():
        what = run.path if gone is None else run.fold_path(gone)
        raise DataError(f"{what} was taken away while it was in use; put it back, then: {resume_command(run.path)}")


@contextmanager
def threads(run: RunDirectory, plan: Plan, say: Callable[[str], None]) -> Iterator[None]:
    """A block in which a CPU adds up in as many threads as when the run was started, since their number changes bits.

    Says where the machine differs in another way, which cannot be helped.
    """
    then, now = run.environment, plan.environment
    before, count = torch.get_num_threads(), then.get("threads")
    differing = [name for name in ("device", "packages") if then.get(name) != now[name]]
    differing += ["processes"] if then.get("processes", 1) != now["processes"] else []
    if differing:
        say(f"Other {' and '.join(differing)} than when {run.path} was started: the result may differ in its last bits")
    if now["device"] == "cpu" and isinstance(count, int) and 0 < count <= _MOST_THREADS and count != before:
        say(f"Torch's threads: {count}, as {run.path} was started with")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def create(out: Path, plan: Plan, overwrite: bool) -> RunDirectory:
    """The directory of a new run."""
    return RunDirectory.create(
        out,
        plan.config,
        plan.table.heads,
        pipelines=plan.pipelines,
        folds=plan.folds_frame,
        environment=plan.environment,
        skipped=plan.skipped,
        extra=pd.concat([extra.frame() for extra in plan.extras]) if plan.extras else None,
        overwrite=overwrite,
    )


def open_run(out: Path, plan: Plan, resume: bool, overwrite: bool) -> RunDirectory:
    """The run directory to train into: a new one, or the one to go on with, which the first of several opens."""
    if not plan.processes.first:
        return RunDirectory.load(out)
    return reopen(out, plan) if resume else create(out, plan, overwrite)


def reopen(out: Path, plan: Plan) -> RunDirectory:
    """The run to go on with; raises UsageError naming what differs, where that would change the result."""
    run = RunDirectory.load(out)
    check_same(run, plan)
    for fold in run.trained_folds:
        # of a process that was killed when it had just ended the fold
        clear_fold(run, fold)
    return run


def check_same(run: RunDirectory, plan: Plan) -> None:
    """Raise UsageError naming what differs between a run and a plan, where that would change the result."""
    out = run.path
    if run.pipelines != plan.pipelines:
        raise UsageError(
            f"{out} was started with other pipelines, see {out / PIPELINES}; start anew with another --out."
        )
    differing = differing_settings(run.config, plan.config)
    if differing:
        name = differing[0]
        chosen = " --hours had chosen that: give --hours again." if run.config.hours and not plan.config.hours else ""
        raise UsageError(
            f"{out} was started with {name} {run.config.to_plain()[name]}, now it is {plan.config.to_plain()[name]}; "
            f"--resume needs the same settings (differing: {', '.join(differing)}).{chosen}"
        )
    buffer = StringIO()
    frame_to_csv(plan.folds_frame, buffer)
    if run.heads != plan.table.heads or (out / FOLDS).read_text(encoding="utf-8") != buffer.getvalue():
        raise UsageError(
            f"{out} was started with other photos or labels than are there now; start anew with another --out."
        )
    differing = differing_start(run.start, plan.environment["start"])
    if differing:
        raise UsageError(
            f"{out} was started with another {' and another '.join(differing)} than there is now; --resume needs the "
            "same, another --out starts anew."
        )
