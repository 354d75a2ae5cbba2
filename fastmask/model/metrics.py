"""Metrics for fastai's Recorder: macro-F1 and accuracy of the joint class and of each head, counted on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.learner import Metric
from torch import Tensor

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.labels import join_parts
from fastmask.model.losses import probabilities_of
from fastmask.scoring import known_classes, macro_f1, target_of
from fastmask.system.errors import UsageError

# the most classes that are counted if `classes` are not given
_MOST_COUNTED = 10**6


def count_classes(predicted: Tensor, true: Tensor, classes: Tensor) -> Tensor:
    """(N,) predicted and true class numbers -> (3, k) hits, predictions and truths of each of (k,) rising `classes`.

    Photos with truth -1 are left out; predictions and truths outside `classes` are not counted.
    """
    k = len(classes)
    counts = torch.zeros(3, k + 1, dtype=torch.int64, device=true.device)
    if k == 0:
        return counts[:, :0]
    predicted, true = predicted.contiguous(), true.contiguous()
    known = true != UNKNOWN
    for row, (who, counted) in enumerate(((true, known & (predicted == true)), (predicted, known), (true, known))):
        place = torch.searchsorted(classes, who).clamp(max=k - 1)
        # the last column is for those not counted, so that nothing has to be selected on the device
        place = torch.where(counted & (classes[place] == who), place, k)
        counts[row].index_add_(0, place, torch.ones_like(place))
    return counts[:, :k]


class _Counting(Metric):
    """Adds up counts per batch on the device; the host reads them once, for `value`, which is NaN without labels."""

    score = ""

    def __init__(self, heads: Heads, target: str = JOINT) -> None:
        self.heads, self.target = heads, target
        self.counts: Tensor | None = None

    def reset(self) -> None:
        self.counts = None

    def accumulate(self, learn: Any) -> None:
        logits, y = learn.pred.as_subclass(Tensor), learn.y.as_subclass(Tensor)
        if y.is_floating_point():
            # soft labels of training photos
            y = torch.from_numpy(self.heads.harden(join_parts(y).cpu().numpy())).to(y.device)
        counts = self.count(*self._of_target(logits, y))
        self.counts = counts if self.counts is None else self.counts.add_(counts)

    def count(self, predicted: Tensor, true: Tensor) -> Tensor:
        """The counts of a batch of (B,) predicted and true class numbers."""
        raise NotImplementedError

    def _of_target(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # logits do as well without a joint head
        scores = logits if self.heads.joint_head is None else probabilities_of(logits, self.heads)
        predicted = torch.stack(self.heads.choose(scores), dim=-1)
        if self.target == JOINT:
            return self.heads.joint(predicted), self.heads.joint(y)
        i = self.heads.position(self.target)
        return predicted[:, i], y[:, i]

    @property
    def name(self) -> str:
        return self.score if self.target == JOINT else f"{self.target}_{self.score}"


class MacroF1(_Counting):
    """Macro-F1 of the joint class ("macro_f1") or of one head ("age_macro_f1").

    It takes logits (B, classes of all heads) and class numbers (B, heads), -1 where unknown.

    The mean is over `classes`: those of the whole table's labels make it comparable between folds and epochs, which
    final scores are not: they also count classes that are only predicted, as scikit-learn does. None takes the classes
    of the validation photos' labels.

    >>> from types import SimpleNamespace
    >>> macro_f1 = fm.MacroF1(fm.Heads([fm.Head("mask", ("wear", "none"))]))
    >>> logits, y = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[0], [1]])
    >>> macro_f1.reset()
    >>> macro_f1.accumulate(SimpleNamespace(pred=logits, y=y))
    >>> round(macro_f1.value, 4)
    0.3333
    """

    score = "macro_f1"

    def __init__(self, heads: Heads, target: str = JOINT, classes: Sequence[int] | None = None) -> None:
        super().__init__(heads, target)
        self.classes = None if classes is None else sorted(classes)
        size = heads.n_joint if target == JOINT else len(heads[target].classes)
        if classes is None and size > _MOST_COUNTED:
            raise UsageError(f"{target} has {size} classes; give the metric those of the labels: classes=.")
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
    """Accuracy of the joint class ("accuracy") or of one head ("age_accuracy") over photos with a known label.

    It takes logits (B, classes of all heads) and class numbers (B, heads), as `MacroF1` does.

    >>> from types import SimpleNamespace
    >>> accuracy = fm.Accuracy(fm.Heads([fm.Head("mask", ("wear", "none"))]))
    >>> logits, y = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[0], [1]])
    >>> accuracy.reset()
    >>> accuracy.accumulate(SimpleNamespace(pred=logits, y=y))
    >>> accuracy.value
    0.5
    """

    score = "accuracy"

    def count(self, predicted: Tensor, true: Tensor) -> Tensor:
        known = true != UNKNOWN
        return torch.stack([(known & (predicted == true)).sum(), known.sum()])

    @property
    def value(self) -> float:
        hits, known = (0, 0) if self.counts is None else self.counts.tolist()
        return hits / known if known else float("nan")


def default_metrics(heads: Heads, y: np.ndarray | None = None) -> list[Metric]:
    """Macro-F1 and accuracy of the joint class, then of each head; `y` (N, heads) are the whole table's labels."""
    metrics: list[Metric] = []
    for target in (JOINT, *heads.classified) if len(heads.joined) > 1 else (JOINT,):
        classes = None if y is None else known_classes(target_of(heads, y, target))
        metrics += [MacroF1(heads, target, classes), Accuracy(heads, target)]
    return metrics
