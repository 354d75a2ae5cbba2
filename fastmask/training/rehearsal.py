"""Rehearsal: a few real steps of a run, and an estimate of the cost of the whole run."""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelTrainException, CancelValidException
from torch import Tensor, nn

from fastmask.data.loaders import pick_device
from fastmask.model.precision import autocast, tf32
from fastmask.run.directory import resume_command
from fastmask.system.errors import UntrainableError, UsageError
from fastmask.system.text import count, duration, in_bytes
from fastmask.training.build import build_initial_network
from fastmask.training.guards import is_out_of_memory
from fastmask.training.optimizer_state import state_bytes
from fastmask.training.parts import trains_on_parts
from fastmask.training.plan import Plan
from fastmask.training.progressive import mean_area

# steps that are timed after one that warms up; with loading processes after those that they prefetch, plus as many,
# because the last of these are loaded while the network is idle
STEPS = 3
_LOADED_AHEAD = 2
# photos of a step that is timed without loading and the optimizer, and the time of one with both relative to it
_PHOTOS, _WHOLE_STEP = 16, 1.05
# bytes of a number in oof.csv
_CSV_NUMBER = 12
LESS_MEMORY = "take fewer pixels (--crop, --resize) or a smaller --arch"


@dataclass(frozen=True)
class Rehearsal:
    """Seconds and bytes measured in a few steps, and the estimated cost of `epochs` epochs of `folds` of `of_folds`.

    Each fold is refitted for `refit` epochs of `refit_steps` steps. With progressive resizing, `train_step` is the mean
    over the sizes, which a refit is a little above.
    """

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
    refit: int = 0
    refit_steps: float = 0.0
    validate_every: int = 1

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch, including its validation."""
        return self.train_step * self.train_steps + self.valid_step * self.valid_steps

    @property
    def refit_seconds(self) -> float:
        """Seconds of the refit of a fold, which is on all photos and not validated."""
        return self.train_step * self.refit_steps * self.refit

    @property
    def run_seconds(self) -> float:
        """Seconds of the whole run, if no fold stops early."""
        training = self.train_step * self.train_steps * self.epochs
        validation = self.valid_step * self.valid_steps * math.ceil(self.epochs / self.validate_every)
        return (training + validation + self.refit_seconds) * self.folds

    def __str__(self) -> str:
        early = f"; a fold may stop earlier, after {self.patience} epochs without a better one" if self.patience else ""
        disk = (
            f"{in_bytes(self.disk)} at most, of which a checkpoint takes {in_bytes(self.checkpoint)}, the state of the "
            f"fold in training {in_bytes(self.state)}"
        )
        refit = f", then {count(self.refit, 'epoch')} of each on all photos" if self.refit else ""
        device = f", {in_bytes(self.device_memory)} of the GPU" if self.device_memory else ""
        folds = f"{count(self.folds, 'fold')} of {count(self.epochs, 'epoch')}"
        rows = {
            "step": f"{self.train_step:.3g} s with loading, loss {self.loss:.4f}; validation {self.valid_step:.3g} s",
            "epoch": f"{duration(self.epoch_seconds)}: {self.train_steps} steps and {self.valid_steps} of validation",
            "run": f"{duration(self.run_seconds)}: {folds}{refit}{early}",
            "memory": f"{in_bytes(self.memory)} of this process{device}",
            "disk": f"{disk}; {in_bytes(self.free)} free",
        }
        return "\n".join(f"{name:8}{text}" for name, text in rows.items())


class _Stopwatch(Callback):
    """Times the first batches of training and of validation, including their loading, and ends both after them."""

    order = 100

    def __init__(self, steps: int, least: float = 0.0) -> None:
        self.steps, self.least, self.warm = steps, least, 1
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
        if len(timed) > self.steps and sum(timed[self.warm :]) >= self.least:
            raise CancelTrainException if self.training else CancelValidException

    def after_validate(self) -> None:
        # metrics of a few batches would be misleading
        raise CancelEpochException

    def step(self, training: bool) -> float:
        """Seconds per batch, without the batches that warm up if there are others."""
        timed = self.seconds[training]
        return statistics.fmean(timed[self.warm :] or timed[-1:])


def rehearse(
    plan: Plan, folds: Sequence[int] | None = None, out: str | Path = ".", steps: int = STEPS, least: float = 0.0
) -> Rehearsal:
    """Load, train and validate `steps` batches of the first fold, and estimate the cost of `folds` in `out`.

    Training and validation take `least` seconds each, if a fold has enough batches.

    >>> from fastmask.training.setup import prepare
    >>> small = dict(arch="test_resnet", pretrained=False, resize=(32, 24), epochs=1, folds=2)
    >>> cost = fm.rehearse(prepare(table, fm.Config(**small)), steps=1)
    >>> cost.folds, cost.epochs, cost.run_seconds > 0
    (2, 1, True)
    """
    chosen = plan.check_folds(folds)
    area = mean_area(plan.size or (1, 1), plan.config.progressive)
    plan = at_full_cost(plan)
    watch = _Stopwatch(steps, least)
    learn = plan.learner(chosen[0], [watch])
    # fastai's `num_workers` depends on the process it is read in
    workers = learn.dls.train.fake_l.num_workers
    if workers:
        watch.warm = 1 + _LOADED_AHEAD * workers
        watch.steps = watch.warm + _LOADED_AHEAD * workers + steps
    with tf32(learn.dls.device, plan.config.tf32):
        learn.fit(1)
    config, device = plan.config, learn.dls.device
    checkpoint = sum(t.numel() * t.element_size() for t in learn.model.state_dict().values())
    state = checkpoint * (1 + bool(config.ema or config.swa)) + state_bytes(learn.opt)
    numbers = plan.table.heads.n_logits * len(plan.table)
    photos, whole = (plan.training_set(chosen[0], whole).photos_per_epoch for whole in (False, True))
    return Rehearsal(
        train_step=watch.step(True) * area,
        valid_step=watch.step(False),
        train_steps=len(learn.dls.train),
        valid_steps=len(learn.dls.valid),
        epochs=config.epochs,
        folds=len(chosen),
        of_folds=config.folds,
        patience=config.patience * config.validate_every,
        loss=watch.last_loss,
        memory=peak_memory(),
        device_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        checkpoint=checkpoint,
        state=state,
        # the best k of each fold; of the one in training the next, its state and the state that replaces it; the
        # predictions of every validated epoch, and the chosen ones as text
        disk=checkpoint * ((config.top_k + bool(config.refit)) * len(chosen) + 1)
        + 2 * state
        + numbers * (4 * config.validations + _CSV_NUMBER),
        free=shutil.disk_usage(next(p for p in Path(out).absolute().parents if p.exists())).free,
        refit=config.refit,
        refit_steps=len(learn.dls.train) * whole / photos,
        validate_every=config.validate_every,
    )


def photo_seconds(plan: Plan, size: tuple[int, int], least: float = 0.0) -> float:
    """Seconds to train on a photo of `size`, by a few steps of the network; infinite if the memory does not suffice.

    The steps take `least` seconds.
    """
    config, device = plan.config, pick_device(plan.processes.device or plan.config.device)
    network = build_initial_network(config, plan.table.heads, 0, size).to(device).train()
    x = torch.zeros(_PHOTOS, 3, *size, device=device).to(memory_format=torch.channels_last)
    steps: list[float] = []
    try:
        with tf32(device, config.tf32):
            while len(steps) < STEPS or sum(steps) < least:
                steps.append(_step_seconds(network, x, config.precision))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    return _WHOLE_STEP * statistics.median(steps) / _PHOTOS


def _step_seconds(network: nn.Module, x: Tensor, precision: str) -> float:
    synchronize(x.device)
    start = time.perf_counter()
    with autocast(x.device, precision):
        logits = network(x)
    logits.float().square().mean().backward()
    synchronize(x.device)
    return time.perf_counter() - start


def at_full_cost(plan: Plan) -> Plan:
    """The plan with all epochs as its last ones, which take the most: everything trains, on photos of full size."""
    update: dict[str, Any] = {"progressive": 1.0}
    if plan.config.unfreeze:
        update |= {"freeze": None, "unfreeze": None}
    return replace(plan, config=plan.config.model_copy(update=update))


def fit_batch_size(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan with the largest batch that fits into memory, if its setting bs is "auto".

    Batch sizes below the default divide it, and a step takes more of them, so that its photos stay the same. Raises
    UntrainableError if not even one photo fits.
    """
    if plan.config.bs != "auto":
        return plan
    for tried in smaller_batches(plan):
        if fits_memory(tried):
            config = tried.config
            batches = f", {config.accumulate} batches per step" if config.accumulate > 1 else ""
            say(f"--bs auto: {config.bs} photos per batch{batches}")
            return tried
    raise UntrainableError(f"Not even one photo fits into memory; {LESS_MEMORY}.")


def smaller_batches(plan: Plan) -> Iterator[Plan]:
    """The plan with its batch size and each divisor of it that it can train with, with the same photos per step."""
    photos = plan.config.batch
    for bs in range(photos, 0, -1):
        if photos % bs == 0:
            update = {"bs": bs, "accumulate": plan.config.accumulate * photos // bs}
            smaller = replace(plan, config=plan.config.model_copy(update=update))
            if trains_on_parts(smaller.config, plan.table.heads, plan.size, plan.count_trained(), plan.processes.count):
                yield smaller


def fits_memory(plan: Plan) -> bool:
    """Whether a few steps of a plan fit into memory."""
    try:
        rehearse(plan)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits_in = False
    else:
        fits_in = True
    # only now is there no reference to the memory
    free_memory()
    return fits_in


def free_memory() -> None:
    """Free what learners have left, which reference each other with their callbacks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_error(plan: Plan, fold: int, why: str, out: Path) -> UntrainableError:
    """The error of a fold that ran out of memory, with a batch size that fits."""
    failure = (
        f"Fold {fold + 1}/{plan.config.folds} ran out of memory with --bs {plan.config.bs} ({why}; see fastmask guide "
        "resume)"
    )
    kept = f"if another program took the memory: {resume_command(out)}"
    with suppress(RuntimeError, UsageError):
        # another error of the trial must not replace this one
        # of several processes perhaps only this one has failed
        trials = [] if plan.processes.count > 1 else islice(smaller_batches(plan), 1, None)
        tried = next((tried for tried in trials if fits_memory(tried)), None)
        if tried is not None:
            options = f"--bs {tried.config.bs} --accumulate {tried.config.accumulate}"
            anew = f"start anew with another --out and {options}, or --bs auto"
            return UntrainableError(f"{failure}. With as many photos per step this fits: {anew}; {kept}")
    return UntrainableError(f"{failure}, and no smaller one fits; {LESS_MEMORY}; {kept}")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queue, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    try:
        import resource
    except ImportError:
        # Windows has no such module
        import psutil

        now = psutil.Process().memory_info()
        return int(getattr(now, "peak_wset", now.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes, but on a Mac bytes
    return peak if sys.platform == "darwin" else peak * 1024
