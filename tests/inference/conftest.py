"""Labels and guesses to make runs of, and small trained runs to put together."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmask.data.contest import contest_heads, read_contest
from fastmask.heads import Heads
from fastmask.run import Run

PHOTOS = 7


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    """(420, 3) labels of the contest's heads: 60 persons of seven photos."""
    rng = np.random.default_rng(0)
    per_person = np.stack([rng.integers(2, size=60), rng.choice(3, size=60, p=[0.5, 0.35, 0.15])], axis=1)
    return np.column_stack([np.tile([0, 0, 0, 0, 0, 1, 2], 60), per_person.repeat(PHOTOS, axis=0)])


@pytest.fixture(scope="session")
def guess() -> Callable[..., np.ndarray]:
    """A function that draws probabilities of a model that knows something of labels."""

    def draw(y: np.ndarray, seed: int, knows: float = 1.5, heads: Heads | None = None) -> np.ndarray:
        rng = np.random.default_rng(seed)
        parts = []
        for head, codes in zip(heads or contest_heads(), y.T, strict=True):
            logits = rng.normal(size=(len(y), len(head.classes)))
            logits[np.arange(len(y)), codes] += knows
            parts.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        return np.concatenate(parts, axis=1)

    return draw


@pytest.fixture(scope="session")
def trained(
    contest: Path, small_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """A function that trains a small run on the contest's photos; for reading only."""
    from fastmask.training.crossval import cross_validate

    folder = tmp_path_factory.mktemp("trained")

    def train(name: str, **settings: Any) -> Run:
        return cross_validate(
            read_contest(contest), out=folder / name, log=io.StringIO(), **{**small_settings, **settings}
        )

    return train


@pytest.fixture(scope="session")
def other_run(trained: Callable[..., Run]) -> Run:
    """A run like `finished_run` from another seed, on the same folds as the contest's seed would not deal them."""
    return trained("other", seed=1)


@pytest.fixture(scope="session")
def two_checkpoints(trained: Callable[..., Run]) -> Run:
    """A run of which each fold keeps two checkpoints."""
    return trained("two", top_k=2)
