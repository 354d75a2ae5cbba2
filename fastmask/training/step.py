"""Step: the precision of an optimizer step, the parts it is computed in, and its losses, which stay on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from fastai.callback.core import CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import AvgLoss, AvgSmoothLoss, Callback, Learner, Recorder
from fastai.torch_core import get_model, to_float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fastmask.model.precision import autocast
from fastmask.system.errors import UsageError
from fastmask.training.average import EMA, SWA


def step_callbacks(precision: str, parts: int = 1, ema: float = 0.0, swa: float = 0.0) -> list[Callback]:
    """The callbacks of a resolved precision, the parts of a batch and averaged weights."""
    if ema and swa:
        raise UsageError("ema and swa are two averages of the same weights; choose one of them.")
    return [
        *([Precision(precision)] if precision != "fp32" else []),
        *([Accumulation(parts)] if parts > 1 else []),
        *([EMA(ema)] if ema else []),
        *([SWA(swa)] if swa else []),
    ]


class Precision(Callback):
    """Forward and loss in "bf16" or "fp16" (`torch.autocast`), on the device of the batch.

    Predictions are float32, also in validation. In fp16 the loss is scaled, and a step with overflowing gradients is
    skipped (`torch.amp.GradScaler`, which synchronizes with the device once per step); each fit has its own scaler.
    fastai's MixedPrecision does the same, but only on CUDA. After a Ctrl-C within a forward pass torch would stay in
    this precision; `ResumableLearner.fit` calls `leave`.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, precision="bf16")
    >>> [cb for cb in learn.cbs if isinstance(cb, fm.Precision)]
    [Precision]
    """

    order = MixedPrecision.order
    # takes part in how a batch is computed, see `sam.SAM`
    computes = True

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._block: torch.autocast | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state of the scaler; see `state.StateSaver`."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scaler.load_state_dict(state)

    def before_fit(self) -> None:
        self.leave()
        device = next(self.learn.model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def before_batch(self) -> None:
        self._block = autocast(self.learn.xb[0].device, self.precision)
        self._block.__enter__()

    def after_pred(self) -> None:
        self.learn.pred = to_float(self.learn.pred)

    def after_loss(self) -> None:
        self.leave()

    def after_cancel_batch(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Compute in float32 again, if a batch was interrupted."""
        if self._block is not None:
            self._block.__exit__(None, None, None)
            self._block = None

    def before_backward(self) -> None:
        self.learn.loss_grad = self.scaler.scale(self.learn.loss_grad)

    def before_step(self) -> None:
        self._skipped = True
        # the scaler divides the gradients and steps an optimizer if they are finite; the learner steps the real one
        self.scaler.step(self)
        if self._skipped:
            raise CancelStepException()

    def after_step(self) -> None:
        self.scaler.update()

    @property
    def param_groups(self) -> Any:
        """Those of the optimizer, for the scaler."""
        return self.learn.opt.param_groups

    def step(self) -> None:
        """Called by the scaler instead of the optimizer's step, unless the gradients overflowed."""
        self._skipped = False


class Accumulation(Callback):
    """Computes the network on each training batch in `batches` parts: only one part's activations are in memory.

    All else sees the whole batch: mixing, the loss, the metrics. So a step is that of the whole batch, also for a loss
    that is not a mean over photos. All parts but the last are computed a second time for their gradients, with the same
    random numbers (Chen et al. 2016, `torch.utils.checkpoint`). Only batch norm sees each part alone; its running
    statistics count each part once. `mask_learner` enlarges the training batches as well.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, accumulate=2)
    >>> learn.accumulation, dls.train.bs, learn.dls.train.bs
    (Accumulation, 16, 32)
    """

    run_valid = False
    computes = True
    _hooks: Sequence[Any] = ()
    _logits: Sequence[Tensor] = ()

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def before_batch(self) -> None:
        self.leave()
        # only while it computes, since the network is copied (by EMA) and saved with its hooks
        network = get_model(self.learn.model)
        self._hooks = [network.register_forward_pre_hook(self._split), network.register_forward_hook(self._join)]

    def after_pred(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Remove the hooks; `ResumableLearner.fit` calls it after an interruption, too."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._logits = (), ()

    def _split(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute all parts but the last, which is left to the network."""
        (x,) = inputs
        *parts, last = x.tensor_split(min(self.batches, len(x)))
        contexts = partial(_recomputing, network)
        self._logits = [checkpoint(network.forward, part, use_reentrant=False, context_fn=contexts) for part in parts]
        return (last,)

    def _join(self, network: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        """The logits of all parts."""
        return torch.cat([*self._logits, logits])


def _recomputing(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a part's first computation, and of the second."""
    return nullcontext(), without_statistics(network)


@contextmanager
def without_statistics(network: nn.Module) -> Iterator[None]:
    """A block in which batch norm updates copies of its running statistics."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


class MeanLoss(AvgLoss):
    """The loss of all photos of a validation at once, kept on the device.

    fastai's mean of the batches' losses depends on their size if labels are unknown or weighted, or if the loss is not
    a mean over photos.
    """

    def reset(self) -> None:
        self._preds: list[Tensor] = []
        self._targets: list[tuple[Tensor, ...]] = []

    def accumulate(self, learn: Any) -> None:
        self._loss_func = learn.loss_func
        self._preds.append(learn.pred.detach())
        self._targets.append(learn.yb)

    @property
    def value(self) -> Tensor | None:
        if not self._preds:
            return None
        targets = map(torch.cat, zip(*self._targets, strict=True))
        with torch.no_grad():
            loss: Tensor = self._loss_func(torch.cat(self._preds), *targets)
        return loss.mean()


class SmoothLoss(AvgSmoothLoss):
    """fastai's smoothed loss, kept on the device."""

    val: Tensor

    def accumulate(self, learn: Any) -> None:
        loss = learn.loss.detach().mean()
        before = torch.zeros_like(loss) if self.count == 0 else self.val.to(loss.device)
        self.val = torch.lerp(loss, before, self.beta)
        self.count += 1


class LossesToHost(Callback):
    """Moves the recorder's losses to the host once per epoch, where `plot_loss` and `lr_find` need them."""

    order = Recorder.order + 1
    _start = 0

    def before_fit(self) -> None:
        self.run = hasattr(self.learn, "recorder")

    def before_train(self) -> None:
        self._start = len(self.learn.recorder.losses)

    def after_train(self) -> None:
        losses = self.learn.recorder.losses
        if losses[self._start :]:
            losses[self._start :] = torch.stack(losses[self._start :]).cpu().unbind()
        self._start = len(losses)

    def after_fit(self) -> None:
        # a fit that is cancelled in an epoch sends no after_train
        self.after_train()


def record_on_device(learn: Learner) -> None:
    """Make the learner's recorder keep losses on the device, since copying them in each step waits for it.

    Needs the callback `LossesToHost`.
    """
    if hasattr(learn, "recorder"):
        learn.recorder.loss, learn.recorder.smooth_loss = MeanLoss(), SmoothLoss(learn.recorder.smooth_loss.beta)


class AsyncCopy:
    """A copy of a tensor on its way to the host; `value` is valid once it `is_complete`.

    A plain copy waits until the GPU has finished all of its queue; this one is queued as well.
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor, self._copied = tensor.detach(), None
        if tensor.device.type != "cuda":
            self.value = tensor.cpu()
            return
        with torch.cuda.device(tensor.device):
            self.value = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.value.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def is_complete(self) -> bool:
        """Whether the copy is complete; never waits."""
        return self._copied is None or bool(self._copied.query())

    def wait(self) -> Tensor:
        """The value, once the copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return self.value
