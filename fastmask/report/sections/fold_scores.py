"""Fold scores: the score of each fold next to that of all folds, to show how much a single fold may mislead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fastmask.heads import JOINT
from fastmask.report.blocks import Block, Drawing, Table, Text, rounded, subset_note
from fastmask.report.material import Material
from fastmask.report.sections.curves import fold_colours
from fastmask.report.style import FAINT, INK, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.scoring import Score, Scores, score_heads
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some, shorten

_HEADS, _NAME = 10, 28
# how far beyond the dots the axis may extend for an interval, at least
_ROOM = 0.1


def fold_scores(run: RunDirectory) -> pd.DataFrame:
    """One row per fold and target ("joint" or a head): fold, target, macro_f1, accuracy, n; NaN without a label.

    Macro-F1 is the mean over the classes of the whole run, so a class that a fold lacks counts as 0.
    """
    fold_of, rows = run.oof["fold"].to_numpy(), []
    for fold in np.unique(fold_of).tolist():
        here = fold_of == fold
        scores = score_heads(run.heads, run.predicted[here], run.true[here], None, 0, run.classes)
        for target, score in ((JOINT, scores.joint), *scores.heads.items()):
            rows.append((fold, target, score.macro_f1, score.accuracy, score.n))
    return pd.DataFrame(rows, columns=["fold", "target", "macro_f1", "accuracy", "n"])


def _describe_absent(run: RunDirectory) -> str:
    """The highest macro-F1 of the joint class that folds without a photo of some classes can have; "" if none lacks."""
    classes, true = run.classes[JOINT], run.heads.joint(run.true)
    fold_of = run.oof["fold"].to_numpy()
    present = {fold: np.isin(classes, true[fold_of == fold]).mean() for fold in np.unique(fold_of).tolist()}
    lacking = [f"{share:.3f} in fold {fold}" for fold, share in present.items() if share < 1]
    if not lacking:
        return ""
    return (
        f" A class without a photo in a fold counts as 0 there: the joint macro-F1 is at most {join_some(lacking, 5)}."
    )


@styled()
def plot_folds(frame: pd.DataFrame, scores: Scores) -> Picture:
    """Per target, macro-F1 of each fold as a dot, and of all folds with its interval as a cross."""
    targets = list(frame["target"].unique())
    whole = {JOINT: scores.joint, **scores.heads}
    figure = Picture(figsize=(7.6, 0.95 + 0.42 * len(targets)), layout="constrained")
    axes = figure.subplots()
    colours = fold_colours(list(frame["fold"].unique()))
    for row, target in enumerate(targets):
        axes.axhline(row, color=FAINT, linewidth=0.8)
        score = whole[target]
        if score.macro_f1_interval:
            axes.plot(score.macro_f1_interval, [row + 0.2] * 2, color=INK, linewidth=1.4)
            axes.plot(score.macro_f1, row + 0.2, marker="x", color=INK, markersize=6)
    for fold, of in frame.groupby("fold"):
        rows = [targets.index(target) - 0.08 for target in of["target"]]
        axes.plot(of["macro_f1"], rows, "o", color=colours[fold], markersize=6, alpha=0.9, label=f"fold {fold}")
    axes.plot([], [], marker="x", color=INK, linewidth=1.4, label="all, 95 % interval")
    axes.set_yticks(range(len(targets)), [shorten(target, _NAME) for target in targets])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="macro-F1", ylim=(len(targets) - 0.4, -0.6), xlim=_limits(frame, whole))
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower left", ncols=6, columnspacing=1.4, handletextpad=0.4)
    return figure


def _limits(frame: pd.DataFrame, scores: Mapping[str, Score]) -> tuple[float, float]:
    """The limits of the axis; a very wide interval extends beyond them, to keep the dots apart."""
    whole = [scores[target] for target in frame["target"].unique()]
    points = [point for point in (*frame["macro_f1"], *(score.macro_f1 for score in whole)) if np.isfinite(point)]
    ends = [end for score in whole for end in score.macro_f1_interval or ()]
    if not points:
        return 0.0, 1.0
    low, high = min(points), max(points)
    room = max(_ROOM, (high - low) / 2)
    edge = (high - low + 2 * room) / 40
    return max(low - room, min([low, *ends])) - edge, min(high + room, max([high, *ends])) + edge


def section(material: Material) -> list[Block]:
    """The scores by fold."""
    run = material.run
    frame = fold_scores(run)
    if frame["fold"].nunique() < 2:
        raise UsageError("There is only one fold, and its score is the one above.")
    persons = run.oof.groupby("fold")["person"].nunique()
    photos = run.oof["fold"].value_counts()
    targets = list(material.targets)[: _HEADS + 1]
    shown = frame[frame["target"].isin(targets)]
    wide = shown.pivot(index="fold", columns="target", values="macro_f1")[targets]
    rows = [
        [f"fold {fold}", f"{photos[fold]:,}", f"{persons[fold]:,}", *map(rounded, figures)]
        for fold, figures in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    said, others = "Each fold is predicted by models that have not seen its persons.", "persons"
    if run.is_leaky:
        said, others = "The split is leaky: each fold is predicted by models that may have seen its persons.", "photos"
    first = wide[targets[0]]
    ends = f"{rounded(first.min(), 3)} to {rounded(first.max(), 3)}"
    return [
        Text(f"{said} Each has other {others}, so the scores of folds differ by chance, too.{_describe_absent(run)}"),
        *subset_note(len(targets) - 1, len(material.targets) - 1, "that come first"),
        Drawing(
            "folds",
            plot_folds(shown, material.scores),
            f"Dots of macro-F1 by fold: {targets[0]} from {ends}; the figures follow.",
            table=Table("Macro-F1 by fold", ["", "photos", "persons", *targets], rows),
        ),
    ]
