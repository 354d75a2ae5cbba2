"""Runs made of numbers, and small trained ones to put together."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastmask.config import make_config
from fastmask.data.contest import contest_heads, read_contest
from fastmask.files import write_csv
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


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    """A function that makes a finished run of probabilities and labels, its rows in any `order`."""

    def make(
        name: str,
        probabilities: np.ndarray,
        y: np.ndarray,
        heads: Heads | None = None,
        folds: int = 5,
        order: np.ndarray | None = None,
        persons: np.ndarray | None = None,
        environment: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Run:
        heads, n = heads or contest_heads(), len(y)
        owner = np.arange(n) // PHOTOS if persons is None else persons
        frame = pd.DataFrame({"path": [f"{i:05}.jpg" for i in range(n)], "person": [f"p{i:04}" for i in owner]})
        for head, codes in zip(heads, y.T, strict=True):
            frame[head.name] = [head.decode(code) for code in codes]
        frame["fold"] = owner % folds
        joint = {"true": heads.joint(y), "predicted": heads.joint(heads.argmax(probabilities))}
        oof = frame[["path", "person", "fold"]].assign(**dict(zip(heads.columns, probabilities.T, strict=True)))
        rows = np.arange(n) if order is None else order
        run = Run.create(
            tmp_path / name,
            make_config({"arch": "test_resnet", "folds": max(2, folds), **settings}),
            heads,
            pipelines={"train": {}, "valid": {}},
            folds=frame.iloc[rows],
            environment=environment or {},
        )
        write_csv(run.path / "oof.csv", oof.assign(**joint).iloc[rows])
        return Run.load(run.path)

    return make


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
