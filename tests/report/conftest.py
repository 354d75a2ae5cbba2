"""Labels of three photos per person, and runs of them for reading only."""

from collections.abc import Callable

import numpy as np
import pytest

from fastmask.api import Run
from fastmask.report.material import Material


@pytest.fixture(scope="session")
def labels(three_each: np.ndarray) -> np.ndarray:
    """(180, 3) labels of the contest's heads."""
    return three_each


@pytest.fixture(scope="session")
def ages(labels: np.ndarray) -> np.ndarray:
    """(180,) an age for each label."""
    return np.array([25.0, 45.0, 66.0])[labels[:, 2]]


@pytest.fixture(scope="session")
def made(make_run_in: Callable, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A run of `labels` with its photos."""
    return Material(make_run_in(tmp_path_factory.mktemp("made"), labels))


@pytest.fixture(scope="session")
def leaky(make_run_in: Callable, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The same run with a leaky split."""
    return Material(make_run_in(tmp_path_factory.mktemp("leaky"), labels, name="leaky", group="none"))


@pytest.fixture(scope="session")
def finished(finished_run: Run) -> Material:
    """The trained run."""
    return Material(finished_run)
