"""Curves: how each fold learned, and which of its epochs were kept and which the score is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fastmask.report.blocks import Block, Drawing, Table, Text, rounded
from fastmask.report.material import Material, chosen_epochs, kept_epochs
from fastmask.report.style import INK, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError

COLUMNS = ("train_loss", "valid_loss", "macro_f1")


def curves(run: RunDirectory) -> pd.DataFrame:
    """One row an epoch a trained fold: fold, epoch, train_loss, valid_loss, macro_f1, kept, chosen; epochs from 1.

    `kept` says whether its weights were, `chosen` whether the score is of it. What a history lacks is NaN. Raises
    UsageError for an ensemble.
    """
    run.check_trained()
    chosen, frames = chosen_epochs(run), []
    for fold in run.trained_folds:
        history = run.history(fold)
        if not np.isfinite(history["epoch"]).all():
            raise DataError(f"{run.fold_path(fold)} has a history without the number of an epoch; restore it.")
        epochs = history["epoch"].astype(int)
        columns = {name: history.get(name, np.nan) for name in COLUMNS}
        marks = {"kept": epochs.isin(kept_epochs(run, fold)), "chosen": epochs.isin(chosen.get(fold, []))}
        frames.append(pd.DataFrame({"fold": fold, "epoch": epochs + 1, **columns, **marks}))
    empty = pd.DataFrame(columns=["fold", "epoch", *COLUMNS, "kept", "chosen"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def fold_colours(folds: Sequence[int]) -> dict[int, Any]:
    """A colour a fold."""
    if len(folds) <= len(SERIES):
        return dict(zip(folds, SERIES, strict=False))
    return dict(zip(folds, mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(folds))), strict=True))


@styled()
def plot_curves(run: RunDirectory) -> Picture:
    """Training and validation loss and macro-F1 of each fold; a disc marks the epochs that are scored, a ring the kept.

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
        losses.plot(of["epoch"], of["valid_loss"], linewidth=1.6, **colour)
        scores.plot(of["epoch"], of["macro_f1"], linewidth=1.6, marker="." if few else None, **colour)
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
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label="training"),
        Line2D([], [], color=QUIET, linestyle="", marker="o", markersize=4.5, label="scored"),
        Line2D([], [], color=QUIET, linestyle="", marker="o", markersize=9, markerfacecolor="none", label="kept"),
    ]
    return [*folds, *kinds]


def section(material: Material) -> list[Block]:
    """The curves, and what they come to fold by fold."""
    run = material.run
    frame = curves(run)
    if frame.empty:
        return [Text("No fold has been trained to its end yet.")]
    how = (
        "the other folds chose it (or them), so no figure judges photos by a choice that was made on them"
        if frame["fold"].nunique() > 1
        else "with a single fold nobody else can choose, so it is the last"
    )
    rows = []
    for fold, of in frame.groupby("fold"):
        best = of["macro_f1"].max()
        scored = of[of["chosen"]]
        rows.append(
            [
                f"fold {fold}",
                str(len(of)),
                ", ".join(map(str, of["epoch"][of["kept"]])),
                ", ".join(map(str, scored["epoch"])),
                *(rounded(scored[name].mean()) for name in COLUMNS),
                rounded(best),
            ]
        )
    names = ["", "epochs", "kept", "scored", "training loss", "validation loss", "macro-F1", "best macro-F1"]
    table = Table("Losses and macro-F1 are those of the scored epochs", names, rows)
    said = (
        f"Kept are the weights of the best epochs by {run.config.monitor}, which predict. Scored is an epoch because "
        f"{how}."
    )
    alt = f"Lines of loss and macro-F1 by epoch, one a fold, {frame['fold'].nunique()} in all; the figures follow."
    return [Text(said), Drawing("curves", plot_curves(run), alt, table=table)]
