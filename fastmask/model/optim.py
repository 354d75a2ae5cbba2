"""Optimizers for fastai's Learner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import adamp
from fastai.optimizer import OptimWrapper
from torch import Tensor


class AdamP(adamp.AdamP):
    """AdamP (Heo et al. 2021) as in the `adamp` package, on weights in any memory format.

    The package's own step raises on channels-last weights, because it flattens with `view`; `reshape` gives the same
    numbers in the same order.
    """

    def _channel_view(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), -1)

    def _layer_view(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)


def adamp_opt(**options: Any) -> Callable[..., OptimWrapper]:
    """fastai's `opt_func` for AdamP; `options` go to the optimizer."""
    return partial(OptimWrapper, opt=AdamP, **options)
