"""Callbacks: counted randomness, early stopping, checkpoints, out-of-fold predictions, history."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException, TrainEvalCallback
from fastai.callback.tracker import TrackerCallback
from fastai.learner import Learner, Recorder
from fastai.torch_core import get_model
from torch import Tensor

from fastmask.data.photo_dl import Passes, PhotoDL
from fastmask.data.training_set import TrainingSet
from fastmask.heads import JOINT, Heads
from fastmask.run.lineage import Lineage
from fastmask.run.tensors import checkpoint_file, oof_file, save_network, save_tensors
from fastmask.scoring import LOSS, goodness, target_of
from fastmask.system.errors import DivergenceError
from fastmask.system.files import write_csv
from fastmask.system.randomness import Counted, Stream

# from here on float32 has whole numbers only
_UNRESOLVED = 2.0**24
# how often each class was sampled
DRAWN = "drawn.csv"


class CountedSteps(Callback):
    """Seeds the random numbers of the main process (dropout, drop-path, mix-up) by (seed, fold, pass, step).

    They differ between processes that train together. Passes of fastai's learning rate finder do not count, so that it
    does not change a later training.
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
            counted = Counted(Stream.STEP, dl.seed, dl.fold)
            torch.manual_seed(counted.seed_at(dl.pass_, self.learn.iter, dl.share.number))


class TrainedEpochs(Callback):
    """A callback for the end of training epochs; `validate`, `get_preds` and `lr_find` send the same events.

    `number` counts the epochs from 0 over all fits, where fastai's `epoch` restarts with each. An `optional` callback
    may be missing in the state from which a fold resumes.
    """

    trained, number, optional = False, -1, False

    @property
    def validated(self) -> bool:
        """Whether the epoch that ends was validated."""
        return not self.learn.recorder.cancel_valid

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

    def state_dict(self) -> dict[str, Any]:
        """Its part of the state, before or within an epoch; see `state.StateSaver`."""
        return {"number": self.number - self.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.number = state["number"]


class ValidatedEpochs(TrainedEpochs):
    """A callback for the end of those training epochs that are validated."""

    def after_epoch(self) -> None:
        if self.trained and not self.validated:
            self.trained = False
        super().after_epoch()


class ValidateEvery(Callback):
    """Validates every `every`th epoch of a fit, its last one, and one that `is_last` in time."""

    # before the network is set to evaluation
    order = TrainEvalCallback.order - 1

    def __init__(self, every: int, is_last: Callable[[], bool] = lambda: False) -> None:
        self.every, self.is_last = every, is_last

    def before_validate(self) -> None:
        number = self.learn.epoch + 1
        if number % self.every and number < self.learn.n_epoch and not self.is_last():
            # an epoch is one pass through each loader, by which a resumed fold counts them
            self.learn.dls.valid.passes.next += 1
            raise CancelValidException


class EarlyStopping(ValidatedEpochs, TrackerCallback):
    """Ends the fit when `monitor` has not improved for `patience` validated epochs."""

    order = TrackerCallback.order + 3

    def __init__(self, monitor: str = "macro_f1", patience: int = 5, **kwargs: Any) -> None:
        super().__init__(monitor=monitor, comp=comparison(monitor), **kwargs)
        self.patience = patience

    def before_fit(self) -> None:
        super().before_fit()
        self.wait = 0

    def after_trained_epoch(self) -> None:
        TrackerCallback.after_epoch(self)
        self.wait = 0 if self.new_best else self.wait + 1
        if self.wait >= self.patience:
            raise CancelFitException()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": float(self.best), "wait": self.wait}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best, self.wait = state["best"], state["wait"]


class Checkpoint(ValidatedEpochs, TrackerCallback):
    """Saves the weights of the `top_k` best epochs by `monitor` in `folder`, one safetensors file each.

    The file of a worse epoch is removed at the start of the next epoch, when the fold's state names a better one; after
    the last epoch by `prune`, which the fit calls if no state is saved. Of equal values the earlier epoch is kept. With
    a `lineage` each file says in its metadata what it was trained on.
    """

    order = TrackerCallback.order + 1

    def __init__(
        self,
        folder: Path,
        monitor: str = "macro_f1",
        top_k: int = 1,
        lineage: Lineage | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor=monitor, comp=comparison(monitor), **kwargs)
        self.folder, self.top_k, self.lineage = folder, top_k, lineage
        self.kept: list[tuple[float, int]] = []
        self._worse: list[int] = []

    def before_fit(self) -> None:
        super().before_fit()
        if not finds_lr(self.learn):
            self.folder.mkdir(parents=True, exist_ok=True)

    def after_trained_epoch(self) -> None:
        value = float(goodness(self.learn.recorder.values[-1][self.idx], self.monitor))
        epoch = self.number
        if len(self.kept) >= self.top_k and value <= self.kept[-1][0]:
            return
        lineage = None if self.lineage is None else replace(self.lineage, epoch=epoch).to_text()
        save_network(get_model(self.learn.model), checkpoint_file(self.folder, epoch), lineage)
        self.kept = sorted([*self.kept, (value, epoch)], key=lambda k: (-k[0], k[1]))
        self._worse += [old for _, old in self.kept[self.top_k :]]
        self.kept = self.kept[: self.top_k]

    def before_epoch(self) -> None:
        self.prune()

    def after_fit(self) -> None:
        super().after_fit()
        if not hasattr(self.learn, "state_saver"):
            self.prune()

    def prune(self) -> None:
        """Remove the files of epochs that are no longer among the best."""
        for epoch in self._worse:
            checkpoint_file(self.folder, epoch).unlink(missing_ok=True)
        self._worse = []

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept = [(float(value), int(epoch)) for value, epoch in state["kept"]]
        files = [checkpoint_file(self.folder, epoch) for _, epoch in self.kept]
        gone = [file.name for file in files if not file.is_file()]
        if gone:
            raise ValueError(f"it names {gone[0]}, which is missing")
        keep_only(self.folder, "epoch*.safetensors", files)


class OOFCollector(ValidatedEpochs):
    """Writes each validated epoch's probabilities of the validation photos to `folder`/oof-EPOCH.safetensors.

    They are in the table's order. All epochs are kept, so that other folds can choose an epoch for this one; the files
    are small. Raises DivergenceError for probabilities of NaN, and for logits so large that float32 does not resolve
    their differences, whose probabilities are 0 and 1 by chance.
    """

    order = TrackerCallback.order - 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before_fit(self) -> None:
        if not finds_lr(self.learn):
            self.folder.mkdir(parents=True, exist_ok=True)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        keep_only(self.folder, "oof-*.safetensors", [oof_file(self.folder, e) for e in range(self.number + 1)])

    def before_validate(self) -> None:
        self._batches: list[Tensor] = []
        self._largest: list[Tensor] = []

    def after_pred(self) -> None:
        if self.trained and not self.learn.training:
            self._batches.append(self.learn.loss_func.activation(self.learn.pred))
            self._largest.append(self.learn.pred.detach().abs().amax())

    def after_trained_epoch(self) -> None:
        order = torch.tensor(self.learn.dls.valid.order)
        probabilities = torch.empty(len(order), self._batches[0].shape[1])
        probabilities[order] = torch.cat(self._batches).float().cpu()
        if not probabilities.isfinite().all():
            raise DivergenceError(f"epoch {self.learn.epoch + 1}: the network's predictions have NaN or infinity")
        largest = float(torch.stack(self._largest).max())
        if largest >= _UNRESOLVED:
            raise DivergenceError(
                f"epoch {self.learn.epoch + 1}: the network's outputs in validation reach {largest:.2g}"
            )
        save_tensors({"probabilities": probabilities}, oof_file(self.folder, self.number))


class History(TrainedEpochs):
    """Writes `folder`/history.csv in each epoch: one row per epoch with losses, metrics and learning rate.

    Of an epoch that is not validated, there are the training loss and the learning rate, and NaN elsewhere.
    The seconds of each epoch are in times.csv, since they are not reproducible. `rows` and `times` are their contents.
    """

    order = Recorder.order + 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.times: list[dict[str, Any]] = []
        self._before = 0.0

    def before_fit(self) -> None:
        if not finds_lr(self.learn):
            self.folder.mkdir(parents=True, exist_ok=True)

    def before_epoch(self) -> None:
        self._start = time.perf_counter()

    def after_trained_epoch(self) -> None:
        recorder = self.learn.recorder
        names = [n for n in recorder.metric_names[1:] if n != "time"]
        values = dict(zip(names, map(float, recorder.values[-1]), strict=self.validated))
        self.rows.append({"epoch": self.number, **dict.fromkeys(names, math.nan), **values, "lr": recorder.lrs[-1]})
        self.times.append({"epoch": self.number, "seconds": round(self._seconds(), 3)})
        self._before = 0.0
        write_csv(self.folder / "history.csv", pd.DataFrame(self.rows), parents=False)
        write_csv(self.folder / "times.csv", pd.DataFrame(self.times), parents=False)

    def _seconds(self) -> float:
        """The seconds of this epoch so far, including those before it was interrupted."""
        return self._before + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        seconds = self._seconds() if self.trained else 0.0
        return {**super().state_dict(), "rows": self.rows, "times": self.times, "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rows, self.times, self._before = list(state["rows"]), list(state["times"]), state["seconds"]


class Drawn(TrainedEpochs):
    """Writes `folder`/drawn.csv in each epoch: how many photos of each class of `target` it has trained on.

    `target` is a head or "joint", by which the photos are sampled.
    """

    order = History.order

    def __init__(self, folder: Path, heads: Heads, train: TrainingSet, target: str = JOINT) -> None:
        self.folder = folder
        classes = target_of(heads, train.classes(heads), target)
        self._there, self._of_row = np.unique(classes, return_inverse=True)
        name_of = heads.joint_name if target == JOINT else heads[target].decode
        self._names = [name_of(number) or "unknown" for number in self._there.tolist()]
        self._rows: list[dict[str, int]] = []

    def after_trained_epoch(self) -> None:
        dl = self.learn.dls.train
        counts = np.bincount(self._of_row[dl.order[: len(dl) * dl.bs]], minlength=len(self._there))
        self._rows.append({"epoch": self.number, **dict(zip(self._names, counts.tolist(), strict=True))})
        write_csv(self.folder / DRAWN, pd.DataFrame(self._rows), parents=False)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._rows = list(state["rows"])


def comparison(monitor: str) -> np.ufunc:
    """The `comp` of fastai's trackers, which otherwise guess it from a metric's name, which may contain a head's."""
    return np.less if monitor == LOSS else np.greater


def finds_lr(learn: Learner) -> bool:
    """Whether this fit is fastai's learning rate finder, which restores the learner at its end."""
    return hasattr(learn, "lr_finder")


def keep_only(folder: Path, pattern: str, files: Sequence[Path]) -> None:
    """Remove the files of a pattern that are not among `files`, such as those of epochs after a state."""
    for file in folder.glob(pattern):
        if file not in files:
            file.unlink()
