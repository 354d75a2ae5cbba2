"""Learner: a plain fastai Learner on several heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# imported for what they add to Learner: schedules, the progress bar, mixed precision
import fastai.callback.fp16
import fastai.callback.progress
import fastai.callback.schedule  # noqa: F401
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from fastmask.data.loaders import EncodeHeads
from fastmask.errors import UsageError
from fastmask.heads import Heads
from fastmask.model.losses import FocalLoss
from fastmask.model.metrics import default_metrics
from fastmask.model.network import body_and_heads, build_network
from fastmask.model.optim import adamp_opt
from fastmask.training.callbacks import CountedSteps


def mask_learner(
    dls: DataLoaders,
    arch: str | nn.Module = "tf_efficientnet_b4",
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    loss_func: nn.Module | None = None,
    lr: float = 3e-4,
    wd: float = 1e-5,
    metrics: Any = None,
    cbs: Any = None,
    **kwargs: Any,
) -> Learner:
    """A fastai Learner for the heads of `dls`: a timm body with a linear layer a head, focal loss, AdamP.

    `arch` is a timm name, or a network of your own that gives logits (B, classes of all heads). `loss_func` must have
    `reduction`, `activation` and `decodes`, as `FocalLoss` has. `kwargs` go to the Learner. Weight decay applies to
    every weight, as the `adamp` package does it, not only to those that fastai would decay.
    """
    heads = heads_of(dls)
    network = build_network(arch, heads, pretrained=pretrained, weights=weights) if isinstance(arch, str) else arch
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
        splitter=kwargs.pop("splitter", body_and_heads),
        metrics=metrics,
        cbs=[CountedSteps(), *(cbs or [])],
        **kwargs,
    )


def heads_of(dls: DataLoaders) -> Heads:
    """The heads that a DataBlock with a `heads_block` encodes."""
    for pipeline in getattr(getattr(dls.train, "dataset", None), "tls", []):
        for transform in pipeline.tfms.fs:
            if isinstance(transform, EncodeHeads):
                return transform.heads
    raise UsageError(
        "These DataLoaders have no heads: build them by fastmask's dataloaders, or a DataBlock with heads_block."
    )
