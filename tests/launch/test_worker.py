import os
import shutil

from run_files import bytes_of

from fastmask.api import Run
from fastmask.data.contest import read_contest
from fastmask.launch.mirror import all_files, apply_change
from fastmask.launch.worker import Order, run_job


def test_a_worker_without_access_to_the_run_trains_a_fold_and_sends_its_files(contest, run_copy, finished_run):
    shutil.rmtree(run_copy / "fold0")
    run = Run.load(run_copy)
    order = Order.of(run, read_contest(contest), run.config.model_copy(update={"device": "cpu"}), None)
    messages = []
    # the run is not held, so that no token shows that the worker sees its disk
    assert not run_job(order, "train", 0, 1, None, messages.append)
    assert messages == []
    assert run_job(order, "train", 0, 1, all_files(run.fold_path(0)), messages.append)
    lines = [message.line for message in messages if message.line is not None]
    assert [line.startswith(f"fold 1/2 epoch {epoch}/2 ") for epoch, line in enumerate(lines[-2:], 1)] == [True, True]
    for message in messages:
        if message.change is not None:
            apply_change(run.fold_path(0), message.change)
    assert bytes_of(run.fold_path(0)) == bytes_of(finished_run.fold_path(0))


def test_a_worker_gets_absolute_paths(contest, run_copy):
    run = Run.load(run_copy)
    config = run.config.model_copy(update={"images_also": ["a", "/b"], "extra": "c.csv"})
    order = Order.of(run, read_contest(contest), config, None)
    assert order.config.images_also == [os.path.abspath("a"), os.path.abspath("/b")]
    assert (order.config.extra, order.config.pseudo) == (os.path.abspath("c.csv"), None)
