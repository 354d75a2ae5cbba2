"""Curves: loss and macro-F1 of each fold by epoch, and which epochs were kept and which are scored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fastmask.report.blocks import Block, Drawing, Table, Text, rounded
from fastmask.report.material import Material
from fastmask.report.style import INK, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.run.files import DONE, SCORES
from fastmask.system.errors import DataError, FastmaskError
from fastmask.system.files import read_json

COLUMNS = ("train_loss", "valid_loss", "macro_f1")


def chosen_epochs(run: RunDirectory) -> dict[int, list[int]]:
    """The epochs, from 0, by which each trained fold is scored, from scores.json."""
    found, entries = {}, run.scores.get("folds", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not _are_epochs(entry.get("epochs")) or type(entry.get("fold")) is not int:
            raise DataError(f"{run.path / SCORES} does not say by which epochs each fold is scored; restore it.")
        found[entry["fold"]] = list(entry["epochs"])
    return found


def scored_epochs(run: RunDirectory, fold: int) -> list[int]:
    """The epochs, from 1, of the out-of-fold predictions of a fold; none if unknown."""
    with suppress(FastmaskError, OSError):
        return [epoch + 1 for epoch in chosen_epochs(run).get(fold, [])]
    return []


def kept_epochs(run: RunDirectory, fold: int) -> list[int]:
    """The epochs, from 0, of a fold's checkpoints."""
    done = read_json(run.fold_path(fold) / DONE)
    kept: Any = done.get("checkpoints") if isinstance(done, dict) else None
    if not _are_epochs(kept):
        raise DataError(f"{run.fold_path(fold) / DONE} does not say which epochs the fold has kept; restore it.")
    return list(kept)


def _are_epochs(value: object) -> bool:
    return isinstance(value, list) and all(type(epoch) is int for epoch in value)


def curves(run: RunDirectory) -> pd.DataFrame:
    """One row per trained fold and epoch: fold, epoch (from 1), train_loss, valid_loss, macro_f1, kept, chosen.

    `kept` says whether there is a checkpoint, `chosen` whether the score uses the epoch. A column that a history lacks
    is NaN, as is the validation of an epoch without one. Raises UsageError for an ensemble.
    """
    run.check_trained()
    chosen, frames = chosen_epochs(run), []
    for fold in run.trained_folds:
        history = run.history(fold)
        if not np.isfinite(history["epoch"]).all():
            raise DataError(f"{run.fold_path(fold)} has a history with an epoch without a number; restore it.")
        epochs = history["epoch"].astype(int)
        columns = {name: history.get(name, np.nan) for name in COLUMNS}
        marks = {"kept": epochs.isin(kept_epochs(run, fold)), "chosen": epochs.isin(chosen.get(fold, []))}
        frames.append(pd.DataFrame({"fold": fold, "epoch": epochs + 1, **columns, **marks}))
    empty = pd.DataFrame(columns=["fold", "epoch", *COLUMNS, "kept", "chosen"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def fold_colours(folds: Sequence[int]) -> dict[int, Any]:
    """A colour per fold."""
    if len(folds) <= len(SERIES):
        return dict(zip(folds, SERIES, strict=False))
    return dict(zip(folds, mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(folds))), strict=True))


@styled()
def plot_curves(run: RunDirectory) -> Picture:
    """Training and validation loss and macro-F1 of each fold; a disc marks scored epochs, a ring kept ones.

    Raises UsageError for an ensemble.
    """
    frame = curves(run)
    colours = fold_colours(list(frame["fold"].unique()))
    figure = Picture(figsize=(9.4, 3.9), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    few = frame["epoch"].max() == 1
    for fold, of in frame.groupby("fold"):
        colour = {"color": colours[fold]}
        losses.plot(of["epoch"], of["train_loss"], linestyle=(0, (4, 2)), linewidth=1.1, **colour)
        # lines across epochs that were not validated
        loss, score = (of.dropna(subset=[name]) for name in ("valid_loss", "macro_f1"))
        losses.plot(loss["epoch"], loss["valid_loss"], linewidth=1.6, **colour)
        scores.plot(score["epoch"], score["macro_f1"], linewidth=1.6, marker="." if few else None, **colour)
        kept, chosen = of[of["kept"]], of[of["chosen"]]
        scores.plot(kept["epoch"], kept["macro_f1"], "o", markersize=9, markerfacecolor="none", **colour)
        scores.plot(chosen["epoch"], chosen["macro_f1"], "o", markersize=4.5, **colour)
    for axes, title in ((losses, "Loss"), (scores, "Macro-F1 of the validation photos")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
    figure.legend(handles=_legend(colours), loc="outside lower left", ncols=7, columnspacing=1.4, handletextpad=0.5)
    return figure


def _legend(colours: dict[int, Any]) -> list[Line2D]:
    folds = [Line2D([], [], color=colour, linewidth=2, label=f"fold {fold}") for fold, colour in colours.items()]
    if len(folds) > len(SERIES):
        folds = [folds[0], folds[-1]]
    kinds = [
        Line2D([], [], color=INK, linewidth=1.6, label="validation"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label="training, smoothed"),
        Line2D([], [], color=QUIET, linestyle="", marker="o", markersize=4.5, label="scored"),
        Line2D([], [], color=QUIET, linestyle="", marker="o", markersize=9, markerfacecolor="none", label="kept"),
    ]
    return [*folds, *kinds]


def section(material: Material) -> list[Block]:
    """The curves, and a table of the scored epochs."""
    run = material.run
    frame = curves(run)
    if frame.empty:
        return [Text("No fold has finished training yet.")]
    n = frame["fold"].nunique()
    how = (
        "The scored epochs are chosen by the other folds, so no figure is computed on photos that chose the epoch."
        if n > 1
        else "With a single fold, no other fold can choose the scored epoch, so it is the last one."
    )
    rows = []
    for fold, of in frame.groupby("fold"):
        scored = of[of["chosen"]]
        epochs = [", ".join(map(str, of["epoch"][of[mark]])) for mark in ("kept", "chosen")]
        figures = [*(scored[name].mean() for name in COLUMNS), of["macro_f1"].max()]
        rows.append([f"fold {fold}", str(len(of)), *epochs, *map(rounded, figures)])
    names = ["", "epochs", "kept", "scored", "smoothed training loss", "validation loss", "macro-F1", "best macro-F1"]
    table = Table("Losses and macro-F1 of the scored epochs", names, rows)
    alt = f"Lines of loss and macro-F1 by epoch for each of {n} folds; the figures follow."
    used = "kept and used for prediction."
    if run.refitted:
        used = "kept and scored; predict uses the networks that were then trained on all photos, which have no score."
    said = f"The weights of the best epochs by {run.config.monitor} are {used} {how}"
    return [Text(said), Drawing("curves", plot_curves(run), alt, table=table)]
