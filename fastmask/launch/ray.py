"""Ray: folds in parallel as tasks of a Ray cluster, which survive the loss of nodes.

Each fold is a task with its share of a node. A worker makes the fold's plan, checks that it matches the run, and
resumes from the fold's last state, so a fold on a lost node continues on another, and on a CPU with the same bits.
Workers with access to the run directory write into it; to others the driver sends the fold's files, and they send back
the changes after each saved state.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fastmask.config import Config
from fastmask.data.loaders import pick_device
from fastmask.data.table import Table
from fastmask.launch.mirror import Change, MessageQueue, all_files, apply_change
from fastmask.launch.worker import Job, Message, Order, run_job
from fastmask.run.directory import RunDirectory
from fastmask.run.files import STATE
from fastmask.system.errors import FastmaskError, UsageError, one_line
from fastmask.system.text import count
from fastmask.training.crossval import check_not_removed
from fastmask.training.fold import clear_fold
from fastmask.training.interrupts import Interrupts, exit_by_signal
from fastmask.training.plan import LossFunc, OptFunc, Plan
from fastmask.training.progress.live import RunProgress

# seconds: between two checks of the workers, until a port answers, until a shared disk shows a new file
_LOOK, _ANSWERS, _SHOWS = 0.5, 10.0, 90.0
# times that a fold may be lost without saving a new state
_MOST_LOST = 5
_LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.OutOfMemoryError,
    exceptions.OwnerDiedError,
    exceptions.ObjectLostError,
)
# prefixes of environment variables that a tracker reads
_OF_TRACKERS = {"wandb": "WANDB_", "mlflow": "MLFLOW_"}


@contextmanager
def join_cluster(
    config: Config, table: Table, custom: tuple[LossFunc | None, OptFunc | None], say: Callable[[str], None]
) -> Iterator[RayLauncher]:
    """A context with the launcher for a configuration's cluster; raises UsageError if it cannot be joined.

    A cluster that this process has already joined is used, and stays joined.
    """
    with _silence_ray():
        joined_here = not ray.is_initialized()
        if joined_here:
            _join(config.address or os.environ.get("RAY_ADDRESS") or "local")
        try:
            yield RayLauncher(config, table, custom, say)
        finally:
            if joined_here:
                ray.shutdown()


@contextmanager
def _silence_ray() -> Iterator[None]:
    """A context in which Ray neither prints nor logs: fastmask reports lost folds, and stdout is for results."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # Ray prints some reports of raylets regardless of its options
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(before)


def _join(address: str) -> None:
    """Join the cluster at an address, or start a "local" one; raises UsageError if that fails."""
    _check_answers(address)
    before = signal.getsignal(signal.SIGTERM)
    if address == "local":
        # the same niceness as this process, not 15 more
        os.environ.setdefault("RAY_worker_niceness", "0")
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(
            f"Ray at {address} cannot be joined ({one_line(error)}); expected auto, HOST:PORT on a node of the cluster "
            "itself, or ray://HOST:PORT. A cluster that asks for a token needs RAY_AUTH_MODE=token here."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray has replaced the handler that saves a state
            signal.signal(signal.SIGTERM, before)


def _check_answers(address: str) -> None:
    """Raise UsageError if nothing listens at an address, because Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"Nothing answers at --address {address} ({one_line(error)}); is the cluster up?") from error


@dataclass(frozen=True)
class Share:
    """A fold's share of a node."""

    cpu: float
    gpu: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.cpu:g} CPU"] if self.cpu else []
        return " and ".join([*parts, *([f"{self.gpu:g} GPU"] if self.gpu else [])])

    def fits(self, node: Mapping[str, float]) -> bool:
        """Whether a node has that many resources."""
        return self.cpu <= node.get("CPU", 0) and self.gpu <= node.get("GPU", 0)


def pick_share(
    given: Mapping[Any, float] | None, on_gpu: bool, threads: int, nodes: Sequence[Mapping[str, float]]
) -> Share:
    """A fold's share of one of the `nodes`: as `given`, or else a GPU, or as many cores as torch has `threads`.

    Raises UsageError if the driver has no GPU to make a plan for GPUs, or if no node has that many resources.
    """
    given = given or {}
    if "gpu" in given and not on_gpu:
        raise UsageError(
            f"--per-fold gpu={given['gpu']:g} needs a GPU here, too, to choose precision and batch size; start on a "
            "machine with one, without --device cpu."
        )
    if on_gpu:
        share = Share(given.get("cpu", 0.0), given.get("gpu", 1.0))
    else:
        # torch may have more threads than any node has cores
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        share = Share(given.get("cpu", max(1.0, min(float(threads), most))))
    if not any(share.fits(node) for node in nodes):
        found = "; ".join(sorted({f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes}))
        raise UsageError(
            f"A fold asks for {share}, which no node of the Ray cluster has (there are nodes of {found or 'nothing'}); "
            "give a smaller --per-fold."
        )
    return share


def _task(order: Order, job: Job, fold: int, attempt: int, files: Change | None, queue: Any) -> bool:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # inherited from a script's background job, but here SIGINT comes only from `ray.cancel`
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def send(message: Message) -> None:
        ray.get(queue.put.remote(pickle.dumps(message)))

    return run_job(order, job, fold, attempt, files, send)


@dataclass
class _SentFold:
    """A fold that was sent to the cluster: how often it was sent, and how often lost since the state `mark`."""

    fold: int
    attempt: int = 0
    lost: int = 0
    mark: tuple[int, int] | None = None
    # whether its files are sent with it, because workers have no access to them
    with_files: bool = False


class RayLauncher:
    """Trains folds as tasks of the cluster that this process has joined."""

    def __init__(
        self,
        config: Config,
        table: Table,
        custom: tuple[LossFunc | None, OptFunc | None],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.table, self.custom, self.say = config, table, custom, say
        self.share = Share(1.0)

    def adapt_plan(self, plan: Plan, run: RunDirectory | None) -> Plan:
        """The plan with as many torch threads as its folds have cores, if --per-fold sets them.

        Their number changes bits, so a resumed run keeps its own.
        """
        given, on_gpu = self.config.per_fold or {}, pick_device(plan.config.device).type != "cpu"
        threads = torch.get_num_threads() if run is None else run.environment.get("threads", torch.get_num_threads())
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.share = pick_share(given, on_gpu, threads, nodes)
        if self.config.bs == "auto" and 0 < self.share.gpu < 1:
            raise UsageError(
                f"--bs auto fills a whole GPU, and --per-fold gives a fold {self.share.gpu:g} of one: give --bs."
            )
        if on_gpu or run is not None or "cpu" not in given:
            return plan
        return replace(plan, environment={**plan.environment, "threads": max(1, int(given["cpu"]))})

    def train(self, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        """Train folds to their end."""
        self._launch("train", run, plan, folds, progress)

    def refit(self, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        """Refit finished folds on all photos."""
        self._launch("refit", run, plan, folds, progress)

    def _launch(self, job: Job, run: RunDirectory, plan: Plan, folds: Sequence[int], progress: RunProgress) -> None:
        if not folds:
            return
        progress.say(f"{count(len(folds), 'fold')}, each with {self.share}, on {count(len(_alive()), 'node')} of Ray")
        order = Order.of(run, self.table, self._worker_config(plan.config), *self.custom)
        with _translate_errors(run):
            _FoldTasks(job, run, order, self.share, _tracker_variables(plan.config), progress).run_all(folds)

    def _worker_config(self, config: Config) -> Config:
        """The configuration for a worker, which sees only its own GPU."""
        update: dict[str, Any] = {"device": "cuda:0" if self.share.gpu else "cpu"}
        if self.share.gpu and config.workers is None and self.share.cpu:
            update["workers"] = max(1, int(self.share.cpu))
        return config.model_copy(update=update)


def _alive() -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _tracker_variables(config: Config) -> dict[str, str]:
    """The environment variables of this process that a worker's trackers need."""
    prefixes = [start for setting, start in _OF_TRACKERS.items() if getattr(config, setting) is not None]
    return {name: value for name, value in os.environ.items() if any(name.startswith(start) for start in prefixes)}


@contextmanager
def _translate_errors(run: RunDirectory) -> Iterator[None]:
    """A context in which an error of Ray itself becomes a FastmaskError."""
    try:
        yield
    except (exceptions.RayError, ConnectionError) as error:
        if isinstance(error, exceptions.RayTaskError):
            raise
        raise FastmaskError(
            f"The Ray cluster failed ({one_line(error)}); {run.path} keeps the last state of each fold: once it is up "
            "again, continue with --resume."
        ) from error


class _FoldTasks:
    """The tasks of a run's folds on the cluster, all with the same job."""

    def __init__(
        self,
        job: Job,
        run: RunDirectory,
        order: Order,
        share: Share,
        surroundings: Mapping[str, str],
        progress: RunProgress,
    ) -> None:
        self.job, self.run, self.progress = job, run, progress
        self._order = ray.put(order)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = ray.remote(MessageQueue).options(num_cpus=0, scheduling_strategy=here).remote()
        options: dict[str, Any] = {"runtime_env": {"env_vars": dict(surroundings)}} if surroundings else {}
        # lost folds are sent again by `_lost`, which checks their progress
        self._task = ray.remote(_task).options(
            num_cpus=share.cpu, num_gpus=share.gpu, max_retries=0, scheduling_strategy="SPREAD", **options
        )
        self._fetches = order.config.fetch
        self._sent: dict[int, _SentFold] = {}
        self._running: dict[Any, _SentFold] = {}

    def run_all(self, folds: Sequence[int]) -> None:
        """Send the folds and return when all are done; on any exception the others save a state and stop."""
        self._sent = {fold: _SentFold(fold, with_files=self._fetches) for fold in folds}
        # signals are only noted, because Ray replaces exceptions that are raised while it waits
        interrupts = Interrupts()
        with interrupts:
            try:
                for sent in self._sent.values():
                    self._send(sent)
                while self._running:
                    for reference in self._wait_for_ended():
                        self._finish(self._running.pop(reference), reference)
                    if interrupts.received is not None:
                        exit_by_signal(interrupts.received)
            except BaseException:
                self._stop()
                raise

    def _send(self, sent: _SentFold) -> None:
        sent.attempt += 1
        sent.mark = self._state_of(sent.fold)
        files = all_files(self.run.fold_path(sent.fold)) if sent.with_files else None
        reference = self._task.remote(self._order, self.job, sent.fold, sent.attempt, files, self._queue)
        self._running[reference] = sent

    def _wait_for_ended(self) -> list[Any]:
        """The tasks that have ended, after a short wait; their messages have been read."""
        running = list(self._running)
        ended, _ = ray.wait(running, num_returns=len(running), timeout=_LOOK)
        for message in ray.get(self._queue.take.remote()):
            self._receive(pickle.loads(message))
        return list(ended)

    def _receive(self, message: Message) -> None:
        if message.attempt != self._sent[message.fold].attempt:
            # from a worker that was considered lost
            return
        if message.line is not None:
            self.progress.say(message.line)
        if message.change is not None:
            check_not_removed(self.run, [])
            apply_change(self.run.fold_path(message.fold), message.change)

    def _finish(self, sent: _SentFold, reference: Any) -> None:
        """Handle the end of a task."""
        try:
            trained = ray.get(reference)
        except exceptions.RayTaskError as error:
            # the worker's exception
            raise (error.cause or error) from error
        except _LOST as error:
            self._resend_lost(sent, error)
            return
        if trained:
            self._wait_until_visible(sent.fold)
        else:
            sent.with_files = True
            self._send(sent)

    def _resend_lost(self, sent: _SentFold, error: Exception) -> None:
        fold, named = sent.fold, f"{sent.fold + 1}/{self.run.config.folds}"
        if self.job == "train" and self.run.is_done(fold):
            # it had just ended, perhaps without removing its temporary files
            clear_fold(self.run, fold)
            return
        sent.lost = sent.lost + 1 if self._state_of(fold) == sent.mark else 1
        what = "for lack of memory" if isinstance(error, exceptions.OutOfMemoryError) else "with its worker or node"
        if sent.lost >= _MOST_LOST:
            raise FastmaskError(
                f"Fold {named} was lost {what} {sent.lost} times before it had saved a state; save it more often "
                "(--save-every), or give it more of a node (--per-fold)."
            )
        self.progress.say(f"fold {named} was lost {what}; it resumes on another node from its last state")
        self._send(sent)

    def _state_of(self, fold: int) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            found = (self.run.fold_path(fold) / STATE).stat()
            return found.st_mtime_ns, found.st_size
        return None

    def _wait_until_visible(self, fold: int) -> None:
        """Wait until a shared disk shows this machine that a fold is done."""
        end = time.monotonic() + _SHOWS
        while not self.run.is_done(fold) and time.monotonic() < end:
            check_not_removed(self.run, [])
            time.sleep(_LOOK)
            with suppress(FileNotFoundError):
                # refreshes the cache of a network disk
                list(self.run.fold_path(fold).iterdir())
        check_not_removed(self.run, [fold])

    def _stop(self) -> None:
        """Let all workers save a state and stop; a second interruption ends the wait."""
        with suppress(exceptions.RayError):
            for reference in self._running:
                ray.cancel(reference, recursive=False)
            while self._running:
                for reference in self._wait_for_ended():
                    del self._running[reference]
