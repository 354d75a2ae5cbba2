"""Fold: trains one fold of a plan into its directory, from the start or from its last state."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from fastai.callback.core import Callback

from fastmask.config import Config
from fastmask.heads import JOINT
from fastmask.model.precision import tf32
from fastmask.run.directory import RunDirectory, resume_command
from fastmask.run.files import DONE, STATE
from fastmask.run.lineage import Lineage
from fastmask.run.tensors import checkpoint_file
from fastmask.system.errors import DivergenceError, UntrainableError, one_line
from fastmask.system.files import read_json, real, write_csv, write_json
from fastmask.training.budget import Deadline
from fastmask.training.callbacks import (
    DRAWN,
    Checkpoint,
    Drawn,
    EarlyStopping,
    History,
    OOFCollector,
    ValidateEvery,
    keep_only,
)
from fastmask.training.guards import FiniteLoss, Skipping, is_out_of_memory, skipping_callbacks
from fastmask.training.interrupts import Interrupts, exit_by_signal
from fastmask.training.plan import Plan
from fastmask.training.plateau import schedule_callbacks
from fastmask.training.processes import Processes
from fastmask.training.progress.live import FoldProgress, RunProgress
from fastmask.training.progress.trackers import FoldInfo, Trackers, trackers_of
from fastmask.training.rehearsal import out_of_memory_error
from fastmask.training.slow_steps import SlowSteps
from fastmask.training.state import SaveEvery, StateSaver, read_state

# the photos of the batch in which a training diverged
DIVERGED = "diverged.csv"


def train_fold(
    run: RunDirectory, plan: Plan, fold: int, progress: RunProgress, deadline: Deadline | None = None
) -> None:
    """Train one fold into its directory: checkpoints, history, every epoch's OOF probabilities."""
    interrupts = Interrupts(plan.processes.count > 1)
    saver = make_saver(run, plan, fold, interrupts, progress.say)
    callbacks = callbacks_of(run, plan, fold, progress, deadline, saver)
    epochs = fit_fold(run, plan, fold, callbacks, interrupts)
    report_skipped(run, plan, fold, callbacks, epochs, progress.say)
    kept = sorted(epoch for _, epoch in callbacks.checkpoint.kept) if callbacks.checkpoint else []
    done = {**fold_identity(run, fold), "epochs": epochs, "checkpoints": kept}
    if plan.processes.is_first:
        write_json(run.fold_path(fold) / DONE, done, parents=False)
        clear_fold(run, fold)
    plan.processes.wait()
    received = received_signal(interrupts, plan.processes)
    if received is not None:
        exit_by_signal(received)


def fold_identity(run: RunDirectory, fold: int) -> dict[str, Any]:
    """The values that identify the files of a fold."""
    return {"fold": fold, "photos": run.photos_digest(fold)}


def lineage_of_fold(run: RunDirectory, plan: Plan, fold: int, whole: bool = False) -> Lineage:
    """The lineage of the networks of a fold, or with `whole` of its refit; see `Plan.lineage`."""
    return replace(plan.lineage(fold, whole), run=run.identity, fold=fold)


def make_saver(
    run: RunDirectory, plan: Plan, fold: int, interrupts: Interrupts, say: Callable[[str], None]
) -> StateSaver:
    """The callback that resumes from the state in the fold's folder; without a state the folder is cleared."""
    folder = run.fold_path(fold)
    identity = {**fold_identity(run, fold), "run": run.identity}
    state = read_state(folder, identity, plan.environment["body"]["parameters"])
    if state is not None:
        say(f"fold {fold + 1}/{plan.config.folds} resumes in epoch {state['epoch'] + 1} after {state['step']} steps")
    processes = plan.processes
    # until all have read it
    processes.wait()
    if processes.is_first:
        if state is None and folder.exists():
            shutil.rmtree(folder)
        (folder / DIVERGED).unlink(missing_ok=True)
    every = SaveEvery.parse(plan.config.save_every)
    return StateSaver(
        folder, identity, every, lambda: received_signal(interrupts, processes), state, writes=processes.is_first
    )


def received_signal(interrupts: Interrupts, processes: Processes) -> int | None:
    """The signal that any of the processes received, so that all end at the same step."""
    return processes.highest(interrupts.received or 0) or None


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a fold, by names where they are used later; only the first process has those that write."""

    skips: list[Skipping]
    checkpoint: Checkpoint | None
    progress: FoldProgress
    trackers: Trackers | None
    saver: StateSaver
    deadline: Deadline | None
    others: list[Callback]

    def __iter__(self) -> Iterator[Callback]:
        named = [*self.skips, self.checkpoint, self.progress, self.trackers, self.saver, self.deadline]
        return iter([*self.others, *(callback for callback in named if callback is not None)])


def callbacks_of(
    run: RunDirectory, plan: Plan, fold: int, progress: RunProgress, deadline: Deadline | None, saver: StateSaver
) -> Callbacks:
    """The callbacks of a fold's training."""
    # the plan's settings are the run's, except for those of the machine, which may change on a resume
    config, folder = plan.config, run.fold_path(fold)
    history = History(folder)
    writes = plan.processes.is_first
    writing: list[Callback] = [history, OOFCollector(folder)] if writes else []
    if writes and (train := plan.training_set(fold)).sampler is not None:
        writing.append(Drawn(folder, plan.table.heads, train, config.sampler or JOINT))
    every = ValidateEvery(config.validate_every, *([] if deadline is None else [deadline.is_last]))
    trackers = trackers_of(config, folder) if writes else None
    info = FoldInfo(real(run.path).name, fold, config.to_plain())
    return Callbacks(
        skips=skipping_callbacks(config, folder),
        checkpoint=Checkpoint(folder, config.monitor, config.top_k, lineage_of_fold(run, plan, fold))
        if writes
        else None,
        progress=progress.fold(fold, history, deadline),
        trackers=Trackers(trackers, info, history, progress.say) if trackers else None,
        saver=saver,
        deadline=deadline,
        others=[
            *schedule_callbacks(config),
            *writing,
            *([EarlyStopping(config.monitor, config.patience)] if config.patience else []),
            *([every] if config.validate_every > 1 else []),
            *([] if config.progressive < 1 or config.unfreeze else [SlowSteps(progress.say)]),
            FiniteLoss(),
        ],
    )


def fit_fold(run: RunDirectory, plan: Plan, fold: int, callbacks: Callbacks, interrupts: Interrupts) -> int:
    """Train a fold, free its memory, and return the number of its epochs."""
    learn = plan.learner(fold, list(callbacks))
    no_memory = None
    try:
        with (
            interrupts,
            callbacks.trackers or nullcontext(),
            callbacks.progress,
            tf32(learn.dls.device, plan.config.tf32),
        ):
            learn.fit(plan.config.epochs)
    except DivergenceError as error:
        raise divergence_error(run, fold, plan.config, error) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        no_memory = one_line(error)
    epochs = int(learn.epoch) + 1
    # a Learner and its callbacks reference each other, so only a collection frees the memory of the fold
    learn.remove_cbs(list(learn.cbs))
    del learn
    gc.collect()
    if no_memory is not None:
        raise out_of_memory_error(plan, fold, no_memory, run.path)
    return epochs


def report_skipped(
    run: RunDirectory, plan: Plan, fold: int, callbacks: Callbacks, epochs: int, say: Callable[[str], None]
) -> None:
    """Print what a trained fold has skipped, and the files that list it."""
    if (run.fold_path(fold) / DRAWN).is_file():
        say(f"fold {fold + 1}/{plan.config.folds}: how often each class was sampled: {run.fold_path(fold) / DRAWN}")
    if callbacks.deadline is not None and callbacks.deadline.cut:
        say(f"fold {fold + 1}/{plan.config.folds} ends after {epochs} of {plan.config.epochs} epochs, to be in time")
    for skip in callbacks.skips:
        if skip.rows:
            say(f"fold {fold + 1}/{plan.config.folds} skipped what {skip.file} lists")


def clear_fold(run: RunDirectory, fold: int) -> None:
    """Remove what a trained fold no longer needs: its state, and checkpoints that are not among the best.

    Only after its end is on the disk, because until then it may resume from the state, which names them.
    """
    folder = run.fold_path(fold)
    kept = read_json(folder / DONE).get("checkpoints")
    if kept:
        keep_only(folder, "epoch*.safetensors", [checkpoint_file(folder, int(epoch)) for epoch in kept])
    (folder / STATE).unlink(missing_ok=True)


def divergence_error(run: RunDirectory, fold: int, config: Config, error: DivergenceError) -> UntrainableError:
    """The error of a fold that diverged: where, the likely causes, and how to resume."""
    folder = run.fold_path(fold)
    listed = ""
    if error.photos:
        write_csv(folder / DIVERGED, pd.DataFrame({"photo": error.photos}), parents=False)
        listed = f"; {folder / DIVERGED} lists all photos of the batch"
    overflow = ", an overflow of fp16 (--precision bf16 has none)" if config.precision == "fp16" else ""
    kept = "It has no state to resume from yet."
    if (folder / STATE).exists():
        kept = "The last good state is kept."
        if config.on_nan == "stop":
            command = resume_command(run.path, "--on-nan", "skip")
            kept = f"The last good state is kept; to resume without such steps: {command}"
    return UntrainableError(
        f"Fold {fold + 1}/{config.folds} diverged in {error}{listed}. Likely causes (see fastmask guide resume): too "
        f"high a learning rate (start anew with a lower --lr){overflow}, a custom loss, an invalid label. {kept}"
    )
