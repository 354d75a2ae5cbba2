"""Ensemble: several runs blended into one, and its gain over each of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.config import Config
from fastmask.decision.rule import PLAIN
from fastmask.heads import JOINT
from fastmask.inference.alignment import align
from fastmask.inference.blend import MEAN, Blend, Weights, check_blend, cross_blend, fit_blend
from fastmask.inference.members import check_members, describe, member_names
from fastmask.run.directory import RunDirectory
from fastmask.run.files import OOF, SCORES, check_free
from fastmask.run.oof import decide_oof, oof_table, parts_by, scores_content
from fastmask.scoring import CELLS, DRAWS, Difference, Score, draw_scores, make_target, plain, target_classes
from fastmask.system.files import write_csv, write_json
from fastmask.system.lock import lock_run
from fastmask.system.text import table_lines

_OPTIMISTIC = (
    "its blend is fitted on the photos that it is scored on, which flatters; the headline's is fitted on other persons"
)


@dataclass(frozen=True)
class Gain:
    """A member's score of the joint class or of a head, and the gain of the ensemble over it."""

    member: str
    score: Score
    gain: Difference


@dataclass(frozen=True)
class Target:
    """The ensemble's score of the joint class or of a head, and those of the members that have it."""

    score: Score
    members: list[Gain]

    @property
    def best(self) -> Gain:
        """The member with the highest macro-F1."""
        return max(self.members, key=lambda one: one.score.macro_f1)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        members = {one.member: {**one.score.to_plain(), "gain": one.gain.to_plain()} for one in self.members}
        return {**self.score.to_plain(), "members": members}


@dataclass(frozen=True)
class Blended:
    """An ensemble of runs: its `run`, its `blend` of the `members`, and its scores compared with theirs.

    `targets` are the joint class and each head, without distributions over a number. The joint class has no members
    if no member has all heads.

    >>> blended = fm.blend_runs([run, other], out="blend", draws=100)
    >>> blended.blend.how, list(blended.targets)
    ('mean', ['joint', 'mask', 'gender', 'age'])
    >>> gain = blended.targets["joint"].best.gain.macro_f1
    """

    run: RunDirectory
    blend: Blend
    members: list[str]
    targets: dict[str, Target]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*self._joint_lines(), "", *self._head_lines(), *self._weight_lines(), "", *self._remarks()])

    def _joint_lines(self) -> list[str]:
        joint = self.targets[JOINT]
        rows = dict.fromkeys(self.members, ("lacks a head", ""))
        rows.update((one.member, (one.score.cells, str(one.gain))) for one in joint.members)
        lines = [("run", CELLS, "ensemble minus run"), *((name, *row) for name, row in rows.items())]
        return table_lines([*lines, ("ensemble", joint.score.cells, "")])

    def _head_lines(self) -> list[str]:
        heads = [(name, target) for name, target in self.targets.items() if name != JOINT]
        rows = [(name, one.score.cells, one.best.member, str(one.best.gain)) for name, one in heads]
        return table_lines([("head", CELLS, "best run", "ensemble minus best run"), *rows])

    def _weight_lines(self) -> Iterator[str]:
        texts = {name: each.describe(self.members) for name, each in self.blend.mixtures.items()}
        if any(texts.values()):
            yield ""
        for name, text in texts.items():
            if text:
                yield f"weights of {name}: {text}"

    def _remarks(self) -> Iterator[str]:
        if self.blend.is_fitted:
            yield "For the score, each photo's weights are fitted on other persons; those shown are fitted on all."
        joint = self.targets[JOINT]
        if joint.members:
            yield (
                f"{joint.best.member} is the best run by these same OOF predictions, so its score is optimistic: the "
                "true gain over it is probably larger than shown."
            )
        yield from self.notes

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        mixtures = self.blend.mixtures
        weights = {name: dict(zip(self.members, each.weights.tolist(), strict=True)) for name, each in mixtures.items()}
        fitted = {"fitted": self.blend.to_plain()["weights"]} if self.blend.is_fitted else {}
        blend = {"blend": self.blend.how, "weights": weights, **fitted}
        joint = self.targets[JOINT]
        best = joint.best.member if joint.members else None
        return {**blend, "best": best, **plain({"targets": self.targets, "notes": self.notes})}


def blend_runs(
    runs: Sequence[str | Path | RunDirectory],
    how: str = MEAN,
    *,
    out: str | Path,
    weights: Weights | None = None,
    overwrite: bool = False,
    draws: int = DRAWS,
) -> Blended:
    """Make an ensemble of finished `runs` in the directory `out`, which is a run itself, and compare their scores.

    `how` is "mean" (of the probabilities), "vote" (of each member's most probable class), "oof" (a weighted mean per
    head of calibrated probabilities: the weights minimise the log loss of the out-of-fold (OOF) predictions) or "stack"
    (a logistic regression per head of the OOF log-probabilities). With "oof" and "stack" each OOF row is blended as
    fitted on other persons. `weights` are those of the runs by hand, for "mean" and "vote": one per run, for all heads
    or by head. A head is blended from the members that have learned it, so one run per head can form an ensemble. The
    runs may differ in photos, labels, bounds and folds: scored are the photos that all have OOF predictions of, by the
    labels, bounds and folds of the first run that has a head. Raises UsageError if their shared photos are of other
    persons or a head has other classes, DataError if they share no photo.
    """
    out = Path(out)
    check_blend(how, weights=weights)
    check_free(out, overwrite)
    loaded = [RunDirectory.of(run) for run in runs]
    check_members(loaded, out)
    names = member_names(loaded)
    aligned = align(dict(zip(names, loaded, strict=True)))
    heads, members, y, groups = aligned.heads, aligned.members, aligned.y, aligned.groups
    folds = aligned.oof["fold"].to_numpy()
    parts = parts_by(loaded[0].path, folds, groups)
    blend = fit_blend(how, heads, members, y, groups, weights)
    mixed = cross_blend(how, heads, members, y, parts, groups, weights) if blend.is_fitted else blend.mix(members)
    with lock_run(out):
        ensemble = RunDirectory.create(
            out,
            _config(loaded),
            heads,
            pipelines=None,
            folds=aligned.folds,
            environment=_environment(),
            ensemble={
                **blend.to_plain(),
                "members": [describe(run, name, out) for run, name in zip(loaded, names, strict=True)],
                "caveats": aligned.caveats,
            },
            overwrite=overwrite,
        )
        decided = partial(decide_oof, ensemble, true=y, folds=folds, groups=groups)
        write_csv(out / OOF, oof_table(heads, aligned.oof, mixed, y, decided(mixed)))
        scored: dict[int, dict[str, Any]] = {fold: {} for fold in sorted(set(ensemble.oof["fold"].tolist()))}
        write_json(out / SCORES, scores_content(ensemble, scored, decided(blend.mix(members)), _OPTIMISTIC, draws))
    answers = _answers(ensemble, dict(zip(names, members, strict=True)), decided)
    classes = {
        target: target_classes(heads, target, [ensemble.predicted, *by_name.values()], ensemble.true, ensemble.y)
        for target, by_name in answers.items()
    }
    targets = _targets(ensemble, answers, classes, draws)
    return Blended(ensemble, blend, names, targets, [*ensemble.score(draws=0, classes=classes).notes, *aligned.notes])


def _config(runs: Sequence[RunDirectory]) -> Config:
    """The first run's settings, marked as a leaky split if any run has one; the decision is that of all, or plain."""
    leaky = any(run.config.group == "none" for run in runs)
    decisions = {run.config.decision for run in runs}
    decision = runs[0].config.decision if len(decisions) == 1 else PLAIN
    return runs[0].config.model_copy(update={"decision": decision, **({"group": "none"} if leaky else {})})


def _environment() -> dict[str, Any]:
    """The content of environment.json, without initial weights, which are part of the members' identities."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packages": {name: version(name) for name in ("fastmask", "numpy", "pandas")},
        "start": {},
        "command": sys.argv,
    }


def _answers(
    run: RunDirectory, members: Mapping[str, np.ndarray], decided: Callable[[np.ndarray], np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """For the joint class and each head the (N, heads) answers of the members that have the heads, by name.

    Members with all heads are decided as the ensemble is.
    """
    each = {name: run.heads.argmax(one) if np.isnan(one).any() else decided(one) for name, one in members.items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    for target in (JOINT, *run.heads.classified):
        places = run.heads.joined if target == JOINT else [run.heads.position(target)]
        columns = [column for place in places for column in range(*run.heads.offsets[place : place + 2])]
        found[target] = {name: each[name] for name, one in members.items() if not np.isnan(one[:, columns]).any()}
    return found


def _targets(
    run: RunDirectory,
    answers: Mapping[str, Mapping[str, np.ndarray]],
    classes: Mapping[str, Sequence[int]],
    draws: int,
) -> dict[str, Target]:
    """The scores of the joint class and of each head: the ensemble's, and those of the members that have the heads."""
    found = {}
    for target, members in answers.items():
        each = [make_target(run.heads, y, run.true, target, classes) for y in (run.predicted, *members.values())]
        ensemble, *others = draw_scores(each, run.groups, draws)
        gains = [Gain(name, one.score(), ensemble.minus(one)) for name, one in zip(members, others, strict=True)]
        found[target] = Target(ensemble.score(), gains)
    return found
