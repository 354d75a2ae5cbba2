"""Labels of three photos per person, as the runs of these tests have them."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def labels(three_each: np.ndarray) -> np.ndarray:
    """(180, 3) labels of the contest's heads."""
    return three_each
