"""Metrics for fastai's Recorder: macro-F1 and accuracy of the joint class and of each head, counted on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.learner import Metric
from torch import Tensor

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.scoring import macro_f1, target_of
from fastmask.system.errors import UsageError

# the most classes that are counted where nobody says which occur
_MOST_COUNTED = 10**6


def count_classes(predicted: Tensor, true: Tensor, classes: Tensor) -> Tensor:
    """(N,) predicted and true class numbers -> (3, k): right answers, answers and truths of each of (k,) `classes`.

    `classes` rise. Photos whose truth is -1 are left out; an answer or a truth outside `classes` is counted nowhere.
    """
    k = len(classes)
    counts = torch.zeros(3, k + 1, dtype=torch.int64, device=true.device)
    if k == 0:
        return counts[:, :0]
    predicted, true = predicted.contiguous(), true.contiguous()
    known = true != UNKNOWN
    for row, (who, counted) in enumerate(((true, known & (predicted == true)), (predicted, known), (true, known))):
        place = torch.searchsorted(classes, who).clamp(max=k - 1)
        # the last column takes what is not to be counted, so that nothing has to be selected on the device
        place = torch.where(counted & (classes[place] == who), place, k)
        counts[row].index_add_(0, place, torch.ones_like(place))
    return counts[:, :k]


class _Counting(Metric):
    """Adds up counts batch by batch on the device; the host reads them once, for `value`.

    Without a known label the value is NaN.
    """

    score = ""

    def __init__(self, heads: Heads, target: str = JOINT) -> None:
        self.heads, self.target = heads, target
        self.counts: Tensor | None = None

    def reset(self) -> None:
        self.counts = None

    def accumulate(self, learn: Any) -> None:
        logits, y = learn.pred.as_subclass(Tensor), learn.y.as_subclass(Tensor)
        if y.is_floating_point():
            # soft labels, in a metric of the training photos
            y = torch.from_numpy(self.heads.harden(y.cpu().numpy())).to(y.device)
        counts = self.count(*self._of_target(logits, y))
        self.counts = counts if self.counts is None else self.counts.add_(counts)

    def count(self, predicted: Tensor, true: Tensor) -> Tensor:
        """What a batch adds, from (B,) predicted and true class numbers."""
        raise NotImplementedError

    def _of_target(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.target == JOINT:
            predicted = torch.stack([part.argmax(-1) for part in self.heads.split(logits)], dim=-1)
            return self.heads.joint(predicted), self.heads.joint(y)
        i = self.heads.position(self.target)
        return logits[:, self.heads.offsets[i] : self.heads.offsets[i + 1]].argmax(-1), y[:, i]

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
        self.classes = None if classes is None else sorted(classes)
        size = heads.n_joint if target == JOINT else len(heads[target].classes)
        if classes is None and size > _MOST_COUNTED:
            raise UsageError(f"{target} has {size} classes; give the metric those that the truth has: classes=.")
        self._counted = torch.arange(size) if self.classes is None else torch.tensor(self.classes, dtype=torch.int64)

    def count(self, predicted: Tensor, true: Tensor) -> Tensor:
        self._counted = self._counted.to(true.device)
        return count_classes(predicted, true, self._counted)

    @property
    def value(self) -> float:
        if self.counts is None or not self.counts[2].any():
            return float("nan")
        counts = self.counts.cpu().numpy()
        return float(macro_f1(*(counts[:, counts[2] > 0] if self.classes is None else counts)))


class Accuracy(_Counting):
    """Accuracy of the joint class ("accuracy") or of one head ("age_accuracy") over the photos whose label is known."""

    score = "accuracy"

    def count(self, predicted: Tensor, true: Tensor) -> Tensor:
        known = true != UNKNOWN
        return torch.stack([(known & (predicted == true)).sum(), known.sum()])

    @property
    def value(self) -> float:
        hits, known = (0, 0) if self.counts is None else self.counts.tolist()
        return hits / known if known else float("nan")


def default_metrics(heads: Heads, y: np.ndarray | None = None) -> list[Metric]:
    """Macro-F1 and accuracy of the joint class, then of each head; `y` (N, heads) is the truth of the whole table."""
    metrics: list[Metric] = []
    for target in (JOINT, *heads.classified) if len(heads.joined) > 1 else (JOINT,):
        classes = None
        if y is not None:
            truth = target_of(heads, y, target)
            classes = np.unique(truth[truth != UNKNOWN]).tolist()
        metrics += [MacroF1(heads, target, classes), Accuracy(heads, target)]
    return metrics
