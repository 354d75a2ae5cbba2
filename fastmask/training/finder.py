"""Finder: fastai's learning rate finder, which restores the learner afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fastai.callback.schedule import minimum, steep, valley
from fastai.learner import Learner
from matplotlib.figure import Figure
from torch import nn

from fastmask.data.photo_dl import PhotoDL
from fastmask.system.errors import FastmaskError, UsageError
from fastmask.system.files import atomic_write

# learning rates to try by default, as in fastai
STEPS = 100
# points that a slope and a valley need; before, a tenth is cut off at the start, and five at the end
_FEWEST_POINTS, _SKIP_END, _FEWEST_STEPS = 5, 5, 20
_SUGGESTIONS = {"suggestion": "tab:red", "steep": "tab:blue", "minimum": "tab:green"}


@dataclass(frozen=True)
class Found:
    """The learning rates `lrs` that the finder tried, fastai's smoothed `losses` at them, and three suggestions.

    `suggestion` is in the longest fall of the loss (fastai's valley), `steep` where it falls fastest, `minimum` a tenth
    of where it is lowest.

    >>> found = fm.lr_find(learn, num_it=20)
    >>> len(found.lrs) == len(found.losses), found.suggestion > 0
    (True, True)
    """

    suggestion: float
    steep: float
    minimum: float
    lrs: list[float]
    losses: list[float]

    def __str__(self) -> str:
        return ", ".join(f"{name} {getattr(self, name):.1e}" for name in _SUGGESTIONS)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def plot(self, path: str | Path) -> None:
        """Save a plot (PNG) of the loss over the learning rate, with the suggestions marked."""
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses, color="0.3")
        for name, color in _SUGGESTIONS.items():
            lr = getattr(self, name)
            axes.axvline(lr, color=color, linestyle="-" if name == "suggestion" else ":", label=f"{name} {lr:.1e}")
        # the loss explodes at the end, which would flatten everything before it
        low, start = min(self.losses), self.losses[0]
        room = (start - low) / 2 + abs(start) / 20
        axes.set_ylim(low - room / 2, min(max(self.losses), start) + room)
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (smoothed)", title="Learning rate finder")
        axes.legend(loc="lower left")
        with atomic_write(path) as part:
            figure.savefig(part, format="png", dpi=120)


def lr_find(
    learn: Learner, start_lr: float = 1e-7, end_lr: float = 10.0, num_it: int = STEPS, stop_div: bool = True
) -> Found:
    """fastai's `learn.lr_find`: train `num_it` steps at increasing learning rates, and suggest one.

    Also after an error, the learner is restored: weights, optimizer, counters, random state, records, files.
    Raises UsageError for an unusable range or number of steps, FastmaskError if the losses suggest nothing.

    >>> found = fm.lr_find(learn, start_lr=1e-5, end_lr=1, num_it=20)
    >>> 1e-5 <= found.suggestion <= 1
    True
    """
    if not 0 < start_lr < end_lr or num_it < _FEWEST_STEPS:
        raise UsageError(
            f"The finder goes from a learning rate above 0 to a higher one in {_FEWEST_STEPS} steps or more, "
            f"found {start_lr:g} to {end_lr:g} in {num_it}."
        )
    if not len(learn.dls.train):
        raise UsageError("The training loader gives no batch, so no learning rate can be tried.")
    with restore_after(learn):
        learn.lr_find(start_lr, end_lr, num_it, stop_div, show_plot=False, suggest_funcs=None)
        lrs = [float(lr) for lr in learn.recorder.lrs]
        losses = [float(loss) for loss in learn.recorder.losses]
    return suggest_lrs(lrs, losses, num_it)


def suggest_lrs(lrs: list[float], losses: list[float], num_it: int) -> Found:
    """fastai's suggestions from the losses at increasing learning rates; raises FastmaskError if too few are finite."""
    steps = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    first, last = num_it // 10, min(steps, len(losses) - _SKIP_END)
    if last - first < _FEWEST_POINTS:
        raise FastmaskError(
            f"The finder cannot suggest a learning rate: the loss diverged after {steps} of {num_it} steps, up to a "
            f"learning rate of {max(lrs[:steps], default=0):.1e}; start lower, or end lower with more steps."
        )
    rates, values = torch.tensor(lrs[first:last]), torch.tensor(losses[first:last])
    # after its lowest point the loss jumps, and a downward jump could be taken for the steepest fall
    lowest = max(int(values.argmin()) + 1, 2)
    valley_lr, minimum_lr = (float(func(rates, values, num_it)[0]) for func in (valley, minimum))
    steep_lr = float(steep(rates[:lowest], values[:lowest], num_it)[0])
    return Found(valley_lr, steep_lr, minimum_lr, lrs[:steps], losses[:steps])


@contextmanager
def restore_after(learn: Learner) -> Iterator[None]:
    """A block of training after which the learner is restored bit for bit, also after an error.

    Files that it writes go to a temporary folder. Changes that a custom callback makes inside an object that it keeps
    (a list that it appends to) are not undone.
    """
    with ExitStack() as after:
        for owner in (learn, *learn.cbs, *_metrics(learn), *learn.dls.loaders):
            after.callback(_restore_attributes, owner, dict(vars(owner)))
        for dl in learn.dls.loaders:
            if isinstance(dl, PhotoDL):
                after.callback(setattr, dl.passes, "next", dl.passes.next)
        after.callback(_restore_network, learn.model, *_network_state(learn.model))
        if learn.opt is not None:
            after.callback(learn.opt.load_state_dict, deepcopy(learn.opt.state_dict()))
        after.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        learn.path = Path(after.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        yield


def _metrics(learn: Learner) -> list[Any]:
    recorder = getattr(learn, "recorder", None)
    return [*learn.metrics, *([recorder.loss, recorder.smooth_loss] if recorder is not None else [])]


def _restore_attributes(owner: Any, before: dict[str, Any]) -> None:
    vars(owner).clear()
    vars(owner).update(before)


def _network_state(network: nn.Module) -> tuple[list[Any], list[Any], list[Any]]:
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
    grads = [(parameter, parameter.grad) for parameter in network.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    return tensors, grads, [(module, module.training) for module in network.modules()]


def _restore_network(network: nn.Module, tensors: list[Any], grads: list[Any], modes: list[Any]) -> None:
    with torch.no_grad():
        for tensor, before in tensors:
            tensor.copy_(before)
    for parameter, grad in grads:
        parameter.grad = grad
    for module, training in modes:
        module.training = training
