"""Plateau: lowers the learning rate when the monitored metric does not improve."""

from __future__ import annotations

from typing import Any

from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback

from fastmask.config import Config
from fastmask.model.schedule import schedule_of
from fastmask.training.callbacks import TrainedEpochs, comparison

# an improvement is larger than this share of the best value, as by default in torch
_THRESHOLD = 1e-4


class Plateau(TrainedEpochs, TrackerCallback):
    """Multiplies the scheduled learning rate by `factor` when `monitor` has not improved for over `patience` epochs.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` with its default threshold. fastai's callback of that name changes
    the rate only until the next step of a schedule, and its state is lost on a resume.
    """

    # after the schedule has set the rate of a step
    order, run_valid = ParamScheduler.order + 1, False
    best: float

    def __init__(self, monitor: str = "macro_f1", factor: float = 0.5, patience: int = 2, **kwargs: Any) -> None:
        super().__init__(monitor=monitor, comp=comparison(monitor), **kwargs)
        self.factor, self.patience = factor, patience

    def before_fit(self) -> None:
        super().before_fit()
        self.wait, self.scale = 0, 1.0

    def before_batch(self) -> None:
        if self.scale != 1:
            self.learn.opt.set_hyper("lr", [hyper["lr"] * self.scale for hyper in self.learn.opt.hypers])

    def after_trained_epoch(self) -> None:
        value = float(self.learn.recorder.values[-1][self.idx])
        if self.comp(value, self.best * (1 + _THRESHOLD if self.comp(1, 0) else 1 - _THRESHOLD)):
            self.best, self.wait = value, 0
            return
        self.wait += 1
        if self.wait > self.patience:
            self.wait, self.scale = 0, self.scale * self.factor

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": float(self.best), "wait": self.wait, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best, self.wait, self.scale = state["best"], state["wait"], state["scale"]


def schedule_callbacks(config: Config) -> list[Any]:
    """The callbacks that set the learning rate of each step."""
    plateau = Plateau(config.monitor, config.lr_gamma, config.plateau_patience)
    return [*schedule_of(config), *([plateau] if config.sched == "plateau" else [])]
