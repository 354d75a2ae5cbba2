"""Folding: batch norms as a part of the convolutions before them, which predict the same in less time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastmask.model.precision import tf32

# subclasses may compute with other weights than their own
_CONVOLUTIONS, _NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)
# the attribute of a network that was folded, or tried
_DONE = "has_folded_batch_norms"
# how far logits may be from those before, relative to the largest one
_TOLERANCE = 1e-4


@torch.no_grad()
def fold_batch_norms(network: nn.Module, size: tuple[int, int]) -> int:
    """Fold batch norms of a network in evaluation mode into its convolutions, in place; returns how many.

    The network predicts two random photos of `size` (height, width), so that it is known which convolution is followed
    by which batch norm, and again to compare. Logits change by rounding; the network is not for training any more, and
    its weights are not those of a checkpoint.
    """
    if network.training or getattr(network, _DONE, False):
        return 0
    setattr(network, _DONE, True)
    if not any(type(module) in _NORMS for module in network.modules()):
        return 0
    parameter = next(network.parameters())
    made = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=made).to(parameter).to(memory_format=torch.channels_last)
    # TF32 would differ by more than folding
    with tf32(x.device, False):
        with _watch(network) as pairs:
            before = network(x)
        paths = {module: path for path, module in network.named_modules()}
        undo = [_fold(network, paths[norm], conv, norm) for conv, norm in pairs]
        after = network(x)
    if not torch.allclose(after, before, rtol=0, atol=_TOLERANCE * max(1.0, float(before.abs().max()))):
        # what a convolution gives is used in another place, too
        for conv, state, parent, name, norm in undo:
            conv.weight, conv.bias = state
            setattr(parent, name, norm)
        return 0
    return len(pairs)


@contextmanager
def _watch(network: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """A block in which the network runs once; the convolutions and the batch norms after them, each used once."""
    pairs: list[tuple[Any, Any]] = []
    found: list[tuple[Any, Any]] = []
    calls: Counter[nn.Module] = Counter()
    # outputs are kept, so that their ids stay theirs
    outputs: dict[int, tuple[Any, Tensor]] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] += 1
        if type(module) in _CONVOLUTIONS:
            outputs[id(output)] = (module, output)
        elif inputs and id(inputs[0]) in outputs:
            found.append((outputs[id(inputs[0])][0], module))

    watched = [module for module in network.modules() if type(module) in (*_CONVOLUTIONS, *_NORMS)]
    handles = [module.register_forward_hook(note) for module in watched]
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()
    # a convolution before two batch norms cannot hold both
    followed = Counter(conv for conv, _ in found)
    pairs.extend(
        (conv, norm)
        for conv, norm in found
        if calls[conv] == calls[norm] == followed[conv] == 1 and norm.running_mean is not None
    )


def _fold(
    network: nn.Module, path: str, conv: Any, norm: Any
) -> tuple[Any, tuple[Any, Any], nn.Module, str, nn.Module]:
    """Fold the batch norm at a path of the network; returns what undoes it."""
    state = conv.weight, conv.bias
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
    setattr(owner, name, nn.Sequential(*(part for part in rest if not isinstance(part, nn.Identity))))
    return conv, state, owner, name, norm
