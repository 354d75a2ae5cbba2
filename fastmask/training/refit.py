"""Refit: trains the network of a fold for a few more epochs on all photos, including those of its validation."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from fastai.callback.core import Callback, CancelValidException
from safetensors.torch import load_file

from fastmask.model.precision import tf32
from fastmask.run.directory import RunDirectory
from fastmask.run.files import DONE, REFIT
from fastmask.run.lineage import best_checkpoint
from fastmask.run.tensors import save_network
from fastmask.system.errors import DivergenceError, FastmaskError, one_line
from fastmask.system.files import read_json
from fastmask.system.text import count
from fastmask.training.budget import Deadline
from fastmask.training.fold import lineage_of_fold
from fastmask.training.guards import FiniteLoss, is_out_of_memory, skipping_callbacks
from fastmask.training.plan import Plan
from fastmask.training.progress.live import RunProgress
from fastmask.training.rehearsal import out_of_memory_error


class NoValidation(Callback):
    """Skips validation: no photo is left for it."""

    def before_validate(self) -> None:
        raise CancelValidException


def left_to_refit(run: RunDirectory, plan: Plan, folds: Sequence[int]) -> list[int]:
    """The folds that are still to be refitted."""
    return [fold for fold in folds if plan.config.refit and not (run.fold_path(fold) / REFIT).is_file()]


def refit_fold(
    run: RunDirectory, plan: Plan, fold: int, progress: RunProgress, deadline: Deadline | None = None
) -> None:
    """Train a fold's best checkpoint for a few more epochs on all photos.

    The learning rate is that of the checkpoint, at least a tenth of the setting. The network is saved next to the
    checkpoints, and the fold predicts with it; out-of-fold predictions are still those of the checkpoints. After an
    interruption it starts anew. A `deadline` may end it within an epoch.
    """
    file, config = run.fold_path(fold) / REFIT, plan.config
    best = best_checkpoint(run, fold)
    epoch = int(best.stem.removeprefix("epoch"))
    skips = skipping_callbacks(config, run.fold_path(fold))
    shown = progress.refit(fold, deadline)
    limit = [] if deadline is None else [deadline]
    learn = plan.learner(fold, [*skips, FiniteLoss(), NoValidation(), shown, *limit], whole=True)
    learn.model.load_state_dict(load_file(best))
    # passes continue those of the fold, so that no random number is used twice
    learn.dls.train.passes.next = int(read_json(run.fold_path(fold) / DONE)["epochs"])
    rate = max(float(run.history(fold)["lr"][epoch]), config.lr / 10)
    try:
        with shown, tf32(learn.dls.device, config.tf32):
            learn.fit(config.refit, lr=rate)
    except DivergenceError as error:
        raise FastmaskError(
            f"The refit of fold {fold + 1}/{config.folds} at a learning rate of {rate:.1e} diverged in {error}. The "
            f"folds and their scores are complete: predict --no-refit uses them; or start anew with a lower --lr."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(plan, fold, one_line(error), run.path) from error
    if plan.processes.is_first:
        save_network(learn.model, file, lineage_of_fold(run, plan, fold, whole=True).to_text())
    plan.processes.wait()
    cut = deadline is not None and deadline.cut
    epochs = f"ends after {learn.epoch + 1} of {count(config.refit, 'epoch')}" if cut else count(config.refit, "epoch")
    learn.remove_cbs(list(learn.cbs))
    del learn
    gc.collect()
    progress.say(f"fold {fold + 1}/{config.folds}: {epochs} on all photos" + (", to be in time" if cut else ""))
