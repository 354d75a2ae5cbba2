"""Confusion: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.report.blocks import Block, Drawing, Table, Text, squeezed_parts
from fastmask.report.material import Material
from fastmask.report.style import FAINT, INK, QUIET, SERIES, Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import count, join_some, percent, shorten, shorten_middle

# classes of a matrix, beyond which only those that are confused most are shown; pairs of a table; heads of a report
MOST, _PAIRS, _HEADS = 24, 12, 6
OTHERS = "others"
# characters of a name in a picture and in a sentence, and the share from which a cell is so full that its text is white
_NAME, _LONG, _FULL = 24, 60, 0.8


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often each class, by its row, was answered by each, by its column: `counts` (classes, classes).

    Of very many classes those that are confused most, and the OTHERS. `labels` are the names as short as a picture
    needs them. `group` classes in a row belong together; 0 where
    none do.
    """

    target: str
    names: Sequence[str]
    labels: Sequence[str]
    counts: np.ndarray
    group: int = 0

    @property
    def shares(self) -> np.ndarray:
        """(classes, classes) of each row's photos; 0 in a row without any."""
        total = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, total, out=np.zeros(self.counts.shape), where=total > 0)


def pairs(run: RunDirectory, target: str = JOINT) -> pd.DataFrame:
    """How often each class number was answered by each: true, predicted, n, and `share` of the photos of its truth.

    Of a head or the joint class, photos without the label left out; only pairs that occur.
    """
    true, predicted = target_of(run.heads, run.true, target), target_of(run.heads, run.predicted, target)
    known = true != UNKNOWN
    frame = pd.DataFrame({"true": true[known], "predicted": predicted[known]})
    counted = frame.value_counts(["true", "predicted"]).rename("n").reset_index()
    return counted.assign(share=counted["n"] / counted.groupby("true")["n"].transform("sum"))


def most_confused(found: pd.DataFrame) -> pd.DataFrame:
    """The pairs of `pairs` that are mistakes, the most frequent first."""
    wrong = found[found["true"] != found["predicted"]]
    return wrong.sort_values(["n", "true", "predicted"], ascending=[False, True, True]).reset_index(drop=True)


def confusion(run: RunDirectory, target: str = JOINT, most: int = MOST) -> Confusion:
    """The confusion of a head or the joint class: of all its classes, or the `most` confused of more than that.

    Raises UsageError where no photo has the label.
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
    """`name_of` in at most so many characters; of a joint class something of each head is left."""
    if target != JOINT:
        return shorten_middle(name_of(heads, target, code), most)
    return squeezed_parts([heads[i].decode(heads.unjoint(np.array([code]))[0][i]) for i in heads.joined], most)


def _confused(found: pd.DataFrame, most: int) -> list[int]:
    """The classes with the most mistakes, of either side, in their order; without any, the most frequent."""
    wrong = most_confused(found)
    of = wrong if len(wrong) else found
    errors = of.groupby("true")["n"].sum().add(of.groupby("predicted")["n"].sum(), fill_value=0)
    return sorted(errors.sort_values(ascending=False, kind="stable").index[:most].tolist())


@styled()
def plot_confusion(run: RunDirectory, head: str = JOINT, most: int = MOST) -> Picture:
    """The confusion of a head or the joint class, rows the truth: counts, and the share of each row's photos.

    Raises UsageError for a head that there is not, or of which no photo has a label.
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
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, [f"{n:,}" for n in totals])
    beside.tick_params(length=0, labelcolor=QUIET)
    beside.spines["right"].set_visible(False)
    axes.set(
        xlabel="answered",
        ylabel="true",
        xlim=(0, size),
        ylim=(size, 0),
        aspect="equal",
        title=shorten(head, 18 if size < 4 else 40),
    )
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _cells(axes: Axes, found: Confusion, points: float) -> None:
    """Each cell as full of colour as the share of its row that it holds: right answers in one, wrong in another."""
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
    """The confusion of the joint class, then of the heads, those with the most mistakes where there are many."""
    run = material.run
    known = [target for target in material.targets if material.known(target).any()]
    if not known:
        raise UsageError("No photo has a label.")
    heads = [target for target in known if target != JOINT]
    worst = sorted(heads, key=lambda head: material.scores.heads[head].accuracy)[:_HEADS]
    shown = [target for target in known if target == JOINT or target in worst]
    without = [target for target in material.targets if target not in known]
    blocks: list[Block] = [
        Text(
            "A row is a true class: how its photos were answered, by the models that have not seen them. The count "
            "stands over its share of the row, the row's photos on the right."
        )
    ]
    if len(worst) < len(heads):
        blocks.append(Text(f"Of {len(heads)} heads the {len(worst)} that are right least often are shown."))
    if without:
        blocks.append(Text(f"Without a label, and left out: {join_some(without)}."))
    names = file_names([target for target in shown if target != JOINT])
    return [*blocks, *(_drawing(run, target, f"confusion-{names.get(target, JOINT)}") for target in shown)]


def _drawing(run: RunDirectory, target: str, name: str) -> Drawing:
    found = most_confused(pairs(run, target))
    rows = [
        [f"{name_of(run.heads, target, true)} → {name_of(run.heads, target, said)}", f"{n:,}", percent(share)]
        for true, said, n, share in found.head(_PAIRS).itertuples(index=False)
    ]
    wrong = int(found["n"].sum())
    what = "Joint class" if target == JOINT else f"Head {target}"
    told = f"{what}: {count(wrong, 'wrong answer')}"
    if rows:
        true, said = (label_of(run.heads, target, found[column].iloc[0], _LONG) for column in ("true", "predicted"))
        told += f", most often {true} → {said} ({rows[0][1]})"
    table = Table("Most frequent mistakes", ["", "photos", "of its row"], rows) if rows else None
    return Drawing(name, plot_confusion(run, target), f"Confusion matrix. {told}.", f"{told}.", table)


def file_names(names: Sequence[str]) -> dict[str, str]:
    """For each name one of a file: its plain letters, or its number where these are none, or another's too."""
    plain = ["".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")[:40] for name in names]
    return {
        name: word if word and plain.count(word) == 1 and word != JOINT else f"head-{number}"
        for number, (name, word) in enumerate(zip(names, plain, strict=True), 1)
    }
