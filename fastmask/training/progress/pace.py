"""Pace: how long steps take, and what a fold and a run still take by it."""

from __future__ import annotations

from dataclasses import dataclass

# what a step counts after the next one: the last hundred or so make the pace
_MEMORY = 0.99
# of a training step's time, until a validation has been timed: it has no backward pass
_VALIDATION = 1 / 3


@dataclass(frozen=True)
class Steps:
    """Numbers of steps, of training and of validation."""

    training: float = 0
    validation: float = 0

    def __add__(self, other: Steps) -> Steps:
        return Steps(self.training + other.training, self.validation + other.validation)

    def __sub__(self, other: Steps) -> Steps:
        return Steps(self.training - other.training, self.validation - other.validation)

    def __mul__(self, times: float) -> Steps:
        return Steps(self.training * times, self.validation * times)


class Pace:
    """Means of the seconds of training and validation steps, of which the later count more."""

    def __init__(self) -> None:
        self._seconds = {True: 0.0, False: 0.0}
        self._steps = {True: 0.0, False: 0.0}
        self._photos = 0.0

    def step(self, training: bool, seconds: float, photos: int) -> None:
        """Count a step that took so many seconds for so many photos."""
        self._seconds[training] = self._seconds[training] * _MEMORY + seconds
        self._steps[training] = self._steps[training] * _MEMORY + 1
        if training:
            self._photos = self._photos * _MEMORY + photos

    def step_seconds(self, training: bool) -> float | None:
        """The seconds of a step; None before the first one of training."""
        if self._steps[training]:
            return self._seconds[training] / self._steps[training]
        train = None if training else self.step_seconds(True)
        return None if train is None else train * _VALIDATION

    def seconds(self, steps: Steps) -> float | None:
        """The seconds of so many steps; None before there was one."""
        train, valid = self.step_seconds(True), self.step_seconds(False)
        if train is None or valid is None:
            return None
        return train * steps.training + valid * steps.validation

    @property
    def photos_per_second(self) -> float | None:
        """Of training; None before the first step."""
        return self._photos / self._seconds[True] if self._seconds[True] else None


def left_of_fold(epoch: Steps, done: Steps, epochs_after: int) -> Steps:
    """What a fold still takes in an epoch of which so many steps are done, with so many epochs after it."""
    return epoch - done + epoch * epochs_after


def left_of_refits(epoch: Steps, epochs: int, folds: int) -> Steps:
    """What so many epochs on all photos take, which validate nobody; `epoch` is on all of `folds` but one."""
    return Steps(epoch.training * folds / (folds - 1)) * epochs
