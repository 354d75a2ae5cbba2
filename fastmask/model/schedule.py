"""Schedules of the learning rate, as functions of the fraction of the training that is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastai.callback.schedule import ParamScheduler, SchedCos, combined_cos

from fastmask.config import Config
from fastmask.system.errors import UsageError

SCHEDULES = ("multistep", "onecycle", "cosine", "constant")


def multistep(lr: float, milestones: Sequence[float], gamma: float, epochs: int) -> Callable[[float], float]:
    """A rate that starts at `lr` and is multiplied by `gamma` at each milestone, like PyTorch's MultiStepLR.

    A milestone is an epoch (1 or more), or a fraction of the training (under 1), also within an epoch.
    """
    if any(m <= 0 for m in milestones):
        raise UsageError(f"Milestones are epochs (1 or more) or fractions (under 1), found {list(milestones)}.")
    shares = [m if m < 1 else m / epochs for m in milestones]

    def rate(done: float) -> float:
        # fastai adds up `done`, which may be too small by a rounding error
        return float(lr * gamma ** sum(done >= share - 1e-9 for share in shares))

    return rate


def lr_schedule(
    name: str, lr: float, epochs: int, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.5
) -> list[ParamScheduler]:
    """The callbacks for a schedule: "multistep", "onecycle" (like fastai's), "cosine" (to 0) or "constant"."""
    if name == "constant":
        return []
    if name == "multistep":
        return [ParamScheduler({"lr": multistep(lr, milestones, gamma, epochs)})]
    if name == "cosine":
        return [ParamScheduler({"lr": SchedCos(lr, 0.0)})]
    if name == "onecycle":
        moms = combined_cos(0.25, 0.95, 0.85, 0.95)
        return [ParamScheduler({"lr": combined_cos(0.25, lr / 25, lr, lr / 1e5), "mom": moms})]
    raise UsageError(f"There is no schedule {name!r}; expected one of {', '.join(SCHEDULES)}.")


def schedule_of(config: Config) -> list[ParamScheduler]:
    """The callbacks for the schedule of a configuration."""
    return lr_schedule(config.sched, config.lr, config.epochs, config.milestones, config.lr_gamma)
