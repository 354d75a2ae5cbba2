"""Cross-validation: train every fold of a plan into a run directory."""

from __future__ import annotations

import gc
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from albumentations import Compose
from filelock import FileLock, Timeout

from fastmask.config import Config, make_config
from fastmask.data.augment import to_plain
from fastmask.data.table import Table
from fastmask.errors import FastmaskError, UsageError
from fastmask.files import frame_to_csv, write_json
from fastmask.model.schedule import lr_schedule
from fastmask.run import DONE, FOLDS, PIPELINES, Run, check_free, differing_settings, differing_start
from fastmask.training.budget import RESERVE, Deadline, budget_of, check_whole, given_up, shorten
from fastmask.training.callbacks import (
    Checkpoint,
    DivergenceError,
    EarlyStopping,
    FiniteLoss,
    History,
    OOFCollector,
)
from fastmask.training.oof import finish
from fastmask.training.plan import LossFunc, Plan, prepare
from fastmask.training.progress import EpochLines
from fastmask.training.rehearsal import rehearse
from fastmask.training.step import fitting


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
    **settings: Any,
) -> Run:
    """Train every fold of `table` and return the finished run in the directory `out`.

    `settings` are those of `Config`, over `config`. Everything that can be checked is checked before the directory is
    made: the settings, the folds, every photo, the network and its weights. `fold` are the folds to train; `merge_runs`
    joins folds trained apart. `resume` goes on with a run that was stopped: finished folds stay as they are, the others
    are trained from their start, and the result is the same as that of a run that was never stopped, unless `hours`
    cuts a fold short. `loss_func` makes a loss of your own from the heads; a body or an augmentation of your own is
    registered with timm or albumentations and named by its arch or its pipeline. `log` takes a line an epoch (stderr by
    default).
    """
    out, start = Path(out), time.monotonic()
    if not resume:
        check_free(out, overwrite)
    stream = log or sys.stderr
    say = partial(print, file=stream, flush=True)
    plain = {name: to_plain(v) if isinstance(v, Compose) else v for name, v in settings.items()}
    wanted = make_config(config.model_dump(exclude_unset=True) if config else {}, plain)
    check_whole(wanted.hours, fold)
    plan = prepare(table, resumed(wanted, out) if resume else wanted, loss_func, say)
    plan.check_folds(fold)
    seconds = (wanted.hours or 0.0) * 3600
    rehearsal = rehearse(plan) if seconds else None
    if rehearsal is not None and not resume:
        asked = plan.config
        plan = shorten(plan, rehearsal, (start + seconds - time.monotonic()) * (1 - RESERVE))
        say(given_up(asked, plan.config))
    with held(out):
        run = reopen(out, plan) if resume else create(out, plan, overwrite)
        say(f"{plan}; run {out}")
        left = [number for number in plan.check_folds(fold) if not run.is_done(number)]
        budget = None
        if rehearsal is not None:
            budget = budget_of(plan, rehearsal, start + seconds * (1 - RESERVE / 2), len(left))
        try:
            for done, number in enumerate(left):
                train_fold(run, plan, number, stream, budget.deadline(len(left) - done) if budget else None)
        except KeyboardInterrupt:
            say(f"Interrupted. Finished folds are kept; --resume --out {out} goes on.")
            raise
        finish(run)
    return run


@contextmanager
def held(out: Path) -> Iterator[None]:
    """A block in which no other process may write to the run at `out`; raises UsageError where one does."""
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{out} is being written by another process; wait for it, or name another --out.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def resumed(config: Config, out: Path) -> Config:
    """The settings to go on with: those that hours gave up, when the run was started, stay as they were."""
    saved = Run.load(out).config
    if config.hours is None:
        return config
    return config.model_copy(update={"epochs": saved.epochs, "folds": saved.folds})


def create(out: Path, plan: Plan, overwrite: bool) -> Run:
    """The directory of a new run."""
    return Run.create(
        out,
        plan.config,
        plan.table.heads,
        pipelines=plan.pipelines,
        folds=plan.folds_frame,
        environment=plan.environment,
        overwrite=overwrite,
    )


def reopen(out: Path, plan: Plan) -> Run:
    """The run to go on with; raises UsageError naming what differs, where that would change the result."""
    run = Run.load(out)
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
    return run


def train_fold(run: Run, plan: Plan, fold: int, log: TextIO, deadline: Deadline | None = None) -> None:
    """Train one fold into its directory: checkpoints, history, every epoch's OOF probabilities."""
    # the plan's settings are the run's, but for those of the machine, which may differ on a resume
    config, folder = plan.config, run.fold_path(fold)
    if folder.exists():
        shutil.rmtree(folder)
    start = time.perf_counter()
    lines = EpochLines(f"fold {fold + 1}/{config.folds}", log)
    learn = plan.learner(
        fold,
        [
            *lr_schedule(config.sched, config.lr, config.epochs, config.milestones, config.lr_gamma),
            History(folder),
            FiniteLoss(),
            OOFCollector(folder),
            Checkpoint(folder, config.monitor, config.top_k),
            lines,
            *([EarlyStopping(config.monitor, config.patience)] if config.patience else []),
            *([deadline] if deadline else []),
        ],
    )
    try:
        with lines, fitting(learn, config.tf32):
            learn.fit(config.epochs)
    except DivergenceError as error:
        raise diverged(run, fold, config, error) from error
    if deadline is not None and deadline.cut:
        print(f"fold {fold + 1} ends after {learn.epoch + 1} of {config.epochs} epochs, to be in time", file=log)
    done = {"fold": fold, "photos": run.photos_digest(fold), "epochs": learn.epoch + 1}
    write_json(folder / DONE, {**done, "seconds": round(time.perf_counter() - start, 1)})
    # a Learner and its callbacks point at each other: without this a fold's memory waits for a chance collection
    learn.remove_cbs(list(learn.cbs))
    del learn
    gc.collect()


def diverged(run: Run, fold: int, config: Config, error: DivergenceError) -> FastmaskError:
    """Where a fold's training went astray, what mends it, and what is left of it."""
    overflow = "; fp16 may have overflowed, which --precision bf16 does not" if config.precision == "fp16" else ""
    kept = f"checkpoints so far are in {run.fold_path(fold)}" if run.checkpoints(fold) else "it has no checkpoint yet"
    return FastmaskError(f"Fold {fold + 1} diverged in {error}. Lower --lr{overflow}; {kept}.")
