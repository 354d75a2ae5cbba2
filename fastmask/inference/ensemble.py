"""Ensemble: several runs of the same photos blended into one, and what that gains over each of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.config import Config
from fastmask.data.folds import whole_parts
from fastmask.heads import JOINT, Heads
from fastmask.inference.blend import BLENDS, MEAN, OOF_WEIGHTS, Blend, cross_blend, fit_blend, widen
from fastmask.inference.members import aligned, all_heads, check_members, describe, learned, member_names
from fastmask.run.caveats import training_caveats
from fastmask.run.directory import RunDirectory
from fastmask.run.files import OOF, SCORES, check_free
from fastmask.scoring import CELLS, DRAWS, Difference, Score, draw_scores, make_target, score_heads, thin
from fastmask.system.errors import UsageError
from fastmask.system.files import write_csv, write_json
from fastmask.system.lock import held

PACKAGES = ("fastmask", "numpy", "pandas")


@dataclass(frozen=True)
class Gain:
    """A member's score of the joint class or of a head, and how much better the ensemble is."""

    member: str
    score: Score
    gain: Difference


@dataclass(frozen=True)
class Target:
    """The ensemble's score of the joint class or of a head, beside those of the members that have it."""

    score: Score
    members: list[Gain]

    @property
    def best(self) -> Gain:
        """The member of the highest macro-F1."""
        return max(self.members, key=lambda one: one.score.macro_f1)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        members = {one.member: {**one.score.to_plain(), "gain": one.gain.to_plain()} for one in self.members}
        return {**self.score.to_plain(), "members": members}


@dataclass(frozen=True)
class Blended:
    """An ensemble of runs: its `run`, its `blend` of the `members`, and the score of each target beside theirs.

    `targets` are the joint class, and each head that is no distribution. The joint class has no members where none has
    all heads.
    """

    run: RunDirectory
    blend: Blend
    members: list[str]
    targets: dict[str, Target]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*self._joint_lines(), "", *self._head_lines(), *self._weight_lines(), "", *self._words()])

    def _joint_lines(self) -> Iterator[str]:
        joint, width = self.targets[JOINT], max(len("ensemble"), *map(len, self.members))
        rows = {one.member: one for one in joint.members}
        yield f"{'run':{width}}  {CELLS}  ensemble minus run"
        for name in self.members:
            cells = f"{rows[name].score.cells}  {rows[name].gain}" if name in rows else "has not all heads"
            yield f"{name:{width}}  {cells}"
        yield f"{'ensemble':{width}}  {joint.score.cells}".rstrip()

    def _head_lines(self) -> Iterator[str]:
        heads = {name: target for name, target in self.targets.items() if name != JOINT}
        width, wide = max(map(len, ("head", *heads))), max(len("best run"), *map(len, self.members))
        yield f"{'head':{width}}  {CELLS}  {'best run':{wide}}  ensemble minus that"
        for name, target in heads.items():
            yield f"{name:{width}}  {target.score.cells}  {target.best.member:{wide}}  {target.best.gain}"

    def _weight_lines(self) -> Iterator[str]:
        if self.blend.how != OOF_WEIGHTS:
            return
        yield ""
        for name, weights in self.blend.weights.items():
            parts = [f"{member} {w:.3f}" for member, w in zip(self.members, weights, strict=True) if w > 0]
            yield f"weights of {name}: {', '.join(parts)}"

    def _words(self) -> Iterator[str]:
        if self.blend.how == OOF_WEIGHTS:
            yield "Each photo's weights were fitted on other persons; those shown, which predict, on all."
        joint = self.targets[JOINT]
        if joint.members:
            yield (
                f"{joint.best.member} is the best run by these same OOF predictions, which flatters it a little, so "
                "the gain over it is told too small rather than too large."
            )
        yield from self.notes

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        blend = self.blend.to_plain()
        weights = {name: dict(zip(self.members, each, strict=True)) for name, each in blend["weights"].items()}
        targets = {name: target.to_plain() for name, target in self.targets.items()}
        joint = self.targets[JOINT]
        best = joint.best.member if joint.members else None
        return {**blend, "weights": weights, "best": best, "targets": targets, "notes": self.notes}


def blend_runs(
    runs: Sequence[str | Path | RunDirectory],
    how: str = MEAN,
    *,
    out: str | Path,
    overwrite: bool = False,
    draws: int = DRAWS,
) -> Blended:
    """Make an ensemble of finished `runs` in the directory `out`, which is a run itself, and score it beside them.

    `how` is "mean" (of the probabilities), "vote" (of each member's most probable class) or "oof" (a weighted mean a
    head, the weights fitted on the out-of-fold (OOF) predictions by log loss; each OOF row by weights fitted on other
    persons). A head is blended of the members that have learned it, so that a model an attribute makes a whole. Raises
    UsageError where the runs are not of the same photos, persons and labels, or have heads of one name with other
    classes or bounds. Where their folds differ, the fold column is the first run's.
    """
    out = Path(out)
    if how not in BLENDS:
        raise UsageError(f"There is no blend {how!r}; expected one of {', '.join(BLENDS)}.")
    check_free(out, overwrite)
    loaded = [RunDirectory.of(run) for run in runs]
    check_members(loaded, out)
    heads, first = all_heads(loaded), loaded[0]
    folds, members = folds_of(heads, loaded), [oof_of(heads, first, run) for run in loaded]
    parts = _parts(first)
    y = heads.encode_frame(folds)[pd.Index(folds["path"]).get_indexer(pd.Index(first.oof["path"]))]
    mixed, blend, names = (
        cross_blend(how, heads, members, y, parts),
        fit_blend(how, heads, members, y),
        member_names(loaded),
    )
    with held(out):
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
                "caveats": [f"{run.path}: {caveat}" for run in loaded for caveat in training_caveats(run)],
            },
            overwrite=overwrite,
        )
        write_csv(out / OOF, _oof_frame(heads, first, mixed, y))
        write_json(out / SCORES, _scores(ensemble, blend.mix(members), draws))
    return Blended(ensemble, blend, names, _targets(ensemble, names, members, draws), _notes(ensemble, loaded))


def folds_of(heads: Heads, runs: Sequence[RunDirectory]) -> pd.DataFrame:
    """The folds of an ensemble, as the first run's: path, person, a column a head, what else that run has, fold."""
    first = runs[0]
    source = {name: next(run for run in runs if name in learned(run)) for name in heads.names}
    taken = ("path", "person", "fold", *first.heads.names, *heads.names)
    columns = {
        **{name: first.folds[name] for name in ("path", "person")},
        **{name: aligned(first, run, name) for name, run in source.items()},
        **{name: first.folds[name] for name in first.folds.columns if name not in taken},
        "fold": first.folds["fold"],
    }
    return pd.DataFrame(columns)


def oof_of(heads: Heads, first: RunDirectory, run: RunDirectory) -> np.ndarray:
    """(N, classes of `heads`) the OOF probabilities of a run in the rows of the first run's; NaN of what it lacks."""
    rows = pd.Index(run.oof["path"]).get_indexer(pd.Index(first.oof["path"]))
    return widen(heads, run.heads, run.probabilities[rows], learned(run))


def _config(runs: Sequence[RunDirectory]) -> Config:
    """The first run's settings, with a leaky split where any run has one."""
    leaky = any(run.config.group == "none" for run in runs)
    return runs[0].config.model_copy(update={"group": "none"} if leaky else {})


def _parts(run: RunDirectory) -> np.ndarray:
    if len(set(run.persons)) < 2:
        raise UsageError(f"{run.path} has one person only; an ensemble is fitted on some and scored on others.")
    return whole_parts(run.oof["fold"].to_numpy(), run.persons)


def _environment() -> dict[str, Any]:
    """An ensemble starts from nothing: what its members start from is in their identities."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packages": {name: version(name) for name in PACKAGES},
        "start": {},
        "command": sys.argv,
    }


def _oof_frame(heads: Heads, first: RunDirectory, probabilities: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    columns = dict(zip(heads.columns, probabilities.T, strict=True))
    joint = {"true": heads.joint(y), "predicted": heads.joint(heads.argmax(probabilities))}
    return pd.DataFrame({**first.oof[["path", "person", "fold"]], **columns, **joint})


def _scores(run: RunDirectory, optimistic: np.ndarray, draws: int) -> dict[str, Any]:
    """What scores.json holds; `optimistic` (N, classes of all heads) is the blend by weights fitted on all."""
    flattering = score_heads(run.heads, run.heads.argmax(optimistic), run.true, draws=0, whole=run.y)
    fold_of = run.oof["fold"].to_numpy()
    folds = []
    for fold in np.unique(fold_of).tolist():
        here = fold_of == fold
        scores = score_heads(run.heads, run.predicted[here], run.true[here], None, 0, run.y)
        folds.append({"fold": fold, **scores.to_plain()})
    return {
        **run.score(draws).to_plain(),
        "optimistic": {
            **flattering.to_plain(),
            "why": "its weights are fitted on the photos that they are scored on, which flatters; the headline's are "
            "fitted on other persons",
        },
        "folds": folds,
        "scored_by": {h.name: list(h.bounds) for h in run.heads if h.bounds},
    }


def _targets(run: RunDirectory, names: Sequence[str], members: Sequence[np.ndarray], draws: int) -> dict[str, Target]:
    """The joint class and each head: the ensemble's score, and those of the members that have all that it needs."""
    found = {}
    for target in (JOINT, *run.heads.classified):
        columns = run.heads.joined_columns if target == JOINT else _columns(run.heads, target)
        there = [name for name, member in zip(names, members, strict=True) if not np.isnan(member[:, columns]).any()]
        answers = [run.predicted, *(run.heads.argmax(members[names.index(name)]) for name in there)]
        drawn = draw_scores([make_target(run.heads, y, run.true, target, run.y) for y in answers], run.persons, draws)
        ensemble, *others = drawn
        gains = [Gain(name, one.score(), ensemble.minus(one)) for name, one in zip(there, others, strict=True)]
        found[target] = Target(ensemble.score(), gains)
    return found


def _columns(heads: Heads, name: str) -> list[int]:
    place = heads.position(name)
    return list(range(heads.offsets[place], heads.offsets[place + 1]))


def _notes(run: RunDirectory, members: Sequence[RunDirectory]) -> list[str]:
    """What to read the figures with."""
    first = members[0]
    notes = [*run.score(draws=0).notes, *thin(run.heads.joint(run.true), run.persons)]
    other = [str(m.path) for m in members if (aligned(first, m, "fold") != first.folds["fold"]).any()]
    if other:
        notes.append(f"Other folds than {first.path}, whose fold column the ensemble has: {', '.join(other)}.")
    return notes
