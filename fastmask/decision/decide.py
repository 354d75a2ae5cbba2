"""Decide: which rule makes the most of a run's probabilities, each scored on persons that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold

from fastmask.decision.calibration import Calibration, calibrations
from fastmask.decision.rule import CALIBRATED, PLAIN, RULES, Rule, fit_rule
from fastmask.errors import UsageError
from fastmask.heads import JOINT
from fastmask.run import Run
from fastmask.scoring import (
    DRAWS,
    Difference,
    Score,
    draw_scores,
    make_target,
    score_together,
    thin,
    with_interval,
)

# the best of them
AUTO = "auto"
_AVERAGED = ", persons averaged"
# into how many parts persons are dealt where the run's folds do not part them
_PARTS = 5


@dataclass(frozen=True)
class Decided:
    """What a rule came to on persons that it was not fitted on.

    `gain` is over `plain`; that of `plain` with `averaged` persons over `plain` without.
    """

    rule: str
    averaged: bool
    score: Score
    gain: Difference | None = None

    @property
    def name(self) -> str:
        """The rule's name, and whether it averages over persons."""
        return name_of(self.rule, self.averaged)


@dataclass(frozen=True)
class Decisions:
    """The rules side by side, each head's calibration, the rule to take, and what to read the figures with."""

    rows: list[Decided]
    calibration: dict[str, Calibration]
    best: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'decision':{width}}  {'macro-F1':24}  accuracy  gain"]
        for row in self.rows:
            macro_f1 = with_interval(row.score.macro_f1, row.score.macro_f1_interval)
            lines.append(f"{row.name:{width}}  {macro_f1:24}  {row.score.accuracy:.4f}    {_gain(row)}".rstrip())
        width = max(len("head"), *map(len, self.calibration))
        lines += ["", f"{'head':{width}}  temperature  calibration error, and at that temperature"]
        lines += [f"{head:{width}}  {one}" for head, one in self.calibration.items()]
        verdict = f"Take {self.best}." if self.best != PLAIN else f"No gain is beyond noise: {PLAIN} stays."
        return "\n".join([*lines, "", "Each was fitted on other persons than it is scored on.", *self.notes, verdict])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [
            {
                "rule": row.rule,
                "averaged": row.averaged,
                **row.score.to_plain(),
                "gain": row.gain and row.gain.to_plain(),
            }
            for row in self.rows
        ]
        calibration = {head: one.to_plain() for head, one in self.calibration.items()}
        return {"best": self.best, "decisions": rows, "calibration": calibration, "notes": self.notes}


def name_of(rule: str, averaged: bool) -> str:
    """`f1`, or `f1, persons averaged`."""
    return f"{rule}{_AVERAGED}" if averaged else rule


def _gain(row: Decided) -> str:
    if row.gain is None:
        return ""
    return f"{row.gain}{', within noise' if row.gain.is_noise else ''}"


def decide(run: Run | str | Path, same_person: bool = False, draws: int = DRAWS) -> Decisions:
    """Score each rule on a run's out-of-fold predictions, fitted on other persons' rows than it is scored on.

    `same_person` also averages over persons the heads that belong to them: for where it is known at prediction, too,
    which photos are whose. `best` is the rule whose gain is beyond noise; `plain` where none is.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    notes = run.score(draws=0).notes + thin(run.heads.joint(run.true), run.persons)
    answers, calibrated = {}, run.probabilities
    for averaged, rule in product((False, True) if same_person else (False,), RULES):
        try:
            probabilities, answers[rule, averaged] = cross_fit(run, rule, averaged)
        except UsageError as error:
            # too many joint classes, or none that is known
            notes.append(str(error))
            continue
        if (rule, averaged) == (CALIBRATED, False):
            calibrated = probabilities
    rows = _score(run, answers, draws)
    return Decisions(
        rows, calibrations(run.heads, run.probabilities, calibrated, run.true), _best(rows, same_person), notes
    )


def cross_fit(run: Run, rule: str, same_person: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated and averaged probabilities (N, classes of all heads) and answers (N, heads) to the OOF photos.

    Those of each part of the persons are by the rule that is fitted on the others. The parts are the run's folds, or,
    where it has but one or they tear persons apart, a fifth of the persons each.
    """
    probabilities, y = np.empty_like(run.probabilities), np.empty_like(run.true)
    parts = _parts(run)
    for part in np.unique(parts):
        here = parts == part
        fitted = _fit(run, rule, same_person, ~here)
        probabilities[here] = fitted.averaged(fitted.calibrated(run.probabilities[here]), run.persons[here])
        y[here] = fitted.choose(probabilities[here])
    return probabilities, y


def fit_run(run: Run, rule: str, same_person: bool = False) -> Rule:
    """The rule fitted on all out-of-fold predictions of a run, to be used on new photos."""
    return _fit(run, rule, same_person, np.ones(len(run.oof), dtype=bool))


def rule_for(run: Run, decision: str, same_person: bool = False) -> Rule | None:
    """The rule to answer new photos by, fitted on a run; None for `plain` without averaging, which needs no OOF.

    `auto` is the best of `decide`.
    """
    if decision not in (AUTO, *RULES):
        raise UsageError(f"There is no decision {decision!r}; expected one of {', '.join((AUTO, *RULES))}.")
    if decision == AUTO:
        decision = decide(run, same_person).best
    return None if decision == PLAIN and not same_person else fit_run(run, decision, same_person)


def answers_of(run: Run, name: str) -> np.ndarray:
    """(N, heads) answers to the OOF photos by a rule as `name_of` names it, fitted on other persons."""
    rule = name.removesuffix(_AVERAGED)
    return cross_fit(run, rule, rule != name)[1] if name != PLAIN else run.predicted


def score_of(run: Run, rule: str, averaged: bool = False, draws: int = DRAWS) -> Score:
    """The score of the joint class by a rule that is fitted on other persons than it is scored on."""
    answers = answers_of(run, name_of(rule, averaged))
    return score_together([make_target(run.heads, answers, run.true, JOINT, run.y)], run.persons, draws)[0]


def _fit(run: Run, rule: str, same_person: bool, rows: np.ndarray) -> Rule:
    persons = run.persons[rows] if same_person else None
    return fit_rule(rule, run.heads, run.probabilities[rows], run.true[rows], persons)


def _parts(run: Run) -> np.ndarray:
    """(N,) the part of each photo's person."""
    folds, owner = run.oof["fold"].to_numpy(), np.unique(run.persons, return_inverse=True)[1]
    whole = len(np.unique(np.stack([folds, owner]), axis=1).T) == owner.max() + 1
    if whole and len(np.unique(folds)) > 1:
        return folds
    k = min(_PARTS, int(owner.max()) + 1)
    if k < 2:
        raise UsageError(f"{run.path} has one person only; a decision is fitted on one and scored on others.")
    parts = np.empty_like(folds)
    for part, (_, rows) in enumerate(GroupKFold(k).split(folds, groups=owner)):
        parts[rows] = part
    return parts


def _score(run: Run, answers: dict[tuple[str, bool], np.ndarray], draws: int) -> list[Decided]:
    targets = [make_target(run.heads, y, run.true, JOINT, run.y) for y in answers.values()]
    drawn = dict(zip(answers, draw_scores(targets, run.persons, draws), strict=True))
    rows = []
    for (rule, averaged), here in drawn.items():
        beside = drawn[PLAIN, averaged and rule != PLAIN]
        rows.append(Decided(rule, averaged, here.score(), None if beside is here else here.less(beside)))
    return rows


def _best(rows: Sequence[Decided], averaged: bool) -> str:
    asked = [row for row in rows if row.averaged == averaged and row.rule != PLAIN]
    better = [row for row in asked if row.gain and row.gain.macro_f1_interval[0] > 0]
    return max(better, key=lambda row: row.score.macro_f1).rule if better else PLAIN
