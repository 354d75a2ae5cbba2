"""Confusion: how often each class is predicted as each other class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.report.blocks import Block, Drawing, Table, Text, shorten_parts, subset_note
from fastmask.report.material import Material
from fastmask.report.style import FAINT, INK, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import count, join_some, percent, shorten, shorten_middle

# most classes of a matrix, pairs of a table, heads of a report
MOST, _PAIRS, _HEADS = 24, 12, 6
OTHERS = "others"
# characters of a name in a picture and in a sentence; the share above which the text of a cell is white
_NAME, _LONG, _FULL = 24, 60, 0.8


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often each class (row) is predicted as each class (column): `counts` (classes, classes).

    If there are too many classes, those with the most mistakes, and OTHERS. `labels` are the names shortened for a
    plot. Every `group` rows have the same class of the first head; 0 if there is no grouping.
    """

    target: str
    names: Sequence[str]
    labels: Sequence[str]
    counts: np.ndarray
    group: int = 0

    @property
    def shares(self) -> np.ndarray:
        """(classes, classes) the share of each row's photos; 0 in an empty row."""
        total = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, total, out=np.zeros(self.counts.shape), where=total > 0)


def pairs(run: RunDirectory, target: str = JOINT) -> pd.DataFrame:
    """One row per pair that occurs: class numbers true and predicted, n, and `share` of the photos of the true class.

    Photos without a label are left out.
    """
    true, predicted = target_of(run.heads, run.true, target), target_of(run.heads, run.predicted, target)
    known = true != UNKNOWN
    frame = pd.DataFrame({"true": true[known], "predicted": predicted[known]})
    counted = frame.value_counts(["true", "predicted"]).rename("n").reset_index()
    return counted.assign(share=counted["n"] / counted.groupby("true")["n"].transform("sum"))


def most_confused(found: pd.DataFrame) -> pd.DataFrame:
    """The mistakes among `pairs`, the most frequent first."""
    wrong = found[found["true"] != found["predicted"]]
    return wrong.sort_values(["n", "true", "predicted"], ascending=[False, True, True]).reset_index(drop=True)


def confusion(run: RunDirectory, target: str = JOINT, most: int = MOST) -> Confusion:
    """The confusion of a head or the joint class: of all classes, or of the `most` with the most mistakes.

    Raises UsageError if no photo has the label.
    """
    found = pairs(run, target)
    if found.empty:
        raise UsageError(f"No photo has a label of {'all heads' if target == JOINT else target}.")
    heads = run.heads
    size = heads.n_joint if target == JOINT else len(heads[target].classes)
    shown, group = list(range(size)) if size <= most else _confused(found, most), 0
    if target == JOINT and len(heads.classified) > 1 and size <= most:
        group = size // len(heads[heads.classified[0]].classes)
    place = {code: i for i, code in enumerate(shown)}
    last = len(shown)
    counts = np.zeros((last + 1, last + 1), np.int64)
    for true, predicted, n in zip(found["true"], found["predicted"], found["n"], strict=True):
        counts[place.get(true, last), place.get(predicted, last)] += n
    names = [name_of(heads, target, code) for code in shown]
    labels = [label_of(heads, target, code, _NAME) for code in shown]
    if counts[last].any() or counts[:, last].any():
        return Confusion(target, [*names, OTHERS], [*labels, OTHERS], counts, group)
    return Confusion(target, names, labels, counts[:last, :last], group)


def name_of(heads: Heads, target: str, code: int) -> str:
    """The name of a class of a head or of the joint class."""
    return heads.joint_name(code) if target == JOINT else heads[target].decode(code)


def label_of(heads: Heads, target: str, code: int, most: int) -> str:
    """`name_of` in at most `most` characters; a joint class keeps a part of each head's name."""
    if target != JOINT:
        return shorten_middle(name_of(heads, target, code), most)
    return shorten_parts([heads[i].decode(heads.unjoint(np.array([code]))[0][i]) for i in heads.joined], most)


def _confused(found: pd.DataFrame, most: int) -> list[int]:
    """The class numbers with the most mistakes, true or predicted, in order; without mistakes the most frequent."""
    wrong = most_confused(found)
    of = wrong if len(wrong) else found
    errors = of.groupby("true")["n"].sum().add(of.groupby("predicted")["n"].sum(), fill_value=0)
    return sorted(errors.sort_values(ascending=False, kind="stable").index[:most].tolist())


@styled()
def plot_confusion(run: RunDirectory, head: str = JOINT, most: int = MOST) -> Picture:
    """The confusion of a head or the joint class, one row per true class: counts and shares of the row.

    Raises UsageError for an unknown head, or if no photo has the label.
    """
    found = confusion(run, head, most)
    size = len(found.names)
    cell = 0.74 if size <= 4 else 0.62 if size <= 8 else 0.47
    names = found.labels
    room = 0.35 + 0.075 * max(map(len, names))
    turned = max(map(len, names)) * 0.075 > cell * 0.95
    below = room if turned else 0.45
    figure = Picture(figsize=(max(3.0, size * cell + room + 0.55), size * cell + below + 0.45), layout="constrained")
    axes = figure.subplots()
    _cells(axes, found, 8.5 if size <= 4 else 7.5 if size <= 8 else 6.4)
    totals = found.counts.sum(axis=1)
    places = np.arange(size) + 0.5
    axes.set_xticks(places, names, rotation=90 if turned else 0)
    axes.set_yticks(places, names)
    axes.tick_params(length=0)
    right_axis = axes.secondary_yaxis("right")
    right_axis.set_yticks(places, [f"{n:,}" for n in totals])
    right_axis.tick_params(length=0, labelcolor=QUIET)
    right_axis.spines["right"].set_visible(False)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        xlim=(0, size),
        ylim=(size, 0),
        aspect="equal",
        title=shorten(head, 18 if size < 4 else 40),
    )
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _cells(axes: Axes, found: Confusion, points: float) -> None:
    """Cells coloured by their share of the row, correct predictions in one colour and wrong ones in another."""
    shares, size = found.shares, len(found.names)
    right = np.eye(size, dtype=bool)
    for colour, of in ((SERIES[0], right), (SERIES[1], ~right)):
        map_ = LinearSegmentedColormap.from_list("", [f"{colour}10", f"{colour}ff"])
        shown = np.ma.array(shares, mask=~of | (found.counts == 0))
        axes.pcolormesh(shown, cmap=map_, vmin=0, vmax=1, edgecolors="none")
    for line in range(size + 1):
        axes.axhline(line, color=FAINT, linewidth=0.5)
        axes.axvline(line, color=FAINT, linewidth=0.5)
    for row, column in np.argwhere(found.counts):
        share = shares[row, column]
        text = f"{found.counts[row, column]:,}\n{percent(share)}"
        shade = "#ffffff" if share > _FULL else INK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=points, color=shade)
    for line in range(found.group, size, found.group) if found.group else ():
        axes.axhline(line, color=QUIET, linewidth=0.7)
        axes.axvline(line, color=QUIET, linewidth=0.7)


def section(material: Material) -> list[Block]:
    """The confusion of the joint class and of each head, or of the worst heads, and of finer bands."""
    worst = material.worst_heads(_HEADS)
    blocks: list[Block] = [
        Text(
            "A row is a true class: how its photos were predicted, by models that have not seen them. A cell has the "
            "count and its share of the row; the number of photos of the row is on the right."
        ),
        *subset_note(len(worst), len(material.labelled_heads), "with the lowest accuracy"),
    ]
    without = [target for target in material.targets if target not in material.labelled]
    if without:
        blocks.append(Text(f"Left out because no photo has a label: {join_some(without)}."))
    finer = [head.name for head in material.run.heads if head.bands_of and material.has_label(head.name).any()]
    names = file_names([*worst, *finer])
    shown = [*(target for target in material.labelled if target == JOINT or target in worst), *finer]
    return [*blocks, *(_drawing(material.run, target, f"confusion-{names.get(target, JOINT)}") for target in shown)]


def _drawing(run: RunDirectory, target: str, name: str) -> Drawing:
    found = most_confused(pairs(run, target))
    rows = [
        [f"{name_of(run.heads, target, true)} → {name_of(run.heads, target, predicted)}", f"{n:,}", percent(share)]
        for true, predicted, n, share in found.head(_PAIRS).itertuples(index=False)
    ]
    title = "Joint class" if target == JOINT else f"Head {target}"
    said = f"{title}: {count(int(found['n'].sum()), 'wrong prediction')}"
    if rows:
        first = (label_of(run.heads, target, found[column].iloc[0], _LONG) for column in ("true", "predicted"))
        said += f", most often {' → '.join(first)} ({rows[0][1]})"
    table = Table("Most frequent mistakes", ["", "photos", "of its row"], rows) if rows else None
    return Drawing(name, plot_confusion(run, target), f"Confusion matrix. {said}.", f"{said}.", table)


def file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name per name: its ASCII letters and digits, or its number if these are empty or not unique."""
    plain = ["".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")[:40] for name in names]
    return {
        name: word if word and plain.count(word) == 1 and word != JOINT else f"head-{number}"
        for number, (name, word) in enumerate(zip(names, plain, strict=True), 1)
    }
