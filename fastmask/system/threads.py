"""Threads: how many torch uses on a CPU, chosen by what other programs leave free."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# fewer threads are taken if they are so many times as fast, twice in a row
_FASTER = 1.3
# steps of each number of threads, the median of which counts, and their photos per thread
_STEPS, _PHOTOS = 5, 4


@contextmanager
def free_threads(given: int | None, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """A block in which torch has the `given` number of threads, or else as many as are fastest at its start.

    OpenMP's threads wait for each other by spinning, so next to another busy program all threads of a small network can
    take ten times as long as one. A user's OMP_NUM_THREADS is kept.
    """
    import torch

    before = torch.get_num_threads()
    try:
        picked = given or (before if os.environ.get("OMP_NUM_THREADS") else pick_threads(before))
        if picked < before and given is None:
            say(
                f"{picked} of {before} threads are faster now, perhaps next to another program (--threads {before} "
                "takes all; their number changes the last bits of the result)"
            )
        torch.set_num_threads(picked)
        yield
    finally:
        torch.set_num_threads(before)


def pick_threads(most: int) -> int:
    """`most` threads, half of them or one: the most, unless fewer are clearly faster now."""
    if most < 2:
        return most
    seconds = {count: _step_seconds(count, most) for count in sorted({most, most // 2, 1})}
    best = min(seconds, key=lambda count: seconds[count])
    if seconds[most] <= _FASTER * seconds[best]:
        return most
    # another program may have been busy for a moment
    return best if _step_seconds(most, most) > _FASTER * _step_seconds(best, most) else most


def _step_seconds(threads: int, most: int) -> float:
    """Seconds of a training step of a few small convolutions, with as many photos as `most` threads can share."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    # weights of their own random numbers, so that nothing else changes
    with torch.random.fork_rng(devices=[]):
        layers = [part for _ in range(4) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
        network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        x = torch.rand(_PHOTOS * most, 32, 28, 28).to(memory_format=torch.channels_last)
    taken = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        network(x).mean().backward()
        taken.append(time.perf_counter() - start)
    # the first step warms up
    return statistics.median(taken[1:])
