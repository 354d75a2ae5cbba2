"""SAM: sharpness-aware minimization, around any optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastai.callback.core import Callback, event
from fastai.torch_core import get_model
from torch import Tensor, nn

from fastmask.system.errors import UsageError
from fastmask.training.mix import Mix
from fastmask.training.step import without_statistics


class SAM(Callback):
    """Steps with the gradients at the worst weights near the current ones (Foret et al. 2021).

    These lie at a distance `rho` in the direction of the gradients; if `adaptive`, of a distance in which a weight
    counts relative to its size (ASAM, Kwon et al. 2021). The second pass has the same mixed batch and the same random
    numbers; batch norm's running statistics are those of the first, and so are the loss and the predictions that are
    recorded. As in github.com/davda54/sam, whose `rho` is 0.05, and 2 if adaptive. A step takes twice the time.
    """

    # after the batch is mixed, just before the network
    order, run_valid = Mix.order + 100, False

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        if not rho > 0:
            raise UsageError(f"SAM moves the weights by a distance above 0, found rho {rho:g}.")
        self.rho, self.adaptive = rho, adaptive

    def before_batch(self) -> None:
        self._random, self._labels = random_state(self.learn.xb[0].device), self.learn.yb

    def after_backward(self) -> None:
        learn = self.learn
        weights = [weight for weight in learn.model.parameters() if weight.grad is not None]
        before = [weight.detach().clone() for weight in weights]
        first = learn.pred, learn.yb, learn.loss_grad, learn.loss
        ascend(weights, self.rho, self.adaptive)
        learn.opt.zero_grad()
        try:
            with without_statistics(get_model(learn.model)):
                self._pass_again()
        finally:
            # even from NaN, to which gradients that overflow lead; subtracting the way would not
            with torch.no_grad():
                torch._foreach_copy_([weight.data for weight in weights], before)
            learn.pred, learn.yb, learn.loss_grad, learn.loss = first

    def _pass_again(self) -> None:
        """Forward and backward, with the callbacks that take part in how a batch is computed."""
        learn = self.learn
        set_random_state(self._random, learn.xb[0].device)
        # several processes have gathered those of the whole batch
        learn.yb = self._labels
        self._send(event.before_batch)
        learn.pred = learn.model(*learn.xb)
        self._send(event.after_pred)
        learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
        self._send(event.after_loss)
        self._send(event.before_backward)
        learn.loss_grad.backward()

    def _send(self, name: str) -> None:
        for callback in self.learn.cbs.sorted("order"):
            if getattr(type(callback), "computes", False):
                callback(name)


@torch.no_grad()
def ascend(weights: Sequence[nn.Parameter], rho: float, adaptive: bool = False) -> None:
    """Move weights by `rho` along their gradients, whose scale does not matter."""
    sizes = [weight.abs() if adaptive else torch.ones((), device=weight.device) for weight in weights]
    grads = [weight.grad for weight in weights if weight.grad is not None]
    scaled = [size * grad for size, grad in zip(sizes, grads, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled)))
    scale = rho / (norm + 1e-12)
    for weight, size, each in zip(weights, sizes, scaled, strict=True):
        weight.add_(size * each * scale)


def random_state(device: torch.device) -> list[Tensor]:
    """The state of torch's random numbers on the host, and on a device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
