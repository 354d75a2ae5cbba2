"""Head layers: from the features of a photo to the logits of one head.

A layer is called with the (B, features) features and the logits of the heads that are computed before it, by position,
and returns (B, classes) logits, whose softmax is the probabilities of the classes. So all that follows takes the
softmax of a head's logits, however they are computed: a layer whose probabilities have another form returns their
logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.heads import Heads

Logits = Mapping[int, Tensor]


class LinearLayer(nn.Module):
    """A linear layer on the features."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        linear = nn.Linear(features, classes)
        # not the layer itself, so that checkpoints keep the names of its tensors
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """(B, features) -> (B, classes) logits."""
        return F.linear(features, self.weight, self.bias)


class MergedLayer(nn.Module):
    """The logits of classes that are unions of the classes of another head: the logarithms of their sums.

    `source` is the position of the other head, `target` (classes of the other head,) the class that each becomes.
    """

    def __init__(self, source: int, target: np.ndarray) -> None:
        super().__init__()
        self.source = source
        self.groups = [np.flatnonzero(target == number).tolist() for number in range(int(target.max()) + 1)]

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """The logits of the other head -> (B, classes) logits."""
        finer = logits[self.source].float()
        return torch.stack([finer[:, group].logsumexp(-1) for group in self.groups], dim=1)


def build_head_layers(heads: Heads, features: int) -> list[nn.Module]:
    """A layer per head, on `features` features."""
    layers: list[nn.Module] = []
    for position, size in enumerate(heads.sizes):
        merged = heads.merges(position)
        layers.append(LinearLayer(features, size) if merged is None else MergedLayer(*merged))
    return layers


def layer_order(heads: Heads) -> list[int]:
    """The positions of the heads in the order of their computation: those that merge the classes of another last."""
    return sorted(range(len(heads)), key=lambda position: heads.merges(position) is not None)
