"""What all tests share: drawn photos in the contest's format, and a run that was trained on them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmask.data.sample import write_sample
from fastmask.run import Run

SMALL_PIPELINE = {
    "transform": {
        "__class_fullname__": "Compose",
        "transforms": [
            {"__class_fullname__": "CenterCrop", "height": 400, "width": 200, "p": 1.0},
            {"__class_fullname__": "Resize", "height": 64, "width": 32, "interpolation": 3, "p": 1.0},
        ],
    }
}


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own; for a session, so that a photo is decoded once."""
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
    """A contest folder of one's own, to break things in."""
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
    from fastmask.data.contest import read_contest
    from fastmask.training.crossval import cross_validate

    return cross_validate(read_contest(contest), out=tmp_path_factory.mktemp("runs") / "small", **small_settings)


@pytest.fixture
def run_copy(finished_run: Run, tmp_path: Path) -> Path:
    """A run directory of one's own, to break things in; file times are kept."""
    return Path(shutil.copytree(finished_run.path, tmp_path / "run_copy"))
