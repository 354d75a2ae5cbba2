"""Probabilities and labels, runs made of them, and files of answers to their photos."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import contest_heads
from fastmask.files import write_csv
from fastmask.heads import Heads
from fastmask.run import Run

PHOTOS = 7


def _draw(persons: int = 120, seed: int = 0, sure: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the contest's heads for persons of seven photos, and labels (N, heads).

    Gender and age belong to the person; what is drawn from the probabilities is the label, which a model that says
    their power `sure` is too sure about.
    """
    rng = np.random.default_rng(seed)
    common = [(0.5, 0.5), (0.5, 0.42, 0.08)]
    parts = [np.eye(3)[np.tile([0, 0, 0, 0, 0, 1, 2], persons)] * 0.9 + 0.1 / 3]
    labels = [np.tile([0, 0, 0, 0, 0, 1, 2], persons)]
    for prior in common:
        p = rng.dirichlet(2 * np.array(prior), persons)
        labels.append((p.cumsum(1) > rng.random((persons, 1))).argmax(1).repeat(PHOTOS))
        noise = rng.gamma(20, 1 / 20, (persons * PHOTOS, len(prior)))
        parts.append((p.repeat(PHOTOS, axis=0) * noise) ** sure)
    probabilities = np.concatenate([part / part.sum(1, keepdims=True) for part in parts], axis=1)
    return probabilities.clip(1e-7), np.stack(labels, axis=1)


@pytest.fixture(scope="session")
def draw_oof() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`_draw`, for tests."""
    return _draw


@pytest.fixture(scope="session")
def better_than() -> Callable[..., np.ndarray]:
    """A function that replaces a share of (N, classes) probabilities by the truth."""

    def make(probabilities: np.ndarray, y: np.ndarray, heads: Heads, share: float, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        truth = np.concatenate([np.eye(k)[labels] for k, labels in zip(heads.sizes, y.T, strict=True)], axis=1)
        return np.where(rng.random((len(y), 1)) < share, truth, probabilities)

    return make


@pytest.fixture
def drawn(draw_oof: Callable[..., tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of 300 persons."""
    return draw_oof(persons=300)


@pytest.fixture
def three(
    run_of: Callable[..., Run], drawn: tuple[np.ndarray, np.ndarray], better_than: Callable[..., np.ndarray]
) -> list[Run]:
    """A run, a clearly better one, and one that is as good as the first."""
    probabilities, y = drawn
    nearly = probabilities * np.random.default_rng(3).gamma(100, 0.01, probabilities.shape)
    return [
        run_of(probabilities, y, "base"),
        run_of(better_than(probabilities, y, contest_heads(), 0.3), y, "better"),
        run_of(nearly.clip(max=1), y, "alike"),
    ]


@pytest.fixture
def files(three: list[Run], tmp_path: Path) -> dict[str, Path]:
    """The answers of the better run as others would hand them in."""
    run = three[1]
    oof, joint = run.oof, run.heads.joint(run.predicted)
    names = [run.heads.decode(codes) for codes in run.predicted]
    frames = {
        "probabilities": oof[["path", *run.heads.columns]],
        "submission": pd.DataFrame({"ImageID": oof["path"], "ans": joint}),
        "classes": pd.DataFrame({"path": oof["path"], "ans": joint}).iloc[::-1],
        "names": pd.DataFrame(
            {"path": oof["path"], **dict(zip(run.heads.names, zip(*names, strict=True), strict=True))}
        ),
    }
    for name, frame in frames.items():
        write_csv(tmp_path / f"{name}.csv", frame)
    return {name: tmp_path / f"{name}.csv" for name in frames}
