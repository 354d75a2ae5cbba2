"""Schedules of the learning rate, as functions of the fraction of the training that is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastai.callback.schedule import ParamScheduler, combined_cos

from fastmask.config import Config
from fastmask.system.errors import UsageError

# a rate by the fraction of the training that is done
Rate = Callable[[float], float]
# a warm-up starts at this factor of the rate
_WARM_START = 1e-3
# fastai adds up the fraction that is done, which may be too small by a rounding error
_ROUNDING = 1e-9


def multistep(lr: float, milestones: Sequence[float], gamma: float, epochs: int) -> Rate:
    """A rate that starts at `lr` and is multiplied by `gamma` at each milestone, like PyTorch's MultiStepLR.

    A milestone is an epoch (1 or more), or a fraction of the training (under 1), also within an epoch.
    """
    if any(m <= 0 for m in milestones):
        raise UsageError(f"Milestones are epochs (1 or more) or fractions (under 1), found {list(milestones)}.")
    shares = [share_of(m, epochs) for m in milestones]
    return lambda done: float(lr * gamma ** sum(done >= share - _ROUNDING for share in shares))


def cosine(lr: float) -> Rate:
    """A rate that falls from `lr` to 0 along half a cosine, like PyTorch's CosineAnnealingLR."""
    return lambda done: lr * (1 + math.cos(math.pi * done)) / 2


def restarts(lr: float, cycle: float, multiplier: float = 1.0) -> Rate:
    """Cosines from `lr` to 0, like PyTorch's CosineAnnealingWarmRestarts (Loshchilov and Hutter 2017).

    The first takes the fraction `cycle`, each other `multiplier` times the one before.
    """
    falling = cosine(lr)

    def rate(done: float) -> float:
        position = done / cycle
        if multiplier == 1:
            return falling(position - math.floor(position + _ROUNDING))
        number = math.floor(math.log(position * (multiplier - 1) + 1, multiplier) + _ROUNDING)
        start = (multiplier**number - 1) / (multiplier - 1)
        return falling((position - start) / multiplier**number)

    return rate


def polynomial(lr: float, power: float = 1.0) -> Rate:
    """A rate that falls from `lr` to 0 as a power of the fraction that is left, like PyTorch's PolynomialLR."""
    return lambda done: float(lr * max(1 - done, 0.0) ** power)


def warm_up(rate: Rate, share: float, whole: bool = False) -> Rate:
    """A rate that rises linearly to the start of `rate` in the first `share`, like PyTorch's LinearLR from 0.001.

    `rate` takes the rest of the training, or with `whole` counts the warm-up as well.
    """
    if not share:
        return rate

    def warmed(done: float) -> float:
        if done < share - _ROUNDING:
            return rate(0.0) * (_WARM_START + (1 - _WARM_START) * done / share)
        return rate(done if whole else max(done - share, 0.0) / (1 - share))

    return warmed


def share_of(length: float, epochs: float) -> float:
    """The fraction of the training of a length: epochs (1 or more), or a fraction (under 1)."""
    return length if length < 1 else length / epochs


def _constant(config: Config) -> Rate:
    return lambda done: config.lr


def _restarts(config: Config) -> Rate:
    left = config.epochs * (1 - share_of(config.warmup, config.epochs))
    return restarts(config.lr, share_of(config.cycle, left), config.cycle_mult)


# a schedule's name -> its rate after the warm-up; a plateau's rate is lowered by its callback
_RATES: dict[str, Callable[[Config], Rate]] = {
    "multistep": lambda config: multistep(config.lr, config.milestones, config.lr_gamma, config.epochs),
    "cosine": lambda config: cosine(config.lr),
    "restarts": _restarts,
    "poly": lambda config: polynomial(config.lr, config.poly_power),
    "plateau": _constant,
    "constant": _constant,
}


def schedule_of(config: Config) -> list[ParamScheduler]:
    """The callback for the schedule of a configuration: of the rate, and of the momentum for "onecycle" (fastai's)."""
    if config.sched == "onecycle":
        lr, moms = config.lr, combined_cos(0.25, 0.95, 0.85, 0.95)
        return [ParamScheduler({"lr": combined_cos(0.25, lr / 25, lr, lr / 1e5), "mom": moms})]
    # milestones are counted from the start of the training
    rate = _RATES[config.sched](config)
    return [ParamScheduler({"lr": warm_up(rate, share_of(config.warmup, config.epochs), config.sched == "multistep")})]
