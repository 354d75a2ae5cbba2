"""Step: the precision of an optimizer step, how many batches it takes, and its losses, which stay on the device."""

from __future__ import annotations

from typing import Any

import torch
from fastai.callback.core import CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.learner import AvgLoss, AvgSmoothLoss, Callback, Learner, Recorder
from fastai.torch_core import get_model, to_float
from torch import Tensor

from fastmask.model.precision import autocast
from fastmask.system.errors import UsageError
from fastmask.training.average import EMA, SWA


def step_callbacks(precision: str, accumulate: int = 1, ema: float = 0.0, swa: float = 0.0) -> list[Callback]:
    """The callbacks of a resolved precision, batches per step and averaged weights."""
    if accumulate < 1:
        raise UsageError(f"A step takes 1 batch or more, found accumulate {accumulate}.")
    if ema and swa:
        raise UsageError("ema and swa are two averages of the same weights; choose one of them.")
    return [
        *([Precision(precision)] if precision != "fp32" else []),
        *([Accumulation(accumulate)] if accumulate > 1 else []),
        *([EMA(ema)] if ema else []),
        *([SWA(swa)] if swa else []),
    ]


class Precision(Callback):
    """Forward and loss in "bf16" or "fp16" (`torch.autocast`), on the device of the batch.

    Predictions are float32, also in validation. In fp16 the loss is scaled, and a step with overflowing gradients is
    skipped (`torch.amp.GradScaler`, which synchronizes with the device once per step); each fit has its own scaler.
    fastai's MixedPrecision does the same, but only on CUDA. After a Ctrl-C within a forward pass torch would stay in
    this precision; `ResumableLearner.fit` calls `leave`.
    """

    order = MixedPrecision.order

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


class Accumulation(GradientAccumulation):
    """One optimizer step per `batches` batches, as with one batch that many times as large.

    Batch norm still sees each batch alone, and the learning rate follows its schedule batch by batch. The remaining
    batches of an epoch go into the first step of the next; those of a fit's last epoch are dropped.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        # fastai counts photos
        super().__init__(n_acc=batches)

    def state_dict(self) -> dict[str, Any]:
        """The photos of an unfinished step and their gradients; see `state.StateSaver`."""
        grads = {name: p.grad for name, p in get_model(self.learn.model).named_parameters() if p.grad is not None}
        return {"count": self.count, "gradients": grads if self.count else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.count = state["count"]
        for name, p in get_model(self.learn.model).named_parameters():
            if name in state["gradients"]:
                p.grad = torch.empty_like(p).copy_(state["gradients"][name])

    def before_fit(self) -> None:
        super().before_fit()
        if self.learn.opt is not None:
            self.learn.opt.zero_grad()

    def before_train(self) -> None:
        self.n_acc = self.batches * self.learn.dls.train.bs


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
