"""Guards: callbacks and checks for NaN and infinity, unreadable photos, and running out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import CancelBatchException, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Callback, Recorder
from torch import Tensor

from fastmask.config import Config
from fastmask.data.transforms import UNREADABLE
from fastmask.heads import UNKNOWN
from fastmask.labels import broadcast_photos
from fastmask.system.errors import DataError, DivergenceError
from fastmask.system.files import read_strings, write_csv
from fastmask.system.text import join_some
from fastmask.training.callbacks import TrainedEpochs, finds_lr

# photos of a batch that a message names
_NAMED = 3
# steps in a row with NaN or infinity after which training cannot recover
_HOPELESS = 50
# the fraction of a pass that may be unreadable
_MOST_UNREADABLE = 0.1
# messages of torch about memory that have no exception class
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "could not create a primitive",
)


class FiniteLoss(Callback):
    """Raises DivergenceError if the training loss is NaN or infinite, except in fastai's learning rate finder.

    It checks every `every` steps and at the end of an epoch, because a check waits for the device. The recorder's
    smoothed losses show the first bad batch, since they stay NaN after it.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, cbs=fm.FiniteLoss(every=10))
    >>> learn.finite_loss.every
    10
    """

    order, run_valid = Recorder.order + 1, False

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def before_train(self) -> None:
        self._start = len(self.learn.recorder.losses)

    def after_batch(self) -> None:
        if (self.learn.iter + 1) % self.every == 0:
            self.check()

    def after_train(self) -> None:
        self.check()

    def check(self) -> None:
        """Check the losses of this epoch."""
        losses = self.learn.recorder.losses[self._start :]
        if losses and not finds_lr(self.learn) and not losses[-1].isfinite():
            # a resumed epoch does not start with its first batch
            first = self.learn.iter + 1 - len(losses)
            batch = first + next(number for number, loss in enumerate(losses) if not loss.isfinite())
            photos = photos_of(self.learn, batch)
            place = f"epoch {self.learn.epoch + 1}, batch {batch + 1} ({name_photos(photos)})"
            raise DivergenceError(f"{place}: the loss is NaN or infinite", photos)


class Skipping(TrainedEpochs):
    """A callback that skips something in training, and lists it in a file of `folder` after each epoch."""

    optional = True
    columns: tuple[str, ...] = ()
    name_of_file = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[list[Any]] = []

    @property
    def file(self) -> Path:
        """The file of the list."""
        return self.folder / self.name_of_file

    def list_rows(self) -> None:
        """Write what was skipped so far, if anything was."""
        if self.rows:
            write_csv(self.file, pd.DataFrame(self.rows, columns=list(self.columns)), parents=False)

    def after_trained_epoch(self) -> None:
        self.list_rows()

    def before_fit(self) -> None:
        # those before the run was resumed; `load_state_dict` removes those after its state
        columns = list(self.columns)
        self.rows = read_strings(self.file, columns)[columns].to_numpy().tolist() if self.file.exists() else []

    def state_dict(self) -> dict[str, Any]:
        self.list_rows()
        return {**super().state_dict(), "rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rows = self.rows[: state["rows"]]
        self.list_rows()


class SkipNonFinite(Skipping):
    """Skips steps with a loss or gradients of NaN or infinity, as if their batches did not exist.

    The buffers (batch norm's statistics) are restored. A check waits for the device once per step. Raises
    DivergenceError after 50 such steps in a row.
    """

    # after fp16 has unscaled the gradients
    order, run_valid = MixedPrecision.order + 2, False
    columns, name_of_file = ("epoch", "batch", "what", "photo"), "skipped-batches.csv"
    _in_a_row = 0

    def before_fit(self) -> None:
        super().before_fit()
        self._live = list(self.learn.model.buffers())
        self._before_step = [buffer.clone() for buffer in self._live]

    def before_batch(self) -> None:
        for kept, buffer in zip(self._before_step, self._live, strict=True):
            kept.copy_(buffer)

    def after_loss(self) -> None:
        if not self.learn.loss.isfinite().all():
            smooth = self.learn.recorder.smooth_loss
            # otherwise the recorder's mean would stay NaN
            value = smooth.value if smooth.count else torch.zeros(())
            self.learn.loss = value.detach().to(self.learn.loss.device)
            self._skip("loss")
            raise CancelBatchException

    def before_step(self) -> None:
        grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
        if torch.nn.utils.get_total_norm(grads).isfinite():
            self._in_a_row = 0
            return
        self._skip("gradients")
        raise CancelStepException

    def _skip(self, what: str) -> None:
        for kept, buffer in zip(self._before_step, self._live, strict=True):
            buffer.copy_(kept)
        epoch, batch = self.learn.epoch + 1, self.learn.iter + 1
        photos = photos_of(self.learn, self.learn.iter)
        self.rows += [[epoch, batch, what, photo] for photo in photos]
        self._in_a_row += 1
        if self._in_a_row >= _HOPELESS:
            self.list_rows()
            place = f"epoch {epoch}, batch {batch} ({name_photos(photos)})"
            raise DivergenceError(f"{place}: the {_HOPELESS}th step in a row with NaN or infinity", photos)


class SkipUnreadable(Skipping):
    """Removes the labels of photos that a loader could not read and has replaced by grey, so that the loss skips them.

    Only in training: each photo of the validation needs a prediction. Raises DataError if more than a tenth of a pass
    cannot be read, because the disk is then likely to be faulty.
    """

    order, run_valid = -15, False
    columns, name_of_file = ("epoch", "batch", "photo"), "skipped-photos.csv"

    def before_train(self) -> None:
        super().before_train()
        self._in_pass = 0

    def before_batch(self) -> None:
        (y,) = self.learn.yb
        unreadable = (y == UNREADABLE).flatten(1).all(1)
        if unreadable.any():
            photos = photos_of(self.learn, self.learn.iter)
            epoch, batch = self.learn.epoch + 1, self.learn.iter + 1
            self.rows += [[epoch, batch, photos[i]] for i in unreadable.nonzero().flatten().tolist()]
            self._in_pass += int(unreadable.sum())
            if self._in_pass > _MOST_UNREADABLE * len(self.learn.dls.train.order):
                self.list_rows()
                raise DataError(f"More than a tenth of the photos cannot be read, the last {self.rows[-1][-1]}.")
            self.learn.yb = (y.masked_fill(broadcast_photos(unreadable, y), 0 if y.is_floating_point() else UNKNOWN),)


def photos_of(learn: Any, batch: int) -> list[str]:
    """The photos of a training batch of this epoch; empty for loaders of another library."""
    dl = learn.dls.train
    return dl.photos_of(batch) if hasattr(dl, "photos_of") else []


def name_photos(photos: Sequence[str]) -> str:
    """The first few photos, and the number of the others."""
    return join_some(photos, _NAMED) or "photos unknown"


def skipping_callbacks(config: Config, folder: Path) -> list[Skipping]:
    """The callbacks that skip what a configuration allows to skip."""
    return [
        *([SkipNonFinite(folder)] if config.on_nan == "skip" else []),
        *([SkipUnreadable(folder)] if config.on_bad_photo == "skip" else []),
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the machine ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors are free of NaN and infinity, in one synchronization with the device."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()) if tensors else True
