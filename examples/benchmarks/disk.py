"""What becomes of a run whose disk fills up, turns read-only or vanishes: a sentence, and then the same bytes as ever?

python examples/benchmarks/disk.py WORK [PART OF A CASE'S NAME ...]

For Linux alone, as root or where users may have namespaces of their own: the disks are tmpfs that nobody else sees.
Draws a small data set in WORK, a new or empty folder, and trains a 2-fold run in one piece. Then it trains that run
again and again and lets a fault befall it: from the start, or right before one of the changes that the run makes to
files. Each has to end in time, by an exit code of 1 or 2 and one sentence that names a file, or well where it can do
without what was lost; what it leaves must be whole and the inputs as they were. Once the fault is mended, the line that
is to be typed has to go on to the bytes of the run in one piece; but for environment.json and times.csv, which say when
and how long. The other commands that write files are put through the same, and have to do their work once there is
room.

The commands are forked from a process that has imported all that they need. A line is printed for each case that fails,
for all of them with DISK_SHOW=1.
"""

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

# before torch is there: a fork has no threads but its own
os.environ["OMP_NUM_THREADS"] = "1"

from fastai.learner import Learner
from hostile import PIPELINE
from safetensors import SafetensorError, safe_open

# what a command would import, so that each process that is forked from this one starts at once
import fastmask.data.cache
import fastmask.inference.submission
import fastmask.preparation.check
import fastmask.run.merge
import fastmask.training.crossval
import fastmask.training.finder
from fastmask.commands.main import main as command_line
from fastmask.data.sample import write_sample
from fastmask.system.errors import DataError
from fastmask.system.files import read_json, read_yaml, write_yaml

SECONDS, PAGE = 60, 4096  # a command may take so long; a tmpfs counts in these
DISK, ROOM = "disk", "256m"
RUN = f"{DISK}/run"
FIT = f"fit --config ../settings.yaml --no-report --out {RUN}"
RESUME = "fit --resume --out"
# with all that it keeps beside the photos on the disk that is put to the test
CACHED = f"fit --config ../settings.yaml --no-report --cache-dir {DISK}/cache --out run"
NEVER_THE_SAME = ("environment.json", "times.csv")
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir"}
INSIDE = "FASTMASK_DISK_INSIDE"
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command, a fault that befalls it in a folder, and what mends that.

    The fault comes before the `number`-th of what the process does that the regular expression `at` fits, or right at
    the start. `options` are of the tmpfs. `code` is the exit code where only one will do, `said` whether anybody can
    read what is said.
    """

    name: str
    fault: Change
    mend: Change
    command: str = FIT
    at: str = ""
    number: int = 1
    options: str = f"size={ROOM}"
    code: int | None = None
    said: bool = True

    @property
    def trains(self) -> bool:
        """Whether there is a run to go on with."""
        return self.command.startswith("fit") and "--dry-run" not in self.command

    @property
    def out(self) -> str:
        """The run directory, as the command names it."""
        return self.command.split("--out ")[1].split()[0]


@dataclass
class Ended:
    """How a command ended: its exit code, or minus the signal that ended it; what it said; what was wrong with it."""

    code: int
    said: str
    wrong: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        """Its last line."""
        return (self.said.strip().splitlines() or [""])[-1]


# faults --------------------------------------------------------------------------------------------------------------


def nothing(folder: Path) -> None:
    """The disk is as it should be, or what befell the process went with it."""


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def fill(folder: Path, pages: int = 0) -> None:
    """Fill the disk up to some pages."""
    disk = os.statvfs(folder / DISK)
    free = disk.f_bavail * disk.f_frsize - pages * PAGE
    with (folder / DISK / "ballast").open("ab") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(free, 1))


def make_room(folder: Path) -> None:
    (folder / DISK / "ballast").unlink(missing_ok=True)
    mount("-o", f"remount,size={ROOM},nr_inodes=0", folder / DISK)


def freeze(name: str, folder: Path) -> None:
    """Make a folder read-only for all who open something from now on, whatever is open there."""
    mount("--bind", folder / name, folder / name)
    mount("-o", "remount,bind,ro", folder / name)


def thaw(name: str, folder: Path) -> None:
    if os.statvfs(folder / name).f_flag & os.ST_RDONLY:
        subprocess.run(["umount", folder / name], check=True)


def take_away(name: str, folder: Path) -> None:
    (folder / name).rename(elsewhere(name, folder))


def elsewhere(name: str, folder: Path) -> Path:
    """Where on the same disk something is moved to."""
    return folder / (DISK if name.startswith(DISK) else "..") / "away"


def bring_back(name: str, folder: Path) -> None:
    away = elsewhere(name, folder)
    if away.exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        away.rename(folder / name)


def remove(name: str, folder: Path) -> None:
    shutil.rmtree(folder / name)


def longest_file(size: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def open_files(more: int, folder: Path) -> None:
    # the limit is one of numbers, of which some in between are free
    free = [number for number in range(1024) if not os.path.exists(f"/proc/self/fd/{number}")]
    most = free[more]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def say_to_the_disk(folder: Path) -> None:
    """What the command says is a file on the disk, and that is full."""
    os.dup2(os.open(folder / DISK / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    fill(folder)


# cases ---------------------------------------------------------------------------------------------------------------


def moments(changes: Sequence[str], events: str) -> Iterator[tuple[str, int]]:
    """The first and the last of each kind of change among some events, as a regular expression and the how-manieth."""
    # folds and epochs are numbered, what is beside a file bears the number of the process, a folder's name is drawn
    named = [re.sub(r"run\.\w{8}\.new", "run.NEW.new", change) for change in changes if re.match(events, change)]
    kinds = [re.escape(re.sub(r"\d+", "0", name)).replace("0", r"\d+").replace("NEW", r"\w{8}") for name in named]
    for kind in dict.fromkeys(kinds):
        for number in sorted({1, kinds.count(kind)}):
            yield f"^{kind}$", number


def full_cases(changes: Sequence[str]) -> Iterator[Case]:
    # what is left of an earlier attempt is removed before each file, and what is left of this one after it
    for at, number in moments(changes, r"os\.mkdir|os\.remove|open .*lock"):
        yield Case(f"full before {at} {number}", fill, make_room, at=at, number=number)
    for number in range(1, 15, 2):
        yield Case(f"full before state {number}", fill, make_room, at=r"^os\.remove .*\.state", number=number)
    for pages in (*range(1, 8), 20, *range(100, 3300, 400)):
        yield Case(f"a disk of {pages} pages", nothing, make_room, options=f"size={pages * PAGE}")
    for count in range(2, 16):
        yield Case(f"a disk of {count} files", nothing, make_room, options=f"size={ROOM},nr_inodes={count}")
    yield Case("full, what is said included", say_to_the_disk, make_room, at="^training", number=3, said=False)


def read_only_cases(changes: Sequence[str]) -> Iterator[Case]:
    for what, place in (("the disk", DISK), ("the run", RUN)):
        frozen = partial(freeze, place), partial(thaw, place)
        for at, number in moments(changes, "os.rename|open" if place == DISK else "os.remove"):
            # a run cannot turn read-only before it is there
            if place == DISK or "run/" in at:
                yield Case(f"{what} read-only before {at} {number}", *frozen, at=at, number=number)
        yield Case(f"{what} read-only in training", *frozen, at="^training", number=4)
    yield Case("the folder above read-only", partial(freeze, DISK), partial(thaw, DISK), code=2)


def vanishing_cases() -> Iterator[Case]:
    # of four that a fold has
    for step in (2, 4):
        moment = {"at": "^training", "number": step}
        for place in (RUN, f"{RUN}/fold0"):
            yield Case(f"{place} moved at step {step}", partial(take_away, place), partial(bring_back, place), **moment)
        for place in (RUN, f"{RUN}/fold0"):
            yield Case(f"{place} removed at step {step}", partial(remove, place), nothing, **moment)
        for options in ("--cache off", "--cache off --workers 1"):
            photos = partial(take_away, "../data"), partial(bring_back, "../data")
            yield Case(f"photos moved at step {step}, {options}", *photos, f"{FIT} {options}", **moment, code=1)
        # fastai looks at a photo itself where a fold begins
        yield Case(f"photos moved at step {step}, cached", *photos, **moment, code=1)
        kept = partial(take_away, f"{DISK}/cache"), partial(bring_back, f"{DISK}/cache")
        yield Case(f"the cache moved at step {step}", *kept, CACHED, **moment, code=0)
        yield Case(f"the cache removed at step {step}", partial(remove, f"{DISK}/cache"), nothing, CACHED, **moment)
    ended = partial(remove, f"{RUN}/fold0")
    yield Case("a fold removed that had ended", ended, nothing, at="^training", number=6, code=1)


def cache_cases() -> Iterator[Case]:
    for cache_ in ("auto", "disk", "ram"):
        command = f"{CACHED} --cache {cache_}"
        for what in (r"open disk/cache/\..*photos.*part", r"open disk/cache/\..*json.*part", "open disk/cache/.*lock"):
            if cache_ != "ram":
                yield Case(f"--cache {cache_}, full before {what}", fill, make_room, command, at=what, code=0)
                frozen = partial(freeze, DISK), partial(thaw, DISK)
                yield Case(f"--cache {cache_}, read-only before {what}", *frozen, command, at=what, code=0)
        yield Case(f"--cache {cache_}, full", fill, make_room, command, code=0)
        yield Case(f"--cache {cache_}, read-only", partial(freeze, DISK), partial(thaw, DISK), command, code=0)
        for pages in (1, 5, 10):
            size = f"size={pages * PAGE}"
            yield Case(f"--cache {cache_}, a disk of {pages} pages", nothing, make_room, command, options=size, code=0)


def limit_cases() -> Iterator[Case]:
    for size in (0, 100, 1000, 3000, 5000, 10**6, 1_510_000, 4 * 10**6):
        yield Case(f"files of at most {size} bytes", partial(longest_file, size), nothing, at="^os.mkdir disk/")
        yield Case(f"files of at most {size} bytes in training", partial(longest_file, size), nothing, at="^training")
    for more in (0, 1, 2, 3, 4, 6, 8, 12):
        yield Case(f"{more} open files more", partial(open_files, more), nothing)
        yield Case(f"{more} open files more in training", partial(open_files, more), nothing, at="^training")


def other_cases() -> Iterator[Case]:
    commands = {
        "predict": f"predict ../whole/disk/run ../data/eval/images --out {DISK}/p.csv",
        "submission": "predict ../whole/disk/run ../data/eval/images --submission ../data/eval/info.csv"
        f" --out {DISK}/s.csv",
        "merge": f"merge ../half0 ../half1 --out {DISK}/merged",
        "sample": f"sample {DISK}/drawn --persons 6",
        "check": f"check ../data --out {DISK}/found.csv",
        "lr-find": f"lr-find --config ../settings.yaml --out {DISK}/lr.png",
    }
    for name, command in commands.items():
        # one makes many files, and so has many to fail at
        for count in (0, 1, 2, 10, 300) if name in ("merge", "sample") else (0,):
            yield Case(f"{name}, {count} pages free", partial(fill, pages=count), make_room, command, code=1)
            if count < 20:
                # the disk's own folder counts
                size = f"size={ROOM},nr_inodes={count + 1}"
                yield Case(f"{name}, {count} files free", nothing, make_room, command, options=size, code=1)
        yield Case(f"{name}, read-only", partial(freeze, DISK), partial(thaw, DISK), command)
        late = {"at": f"open {DISK}/.*part" if name != "sample" else "open .*csv"}
        yield Case(f"{name}, read-only at its end", partial(freeze, DISK), partial(thaw, DISK), command, **late, code=1)
    yield Case("fit --dry-run, full", fill, make_room, f"{FIT} --dry-run", code=0)
    yield Case("fit --dry-run, read-only", partial(freeze, DISK), partial(thaw, DISK), f"{FIT} --dry-run", code=2)


# a process -----------------------------------------------------------------------------------------------------------


class Watch:
    """Hears what this process does in a folder, notes it, and lets a case's fault befall it where it is due."""

    def __init__(self, folder: Path, case: Case, noted: int) -> None:
        self.folder, self.case, self.noted = folder, case, noted
        self.left, self.process = case.number, os.getpid()

    def heed(self) -> None:
        if not self.case.at:
            self.case.fault(self.folder)
            self.left = 0
        sys.addaudithook(self.hear)
        one_batch = Learner.one_batch

        def noting(learn: Learner, number: int, batch: Any) -> Any:
            if learn.training:
                self.note("training")
            return one_batch(learn, number, batch)

        Learner.one_batch = noting

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        # not of loading processes, and not what is only read
        if event not in CHANGES or os.getpid() != self.process or isinstance(arguments[0], int):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path = self.folder / os.fsdecode(arguments[0])
        if path.is_relative_to(self.folder):
            self.note(f"{event} {path.relative_to(self.folder)}")

    def note(self, what: str) -> None:
        if self.noted >= 0:
            os.write(self.noted, f"{what}\n".encode())
        if self.left and re.search(self.case.at, what):
            self.left -= 1
            if not self.left:
                # what the fault itself does is heard, too, but nothing is left
                self.case.fault(self.folder)


def become(folder: Path, command: str, case: Case | None, said: int, noted: int) -> None:
    """The forked process, which never returns."""
    code = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        signal.alarm(SECONDS)
        # a tmpfs with a gigabyte to spare would take as much memory
        fastmask.data.cache._RESERVE = 0
        try:
            if case is not None:
                Watch(folder, case, noted).heed()
            command_line(command.split())
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        except BaseException:  # noqa: BLE001 - what must not come out of it is what is looked for
            code = 1
            traceback.print_exc()
    finally:
        os._exit(code)


def in_a_process(folder: Path, command: str, case: Case | None = None, noted: int = -1) -> Ended:
    """Run the command line in `folder`, in a fork of this process."""
    # a pipe is on no disk
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        become(folder, command, case, said, noted)
    os.close(said)
    with os.fdopen(heard, encoding="utf-8", errors="replace") as opened:
        text = opened.read()
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), text)


# judging -------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, str]:
    """Every file of a folder by its hash, but those that are never the same."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in NEVER_THE_SAME]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def broken(folder: Path) -> list[str]:
    """The files that are not whole, and those that are left over."""
    found = [str(path) for path in folder.rglob(".*") if path.suffix != ".lock"]
    return found + [str(path) for path in folder.rglob("*.*") if not is_whole(path)]


def is_whole(path: Path) -> bool:
    """Whether a file can be read, where it is one of tensors or of plain values."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as opened:
                list(opened.keys())
        elif path.suffix in (".json", ".yaml"):
            (read_json if path.suffix == ".json" else read_yaml)(path)
    except (SafetensorError, OSError, DataError):
        return False
    return True


def judge(case: Case, ended: Ended, folder: Path) -> None:
    """Note what is wrong with how a case ended, before it is mended."""
    words, _, _ = ended.last.partition(" Once that is fixed")
    expected = {case.code} if case.code is not None else {0, 1, 2}
    read_only = "read-only" in case.name
    trained = (
        case.trains and (folder / case.out / "fold0").exists() and re.match("full|a disk|the disk|the run", case.name)
    )
    # nobody can look into a folder to remove it without opening it
    left = [name for name in broken(folder / DISK) if "open files" not in case.name or not name.endswith(".new")]
    found = {
        f"exit code {ended.code}": ended.code not in expected,
        "no sentence": ended.code and case.said and not ended.last.startswith("fastmask: error: "),
        # a path, or the name of the file
        "no file": ended.code and case.said and not re.search(r"[\w.]+/|\w\.\w{3}", words),
        "no line to go on": ended.code and case.said and trained and f"{RESUME} {case.out}" not in ended.last,
        "a traceback": "Traceback" in ended.said,
        "another's words": case.said and re.search(r"Error|\[Errno|\bException ignored", ended.said),
        "no warning": "--cache disk" in case.command and "fastmask: warning: " not in ended.said,
        f"not whole: {', '.join(left[:3])}": left and not read_only,
    }
    ended.wrong += [what for what, wrong in found.items() if wrong]


def go_on(case: Case, ended: Ended, folder: Path) -> bool:
    """Go on after a case is mended, and note what is wrong with how that ends; whether it trained to the same bytes."""
    if not case.trains:
        return again(case.command, ended, folder)
    run = folder / case.out
    if ended.code == 0:
        wrong = differing(files(run), whole(case.command))
        ended.wrong += [f"exit code 0, but differing: {', '.join(wrong[:3])}"] if wrong else []
    command = f"{RESUME} {case.out} --no-report" if run.exists() and any(run.iterdir()) else case.command
    if not again(command, ended, folder):
        return False
    wrong = differing(files(run), whole(case.command))
    ended.wrong += [f"gone on, but differing: {', '.join(wrong[:3])}"] if wrong else []
    return not wrong


def again(command: str, ended: Ended, folder: Path) -> bool:
    """Run a command that has to end well now, and note what is wrong with how it ends; whether it did."""
    second = in_a_process(folder, command)
    ended.wrong += [f"going on ends in {second.code}: {second.last}"] if second.code else []
    left = broken(folder / DISK)
    ended.wrong += [f"after going on not whole: {', '.join(left[:3])}"] if left else []
    return second.code == 0


def attempt(case: Case, work: Path, inputs: dict[str, str]) -> tuple[Ended, bool]:
    """A case from its start to its end, and whether it trained to the same bytes."""
    folder = work / "case"
    (folder / DISK).mkdir(parents=True)
    mount("-t", "tmpfs", "-o", case.options, "fastmask", folder / DISK)
    try:
        ended = in_a_process(folder, case.command, case)
        judge(case, ended, folder)
        case.mend(folder)
        changed = differing(files(work / "data"), inputs)
        ended.wrong += [f"changed {', '.join(changed[:3])}"] if changed else []
        return ended, go_on(case, ended, folder)
    finally:
        subprocess.run(["umount", folder / DISK], check=True)
        shutil.rmtree(folder)


# all of them ---------------------------------------------------------------------------------------------------------


@cache
def whole(command: str) -> dict[str, str]:
    """The files of a run in one piece."""
    # what is on the disk or not, and how it is read, config.yaml says as well
    folder = Path.cwd() / "whole"
    if (folder / DISK).exists():
        folder = Path.cwd() / f"whole-{hashlib.sha256(command.encode()).hexdigest()[:8]}"
    (folder / DISK).mkdir(parents=True)
    ended = in_a_process(folder, command)
    if ended.code:
        sys.exit(f"The run in one piece failed: {ended.said}")
    return files(folder / command.split("--out ")[1].split()[0])


def prepare(work: Path) -> list[str]:
    """Draw the inputs, train the run in one piece and its halves; the changes that it makes to files."""
    write_sample(work / "data", persons=6)
    settings = {"data": "../data", "arch": "test_resnet", "pretrained": False, "folds": 2, "epochs": 2, "bs": 8}
    pipelines = {"train_pipeline": PIPELINE, "valid_pipeline": PIPELINE}
    write_yaml(work / "settings.yaml", {**settings, **pipelines, "save_every": "1"})
    whole(FIT)
    for half in (0, 1):
        shutil.copytree(work / "whole" / RUN, work / f"half{half}")
        shutil.rmtree(work / f"half{half}" / f"fold{1 - half}")
    noted = work / "changes"
    (work / "counted" / DISK).mkdir(parents=True)
    number = os.open(noted, os.O_WRONLY | os.O_CREAT)
    in_a_process(work / "counted", FIT, Case("", nothing, nothing, at="^never$"), number)
    os.close(number)
    return [line for line in noted.read_text(encoding="utf-8").splitlines() if f"{DISK}/" in line]


def cases(changes: Sequence[str]) -> Iterator[Case]:
    yield from full_cases(changes)
    yield from read_only_cases(changes)
    yield from vanishing_cases()
    yield from cache_cases()
    yield from limit_cases()
    yield from other_cases()


def enter(work: Path) -> None:
    """Start anew where mounting concerns nobody else; ends with a sentence where that is not to be had."""
    unshare = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    probe = [*unshare, "mount", "-t", "tmpfs", "fastmask", str(work)]
    if sys.platform != "linux" or not shutil.which("unshare") or subprocess.run(probe, check=False).returncode:
        sys.exit("disk.py needs Linux, and root or user namespaces, to mount a tmpfs that nobody else sees.")
    os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


def main(folder: str, *parts: str) -> int:
    work = Path(folder).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        sys.exit(f"{work} is not empty.")
    if INSIDE not in os.environ:
        enter(work)
    os.chdir(work)
    os.environ["XDG_CACHE_HOME"] = str(work / "home")
    changes = prepare(work)
    inputs, start = files(work / "data"), time.perf_counter()
    count, failed, sentences, trained, resumed = 0, 0, 0, 0, 0
    for case in cases(changes):
        if parts and not any(part in case.name for part in parts):
            continue
        ended, same = attempt(case, work, inputs)
        count, failed = count + 1, failed + bool(ended.wrong)
        sentences += ended.last.startswith("fastmask: error: ")
        trained, resumed = trained + case.trains, resumed + (case.trains and same)
        if ended.wrong:
            print(f"FAILED {case.name}: {'; '.join(ended.wrong)}: {ended.code} {ended.last[:300]}", flush=True)
        elif os.environ.get("DISK_SHOW"):
            print(f"{case.name} -> {ended.code} {ended.last[:300]}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    print(
        f"cases {count}, sentences {sentences}, resumed to the same bytes {resumed} of {trained}, failures {failed}",
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
