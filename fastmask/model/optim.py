"""Optimizers for fastai's Learner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastai.optimizer import OptimWrapper, set_item_pg

from fastmask.model.adamp import AdamP


class GroupHypers(dict[str, Any]):
    """The hyper-parameters of one group by fastai's names; what is written here is written to the optimizer."""

    def __init__(self, values: dict[str, Any], group: dict[str, Any], names: dict[str, str]) -> None:
        super().__init__(values)
        self.group, self.names = group, names

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        set_item_pg(self.group, self.names[name], value)


class LiveOptim(OptimWrapper):
    """fastai's wrapper of a torch optimizer, with `hypers` that can be written to.

    fastai's own optimizers have such, and its ReduceLROnPlateau writes to them; on the wrapper it does nothing.
    """

    @property
    def hypers(self) -> list[GroupHypers]:
        """A dictionary a group."""
        groups = self.opt.param_groups
        return [GroupHypers(*pair, self.bwd_map) for pair in zip(super().hypers, groups, strict=True)]


def adamp_opt(**options: Any) -> Callable[..., OptimWrapper]:
    """fastai's `opt_func` for AdamP; `options` go to the optimizer."""
    return partial(LiveOptim, opt=AdamP, **options)
