"""Decisions: the rules of a run's decision, each scored on persons that it was not fitted on, and the one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.decision.calibration import Calibration, calibrations
from fastmask.decision.crossfit import cross_fit
from fastmask.decision.rule import CALIBRATED, F1, PLAIN, RULES, Rule, check_f1, fit_rule
from fastmask.heads import JOINT
from fastmask.run.directory import RunDirectory
from fastmask.run.oof import parts_of
from fastmask.scoring import (
    CELLS,
    DRAWS,
    Difference,
    Score,
    draw_scores,
    make_target,
    plain,
    score_together,
    scored_classes,
)
from fastmask.system.errors import UsageError

# selects the best rule
AUTO = "auto"
_AVERAGED = ", persons averaged"


@dataclass(frozen=True)
class RuleScore:
    """A rule's score on persons that it was not fitted on.

    `gain` is over `plain`; that of `plain` with `averaged` persons is over `plain` without.
    """

    rule: str
    averaged: bool
    score: Score
    gain: Difference | None = None

    @property
    def name(self) -> str:
        """The rule's name, with a suffix if it averages over persons."""
        return name_of(self.rule, self.averaged)


@dataclass(frozen=True)
class Decisions:
    """The score of each rule, the calibration of each head, and the `best` rule.

    >>> decisions = fm.decide(run, draws=100)
    >>> [row.name for row in decisions.rows]
    ['plain', 'calibrated', 'f1']
    >>> list(decisions.calibration)
    ['mask', 'gender', 'age']
    """

    rows: list[RuleScore]
    calibration: dict[str, Calibration]
    best: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'decision':{width}}  {CELLS}  gain over the plain row above"]
        lines += [f"{row.name:{width}}  {row.score.cells}  {row.gain or ''}".rstrip() for row in self.rows]
        width = max(len("head"), *map(len, self.calibration))
        lines += ["", f"{'head':{width}}  temperature  calibration error, and at that temperature"]
        lines += [f"{head:{width}}  {one}" for head, one in self.calibration.items()]
        honest = "Each rule was fitted on other persons than it is scored on."
        return "\n".join([*lines, "", honest, *self.notes, *self.verdicts])

    @property
    def verdicts(self) -> list[str]:
        """The result, one sentence each: whether to average over persons, which rule to take."""
        taken = f"Take {self.best}. It is chosen by these same scores, so its gain is slightly optimistic."
        verdicts = [taken if self.best != PLAIN else f"No rule gains beyond noise: {PLAIN} stays."]
        if self.averaging:
            does = "loses: leave it out" if self.averaging_loses else "gains"
            averaged = f"Averaging over persons {'changes nothing beyond noise' if self.averaging.is_noise else does}."
            verdicts.insert(0, averaged)
        return verdicts

    @property
    def averaging(self) -> Difference | None:
        """The gain by averaging over persons, if it was measured."""
        return next((row.gain for row in self.rows if row.rule == PLAIN and row.gain), None)

    @property
    def averaging_loses(self) -> bool:
        """Whether averaging over persons loses beyond noise."""
        return self.averaging is not None and self.averaging.macro_f1 < 0 and not self.averaging.is_noise

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [
            {"rule": row.rule, "averaged": row.averaged, **row.score.to_plain(), "gain": plain(row.gain)}
            for row in self.rows
        ]
        return plain({"best": self.best, "decisions": rows, "calibration": self.calibration, "notes": self.notes})


def name_of(rule: str, averaged: bool) -> str:
    """`f1`, or `f1, persons averaged`."""
    return f"{rule}{_AVERAGED}" if averaged else rule


def decide(run: RunDirectory | str | Path, same_person: bool = False, draws: int = DRAWS) -> Decisions:
    """Score each rule on a run's out-of-fold predictions, fitted on other persons than it is scored on.

    `same_person` also averages the heads that belong to the person over the person's photos, for predictions of photos
    with known persons. `best` is the best rule with a gain beyond noise, or else `plain`.

    >>> decisions = fm.decide(run, draws=100)
    >>> decisions.best in ("plain", "calibrated", "f1")
    True
    >>> decisions.rows[0].name, decisions.rows[0].gain
    ('plain', None)
    """
    run = RunDirectory.of(run)
    notes, rules = [], list(RULES)
    try:
        check_f1(run.heads, run.true)
    except UsageError as error:
        notes.append(str(error))
        rules.remove(F1)
    grouped = (False, True) if same_person else (False,)
    found = {(rule, averaged): cross_fit_run(run, rule, averaged) for averaged, rule in product(grouped, rules)}
    calibrated = found[CALIBRATED, False][0]
    classes = scored_classes(run.heads, [y for _, y in found.values()], run.true, run.y)
    rows = _score(run, {key: y for key, (_, y) in found.items()}, classes, draws)
    notes = [*run.score(draws=0, classes=classes).notes, *notes]
    ranked = [row for row in rows if row.averaged == same_person and row.rule != PLAIN]
    better = [row for row in ranked if row.gain and row.gain.macro_f1_interval[0] > 0]
    best = max(better, key=lambda row: row.score.macro_f1).rule if better else PLAIN
    return Decisions(rows, calibrations(run.heads, run.probabilities, calibrated, run.true), best, notes)


def cross_fit_run(run: RunDirectory, rule: str, same_person: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities and the classes of `cross_fit` for the OOF photos of a run."""
    persons = run.persons if same_person else None
    return cross_fit(rule, run.heads, run.probabilities, run.true, parts_of(run), persons)


def fit_run(run: RunDirectory | str | Path, rule: str = AUTO, same_person: bool = False) -> Rule:
    """Fit a rule on all out-of-fold predictions of a run, for new photos.

    `auto` takes the best rule of `decide`. It is chosen by the same OOF scores, so these are slightly optimistic.

    >>> rule = fm.fit_run(run, "calibrated")
    >>> predictions = fm.predict(run, photos).decide(rule)
    >>> predictions.decided.shape
    (3, 3)
    """
    run = RunDirectory.of(run)
    check_decision(rule)
    rule = decide(run, same_person).best if rule == AUTO else rule
    return fit_rule(rule, run.heads, run.probabilities, run.true, run.persons if same_person else None)


def rule_of(run: RunDirectory, decision: str | None = None) -> Rule | None:
    """The rule of a decision, by default the run's, fitted on all its OOF predictions; None for plain."""
    name = decision or run.config.decision
    return None if name == PLAIN else fit_run(run, name)


def check_decision(name: str) -> None:
    """Raise UsageError for an unknown decision."""
    if name not in (AUTO, *RULES):
        raise UsageError(f"There is no decision {name!r}; expected one of {', '.join((AUTO, *RULES))}.")


def answers_of(run: RunDirectory, name: str) -> np.ndarray:
    """(N, heads) cross-fitted classes of the OOF photos by the rule with a name of `name_of`."""
    rule = name.removesuffix(_AVERAGED)
    return cross_fit_run(run, rule, rule != name)[1] if name != PLAIN else run.heads.argmax(run.probabilities)


def score_of(run: RunDirectory, name: str, draws: int = DRAWS) -> Score:
    """The cross-fitted score of the joint class by the rule with a name of `name_of`."""
    answers = answers_of(run, name)
    classes = scored_classes(run.heads, [answers], run.true, run.y)
    target = make_target(run.heads, answers, run.true, JOINT, classes)
    return score_together([target], run.groups, draws)[0]


def _score(
    run: RunDirectory, answers: dict[tuple[str, bool], np.ndarray], classes: Mapping[str, Sequence[int]], draws: int
) -> list[RuleScore]:
    targets = [make_target(run.heads, y, run.true, JOINT, classes) for y in answers.values()]
    drawn = dict(zip(answers, draw_scores(targets, run.groups, draws), strict=True))
    rows = []
    for (rule, averaged), here in drawn.items():
        plain = drawn[PLAIN, averaged and rule != PLAIN]
        rows.append(RuleScore(rule, averaged, here.score(), None if plain is here else here.minus(plain)))
    return rows
