"""Runs that are killed or interrupted, as processes: after resuming their bytes are those of a whole run."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_files import bytes_of

from fastmask.api import Run, cross_validate
from fastmask.data.contest import read_contest
from fastmask.system.files import write_yaml

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "kill.py"
STATE = "state.safetensors"
# what a busy machine with a slow disk has needed, many times over
SECONDS = 900
ENDLESS = """
import os
import time
from fastai.learner import Learner
from fastmask.commands.main import main
from fastmask.training.interrupts import Interrupts

receive = Interrupts._receive
# not printed, since the signal may come within the other print
Interrupts._receive = lambda *given: (receive(*given), os.write(1, b"noted\\n"))
Learner.one_batch = lambda *_: (print("in a step", flush=True), time.sleep(3600))
main()
"""


def wait_for(what, process):
    end = time.monotonic() + SECONDS
    while not what():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def settings(contest, small_settings, tmp_path):
    made = {**small_settings, "data": str(contest), "epochs": 6, "ema": 0.9}
    write_yaml(tmp_path / "settings.yaml", made)
    return made


@pytest.fixture
def start(settings, tmp_path):
    """Starts the command line, or a script that does, in a temporary folder."""
    started = []

    def process(arguments, *script):
        command = [sys.executable, "-W", "ignore", *(script or ("-m", "fastmask")), "fit", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=surroundings, text=True, **pipes))
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.semaphores
def test_a_run_that_is_killed_again_and_again_is_the_same(tmp_path):
    """While the cache is written, a batch is trained, a state is replaced, a fold ends."""
    moments = [
        "os.rename cache.*json",
        "training",
        "os.rename run/fold0/.*state",
        "os.remove run/fold0/state",
        "validating",
    ]
    command = [sys.executable, "-W", "ignore", SCRIPT, tmp_path / "kill", "--kills", "1", "--cold", "0", "--jobs", "1"]
    done = subprocess.run([*command, "--at", *moments], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"killed {len(moments)} times" in done.stdout
    assert done.stdout.endswith("survived 1 / identical 1 / 1\n")
    for words in ("decoding photos into the cache", "between folds", "no run yet", "fold 1, within an epoch"):
        assert words in done.stdout


@pytest.fixture
def one_thread():
    """This process sums in the same order as those that the test starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_stopped_and_resumed_is_the_same(start, settings, contest, tmp_path):
    out = tmp_path / "run"
    for number, code, fold in ((signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 1)):
        process = start(["--resume" if fold else "--config=settings.yaml", "--out", str(out)])
        wait_for((out / f"fold{fold}" / STATE).exists, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == code, err
        assert f"Interrupted. To resume: fastmask fit --resume --out {shlex.quote(str(out))}" in err.splitlines()[-3:]
        # once is enough
        assert err.lower().count("interrupted") == 1
        assert (out / f"fold{fold}" / STATE).is_file()
        assert Run.load(out).trained_folds == list(range(fold))
    cross_validate(read_contest(contest), out=out, resume=True, log=io.StringIO())
    cross_validate(read_contest(contest), out=tmp_path / "whole", log=io.StringIO(), **settings)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "whole", "settings.yaml"}


def test_a_second_ctrl_c_does_not_wait_for_the_step(start, tmp_path):
    process = start(["--config", "settings.yaml", "--out", "run"], "-c", ENDLESS)
    assert process.stdout.readline() == "in a step\n"
    os.kill(process.pid, signal.SIGINT)
    # two at once would be one
    assert process.stdout.readline() == "noted\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert "Interrupted. To resume: fastmask fit --resume --out run" in err.splitlines()[-3:]
    assert not (tmp_path / "run" / "fold0" / STATE).exists()
