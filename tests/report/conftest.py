"""Labels of three photos per person, and runs of them for reading only."""

import numpy as np
import pytest

from fastmask.report.material import Material


@pytest.fixture(scope="session")
def labels(three_each):
    """(180, 3) labels of the contest's heads."""
    return three_each


@pytest.fixture(scope="session")
def ages(labels):
    """(180,) an age for each label."""
    return np.array([25.0, 45.0, 66.0])[labels[:, 2]]


@pytest.fixture(scope="session")
def made(make_run_in, labels, tmp_path_factory):
    """A run of `labels` with its photos."""
    return Material(make_run_in(tmp_path_factory.mktemp("made"), labels))


@pytest.fixture(scope="session")
def leaky(make_run_in, labels, tmp_path_factory):
    """The same run with a leaky split."""
    return Material(make_run_in(tmp_path_factory.mktemp("leaky"), labels, name="leaky", group="none"))


@pytest.fixture(scope="session")
def finished(finished_run):
    """The trained run."""
    return Material(finished_run)
