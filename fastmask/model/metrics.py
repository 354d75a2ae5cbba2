"""Metrics for fastai's Recorder: macro-F1 and accuracy of the joint class and of each head, counted on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.learner import Metric
from torch import Tensor

from fastmask.heads import UNKNOWN, Heads
from fastmask.scoring import JOINT, macro_f1


def count_classes(predicted: Tensor, true: Tensor, k: int) -> Tensor:
    """(N,) predicted and true class numbers -> (3, k): right answers, answers and truths a class; -1 is left out."""
    known = (true != UNKNOWN).to(torch.int64)
    place = true.clamp(min=0)
    counts = torch.zeros(3, k, dtype=torch.int64, device=true.device)
    counts[0].index_add_(0, place, known * (predicted == true))
    counts[1].index_add_(0, predicted, known)
    counts[2].index_add_(0, place, known)
    return counts


class _Counting(Metric):
    """Counts one target's classes batch by batch on the device; the host reads them once, for `value`.

    Without a known label the value is NaN.
    """

    score = ""

    def __init__(self, heads: Heads, target: str = JOINT) -> None:
        self.heads, self.target = heads, target
        self.k = heads.n_joint if target == JOINT else len(heads[target].classes)
        self.counts: Tensor | None = None

    def reset(self) -> None:
        self.counts = None

    def accumulate(self, learn: Any) -> None:
        logits, y = learn.pred.as_subclass(Tensor), learn.y.as_subclass(Tensor)
        counts = count_classes(*self._of_target(logits, y), self.k)
        self.counts = counts if self.counts is None else self.counts.add_(counts)

    def _of_target(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.target == JOINT:
            predicted = torch.stack([part.argmax(-1) for part in self.heads.split(logits)], dim=-1)
            return self.heads.joint(predicted), self.heads.joint(y)
        i = self.heads.position(self.target)
        return self.heads.split(logits)[i].argmax(-1), y[:, i]

    @property
    def name(self) -> str:
        return self.score if self.target == JOINT else f"{self.target}_{self.score}"


class MacroF1(_Counting):
    """Macro-F1 of the joint class ("macro_f1") or of one head ("age_macro_f1").

    The mean is over `classes`: give it those that the truth of the whole table has, so that it means the same in every
    fold. None takes the classes that the truth of the validation photos has.
    """

    score = "macro_f1"

    def __init__(self, heads: Heads, target: str = JOINT, classes: Sequence[int] | None = None) -> None:
        super().__init__(heads, target)
        self.classes = None if classes is None else list(classes)

    @property
    def value(self) -> float:
        if self.counts is None or not self.counts[2].any():
            return float("nan")
        hits, predicted, true = self.counts.cpu().numpy()
        kept = np.flatnonzero(true) if self.classes is None else self.classes
        return float(macro_f1(hits[kept], predicted[kept], true[kept]))


class Accuracy(_Counting):
    """Accuracy of the joint class ("accuracy") or of one head ("age_accuracy") over the photos whose label is known."""

    score = "accuracy"

    @property
    def value(self) -> float:
        hits, _, true = (0, 0, 0) if self.counts is None else self.counts.sum(1).tolist()
        return hits / true if true else float("nan")


def default_metrics(heads: Heads, y: np.ndarray | None = None) -> list[Metric]:
    """Macro-F1 and accuracy of the joint class, then of each head; `y` (N, heads) is the truth of the whole table."""
    metrics: list[Metric] = []
    for target in (JOINT, *heads.names) if len(heads) > 1 else (JOINT,):
        classes = None
        if y is not None:
            truth = heads.joint(y) if target == JOINT else y[:, heads.position(target)]
            classes = np.unique(truth[truth != UNKNOWN]).tolist()
        metrics += [MacroF1(heads, target, classes), Accuracy(heads, target)]
    return metrics
