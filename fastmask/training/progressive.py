"""Progressive resizing: training begins with smaller photos, which grow to their full size."""

from __future__ import annotations

import math
from statistics import fmean

import torch
from fastai.learner import Callback
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastmask.model.archs import size_flaw
from fastmask.system.errors import UsageError
from fastmask.training.guards import SkipUnreadable

# sizes of equal parts of the training, the last one the full size; at each new size cuDNN chooses its algorithms anew
STEPS = 5


class Progressive(Callback):
    """Scales training batches to a share of their height and width, which rises from `start` to 1 in equal parts.

    A step of small photos costs less time, in proportion to their area, so more of them fit into a time limit (Howard
    2018; Tan and Le 2021). Validation sees the full size. It depends on the step alone, so that a resumed fit sees the
    same sizes.
    """

    # before photos are mixed, which then costs less
    order, run_valid = SkipUnreadable.order, False

    def __init__(self, start: float) -> None:
        self.start = start

    def before_batch(self) -> None:
        done = (self.epoch * self.n_iter + self.iter) / (self.n_epoch * self.n_iter)
        (x,) = self.learn.xb
        height, width = x.shape[-2:]
        size = scaled_size((height, width), self.start, int(done * STEPS))
        if size != (height, width):
            small = interpolate(x.as_subclass(Tensor), size=size, mode="bilinear", antialias=True)
            self.learn.xb = (small.contiguous(memory_format=torch.channels_last),)


def scaled_size(size: tuple[int, int], start: float, step: int) -> tuple[int, int]:
    """The (height, width) of one of STEPS parts of the training, counted from 0."""
    share = start + (1 - start) * step / (STEPS - 1)
    height, width = (max(1, round(side * share)) for side in size)
    return height, width


def mean_area(size: tuple[int, int], start: float) -> float:
    """The mean area of the photos of a training, relative to the full size."""
    return fmean(math.prod(scaled_size(size, start, step)) for step in range(STEPS)) / math.prod(size)


def check_progressive(network: nn.Module, arch: str, size: tuple[int, int], start: float) -> None:
    """Raise UsageError if a network cannot take, or cuts, photos of one of the sizes of the training."""
    for step in range(STEPS - 1):
        flaw = size_flaw(network, scaled_size(size, start, step))
        if flaw is not None:
            raise UsageError(
                f"Setting progressive is {start:g}, but {arch} {flaw}; leave it out, or take another --arch."
            )
