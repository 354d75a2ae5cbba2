"""What becomes of a run that is killed at random moments and gone on with: the same bytes as of one that never stopped?

python examples/benchmarks/kill.py WORK [--kills 100] [--seed 0] [--jobs 2] [--cold 4]

For Linux alone.

Draws a small data set in WORK, a new or empty folder, and trains each of several variants of a 3-fold run on it once,
in one piece. Then it starts as many runs as --kills says, each with a cache of its own, and kills each with all its
processes (SIGKILL): every other one at a random time, the others before a random one of their batches and of the
changes that they make to files. It goes on with each by the line that is to be typed, kills one in three once more on
the way, and compares every file that is there in the end, by its hash, with those of the run in one piece; but for
environment.json and times.csv, which say when and how long.

The runs are forked from a process that has imported all that they need; --cold of them are processes from their start.
With --at each run is killed at the given moments, one after the other: regular expressions, found in what it is about
to do, such as "os.rename run/fold1/.*state" or "training".
"""

import argparse
import hashlib
import itertools
import json
import mmap
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# before torch is there: so that runs beside each other add up in the same order, and a fork lacks no thread
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import yaml
from fastai.learner import Learner
from safetensors import safe_open

import fastmask.training.crossval  # noqa: F401 - what each run would import
from fastmask.commands.main import main as command_line
from fastmask.data.sample import write_sample

FIT = "fit --data ../data --arch test_resnet --no-pretrained --resize 64 32 --folds 3 --epochs 4 --bs 8 --save-every 2"
GO_ON = "fit --resume"
OUT = " --out run --no-report"
# an epoch has seven batches of 8 photos, or three steps of two
VARIANTS = {
    "averaged": "--ema 0.9 --accumulate 2 --sched onecycle --drop-rate 0.2",
    "plain": "",
    "sgd": "--opt sgd --opt-arg momentum=0.8 --sched restarts --cycle 0.5 --warmup 0.25 --clip 1",
    "sam": "--opt adamw --sam 0.05 --sched poly --mixup 0.4 --drop-rate 0.2",
    "plateau": "--opt adan --layer-decay 0.8 --sched plateau --plateau-patience 0 --lr-gamma 0.3",
    "lion": "--opt lion --lr 1e-4 --sched onecycle --sam 0.5 --sam-adaptive",
    "bf16": "--precision bf16 --workers 1 --top-k 2 --patience 1",
}
PERSONS, LIMIT, NEVER_THE_SAME = 12, 600, ("environment.json", "times.csv")
# the digests of photos that were just written are not remembered, so that a run has them or not
SAID, DIGESTS = "said", "digests-1.sqlite"
FORK = multiprocessing.get_context("fork")
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
# what a run was about to do, or had done last, -> in words; the first that is found
PHASES = {
    "^$": "before it writes anything",
    " cache": "decoding photos into the cache",
    "training": "training",
    "validating": "validating",
    r"os\.remove run/fold\d/state": "between folds, or after the last",
    r"/fold\d/\.?state": "saving a state",
    r"/fold\d/\.?done": "ending a fold",
    r"/fold\d": "keeping an epoch: weights, answers, history",
    r" run/\.?(oof|scores)": "writing answers and scores",
    r"os\.remove .*\.lock": "after the last file",
    "": "making or opening the run",
}


@dataclass(frozen=True)
class Death:
    """When a run is killed: after so many `seconds`, or before its `number`-th batch or change of files like `what`."""

    seconds: float = LIMIT
    number: int = 0
    what: str = ""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal that ended it; what it did last, of how many moments."""

    code: int
    last: str = ""
    moments: int = 0


@dataclass(frozen=True)
class Whole:
    """A run in one piece: its files, how many seconds it took, how many batches and changes of files."""

    files: dict[str, str]
    seconds: float
    moments: int


@dataclass(frozen=True)
class Trial:
    """A run to kill: with a number, of a variant, forked or not, at certain moments or at random ones."""

    folder: Path
    number: int
    variant: str
    whole: Whole
    cold: bool
    seed: int
    at: Sequence[str] = ()


@dataclass
class Outcome:
    """What became of a run that was killed: each time what it was doing and the state that it had; what is wrong."""

    trial: Trial
    kills: list[tuple[str, str]] = field(default_factory=list)
    survived: bool = False
    differing: list[str] = field(default_factory=list)
    said: str = ""


# a process -----------------------------------------------------------------------------------------------------------


class Watch:
    """Notes where other processes see it what this process does, and kills it where it is to die."""

    def __init__(self, noted: mmap.mmap, folder: Path, death: Death) -> None:
        self.noted, self.folder, self.death = noted, folder, death
        self.process, self.moments, self.fitting = os.getpid(), itertools.count(1), itertools.count(1)

    def heed(self) -> None:
        sys.addaudithook(self.hear)
        one_batch = Learner.one_batch

        def noting(learn: Learner, number: int, batch: Any) -> Any:
            self.note("training" if learn.training else "validating")
            return one_batch(learn, number, batch)

        Learner.one_batch = noting

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        # not of loading processes
        if event not in CHANGES or os.getpid() != self.process or isinstance(arguments[0], int):
            return
        # what is removed with its folder is named by its last part alone
        path = self.folder / os.fsdecode(arguments[0])
        if not path.is_relative_to(self.folder) or (event == "os.mkdir" and path.exists()):
            return
        # what is read does not count, but for what was just written and is opened to be put on the disk
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path.suffix != ".part":
            return
        self.note(f"{event} {path.relative_to(self.folder)}")

    def note(self, what: str) -> None:
        text = what.encode()[: len(self.noted) - 8]
        self.noted[: 8 + len(text)] = next(self.moments).to_bytes(4, "big") + len(text).to_bytes(4, "big") + text
        if re.search(self.death.what, what) and next(self.fitting) == self.death.number:
            os.killpg(0, signal.SIGKILL)


def become(folder: Path, command: str, watch: Callable[[], Watch]) -> None:
    """What a forked process does; its exit code is that of the command."""
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(said, number)
    watch().heed()
    command_line(command.split())


def forked(folder: Path, command: str, death: Death) -> Ended:
    noted = mmap.mmap(-1, 4096)
    process = FORK.Process(target=become, args=(folder, command, lambda: Watch(noted, folder, death)))
    process.start()
    with suppress(PermissionError, ProcessLookupError):
        # here too, since it may have to die before it does so itself
        os.setpgid(process.pid, process.pid)
    process.join(death.seconds)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    # once its loading processes are gone, too
    wait([process.sentinel])
    process.join()
    length = int.from_bytes(noted[4:8], "big")
    return Ended(process.exitcode, noted[8 : 8 + length].decode(), int.from_bytes(noted[:4], "big"))


def started(folder: Path, command: str, death: Death) -> Ended:
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    with (folder / SAID).open("ab") as said:
        arguments = [sys.executable, "-m", "fastmask", *command.split()]
        with subprocess.Popen(
            arguments, cwd=folder, env=surroundings, stdout=said, stderr=said, start_new_session=True
        ) as process:
            try:
                process.wait(death.seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode)


# a trial -------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, str]:
    """Every entry of a folder and a hash of what it holds; what is never the same twice has to be there."""
    entries = {path.relative_to(folder): path for path in folder.rglob("*") if path.name not in (SAID, DIGESTS)}
    return {str(name): "" if name.name in NEVER_THE_SAME else digest(path) for name, path in entries.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"


def phase(last: str) -> str:
    return next(words for pattern, words in PHASES.items() if re.search(pattern, last))


def phase_of_cold(run: Path) -> str:
    """Of a process that nobody watches its files tell."""
    return "from a cold start: " + ("with a run" if run.exists() else "before it has a run")


def state_of(run: Path) -> str:
    """What a run has to go on from."""
    if not run.exists():
        return "no run yet"
    fold = len(list(run.glob("fold*/done.json")))
    if fold == 3:
        return "all folds"
    file = run / f"fold{fold}" / "state.safetensors"
    if not file.exists():
        return f"fold {fold}, no state"
    with safe_open(file, "numpy") as opened:
        state = json.loads(opened.metadata()["state"])["state"]
    if not state["step"]:
        return f"fold {fold}, before an epoch"
    steps = 7 // yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["accumulate"]
    return f"fold {fold}, {'within' if state['step'] < steps else 'at the end of'} an epoch"


def deaths(trial: Trial, random: np.random.Generator, part: float) -> list[Death]:
    """The moments to kill a run at: in the first part of its course, and of one in three again when it goes on."""
    if trial.at:
        return [Death(number=1, what=what) for what in trial.at]
    drawn = []
    for share in (part, part / 2)[: 1 + (random.random() < 1 / 3)]:
        if trial.cold or trial.number % 2:
            drawn.append(Death(seconds=random.uniform(0, share * trial.whole.seconds)))
        else:
            drawn.append(Death(number=int(random.integers(share * trial.whole.moments)) + 1))
    return drawn


def attempt(trial: Trial) -> Outcome:
    random, outcome = np.random.default_rng([trial.seed, trial.number]), Outcome(trial)
    for attempts in itertools.count():
        trial.folder.mkdir()
        go_through(outcome, deaths(trial, random, 0.5**attempts))
        if outcome.kills or outcome.said or trial.at:
            break
        # it was faster than its death, so it begins anew
        shutil.rmtree(trial.folder)
    if not outcome.differing and outcome.survived:
        shutil.rmtree(trial.folder)
    return outcome


def go_through(outcome: Outcome, moments: Iterable[Death]) -> None:
    """Kill a run at each of some moments, and go on with it to its end."""
    trial, run = outcome.trial, outcome.trial.folder / "run"
    begin = FIT + " " + VARIANTS[trial.variant]
    for death in (*moments, Death()):
        command = (GO_ON if run.exists() else begin) + OUT
        ended = (started if trial.cold else forked)(trial.folder, command, death)
        if ended.code != -signal.SIGKILL or death == Death():
            break
        outcome.kills.append((phase_of_cold(run) if trial.cold else phase(ended.last), state_of(run)))
    outcome.survived = ended.code == 0
    if ended.code:
        lines = (trial.folder / SAID).read_text(encoding="utf-8").splitlines()
        outcome.said = f"exit code {ended.code}: {lines[-1] if lines else ''}"
        return
    found, expected = files(trial.folder), trial.whole.files
    outcome.differing = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))


def whole_run(folder: Path, variant: str, cold: bool = False) -> Whole:
    """A run that nobody stops."""
    folder.mkdir()
    start = time.perf_counter()
    ended = (started if cold else forked)(folder, f"{FIT} {VARIANTS[variant]}{OUT}", Death())
    if ended.code:
        sys.exit(f"The run in one piece failed: {(folder / SAID).read_text(encoding='utf-8')}")
    return Whole(files(folder), time.perf_counter() - start, ended.moments)


# all of them ---------------------------------------------------------------------------------------------------------


def trials(work: Path, options: argparse.Namespace, pool: ProcessPoolExecutor) -> list[Trial]:
    """The trials, the cold ones first; for that, the runs in one piece."""
    names = list(VARIANTS)[: options.kills]
    made = pool.map(whole_run, [work / f"whole-{name}" for name in names], names)
    cold = pool.submit(whole_run, work / "whole-cold", names[0], True).result() if options.cold else None
    wholes = dict(zip(names, made, strict=True))
    if cold is not None and cold.files != wholes[names[0]].files:
        sys.exit("A forked run and one from a cold start differ, so nothing can be compared.")
    listed = []
    for number in range(options.kills):
        # a cold start is of the first variant, whose seconds are known
        name = names[0] if number < options.cold else names[number % len(names)]
        whole = replace(wholes[name], seconds=cold.seconds) if cold and number < options.cold else wholes[name]
        folder = work / f"trial{number:03d}"
        listed.append(Trial(folder, number, name, whole, number < options.cold, options.seed, options.at))
    return listed


def told(outcome: Outcome) -> str:
    trial = outcome.trial
    kills = ", then ".join(f"{doing} ({state})" for doing, state in outcome.kills)
    ending = "identical"
    if not outcome.survived or outcome.differing:
        wrong = outcome.said or f"differing: {', '.join(outcome.differing)}"
        ending = f"FAILED, {wrong}; --seed {trial.seed}, kept in {trial.folder}"
    return f"{trial.number:3d} {trial.variant}: killed {kills}: {ending}"


def table(title: str, names: Iterable[str]) -> None:
    print(f"\n{title}")
    for name, count in sorted(Counter(names).items(), key=lambda row: -row[1]):
        print(f"{count:5d}  {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a new or empty folder")
    parser.add_argument("--kills", type=int, default=100, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--cold", type=int, default=4, help="runs that are processes from their start")
    parser.add_argument("--at", nargs="+", default=(), help="moments to kill each run at, instead of random ones")
    options = parser.parse_args(arguments)
    work = options.work.resolve()
    if work.exists() and any(work.iterdir()):
        parser.error(f"{work} is not empty")
    work.mkdir(parents=True, exist_ok=True)
    start, outcomes = time.perf_counter(), []
    # what a killed process had in the folder of temporary files stays there
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        os.environ["TMPDIR"] = os.environ["MPLCONFIGDIR"] = tempfile.tempdir = temporary
        drawing = FORK.Process(target=write_sample, args=(work / "data", PERSONS))
        drawing.start()
        drawing.join()
        with ProcessPoolExecutor(options.jobs, FORK) as pool:
            for outcome in pool.map(attempt, trials(work, options, pool)):
                outcomes.append(outcome)
                print(told(outcome), flush=True)
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    table("killed while", [doing for doing, _ in kills])
    table("what there was to go on from", [state for _, state in kills])
    survived = sum(outcome.survived for outcome in outcomes)
    identical = sum(outcome.survived and not outcome.differing for outcome in outcomes)
    print(f"\nkilled {len(kills)} times, {time.perf_counter() - start:.0f} s")
    print(f"survived {survived} / identical {identical} / {len(outcomes)}")
    return int(identical < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
