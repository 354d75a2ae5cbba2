"""Worker: trains a fold of a run, or refits it on all photos, on any node."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, Literal

from fastmask.config import Config, Kind, change_paths
from fastmask.data.table import Table
from fastmask.inference.teacher import open_teacher
from fastmask.launch.mirror import Change, MirroredFolder, apply_change
from fastmask.run.directory import RunDirectory
from fastmask.run.files import CONFIG, ENVIRONMENT, EXTRA, FOLDS, HEADS, PIPELINES, TEACHER
from fastmask.system.errors import FastmaskError
from fastmask.system.lock import lock_fold, read_token
from fastmask.training.crossval import add_soft_labels
from fastmask.training.fold import train_fold
from fastmask.training.plan import LossFunc, OptFunc, Plan
from fastmask.training.progress.display import Log
from fastmask.training.progress.live import RunProgress
from fastmask.training.refit import refit_fold
from fastmask.training.resume import check_same, restore_threads
from fastmask.training.setup import prepare

Job = Literal["train", "refit"]
_JOBS: dict[Job, Callable[[RunDirectory, Plan, int, RunProgress], None]] = {"train": train_fold, "refit": refit_fold}
# files of a run that the training of a fold reads
_NEEDED = (CONFIG, PIPELINES, HEADS, ENVIRONMENT, FOLDS, EXTRA, TEACHER)
# files and folders that a worker reads; the table is sent to it
_PATHS = [name for name in Config.of_kind(Kind.PATH) if name not in Config.of_kind(Kind.TABLE)]
# seconds between two checks for a new state
_LOOK = 1.0


@dataclass(frozen=True)
class Order:
    """What workers need to train any fold of a run.

    `run` is at its path on the driver, `shown` the path as the user wrote it, `token` a text that can be read only from
    the driver's disk. `files` are those of the run itself, for nodes without access to that disk.
    """

    run: RunDirectory
    shown: str
    token: str
    files: Mapping[str, bytes]
    table: Table
    config: Config
    loss_func: LossFunc | None
    opt_func: OptFunc | None = None

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        table: Table,
        config: Config,
        loss_func: LossFunc | None,
        opt_func: OptFunc | None = None,
    ) -> Order:
        """The order for a run that this process holds, with absolute paths."""
        place = Path(os.path.abspath(run.path))
        files = {name: (run.path / name).read_bytes() for name in _NEEDED if (run.path / name).is_file()}
        paths = {name: change_paths(getattr(config, name), os.path.abspath) for name in _PATHS}
        return cls(
            RunDirectory(place, run.config, run.heads),
            str(run.path),
            read_token(run.path),
            files,
            replace(table, root=Path(os.path.abspath(table.root))),
            config.model_copy(update=paths),
            loss_func,
            opt_func,
        )


@dataclass(frozen=True)
class Message:
    """A worker's message to the driver about a fold: a line to show, or a change of the fold's folder."""

    fold: int
    attempt: int
    line: str | None = None
    change: Change | None = None


# sends a message to the driver, and returns once it is stored
Send = Callable[[Message], None]


def run_job(order: Order, job: Job, fold: int, attempt: int, files: Change | None, send: Send) -> bool:
    """Train or refit a fold from its last state; returns False at once if that needs `files` which are missing.

    `files` are the fold's, for a worker without access to the run directory.
    """
    say = _Lines(order, fold, attempt, send)
    with _open_run(order, fold, attempt, files, say, send) as run:
        if run is None:
            return False
        say.place = str(run.path)
        try:
            plan = prepare_fold(order, run, fold, say.say_for_fold)
            with restore_threads(run, plan, say.say_for_fold):
                _JOBS[job](run, plan, fold, RunProgress(say, plan.config, 1, 1))
        except FastmaskError as error:
            raise type(error)(say.with_user_path(error.message)) from error
    return True


def prepare_fold(order: Order, run: RunDirectory, fold: int, say: Callable[[str], None]) -> Plan:
    """The plan of a fold, made on this node; an error, such as a difference from the run, names the node."""
    try:
        plan = prepare(
            order.table,
            order.config,
            order.loss_func,
            say,
            [fold],
            open_teacher=open_teacher,
            opt_func=order.opt_func,
        )
        check_same(run, plan)
        plan = add_soft_labels(plan, run, say)
    except FastmaskError as error:
        raise type(error)(f"On {platform.node()}: {error.message}") from error
    return plan


class _Lines(Log):
    """Lines for the driver, with the run's path as the user wrote it."""

    def __init__(self, order: Order, fold: int, attempt: int, send: Send) -> None:
        self.place, self._shown = str(order.run.path), order.shown
        self._fold, self._folds, self._attempt, self._send = fold, order.config.folds, attempt, send

    def say(self, line: str, important: bool = False) -> None:
        self._send(Message(self._fold, self._attempt, line=self.with_user_path(line)))

    def say_for_fold(self, line: str) -> None:
        """Show a line that does not name the fold."""
        self.say(f"fold {self._fold + 1}/{self._folds} on {platform.node()}: {line}")

    def with_user_path(self, line: str) -> str:
        return line.replace(self.place, self._shown)


@contextmanager
def _open_run(
    order: Order, fold: int, attempt: int, files: Change | None, say: _Lines, send: Send
) -> Iterator[RunDirectory | None]:
    """A context in which the run is on a disk of this node; None if that needs `files` which are missing."""
    if not order.config.fetch and order.token and read_token(order.run.path) == order.token:
        with lock_fold(order.run.path, fold, say.say):
            yield order.run
    elif files is None:
        yield None
    else:
        with TemporaryDirectory(prefix="fastmask-", ignore_cleanup_errors=True) as aside:
            run = replace(order.run, path=Path(aside) / order.run.path.name)
            for name, content in order.files.items():
                run.path.mkdir(exist_ok=True)
                (run.path / name).write_bytes(content)
            apply_change(run.fold_path(fold), files)
            with _Sending(MirroredFolder(run.fold_path(fold)), fold, attempt, send):
                yield run


class _Sending(Thread):
    """Sends the changes of a fold's folder after each saved state, and the rest at the end of a block.

    In a thread, so that the training does not wait for the network.
    """

    def __init__(self, mirrored: MirroredFolder, fold: int, attempt: int, send: Send) -> None:
        super().__init__(name=f"fold {fold + 1} to the driver", daemon=True)
        self._mirrored, self._fold, self._attempt, self._send = mirrored, fold, attempt, send
        self._over = Event()

    def __enter__(self) -> _Sending:
        self._mirrored.collect_change()
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self.join()
        self._send_change()

    def run(self) -> None:
        while not self._over.wait(_LOOK):
            if not self._mirrored.is_up_to_date:
                self._send_change()

    def _send_change(self) -> None:
        change = self._mirrored.collect_change()
        if change is not None and change.files:
            self._send(Message(self._fold, self._attempt, change=change))
