"""Linear probe: heads that start as linear models on the features of the pretrained body, instead of at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fastmask.data.table import Table
from fastmask.heads import Heads
from fastmask.model.head_layers import LinearLayer
from fastmask.model.linear import fit_linear
from fastmask.model.network import MultiHeadNet
from fastmask.system.errors import UsageError

# on the squares of the weights of standardised features, see `fit_linear`
PENALTY = 0.3


def probed_heads(network: MultiHeadNet, heads: Heads) -> list[str]:
    """The heads that a linear probe fits: those of classes with a linear layer on the body's pooled features."""
    layers = dict(zip(heads.names, network.heads, strict=True))
    return [name for name in heads.classified if _is_plain(layers[name])]


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is LinearLayer and layer.input is None


def check_probe(network: MultiHeadNet, heads: Heads) -> None:
    """Raise UsageError if no head can be fitted."""
    if not probed_heads(network, heads):
        raise UsageError("Setting linear_probe has no effect: no head has a linear layer on the body's features alone.")


def start_from_probe(network: MultiHeadNet, table: Table, rows: np.ndarray, features: np.ndarray) -> None:
    """Fit the heads of a network to (N, features) of a table's photos, on (N,) bool rows of it.

    Fine-tuning then does not distort the features by the gradients of random heads (Kumar et al. 2022, LP-FT).
    """
    names = probed_heads(network, table.heads)
    positions = [table.heads.position(name) for name in names]
    own = Heads([replace(table.heads[name]) for name in names])
    y = table.train_y[:, positions]
    fitted = fit_linear(features, y, own, rows[None], np.full((1, len(own)), PENALTY))
    parts = zip(own.split(fitted.weight[0]), own.split(fitted.bias[0]), strict=True)
    with torch.no_grad():
        for position, (weight, bias) in zip(positions, parts, strict=True):
            layer = network.heads[position]
            assert isinstance(layer, LinearLayer)
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
