"""OOF: out-of-fold predictions with honestly chosen epochs, collected into a table and scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastmask.run.directory import RunDirectory
from fastmask.run.files import DONE, FOLDS, OOF, SCORES
from fastmask.run.tensors import oof_file, read_oof
from fastmask.scoring import LOSS, score_heads, why_optimistic
from fastmask.system.errors import DataError
from fastmask.system.files import read_json, write_csv, write_json


def finish(run: RunDirectory) -> None:
    """Write oof.csv and scores.json of the finished folds."""
    trained, k = run.trained_folds, run.config.top_k
    curves = [run.history(f)[run.config.monitor].to_numpy(np.float64) for f in trained]
    curves = [np.where(np.isnan(c), -np.inf, -c if run.config.monitor == LOSS else c) for c in curves]
    honest, own = choose_epochs(curves, k), [best_epochs(c, k) for c in curves]
    write_csv(run.path / OOF, collect_oof(run, trained, honest))
    # read again, because `run` may have cached the OOF predictions of fewer folds
    run = RunDirectory.load(run.path)
    write_json(run.path / SCORES, all_scores(run, trained, collect_oof(run, trained, own), honest, own))


def check_fold(run: RunDirectory, fold: int) -> None:
    """Raise DataError naming the file if a finished fold is incomplete, or belongs to other photos than the run's."""
    folder = run.fold_path(fold)
    done = read_json(folder / DONE)
    if not isinstance(done, dict) or (done.get("fold"), done.get("photos")) != (fold, run.photos_digest(fold)):
        raise DataError(f"{folder / DONE} is of other photos than {run.path / FOLDS} has in fold {fold}.")
    if not run.checkpoints(fold):
        raise DataError(f"{folder} has no checkpoint (epoch*.safetensors); train the fold again, or restore it.")
    photos = int((run.folds["fold"] == fold).sum())
    for epoch in range(len(run.history(fold))):
        if read_oof(folder, epoch).shape != (photos, run.heads.n_logits):
            raise DataError(f"{oof_file(folder, epoch)} does not hold the probabilities of the fold's {photos} photos.")


def best_epochs(curve: np.ndarray, k: int = 1) -> list[int]:
    """The `k` epochs with the highest values of a curve, in order; of equal values the earlier one."""
    return sorted(np.argsort(-curve, kind="stable")[:k].tolist())


def choose_epochs(curves: Sequence[np.ndarray], k: int = 1) -> list[list[int]]:
    """For each fold the `k` epochs at which the mean of the *other* folds' curves is highest.

    `curves` has one curve per fold, one value per epoch, higher is better. A fold that stopped early keeps its last
    value, and gets only epochs that it reached. A single fold has no others and takes its last epochs.
    """
    if len(curves) == 1:
        return [list(range(len(curves[0])))[-k:]]
    longest = max(len(c) for c in curves)
    filled = np.array([np.pad(c, (0, longest - len(c)), mode="edge") for c in curves])
    return [best_epochs(np.delete(filled, i, axis=0).mean(0)[: len(c)], k) for i, c in enumerate(curves)]


def collect_oof(run: RunDirectory, trained: Sequence[int], epochs: Sequence[Sequence[int]]) -> pd.DataFrame:
    """The OOF table in the table's order: for each trained fold the mean of the probabilities of its epochs."""
    heads, frame = run.heads, run.folds
    fold_of = frame["fold"].to_numpy(np.int64)
    probabilities = np.full((len(frame), heads.n_logits), np.nan, np.float32)
    for fold, chosen in zip(trained, epochs, strict=True):
        probabilities[fold_of == fold] = np.mean([read_oof(run.fold_path(fold), epoch) for epoch in chosen], axis=0)
    columns = {
        "path": frame["path"],
        "person": frame["person"],
        "fold": fold_of,
        **dict(zip(heads.columns, probabilities.T, strict=True)),
        "true": heads.joint(run.y),
        "predicted": heads.joint(heads.argmax(probabilities)),
    }
    return pd.DataFrame(columns)[np.isin(fold_of, trained)].reset_index(drop=True)


def all_scores(
    run: RunDirectory,
    trained: Sequence[int],
    optimistic: pd.DataFrame,
    honest: Sequence[Sequence[int]],
    own: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """The content of scores.json."""
    heads, true, fold_of = run.heads, run.true, run.oof["fold"].to_numpy()
    folds = [
        {
            "fold": fold,
            "epochs": list(honest[i]),
            "own_best_epochs": list(own[i]),
            **score_heads(heads, run.predicted[fold_of == fold], true[fold_of == fold], None, 0, run.y).to_plain(),
        }
        for i, fold in enumerate(trained)
    ]
    flattering = score_heads(heads, heads.argmax(optimistic[heads.columns].to_numpy()), true, draws=0, whole=run.y)
    return {
        **run.score().to_plain(),
        "optimistic": {
            **flattering.to_plain(),
            "why": why_optimistic(len(trained)),
        },
        "folds": folds,
        "scored_by": {h.name: list(h.bounds) for h in heads if h.bounds},
        "trained_by": {h.name: list(h.train_bounds) for h in heads if h.train_bounds},
    }
