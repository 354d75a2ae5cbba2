"""Refit: a fold's network trained for its last epochs on all photos, those that it was judged on included."""

from __future__ import annotations

import gc
from typing import Any, TextIO

from fastai.callback.core import Callback, CancelValidException
from safetensors.torch import load_file

from fastmask.files import read_json
from fastmask.run import DONE, REFIT, Run
from fastmask.terminal import say
from fastmask.training.callbacks import save_network
from fastmask.training.guards import FiniteLoss, SkipNonFinite, SkipUnreadable
from fastmask.training.plan import Plan
from fastmask.training.start import best_checkpoint
from fastmask.training.step import fitting


class NoValidation(Callback):
    """Leaves validation out: there is nobody left to judge by."""

    def before_validate(self) -> None:
        raise CancelValidException


def refit_fold(run: Run, plan: Plan, fold: int, log: TextIO) -> None:
    """Train a fold's best checkpoint for a few epochs more on all photos, at the learning rate of that checkpoint.

    The network goes beside the checkpoints, and is what the fold predicts with. The out-of-fold predictions are of the
    checkpoints: no photo is left that could judge it. Where it is there already, nothing is done; an interruption
    begins it anew.
    """
    file, config = run.fold_path(fold) / REFIT, plan.config
    if file.is_file():
        return
    best = best_checkpoint(run, fold)
    epoch = int(best.stem.removeprefix("epoch"))
    skips: list[Any] = [
        *([SkipNonFinite(run.fold_path(fold))] if config.on_nan == "skip" else []),
        *([SkipUnreadable(run.fold_path(fold))] if config.on_bad_photo == "skip" else []),
    ]
    learn = plan.learner(fold, [*skips, FiniteLoss(), NoValidation()], whole=True)
    learn.model.load_state_dict(load_file(best))
    # passes go on where the fold's ended, so that no draw is made twice
    learn.dls.train.passes.next = int(read_json(run.fold_path(fold) / DONE)["epochs"])
    with fitting(learn, config.tf32):
        learn.fit(config.refit, lr=float(run.history(fold)["lr"][epoch]))
    save_network(learn.model, file)
    learn.remove_cbs(list(learn.cbs))
    del learn
    gc.collect()
    say(f"fold {fold + 1}/{config.folds}: {config.refit} epochs on all photos", log)
