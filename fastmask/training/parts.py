"""Parts: how few photos pass the network at once in training, and whether it can train on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastmask.config import Config
from fastmask.heads import Heads
from fastmask.system.errors import UsageError
from fastmask.training.build import build_initial_network
from fastmask.training.freeze import evaluate_batch_norm, evaluate_frozen, frozen_part

Size = tuple[int, int]
# how much larger batches are tried
_LARGER = 64


def smallest_part(photos: int, bs: int, accumulate: int = 1, processes: int = 1) -> int:
    """The fewest of `photos` that pass the network at once, since training drops the last incomplete batch.

    `enlarge_batches` makes batches of a step, `Share` divides them among processes, `Accumulation` into parts.
    """
    bs = min(bs, photos)
    step = min(accumulate * bs, photos)
    share = -(-step // processes)
    return share // min(-(-step // bs), share)


def check_parts(config: Config, heads: Heads, size: Size | None, trained: Sequence[int], processes: int) -> None:
    """Raise UsageError, with a batch size that works, if a part is too small for the batch norm of the network.

    `trained` are the numbers of photos that each fold trains on, `size` is their (height, width).
    """
    if trains_on_parts(config, heads, size, trained, processes):
        return
    larger = (config.model_copy(update={"bs": config.batch + more}) for more in range(1, _LARGER))
    bs = next((each.bs for each in larger if _fewest(each, trained, processes) > 1), None)
    mend = "give each fold more photos to train on" if bs is None else f"take --bs {bs}"
    raise UsageError(
        f"{config.arch} cannot train on one photo at once, because a batch norm of it would get one value per channel, "
        f"and with --bs {config.batch} that happens; {mend}, or another --arch."
    )


def trains_on_parts(config: Config, heads: Heads, size: Size | None, trained: Sequence[int], processes: int) -> bool:
    """Whether the network can train on the smallest part, see `check_parts`; tried where that is one photo."""
    if size is None or _fewest(config, trained, processes) > 1:
        return True
    network = build_initial_network(
        config.model_copy(update={"pretrained": False, "weights": None}), heads, 0, size
    ).train()
    if config.freeze is not None and config.unfreeze is None:
        evaluate_frozen(network, frozen_part(network, config.freeze))
    if config.freeze_bn and config.starts_pretrained:
        evaluate_batch_norm(network)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network(torch.zeros(1, 3, *size))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return False
    return True


def _fewest(config: Config, trained: Sequence[int], processes: int) -> int:
    return min(smallest_part(photos, config.batch, config.accumulate, processes) for photos in trained)
