"""Start: the weights of an earlier run, of each fold its own, and no fold's of photos that it is to be judged on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from fastmask.data.table import Table
from fastmask.errors import UsageError
from fastmask.heads import Heads
from fastmask.model.network import MultiHeadNet, read_weights
from fastmask.run import FOLDS, Run
from fastmask.scoring import LOSS


def file_of(weights: str | None, fold: int) -> str | None:
    """The file that a fold starts from: `weights`, or the fold's best checkpoint where that is a run directory."""
    if weights is None or not Path(weights).is_dir():
        return weights
    return str(best_checkpoint(Run.load(weights), fold))


def best_checkpoint(run: Run, fold: int) -> Path:
    """The best checkpoint of a fold by its own history; raises UsageError where the fold is not trained to its end."""
    files = {int(file.stem.removeprefix("epoch")): file for file in run.checkpoints(fold)}
    if not files or not run.is_done(fold):
        raise UsageError(f"{run.path} has not finished a fold {fold}, so fold {fold} has no weights to start from.")
    values = run.history(fold)[run.config.monitor].to_numpy(np.float64)
    values = np.nan_to_num(-values if run.config.monitor == LOSS else values, nan=-np.inf)
    return files[max(sorted(files), key=lambda epoch: values[epoch])]


def load_heads(network: MultiHeadNet, heads: Heads, weights: str | None, fold: int) -> None:
    """Start the heads that the run `weights` has, too, with the same classes, from there; a file has a body only."""
    if weights is None or not Path(weights).is_dir():
        return
    run = Run.load(weights)
    tensors = read_weights(best_checkpoint(run, fold))
    for number, head in enumerate(heads):
        if head.name in run.heads.names and run.heads[head.name].classes == head.classes:
            there = f"heads.{run.heads.position(head.name)}."
            state = {name.removeprefix(there): tensor for name, tensor in tensors.items() if name.startswith(there)}
            network.heads[number].load_state_dict(state)


def check_no_leak(weights: str | None, table: Table, folds: np.ndarray, group: str) -> None:
    """Raise UsageError if weights of a run have seen a photo, or a person, that their fold is judged on here."""
    for fold in range(int(folds.max()) + 1):
        file = file_of(weights, fold)
        if file is None:
            return
        trained = re.fullmatch(r"fold([0-9]+)", Path(file).parent.name)
        if trained is None or not (Path(file).parent.parent / FOLDS).is_file():
            return
        run = Run.load(Path(file).parent.parent)
        seen = run.folds[run.folds["fold"] != int(trained[1])]
        columns = {"photo": ("path", table.frame["path"]), "person": ("person", table.persons)}
        for what, (column, here) in columns.items():
            both = sorted(set(seen[column]) & set(np.asarray(here)[folds == fold]))
            if both and (what == "photo" or group == "person"):
                raise UsageError(
                    f"Fold {fold} would be judged on {what} {both[0]}, which the weights of {Path(file).parent} were "
                    f"trained on: its score would flatter. Start from the run ({run.path}), and deal the folds as it "
                    f"did: --folds-file {run.path / FOLDS}."
                )


def digest(weights: str | None) -> str | None:
    """SHA-256 of what is started from, which may be another on another machine, or later under the same name."""
    if weights is None:
        return None
    path = Path(weights)
    files = sorted(path.glob("fold*/epoch*.safetensors")) if path.is_dir() else [path]
    made = hashlib.sha256()
    for file in files:
        made.update(file.read_bytes())
    return made.hexdigest()
