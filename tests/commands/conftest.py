"""Fixtures of the tests of commands."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fastmask.api import Run
from fastmask.system.files import write_csv


@pytest.fixture
def small(work: Path, small_settings: dict[str, Any], contest: Path) -> list[str]:
    """`fit` with settings that train in two seconds, and without a report, which would take as long."""
    file = work.parent / "small.yaml"
    file.write_text(yaml.safe_dump({**small_settings, "data": str(contest)}))
    return ["fit", "--config", str(file), "--no-report"]


@pytest.fixture
def invalid(refused: Callable[..., str]) -> Callable[..., None]:
    """Run a command with arguments that must be refused with exit code 2, and compare its sentence."""

    def check(*command: Any, named: list[str], code: int = 2) -> None:
        sentence = refused(code, *command)
        assert [part for part in named if part not in sentence] == [], sentence

    return check


@pytest.fixture
def submit(run_copy: Path, contest: Path, fastmask: Callable[..., Any]) -> Callable[..., Any]:
    """Predict the photos of eval with `run_copy`, as a submission."""

    def command(out: str, *words: Any, info: Path = contest / "eval" / "info.csv") -> Any:
        return fastmask("predict", run_copy, contest / "eval" / "images", "--submission", info, "--out", out, *words)

    return command


@pytest.fixture
def second_run(run_copy: Path, tmp_path: Path) -> Path:
    """A copy of `run_copy` with other predictions of the mask."""
    copy = Path(shutil.copytree(run_copy, tmp_path / "second"))
    oof, run = pd.read_csv(copy / "oof.csv"), Run.load(copy)
    columns = run.heads.columns[:3]
    oof[columns] = oof[columns].to_numpy()[:, ::-1]
    oof["predicted"] = run.heads.joint(run.heads.argmax(oof[run.heads.columns].to_numpy()))
    write_csv(copy / "oof.csv", oof)
    return copy
