"""Run: the run directory, the one thing that training hands to everything after it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmask.config import Config, make_config
from fastmask.errors import DataError, UsageError
from fastmask.files import read_json, read_yaml, replacing, write_json, write_yaml
from fastmask.heads import Heads
from fastmask.scoring import DRAWS, Scores, score_heads

if TYPE_CHECKING:
    from fastmask.inference.ensemble import Predictions

CONFIG, HEADS, ENVIRONMENT, FOLDS, OOF, SCORES = (
    "config.yaml",
    "heads.json",
    "environment.json",
    "folds.csv",
    "oof.csv",
    "scores.json",
)
TEXT_COLUMNS = ("path", "person")


@dataclass(frozen=True)
class Run:
    """A run directory: configuration, folds, checkpoints, histories, out-of-fold (OOF) predictions, scores."""

    path: Path
    config: Config
    heads: Heads

    @classmethod
    def create(cls, path: str | Path, config: Config, heads: Heads, overwrite: bool = False) -> Run:
        """Make a run directory; `overwrite` deletes the run that lies there, and nothing but a run."""
        path = Path(path)
        check_free(path, overwrite)
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        run = cls(path, config, heads)
        write_yaml(path / CONFIG, config.to_plain())
        write_json(path / HEADS, heads.to_plain())
        return run

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Open a run directory; raises UsageError if there is none, DataError if a file of it is broken."""
        path = Path(path)
        if not (path / CONFIG).is_file() or not (path / HEADS).is_file():
            raise UsageError(f"{path} is not a run directory: it has no {CONFIG}; name the --out of a fit.")
        plain = read_yaml(path / CONFIG)
        if not isinstance(plain, dict):
            raise DataError(f"{path / CONFIG} holds {type(plain).__name__}; expected the settings of a run.")
        try:
            return cls(path, make_config(plain), Heads.from_plain(read_json(path / HEADS)))
        except (TypeError, UsageError) as error:
            raise DataError(f"{path} was not written by this version of fastmask: {error}") from error

    def fold_path(self, fold: int) -> Path:
        """The directory of one fold."""
        return self.path / f"fold{fold}"

    @cached_property
    def folds(self) -> pd.DataFrame:
        """One row a photo: path, person, a column a head, fold."""
        return self._read(FOLDS)

    @cached_property
    def oof(self) -> pd.DataFrame:
        """One row a photo, in the table's order: path, person, fold, a probability a class, true, predicted.

        `true` and `predicted` are joint classes; -1 where a label is unknown.
        """
        return self._read(OOF)

    def _read(self, name: str) -> pd.DataFrame:
        if not (self.path / name).is_file():
            raise UsageError(f"{self.path} has no {name}: the run has not finished.")
        try:
            return pd.read_csv(self.path / name, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} cannot be read as a CSV: {' '.join(str(error).split())}.") from error

    def history(self, fold: int) -> pd.DataFrame:
        """One row an epoch of a fold: losses, metrics, learning rate, seconds."""
        return self._read(f"fold{fold}/history.csv")

    @property
    def trained_folds(self) -> list[int]:
        """The folds that have a checkpoint."""
        return [f for f in range(self.config.folds) if self.checkpoints(f)]

    def checkpoints(self, fold: int) -> list[Path]:
        """The best checkpoints of a fold, by epoch."""
        return sorted(self.fold_path(fold).glob("epoch*.safetensors"))

    @property
    def scores(self) -> dict[str, Any]:
        """What scores.json holds."""
        scores: dict[str, Any] = read_json(self.path / SCORES)
        return scores

    def score(self, draws: int = DRAWS) -> Scores:
        """Macro-F1 and accuracy of the OOF predictions, with 95 % intervals by bootstrap over persons.

        By the score's age bounds, whatever training used; a fold's epoch is the one that the other folds chose.
        """
        oof, true = self.oof, self.true
        scores = score_heads(self.heads, self.predicted, true, groups=oof["person"].to_numpy(dtype=object), draws=draws)
        if self.config.group == "none":
            scores.notes.append("Leaky split (--group none): this score flatters and says nothing about new people.")
        return scores

    @property
    def probabilities(self) -> np.ndarray:
        """(N, classes of all heads) OOF probabilities."""
        return self.oof[self.heads.columns].to_numpy(np.float64)

    @property
    def predicted(self) -> np.ndarray:
        """(N, heads) OOF class numbers."""
        return self.heads.argmax(self.probabilities)

    @property
    def true(self) -> np.ndarray:
        """(N, heads) class numbers by the score's bounds; -1 is unknown."""
        table = self.folds.set_index("path").loc[self.oof["path"]]
        return np.array([self.heads.encode(row) for row in table[list(self.heads.names)].to_numpy()], dtype=np.int64)

    def predict(self, images: str | Path | Sequence[str | Path], tta: int = 1, **options: Any) -> Predictions:
        """Predict photos: see `fastmask.inference.ensemble.predict`."""
        from fastmask.inference.ensemble import predict

        return predict(self, images, tta=tta, **options)


def check_free(path: Path, overwrite: bool = False) -> None:
    """Raise UsageError if a run cannot be written at `path`."""
    if path.is_file():
        raise UsageError(f"{path} is a file; name another folder with --out.")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{path} is in use; name another folder with --out, or replace it with --overwrite.")
    if not (path / CONFIG).is_file():
        raise UsageError(f"{path} is not a run, so --overwrite leaves it alone; name another folder with --out.")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as CSV; numbers with nine significant digits, enough for float32 to come back as it was."""
    with replacing(path) as beside:
        frame.to_csv(beside, index=False, float_format="%.9g", lineterminator="\n")
