"""Rule: how the heads' probabilities become one class per head.

`plain` takes the most probable class of each head. `calibrated` first scales each head by its temperature. `f1` then
takes the joint class that adds most to the expected macro-F1: see `fit_gains`. If the person of each photo is known,
the heads that belong to the person are averaged over the person's photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastmask.decision.persons import average_persons, shared_heads
from fastmask.decision.temperature import apply_temperature, fit_temperature
from fastmask.heads import UNKNOWN, Heads
from fastmask.scoring import f1
from fastmask.system.errors import UsageError

PLAIN, CALIBRATED, F1 = "plain", "calibrated", "f1"
RULES = (PLAIN, CALIBRATED, F1)
# the maximum of joint classes, since all photos' probabilities of them are in memory
_MOST_JOINT = 1000
# photos added to a class's labels and to its probabilities, to limit the effect of a few labels
_AGREED = 5
# of the Frank-Wolfe algorithm
_STEPS = 30


@dataclass(frozen=True)
class Gains:
    """The gain in macro-F1 of predicting a joint class: `weight` x probability - `cost`, (n_joint,) each.

    The probability is the heads' product x `share`, scaled to sum to 1 over the classes.
    """

    share: np.ndarray
    weight: np.ndarray
    cost: np.ndarray

    def choose(self, joint: np.ndarray) -> np.ndarray:
        """(N, n_joint) products of the heads' probabilities -> (N,) the joint class that adds most."""
        return (_shared(joint, self.share) * self.weight - self.cost).argmax(-1)


@dataclass(frozen=True)
class Rule:
    """A rule fitted on out-of-fold predictions: a temperature per head, `gains` of `f1`, heads `shared` by a person.

    `shared` is empty if the persons are unknown.

    >>> rule = fm.fit_run(run, "calibrated")
    >>> rule.name, len(rule.temperatures)
    ('calibrated', 3)
    >>> rule.decide(run.probabilities).shape
    (84, 3)
    """

    name: str
    heads: Heads
    temperatures: tuple[float, ...]
    shared: tuple[str, ...] = ()
    gains: Gains | None = None

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, classes of all heads) probabilities of one model, each head's at its temperature."""
        parts = zip(self.heads.split(probabilities), self.temperatures, strict=True)
        return np.concatenate([apply_temperature(part, t) if t != 1 else part for part, t in parts], axis=-1)

    def averaged(self, probabilities: np.ndarray, persons: np.ndarray | None) -> np.ndarray:
        """The probabilities with shared heads averaged over the photos of each of (N,) persons."""
        if not self.shared:
            return probabilities
        if persons is None:
            raise UsageError("The rule averages over persons; give the person of each photo.")
        return average_persons(self.heads, probabilities, persons, self.shared)

    def choose(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated and averaged probabilities -> (N, heads) class numbers."""
        if self.gains is None:
            return self.heads.argmax(probabilities)
        y = self.heads.unjoint(self.gains.choose(self.heads.joint_probabilities(probabilities)))
        return np.where(y == UNKNOWN, self.heads.argmax(probabilities), y)

    def decide(self, probabilities: np.ndarray, persons: np.ndarray | None = None) -> np.ndarray:
        """(N, classes of all heads) probabilities of one model -> (N, heads) class numbers."""
        return self.choose(self.averaged(self.calibrated(probabilities), persons))


def fit_rule(
    name: str, heads: Heads, probabilities: np.ndarray, y: np.ndarray, persons: np.ndarray | None = None
) -> Rule:
    """Fit a rule on (N, classes of all heads) out-of-fold probabilities and their (N, heads) labels, -1 unknown.

    With (N,) `persons` the heads that belong to a person, by these labels, are averaged. Raises UsageError for an
    unknown name, and for `f1` with too many joint classes or without a photo of which all heads are known.
    """
    if name not in RULES:
        raise UsageError(f"There is no decision {name!r}; expected one of {', '.join(RULES)}.")
    columns = zip(heads.split(probabilities), y.T, strict=True)
    temperatures = tuple(1.0 if name == PLAIN else fit_temperature(part, labels) for part, labels in columns)
    rule = Rule(name, heads, temperatures, () if persons is None else shared_heads(heads, y, persons))
    if name != F1:
        return rule
    check_f1(heads, y)
    labels = heads.joint(y)
    known = labels != UNKNOWN
    joint = heads.joint_probabilities(rule.averaged(rule.calibrated(probabilities), persons))
    return replace(rule, gains=fit_gains(joint[known], labels[known]))


def check_f1(heads: Heads, y: np.ndarray) -> None:
    """Raise UsageError if `f1` cannot be fitted on (N, heads) labels."""
    if heads.n_joint > _MOST_JOINT:
        raise UsageError(
            f"The heads make {heads.n_joint} joint classes, and the decision f1 weighs at most {_MOST_JOINT}; "
            f"take {CALIBRATED} or {PLAIN}."
        )
    if (heads.joint(y) == UNKNOWN).all():
        raise UsageError(f"No photo has a label of every head, which the decision {F1} is fitted on; take {PLAIN}.")


def fit_gains(joint: np.ndarray, y: np.ndarray) -> Gains:
    """The gains of `f1` from the products (N, n_joint) of the heads' probabilities and the labels (N,).

    The product assumes that heads are independent, which they are not, so each class is first scaled to its share of
    the labels, the more so the more labels it has.
    """
    labels, sums = np.bincount(y, minlength=joint.shape[1]), joint.sum(0)
    share = np.where(labels, (labels + _AGREED) / (sums + _AGREED), 0.0)
    return Gains(share, *expected_gains(_shared(joint, share), np.flatnonzero(labels)))


def _shared(joint: np.ndarray, share: np.ndarray) -> np.ndarray:
    scaled = joint * share
    return scaled / np.maximum(scaled.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


def expected_gains(joint: np.ndarray, classes: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and cost per class that give the highest expected macro-F1 over `classes`.

    Expected by (N, n_joint) probabilities; the prediction is the class with the highest weight x probability - cost.

    The expected F1 of a class over answers x is near 2 tp / (true + answered), with tp = sum p x, true = sum p,
    answered = sum x. One more answer of the class adds its derivative, (2 p - F1) / (true + answered): linear in p, as
    the best classifiers for such scores are (Koyejo et al. 2015, Narasimhan et al. 2015). Frank-Wolfe steps make the
    answers consistent with it; the best of all steps are used. Labels are not used, since thresholds fitted to
    the few labels of a rare class fit noise. Classes that are not in `classes` are never predicted.
    """
    scored = np.isin(np.arange(joint.shape[1]), classes)
    true, rows = joint.sum(0), np.arange(len(joint))

    def counts(choice: np.ndarray) -> np.ndarray:
        hits = np.bincount(choice, joint[rows, choice], minlength=len(true))
        return np.stack([hits, np.bincount(choice, minlength=len(true))])

    state, tried = counts(joint.argmax(1)), []
    for step in range(_STEPS):
        weight, cost = _derivative(state, true, scored)
        reached = counts((joint * weight - cost).argmax(1))
        tried.append((f1(reached[0], reached[1], true)[scored].mean(), (weight, cost)))
        state = state + 2 / (step + 3) * (reached - state)
    return max(tried, key=lambda one: one[0])[1]


def _derivative(counts: np.ndarray, true: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and cost of one more answer of each class, by (2, classes) expected right answers and answers."""
    both = np.where(scored, true + counts[1], np.inf)
    return 2 / both, np.where(scored, f1(counts[0], counts[1], true) / both, np.inf)
