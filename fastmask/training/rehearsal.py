"""Rehearsal: one real step of everything, and what a whole run would cost."""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelTrainException, CancelValidException

from fastmask.model.precision import tf32
from fastmask.run.directory import resume_command
from fastmask.system.errors import UntrainableError, UsageError
from fastmask.system.text import count, duration, in_bytes
from fastmask.training.effective_config import check_batches
from fastmask.training.guards import is_out_of_memory
from fastmask.training.plan import Plan

# steps that are timed, after one that warms up; with loading processes after those that they load beforehand, and as
# many more, because the last of them are loaded while nobody waits
STEPS = 3
_LOADED_AHEAD = 2
# bytes of a number in oof.csv
_CSV_NUMBER = 12
LESS_MEMORY = "take fewer pixels (--crop, --resize) or a smaller --arch"


@dataclass(frozen=True)
class Rehearsal:
    """What was measured in a few steps, seconds and bytes, and what `folds` x `epochs` would cost, of `of_folds`."""

    train_step: float
    valid_step: float
    train_steps: int
    valid_steps: int
    epochs: int
    folds: int
    of_folds: int
    patience: int
    loss: float
    memory: int
    device_memory: int
    checkpoint: int
    state: int
    disk: int
    free: int

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch, its validation included."""
        return self.train_step * self.train_steps + self.valid_step * self.valid_steps

    @property
    def run_seconds(self) -> float:
        """Seconds of the whole run, if no fold stops early."""
        return self.epoch_seconds * self.epochs * self.folds

    def __str__(self) -> str:
        early = f"; a fold may stop earlier, after {self.patience} epochs without a better one" if self.patience else ""
        disk = (
            f"{in_bytes(self.disk)} at most, of which a checkpoint takes {in_bytes(self.checkpoint)}, the state of the "
            f"fold in training {in_bytes(self.state)}"
        )
        device = f", {in_bytes(self.device_memory)} of the GPU" if self.device_memory else ""
        rows = {
            "step": f"{self.train_step:.3g} s with loading, loss {self.loss:.4f}; validation {self.valid_step:.3g} s",
            "epoch": f"{duration(self.epoch_seconds)}: {self.train_steps} steps and {self.valid_steps} of validation",
            "run": f"{duration(self.run_seconds)}: {count(self.folds, 'fold')} of {count(self.epochs, 'epoch')}{early}",
            "memory": f"{in_bytes(self.memory)} of this process{device}",
            "disk": f"{disk}; {in_bytes(self.free)} free",
        }
        return "\n".join(f"{name:8}{text}" for name, text in rows.items())


class _Stopwatch(Callback):
    """Times the first batches of training and of validation, loading included, and ends both after them."""

    order = 100

    def __init__(self, steps: int) -> None:
        self.steps, self.warm = steps, 1
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def before_train(self) -> None:
        self._last = time.perf_counter()

    before_validate = before_train

    def after_batch(self) -> None:
        synchronize(self.learn.dls.device)
        now = time.perf_counter()
        timed = self.seconds[self.training]
        timed.append(now - self._last)
        self._last = now
        if self.training:
            self.last_loss = float(self.learn.loss.detach())
        if len(timed) > self.steps:
            raise CancelTrainException if self.training else CancelValidException

    def after_validate(self) -> None:
        # the epoch's figures of a few batches would only mislead
        raise CancelEpochException

    def step(self, training: bool) -> float:
        """Seconds a batch, without those that warm up where there are others."""
        timed = self.seconds[training]
        return statistics.fmean(timed[self.warm :] or timed[-1:])


def rehearse(plan: Plan, folds: Sequence[int] | None = None, out: str | Path = ".", steps: int = STEPS) -> Rehearsal:
    """Load, train and validate `steps` batches of the first fold, and reckon what training `folds` into `out` costs."""
    chosen = plan.check_folds(folds)
    if plan.config.unfreeze:
        # what trains in the end takes the most
        plan = replace(plan, config=plan.config.model_copy(update={"freeze": None, "unfreeze": None}))
    watch = _Stopwatch(steps)
    learn = plan.learner(chosen[0], [watch])
    # fastai's own `num_workers` is of the process that one is in
    workers = learn.dls.train.fake_l.num_workers
    if workers:
        watch.warm = 1 + _LOADED_AHEAD * workers
        watch.steps = watch.warm + _LOADED_AHEAD * workers + steps
    with tf32(learn.dls.device, plan.config.tf32):
        learn.fit(1)
    config, device = plan.config, learn.dls.device
    checkpoint = sum(t.numel() * t.element_size() for t in learn.model.state_dict().values())
    # AdamP keeps two averages of each weight; where steps take several batches, an epoch may end within one
    state = checkpoint * (3 + bool(config.ema or config.swa) + (config.accumulate > 1))
    numbers = plan.table.heads.n_logits * len(plan.table)
    return Rehearsal(
        train_step=watch.step(True),
        valid_step=watch.step(False),
        train_steps=len(learn.dls.train),
        valid_steps=len(learn.dls.valid),
        epochs=config.epochs + config.refit,
        folds=len(chosen),
        of_folds=config.folds,
        patience=config.patience,
        loss=watch.last_loss,
        memory=peak_memory(),
        device_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        checkpoint=checkpoint,
        state=state,
        # the best k of each fold, and of the one in training the next, its state and the state that replaces it; every
        # epoch's predictions, and those chosen as text
        disk=checkpoint * ((config.top_k + bool(config.refit)) * len(chosen) + 1)
        + 2 * state
        + numbers * (4 * config.epochs + _CSV_NUMBER),
        free=shutil.disk_usage(next(p for p in Path(out).absolute().parents if p.exists())).free,
    )


def fitted(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan, with the largest batch that fits into memory where its setting bs is "auto".

    Smaller ones than the default divide it, and as many more of them make a step: it stays the same photos. Raises
    UntrainableError where not even one photo fits.
    """
    if plan.config.bs != "auto":
        return plan
    for tried in smaller(plan):
        if fits(tried):
            config = tried.config
            batches = f", {config.accumulate} batches a step" if config.accumulate > 1 else ""
            say(f"--bs auto: {config.bs} photos a batch{batches}")
            return tried
    raise UntrainableError(f"Not even one photo fits into memory; {LESS_MEMORY}.")


def smaller(plan: Plan) -> Iterator[Plan]:
    """The plan with batches of its size and of each that divides it, down to 1, with the same photos a step."""
    photos = plan.config.batch
    for bs in range(photos, 0, -1):
        if photos % bs == 0:
            update = {"bs": bs, "accumulate": plan.config.accumulate * photos // bs}
            tried = replace(plan, config=plan.config.model_copy(update=update))
            check_batches(tried.config, len(tried.training_set(0)))
            yield tried


def fits(plan: Plan) -> bool:
    """Whether a few steps of a plan fit into memory."""
    try:
        # the optimizer takes its memory in its first step
        rehearse(plan, steps=max(STEPS, plan.config.accumulate))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fitting_in = False
    else:
        fitting_in = True
    # only now is nobody left who holds what was allocated
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fitting_in


def out_of_memory(plan: Plan, fold: int, why: str, out: Path) -> UntrainableError:
    """The error of a fold that ran out of memory, with the batch size that fits."""
    told = f"Fold {fold + 1}/{plan.config.folds} ran out of memory with --bs {plan.config.bs} ({why})"
    kept = f"where other work took the memory: {resume_command(out)}"
    with suppress(RuntimeError, UsageError):
        # whatever else a trial stumbles at must not take the place of what is to be told
        # of several processes perhaps only this one is here
        trials = [] if plan.processes.count > 1 else islice(smaller(plan), 1, None)
        tried = next((tried for tried in trials if fits(tried)), None)
        if tried is not None:
            options = f"--bs {tried.config.bs} --accumulate {tried.config.accumulate}"
            anew = f"start anew with another --out and {options}, or --bs auto"
            return UntrainableError(f"{told}. What fits, with as many photos a step: {anew}; {kept}")
    return UntrainableError(f"{told}, and no smaller one fits; {LESS_MEMORY}; {kept}")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> int:
    """The most memory in bytes that this process has held."""
    try:
        import resource
    except ImportError:
        # Windows has no such module, and its processes say it themselves
        import psutil

        now = psutil.Process().memory_info()
        return int(getattr(now, "peak_wset", now.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes, but on a Mac bytes
    return peak if sys.platform == "darwin" else peak * 1024
