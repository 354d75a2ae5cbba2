"""Classes: F1, precision, recall and number of photos of each class."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, UNKNOWN
from fastmask.report.blocks import Block, Drawing, Table, Text, rounded, subset_note
from fastmask.report.material import Material
from fastmask.report.sections.confusion import label_of, name_of
from fastmask.report.style import FAINT, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.scoring import f1, target_of
from fastmask.system.text import count

# most classes of a target in the report, most heads, and characters of a name
MOST, _HEADS, _NAME = 36, 8, 28


def class_scores(run: RunDirectory, target: str = JOINT) -> pd.DataFrame:
    """One row per class of a head or the joint class: name, label, f1, precision, recall, n, persons, answers.

    `label` is the name shortened for a plot. `n` counts the photos of the class and `answers` the photos predicted as
    the class, among photos with a label. The classes are those of macro-F1, which include those that are only
    predicted. Precision is NaN without a prediction, recall without a photo.
    """
    true, predicted = (target_of(run.heads, y, target) for y in (run.true, run.predicted))
    known = true != UNKNOWN
    classes = run.classes[target]
    frame = pd.DataFrame({"true": true[known], "predicted": predicted[known], "person": run.persons[known]})
    right = frame["true"][frame["true"] == frame["predicted"]]
    n, answers, hits = (
        column.value_counts().reindex(classes, fill_value=0).to_numpy()
        for column in (frame["true"], frame["predicted"], right)
    )
    nothing = np.full(len(classes), np.nan)
    return pd.DataFrame(
        {
            "name": [name_of(run.heads, target, code) for code in classes],
            "label": [label_of(run.heads, target, code, _NAME) for code in classes],
            "f1": f1(hits, answers, n),
            "precision": np.divide(hits, answers, out=nothing.copy(), where=answers > 0),
            "recall": np.divide(hits, n, out=nothing.copy(), where=n > 0),
            "n": n,
            "persons": frame.groupby("true")["person"].nunique().reindex(classes, fill_value=0).to_numpy(),
            "answers": answers,
        }
    )


@styled()
def plot_classes(scores: dict[str, pd.DataFrame]) -> Picture:
    """A bar of F1 per class with its number of photos, in a group per target, from `class_scores`."""
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
    """F1 of the classes of the joint class and of each head, or of the worst heads."""
    worst = material.worst_heads(_HEADS, "macro_f1")
    names = [target for target in material.labelled if target == JOINT or target in worst]
    scores = {name: class_scores(material.run, name) for name in names}
    shown = {name: frame.loc[frame["n"].nlargest(MOST).index.sort_values()] for name, frame in scores.items()}
    blocks = subset_note(len(worst), len(material.labelled_heads), "with the lowest macro-F1")
    for name, frame in scores.items():
        if len(frame) > MOST:
            blocks.append(Text(f"Only the {MOST} of {len(frame)} classes of {name} with the most photos are shown."))
    lowest = min(shown[names[0]].itertuples(), key=lambda row: row.f1)
    alt = f"Bars of F1 per class; the lowest of {names[0]} is {lowest.label} with {lowest.f1:.2f}; the figures follow."
    rows = [
        [
            f"{target}: {row.name}",
            *map(rounded, (row.f1, row.precision, row.recall)),
            *(f"{n:,}" for n in (row.n, row.persons, row.answers)),
        ]
        for target, frame in shown.items()
        for row in frame.itertuples()
    ]
    columns = ["", "F1", "precision", "recall", "photos", "persons", "predicted"]
    table = Table("F1, precision and recall by class", columns, rows)
    return [*blocks, Drawing("classes", plot_classes(shown), alt, table=table)]
