"""Processes: one fold trained by several of them, each with a GPU or a share of the cores, as one would.

A launcher starts them (`accelerate launch -m fastmask fit ...`, or torchrun), and Accelerate makes them a group. A
batch keeps its size: each process loads its share of it, and the loss, the metrics and the out-of-fold predictions are
of the whole. So what is learned is what one process would learn, to the rounding of sums, and all of them stop and
choose alike. The first alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

from fastmask.config import Config
from fastmask.data.loaders import pick_device
from fastmask.data.photo_dl import Share
from fastmask.system.errors import UsageError, install_line
from fastmask.system.terminal import launcher_rank

# how long a process waits for one that decodes all photos
_PATIENCE = timedelta(hours=12)
# seconds
_LOOK = 0.005


@dataclass(frozen=True)
class Processes:
    """Those that train a fold together, as one of them sees it: its number from 0, how many they are, its device."""

    number: int = 0
    count: int = 1
    device: torch.device | None = None
    # over which they agree without asking a GPU
    group: Any = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, and speaks."""
        return self.number == 0

    @property
    def share(self) -> Share:
        """What this one loads of a batch."""
        return Share(self.number, self.count)

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            met = dist.barrier(self.group, async_op=True)
            # not in torch, which would hold back a signal: where one process fails, the launcher ends the others
            while not met.is_completed():
                time.sleep(_LOOK)

    def highest(self, value: int) -> int:
        """The highest of all processes' values."""
        if self.count == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A block that the first process goes through before the others do, such as one that fills a cache.

        Where it fails there, the others wait for the launcher to end them.
        """
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


ALONE = Processes()


def join(config: Config) -> Processes:
    """Join the others that a launcher has started, if it has.

    Raises UsageError where Accelerate is missing, or for settings that several processes cannot have.
    """
    number, count = launcher_rank()
    if count == 1:
        return ALONE
    check_settings(config)
    from accelerate import PartialState

    device = pick_device(config.device)
    state = PartialState(cpu=device.type == "cpu")
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Processes(number, count, device if device.type == "cpu" else state.device, group)


def check_settings(config: Config) -> None:
    """Raise UsageError for settings that several processes cannot have."""
    if find_spec("accelerate") is None:
        raise UsageError(f"Several processes need the package accelerate; install it with {install_line('parallel')}.")
    if config.device is not None and ":" in config.device:
        raise UsageError(f"Several processes have a GPU each: leave out --device {config.device}.")
    for name, wrong, why in (
        ("hours", config.hours is not None, "their clocks would end a fold at different steps; set --epochs"),
        ("launcher ray", config.launcher != "local", "each trains the same fold; start it once"),
        ("bs auto", config.bs == "auto", "each would find another size; set a number"),
        ("on-bad-photo skip", config.on_bad_photo == "skip", "each sees its share alone; see fastmask check"),
    ):
        if wrong:
            raise UsageError(f"Several processes cannot have --{name}: {why}.")
