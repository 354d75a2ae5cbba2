"""Linear probe: a linear model per head on what a pretrained body sees, whose answer is averaged with the network's."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.heads import Heads

# the rows and columns of places that feature maps are averaged over, and the number of maps
PLACES, _MAPS = (3, 2), 2
# the name of the linear probe in a network, and so in its checkpoints
PROBE = "probe"


class StageFeatures(nn.Module):
    """(B, 3, H, W) -> (B, features) float32 of a frozen copy of a body, always in evaluation mode.

    The pooled features of a body, made for the classes of its pretraining, omit much of what its last stages see (Evci
    et al. 2022, Head2Toe). So the last two feature maps are added, each averaged over 3 x 2 places. A body without
    timm's `forward_intermediates` has its pooled features alone.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = deepcopy(body).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StageFeatures:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        body: Any = self.body
        if not hasattr(body, "forward_intermediates"):
            pooled: Tensor = body(x)
            return pooled.float()
        last, maps = body.forward_intermediates(x, indices=_MAPS)
        parts = [body.forward_head(last), *(average_places(each).flatten(1) for each in maps)]
        return torch.cat([part.float() for part in parts], dim=1)


@dataclass(frozen=True)
class ProbeWeights:
    """`weight` (classes, features) and `bias` (classes,) float32 of the classes of all heads in `probed_heads`.

    The weights of a head without a model are all 0.
    """

    weight: Tensor
    bias: Tensor


class LinearProbe(nn.Module):
    """(B, 3, H, W) -> (B, classes) logits of each head with a model, by the head's position; of `features` if known."""

    weight: Tensor
    bias: Tensor

    def __init__(self, body: nn.Module, heads: Heads, weights: ProbeWeights) -> None:
        super().__init__()
        self.features = StageFeatures(body)
        self.register_buffer("weight", weights.weight)
        self.register_buffer("bias", weights.bias)
        positions = probed_heads(heads)
        self._sizes = [heads.sizes[position] for position in positions]
        parts = zip(positions, weights.weight.split(self._sizes), strict=True)
        self._positions = [position if bool(part.any()) else None for position, part in parts]

    def forward(self, x: Tensor, features: Tensor | None = None) -> dict[int, Tensor]:
        features = self.features(x) if features is None else features
        with torch.autocast(x.device.type, enabled=False):
            # in the precision that it was fitted in
            logits = F.linear(features, self.weight, self.bias)
        parts = zip(self._positions, logits.split(self._sizes, dim=1), strict=True)
        return {position: part for position, part in parts if position is not None}


def probed_heads(heads: Heads) -> list[int]:
    """The positions of the heads with a linear probe: all but those that merge another head's classes or are spread."""
    return [i for i, head in enumerate(heads) if heads.merges(i) is None and head.spread is None]


def mean_logits(own: Tensor, other: Tensor) -> Tensor:
    """The logits of the geometric mean of the softmax of two (B, classes) logits."""
    return (own.float().log_softmax(-1) + other.float().log_softmax(-1)) / 2


def average_places(features: Tensor) -> Tensor:
    """(B, channels, height, width) -> (B, channels, 3, 2) means: adaptive pooling, which ONNX lacks for some sizes."""
    sides = zip(features.shape[2:], PLACES, strict=True)
    rows, columns = (_shares(side, places).to(features) for side, places in sides)
    return rows @ features @ columns.T


def _shares(side: int, places: int) -> Tensor:
    """(places, side): a row for each place, whose product with a side's values is their mean there."""
    return F.adaptive_avg_pool1d(torch.eye(int(side))[None], places)[0].T
