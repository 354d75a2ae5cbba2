"""Processes: several processes that train one fold together, each with a GPU or a part of the cores.

A launcher starts them (`accelerate launch -m fastmask fit ...`, or torchrun), and Accelerate connects them. Each one
loads its share of a batch; the loss, the metrics and the out-of-fold predictions are computed on the whole batch. So
the result is that of a single process, except for rounding, and all of them stop at the same step. Only the first one
writes.
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

# how long a process waits for another that decodes all photos
_PATIENCE = timedelta(hours=12)
# seconds
_LOOK = 0.005


@dataclass(frozen=True)
class Processes:
    """The processes that train a fold together, for one of them: its number from 0, their count, its device."""

    number: int = 0
    count: int = 1
    device: torch.device | None = None
    # for communication without the GPU
    group: Any = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.number == 0

    @property
    def share(self) -> Share:
        """The share of a batch that this process loads."""
        return Share(self.number, self.count)

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            met = dist.barrier(self.group, async_op=True)
            # a wait within torch would block signals, by which the launcher ends the others after a failure
            while not met.is_completed():
                time.sleep(_LOOK)

    def highest(self, value: int) -> int:
        """The maximum over the processes."""
        if self.count == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """A block that the first process runs before the others, such as one that fills a cache.

        If it fails, the launcher ends the others.
        """
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


ALONE = Processes()


def join_processes(config: Config) -> Processes:
    """Connect with the other processes that a launcher has started, if any.

    Raises UsageError if Accelerate is missing, or for settings that several processes cannot have.
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
    limit = config.time_limit
    for name, wrong, why in (
        (limit, limit is not None, "their clocks would end a fold at different steps; set --epochs"),
        ("launcher ray", config.launcher != "local", "each trains the same fold; start it once"),
        ("bs auto", config.bs == "auto", "each would find another size; set a number"),
        ("compile auto", config.compile == "auto", "each would measure by itself; set on or off"),
        ("on-bad-photo skip", config.on_bad_photo == "skip", "each sees its share alone; see fastmask check"),
    ):
        if wrong:
            raise UsageError(f"Several processes cannot have --{name}: {why}.")
