"""Optimizers for fastai's Learner: AdamP, the groups of parameters and their learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastai.optimizer import OptimWrapper, set_item_pg
from timm.models import group_parameters
from torch import nn

from fastmask.model.adamp import AdamP
from fastmask.model.network import MultiHeadNet


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


def body_and_heads(network: MultiHeadNet) -> list[list[nn.Parameter]]:
    """fastai's splitter: the body's parameters, then the heads'."""
    return [list(network.body.parameters()), list(network.heads.parameters())]


def stages(body: nn.Module, coarse: bool = True) -> list[list[nn.Parameter]]:
    """A body's parameters in groups from input to features, as timm groups them: by stage, or else by block.

    A body without a grouping is one group.
    """
    matcher: Any = getattr(body, "group_matcher", None)
    if matcher is None:
        return [list(body.parameters())]
    number_of = group_parameters(body, matcher(coarse=coarse), reverse=True)
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in body.named_parameters():
        groups.setdefault(int(number_of[name]), []).append(parameter)
    return [groups[number] for number in sorted(groups)]


def blocks_and_heads(network: MultiHeadNet) -> list[list[nn.Parameter]]:
    """fastai's splitter: each block of the body from the input on, then the heads'."""
    return [*stages(network.body, coarse=False), list(network.heads.parameters())]


def layer_scales(network: MultiHeadNet, decay: float) -> list[float]:
    """The factor of the learning rate of each of `blocks_and_heads`: 1 for the heads, times `decay` per block below.

    Layer-wise decay, as in BEiT (Bao et al. 2021) and timm.
    """
    count = len(blocks_and_heads(network))
    return [decay ** (count - 1 - i) for i in range(count)]
