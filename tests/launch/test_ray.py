"""Folds on a cluster of several nodes on this machine have the bytes of a run in one process, also after a loss."""

import io
import os
import shlex
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import exceptions
from ray.cluster_utils import Cluster
from run_files import WITH_TIMES, bytes_of

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.launch.ray import Share, _FoldTasks, _SentFold, _tracker_variables, pick_share
from fastmask.run.directory import resume_config
from fastmask.system.errors import FastmaskError, UsageError

files = partial(bytes_of, without=(*WITH_TIMES, "config.yaml"))
SECONDS = 240


@pytest.fixture(scope="module")
def cluster(cache_home):
    """A head without cores and two nodes, which this process has joined."""
    with pytest.MonkeyPatch.context() as patch:
        # else workers give way to everything that runs on this machine
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 5}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
        for _ in range(2):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def launch(cluster, contest, small_settings, tmp_path):
    """Trains on the cluster; gives the run and what was said."""

    def train(log=None, **settings):
        log = log or io.StringIO()
        made = {**small_settings, "launcher": "ray", **settings}
        return cross_validate(read_contest(contest), out=tmp_path / "run", log=log, **made), log.getvalue()

    return train


# before this process joins one
def test_a_cluster_that_does_not_answer_is_refused(contest, small_settings, tmp_path):
    with pytest.raises(UsageError, match="Nothing answers at --address 127.0.0.1:1 "):
        settings = {**small_settings, "launcher": "ray", "address": "127.0.0.1:1"}
        cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_same_bytes_as_in_one_process(launch, finished_run, tmp_path):
    run, said = launch()
    assert files(run.path) == files(finished_run.path)
    assert "2 folds, each with 1 CPU, on 3 nodes of Ray\n" in said
    assert {f"fold {fold}/2 epoch {epoch}/2" in said for fold in (1, 2) for epoch in (1, 2)} == {True}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # the launcher is not taken over
    assert resume_config(make_config({}), run.path).launcher == "local"


@pytest.mark.slow
def test_the_same_bytes_without_a_shared_disk(launch, finished_run):
    run, _ = launch(fetch=True)
    assert files(run.path) == files(finished_run.path)


@pytest.mark.slow
def test_folds_are_refitted_on_the_cluster(launch, contest, small_settings, tmp_path):
    run, said = launch(refit=1, fetch=True)
    assert "fold 2/2: 1 epoch on all photos\n" in said
    settings = {**small_settings, "refit": 1}
    here = cross_validate(read_contest(contest), out=tmp_path / "here", log=io.StringIO(), **settings)
    assert files(run.path) == files(here.path)
    assert len(list(here.path.glob("fold*/refit.safetensors"))) == 2


class Interrupting(io.StringIO):
    """A log that is interrupted after the first epoch."""

    def write(self, text):
        if "epoch 1/" in text and "epoch 1/" not in self.getvalue():
            super().write(text)
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.slow
def test_a_stopped_run_is_resumed_in_one_process(launch, contest, finished_run, tmp_path):
    log = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        launch(log)
    out = shlex.quote(str(tmp_path / "run"))
    assert f"Interrupted. To resume: fastmask fit --resume --out {out} --launcher ray\n" in log.getvalue()
    assert (tmp_path / "run" / "fold0").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run = cross_validate(read_contest(contest), out=tmp_path / "run", resume=True, log=io.StringIO())
    assert files(run.path) == files(finished_run.path)


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised_with_the_paths_of_the_driver(launch, tmp_path, monkeypatch):
    # a worker that looks for it does not find it
    monkeypatch.setattr("fastmask.launch.worker.read_token", lambda out: "of another disk")
    with pytest.raises(FastmaskError, match=rf"diverged in epoch 1.*; {tmp_path}/run/fold\d/diverged.csv lists"):
        launch(lr=1e30)
    assert len(list((tmp_path / "run").glob("fold*/diverged.csv"))) >= 1


@pytest.mark.slow
def test_more_than_any_node_has_is_refused_before_the_run_is_made(launch, tmp_path):
    with pytest.raises(UsageError, match=r"A fold asks for 64 CPU, which no node .* nodes of 0 CPU, 0 GPU; 1 CPU, 0"):
        launch(per_fold="cpu=64")
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_a_node():
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert pick_share(None, False, 2, nodes) == Share(2)
    # no node has as many cores as torch takes threads
    assert pick_share(None, False, 64, nodes) == Share(8)
    assert pick_share({"cpu": 0.5}, False, 2, nodes) == Share(0.5)
    assert pick_share(None, True, 2, nodes) == Share(0, 1)
    assert pick_share({"gpu": 0.5, "cpu": 4}, True, 2, nodes) == Share(4, 0.5)
    with pytest.raises(UsageError, match="gpu=0.5 needs a GPU here, too"):
        pick_share({"gpu": 0.5}, False, 2, nodes)
    with pytest.raises(UsageError, match="A fold asks for 9 CPU and 1 GPU, which no node"):
        pick_share({"cpu": 9}, True, 2, nodes)


class Losing(_FoldTasks):
    """A launch that sends folds nowhere."""

    def __init__(self, run, said):
        self.job, self.run, self.progress = "train", run, SimpleNamespace(say=said.append)

    def _send(self, sent):
        sent.mark = self._state_of(sent.fold)


def test_a_fold_that_is_lost_five_times_without_progress_ends_the_run(finished_run, tmp_path):
    said, run = [], Run(tmp_path, finished_run.config, finished_run.heads)
    launch, sent = Losing(run, said), _SentFold(0)
    launch._send(sent)
    for _ in range(4):
        launch._resend_lost(sent, exceptions.WorkerCrashedError())
    # progress resets the count
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "state.safetensors").write_bytes(b"a state")
    for _ in range(4):
        launch._resend_lost(sent, exceptions.WorkerCrashedError())
    with pytest.raises(FastmaskError, match="Fold 1/2 was lost for lack of memory 5 times before it had saved a state"):
        launch._resend_lost(sent, exceptions.OutOfMemoryError("it was killed"))
    assert said == ["fold 1/2 was lost with its worker or node; it resumes on another node from its last state"] * 8


def test_variables_of_trackers_are_sent_to_the_workers(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    assert _tracker_variables(make_config({"wandb": "masks"}))["WANDB_MODE"] == "offline"
    assert "MLFLOW_TRACKING_URI" not in _tracker_variables(make_config({"wandb": "masks"}))
    assert _tracker_variables(make_config({})) == {}


def test_a_missing_package_is_named_with_its_extra(contest, small_settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmask.launch.ray", None)
    with pytest.raises(
        UsageError, match=r'needs the package ray \(.*\); install it with pip install "fastmask\[ray\]"'
    ):
        settings = {**small_settings, "launcher": "ray"}
        cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), **settings)


def test_the_launcher_does_not_change_the_identity(finished_run):
    elsewhere = Run(
        finished_run.path, make_config(finished_run.config.to_plain(), {"launcher": "ray"}), finished_run.heads
    )
    assert elsewhere.identity == finished_run.identity


def holder(lock):
    """The process that holds a fold, and its node's."""
    worker = int(lock.read_text().split()[1])
    return worker, int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])


def lose_the_node_of(fold, run, cluster, lost):
    """Kill the node that trains a fold as soon as it has saved a state."""
    end = time.monotonic() + SECONDS
    while not (run / f"fold{fold}" / "state.safetensors").exists() and time.monotonic() < end:
        time.sleep(0.005)
    worker, raylet = holder(run.with_name(f".run.fold{fold}.lock"))
    os.kill(worker, signal.SIGKILL)
    (node,) = (n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == raylet)
    cluster.remove_node(node, allow_graceful=False)
    lost.append(worker)


# the last test, because it loses a node
@pytest.mark.slow
def test_a_fold_of_a_lost_node_continues_on_another(launch, cluster, finished_run, tmp_path):
    lost = []
    killer = threading.Thread(target=lose_the_node_of, args=(0, tmp_path / "run", cluster, lost))
    killer.start()
    # a state after each step
    run, said = launch(save_every="1")
    killer.join()
    assert len(lost) == 1
    assert "fold 1/2 was lost with its worker or node; it resumes on another node from its last state\n" in said
    assert "fold 1/2 resumes in epoch" in said
    assert files(run.path) == files(finished_run.path)
