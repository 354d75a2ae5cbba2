"""Soup: the mean of several checkpoints' weights, one network that is as fast as any of them.

A uniform soup (Wortsman et al. 2022), here of the best epochs of one training, near to the averages along a training
of Izmailov et al. 2018 (SWA).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def average_states(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the tensors of each name, added up in float64; of whole numbers, such as counts, the first's.

    The states have the same names and shapes; they are asked for one after the other, so that one is held at a time.
    """
    first: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for count, state in enumerate(states, start=1):  # noqa: B007
        first = first or dict(state)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                sums[name] = sums.get(name, 0) + tensor.to(torch.float64)
    return {name: (sums[name] / count).to(tensor.dtype) if name in sums else tensor for name, tensor in first.items()}
