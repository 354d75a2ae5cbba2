"""Cost: the time, size and device of a run, as far as its directory has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.run.directory import RunDirectory
from fastmask.run.files import REFIT
from fastmask.scoring import Plain
from fastmask.system.files import read_strings
from fastmask.system.text import duration, in_bytes

COST_CELLS = ["folds", "epochs", "training", "photos/s", "parameters", "checkpoints", "device"]


@dataclass(frozen=True)
class Cost(Plain):
    """The cost of a run; None if its directory lacks a figure.

    `seconds` is the time of all epochs of all folds, including validation, `photos_per_second` the training photos of
    these epochs divided by it, `checkpoint_bytes` the size of the kept checkpoints and refitted networks of all folds.
    Of a `refit` the time is unknown.
    """

    folds: int
    of_folds: int
    epochs: tuple[int, int] | None
    seconds: float | None
    refit: bool
    photos_per_second: float | None
    parameters: int | None
    checkpoint_bytes: int
    device: str | None

    @property
    def cells(self) -> list[str]:
        """The figures as cells of a table, under `COST_CELLS`; empty if unknown."""
        low, high = self.epochs or (0, 0)
        return [
            f"{self.folds} of {self.of_folds}",
            "" if self.epochs is None else f"{low}" if low == high else f"{low} to {high}",
            "" if self.seconds is None else f"{duration(self.seconds)}{' + refit' if self.refit else ''}",
            "" if self.photos_per_second is None else f"{self.photos_per_second:.1f}",
            "" if self.parameters is None else f"{self.parameters / 1e6:.1f} M",
            in_bytes(self.checkpoint_bytes) if self.checkpoint_bytes else "",
            self.device or "",
        ]


def cost_of(run: RunDirectory) -> Cost:
    """The cost of a run, with None for figures in missing or invalid files."""
    folds = run.trained_folds
    times = [_seconds(run, fold) for fold in folds]
    body = run.environment.get("body")
    parameters = body.get("parameters") if isinstance(body, dict) else None
    device = run.environment.get("device")
    epochs = [len(each) for each in times]
    known = bool(epochs) and all(epochs)
    seconds = sum(map(sum, times)) if known else 0.0
    trained = sum(_trained_photos(run, fold) * n for fold, n in zip(folds, epochs, strict=True))
    return Cost(
        len(folds),
        run.config.folds,
        (min(epochs), max(epochs)) if known else None,
        seconds or None,
        bool(run.refitted),
        trained / seconds if seconds and trained else None,
        parameters if type(parameters) is int else None,
        sum(file.stat().st_size for fold in folds for file in [*run.checkpoints(fold), *_refit(run, fold)]),
        device if isinstance(device, str) else None,
    )


def _refit(run: RunDirectory, fold: int) -> list[Path]:
    return [run.fold_path(fold) / REFIT] if fold in run.refitted else []


def _seconds(run: RunDirectory, fold: int) -> list[float]:
    """The seconds of each epoch of a fold; empty if the file is missing or has invalid cells."""
    file = run.fold_path(fold) / "times.csv"
    if not file.is_file():
        return []
    seconds = pd.to_numeric(read_strings(file, ["epoch", "seconds"])["seconds"], errors="coerce")
    return seconds.tolist() if (np.isfinite(seconds) & (seconds >= 0)).all() else []


def _trained_photos(run: RunDirectory, fold: int) -> int:
    """The photos of an epoch's complete steps; 0 if an epoch lacks some photos that the fold has seen."""
    photos = 0 if run.config.drop or run.config.per_person else len(run.seen_by(fold))
    step = max(1, min(run.config.step_photos, photos))
    return photos // step * step
