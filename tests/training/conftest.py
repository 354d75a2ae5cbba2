"""Settings for the tests of screening."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def screening_settings(small_settings: dict[str, Any]) -> dict[str, Any]:
    """`small_settings` but for those that a screening takes as arguments or has no use for."""
    return {name: value for name, value in small_settings.items() if name not in ("arch", "epochs", "bs", "folds")}
