"""Learner: a plain fastai Learner on several heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# imported for what they add to Learner: schedules, the progress bar, mixed precision, summary
import fastai.callback.fp16
import fastai.callback.hook
import fastai.callback.progress
import fastai.callback.schedule  # noqa: F401
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import trainable_params
from torch import nn

from fastmask.data.loaders import EncodeHeads
from fastmask.errors import UsageError
from fastmask.heads import Heads
from fastmask.model.losses import FocalLoss
from fastmask.model.metrics import default_metrics
from fastmask.model.network import MultiHeadNet, body_and_heads, build_network
from fastmask.model.optim import adamp_opt
from fastmask.randomness import Counted, Stream
from fastmask.training.callbacks import CountedSteps


def mask_learner(
    dls: DataLoaders,
    arch: str | nn.Module = "tf_efficientnet_b4",
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    loss_func: nn.Module | None = None,
    lr: float = 3e-4,
    wd: float = 1e-5,
    metrics: Any = None,
    cbs: Any = None,
    **kwargs: Any,
) -> Learner:
    """A fastai Learner for the heads of `dls`: a timm body with a linear layer a head, focal loss, AdamP.

    What is drawn for the network depends on the loaders' seed and fold alone. `arch` is a timm name, or a network of
    your own that gives logits (B, classes of all heads). `loss_func` must have `reduction`, `activation` and `decodes`,
    as `FocalLoss` has. `kwargs` go to the Learner. Weight decay applies to every weight, as the `adamp` package does
    it, not only to those that fastai would decay.
    """
    heads, network = heads_of(dls), arch
    if isinstance(network, str):
        with seeded(getattr(dls.train, "seed", 0), getattr(dls.train, "fold", 0)):
            network = build_network(
                network, heads, pretrained=pretrained, weights=weights, drop_rate=drop_rate, drop_path_rate=drop_path
            )
    splitter = body_and_heads if isinstance(network, MultiHeadNet) else trainable_params
    if metrics is None:
        metrics = default_metrics(heads, getattr(dls, "truth", None))
    return Learner(
        dls,
        network,
        loss_func=loss_func or FocalLoss(heads),
        opt_func=adamp_opt(),
        lr=lr,
        wd=wd,
        wd_bn_bias=True,
        splitter=kwargs.pop("splitter", splitter),
        metrics=metrics,
        cbs=[CountedSteps(), *(cbs or [])],
        **kwargs,
    )


@contextmanager
def seeded(seed: int, fold: int) -> Iterator[None]:
    """A block in which a network is made: what is drawn for it depends on (seed, fold) alone, and leaves no trace."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Counted(Stream.INIT, seed, fold).seed_at(0))
        yield


def heads_of(dls: DataLoaders) -> Heads:
    """The heads that a DataBlock with a `heads_block` encodes."""
    for pipeline in getattr(getattr(dls.train, "dataset", None), "tls", []):
        for transform in pipeline.tfms.fs:
            if isinstance(transform, EncodeHeads):
                return transform.heads
    raise UsageError(
        "These DataLoaders have no heads: build them by fastmask's dataloaders, or a DataBlock with heads_block."
    )
