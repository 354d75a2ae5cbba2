"""Trackers: log the values of history.csv and the loss of each step to TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch
from fastai.learner import Recorder
from torch import Tensor

from fastmask.config import Config
from fastmask.system.errors import UsageError, install_line, one_line
from fastmask.training.callbacks import History, TrainedEpochs
from fastmask.training.step import AsyncCopy

# setting -> the product's name, the module that is imported for it
_NEEDED = {
    "tensorboard": ("TensorBoard", "torch.utils.tensorboard"),
    "wandb": ("Weights & Biases", "wandb"),
    "mlflow": ("MLflow", "mlflow"),
}
# seconds between two batches of losses within an epoch, and those that a tracker has for the rest of a fold that
# ended normally, or of one that was interrupted, since a scheduler may not wait
_EVERY, _PATIENCE, _HURRY = 30.0, 60.0, 10.0
# limits of MLflow: metrics and settings per request, characters per setting
_MOST_METRICS, _MOST_PARAMS, _MOST_CHARACTERS = 1000, 100, 500
# values by the training steps after which they were measured
Rows = Sequence[tuple[int, Mapping[str, float]]]


@dataclass(frozen=True)
class FoldInfo:
    """A fold for a tracker: its run, its settings, and the number of steps after which it starts or resumes.

    By `key`, which is unique, a fold that resumes finds its earlier values.
    """

    run: str
    fold: int
    settings: Mapping[str, Any]
    key: str = ""
    step: int = 0

    @property
    def name(self) -> str:
        """Its name among the folds of other runs."""
        return f"{self.run} fold {self.fold}"


class Tracker(Protocol):
    """Records the values of a fold."""

    def open(self, info: FoldInfo) -> str:
        """Start, or resume what the fold has started; returns where it can be viewed, in words, or an empty string."""

    def log(self, rows: Rows) -> None:
        """Record values."""

    def close(self, well: bool) -> None:
        """End; `well` is false after an error or an interruption."""


class TensorBoard:
    """Event files in a folder of the fold; when a fold resumes, values from after its state are hidden."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, info: FoldInfo) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=info.step + 1)
        return ""

    def log(self, rows: Rows) -> None:
        for step, values in rows:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, well: bool) -> None:
        self._writer.close()


class WandB:
    """A run of a project of Weights & Biases, in a group of the run's name."""

    def __init__(self, project: str) -> None:
        self.project = project

    def open(self, info: FoldInfo) -> str:
        import wandb

        self._run = wandb.init(
            project=self.project,
            group=info.run,
            name=info.name,
            id=info.key,
            config=dict(info.settings),
            resume="allow",
            # a notebook may have an active run
            reinit="create_new",
            # otherwise it prints into the live lines, and records them
            settings=wandb.Settings(console="off", silent=True),
        )
        return f"run {info.key}, offline" if self._run.offline else str(self._run.url)

    def log(self, rows: Rows) -> None:
        for step, values in rows:
            self._run.log(dict(values), step=step)

    def close(self, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


class MLflow:
    """A run of an experiment of MLflow, where MLFLOW_TRACKING_URI says; its tag `group` is the run's name."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def open(self, info: FoldInfo) -> str:
        from mlflow import MlflowClient

        # not the global client: a notebook may have an active run
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(self.experiment)
        place = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        begun = self._client.search_runs([place], f"tags.fastmask_fold = '{info.key}'")
        if begun:
            self._id = begun[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"group": info.run, "fold": str(info.fold), "fastmask_fold": info.key}
            self._id = self._client.create_run(place, tags=tags, run_name=info.name).info.run_id
            self._log_settings(info.settings)
        return f"run {self._id} of {self.experiment}"

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in settings.items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _MOST_PARAMS])

    def log(self, rows: Rows) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # a head's name may have characters that a metric's may not
        metrics = [
            Metric(re.sub(r"[^/\w.\- :]", "_", name), value, now, step)
            for step, values in rows
            for name, value in values.items()
        ]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + _MOST_METRICS])

    def close(self, well: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if well else "KILLED")


class _TrackerThread(Thread):
    """Runs the calls of a tracker in a thread, so that training does not wait for the network.

    After an error, which is logged, it ignores further calls: history.csv has all values.
    """

    def __init__(self, name: str, fold: str, tracker: Tracker, say: Callable[[str], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.tracker, self._fold, self._say = tracker, fold, say
        self._failed = False
        self._jobs: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self.start()

    def give(self, job: Callable[[], Any]) -> None:
        """Queue a call."""
        self._jobs.put(job)

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._failed:
                self._do(job)

    def _do(self, job: Callable[[], Any]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the training continues
            self._failed = True
            self._say(f"{self.name} gets no more values of {self._fold}, see history.csv for them: {one_line(error)}")

    def end(self, until: float) -> None:
        """Wait for the queued calls, until a `time.monotonic()`."""
        self._jobs.put(None)
        self.join(max(until - time.monotonic(), 0))
        if self.is_alive() and not self._failed:
            self._say(f"{self.name} has not received all of {self._fold} yet; it may while the run continues")


class Trackers(TrainedEpochs):
    """Logs each epoch and each step of a fold to trackers, by their names; a context manager for its fit.

    Losses are read without waiting for the device every half a minute, and at the end of an epoch, where they are read
    anyway.
    """

    order, optional = Recorder.order + 2, True

    def __init__(
        self, trackers: Mapping[str, Tracker], info: FoldInfo, history: History, say: Callable[[str], None]
    ) -> None:
        self._trackers, self._info, self._history, self._say = trackers, info, history, say
        self._key, self._resumes = secrets.token_hex(8), False
        self._threads: list[_TrackerThread] = []
        self._losses: list[Tensor] = []
        self._steps: list[int] = []
        self._sent: tuple[list[int], AsyncCopy] | None = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, Exception):
            # after an interruption the steps of the saved state are logged; after an error a GPU may not answer
            self._log_losses(wait=True)
        for thread in self._threads:
            thread.give(partial(thread.tracker.close, kind is None))
        until = time.monotonic() + (_PATIENCE if kind is None else _HURRY)
        for thread in self._threads:
            thread.end(until)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "key": self._key}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if not re.fullmatch("[0-9a-f]{16}", state["key"]):
            raise ValueError(f"its key of the trackers is {state['key']!r}")
        self._key, self._resumes = state["key"], True

    def before_train(self) -> None:
        super().before_train()
        self._logged = time.monotonic()
        if not self._threads:
            # only now is the state loaded from which the fold resumes
            info = replace(self._info, key=self._key, step=self.learn.train_iter)
            each = self._trackers.items()
            self._threads = [_TrackerThread(name, info.name, tracker, self._say) for name, tracker in each]
            for thread in self._threads:
                thread.give(partial(self._open, thread, info))

    def _open(self, thread: _TrackerThread, info: FoldInfo) -> None:
        where = thread.tracker.open(info)
        if where:
            self._say(f"{info.name} {'resumes' if self._resumes else 'is'} in {thread.name}: {where}")

    def after_batch(self) -> None:
        if self.training:
            self._losses.append(self.learn.loss.detach().mean())
            self._steps.append(self.learn.train_iter)
            self._log_losses()

    def after_train(self) -> None:
        self._log_losses(wait=True)

    def after_trained_epoch(self) -> None:
        row = self._history.rows[-1]
        shown = {name: value for name, value in row.items() if self.validated or not math.isnan(value)}
        values = {f"epoch/{name}": float(value) for name, value in shown.items() if name != "epoch"}
        self._give([(self.learn.train_iter, {"epoch": float(row["epoch"]), **values})])

    def _log_losses(self, wait: bool = False) -> None:
        """Log the losses that have arrived on the host, or all of them, and start copying the next."""
        if self._sent is not None and (wait or self._sent[1].is_complete()):
            steps, losses = self._sent
            self._give([(s, {"step/loss": v}) for s, v in zip(steps, losses.wait().tolist(), strict=True)])
            self._sent, self._logged = None, time.monotonic()
        if self._sent is None and self._losses and (wait or time.monotonic() - self._logged >= _EVERY):
            self._sent = self._steps, AsyncCopy(torch.stack(self._losses))
            self._steps, self._losses = [], []
            if wait:
                self._log_losses(wait)

    def _give(self, rows: Rows) -> None:
        for thread in self._threads:
            thread.give(partial(thread.tracker.log, rows))


def trackers_of(config: Config, folder: Path) -> dict[str, Tracker]:
    """The trackers of a configuration, by their names."""
    trackers: dict[str, Tracker] = {}
    if config.tensorboard:
        trackers[_NEEDED["tensorboard"][0]] = TensorBoard(folder / "tensorboard")
    if config.wandb is not None:
        trackers[_NEEDED["wandb"][0]] = WandB(config.wandb)
    if config.mlflow is not None:
        trackers[_NEEDED["mlflow"][0]] = MLflow(config.mlflow)
    return trackers


def check_trackers(config: Config) -> None:
    """Raise UsageError if a tracker of the configuration cannot be imported, or needs a login."""
    for setting, (name, module) in _NEEDED.items():
        if not getattr(config, setting):
            continue
        try:
            import_module(module)
        except ImportError as error:
            without = "--no-tensorboard" if setting == "tensorboard" else f"--set {setting}=null"
            raise UsageError(
                f"{name} cannot be imported ({one_line(error)}); install it with {install_line(setting)}, or do "
                f"without it ({without})."
            ) from error
    if config.wandb is not None:
        _log_in()


def _log_in() -> None:
    """Log in to Weights & Biases, which may ask on a terminal; raises UsageError if it cannot."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled"):
        return
    try:
        wandb.login()
    except wandb.Error as error:
        raise UsageError(
            f"Weights & Biases cannot be logged in to ({one_line(error)}): wandb login, or set WANDB_MODE=offline."
        ) from error
