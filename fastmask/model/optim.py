"""Optimizers for fastai's Learner: AdamP, and the learning rates of its groups of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastai.optimizer import OptimWrapper, set_item_pg

from fastmask.model.adamp import AdamP


class GroupHypers(dict[str, Any]):
    """The hyper-parameters of one group by fastai's names; changes are written to the optimizer."""

    def __init__(self, values: dict[str, Any], group: dict[str, Any], names: dict[str, str]) -> None:
        super().__init__(values)
        self.group, self.names = group, names

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        set_item_pg(self.group, self.names[name], value)


class LiveOptim(OptimWrapper):
    """fastai's wrapper of a torch optimizer, with writable `hypers`.

    fastai's own optimizers have them, and its ReduceLROnPlateau writes to them, which has no effect on the wrapper. A
    learning rate that is set for all groups at once is multiplied by the `lr_scales`, one per group, if given.
    """

    def __init__(self, *args: Any, lr_scales: Sequence[float] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lr_scales = tuple(lr_scales)
        if self.lr_scales:
            self.set_hyper("lr", self.opt.defaults["lr"])

    def set_hyper(self, k: str, v: Any) -> None:
        """Set a hyper-parameter, to one value or to one per group."""
        if k == "lr" and self.lr_scales and isinstance(v, int | float):
            v = [v * scale for scale in self.lr_scales]
        super().set_hyper(k, v)

    @property
    def hypers(self) -> list[GroupHypers]:
        """A dictionary per group."""
        groups = self.opt.param_groups
        return [GroupHypers(*pair, self.bwd_map) for pair in zip(super().hypers, groups, strict=True)]


def adamp_opt(**options: Any) -> Callable[..., OptimWrapper]:
    """fastai's `opt_func` for AdamP; `options` are those of AdamP and `lr_scales`."""
    return partial(LiveOptim, opt=AdamP, **options)
