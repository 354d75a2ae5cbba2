"""Runs made of numbers and of tiny photos, without training; and the report of one that was trained."""

import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.config import make_config
from fastmask.data.contest import contest_heads
from fastmask.files import write_csv, write_json
from fastmask.heads import Heads
from fastmask.report.write import Report, write_report
from fastmask.run import Run

PHOTOS = 3


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A function that makes a scored run of labels (N, heads); three photos a person, which may lie there or not."""

    def make(
        y: np.ndarray,
        heads: Heads | None = None,
        name: str = "made",
        folds: int = 3,
        probabilities: np.ndarray | None = None,
        photos: bool = True,
        numbers: Mapping[str, np.ndarray] | None = None,
        paths: list[str] | None = None,
        only: int | None = None,
        **settings: Any,
    ) -> Run:
        heads, n = heads or contest_heads(), len(y)
        probabilities = guesses(heads, y) if probabilities is None else probabilities
        owner = np.arange(n) // PHOTOS
        paths = paths or [f"{i:03}.jpg" for i in range(n)]
        frame = pd.DataFrame({"path": paths, "person": [f"p{i:03}" for i in owner]})
        for head, codes in zip(heads, y.T, strict=True):
            frame[head.name] = [head.decode(code) for code in codes]
        frame = frame.assign(**(numbers or {}), fold=owner % folds)
        root = tmp_path / f"{name}-photos"
        if photos:
            write_photos(root, paths)
        run = Run.create(
            tmp_path / name,
            make_config({"arch": "test_resnet", "folds": folds, **settings}),
            heads,
            pipelines={"train": {}, "valid": {}},
            folds=frame,
            environment={"photos": {"root": str(root)}},
        )
        joint = {"true": heads.joint(y), "predicted": heads.joint(heads.argmax(probabilities))}
        chances = pd.DataFrame(probabilities, columns=heads.columns)
        oof = pd.concat([frame[["path", "person", "fold"]], chances, pd.DataFrame(joint)], axis=1)
        write_csv(run.path / "oof.csv", oof if only is None else oof[oof["fold"] == only])
        run = Run.load(run.path)
        optimistic = {"joint": {"macro_f1": 0.99}, "why": "it flatters"}
        write_json(run.path / "scores.json", {**run.score(100).to_plain(), "optimistic": optimistic, "folds": []})
        return run

    return make


def guesses(heads: Heads, y: np.ndarray, knows: float = 1.5) -> np.ndarray:
    """(N, classes of all heads) probabilities of a model that knows something of labels."""
    rng, parts = np.random.default_rng(0), []
    for head, codes in zip(heads, y.T, strict=True):
        logits = rng.normal(size=(len(y), len(head.classes)))
        logits[np.arange(len(y)), codes] += knows * (codes >= 0)
        parts.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    return np.concatenate(parts, axis=1)


def write_photos(root: Path, paths: list[str]) -> None:
    rng = np.random.default_rng(0)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(root / path, format="JPEG")


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    """(180, 3) labels of the contest's heads: 60 persons of three photos."""
    rng = np.random.default_rng(0)
    per_person = np.stack([rng.integers(2, size=60), rng.choice(3, size=60, p=[0.5, 0.35, 0.15])], axis=1)
    return np.column_stack([np.tile([0, 1, 2], 60), per_person.repeat(PHOTOS, axis=0)])


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each such tag."""
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        """All that is to be read."""
        return " ".join(self.texts)


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], Page]:
    """A function that parses a page."""
    return lambda file: Page(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def written(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a copy of `finished_run`, in it; for reading only."""
    copy = tmp_path_factory.mktemp("reported") / "small"
    shutil.copytree(finished_run.path, copy)
    return write_report(copy)
