"""Counted randomness: a random draw is a function of its purpose, so there is no state to pass on or to save.

A draw is identified by (stream, seed, fold, pass, position, photo). These are key and counter of Philox (Salmon et al.
2011), a counter-based generator, so that any draw can be made directly, in any process and order.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np

_WORD = 2**64


class Stream(IntEnum):
    """The purpose of a draw; two streams never share numbers."""

    ORDER = 0
    AUGMENT = 1
    STEP = 2
    INIT = 3
    BOOTSTRAP = 4
    PAINT = 5
    PARTNER = 6
    SEARCH = 7


class Counted:
    """A numpy generator that can be set to any (pass, position, photo) of its (stream, seed, fold) in microseconds.

    The generator is always the same object, so that libraries can keep a reference to it.
    """

    def __init__(self, stream: Stream, seed: int, fold: int = 0) -> None:
        key = (int(seed) % _WORD, (int(fold) % 2**32) << 8 | int(stream))
        self.bits = np.random.Philox(key=np.array(key, dtype=np.uint64))
        self.generator = np.random.Generator(self.bits)
        self._state: Any = self.bits.state

    def at(self, pass_: int, position: int = 0, photo: int = 0) -> np.random.Generator:
        """The generator, set to the first draw of (pass, position, photo)."""
        # the lowest word counts the draws themselves
        counter = np.array([0, pass_, position, photo], dtype=np.uint64)
        self._state["state"] = {"counter": counter, "key": self._state["state"]["key"]}
        self.bits.state = self._state
        return self.generator

    def seed_at(self, pass_: int, position: int = 0, process: int = 0) -> int:
        """A 63-bit seed for another library's generator, in one of several processes."""
        return int(self.at(pass_, position, process).integers(2**63))


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """A block in which the global generators of Python, NumPy and torch's CPU depend only on a 32-bit seed.

    Afterwards each is as it was before. For libraries that draw from them and take no generator.
    """
    import torch

    # not torch.manual_seed, which also sets the generators of GPUs
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - others draw from it
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])


# the name in learners that earlier versions exported; the classes that hold a `Counted` import this module first
sys.modules.setdefault("fastmask.randomness", sys.modules[__name__])
