"""OOF: out-of-fold predictions with honestly chosen epochs, collected into a table and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.data.folds import person_parts
from fastmask.data.table import groups_of
from fastmask.decision.crossfit import cross_fit
from fastmask.decision.rule import PLAIN
from fastmask.heads import Heads
from fastmask.run.directory import RunDirectory, decided_classes
from fastmask.run.files import DONE, FOLDS, OOF, SCORES
from fastmask.run.tensors import oof_file, read_oof
from fastmask.scoring import DRAWS, score_heads, scored_classes, why_optimistic
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_json, write_csv, write_json


def write_scores(run: RunDirectory) -> None:
    """Write oof.csv and scores.json of the finished folds."""
    trained, k = run.trained_folds, run.config.top_k
    curves = [run.curve(fold) for fold in trained]
    honest, own = choose_epochs(curves, k), [best_epochs(c, k) for c in curves]
    write_csv(run.path / OOF, collect_oof(run, trained, honest))
    # read again, because `run` may have cached the OOF predictions of fewer folds
    run = RunDirectory.load(run.path)
    folds = {f: {"epochs": honest[i], "own_best_epochs": own[i]} for i, f in enumerate(trained)}
    optimistic = decided_classes(run.heads, collect_oof(run, trained, own), run.config.decision)
    scores = scores_content(run, folds, optimistic, why_optimistic(len(trained)))
    trained_by = {head.name: list(head.train_bounds) for head in run.heads if head.train_bounds}
    write_json(run.path / SCORES, {**scores, "trained_by": trained_by})


def check_fold(run: RunDirectory, fold: int) -> None:
    """Raise DataError naming the file if a finished fold is incomplete, or belongs to other photos than the run's."""
    folder = run.fold_path(fold)
    done = read_json(folder / DONE)
    if not isinstance(done, dict) or (done.get("fold"), done.get("photos")) != (fold, run.photos_digest(fold)):
        raise DataError(f"{folder / DONE} belongs to other photos than {run.path / FOLDS} has in fold {fold}.")
    if not run.checkpoints(fold):
        raise DataError(f"{folder} has no checkpoint (epoch*.safetensors); train the fold again, or restore it.")
    photos = int((run.folds["fold"] == fold).sum())
    for epoch in validated_epochs(run.curve(fold)):
        if read_oof(folder, epoch).shape != (photos, run.heads.n_logits):
            raise DataError(f"{oof_file(folder, epoch)} does not hold the probabilities of the fold's {photos} photos.")


def best_epochs(curve: np.ndarray, k: int = 1) -> list[int]:
    """The `k` epochs with the highest values of a curve, in order; of equal values the earlier one."""
    return sorted(_rank(curve, curve)[:k])


def validated_epochs(curve: np.ndarray) -> list[int]:
    """The epochs of a curve that were validated."""
    return np.flatnonzero(~np.isnan(curve)).tolist()


def _rank(values: np.ndarray, curve: np.ndarray) -> list[int]:
    """The epochs that were validated by a curve, from the highest value; of equal values the earlier one first."""
    epochs = np.array(validated_epochs(curve), int)
    return epochs[np.argsort(-values[epochs], kind="stable")].tolist()


def choose_epochs(curves: Sequence[np.ndarray], k: int = 1) -> list[list[int]]:
    """For each fold the `k` epochs at which the mean of the *other* folds' curves is highest.

    `curves` has one curve per fold, one value per epoch, higher is better. An epoch that was not validated is NaN: it
    has the value of the one before, and is not chosen. A fold that stopped early keeps its last value, and gets only
    epochs that it reached. A single fold has no others and takes its last epochs.
    """
    if len(curves) == 1:
        return [validated_epochs(curves[0])[-k:]]
    return [sorted(epochs[:k]) for epochs in rank_epochs(curves)]


def rank_epochs(curves: Sequence[np.ndarray]) -> list[list[int]]:
    """For each fold its epochs, from the highest mean of the other folds' curves; see `choose_epochs`."""
    longest = max(len(c) for c in curves)
    filled = np.array([np.pad(_fill(c), (0, longest - len(c)), mode="edge") for c in curves])
    means = (np.delete(filled, i, axis=0).mean(0)[: len(c)] for i, c in enumerate(curves))
    return [_rank(mean, curve) for mean, curve in zip(means, curves, strict=True)]


def _fill(curve: np.ndarray) -> np.ndarray:
    """A curve whose epochs without validation have the value of the validated one before, or -inf."""
    filled: np.ndarray = pd.Series(curve).ffill().fillna(-np.inf).to_numpy()
    return filled


def collect_oof(run: RunDirectory, trained: Sequence[int], epochs: Sequence[Sequence[int]]) -> pd.DataFrame:
    """The OOF table in the table's order: for each trained fold the mean of the probabilities of its epochs.

    The classes are by the run's decision.
    """
    heads, frame = run.heads, run.folds
    fold_of = frame["fold"].to_numpy(np.int64)
    probabilities = np.full((len(frame), heads.n_logits), np.nan, np.float32)
    for fold, chosen in zip(trained, epochs, strict=True):
        probabilities[fold_of == fold] = np.mean([read_oof(run.fold_path(fold), epoch) for epoch in chosen], axis=0)
    here = np.isin(fold_of, trained)
    y = decide_oof(run, probabilities[here], run.y[here], fold_of[here], groups_of(frame)[here])
    return oof_table(heads, frame[here], probabilities[here], run.y[here], y).reset_index(drop=True)


def decide_oof(
    run: RunDirectory, probabilities: np.ndarray, true: np.ndarray, folds: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """(N, heads) classes of OOF photos by a run's decision, whose rule is fitted on other persons than it decides.

    Of (N, classes of all heads) probabilities, (N, heads) labels, (N,) folds and (N,) groups of persons.
    """
    if run.config.decision == PLAIN:
        return run.heads.argmax(probabilities)
    parts = parts_by(run.path, folds, groups)
    return cross_fit(run.config.decision, run.heads, probabilities.astype(np.float64), true, parts)[1]


def oof_table(
    heads: Heads, frame: pd.DataFrame, probabilities: np.ndarray, true: np.ndarray, y: np.ndarray
) -> pd.DataFrame:
    """The OOF table of all photos of a frame with the columns path, person and fold: their labels, and classes `y`."""
    columns = dict(zip(heads.columns, probabilities.T, strict=True))
    joint = {"true": heads.joint(true), "predicted": heads.joint(y)}
    return pd.DataFrame({**frame[["path", "person", "fold"]], **columns, **joint})


def scores_content(
    run: RunDirectory, folds: Mapping[int, Mapping[str, Any]], optimistic: np.ndarray, why: str, draws: int = DRAWS
) -> dict[str, Any]:
    """The content of scores.json, with an entry per fold that starts with its values in `folds`.

    `optimistic` are the (N, heads) classes of the optimistic score, `why` is the reason.
    """
    heads, true, fold_of = run.heads, run.true, run.oof["fold"].to_numpy()
    rows = []
    for fold, given in folds.items():
        here = fold_of == fold
        own = score_heads(heads, run.predicted[here], true[here], None, 0, run.classes)
        rows.append({"fold": fold, **given, **own.to_plain()})
    flattering = score_heads(heads, optimistic, true, None, 0, scored_classes(heads, [optimistic], true, run.y))
    return {
        **run.score(draws).to_plain(),
        "optimistic": {**flattering.to_plain(), "why": why},
        "folds": rows,
        "scored_by": {h.name: list(h.bounds) for h in heads if h.bounds},
    }


def parts_of(run: RunDirectory) -> np.ndarray:
    """(N,) the part of each OOF photo of a run: see `parts_by`."""
    return parts_by(run.path, run.oof["fold"].to_numpy(), run.groups)


def parts_by(path: Path | str, folds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) the part of each photo, so that what is fitted on some parts is scored on others.

    The (N,) folds of the run at `path`, or, if there is one or they separate photos of one of the (N,) groups, fifths
    of the groups. Raises UsageError for a run of one person.
    """
    if len(set(groups)) < 2:
        raise UsageError(f"{path} has only one person; expected two or more, to fit on some and score on others.")
    return person_parts(folds, groups)
