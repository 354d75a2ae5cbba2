"""Cost: what a run took, as far as its directory tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fastmask.run.directory import RunDirectory
from fastmask.system.files import read_strings
from fastmask.system.text import duration, in_bytes

COST_CELLS = ["folds", "epochs", "training", "photos/s", "parameters", "checkpoints", "device"]


@dataclass(frozen=True)
class Cost:
    """What a run took, as far as its directory tells; None where it does not.

    `seconds` are those of the epochs of all folds, each with its validation, `photos_per_second` the training photos of
    these epochs by these seconds, `checkpoint_bytes` what the kept checkpoints of all folds weigh.
    """

    folds: int
    of_folds: int
    epochs: tuple[int, int] | None
    seconds: float | None
    photos_per_second: float | None
    parameters: int | None
    checkpoint_bytes: int
    device: str | None

    @property
    def cells(self) -> list[str]:
        """The figures as cells of a table, under `COST_CELLS`; nothing where nothing is known."""
        low, high = self.epochs or (0, 0)
        return [
            f"{self.folds} of {self.of_folds}",
            "" if self.epochs is None else f"{low}" if low == high else f"{low} to {high}",
            "" if self.seconds is None else duration(self.seconds),
            "" if self.photos_per_second is None else f"{self.photos_per_second:.1f}",
            "" if self.parameters is None else f"{self.parameters / 1e6:.1f} M",
            in_bytes(self.checkpoint_bytes) if self.checkpoint_bytes else "",
            self.device or "",
        ]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "epochs": self.epochs and list(self.epochs)}


def cost_of(run: RunDirectory) -> Cost:
    """What the directory of a run tells of its cost; a file that is missing or says nothing leaves a None."""
    folds = run.trained_folds
    times = [_seconds(run, fold) for fold in folds]
    body = run.environment.get("body")
    parameters = body.get("parameters") if isinstance(body, dict) else None
    device = run.environment.get("device")
    epochs = [len(each) for each in times if each is not None]
    known = bool(times) and len(epochs) == len(times)
    seconds = sum(sum(each) for each in times if each is not None) if known else 0.0
    trained = sum(_trained_photos(run, fold) * len(each or ()) for fold, each in zip(folds, times, strict=True))
    return Cost(
        len(folds),
        run.config.folds,
        (min(epochs), max(epochs)) if known else None,
        seconds or None,
        trained / seconds if seconds and trained else None,
        parameters if type(parameters) is int else None,
        sum(file.stat().st_size for fold in folds for file in run.checkpoints(fold)),
        device if isinstance(device, str) else None,
    )


def _seconds(run: RunDirectory, fold: int) -> list[float] | None:
    """The seconds of each epoch of a fold."""
    file = run.fold_path(fold) / "times.csv"
    if not file.is_file():
        return None
    seconds = pd.to_numeric(read_strings(file, ["epoch", "seconds"])["seconds"], errors="coerce")
    return seconds.tolist() if len(seconds) and (np.isfinite(seconds) & (seconds >= 0)).all() else None


def _trained_photos(run: RunDirectory, fold: int) -> int:
    """The photos of an epoch's batches, of which the last, incomplete one is left out; 0 where nobody kept it."""
    photos = 0 if run.config.drop else len(run.seen_by(fold))
    bs = max(1, min(run.config.batch, photos))
    return photos // bs * bs
