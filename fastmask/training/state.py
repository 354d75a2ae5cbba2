"""State: everything that a fold needs to resume its training bit for bit.

The only module that overrides private methods of fastai's loop. Random numbers need no state: they are counted.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import CancelEpochException
from fastai.learner import Callback, Learner
from fastai.torch_core import get_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastmask.run.files import STATE
from fastmask.run.tensors import save_tensors
from fastmask.system import limits
from fastmask.system.errors import DataError, DivergenceError, one_line
from fastmask.training.callbacks import EarlyStopping
from fastmask.training.guards import all_finite
from fastmask.training.interrupts import exit_by_signal
from fastmask.training.optimizer_state import encode_optimizer, restore_optimizer

_FORMAT = 2
# the fraction of the time that saving states within an epoch may take, if they are saved by time
_SHARE = 0.01


class ResumableLearner(Learner):
    """A fastai Learner that starts its next fit at step `first_step` of epoch `first_epoch`, both counted from 0.

    The schedule, the batches and fastai's counters are as if the earlier steps had been done.
    """

    first_epoch, first_step = 0, 0

    def fit(self, n_epoch: int, lr: Any = None, wd: Any = None, cbs: Any = None, **kwargs: Any) -> None:
        """fastai's `fit`, which at its end calls `leave` of the callbacks that have it.

        After an error or a Ctrl-C fastai itself calls no callback.
        """
        with self.added_cbs(cbs):
            try:
                super().fit(n_epoch, lr, wd, **kwargs)
            finally:
                for cb in self.cbs:
                    # of the class, since fastai's callbacks look up missing attributes in the learner and the network
                    if hasattr(type(cb), "leave"):
                        cb.leave()

    def _do_fit(self) -> None:
        first, self.first_epoch = self.first_epoch, 0
        for epoch in range(first, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)

    def all_batches(self) -> None:
        """Iterate over the current loader, from the first step on."""
        self.n_iter = len(self.dl)
        first = 0
        if self.training:
            first, self.first_step = self.first_step, 0
        for number, batch in enumerate(self.dl.start_at(first) if first else self.dl, first):
            self.one_batch(number, batch)


@dataclass(frozen=True)
class SaveEvery:
    """How often a state is saved within an epoch: every `steps` steps if given, else every `seconds` seconds."""

    steps: int | None = None
    seconds: float = 60.0

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """Parse "500" (steps), "90s" or "5m"."""
        if text.isdigit():
            return cls(steps=int(text))
        return cls(seconds=float(text[:-1]) * (60 if text.endswith("m") else 1))


class StateSaver(Callback):
    """Saves states of the fold into `folder`, and ends the fit when `received` returns the number of a signal.

    A state is saved after each epoch but the last, and within epochs as often as `every`, after a step of the
    optimizer; an interval in seconds is extended so that saving takes at most a hundredth of the time. A state
    replaces the last one once it is on the disk. `identity` identifies the fold, and training resumes from `state`, the
    result of `read_state`.

    Callbacks add to the state by `state_dict` and `load_state_dict`. Of several processes, one `writes`.
    """

    # after the callbacks that count or judge an epoch, and in a batch after those that change the weights
    order = EarlyStopping.order + 3

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        every: SaveEvery,
        received: Callable[[], int | None],
        state: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        self.writes = writes
        self.folder, self.identity, self.every, self.received, self.state = (
            folder,
            dict(identity),
            every,
            received,
            state,
        )
        self._cost = 0.0

    def before_fit(self) -> None:
        self._last = time.monotonic()
        if self.state is not None:
            self._load(self.state)

    def before_train(self) -> None:
        # fastai has just set pct_train to that of whole epochs
        if self.state is not None and self.state["step"]:
            self.learn.pct_train = self.state["pct_train"]
        self.state = None

    def after_batch(self) -> None:
        step = self.learn.iter + 1 if self.training else len(self.learn.dls.train)
        number = self.received()
        if number is not None:
            self.save(self.learn.epoch, step)
            exit_by_signal(number)
        if self.training and self._is_due(step):
            self.save(self.learn.epoch, step)

    def after_epoch(self) -> None:
        number, following = self.received(), self.learn.epoch + 1
        if following < self.learn.n_epoch:
            self.save(following, 0)
            if number is not None:
                exit_by_signal(number)

    def _is_due(self, step: int) -> bool:
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return time.monotonic() - self._last >= max(self.every.seconds, self._cost / _SHARE)

    def save(self, epoch: int, step: int) -> None:
        """Save the state before step `step` of `epoch`; raises DivergenceError if weights are NaN or infinite."""
        start = time.monotonic()
        finite_loss = getattr(self.learn, "finite_loss", None)
        if finite_loss is not None and self.training:
            # its error names the batch
            finite_loss.check()
        # first, since callbacks that average weights put the trained ones back
        callbacks = {cb.name: cb.state_dict() for cb in self._callbacks()}
        if not self.writes:
            return
        tensors: dict[str, Tensor] = {}
        plain = _split_tensors(
            {
                "format": _FORMAT,
                **self.identity,
                "epoch": epoch,
                "step": step,
                "pct_train": self.learn.pct_train,
                "train_iter": self.learn.train_iter,
                "network": get_model(self.learn.model).state_dict(),
                "loss": self._loss_state(),
                "optimizer": encode_optimizer(self.learn.opt),
                "recorder": _recorder_state(self.learn.recorder),
                "callbacks": callbacks,
            },
            "",
            tensors,
        )
        if not all_finite([tensor for name, tensor in tensors.items() if name.startswith(".network.")]):
            raise DivergenceError(f"epoch {self.learn.epoch + 1}, at step {step}: the weights have NaN or infinity")
        save_tensors(tensors, self.folder / STATE, state=json.dumps({"sum": _checksum(plain, tensors), "state": plain}))
        self._last = time.monotonic()
        self._cost = self._last - start

    def _load(self, state: Mapping[str, Any]) -> None:
        """Restore what `save` saved; raises DataError for the state of another fold."""
        learn, file = self.learn, self.folder / STATE
        try:
            if "accumulation" in state["callbacks"]:
                raise ValueError("an earlier version saved it, which counted the batches of a step as steps")
            if not (0 <= state["epoch"] < learn.n_epoch and 0 <= state["step"] <= len(learn.dls.train)):
                raise ValueError(f"it is at step {state['step']} of epoch {state['epoch']}")
            get_model(learn.model).load_state_dict(state["network"])
            if isinstance(learn.loss_func, nn.Module):
                learn.loss_func.load_state_dict(state["loss"])
            restore_optimizer(learn.opt, state["optimizer"])
            _load_recorder(learn.recorder, state["recorder"])
            for cb in self._callbacks():
                # of the class, as above
                if cb.name in state["callbacks"] or not getattr(type(cb), "optional", False):
                    cb.load_state_dict(state["callbacks"][cb.name])
            learn.first_epoch, learn.first_step = state["epoch"], state["step"]
            learn.train_iter = state["train_iter"]
            for dl in learn.dls.loaders:
                # an epoch is one pass through each
                dl.passes.next = state["epoch"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise invalid_state(file, one_line(error)) from error

    def _callbacks(self) -> list[Any]:
        # of the class, as above
        return [cb for cb in self.learn.cbs if hasattr(type(cb), "state_dict")]

    def _loss_state(self) -> dict[str, Tensor]:
        loss = self.learn.loss_func
        return loss.state_dict() if isinstance(loss, nn.Module) else {}


def read_state(folder: Path, identity: Mapping[str, Any], parameters: int) -> dict[str, Any] | None:
    """The state in a fold's folder, or None.

    Raises DataError if it belongs to another fold, or is larger than a network of `parameters` and a loss need.
    """
    file = folder / STATE
    if not file.exists():
        return None
    try:
        if file.stat().st_size > limits.PARAMETER_BYTES * parameters + limits.LOSS_BYTES:
            raise ValueError(f"it is {file.stat().st_size} bytes long")
        with safe_open(file, framework="pt") as opened:
            saved = json.loads((opened.metadata() or {})["state"])
            # copies: otherwise the file stays mapped, and Windows cannot replace it by the next state
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        if saved["sum"] != _checksum(saved["state"], tensors):
            raise ValueError("it is damaged")
        state = _join_tensors(saved["state"], tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise invalid_state(file, one_line(error)) from error
    expected = {"format": _FORMAT, **identity}
    differing = [name for name, value in expected.items() if not isinstance(state, dict) or state.get(name) != value]
    if differing:
        raise invalid_state(file, f"it belongs to another {differing[0]}")
    counters = {"epoch": int, "step": int, "train_iter": int, "pct_train": float}
    odd = [name for name, kind in counters.items() if type(state.get(name)) is not kind]
    if odd:
        raise invalid_state(file, f"it lacks the {odd[0]}")
    return dict(state)


def invalid_state(file: Path, why: str) -> DataError:
    """The error of a state that cannot be resumed from."""
    return DataError(f"{file} is not a state that this fold can resume from ({why}); remove it to train the fold anew.")


_TENSOR = "tensor:"


def _split_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with names in place of its tensors, which are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return _TENSOR + name
    if isinstance(value, Mapping):
        return {str(key): _split_tensors(v, f"{name}.{key}", tensors) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_split_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _checksum(plain: Any, tensors: Mapping[str, Tensor]) -> int:
    """A checksum, which detects bits that a disk has changed."""
    total = zlib.crc32(json.dumps(plain).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _join_tensors(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_split_tensors`, except that the keys of mappings are strings."""
    if isinstance(plain, dict):
        return {key: _join_tensors(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_join_tensors(value, tensors) for value in plain]
    return tensors[plain.removeprefix(_TENSOR)] if isinstance(plain, str) and plain.startswith(_TENSOR) else plain


def _recorder_state(recorder: Any) -> dict[str, Any]:
    losses = recorder.losses
    return {
        "lrs": torch.tensor(recorder.lrs, dtype=torch.float64),
        "losses": torch.stack([loss.cpu() for loss in losses]) if losses else torch.zeros(0),
        "values": [list(row) for row in recorder.values],
        "iters": list(recorder.iters),
        "smooth": {"value": recorder.smooth_loss.val, "count": recorder.smooth_loss.count},
    }


def _load_recorder(recorder: Any, state: Mapping[str, Any]) -> None:
    recorder.lrs, recorder.losses = state["lrs"].tolist(), list(state["losses"].unbind())
    recorder.values, recorder.iters = list(state["values"]), list(state["iters"])
    recorder.smooth_loss.val, recorder.smooth_loss.count = state["smooth"]["value"], state["smooth"]["count"]
