"""Lineage: the run that a fold's weights come from, the runs before it, and the photos that they have seen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory
from fastmask.run.files import FOLDS, REFIT
from fastmask.scoring import goodness
from fastmask.system.errors import UsageError


def weights_file(weights: str | None, fold: int) -> str | None:
    """The file that a fold starts from: `weights`, or the fold's best checkpoint if that is a run directory."""
    if weights is None or not Path(weights).is_dir():
        return weights
    return str(best_checkpoint(RunDirectory.load(weights), fold))


def best_checkpoint(run: RunDirectory, fold: int) -> Path:
    """The best checkpoint of a fold by its own history; raises UsageError if the fold has not finished."""
    named = ((re.fullmatch("epoch([0-9]+)", file.stem), file) for file in run.checkpoints(fold))
    files = {int(match[1]): file for match, file in named if match}
    if not files or not run.is_done(fold):
        raise UsageError(f"{run.path} has not finished a fold {fold}, so fold {fold} has no weights to start from.")
    values = goodness(run.history(fold)[run.config.monitor], run.config.monitor)
    return files[max(sorted(files), key=lambda epoch: values[epoch])]


def check_no_leak(
    weights: str | None, table: Table, folds: np.ndarray, group: str, chosen: Sequence[int] | None = None
) -> None:
    """Raise UsageError if weights of a run have seen a photo, or a person, that their fold validates here.

    This includes the weights that these started from, back to the first. `chosen` are the folds to train, by default
    all.
    """
    found = find_leak(weights, table, folds, group, chosen)
    if found is not None:
        fold, name, run, trained = found
        raise UsageError(
            f"Fold {fold} would be validated on {name}, which the weights of {run.fold_path(trained)} were trained on: "
            f"its score would be too good. Start from the run {run.path}, with its folds: --folds-file "
            f"{run.path / FOLDS}."
        )


def find_leak(
    weights: str | None, table: Table, folds: np.ndarray, group: str, chosen: Sequence[int] | None = None
) -> tuple[int, str, RunDirectory, int] | None:
    """The first fold with a photo or person that weights of a run have seen, its name, and that run and its fold."""
    for fold in range(int(folds.max()) + 1) if chosen is None else chosen:
        validated = {"photo": set(table.frame["path"][folds == fold])}
        if group == "person":
            validated["person"] = set(table.persons[folds == fold])
        for run, trained in ancestors(weights, fold):
            seen = run.seen_by(trained)
            for what, column in (("photo", "path"), ("person", "person")):
                both = sorted(validated.get(what, set()) & set(seen[column]))
                if both:
                    return fold, f"{what} {both[0]}", run, trained
    return None


def ancestors(weights: str | None, fold: int) -> Iterator[tuple[RunDirectory, int]]:
    """The runs and their folds that have trained the weights that a fold starts from, the last one first."""
    seen: list[Path] = []
    while weights is not None:
        if not Path(weights).exists():
            raise UsageError(
                f"{weights} does not exist, so the photos that it has seen are unknown; restore it, or name "
                "other weights."
            )
        file = Path(str(weights_file(weights, fold)))
        named = re.fullmatch(r"fold([0-9]+)", file.parent.name)
        if named is None or not (file.parent.parent / FOLDS).is_file() or file.parent in seen:
            return
        run, fold = RunDirectory.load(file.parent.parent), int(named[1])
        if file.name == REFIT:
            raise UsageError(
                f"{file} was refitted on all photos, so it has seen its validation photos; start from the "
                f"run, {run.path}, or from a checkpoint."
            )
        yield run, fold
        seen.append(file.parent)
        weights = run.config.weights


def digest_weights(weights: str | None) -> str | None:
    """SHA-256 of the weights to start from, which may differ between machines, or later, under the same name."""
    if weights is None:
        return None
    path = Path(weights)
    files = sorted(path.glob("fold*/epoch*.safetensors")) if path.is_dir() else [path]
    made = hashlib.sha256()
    for file in files:
        made.update(file.read_bytes())
    return made.hexdigest()
