"""Average: averages of the weights over a fit (EMA, SWA), which are validated and kept while the weights train."""

from __future__ import annotations

from itertools import chain
from typing import Any

from fastai.learner import Callback
from fastai.torch_core import get_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastmask.system.errors import UsageError
from fastmask.training.callbacks import EarlyStopping, finds_lr

# (1 - decay) falls as steps^-0.75, timm's advice for under a million steps: 0.99 after 460 of them, 0.999 after 10 000
_WARMUP_POWER = 0.75


class EMA(Callback):
    """Averages the weights over the optimizer steps; validation, checkpoints and predictions use the average.

    The average is exponential with `decay` (`timm.utils.ModelEmaV3`), which is lower in the first steps of a fit: after
    n it is at most 1 - n^-0.75, so that a short fit does not average its own start. Batch norm's statistics are
    averaged with the weights, since those of the last weights belong to other activations. For validation the average
    is swapped in, which takes the memory of one more network; training continues from the trained weights. A fit that
    ends normally leaves the average in the network, and the next fit starts from it with a new average. After an
    interruption the next fit starts from the trained weights.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, ema=0.99)
    >>> learn.ema, learn.ema.decay
    (EMA, 0.99)
    """

    # the average is in place until the last callback has saved or judged it
    order = EarlyStopping.order + 1

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"The decay of averaged weights lies between 0 and 1, such as 0.999; found {decay:g}.")
        self.decay = decay
        self._average: Any = None
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """The average and its steps; puts the trained weights back. See `state.StateSaver`."""
        self._show(average=False)
        average = {} if self._average is None else self._average.module.state_dict()
        return {"steps": self._steps, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
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
        # a fit that was interrupted in its validation left the average in place
        self._show(average=False)
        self._forget()

    def before_train(self) -> None:
        if self._average is None and not finds_lr(self.learn):
            self._average = self._new_average()

    def after_cancel_step(self) -> None:
        self._skipped = True

    def after_step(self) -> None:
        # fastai calls it for a skipped step, too
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
    """Averages the weights at the end of each epoch after the fraction `start` of a fit (Izmailov et al. 2018).

    These epochs have equal weight, batch norm's statistics included (`torch.optim.swa_utils.AveragedModel`). From the
    first of them on, the average is validated, as with `EMA`.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, swa=0.5)
    >>> learn.swa, learn.swa.start
    (SWA, 0.5)
    """

    def __init__(self, start: float = 0.75) -> None:
        if not 0 < start < 1:
            raise UsageError(f"swa is the fraction of the training before it, between 0 and 1; found {start:g}.")
        self.start = start
        self._average: Any = None
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._counted = -1

    def _new_average(self) -> Any:
        # torch's default on a GPU divides integers, but batch norm counts batches
        return AveragedModel(get_model(self.learn.model), avg_fn=_running_mean, use_buffers=True)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "counted": self._counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._counted = state["counted"]
        if self._average is not None:
            self._average.n_averaged.fill_(state["steps"])

    def before_train(self) -> None:
        """Nothing: the average starts with the first epoch that it takes."""

    def after_step(self) -> None:
        """Nothing: SWA averages once per epoch."""

    def after_train(self) -> None:
        # an epoch that was interrupted in its validation is already counted
        due = self.learn.epoch >= self.learn.n_epoch * self.start and self.learn.epoch != self._counted
        if due and not finds_lr(self.learn):
            if self._average is None:
                self._average = self._new_average()
            self._average.update_parameters(get_model(self.learn.model))
            self._steps += 1
            self._counted = self.learn.epoch


def _running_mean(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """The mean of `count` values and one more; for integers the last."""
    return mean + (value - mean) / (count + 1) if mean.is_floating_point() else value


def swap_tensors(one: nn.Module, other: nn.Module) -> None:
    """Exchange the parameters and buffers of two networks of the same architecture, without a copy."""
    pairs = zip(chain(one.parameters(), one.buffers()), chain(other.parameters(), other.buffers()), strict=True)
    for a, b in pairs:
        a.data, b.data = b.data, a.data
