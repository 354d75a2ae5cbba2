"""Candidates: the checkpoints that a soup is chosen from, and whether their runs can be averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from fastmask.config import Config, Kind
from fastmask.inference.members import align_column, check_runs_differ, learned_heads, member_names
from fastmask.run.directory import RunDirectory
from fastmask.run.files import FOLDS
from fastmask.run.identity import differing_start
from fastmask.run.lineage import ranked_checkpoints
from fastmask.run.oof import rank_epochs
from fastmask.run.tensors import read_oof
from fastmask.system.errors import DataError, UsageError, one_line
from fastmask.system.text import join_some


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of each fold of a run; `flatters` if their epochs were chosen by their own folds' photos."""

    name: str
    run: RunDirectory
    files: Mapping[int, Path]
    flatters: bool

    def read_oof(self, first: RunDirectory, fold: int) -> np.ndarray:
        """(photos of the fold, classes of all heads) the saved OOF probabilities, in the order of the first run."""
        own, expected = (pd.Index(run.folds["path"][run.folds["fold"] == fold]) for run in (self.run, first))
        return read_oof(self.run.fold_path(fold), _epoch(self.files[fold]))[own.get_indexer(expected)]


def _epoch(file: Path) -> int:
    return int(file.stem.removeprefix("epoch"))


def check_runs(runs: Sequence[RunDirectory], out: Path) -> None:
    """Raise UsageError unless the runs are different ones at other places, and fit the first."""
    check_runs_differ(runs, out, "A soup", 1)
    for run in runs:
        difference = _difference(runs[0], run)
        if difference:
            raise UsageError(f"{run.path} cannot be averaged with {runs[0].path}: {difference}.")
    if len(runs[0].trained_folds) < 2:
        raise UsageError(
            f"The soup of a fold is chosen on the other folds, and {runs[0].path} has finished "
            f"{len(runs[0].trained_folds)}; expected two or more."
        )


def _difference(first: RunDirectory, run: RunDirectory) -> str | None:
    """Describe what two runs differ in that a soup needs to be the same, or return None."""
    starts = {name: value for name, value in run.start.items() if name in ("photos", "boxes")}
    input_differs = differing_start({**first.start, **starts}, first.start)
    for what, one, other in (
        ("body", first.config.arch, run.config.arch),
        ("finished folds", join_some(first.trained_folds), join_some(run.trained_folds)),
        ("views", *(join_some(one.config.views) or "none" for one in (first, run))),
    ):
        if one != other:
            return f"its {what} {'are' if what.endswith('s') else 'is'} {other}, in the first {one}"
    if _form(first) != _form(run):
        return _other_heads(first, run)
    if _shapes(first) != _shapes(run):
        return f"its networks have other layers{_cause(first, run)}"
    if first.pipelines["valid"] != run.pipelines["valid"] or input_differs:
        return f"it has another {input_differs[0] if input_differs else 'validation pipeline'}"
    return _other_folds(first, run)


def _other_heads(first: RunDirectory, run: RunDirectory) -> str:
    """In what the heads of two runs differ."""
    if run.heads.names != first.heads.names:
        return f"it has other heads ({join_some(run.heads.names)}; in the first {join_some(first.heads.names)})"
    differing = [a.name for a, b in zip(run.heads, first.heads, strict=True) if a != b]
    return f"it has other classes or bounds of {join_some(differing)}"


def _form(run: RunDirectory) -> list[Any]:
    """What networks must have in common: the heads, except for how they are trained."""
    plain = [{n: v for n, v in head.items() if n not in ("weight", "train_bounds")} for head in run.heads.to_plain()]
    return [*plain, learned_heads(run)]


def _shapes(run: RunDirectory) -> dict[str, list[int]]:
    """The shapes of the tensors of a checkpoint, by their names; raises DataError if it cannot be read."""
    file = ranked_checkpoints(run, run.trained_folds[0])[0]
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} cannot be read: {one_line(error)}; train the fold again, or restore it.") from error


def _cause(first: RunDirectory, run: RunDirectory) -> str:
    """The first setting of layers in which two runs differ, in words."""
    ours, theirs = first.config.to_plain(), run.config.to_plain()
    name = next((name for name in Config.of_kind(Kind.LAYERS) if ours[name] != theirs[name]), None)
    return "" if name is None else f" by {name} ({theirs[name] or 'none'}, in the first {ours[name] or 'none'})"


def _other_folds(first: RunDirectory, run: RunDirectory) -> str | None:
    """Describe the first difference of the folds of two runs, or return None."""
    ours, theirs = pd.Index(first.folds["path"]), pd.Index(run.folds["path"])
    lacking = ours.symmetric_difference(theirs, sort=False)
    if len(lacking):
        return f"{len(lacking)} photos, such as {lacking[0]}, are in one of them only"
    own, other = first.folds["fold"].to_numpy(), align_column(first, run, "fold")
    differing = np.flatnonzero(own != other)
    if not len(differing):
        return None
    path, fold = ours[differing[0]], own[differing[0]]
    return (
        f"it has {path} in fold {other[differing[0]]}, the first in fold {fold}, so its models of that fold have been "
        f"trained on it; train it with --folds-file {first.path / FOLDS}"
    )


def find_candidates(runs: Sequence[RunDirectory]) -> list[Candidate]:
    """The candidates of the runs, the best of each first; raises UsageError if there is only one."""
    found = []
    for run, name in zip(runs, member_names(runs), strict=True):
        each, flatters = _files(run)
        names = [name] if len(each) == 1 else [f"{name} #{rank}" for rank in range(1, len(each) + 1)]
        found += [Candidate(one, run, files, flatters) for one, files in zip(names, each, strict=True)]
    if len(found) < 2:
        raise UsageError(
            f"{runs[0].path} has one checkpoint per fold to average; name more runs, or train with a larger --top-k."
        )
    return found


def _files(run: RunDirectory) -> tuple[list[dict[int, Path]], bool]:
    """By rank, the checkpoint of each fold, and whether their epochs were chosen by their own folds' photos.

    They are the epochs that the other folds choose, as many as every fold has kept; if it is none, those kept.
    """
    folds = run.trained_folds
    ranked = [ranked_checkpoints(run, fold) for fold in folds]
    kept = [{_epoch(file): file for file in files} for files in ranked]
    by_others = rank_epochs([run.curve(fold) for fold in folds])
    places = zip(*by_others, strict=False)
    honest = list(takewhile(lambda epochs: all(e in own for e, own in zip(epochs, kept, strict=True)), places))
    if honest:
        chosen = [[own[e] for e, own in zip(epochs, kept, strict=True)] for epochs in honest]
    else:
        chosen = [list(files) for files in zip(*ranked, strict=False)]
    return [dict(zip(folds, files, strict=True)) for files in chosen], not honest
