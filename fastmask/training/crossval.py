"""Cross-validation: train every fold, collect the out-of-fold predictions, score them honestly."""

from __future__ import annotations

import gc
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from albumentations import Compose
from fastai.callback.progress import ProgressCallback
from filelock import FileLock, Timeout

from fastmask.config import Config, make_config
from fastmask.data.augment import augmentations, to_plain
from fastmask.data.loaders import dataloaders
from fastmask.data.table import Table
from fastmask.errors import FastmaskError, UsageError
from fastmask.files import frame_to_csv, write_csv, write_json
from fastmask.model.schedule import lr_schedule
from fastmask.run import DONE, FOLDS, OOF, PIPELINES, SCORES, Run, check_free
from fastmask.scoring import score_heads
from fastmask.training.callbacks import Checkpoint, EarlyStopping, History, OOFCollector, read_oof
from fastmask.training.learner import mask_learner
from fastmask.training.plan import Plan, build, build_loss, prepare
from fastmask.training.progress import EpochLines

# settings that say where to work, not what to do: a resume may change them
MACHINE_SETTINGS = ("workers", "device", "data")


def cross_validate(
    table: Table,
    config: Config | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    log: TextIO | None = None,
    **settings: Any,
) -> Run:
    """Train every fold of `table` and return the finished run in the directory `out`.

    `settings` are those of `Config`, over `config`. Everything that can be checked is checked before the directory is
    made: the settings, the folds, every photo, the network and its weights. `resume` goes on with a run that was
    stopped: finished folds stay as they are, the others are trained from their start, and the result is the same as
    that of a run that was never stopped. `log` takes a line an epoch (stderr by default).
    """
    out = Path(out)
    if not resume:
        check_free(out, overwrite)
    log = log or sys.stderr
    plain = {name: to_plain(v) if isinstance(v, Compose) else v for name, v in settings.items()}
    plan = prepare(table, make_config(config.model_dump(exclude_unset=True) if config else {}, plain))
    with held(out):
        run = reopen(out, plan) if resume else create(out, plan, overwrite)
        print(f"{plan}; run {out}", file=log, flush=True)
        try:
            for fold in range(run.config.folds):
                if not run.is_done(fold):
                    train_fold(run, plan, fold, log)
        except KeyboardInterrupt:
            print(f"Interrupted. Finished folds are kept; --resume --out {out} goes on.", file=log, flush=True)
            raise
        finish(run, plan)
    return run


@contextmanager
def held(out: Path) -> Iterator[None]:
    """A block in which no other process may write to the run at `out`; raises UsageError where one does."""
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{out} is being written by another process; wait for it, or name another --out.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def create(out: Path, plan: Plan, overwrite: bool) -> Run:
    """The directory of a new run."""
    return Run.create(
        out,
        plan.config,
        plan.table.heads,
        pipelines=plan.pipelines,
        folds=plan.folds_frame,
        environment=plan.environment,
        overwrite=overwrite,
    )


def reopen(out: Path, plan: Plan) -> Run:
    """The run to go on with; raises UsageError naming what differs, where that would change the result."""
    run = Run.load(out)
    old, new = run.config.to_plain(), plan.config.to_plain()
    if run.pipelines != plan.pipelines:
        raise UsageError(
            f"{out} was started with other pipelines, see {out / PIPELINES}; start anew with another --out."
        )
    differing = [name for name in new if old[name] != new[name] and name not in MACHINE_SETTINGS]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{out} was started with {name} {old[name]}, now it is {new[name]}; --resume needs the same settings "
            f"(differing: {', '.join(differing)})."
        )
    buffer = StringIO()
    frame_to_csv(plan.folds_frame, buffer)
    if run.heads != plan.table.heads or (out / FOLDS).read_text(encoding="utf-8") != buffer.getvalue():
        raise UsageError(
            f"{out} was started with other photos or labels than are there now; start anew with another --out."
        )
    return run


def train_fold(run: Run, plan: Plan, fold: int, log: TextIO) -> None:
    """Train one fold into its directory: checkpoints, history, every epoch's OOF probabilities."""
    # the plan's settings are the run's, but for those of the machine, which may differ on a resume
    config, folder = plan.config, run.fold_path(fold)
    if folder.exists():
        shutil.rmtree(folder)
    start = time.perf_counter()
    dls = dataloaders(
        plan.table,
        fold,
        plan.folds,
        augments=augmentations(plan.pipelines),
        bs=config.bs,
        seed=config.seed,
        num_workers=config.workers,
        device=config.device,
    )
    collector = OOFCollector(folder)
    lines = EpochLines(f"fold {fold + 1}/{config.folds}", log)
    learn = mask_learner(
        dls,
        build(config, run.heads, fold),
        loss_func=build_loss(config, run.heads),
        lr=config.lr,
        wd=config.wd,
        cbs=[
            *lr_schedule(config.sched, config.lr, config.epochs, config.milestones, config.lr_gamma),
            History(folder),
            collector,
            Checkpoint(folder, config.monitor, config.top_k),
            lines,
            *([EarlyStopping(config.monitor, config.patience)] if config.patience else []),
        ],
    )
    learn.remove_cbs(ProgressCallback)
    learn.logger = _silent
    with lines:
        learn.fit(config.epochs)
    if collector.diverged:
        raise FastmaskError(
            f"Fold {fold + 1} diverged: after epoch {learn.epoch + 1} the network's answers are not numbers (NaN). "
            f"Lower --lr; the fold's checkpoints so far are in {folder}."
        )
    write_json(folder / DONE, {"epochs": learn.epoch + 1, "seconds": round(time.perf_counter() - start, 1)})
    # a Learner and its callbacks point at each other: without this a fold's memory waits for a chance collection
    learn.remove_cbs(list(learn.cbs))
    del learn, dls
    gc.collect()


def _silent(*_: Any) -> None:
    """fastai's logger prints to stdout, which is for results."""


def finish(run: Run, plan: Plan) -> None:
    """Write oof.csv and scores.json of a run whose folds are trained."""
    trained = run.trained_folds
    curves = [run.history(f)[run.config.monitor].to_numpy(np.float64) for f in trained]
    lower = "loss" in run.config.monitor
    curves = [np.where(np.isnan(c), -np.inf, -c if lower else c) for c in curves]
    honest, own = choose_epochs(curves), [int(np.argmax(c)) for c in curves]
    write_csv(run.path / OOF, collect_oof(run, plan, trained, honest))
    optimistic = collect_oof(run, plan, trained, own)
    write_json(run.path / SCORES, all_scores(run, plan, trained, optimistic, honest, own))


def choose_epochs(curves: Sequence[np.ndarray]) -> list[int]:
    """For each fold the epoch at which the mean of the *other* folds' curves is highest.

    `curves` has a row an epoch a fold, higher better. A fold that stopped early keeps its last value; a fold is given
    only epochs that it reached. A single fold has no others to ask and takes its last epoch, which no score chose.
    """
    if len(curves) == 1:
        return [len(curves[0]) - 1]
    longest = max(len(c) for c in curves)
    filled = np.array([np.pad(c, (0, longest - len(c)), mode="edge") for c in curves])
    chosen = []
    for i, curve in enumerate(curves):
        others = np.delete(filled, i, axis=0).mean(0)
        chosen.append(int(np.argmax(others[: len(curve)])))
    return chosen


def collect_oof(run: Run, plan: Plan, trained: Sequence[int], epochs: Sequence[int]) -> pd.DataFrame:
    """The OOF table in the table's order, each trained fold at its epoch."""
    heads, frame = run.heads, plan.table.frame
    probabilities = np.full((len(frame), heads.n_logits), np.nan, np.float32)
    for fold, epoch in zip(trained, epochs, strict=True):
        probabilities[plan.folds == fold] = read_oof(run.fold_path(fold), epoch)
    columns = {
        "path": frame["path"],
        "person": frame["person"],
        "fold": plan.folds,
        **dict(zip(heads.columns, probabilities.T, strict=True)),
        "true": heads.joint(plan.table.y),
        "predicted": heads.joint(heads.argmax(probabilities)),
    }
    return pd.DataFrame(columns)[np.isin(plan.folds, trained)].reset_index(drop=True)


def all_scores(
    run: Run, plan: Plan, trained: Sequence[int], optimistic: pd.DataFrame, honest: Sequence[int], own: Sequence[int]
) -> dict[str, Any]:
    """What scores.json holds."""
    heads, true, fold_of = run.heads, run.true, run.oof["fold"].to_numpy()
    whole = plan.table.y
    folds = [
        {
            "fold": fold,
            "epoch": honest[i],
            "own_best_epoch": own[i],
            **score_heads(heads, run.predicted[fold_of == fold], true[fold_of == fold], None, 0, whole).to_plain(),
        }
        for i, fold in enumerate(trained)
    ]
    flattering = score_heads(heads, heads.argmax(optimistic[heads.columns].to_numpy()), true, draws=0)
    return {
        **run.score().to_plain(),
        "optimistic": {
            **flattering.to_plain(),
            "why": "each fold's epoch is chosen by the fold's own score: it flatters; the headline's, by the others",
        },
        "folds": folds,
        "scored_by": {h.name: list(h.bounds) for h in heads if h.bounds},
        "trained_by": {h.name: list(h.train_bounds) for h in heads if h.train_bounds},
    }
