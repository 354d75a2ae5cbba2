"""Callbacks: counted randomness, early stopping, checkpoints, divergence, out-of-fold predictions, history."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import TrackerCallback
from fastai.learner import Learner, Recorder
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastmask.data.loaders import Passes, PhotoDL
from fastmask.errors import DataError, FastmaskError
from fastmask.files import replacing, write_csv
from fastmask.randomness import Counted, Stream
from fastmask.scoring import LOSS


class CountedSteps(Callback):
    """Seeds what the main process draws (dropout, drop-path, mix-up) by (seed, fold, pass, step).

    The passes that fastai's learning rate finder walks do not count: training after it goes as if it had not been.
    """

    order, run_valid = -20, False
    _kept: Sequence[tuple[Passes, int]] = ()

    def before_fit(self) -> None:
        loaders = self.learn.dls.loaders if finds_lr(self.learn) else ()
        self._kept = [(dl.passes, dl.passes.next) for dl in loaders if isinstance(dl, PhotoDL)]

    def after_fit(self) -> None:
        for passes, number in self._kept:
            passes.next = number

    def before_batch(self) -> None:
        dl = self.learn.dl
        if isinstance(dl, PhotoDL):
            torch.manual_seed(Counted(Stream.STEP, dl.seed, dl.fold).seed_at(dl.pass_, self.learn.iter))


class TrainedEpochs(Callback):
    """A callback for the end of epochs that train; fastai sends `validate`, `get_preds`, `lr_find` the same events.

    `number` counts them from 0 over all fits, where fastai's `epoch` starts anew with each.
    """

    trained, number = False, -1

    def before_train(self) -> None:
        if not finds_lr(self.learn):
            self.trained = True
            self.number += 1

    def after_epoch(self) -> None:
        if self.trained:
            self.trained = False
            self.after_trained_epoch()

    def after_trained_epoch(self) -> None:
        raise NotImplementedError


class EarlyStopping(TrainedEpochs, TrackerCallback):
    """Ends the fit when `monitor` has not improved for `patience` epochs."""

    order = TrackerCallback.order + 3

    def __init__(self, monitor: str = "macro_f1", patience: int = 5, **kwargs: Any) -> None:
        super().__init__(monitor=monitor, comp=better(monitor), **kwargs)
        self.patience = patience

    def before_fit(self) -> None:
        super().before_fit()
        self.wait = 0

    def after_trained_epoch(self) -> None:
        TrackerCallback.after_epoch(self)
        self.wait = 0 if self.new_best else self.wait + 1
        if self.wait >= self.patience:
            raise CancelFitException()


class Checkpoint(TrainedEpochs, TrackerCallback):
    """Keeps the weights of the `top_k` best epochs by `monitor` in `folder`, one safetensors file each.

    A worse epoch goes only once a better one is safely on the disk. Equal values keep the earlier epoch.
    """

    order = TrackerCallback.order + 1

    def __init__(self, folder: Path, monitor: str = "macro_f1", top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(monitor=monitor, comp=better(monitor), **kwargs)
        self.folder, self.top_k = folder, top_k
        self.kept: list[tuple[float, int, Path]] = []

    def after_trained_epoch(self) -> None:
        value, epoch = self._goodness(), self.number
        if len(self.kept) >= self.top_k and value <= self.kept[-1][0]:
            return
        path = self.folder / f"epoch{epoch:03d}.safetensors"
        save_network(self.learn.model, path)
        self.kept = sorted([*self.kept, (value, epoch, path)], key=lambda k: (-k[0], k[1]))
        for _, _, old in self.kept[self.top_k :]:
            old.unlink(missing_ok=True)
        self.kept = self.kept[: self.top_k]

    def _goodness(self) -> float:
        value = float(self.learn.recorder.values[-1][self.idx])
        if np.isnan(value):
            return -np.inf
        return -value if self.comp is np.less else value


class DivergenceError(FastmaskError):
    """The training has gone to a loss or to answers that are no numbers; its text says in which epoch and batch.

    fastai puts a callback's name before the text of what it raises; this one keeps its own.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told

    def __str__(self) -> str:
        return self.told


class FiniteLoss(Callback):
    """Raises DivergenceError where the training loss is NaN or infinite; fastai's learning rate finder may go there.

    It looks every `every` steps and at the end of an epoch, because looking waits for the device. The recorder's
    smoothed loss tells the first bad batch: once it is no number, it stays so.
    """

    order, run_valid = Recorder.order + 1, False

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def before_train(self) -> None:
        self._start = len(self.learn.recorder.losses)

    def after_batch(self) -> None:
        if (self.learn.iter + 1) % self.every == 0:
            self.after_train()

    def after_train(self) -> None:
        losses = self.learn.recorder.losses[self._start :]
        if losses and not finds_lr(self.learn) and not losses[-1].isfinite():
            batch = next(number for number, loss in enumerate(losses, start=1) if not loss.isfinite())
            raise DivergenceError(f"epoch {self.learn.epoch + 1}, batch {batch}: the loss is NaN or infinite")


class OOFCollector(TrainedEpochs):
    """Writes each epoch's probabilities of the validation photos to `folder`/oof-EPOCH.safetensors.

    They are in the table's order. All epochs are kept, so that the other folds can choose this one's; they are small.
    Raises DivergenceError for probabilities that are no numbers.
    """

    order = TrackerCallback.order - 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before_validate(self) -> None:
        self._batches: list[Tensor] = []

    def after_pred(self) -> None:
        if self.trained and not self.learn.training:
            self._batches.append(self.learn.loss_func.activation(self.learn.pred))

    def after_trained_epoch(self) -> None:
        order = torch.tensor(self.learn.dls.valid.order)
        probabilities = torch.empty(len(order), self._batches[0].shape[1])
        probabilities[order] = torch.cat(self._batches).float().cpu()
        if not probabilities.isfinite().all():
            raise DivergenceError(f"epoch {self.learn.epoch + 1}: the network's answers are no numbers")
        save_tensors({"probabilities": probabilities}, oof_file(self.folder, self.number))


class History(TrainedEpochs):
    """Writes `folder`/history.csv anew each epoch: one row an epoch with losses, metrics, learning rate and seconds."""

    order = Recorder.order + 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[dict[str, Any]] = []

    def before_epoch(self) -> None:
        self._start = time.perf_counter()

    def after_trained_epoch(self) -> None:
        recorder = self.learn.recorder
        names = [n for n in recorder.metric_names[1:] if n != "time"]
        values = dict(zip(names, map(float, recorder.values[-1]), strict=True))
        seconds = round(time.perf_counter() - self._start, 3)
        self._rows.append({"epoch": self.number, **values, "lr": recorder.lrs[-1], "seconds": seconds})
        write_csv(self.folder / "history.csv", pd.DataFrame(self._rows))


def better(monitor: str) -> np.ufunc:
    """How fastai's trackers compare; they would guess it from the words in a metric's name, which may be a head's."""
    return np.less if monitor == LOSS else np.greater


def finds_lr(learn: Learner) -> bool:
    """Whether this fit is fastai's learning rate finder, which takes everything back at its end."""
    return hasattr(learn, "lr_finder")


def save_network(network: torch.nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors, in the default memory format."""
    save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors beside `path` and rename into place.

    Without metadata, whose order safetensors does not keep: the same tensors give the same bytes.
    """
    with replacing(path) as beside:
        save_file(tensors, beside)


def oof_file(folder: Path, epoch: int) -> Path:
    """Where a fold keeps the OOF probabilities of an epoch."""
    return folder / f"oof-{epoch:03d}.safetensors"


def read_oof(folder: Path, epoch: int) -> np.ndarray:
    """(N of the fold, classes of all heads) OOF probabilities of an epoch, in the table's order."""
    path = oof_file(folder, epoch)
    try:
        with safe_open(path, framework="numpy") as file:
            probabilities: np.ndarray = file.get_tensor("probabilities")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} does not hold the probabilities of epoch {epoch}: {error}.") from error
    return probabilities
