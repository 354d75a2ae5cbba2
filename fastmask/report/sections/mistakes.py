"""Mistakes: each photo's label and out-of-fold prediction, the highest losses, the most confident mistakes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastmask.decision.temperature import log_probabilities
from fastmask.heads import JOINT, UNKNOWN, Head, Heads
from fastmask.report.blocks import QUIET, RIGHT, WRONG, Album, Block, Shown, Text
from fastmask.report.material import Material
from fastmask.report.sections.confusion import name_of
from fastmask.report.style import Picture
from fastmask.report.thumbnails import plot_sheet
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.system.text import percent, shorten, shorten_middle, shorten_start

# mistakes in a report, heads of one of them that have their own line, and photos of one picture
MOST, _LINES, _MOST_PLOTTED = 24, 4, 200
# characters of a path or list of names, and of the name of a class under a photo
_NAME, CLASS = 60, 32


def answers(run: RunDirectory, head: str = JOINT) -> pd.DataFrame:
    """One row per photo: row (of `oof`), path, person, fold, true, predicted, probability, probability_true.

    `true` and `predicted` are class names, `probability` is that of the predicted class. The probability of a joint
    class is the product of its heads', or by a joint head. Without a label `true` is "" and `probability_true` NaN.
    Raises UsageError for an unknown head.
    """
    true, predicted = target_of(run.heads, run.true, head), target_of(run.heads, run.predicted, head)
    known = np.flatnonzero(true != UNKNOWN)
    probability_true = np.full(len(true), np.nan)
    probability_true[known] = probability_of(run.heads, run.probabilities[known], run.true[known], head)
    names = {int(code): name_of(run.heads, head, int(code)) for code in np.unique([true, predicted])}
    return pd.DataFrame(
        {
            "row": np.arange(len(true)),
            **{column: run.oof[column].to_numpy() for column in ("path", "person", "fold")},
            "true": [names[int(code)] for code in true],
            "predicted": [names[int(code)] for code in predicted],
            "probability": probability_of(run.heads, run.probabilities, run.predicted, head),
            "probability_true": probability_true,
        }
    )


def mistakes(run: RunDirectory, head: str = JOINT) -> pd.DataFrame:
    """The rows of `answers` with a wrong prediction, the most confident first.

    >>> wrong = fm.mistakes(run, "age")
    >>> wrong.columns.tolist()
    ['row', 'path', 'person', 'fold', 'true', 'predicted', 'probability', 'probability_true']
    >>> bool((wrong["true"] != wrong["predicted"]).all())
    True
    """
    found = answers(run, head)
    wrong = found[(found["true"] != "") & (found["true"] != found["predicted"])]
    return wrong.sort_values("probability", ascending=False, kind="stable").reset_index(drop=True)


def losses(run: RunDirectory, head: str = JOINT) -> pd.DataFrame:
    """The rows of `answers` with a label, and their loss, the highest first.

    The loss is -log of the probability of the true class; for the joint class, without a joint head, the sum over its
    heads. It is not the training loss, which may weight classes.
    """
    found = answers(run, head)
    found = found[found["true"] != ""]
    found = found.assign(loss=-log_probabilities(found["probability_true"].to_numpy()))
    return found.sort_values("loss", ascending=False, kind="stable").reset_index(drop=True)


def probability_of(heads: Heads, probabilities: np.ndarray, y: np.ndarray, head: str = JOINT) -> np.ndarray:
    """(N, classes of all heads) probabilities, (N, heads) known classes -> (N,) the probability of each class."""
    if head == JOINT and heads.joint_head is not None:
        joint = np.asarray(heads.joint_probabilities(probabilities), np.float64)
        return joint[np.arange(len(y)), heads.joint(y)]
    places = heads.joined if head == JOINT else (heads.position(head),)
    parts, rows = heads.split(probabilities), np.arange(len(y))
    return np.asarray(np.prod([parts[i][rows, y[:, i]] for i in places], axis=0, dtype=np.float64))


def plot_top_losses(run: RunDirectory, n: object = 16, head: str = JOINT, data: str | None = None) -> Picture:
    """The photos with the highest `losses`, each with its true and predicted class.

    `data` says where the photos are now if they have moved. Raises UsageError if they are not found.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= _MOST_PLOTTED:
        raise UsageError(f"n is {n!r}; expected a number of photos, an integer from 1 to {_MOST_PLOTTED}.")
    found = losses(run, head).head(int(n))
    if found.empty:
        raise UsageError(f"No photo has a label of {'all heads' if head == JOINT else head}.")
    shown = []
    for row, photo in zip(found.itertuples(), Material(run, data).photos_at(found["row"]), strict=True):
        if photo is None:
            continue
        lines = [(f"loss {row.loss:.2f}: true {percent(row.probability_true)}", QUIET), (row.true, "")]
        if row.true == row.predicted:
            lines.append(("predicted as such", RIGHT))
        else:
            # the probability has its own line, because the end of a long line is cut off
            lines += [(f"predicted {row.predicted}", WRONG), (f"with {percent(row.probability)}", WRONG)]
        shown.append(Shown(photo, row.path, lines))
    return plot_sheet(shown, title=f"Highest loss, {head}: -log of the probability of the true class")


def prediction_lines(run: RunDirectory, row: int) -> list[tuple[str, str]]:
    """The lines under a mistake: one per head that is wrong, and one for all that are right; `row` is that of `oof`."""
    heads, true, predicted = run.heads, run.true[row], run.predicted[row]
    parts = heads.split(run.probabilities[row])
    wrong = [i for i in heads.joined if true[i] not in (UNKNOWN, predicted[i])]
    right = [heads[i].decode(predicted[i]) for i in heads.joined if true[i] == predicted[i]]
    lines = [
        (
            f"{shorten_middle(heads[i].decode(true[i]), CLASS)}{_number(run, heads[i], row)} → "
            f"{shorten_middle(heads[i].decode(predicted[i]), CLASS)} {percent(parts[i][predicted[i]])}",
            WRONG,
        )
        for i in wrong[:_LINES]
    ]
    if len(wrong) > _LINES:
        lines.append((f"and {len(wrong) - _LINES} more heads", WRONG))
    return lines + ([(f"right: {shorten(', '.join(right), _NAME)}", RIGHT)] if right else [])


def _number(run: RunDirectory, head: Head, row: int) -> str:
    """The number behind the true class of a photo, in brackets, if the run has it."""
    column = f"{head.name}_value"
    if not head.bounds or column not in run.folds:
        return ""
    # `folds` also has the photos of folds that are not trained
    (value,) = run.folds[column][run.folds["path"] == run.oof["path"].iloc[row]]
    return "" if np.isnan(value) else f" ({value:g})"


def section(material: Material) -> list[Block]:
    """The most confident mistakes, one per person."""
    run, target = material.run, material.labelled[0]
    found = mistakes(run, target)
    if found.empty:
        return [Text("No photo has a wrong prediction.")]
    shown, photos, unreadable = most_confident(material, found)
    has_product = target == JOINT and len(run.heads.classified) > 1
    album = []
    for row, photo in zip(shown.itertuples(), photos, strict=True):
        product = [(f"all heads together {percent(row.probability)}", "")] if has_product else []
        lines = [*product, *prediction_lines(run, row.row), (shorten_start(row.path, _NAME), QUIET)]
        alt = f"Photo of a true {row.true}, predicted {row.predicted} ({percent(row.probability)})"
        album.append(Shown(photo, alt, lines))
    n, known = len(found), int(material.has_label(target).sum())
    said = (
        f"{n:,} of {known:,} photos ({percent(n / known)}) have a wrong prediction"
        f"{'' if target == JOINT else f' of {target}'}. The {len(album)} most confident ones are shown, at most one "
        "per person: under each photo true class → predicted class, with its probability."
    )
    if has_product:
        learned = "as the joint head has learned it" if run.heads.joint_head is not None else "the product of the heads"
        said += f" They are sorted by the probability of all heads together, {learned}."
    blocks: list[Block] = [Text(said)]
    if material.missing_photos:
        missing = (
            f"{len(material.missing_photos):,} of the {len(run.folds):,} photos of this run no longer exist, such as "
            f"{material.missing_photos[0]}. They are not shown here and below; the figures above include them."
        )
        blocks.insert(0, Text(missing, warning=True))
    if unreadable:
        blocks.append(Text(f"{unreadable} more cannot be read."))
    return [*blocks, Album("mistakes", album)]


def most_confident(material: Material, found: pd.DataFrame) -> tuple[pd.DataFrame, list[np.ndarray], int]:
    """The first readable rows of `mistakes`, one per person, their photos, and how many are unreadable."""
    first = found.drop_duplicates("person").head(MOST)
    photos = material.photos_at(first["row"])
    readable = np.array([photo is not None for photo in photos], bool)
    return first[readable], [photo for photo in photos if photo is not None], int((~readable).sum())
