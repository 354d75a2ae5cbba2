"""Step: what an optimizer step computes in, over how many batches, and the average of the weights that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from fastai.callback.core import CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.learner import AvgLoss, AvgSmoothLoss, Callback, Learner, Recorder
from fastai.torch_core import find_bs, get_model, to_float
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastmask.system.errors import FastmaskError, UsageError
from fastmask.training.callbacks import EarlyStopping, finds_lr

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# (1 - decay) falls as steps^-0.75, timm's advice for under a million steps: 0.99 after 460 of them, 0.999 after 10 000
_WARMUP_POWER = 0.75


def resolve_precision(name: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16": `name`, or what is fast on `device` where it is "auto".

    That is bf16 on a GPU that computes in it, fp16 on another, and fp32 on a CPU. Raises UsageError for fp16 on a CPU,
    and for a name that there is not.
    """
    if name not in ("auto", "fp32", *_DTYPES):
        raise UsageError(f"There is no precision {name!r}; expected auto, fp32, bf16 or fp16.")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("Precision fp16 needs a GPU; on a CPU take fp32 or bf16.")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def step_callbacks(precision: str, accumulate: int = 1, ema: float = 0.0, swa: float = 0.0) -> list[Callback]:
    """The callbacks of a resolved precision, batches a step and averaged weights; none where all are off."""
    if accumulate < 1:
        raise UsageError(f"A step takes 1 batch or more, found accumulate {accumulate}.")
    if ema and swa:
        raise UsageError("ema and swa are two averages of the same weights; take one of them.")
    return [
        *([Precision(precision)] if precision != "fp32" else []),
        *([Accumulation(accumulate)] if accumulate > 1 else []),
        *([EMA(ema)] if ema else []),
        *([SWA(swa)] if swa else []),
    ]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A block in which a network computes in a resolved `precision` on `device`; its weights stay float32."""
    return torch.autocast(device.type, dtype=_DTYPES.get(precision), enabled=precision in _DTYPES)


class Precision(Callback):
    """Forward and loss in "bf16" or "fp16" (`torch.autocast`), on whatever device the batch is.

    Predictions are handed on as float32, also in validation. In fp16 the loss is scaled, and a step whose gradients
    overflow is left out (`torch.amp.GradScaler`, which asks the device for that once a step); each fit has a scaler of
    its own. fastai's MixedPrecision does the same, but on CUDA alone. After a Ctrl-C within a forward pass torch would
    stay in this precision until the next fit or prediction; `ResumableLearner.fit` ends it at once.
    """

    order = MixedPrecision.order

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._block: torch.autocast | None = None

    def state_dict(self) -> dict[str, Any]:
        """The scaler's; see `state.StateSaver`."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
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
        """Compute in float32 again, if a batch was left in the middle."""
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
        """The optimizer's, for the scaler."""
        return self.learn.opt.param_groups

    def step(self) -> None:
        """What the scaler calls instead of the optimizer's step, unless the gradients overflowed."""
        self._skipped = False


class Accumulation(GradientAccumulation):
    """One optimizer step over the gradients of `batches` batches, as of one batch that many times as large.

    Batch norm still sees each batch for itself, and the learning rate follows its schedule batch by batch. The rest of
    an epoch that `batches` does not divide goes into the first step of the next; that of a fit's last epoch is dropped.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        # fastai counts photos
        super().__init__(n_acc=batches)

    def state_dict(self) -> dict[str, Any]:
        """The photos that a step is short of, and the gradients of those that it has; see `state.StateSaver`."""
        grads = {name: p.grad for name, p in get_model(self.learn.model).named_parameters() if p.grad is not None}
        return {"count": self.count, "gradients": grads if self.count else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
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


class EMA(Callback):
    """Averages the weights over the optimizer steps; validation, its metrics and what it leads to are of the average.

    The average is exponential with `decay` (`timm.utils.ModelEmaV3`), which is lower in the first steps of a fit: after
    n it is at most 1 - n^-0.75, so that a short fit does not average its own start. Batch norm's statistics are
    averaged with the weights: those of the last weights belong to other activations. Training goes on from the weights
    that it left; they are swapped, and take the memory of one network. A fit that ends by itself leaves the average in
    the network, as its last validation saw it; the next starts from there with an average of its own. One that is
    interrupted leaves what was in place; the next goes on from the weights that were trained.
    """

    # the average is in place until the last callback has kept or judged it
    order = EarlyStopping.order + 1

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"The decay of averaged weights lies between 0 and 1, such as 0.999; found {decay:g}.")
        self.decay = decay
        self._average: Any = None
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """The average and its steps; the trained weights are put back in place. See `state.StateSaver`."""
        self._show(average=False)
        average = {} if self._average is None else self._average.module.state_dict()
        return {"steps": self._steps, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._steps = state["steps"]
        if state["average"]:
            self._average = self._new_average()
            self._average.module.load_state_dict(state["average"])

    def _new_average(self) -> Any:
        return ModelEmaV3(get_model(self.learn.model), self.decay, use_warmup=True, warmup_power=_WARMUP_POWER)

    def _forget(self) -> None:
        self._average = None
        self._steps, self._swapped, self._skipped = 0, False, False

    def before_fit(self) -> None:
        # a fit that was interrupted in its validation has left the average in place
        self._show(average=False)
        self._forget()

    def before_train(self) -> None:
        if self._average is None and not finds_lr(self.learn):
            self._average = self._new_average()

    def after_cancel_step(self) -> None:
        self._skipped = True

    def after_step(self) -> None:
        # fastai sends it for a step that was left out, too
        if self._average is not None and not self._skipped:
            self._steps += 1
            self._average.update(get_model(self.learn.model), self._steps)
        self._skipped = False

    def before_validate(self) -> None:
        self._show(average=True)

    def after_epoch(self) -> None:
        self._show(average=False)

    def after_fit(self) -> None:
        self._show(average=True)
        self._forget()

    def _show(self, average: bool) -> None:
        if self._average is not None and self._swapped != average:
            swap_tensors(get_model(self.learn.model), self._average.module)
            self._swapped = average


class SWA(EMA):
    """Averages the weights at the ends of the epochs after a share `start` of a fit (Izmailov et al. 2018).

    All these epochs count alike, batch norm's statistics with them (`torch.optim.swa_utils.AveragedModel`). From the
    first of them on, validation and what it leads to are of the average, as with `EMA`.
    """

    def __init__(self, start: float = 0.75) -> None:
        if not 0 < start < 1:
            raise UsageError(f"swa is the share of the training before it, between 0 and 1; found {start:g}.")
        self.start = start
        self._average: Any = None
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._trained, self._counted = False, -1

    def _new_average(self) -> Any:
        # torch's own way on a GPU divides integers, and batch norm counts its batches
        return AveragedModel(get_model(self.learn.model), avg_fn=_running_mean, use_buffers=True)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "counted": self._counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        super().load_state_dict(state)
        self._counted = state["counted"]
        if self._average is not None:
            self._average.n_averaged.fill_(state["steps"])

    def before_train(self) -> None:
        self._trained = not finds_lr(self.learn)

    def after_step(self) -> None:
        """Nothing: an epoch counts when it is over."""

    def before_validate(self) -> None:
        # an epoch that was interrupted in its validation has counted already
        due = self.learn.epoch >= self.learn.n_epoch * self.start and self.learn.epoch != self._counted
        if self._trained and due:
            if self._average is None:
                self._average = self._new_average()
            self._average.update_parameters(get_model(self.learn.model))
            self._steps += 1
            self._counted = self.learn.epoch
        self._trained = False
        super().before_validate()


def _running_mean(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """The mean of `count` values and one more; of integers the last."""
    return mean + (value - mean) / (count + 1) if mean.is_floating_point() else value


def swap_tensors(one: nn.Module, other: nn.Module) -> None:
    """Exchange what the parameters and buffers of two alike networks hold, without a copy."""
    pairs = zip(chain(one.parameters(), one.buffers()), chain(other.parameters(), other.buffers()), strict=True)
    for a, b in pairs:
        a.data, b.data = b.data, a.data


class MeanLoss(AvgLoss):
    """fastai's mean of the losses, kept on the device until it is asked for."""

    def accumulate(self, learn: Any) -> None:
        photos = find_bs(learn.yb)
        self.total += learn.loss.detach().mean() * photos
        self.count += photos


class SmoothLoss(AvgSmoothLoss):
    """fastai's smoothed loss, kept on the device until it is asked for."""

    val: Tensor

    def accumulate(self, learn: Any) -> None:
        loss = learn.loss.detach().mean()
        before = torch.zeros_like(loss) if self.count == 0 else self.val.to(loss.device)
        self.val = torch.lerp(loss, before, self.beta)
        self.count += 1


class LossesToHost(Callback):
    """Moves the recorder's losses to the host once an epoch, where `plot_loss` and `lr_find` want them."""

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
    """Let the learner's recorder copy nothing to the host in a step, where fastai's waits for the device.

    `LossesToHost` has to be among its callbacks.
    """
    if hasattr(learn, "recorder"):
        learn.recorder.loss, learn.recorder.smooth_loss = MeanLoss(), SmoothLoss(learn.recorder.smooth_loss.beta)


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """A block in which a GPU multiplies and convolves float32 in TF32, or does not; elsewhere it changes nothing.

    By torch's older switches: torch 2.9 has others beside them, but its compiler stumbles where only those were set.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    try:
        before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError as error:
        raise UsageError(
            "This process has set TF32 by fp32_precision of torch.backends, which does not go with the setting tf32; "
            "set it by torch.set_float32_matmul_precision and torch.backends.cudnn.allow_tf32."
        ) from error
    try:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


def check_compiler(device: torch.device) -> None:
    """Raise FastmaskError if torch cannot compile for `device` here, which it would find out in the first step."""
    try:
        # a cached result would pass without a compiler
        compiled = torch.compile(lambda x: x.sin() + 1, options={"force_disable_caches": True})
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            compiled(torch.zeros(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise FastmaskError(
            f"torch cannot compile here ({why}); install a C++ compiler, and for a GPU triton, or leave --compile out."
        ) from error
