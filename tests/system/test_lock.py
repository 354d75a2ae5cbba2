import os
import subprocess
import sys
from subprocess import PIPE

import pytest

from fastmask.api import Run
from fastmask.run.directory import resume_config
from fastmask.system.errors import UsageError
from fastmask.system.lock import check_unlocked, lock_fold, lock_run, read_token


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which is in a context of `fastmask.system.lock` until its stdin is closed."""
    started = []

    def start(context):
        code = f"""
from pathlib import Path
from fastmask.system.lock import lock_fold, lock_run
with {context}:
    print("holding", flush=True)
    input()
"""
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "holding\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_process_reads_who_holds_a_run(tmp_path, holder):
    other = holder(f"lock_run(Path({str(tmp_path / 'run')!r}))")
    written = rf"run is being written by process {other.pid} on \S+ since 20.*; wait for it"
    with pytest.raises(UsageError, match=written), lock_run(tmp_path / "run"):
        raise AssertionError("both hold it")
    with pytest.raises(UsageError, match=f"written by process {other.pid} on"):
        check_unlocked(tmp_path / "run")
    other.communicate("\n")
    check_unlocked(tmp_path / "run")
    with lock_run(tmp_path / "run"):
        assert f"process {os.getpid()} on" in (tmp_path / ".run.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from fastmask.system.lock import lock_run
with lock_run(Path({str(tmp_path / "run")!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with lock_run(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_leftovers_of_a_killed_process_are_removed(run_copy):
    place = run_copy.parent
    (place / f".{run_copy.name}.abcdefgh.new" / "new").mkdir(parents=True)
    for name in (".epoch001.safetensors.123.part", ".tmpZE1znb"):
        (run_copy / "fold0" / name).write_text("half")
    # of other runs, and unknown files
    others = [
        place / f".{run_copy.name}-2.abcdefgh.new",
        place / f".{run_copy.name}.notes",
        run_copy / "fold0" / "a.part",
    ]
    for other in others:
        other.mkdir()
    before = {path.name for path in (run_copy / "fold0").iterdir()}
    with lock_run(run_copy):
        pass
    assert {path.name for path in (run_copy / "fold0").iterdir()} == before - {
        ".epoch001.safetensors.123.part",
        ".tmpZE1znb",
    }
    assert sorted(path for path in place.iterdir() if path.name.startswith(".")) == sorted(others[:2])


def test_a_run_that_was_being_replaced_is_restored(run_copy):
    """Killed between the two renames of --overwrite: the old run is aside, the new one not yet in its place."""
    aside = run_copy.parent / f".{run_copy.name}.abcdefgh.new"
    (aside / "new").mkdir(parents=True)
    before = Run.load(run_copy).config
    run_copy.rename(aside / "old")
    with lock_run(run_copy):
        assert resume_config(before, run_copy) == before
    assert Run.load(run_copy).trained_folds == [0, 1]
    assert not aside.exists()


def test_two_workers_never_write_one_fold(run_copy, holder):
    other = holder(f"lock_fold(Path({str(run_copy)!r}), 0, print)")
    said = []
    written = rf"A fold of {run_copy} is still being written by process {other.pid} on"
    with pytest.raises(UsageError, match=written), lock_fold(run_copy, 0, said.append, wait=0.1):
        raise AssertionError("both hold it")
    assert len(said) == 1
    assert said[0].startswith(f"fold0 waits for process {other.pid} on ")
    with lock_fold(run_copy, 1, said.append):
        pass
    # and one that waits long enough has it once it is free
    assert other.stdin is not None
    other.stdin.close()
    (run_copy / "fold0" / ".state.safetensors.123.part").write_text("half")
    with lock_fold(run_copy, 0, said.append):
        assert not (run_copy / "fold0" / ".state.safetensors.123.part").exists()
    assert [path for path in run_copy.parent.iterdir() if path.name.startswith(".")] == []


def test_the_lock_of_a_killed_worker_is_removed(run_copy):
    left = run_copy.with_name(f".{run_copy.name}.fold1.lock")
    left.write_text("process 1 on a node that is gone")
    with lock_run(run_copy):
        assert not left.exists()


def test_the_token_can_be_read_only_on_the_disk_of_the_run(run_copy, tmp_path):
    assert read_token(run_copy) == ""
    with lock_run(run_copy):
        assert read_token(run_copy).startswith(f"process {os.getpid()} on ")
        assert read_token(tmp_path / "elsewhere" / run_copy.name) == ""


def test_a_run_that_replaced_another_is_kept(run_copy):
    aside = run_copy.parent / f".{run_copy.name}.abcdefgh.new"
    (aside / "old").mkdir(parents=True)
    with lock_run(run_copy):
        pass
    assert Run.load(run_copy).trained_folds == [0, 1]
    assert not aside.exists()
