"""Fold: train one fold of a plan into its directory, from its start or from its last state."""

from __future__ import annotations

import gc
import shutil
from typing import TextIO

import pandas as pd

from fastmask.config import Config
from fastmask.errors import DivergenceError, FastmaskError, one_line
from fastmask.files import read_json, write_csv, write_json
from fastmask.model.schedule import lr_schedule
from fastmask.run import DONE, STATE, Run, go_on
from fastmask.terminal import say
from fastmask.training.budget import Deadline
from fastmask.training.callbacks import (
    DRAWN,
    Checkpoint,
    Drawn,
    EarlyStopping,
    History,
    OOFCollector,
    checkpoint_file,
    keep_only,
)
from fastmask.training.guards import FiniteLoss, SkipNonFinite, Skipping, SkipUnreadable, is_out_of_memory
from fastmask.training.interrupts import Interrupts, end
from fastmask.training.plan import Plan
from fastmask.training.progress import EpochLines
from fastmask.training.rehearsal import out_of_memory
from fastmask.training.state import SaveEvery, StateSaver, read_state
from fastmask.training.step import tf32

# the photos of the batch at which a training went astray
DIVERGED = "diverged.csv"


def train_fold(run: Run, plan: Plan, fold: int, log: TextIO, deadline: Deadline | None = None) -> None:
    """Train one fold into its directory: checkpoints, history, every epoch's OOF probabilities."""
    # the plan's settings are the run's, but for those of the machine, which may differ on a resume
    config, folder = plan.config, run.fold_path(fold)
    done = {"fold": fold, "photos": run.photos_digest(fold)}
    belongs = {**done, "run": run.identity}
    state = read_state(folder, belongs, plan.environment["body"]["parameters"])
    if state is None and folder.exists():
        shutil.rmtree(folder)
    if state is not None:
        say(f"fold {fold + 1} goes on in epoch {state['epoch'] + 1} after {state['step']} steps", log)
    (folder / DIVERGED).unlink(missing_ok=True)
    lines, interrupts = EpochLines(f"fold {fold + 1}/{config.folds}", log), Interrupts()
    skips: list[Skipping] = [
        *([SkipNonFinite(folder)] if config.on_nan == "skip" else []),
        *([SkipUnreadable(folder)] if config.on_bad_photo == "skip" else []),
    ]
    checkpoint = Checkpoint(folder, config.monitor, config.top_k)
    learn = plan.learner(
        fold,
        [
            *lr_schedule(config.sched, config.lr, config.epochs, config.milestones, config.lr_gamma),
            *skips,
            *([Drawn(folder, plan.table.heads, plan.training_set(fold))] if config.sampler else []),
            History(folder),
            FiniteLoss(),
            OOFCollector(folder),
            checkpoint,
            lines,
            *([EarlyStopping(config.monitor, config.patience)] if config.patience else []),
            *([deadline] if deadline else []),
            StateSaver(folder, belongs, SaveEvery.parse(config.save_every), lambda: interrupts.asked, state),
        ],
    )
    # as large as the network and its averages together
    del state
    no_memory = None
    try:
        with interrupts, lines, tf32(learn.dls.device, config.tf32):
            learn.fit(config.epochs)
    except DivergenceError as error:
        raise diverged(run, fold, config, error) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        no_memory = one_line(error)
    epochs = learn.epoch + 1
    # a Learner and its callbacks point at each other: without this a fold's memory waits for a chance collection
    learn.remove_cbs(list(learn.cbs))
    del learn
    gc.collect()
    if no_memory is not None:
        raise out_of_memory(plan, fold, no_memory, run.path)
    if config.sampler:
        say(f"fold {fold + 1}: how often each class was drawn: {folder / DRAWN}", log)
    if deadline is not None and deadline.cut:
        say(f"fold {fold + 1} ends after {epochs} of {config.epochs} epochs, to be in time", log)
    for skip in skips:
        if skip.rows:
            say(f"fold {fold + 1} left out what {skip.file} lists", log)
    kept = sorted(epoch for _, epoch in checkpoint.kept)
    write_json(folder / DONE, {**done, "epochs": epochs, "checkpoints": kept}, parents=False)
    clear_fold(run, fold)
    if interrupts.asked is not None:
        end(interrupts.asked)


def clear_fold(run: Run, fold: int) -> None:
    """Remove what a fold that is trained needs no more: its state, and the epochs that better ones have outdone.

    Only now that its end is on the disk, because until then the state may be gone on from, which names them.
    """
    folder = run.fold_path(fold)
    kept = read_json(folder / DONE).get("checkpoints")
    if kept:
        keep_only(folder, "epoch*.safetensors", [checkpoint_file(folder, int(epoch)) for epoch in kept])
    (folder / STATE).unlink(missing_ok=True)


def diverged(run: Run, fold: int, config: Config, error: DivergenceError) -> FastmaskError:
    """Where a fold's training went astray, what mends it, and what is left of it."""
    folder = run.fold_path(fold)
    listed = ""
    if error.photos:
        write_csv(folder / DIVERGED, pd.DataFrame({"photo": error.photos}), parents=False)
        listed = f"; {folder / DIVERGED} lists all photos of the batch"
    overflow = ", an overflow of fp16 (--precision bf16 has none)" if config.precision == "fp16" else ""
    kept = "It has no state to go on from yet."
    if (folder / STATE).exists():
        kept = "The last good state is kept."
        if config.on_nan == "stop":
            kept = f"The last good state is kept; to go on without such steps: {go_on(run.path, '--on-nan', 'skip')}"
    return FastmaskError(
        f"Fold {fold + 1} diverged in {error}{listed}. Likely causes: too high a learning rate (start anew with a "
        f"lower --lr){overflow}, a loss of your own, a label that is nonsense. {kept}"
    )
