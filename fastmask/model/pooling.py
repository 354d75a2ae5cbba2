"""Pooling: from the last features of a body to one vector per photo, for heads that pool by themselves."""

from __future__ import annotations

from typing import Any, get_args

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from fastmask.config import Pool
from fastmask.system.errors import UsageError

# the least value of a feature whose power is taken
_LEAST = 1e-6
GEM = "gem"
POOLS = get_args(Pool)


class GeM(nn.Module):
    """Generalized mean with a learned power, at first 3 (Radenović, Tolias, Chum 2019); 1 is the mean.

    (B, channels, height, width) -> (B, channels). Values below 0 count as 0.
    """

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([power]))

    def forward(self, features: Tensor) -> Tensor:
        power = self.power.float()
        means = features.float().clamp(min=_LEAST).pow(power).mean((2, 3))
        return means.pow(1 / power).to(features.dtype)


def build_pool(name: str) -> nn.Module:
    """(B, channels, height, width) -> (B, features): `GeM`, or one of timm's."""
    return GeM() if name == GEM else SelectAdaptivePool2d(pool_type=f"fast{name}", flatten=True)


def pooled_features(name: str, channels: int) -> int:
    """The number of features that a pooling makes of a map."""
    return channels if name == GEM else channels * int(SelectAdaptivePool2d(pool_type=name).feat_mult())


def check_map(body: nn.Module) -> None:
    """Raise UsageError for a body whose features cannot be pooled by a head."""
    if not hasattr(body, "forward_features") or not hasattr(body, "forward_head"):
        raise _no_map(body)


def to_places(body: nn.Module, features: Any) -> Tensor:
    """A body's last features -> (B, channels, places, 1); tokens without those that are of no place.

    Raises UsageError for features that are neither a map nor tokens.
    """
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise _no_map(body)
    if features.ndim == 3:
        return features[:, int(getattr(body, "num_prefix_tokens", 0)) :].transpose(1, 2).unsqueeze(-1)
    return (features.permute(0, 3, 1, 2) if is_channels_last(body, features) else features).flatten(2).unsqueeze(-1)


def is_channels_last(body: nn.Module, features: Tensor) -> bool:
    """Whether a body's map of 4 dimensions is (B, height, width, channels)."""
    return str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC") or (
        features.shape[-1] == getattr(body, "num_features", None) != features.shape[1]
    )


def _no_map(body: nn.Module) -> UsageError:
    return UsageError(f"{type(body).__name__} has no feature map, so no head can pool it; leave pool out of per_head.")
