"""Pseudo-labels of photos by the models of a run, each fold's apart: see `fastmask.data.pseudo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.pseudo import MARK, SEEN, Pseudo
from fastmask.inference.predictions import predict
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError
from fastmask.system.files import check_parent


def _unseen(run: RunDirectory) -> pd.DataFrame:
    """Path, person and the fold whose model has not seen them; SEEN for extra photos that more than one has seen."""
    folds = run.folds[["path", "person", "fold"]]
    if run.extra is None:
        return folds
    fold = [int(left) if left.isdecimal() else SEEN for left in run.extra["without"]]
    return pd.concat([folds, run.extra[["person"]].assign(path="", fold=fold)], ignore_index=True)


def make_pseudo(
    run: RunDirectory | str | Path,
    images: str | Path,
    out: str | Path,
    *,
    boxes: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pseudo:
    """Predict the photos of a folder by each fold's checkpoints, and write that into `out`, a new or empty folder.

    Raises UsageError for a run that lacks folds, or whose folds tear persons: a student would be judged on persons that
    its teacher has seen.
    """
    run, folder = RunDirectory.of(run), Path(out)
    run.check_trained()
    missing = sorted(set(range(run.config.folds)) - set(run.trained_folds))
    if missing:
        raise UsageError(f"{run.path} lacks fold {missing[0]}; a student's fold learns from the same fold's model.")
    if run.config.group == "none":
        raise UsageError(f"{run.path} was split by photos (--group none), so its models have seen all persons.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; name a new or an empty folder.")
    check_parent(folder / MARK)
    found = predict(run, images, boxes=boxes, refit=False, device=device, workers=workers, progress=progress)
    each = np.stack([found.members[f"fold{fold}"] for fold in range(run.config.folds)])
    made = Pseudo(Path(images), found.names, run.heads, each, _unseen(run))
    made.write(folder, {"run": str(run.path), "identity": run.identity})
    return made
