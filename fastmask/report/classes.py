"""Classes: F1 of each class, and how many photos it stands on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, UNKNOWN
from fastmask.report.blocks import Block, Drawing, Table, Text, rounded
from fastmask.report.confusion import label_of, name_of
from fastmask.report.material import Material
from fastmask.report.style import FAINT, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.scoring import f1, known_classes, target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import count

# classes of a target in the report: of more those that have the most photos
MOST, _HEADS, _NAME = 36, 8, 28


def class_scores(run: RunDirectory, target: str = JOINT) -> pd.DataFrame:
    """One row a class of a head or the joint class: name, label, f1, precision, recall, n, persons, answers.

    In the order of the classes; `label` is the name as short as a picture needs it. `n` counts its photos and `answers`
    those that were taken for it, among the photos whose label is known. Classes that the data has nowhere are left out,
    as they are of the macro-F1. Precision is NaN without an answer.
    """
    true, predicted = (target_of(run.heads, y, target) for y in (run.true, run.predicted))
    known = true != UNKNOWN
    classes = known_classes(target_of(run.heads, run.y, target))
    frame = pd.DataFrame({"true": true[known], "predicted": predicted[known], "person": run.persons[known]})
    n = frame["true"].value_counts().reindex(classes, fill_value=0).to_numpy()
    answers = frame["predicted"].value_counts().reindex(classes, fill_value=0).to_numpy()
    right = frame["true"][frame["true"] == frame["predicted"]].value_counts().reindex(classes, fill_value=0).to_numpy()
    nothing = np.full(len(classes), np.nan)
    return pd.DataFrame(
        {
            "name": [name_of(run.heads, target, code) for code in classes],
            "label": [label_of(run.heads, target, code, _NAME) for code in classes],
            "f1": f1(right, answers, n),
            "precision": np.divide(right, answers, out=nothing.copy(), where=answers > 0),
            "recall": np.divide(right, n, out=nothing.copy(), where=n > 0),
            "n": n,
            "persons": frame.groupby("true")["person"].nunique().reindex(classes, fill_value=0).to_numpy(),
            "answers": answers,
        }
    )


@styled()
def plot_classes(scores: dict[str, pd.DataFrame]) -> Picture:
    """A bar of F1 a class, in a group a target, each with the number of its photos; see `class_scores`."""
    rows = sum(map(len, scores.values())) + 1.4 * len(scores)
    figure = Picture(figsize=(8.4, 0.5 + 0.225 * rows), layout="constrained")
    axes = figure.subplots()
    y, places, names = 0.0, [], []
    for target, frame in scores.items():
        axes.text(0, y, target, fontweight="bold", va="center", ha="left")
        y += 1
        for row in frame.itertuples():
            axes.barh(y, 1, color=FAINT, height=0.62, alpha=0.55)
            axes.barh(y, row.f1, color=SERIES[0], height=0.62)
            axes.text(1.015, y, f"{row.f1:.2f}", va="center")
            axes.text(1.11, y, f"{count(row.n, 'photo')}, {count(row.persons, 'person')}", va="center", color=QUIET)
            places.append(y)
            names.append(row.label)
            y += 1
        mean = frame["f1"].mean()
        axes.plot([mean] * 2, [y - len(frame) - 0.5, y - 0.5], color=SERIES[1], linewidth=1.2)
        y += 0.4
    axes.set_yticks(places, names)
    axes.tick_params(length=0)
    axes.set(xlim=(0, 1.5), ylim=(y - 0.4, -0.6), xticks=np.linspace(0, 1, 6))
    axes.set_xlabel("F1 (the line: macro-F1)", loc="left")
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def section(material: Material) -> list[Block]:
    """F1 of the classes of the joint class and of each head, the worst heads where there are many."""
    run = material.run
    heads = [target for target in material.targets if target != JOINT and material.known(target).any()]
    worst = sorted(heads, key=lambda head: material.scores.heads[head].macro_f1)[:_HEADS]
    # of a single head the joint class is the same
    names = [t for t in material.targets if (t == JOINT and material.known(t).any()) or t in worst]
    if not names:
        raise UsageError("No photo has a label.")
    scores = {name: class_scores(run, name) for name in names}
    shown = {name: frame.loc[frame["n"].nlargest(MOST).index.sort_values()] for name, frame in scores.items()}
    blocks: list[Block] = []
    if len(worst) < len(heads):
        blocks.append(Text(f"Of {len(heads)} heads the {len(worst)} of the lowest macro-F1 are shown."))
    cut_off = [name for name in names if len(shown[name]) < len(scores[name])]
    blocks += [
        Text(f"Of the {len(scores[name])} classes of {name} the {MOST} with the most photos.") for name in cut_off
    ]
    lowest = min(shown[names[0]].itertuples(), key=lambda row: row.f1)
    alt = f"Bars of F1 a class; of {names[0]} the lowest is {lowest.label} with {lowest.f1:.2f}; the figures follow."
    table = Table("F1, precision and recall by class", _COLUMNS, _rows(shown))
    return [*blocks, Drawing("classes", plot_classes(shown), alt, table=table)]


_COLUMNS = ["", "F1", "precision", "recall", "photos", "persons", "answered"]


def _rows(scores: dict[str, pd.DataFrame]) -> Sequence[Sequence[str]]:
    return [
        [
            f"{target}: {row.name}",
            *(rounded(figure) for figure in (row.f1, row.precision, row.recall)),
            *(f"{count:,}" for count in (row.n, row.persons, row.answers)),
        ]
        for target, frame in scores.items()
        for row in frame.itertuples()
    ]
