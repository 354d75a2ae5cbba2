"""Label errors: labels of photos and persons that out-of-fold predictions contradict, by confident learning.

The confident joint estimates how many labels of a head are wrong; the least probable labels are reported
(Northcutt, Jiang, Chuang: Confident Learning, 2021). Probabilities are at each head's temperature, so that heads can be
ranked together. cleanlab does the same, but rounds the joint and has no lower bound for thresholds.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.decision.persons import average_persons, shared_heads
from fastmask.decision.temperature import apply_temperature, fit_temperature
from fastmask.heads import UNKNOWN
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError
from fastmask.system.text import count

COLUMNS = ("person", "path", "column", "value", "label", "suggested", "probability", "proposed")
# the value of the column "proposed" for a fix by the OOF prediction that was not checked yet
BY_OOF = "oof"


@dataclass(frozen=True)
class LabelError:
    """A label that is probably wrong, for all photos of a person (`whole`), or only for those in `paths`.

    `probability` is that of the class `suggested`, `self_confidence` that of the `label` given. `value` is the class
    that a fix writes, or "" (unknown) if classes are bands of a number. `of` is the number of persons or photos
    checked.
    """

    head: str
    person: str
    paths: tuple[str, ...]
    whole: bool
    label: str
    suggested: str
    value: str
    probability: float
    self_confidence: float
    of: int


def class_thresholds(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities, (N,) labels -> (classes,) mean probability of a class over its photos.

    At or above it a prediction counts as confident. It is at least 1 / classes, since the mean over a few labels may be
    near 0 and would make any prediction confident; it is infinite for a class without labels.
    """
    n = np.bincount(y, minlength=probabilities.shape[1])
    own = np.bincount(y, probabilities[np.arange(len(y)), y], minlength=len(n))
    mean = np.divide(own, n, out=np.full(len(n), np.inf), where=n > 0)
    return np.maximum(mean, 1 / len(n))


def confident_joint(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities, (N,) labels -> (classes, classes) estimated counts of labelled i and truly j.

    Confident predictions are counted, then each row is scaled to its number of labels, so counts are not integers.
    """
    confident = np.where(probabilities >= class_thresholds(probabilities, y), probabilities, -1.0)
    sure = confident.max(axis=1) >= 0
    joint = np.zeros((probabilities.shape[1],) * 2)
    np.add.at(joint, (y[sure], confident[sure].argmax(axis=1)), 1.0)
    # each class has at least one correct label; otherwise one confident error would make all its labels suspicious
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1.0))
    labelled = np.bincount(y, minlength=len(joint))
    return np.asarray(joint * (labelled / joint.sum(axis=1))[:, None])


def rank_errors(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities, (N,) known labels -> (M,) rows with suspicious labels, the most suspicious first.

    These are the least probable labels with a more probable class, as many as the joint has off its diagonal.
    """
    joint = confident_joint(probabilities, y)
    most = round(float(joint.sum() - joint.trace()))
    own = probabilities[np.arange(len(y)), y]
    order = np.argsort(own, kind="stable")
    return order[(probabilities.max(axis=1) > own)[order]][:most]


def find_label_errors(run: RunDirectory | str | Path, heads: Sequence[str] | None = None) -> list[LabelError]:
    """Find the suspicious labels of a run's OOF photos, in all heads or `heads`, lowest `self_confidence` first.

    Labels are those that the models learned: by the bounds of the training, not of the score. In a head that belongs to
    the person, each person is checked once, by the mean over the photos; if labels of a person contradict each other,
    each label is checked. Photos without a label and heads of weight 0 are left out. A leaky split (--group none) hides
    errors of persons. Raises UsageError for an unknown head, and for one that was not learned.

    >>> errors = fm.find_label_errors(run, heads=["gender"])
    >>> all(error.label != error.suggested for error in errors)
    True
    """
    run = RunDirectory.of(run)
    learned = [name for name in run.heads.classified if name not in run.heads.unlearned]
    shared = shared_heads(run.heads, run.y, run.folds["person"].to_numpy(dtype=object))
    averaged = run.heads.split(average_persons(run.heads, run.probabilities, run.persons, shared))
    found: list[LabelError] = []
    for name in dict.fromkeys(learned if heads is None else heads):
        if run.heads[name].spread is not None:
            raise UsageError(f"{name} is learned as a number; name the head that it belongs to, which has the labels.")
        if name not in learned:
            raise UsageError(f"{name} was not learned (weight 0), so its predictions contradict no label.")
        found += _errors_of(run, name, averaged[run.heads.position(name)], name in shared)
    return sorted(found, key=lambda error: error.self_confidence)


def _errors_of(run: RunDirectory, name: str, probabilities: np.ndarray, shared: bool) -> Iterator[LabelError]:
    """Suspicious labels of one head, the most suspicious first; in a `shared` head a person has one probability."""
    head, y = run.heads[name], _learned_labels(run, name)
    units = _units(y, run.persons if shared else None)
    if not units:
        return
    first = np.array([rows[0] for rows in units])
    calibrated = apply_temperature(probabilities[first], fit_temperature(probabilities[first], y[first]))
    photos = run.folds["person"].value_counts().to_dict()
    for i in rank_errors(calibrated, y[first]):
        person, label, suggested = run.oof["person"].iat[first[i]], int(y[first[i]]), int(calibrated[i].argmax())
        yield LabelError(
            head=name,
            person=person,
            paths=tuple(run.oof["path"].iloc[units[i]]),
            whole=1 < len(units[i]) == photos[person],
            label=head.decode(label),
            suggested=head.decode(suggested),
            value="" if head.bounds else head.decode(suggested),
            probability=float(calibrated[i, suggested]),
            self_confidence=float(calibrated[i, label]),
            of=len(units),
        )


def _learned_labels(run: RunDirectory, name: str) -> np.ndarray:
    """(N,) class numbers of the photos in `oof`, by the bounds of the training; -1 is unknown.

    They are those of the score if the run has no numbers.
    """
    head, column = run.heads[name], f"{name}_value"
    if not head.train_bounds or column not in run.folds:
        return run.true[:, run.heads.position(name)]
    numbers = run.folds.set_index("path")[column].loc[run.oof["path"]]
    return head.band(pd.to_numeric(numbers, errors="coerce").to_numpy(np.float64), training=True)


def _units(y: np.ndarray, persons: np.ndarray | None) -> list[np.ndarray]:
    """The rows that are checked together: each labelled photo, or a person's photos with the same label."""
    known = np.flatnonzero(y != UNKNOWN)
    if not len(known):
        return []
    unit = known
    if persons is not None:
        owner = np.unique(persons[known], return_inverse=True)[1]
        unit = owner * (y.max() + 1) + y[known]
    order = np.argsort(unit, kind="stable")
    return np.split(known[order], np.flatnonzero(np.diff(unit[order])) + 1)


def to_fixes(errors: Sequence[LabelError]) -> pd.DataFrame:
    """A table for `fit --fixes`, in the order of `errors`: one row per person checked as a whole, or per photo.

    The columns label, suggested and probability help to review the photos; clear "proposed", which holds "oof", once a
    row has been checked. For bands of a number such as age, `value` is empty (unknown) until you fill it in.
    """
    rows = [
        (person, path, e.head, e.value, e.label, e.suggested, round(e.probability, 4), BY_OOF)
        for e in errors
        for person, path in ([(e.person, "")] if e.whole else [("", path) for path in e.paths])
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summary(errors: Sequence[LabelError], most: int = 20, width: int | None = None) -> str:
    """The errors as text for the terminal, `width` columns wide: counts per head, then the first `most` of each."""
    if not errors:
        return "No suspicious labels found."
    width = max(40, width or shutil.get_terminal_size((100, 24)).columns)
    heads = {name: [e for e in errors if e.head == name] for name in dict.fromkeys(e.head for e in errors)}
    left = max(map(len, heads))
    counts = [f"{name:{left}}  {len(of):7,} of {of[0].of:7,} labels suspicious" for name, of in heads.items()]
    return "\n".join([*counts, *(line for name, of in heads.items() for line in _section(name, of, most, width))])


def _section(head: str, errors: Sequence[LabelError], most: int, width: int) -> Iterator[str]:
    # only fixes of bands lack a value
    banded = any(not e.value for e in errors)
    yield from ("", f"{head}: many of those near a bound are correct" if banded else head)
    details = [f"{e.label} {e.self_confidence:.3f} -> {e.suggested} {e.probability:.3f}" for e in errors[:most]]
    others = [f" and {count(len(e.paths) - 1, 'more photo')}" if len(e.paths) > 1 else "" for e in errors[:most]]
    subjects = [e.person if e.whole else e.paths[0] + more for e, more in zip(errors, others, strict=False)]
    left = max(1, min(width - max(map(len, details), default=0) - 4, max(map(len, subjects), default=1)))
    for subject, detail in zip(subjects, details, strict=True):
        first, *rest = textwrap.wrap(subject, left, break_on_hyphens=False)
        yield from (f"  {first:{left}}  {detail}", *(f"  {line}" for line in rest))
    if len(errors) > most:
        yield f"  ... and {len(errors) - most:,} more"
