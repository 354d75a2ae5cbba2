"""What all tests share: drawn photos in the contest's format, and a run that was trained on them."""

import functools
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.commands import main as cli
from fastmask.config import make_config
from fastmask.data.contest import contest_heads
from fastmask.data.sample import write_sample
from fastmask.heads import Heads
from fastmask.system.files import write_csv
from fastmask.system.terminal import set_quiet
from fastmask.training.interrupts import SIGNALS

pytest_plugins = ["made_runs", "pages", "terminals", "trained_runs"]

# before torch counts the cores: the tests run side by side, and threads that fight over cores are slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")

ERROR, WARNING = "fastmask: error: ", "fastmask: warning: "
Command = Callable[..., "Answer"]
SMALL_PIPELINE = {
    "transform": {
        "__class_fullname__": "Compose",
        "transforms": [
            {"__class_fullname__": "CenterCrop", "height": 400, "width": 200, "p": 1.0},
            {"__class_fullname__": "Resize", "height": 64, "width": 32, "interpolation": 3, "p": 1.0},
        ],
    }
}


# what some tests need and some machines lack, and why these tests are skipped
NEEDS = {
    "bf16": "torch's bf16 is broken on this CPU: a small network's gradients are far from those in fp32",
    "semaphores": "this system has no semaphores, by which processes wait for each other (no /dev/shm?)",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, why in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: skipped where {why}")


def pytest_collection_finish() -> None:
    """Leave what has been imported out of later garbage collections, of which each fold runs one: half of its time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, why in NEEDS.items():
        if item.get_closest_marker(name) and not has(name):
            pytest.skip(why)


def has(name: str) -> bool:
    """Whether this machine has one of NEEDS."""
    if name == "bf16":
        return bf16_is_right()
    from fastmask.data.loaders import has_semaphores

    return has_semaphores()


@functools.cache
def bf16_is_right() -> bool:
    """Whether loss and gradients of the tests' network are in bf16 about what they are in fp32.

    On some CPUs torch's own convolutions give NaN or 1e27, with fastmask as without.
    """
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=8).to(memory_format=torch.channels_last)
        x = torch.randn(16, 3, 64, 32).contiguous(memory_format=torch.channels_last)

    def numbers() -> torch.Tensor:
        network.zero_grad()
        loss = network(x).float().square().mean()
        loss.backward()
        return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in network.parameters())])

    exact = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = numbers()
    # where that is NaN, it is not so
    return bool((rough - exact).norm() < 0.3 * exact.norm())


@pytest.fixture
def wrong_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU on which every network's outputs in bf16 are 1e27 times too large, as plain convolutions are on some."""
    import torch

    from fastmask.model.network import MultiHeadNet

    forward = MultiHeadNet.forward

    def computed(network: MultiHeadNet, x: torch.Tensor) -> torch.Tensor:
        return forward(network, x) * (1e27 if torch.is_autocast_enabled("cpu") else 1)

    monkeypatch.setattr(MultiHeadNet, "forward", computed)


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> Iterator[None]:
    """The signals to end reach the tests and the processes that they start.

    What a script starts in the background, or nohup, ignores some of them, and so would all that it starts.
    """
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def no_colors() -> Iterator[None]:
    """Output without colors, also where variables ask for them, as on GitHub's machines."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        # which may have looked already
        patch.setattr("typer.rich_utils.FORCE_TERMINAL", None)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for the session, so that a photo is decoded once."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contest folder of 12 drawn persons, 84 photos, and 4 persons in eval; for reading only."""
    return write_sample(tmp_path_factory.mktemp("contest") / "sample", persons=12, seed=0)


@pytest.fixture
def contest_copy(contest: Path, tmp_path: Path) -> Path:
    """A contest folder that a test may change."""
    return Path(shutil.copytree(contest, tmp_path / "contest"))


@pytest.fixture(scope="session")
def small_settings() -> dict[str, Any]:
    """Settings that train in two seconds: a tiny network, 64 x 32 pixels, two folds, two epochs."""
    return {
        "arch": "test_resnet",
        "pretrained": False,
        "folds": 2,
        "epochs": 2,
        "bs": 16,
        "train_pipeline": SMALL_PIPELINE,
        "valid_pipeline": SMALL_PIPELINE,
    }


@pytest.fixture(scope="session")
def finished_run(contest: Path, small_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `small_settings` on `contest`; for reading only."""
    from fastmask.api import cross_validate
    from fastmask.data.contest import read_contest

    return cross_validate(read_contest(contest), out=tmp_path_factory.mktemp("runs") / "small", **small_settings)


@pytest.fixture
def run_copy(finished_run: Run, tmp_path: Path) -> Path:
    """A run directory that a test may change; file times are kept."""
    return Path(shutil.copytree(finished_run.path, tmp_path / "run_copy"))


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    """A function that makes a finished run of probabilities and labels, without training.

    Persons have seven photos and are dealt into folds; its rows stand in any `order`.
    """

    def make(
        probabilities: np.ndarray,
        y: np.ndarray,
        name: str = "made",
        *,
        heads: Heads | None = None,
        folds: int = 5,
        persons: np.ndarray | None = None,
        order: np.ndarray | None = None,
        environment: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Run:
        heads, n = heads or contest_heads(), len(y)
        owner = np.arange(n) // 7 if persons is None else persons
        rows = np.arange(n) if order is None else order
        frame = pd.DataFrame({"path": [f"{i:05}.jpg" for i in range(n)], "person": [f"p{i:04}" for i in owner]})
        for head, codes in zip(heads, y.T, strict=True):
            frame[head.name] = head.decode_all(codes)
        frame["fold"] = owner % folds
        run = Run.create(
            tmp_path / name,
            make_config({"arch": "test_resnet", "folds": max(2, folds), **settings}),
            heads,
            pipelines={"train": {}, "valid": {}},
            folds=frame.iloc[rows],
            environment=environment or {},
        )
        oof = frame[["path", "person", "fold"]].assign(**dict(zip(heads.columns, probabilities.T, strict=True)))
        joint = {"true": heads.joint(y), "predicted": heads.joint(heads.argmax(probabilities))}
        write_csv(run.path / "oof.csv", oof.assign(**joint).iloc[rows])
        return Run.load(run.path)

    return make


class Answer:
    """The exit code, stdout and lines of stderr of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err.splitlines()

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix(ERROR) for line in self.err if line.startswith(ERROR)]

    @property
    def warnings(self) -> list[str]:
        return [line.removeprefix(WARNING) for line in self.err if line.startswith(WARNING)]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fastmask(work: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, run in this process in the folder `work`."""

    def command(*arguments: Any) -> Answer:
        capsys.readouterr()
        try:
            cli.main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            # of the process, which the next tests share
            set_quiet(False)
        return Answer(code, *capsys.readouterr())

    return command


@pytest.fixture
def refused(fastmask: Command, work: Path) -> Callable[..., str]:
    """Run a command that must be refused with one sentence and leave nothing behind; return the sentence."""

    def command(code: int, *arguments: Any) -> str:
        before = _snapshot(work.parent)
        answer = fastmask(*arguments)
        assert answer.errors, f"exit {answer.code} without a sentence: {answer.err}"
        assert answer.code == code, answer.errors
        assert answer.out == ""
        assert len(answer.errors) == 1
        assert answer.err[-1] == ERROR + answer.errors[0]
        assert answer.errors[0][-1] in ".?"
        assert _snapshot(work.parent) == before
        return answer.errors[0]

    return command


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, bytes | None]]:
    """A function that gives what a folder holds, by name."""
    return _snapshot


def _snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
