import shutil

from run_files import bytes_of

from fastmask.api import Run
from fastmask.data.contest import read_contest
from fastmask.launch.mirror import take_over, whole
from fastmask.launch.worker import Order, work


def test_a_worker_without_access_to_the_run_trains_a_fold_and_sends_its_files(contest, run_copy, finished_run):
    shutil.rmtree(run_copy / "fold0")
    run = Run.load(run_copy)
    order = Order.of(run, read_contest(contest), run.config.model_copy(update={"device": "cpu"}), None)
    letters = []
    # the run is not held, so that no token shows that the worker sees its disk
    assert not work(order, "train", 0, 1, None, letters.append)
    assert letters == []
    assert work(order, "train", 0, 1, whole(run.fold_path(0)), letters.append)
    lines = [letter.line for letter in letters if letter.line is not None]
    assert [line.startswith(f"fold 1/2 epoch {epoch}/2 ") for epoch, line in enumerate(lines[-2:], 1)] == [True, True]
    for letter in letters:
        if letter.change is not None:
            take_over(run.fold_path(0), letter.change)
    assert bytes_of(run.fold_path(0)) == bytes_of(finished_run.fold_path(0))
