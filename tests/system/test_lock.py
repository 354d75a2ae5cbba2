import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmask.api import Run
from fastmask.run.directory import resume_config
from fastmask.system.errors import UsageError
from fastmask.system.lock import check_not_held, fold_held, held, token


def hold(out: str, holding: "multiprocessing.synchronize.Event", over: "multiprocessing.synchronize.Event") -> None:
    with held(Path(out)):
        holding.set()
        over.wait(60)


@pytest.mark.semaphores
def test_a_second_process_is_told_who_holds_a_run(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    holding, over = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(str(tmp_path / "run"), holding, over))
    other.start()
    try:
        assert holding.wait(60)
        with (
            pytest.raises(
                UsageError, match=rf"run is being written by process {other.pid} on \S+ since 20.*; wait for it"
            ),
            held(tmp_path / "run"),
        ):
            raise AssertionError("both hold it")
        with pytest.raises(UsageError, match=f"written by process {other.pid} on"):
            check_not_held(tmp_path / "run")
    finally:
        over.set()
        other.join()
    check_not_held(tmp_path / "run")
    with held(tmp_path / "run"):
        assert f"process {os.getpid()} on" in (tmp_path / ".run.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from fastmask.system.lock import held
with held(Path({str(tmp_path / "run")!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with held(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_has_left_is_cleared_away(run_copy: Path) -> None:
    place = run_copy.parent
    (place / f".{run_copy.name}.abcdefgh.new" / "new").mkdir(parents=True)
    for name in (".epoch001.safetensors.123.part", ".tmpZE1znb"):
        (run_copy / "fold0" / name).write_text("half")
    # of other runs, and of nobody
    others = [
        place / f".{run_copy.name}-2.abcdefgh.new",
        place / f".{run_copy.name}.notes",
        run_copy / "fold0" / "a.part",
    ]
    for other in others:
        other.mkdir()
    before = {path.name for path in (run_copy / "fold0").iterdir()}
    with held(run_copy):
        pass
    assert {path.name for path in (run_copy / "fold0").iterdir()} == before - {
        ".epoch001.safetensors.123.part",
        ".tmpZE1znb",
    }
    assert sorted(path for path in place.iterdir() if path.name.startswith(".")) == sorted(others[:2])


def test_a_run_that_was_being_replaced_is_given_back(run_copy: Path) -> None:
    """Killed between the two renames of --overwrite: the old run is aside, the new one not yet in its place."""
    aside = run_copy.parent / f".{run_copy.name}.abcdefgh.new"
    (aside / "new").mkdir(parents=True)
    before = Run.load(run_copy).config
    run_copy.rename(aside / "old")
    with held(run_copy):
        assert resume_config(before, run_copy) == before
    assert Run.load(run_copy).trained_folds == [0, 1]
    assert not aside.exists()


def hold_fold(
    run: str, holding: "multiprocessing.synchronize.Event", over: "multiprocessing.synchronize.Event"
) -> None:
    with fold_held(Path(run), 0, print):
        holding.set()
        over.wait(60)


@pytest.mark.semaphores
def test_two_workers_never_write_one_fold(run_copy: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    holding, over = processes.Event(), processes.Event()
    other = processes.Process(target=hold_fold, args=(str(run_copy), holding, over))
    other.start()
    said: list[str] = []
    try:
        assert holding.wait(60)
        with (
            pytest.raises(UsageError, match=rf"A fold of {run_copy} is still being written by process {other.pid} on"),
            fold_held(run_copy, 0, said.append, wait=0.1),
        ):
            raise AssertionError("both hold it")
        assert len(said) == 1
        assert said[0].startswith(f"fold0 waits for process {other.pid} on ")
        with fold_held(run_copy, 1, said.append):
            pass
        # and one that waits long enough has it once it is free
        over.set()
        (run_copy / "fold0" / ".state.safetensors.123.part").write_text("half")
        with fold_held(run_copy, 0, said.append):
            assert not (run_copy / "fold0" / ".state.safetensors.123.part").exists()
    finally:
        over.set()
        other.join()
    assert [path for path in run_copy.parent.iterdir() if path.name.startswith(".")] == []


def test_the_lock_of_a_worker_that_was_killed_goes(run_copy: Path) -> None:
    left = run_copy.with_name(f".{run_copy.name}.fold1.lock")
    left.write_text("process 1 on a node that is gone")
    with held(run_copy):
        assert not left.exists()


def test_only_who_sees_the_disk_reads_the_token(run_copy: Path, tmp_path: Path) -> None:
    assert token(run_copy) == ""
    with held(run_copy):
        assert token(run_copy).startswith(f"process {os.getpid()} on ")
        assert token(tmp_path / "elsewhere" / run_copy.name) == ""


def test_what_replaced_a_run_stays(run_copy: Path) -> None:
    aside = run_copy.parent / f".{run_copy.name}.abcdefgh.new"
    (aside / "old").mkdir(parents=True)
    with held(run_copy):
        pass
    assert Run.load(run_copy).trained_folds == [0, 1]
    assert not aside.exists()
