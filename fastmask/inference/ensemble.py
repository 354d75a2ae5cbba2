"""Ensemble: several runs of the same photos blended into one, and its gain over each of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.config import Config
from fastmask.data.groups import are_separated, connect, name_groups
from fastmask.data.table import SAME_AS, groups_of
from fastmask.heads import JOINT, Heads
from fastmask.inference.blend import MEAN, OOF_WEIGHTS, Blend, check_blend, cross_blend, fit_blend, widen
from fastmask.inference.members import align_column, all_heads, check_members, describe, learned_heads, member_names
from fastmask.run.caveats import training_caveats
from fastmask.run.directory import RunDirectory
from fastmask.run.files import OOF, SCORES, check_free
from fastmask.run.oof import oof_table, parts_of, scores_content
from fastmask.scoring import CELLS, DRAWS, Difference, Score, draw_scores, make_target, plain, target_classes
from fastmask.system.files import write_csv, write_json
from fastmask.system.lock import lock_run
from fastmask.system.text import table_lines

_OPTIMISTIC = (
    "its weights are fitted on the photos that they are scored on, which flatters; the headline's are fitted on other "
    "persons"
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
        if self.blend.how != OOF_WEIGHTS:
            return
        yield ""
        for name, weights in self.blend.weights.items():
            parts = [f"{member} {w:.3f}" for member, w in zip(self.members, weights, strict=True) if w > 0]
            yield f"weights of {name}: {', '.join(parts)}"

    def _remarks(self) -> Iterator[str]:
        if self.blend.how == OOF_WEIGHTS:
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
        blend = self.blend.to_plain()
        weights = {name: dict(zip(self.members, each, strict=True)) for name, each in blend["weights"].items()}
        joint = self.targets[JOINT]
        best = joint.best.member if joint.members else None
        return {**blend, "weights": weights, "best": best, **plain({"targets": self.targets, "notes": self.notes})}


def blend_runs(
    runs: Sequence[str | Path | RunDirectory],
    how: str = MEAN,
    *,
    out: str | Path,
    overwrite: bool = False,
    draws: int = DRAWS,
) -> Blended:
    """Make an ensemble of finished `runs` in the directory `out`, which is a run itself, and compare their scores.

    `how` is "mean" (of the probabilities), "vote" (of each member's most probable class) or "oof" (a weighted mean per
    head: the weights minimise the log loss of the out-of-fold (OOF) predictions, and each OOF row is blended with
    weights fitted on other persons). A head is blended from the members that have learned it, so one run per head can
    form an ensemble. Raises UsageError if the runs differ in photos, persons or labels, or in the classes or bounds
    of a head. Where their folds differ, the fold column is the first run's.
    """
    out = Path(out)
    check_blend(how)
    check_free(out, overwrite)
    loaded = [RunDirectory.of(run) for run in runs]
    check_members(loaded, out)
    heads, first = all_heads(loaded), loaded[0]
    folds, members, names = _folds(heads, loaded), [oof_of(heads, first, run) for run in loaded], member_names(loaded)
    parts = parts_of(first)
    y = heads.encode_frame(folds)[pd.Index(folds["path"]).get_indexer(pd.Index(first.oof["path"]))]
    mixed, blend = cross_blend(how, heads, members, y, parts), fit_blend(how, heads, members, y)
    with lock_run(out):
        ensemble = RunDirectory.create(
            out,
            _config(loaded),
            heads,
            pipelines=None,
            folds=folds,
            environment=_environment(),
            ensemble={
                **blend.to_plain(),
                "members": [describe(run, name, out) for run, name in zip(loaded, names, strict=True)],
                "caveats": [f"{run.path}: {caveat}" for run in loaded for caveat in _caveats(first, run, folds)],
            },
            overwrite=overwrite,
        )
        write_csv(out / OOF, oof_table(heads, first.oof, mixed, y))
        scored: dict[int, dict[str, Any]] = {fold: {} for fold in sorted(set(ensemble.oof["fold"].tolist()))}
        write_json(out / SCORES, scores_content(ensemble, scored, blend.mix(members), _OPTIMISTIC, draws))
    answers = _answers(ensemble, names, members)
    classes = {
        target: target_classes(heads, target, [ensemble.predicted, *by_name.values()], ensemble.true, ensemble.y)
        for target, by_name in answers.items()
    }
    targets = _targets(ensemble, answers, classes, draws)
    return Blended(ensemble, blend, names, targets, _notes(ensemble, loaded, classes))


def _folds(heads: Heads, runs: Sequence[RunDirectory]) -> pd.DataFrame:
    """The folds of an ensemble in the first run's rows: path, person, a column per head, its other columns, fold.

    Persons who share identical photos in any run are in one group.
    """
    first = runs[0]
    source = {name: next(run for run in runs if name in learned_heads(run)) for name in heads.names}
    taken = ("path", "person", SAME_AS, "fold", *first.heads.names, *heads.names)
    joined = connect(*(align_column(first, run, SAME_AS if SAME_AS in run.folds else "person") for run in runs))
    named = name_groups(joined, first.folds["person"].to_numpy(dtype=object))
    columns = {
        **{name: first.folds[name] for name in ("path", "person")},
        **({SAME_AS: named} if any(SAME_AS in run.folds for run in runs) else {}),
        **{name: align_column(first, run, name) for name, run in source.items()},
        **{name: first.folds[name] for name in first.folds.columns if name not in taken},
        "fold": first.folds["fold"],
    }
    return pd.DataFrame(columns)


def _caveats(first: RunDirectory, run: RunDirectory, folds: pd.DataFrame) -> list[str]:
    """The caveats of a member, with that of an earlier version whose folds separate persons who share photos.

    `folds` is the frame of the ensemble, in the rows of the first run.
    """
    separated = are_separated(groups_of(folds), align_column(first, run, "fold"))
    if not separated or run.is_leaky:
        return training_caveats(run)
    apart = "Its folds separate persons who share identical photos: this score flatters."
    return [apart, *training_caveats(run)]


def oof_of(heads: Heads, first: RunDirectory, run: RunDirectory) -> np.ndarray:
    """(N, classes of `heads`): a run's OOF probabilities, as `widen` gives them, in the order of the first run's."""
    rows = pd.Index(run.oof["path"]).get_indexer(pd.Index(first.oof["path"]))
    return widen(heads, run.heads, run.probabilities[rows])


def _config(runs: Sequence[RunDirectory]) -> Config:
    """The first run's settings, marked as a leaky split if any run has one."""
    leaky = any(run.config.group == "none" for run in runs)
    return runs[0].config.model_copy(update={"group": "none"} if leaky else {})


def _environment() -> dict[str, Any]:
    """The content of environment.json, without initial weights, which are part of the members' identities."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packages": {name: version(name) for name in ("fastmask", "numpy", "pandas")},
        "start": {},
        "command": sys.argv,
    }


def _answers(
    run: RunDirectory, names: Sequence[str], members: Sequence[np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """For the joint class and each head the (N, heads) answers of the members that have the heads, by name."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for target in (JOINT, *run.heads.classified):
        places = run.heads.joined if target == JOINT else [run.heads.position(target)]
        columns = [column for place in places for column in range(*run.heads.offsets[place : place + 2])]
        there = zip(names, members, strict=True)
        found[target] = {name: run.heads.argmax(one) for name, one in there if not np.isnan(one[:, columns]).any()}
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


def _notes(run: RunDirectory, members: Sequence[RunDirectory], classes: Mapping[str, Sequence[int]]) -> list[str]:
    """Notes on the scores."""
    first = members[0]
    notes = run.score(draws=0, classes=classes).notes
    other = [str(m.path) for m in members if (align_column(first, m, "fold") != first.folds["fold"]).any()]
    if other:
        notes.append(f"The ensemble has the folds of {first.path}; those of {', '.join(other)} differ.")
    return notes
