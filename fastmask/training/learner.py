"""Learner: a plain fastai Learner on several heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# imported for the methods that they add to Learner: schedules, mixed precision, memory formats, summary
import fastai.callback.channelslast
import fastai.callback.fp16
import fastai.callback.hook
import fastai.callback.progress
import fastai.callback.schedule  # noqa: F401
import torch
from fastai.data.core import DataLoaders
from fastai.layers import NoneReduce
from fastai.learner import AvgMetric, Learner, Metric, mk_metric
from fastai.metrics import AccumMetric
from fastai.torch_core import to_detach, trainable_params
from fastcore.foundation import L
from torch import nn

from fastmask.config import make_config
from fastmask.data.loaders import enlarge_batches, pick_device
from fastmask.data.transforms import EncodeHeads
from fastmask.heads import Heads
from fastmask.labels import soft_labels
from fastmask.model.archs import needs_size
from fastmask.model.losses import FocalLoss
from fastmask.model.metrics import default_metrics
from fastmask.model.network import MultiHeadNet, blocks_and_heads, body_and_heads, build_network, layer_scales
from fastmask.model.optim import live_opt
from fastmask.model.precision import resolve_precision
from fastmask.system.errors import UsageError, one_line
from fastmask.system.randomness import Counted, Stream
from fastmask.training import pictures  # noqa: F401 - registers show_results and plot_top_losses for several heads
from fastmask.training.callbacks import CountedSteps
from fastmask.training.state import ResumableLearner
from fastmask.training.step import LossesToHost, record_on_device, step_callbacks
from fastmask.training.validation import MeanOfViews


def mask_learner(
    dls: DataLoaders,
    arch: str | nn.Module = "tf_efficientnet_b4",
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    per_head: Mapping[str, Any] | None = None,
    loss_func: Any = None,
    opt_func: str | Callable[..., Any] = "adamp",
    lr: float = 3e-4,
    wd: float = 1e-5,
    metrics: Any = None,
    precision: str = "fp32",
    accumulate: int = 1,
    ema: float = 0.0,
    swa: float = 0.0,
    layer_decay: float = 1.0,
    views: Sequence[str] = (),
    cbs: Any = None,
    **kwargs: Any,
) -> Learner:
    """A fastai Learner for the heads of `dls`: a timm body with a linear layer per head, focal loss, AdamP.

    Args:
        arch: a timm name, or a network (B, 3, H, W) -> logits (B, classes of all heads). The random weights of a timm
            network depend only on the seed and fold of the loaders.
        per_head: the loss and the layer of single heads by name, as the setting `per_head`: {"age": {"loss": "coral"}}.
        loss_func: has `reduction`, `activation`, `decodes`, as `FocalLoss`. UsageError if it or a metric does not fit.
        opt_func: the optimizer, see `fastmask.model.optim.live_opt`: a name, a class of torch's, fastai's `opt_func`.
        wd: applies to every weight, as in the `adamp` package, not only to those that fastai would decay.
        precision: auto, fp32, bf16 or fp16: the callback `Precision`.
        accumulate: how much larger training batches are than in `dls`; the callback `Accumulation` divides them.
        ema, swa: a decay, and the fraction of the training before the average; 0 for none: the callbacks `EMA`, `SWA`.
        layer_decay: the learning rate of a block relative to the one above it; below 1, each is a parameter group.
        views: of `fastmask.model.views.VIEWS`: the callback `MeanOfViews` validates by the mean over them.
        kwargs: passed to the Learner, also to replace what is set here (`splitter`).

    Example:
        >>> fm.mask_learner(dls, "test_resnet", pretrained=False).model(dls.one_batch()[0]).shape
        torch.Size([16, 8])
    """
    heads, network, options = heads_of(dls), arch, make_config({"per_head": per_head}).per_head
    if isinstance(network, str):
        drops = {"drop_rate": drop_rate, "drop_path_rate": drop_path}
        network = _new_network(dls, heads, network, pretrained=pretrained, weights=weights, per_head=options, **drops)
    groups = _make_groups(network, layer_decay, opt_func, kwargs)
    loss_func = FocalLoss(heads, per_head=options) if loss_func is None else check_loss(loss_func, heads)
    if metrics is None:
        metrics = default_metrics(heads, getattr(dls, "truth", None))
    metrics = [check_metric(mk_metric(metric), heads) for metric in L(metrics)]
    settings = {**groups, "lr": lr, "wd": wd, "wd_bn_bias": True, **kwargs}
    precision = resolve_precision(precision, pick_device(getattr(dls, "device", None)))
    dls, parts = enlarge_batches(dls, accumulate)
    validation = [MeanOfViews(heads, views)] if views else []
    cbs = [CountedSteps(), LossesToHost(), *step_callbacks(precision, parts, ema, swa), *validation, *L(cbs)]
    learn = ResumableLearner(dls, network, loss_func=loss_func, metrics=metrics, cbs=cbs, **settings)
    record_on_device(learn)
    return learn


def _new_network(dls: DataLoaders, heads: Heads, arch: str, **options: Any) -> MultiHeadNet:
    """A timm network for the photos of `dls`, initialized by their seed and fold."""
    size = tuple(dls.valid.one_batch()[0].shape[-2:]) if needs_size(arch) else None
    with seeded(getattr(dls.train, "seed", 0), getattr(dls.train, "fold", 0)):
        return build_network(arch, heads, size=size, **options)


def _make_groups(network: nn.Module, layer_decay: float, opt_func: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The splitter into groups of parameters, and the optimizer.

    With a `layer_decay` there is a group per block of the body, at a lower learning rate than the block above.
    """
    if layer_decay == 1:
        splitter = body_and_heads if isinstance(network, MultiHeadNet) else trainable_params
        return {"splitter": splitter, "opt_func": live_opt(opt_func)}
    if "splitter" in given:
        raise UsageError("layer_decay makes the groups and their rates: leave splitter out.")
    if not isinstance(network, MultiHeadNet) or not 0 < layer_decay < 1:
        raise UsageError(f"layer_decay is {layer_decay:g}; expected above 0 to 1, and under 1 only for a timm body.")
    return {"splitter": blocks_and_heads, "opt_func": live_opt(opt_func, layer_scales(network, layer_decay))}


def check_loss(loss_func: Any, heads: Heads) -> Any:
    """`loss_func`, if it works on logits and class numbers of these heads and has what fastai needs to decode.

    Raises UsageError otherwise. It is tried on two photos, since fastai would fail in the middle of an epoch, or never.
    """
    buffer = next(loss_func.buffers(), None) if isinstance(loss_func, nn.Module) else None
    logits = torch.zeros(2, heads.n_logits, device=None if buffer is None else buffer.device)
    y = logits.new_zeros(2, len(heads), dtype=torch.int64)
    try:
        with torch.no_grad(), NoneReduce(loss_func) as each:
            shapes = each(logits, y).shape[:1], loss_func.activation(logits).shape, loss_func.decodes(logits).shape
        if shapes != (y.shape[:1], logits.shape, y.shape):
            raise ValueError(f"it gives {', '.join(str(tuple(shape)) for shape in shapes)}")
    except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        name, n = getattr(loss_func, "__name__", type(loss_func).__name__), len(heads)
        raise UsageError(
            f"{name} cannot be the loss of {n} heads ({one_line(error)}): expected reduction 'none' to give (B,), "
            f"activation probabilities (B, {heads.n_logits}), decodes class numbers (B, {n}), as FocalLoss and "
            "CrossEntropyLoss of fastmask do."
        ) from error
    return loss_func


def check_soft(loss_func: Any, heads: Heads) -> None:
    """Raise UsageError for a loss that cannot use soft labels, which mixed and extra photos have."""
    buffer = next(loss_func.buffers(), None) if isinstance(loss_func, nn.Module) else None
    logits = torch.linspace(-1, 1, 3 * heads.n_logits).reshape(3, -1).to(None if buffer is None else buffer.device)
    y = torch.tensor([[i % size for size in heads.sizes] for i in range(3)], device=logits.device)
    try:
        with torch.no_grad():
            hard, soft = (float(loss_func(logits, labels)) for labels in (y, soft_labels(y, heads)))
        if not math.isclose(hard, soft, rel_tol=1e-3, abs_tol=1e-6):
            raise ValueError(f"of the same labels it gives {hard:.4g} as class numbers and {soft:.4g} as soft ones")
    except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{type(loss_func).__name__} cannot take soft labels ({one_line(error)}), which mixup, cutmix, "
            f"half_cutmix, extra and teacher make: (B, {heads.n_logits}) weights of the classes, see "
            "fastmask.soft_labels."
        ) from error


def check_metric(metric: Metric, heads: Heads) -> Metric:
    """`metric`, unless it is one of fastai's for a single class per photo; raises UsageError then.

    Metrics that fastai makes of functions are tried on two photos, since they would fail only after the first epoch.
    """
    if isinstance(metric, AvgMetric | AccumMetric):
        logits, y = torch.zeros(2, heads.n_logits), torch.zeros(2, len(heads), dtype=torch.int64)
        metric.reset()
        try:
            metric.accumulate(SimpleNamespace(pred=logits, y=y, yb=(y,), to_detach=to_detach))
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"The metric {metric.name} cannot score {len(heads)} heads; take MacroF1 and Accuracy of fastmask, or "
                f"a function of logits (B, {heads.n_logits}) and class numbers (B, {len(heads)})."
            ) from error
        metric.reset()
    return metric


@contextmanager
def seeded(seed: int, fold: int) -> Iterator[None]:
    """A block in which random numbers depend only on (seed, fold), and do not affect later ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Counted(Stream.INIT, seed, fold).seed_at(0))
        yield


def heads_of(dls: DataLoaders) -> Heads:
    """The heads that a DataBlock with a `heads_block` encodes.

    >>> fm.heads_of(dls).names
    ('mask', 'gender', 'age')
    """
    for pipeline in getattr(getattr(dls.train, "dataset", None), "tls", []):
        for transform in pipeline.tfms.fs:
            if isinstance(transform, EncodeHeads):
                return transform.heads
    raise UsageError(
        "These DataLoaders have no heads: build them by fastmask's dataloaders, or a DataBlock with heads_block."
    )
