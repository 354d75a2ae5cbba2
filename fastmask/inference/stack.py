"""Stack: a regularised linear model of the members' log-probabilities, fitted on their out-of-fold predictions.

Wolpert, Stacked generalization (1992).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from fastmask.inference.mixture import Arrays, Mixture, Operations, V, read_numbers, read_weights

# inverse strengths of the penalty that are tried, the strongest first
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# the minimum probability, since half precision rounds to 0; of persons, the parts to choose the penalty by
_LEAST, _PARTS, _STEPS = 1e-7, 5, 1000
# the intercept of a class that none of the labels has, so that its probability is 0
_NEVER = -1e4


@dataclass(frozen=True)
class Stack(Mixture):
    """Multinomial logistic regression: softmax of the members' log-probabilities times `coefficients` plus intercepts.

    `coefficients` are (members used, classes, classes), `intercepts` (classes,); `penalty` is scikit-learn's C, chosen
    on other persons than it is fitted on. `weights` are equal.
    """

    HOW = "stack"
    FITTED = True
    EXPECTED = f"{Mixture.EXPECTED}, with coefficients, intercepts and a penalty"

    coefficients: np.ndarray
    intercepts: np.ndarray
    penalty: float

    @classmethod
    def fit(cls, weights: np.ndarray, parts: Sequence[np.ndarray], y: np.ndarray, groups: np.ndarray) -> Self:
        x, classes = features(parts), parts[0].shape[1]
        penalty = choose_penalty(x, y, groups, classes)
        coefficients, intercepts = fit_regression(x, y, classes, penalty)
        return cls(weights, coefficients.reshape(len(parts), classes, classes), intercepts, penalty)

    def mix(self, operations: Operations[V], parts: Sequence[V], classes: int) -> V:
        logs = [operations.log(part, _LEAST) for part in parts]
        return operations.softmax(operations.linear(logs, self.coefficients, self.intercepts))

    def describe(self, names: Sequence[str]) -> str:
        own = self.coefficients.trace(axis1=1, axis2=2) / len(self.intercepts)
        each = ", ".join(f"{names[i]} {value:z.3f}" for i, value in zip(self.members, own, strict=True))
        return f"{each} (mean coefficient of a class's own log-probability; C {self.penalty:g})"

    def to_plain(self) -> Any:
        return {
            "weights": self.weights.tolist(),
            "coefficients": self.coefficients.tolist(),
            "intercepts": self.intercepts.tolist(),
            "penalty": self.penalty,
        }

    @classmethod
    def from_plain(cls, plain: Any, members: int, classes: int) -> Self:
        if not isinstance(plain, dict):
            raise ValueError("stack")
        weights = read_weights(plain.get("weights"), members)
        return cls(
            weights,
            read_numbers(plain.get("coefficients"), (int(np.count_nonzero(weights)), classes, classes)),
            read_numbers(plain.get("intercepts"), (classes,)),
            float(read_numbers(plain.get("penalty"), ())),
        )


def features(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(N, classes) probabilities of each member -> (N, members * classes) log-probabilities."""
    return np.concatenate([Arrays().log(part, _LEAST) for part in parts], axis=1)


def choose_penalty(x: np.ndarray, y: np.ndarray, groups: np.ndarray, classes: int) -> float:
    """The one of PENALTIES with the least log loss on persons that the model is not fitted on; of equals the strongest.

    Cross-validated over fifths of the (N,) groups; 1 if there is only one.
    """
    count = min(_PARTS, len(np.unique(groups)))
    if count < 2:
        return 1.0
    losses = np.zeros(len(PENALTIES))
    for others, here in GroupKFold(count).split(x, groups=groups):
        for i, penalty in enumerate(PENALTIES):
            coefficients, intercepts = fit_regression(x[others], y[others], classes, penalty)
            likely = Arrays().softmax(x[here] @ coefficients + intercepts)[np.arange(len(here)), y[here]]
            losses[i] -= np.log(np.maximum(likely, _LEAST)).sum()
    return PENALTIES[int(losses.argmin())]


def fit_regression(x: np.ndarray, y: np.ndarray, classes: int, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """The (inputs, classes) coefficients and (classes,) intercepts of scikit-learn's penalised logistic regression.

    With labels (N,) of fewer than two classes they are those of the members' geometric mean.
    """
    found = np.unique(y)
    if len(found) < 2:
        return np.tile(np.eye(classes), (x.shape[1] // classes, 1)) * classes / x.shape[1], np.zeros(classes)
    coefficients, intercepts = np.zeros((x.shape[1], classes)), np.full(classes, _NEVER)
    with warnings.catch_warnings():
        # the last step of an unpenalised fit is near enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=penalty, max_iter=_STEPS).fit(x, y)
    # of two classes scikit-learn has the second alone
    own = found if len(found) > 2 else found[1:]
    intercepts[found] = 0
    coefficients[:, own], intercepts[own] = model.coef_.T, model.intercept_
    return coefficients, intercepts
