"""Bench: what limits the speed of a run on this machine, compared with a plain PyTorch loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.data.core import TfmdDL

from fastmask.data.loaders import pick_device, pick_workers
from fastmask.model.precision import autocast, tf32
from fastmask.model.schedule import schedule_of
from fastmask.system.errors import UsageError
from fastmask.training.build import build_initial_network
from fastmask.training.guards import FiniteLoss
from fastmask.training.plan import Plan
from fastmask.training.progressive import mean_area
from fastmask.training.rehearsal import Rehearsal, at_full_cost, rehearse, synchronize

# the fewest pairs of steps that are timed, and the pairs before them that warm up
_ROUNDS, _WARM = 5, 2
# steps per turn on a GPU
_GPU_TURN = 10
_MOST_SECONDS = 86400
# the fraction of a step below which nothing is worth changing
_SMALL = 0.05


@dataclass(frozen=True)
class Bench:
    """Median seconds per step of `bs` photos: loading, the bare step, and a training step including loading.

    `efficiency` is the speed of training relative to the bare step; `recomputes` is whether training computes parts of
    the batch twice.
    """

    bs: int
    load: float
    bare: float
    train: float
    efficiency: float
    advice: list[str]
    rehearsal: Rehearsal
    recomputes: bool = False

    @property
    def limit(self) -> str:
        """What limits a step."""
        if self.efficiency >= 1 - _SMALL:
            return "the network itself"
        if self.load > self.train * _SMALL:
            return "loading"
        return "computing parts of a batch twice" if self.recomputes else "what is done around the network's step"

    def __str__(self) -> str:
        def row(seconds: float) -> str:
            return f"{1000 * seconds / self.bs:8.3f} ms per photo, {self.bs / seconds:8.1f} photos/s"

        rows = {
            "loading": f"{row(self.load)}: the training loader alone, to the batch on the device",
            "bare step": f"{row(self.bare)}: one resident batch of {self.bs} in a plain PyTorch loop",
            "training": f"{row(self.train)}: {self.efficiency:.1%} of the bare step's speed, loading included",
            "limit": self.limit,
        }
        lines = [f"{name:10}{text}" for name, text in rows.items()]
        return "\n".join([*lines, *str(self.rehearsal).splitlines(), *(f"change    {text}" for text in self.advice)])

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "bs": self.bs,
            "load_seconds_a_batch": self.load,
            "bare_seconds_a_batch": self.bare,
            "train_seconds_a_batch": self.train,
            "efficiency": self.efficiency,
            "limit": self.limit,
            "advice": self.advice,
            "epoch_seconds": self.rehearsal.epoch_seconds,
            "run_seconds": self.rehearsal.run_seconds,
            "memory_bytes": self.rehearsal.memory,
            "device_memory_bytes": self.rehearsal.device_memory,
            "disk_bytes": self.rehearsal.disk,
        }


def bench(plan: Plan, seconds: float = 20.0) -> Bench:
    """Time the loader, the bare step and the training of the first fold, for about `seconds`, at least a few steps.

    Training and bare steps alternate, so that other load of the machine affects both.
    """
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(f"--seconds is {seconds:g}; expected more than 0, at most {_MOST_SECONDS}.")
    rehearsal, area = rehearse(plan), mean_area(plan.size or (1, 1), plan.config.progressive)
    plan = at_full_cost(plan)
    config = plan.config
    # the callbacks of a fold that run in each step
    schedule = schedule_of(config)
    learn = plan.learner(0, [*schedule, FiniteLoss()])
    load = loading_seconds(learn.dls.train, seconds / 10)
    turns = Turns(bare_step(plan, learn.dls.train.one_batch()), seconds)
    learn.add_cb(turns)
    with tf32(learn.dls.device, config.tf32):
        # more epochs than needed; the callback ends the fit
        learn.fit(10**6)
    train, bare, efficiency = turns.medians()
    return Bench(
        bs=learn.dls.train.bs,
        load=load,
        bare=bare,
        train=train,
        efficiency=efficiency,
        advice=advice(plan, load, bare, train, rehearsal.device_memory),
        rehearsal=replace(rehearsal, train_step=train * area),
        recomputes=learn.dls.train.bs > config.batch,
    )


def loading_seconds(dl: TfmdDL, seconds: float) -> float:
    """Seconds per batch of a loader alone, without the first ones, which loading processes have prefetched."""
    batches: Iterator[Any] = chain.from_iterable(repeat(dl))
    for _ in islice(batches, 1 + 2 * dl.num_workers):
        pass
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        batch = next(batches)
        count += 1
    synchronize(batch[0].device)
    return (time.perf_counter() - start) / count


def bare_step(plan: Plan, batch: Any) -> Callable[[], None]:
    """A step of a plain PyTorch loop with the settings of the plan, on a batch that is on the device.

    With several batches per step it adds up their gradients, which is exact only for a mean over photos; with SAM it
    computes them twice, at the same weights.
    """
    config = plan.config
    x, y = (tensor.as_subclass(torch.Tensor).split(config.batch) for tensor in batch)
    device = x[0].device
    network = build_initial_network(config, plan.table.heads, 0, plan.size).to(device)
    loss_func = plan.loss().to(device)
    optimizer = plan.optimizer(network)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    if config.compile == "on":
        network.body.compile()

    def step() -> None:
        for photos, targets in (2 if config.sam else 1) * list(zip(x, y, strict=True)):
            with autocast(device, config.precision):
                logits = network(photos)[:, : plan.table.heads.n_logits]
                loss = loss_func(logits, targets) / len(x)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


class Turns(Callback):
    """Times training steps and bare steps in turns, as `pairs` of seconds per step, and ends the fit after enough.

    On a GPU a turn has several steps, since it is asynchronous. After a bare turn loading processes have prefetched
    batches, so the steps that use these are not timed. Validation is skipped.
    """

    order = 100

    def __init__(self, bare: Callable[[], None], seconds: float) -> None:
        self.bare, self.seconds = bare, seconds
        self.pairs: list[tuple[float, float]] = []

    def before_fit(self) -> None:
        train, self._until = self.learn.dls.train, time.perf_counter() + self.seconds
        self.turn = min(_GPU_TURN if self.learn.dls.device.type == "cuda" else 1, len(train))
        self.ahead = min(2 * train.num_workers, len(train) - self.turn)

    def before_train(self) -> None:
        self._begin()

    def after_batch(self) -> None:
        self._steps += 1
        if self._steps == self.ahead:
            self._start = self._now()
        elif self._steps == self.ahead + self.turn:
            middle = self._now()
            for _ in range(self.turn):
                self.bare()
            self.pairs.append(((middle - self._start) / self.turn, (self._now() - middle) / self.turn))
            if len(self.pairs) >= _WARM + _ROUNDS and middle > self._until:
                raise CancelFitException
            self._begin()

    def medians(self) -> tuple[float, float, float]:
        """Seconds of a training step and of a bare step, and the speed of training relative to the bare step."""
        pairs = self.pairs[_WARM:]
        train, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
        return train, bare, bare / train

    def _begin(self) -> None:
        self._steps, self._start = 0, self._now()

    def _now(self) -> float:
        synchronize(self.learn.dls.device)
        return time.perf_counter()

    def before_validate(self) -> None:
        raise CancelEpochException


def advice(plan: Plan, load: float, bare: float, train: float, device_memory: int) -> list[str]:
    """What would make a run faster, according to the measurements."""
    config, device = plan.config, pick_device(plan.config.device)
    tips = []
    if not any(len(kept) for kept in plan.maps):
        tips.append("photos are decoded in every epoch: --cache disk decodes them once")
    if load > bare * (1 - _SMALL):
        workers = pick_workers(config.workers, device)
        than = f" than {', '.join(config.augment)}" if config.augment else ""
        tips.append(
            f"loading is as slow as the network: more than --workers {workers}, or a lighter augmentation{than}"
        )
    if config.sam:
        tips.append("each step computes its batch twice: without --sam it takes half the time")
    if config.accumulate > 1:
        tips.append("all but one of a step's batches are computed twice: a larger --bs with a smaller --accumulate")
    if device.type != "cuda" and bare > train * (1 - 2 * _SMALL):
        tips.append("nearly all time is the network's: fewer pixels (--crop, --resize) or a smaller --arch cost less")
    if device.type != "cuda":
        return tips
    if config.precision == "fp32":
        tips.append("fp32: --precision auto uses 16 bits if the GPU is fast in them")
    if device_memory * 2 < torch.cuda.get_device_properties(device).total_memory:
        tips.append(f"the GPU's memory is less than half full: --bs {2 * config.bs} would fit")
    return tips
