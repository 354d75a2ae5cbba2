"""Merge: folds that were trained separately, on several machines or days, joined into one run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from fastmask.run.directory import RunDirectory
from fastmask.run.files import ENVIRONMENT, FOLDS, check_free
from fastmask.run.identity import differing_settings, differing_start
from fastmask.run.oof import check_fold, write_scores
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.files import real
from fastmask.system.lock import lock_run
from fastmask.system.text import join_plural


def merge_runs(runs: Sequence[str | Path | RunDirectory], out: str | Path, overwrite: bool = False) -> RunDirectory:
    """Join the finished folds of `runs` into a new run at `out`, scored as one; `runs` are not changed.

    Raises UsageError if they do not belong together: different settings, pipelines, photos, labels, folds, bodies or
    weights to start from, or the same fold twice. Warns if folds are missing or versions differ.
    """
    out = Path(out)
    check_free(out, overwrite)
    loaded = [RunDirectory.of(run) for run in runs]
    if len(loaded) < 2:
        raise UsageError(f"merge joins two or more runs; found {len(loaded)}.")
    if any(real(run.path) == real(out) for run in loaded):
        raise UsageError(f"{out} is one of the runs to merge; name another --out.")
    first = loaded[0]
    for run in loaded[1:]:
        check_mergeable(first, run)
    owner = owners(loaded)
    for fold, run in owner.items():
        check_fold(run, fold)
    missing = [fold for fold in range(first.config.folds) if fold not in owner]
    if missing:
        warnings.warn(
            f"No run has finished {join_plural(missing, 'fold')}; fit --resume --out {out} trains what is missing.",
            FastmaskWarning,
            stacklevel=2,
        )
    with lock_run(out):
        merged = RunDirectory.create(
            out,
            first.config,
            first.heads,
            pipelines=first.pipelines,
            folds=first.folds,
            environment={
                **first.environment,
                "start": {**first.start, "chosen_weights": any(run.start.get("chosen_weights") for run in loaded)},
                "merged": [str(run.path) for run in loaded],
            },
            extra=first.extra,
            trained={fold: run.fold_path(fold) for fold, run in owner.items()},
            overwrite=overwrite,
        )
        write_scores(merged)
    return merged


def check_mergeable(one: RunDirectory, other: RunDirectory) -> None:
    """Raise UsageError if the folds of two runs do not belong together; warn if package versions differ."""
    differing = differing_settings(one.config, other.config)
    starts = differing_start(one.start, other.start)
    same_folds = one.folds.equals(other.folds)
    checks = (
        (not differing, f"settings ({', '.join(differing)})"),
        (one.pipelines == other.pipelines, "pipelines"),
        (one.heads == other.heads, "heads"),
        (same_folds, f"photos, labels or folds ({FOLDS})"),
        (not starts, f"{', '.join(starts)} to start from ({ENVIRONMENT})"),
    )
    for alike, what in checks:
        if not alike:
            raise UsageError(f"{one.path} and {other.path} do not belong together: they have other {what}.")
    mine, theirs = (run.environment.get("packages", {}) for run in (one, other))
    versions = [f"{name} {mine.get(name)} and {theirs.get(name)}" for name in mine if mine[name] != theirs.get(name)]
    if versions:
        warnings.warn(
            f"{one.path} and {other.path} were trained with different versions: {', '.join(versions)}.",
            FastmaskWarning,
            stacklevel=3,
        )


def owners(runs: Sequence[RunDirectory]) -> dict[int, RunDirectory]:
    """The run of each trained fold; raises UsageError if two have trained the same fold, or one has none."""
    owner: dict[int, RunDirectory] = {}
    for run in runs:
        for fold in run.trained_folds:
            if fold in owner:
                raise UsageError(f"{owner[fold].path} and {run.path} have both trained fold {fold}; leave one out.")
            owner[fold] = run
    idle = [str(run.path) for run in runs if run not in owner.values()]
    if idle:
        raise UsageError(f"{idle[0]} has not finished a fold, so there is nothing to merge.")
    return owner
