"""Losses over logits (B, classes of all heads) and targets y (B, heads), where -1 is a label that nobody knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.errors import UsageError
from fastmask.heads import UNKNOWN, Heads


def focal(logits: Tensor, y: Tensor, gamma: float = 2.0, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The focal loss of each photo for one head, alpha_y (1 - p_y)^gamma (-log p_y) (Lin et al. 2017).

    (B, K) logits, (B,) class numbers -> (B,) losses, 0 where y is -1, and (B,) weights: alpha_y, or 1; 0 where unknown.
    """
    known = y != UNKNOWN
    classes = y.clamp(min=0)
    log_p = F.log_softmax(logits.float(), dim=-1).gather(1, classes[:, None]).squeeze(1)
    weights = known.to(log_p.dtype) if alpha is None else alpha.to(log_p)[classes] * known
    # the floor keeps the gradient finite at p = 1 for a gamma under 1
    loss = -log_p if gamma == 0 else -((-torch.expm1(log_p)).clamp(min=1e-12) ** gamma) * log_p
    return torch.where(known, loss, torch.zeros_like(loss)) * weights, weights


def distribution(logits: Tensor, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence of each photo's distribution over numbers from its target (label distribution learning, Gao 2017).

    (B, K) logits, (B,) class numbers, (K, K) the target of each class -> (B,) the Kullback-Leibler divergence, 0 where
    y is -1, and (B,) weights: 1, or 0 where unknown.
    """
    known = y != UNKNOWN
    target = targets[y.clamp(min=0)]
    loss = F.kl_div(F.log_softmax(logits.float(), dim=-1), target, reduction="none").sum(-1)
    return torch.where(known, loss, torch.zeros_like(loss)), known.to(loss.dtype)


def normal_targets(numbers: np.ndarray, spread: float) -> Tensor:
    """(K, K) for each of (K,) numbers the normal distribution around it over all of them."""
    apart = torch.from_numpy(numbers - numbers[:, None])
    return (-((apart / spread) ** 2) / 2).softmax(dim=-1).float()


class FocalLoss(nn.Module):
    """The sum over the heads of weight x mean focal loss; `gamma` 0 is cross-entropy.

    Of a head that is a distribution over a number it is the divergence from a normal one around the label.

    A head's mean is over its known labels, weighted by `alpha` as `F.cross_entropy` weighs its own; a head without a
    label in the batch adds exactly nothing, and its gradient is 0. `alpha` has a row of class weights a head, or None.
    `reduction` "none" gives (B,): the heads' weighted losses of each photo. `activation` and `decodes` let fastai turn
    logits into probabilities (B, classes of all heads) and class numbers (B, heads).

    fastai's MixUp and CutMix mix the two photos' losses, lam x loss(y) + (1 - lam) x loss(y of the other), and then
    take the mean over all photos of the batch: a label that nobody knows adds nothing, but its photo counts, and
    `alpha` scales the loss instead of weighing its mean.
    """

    # fastai's sign that two losses are to be mixed, not two class numbers
    y_int = True

    def __init__(
        self,
        heads: Heads,
        gamma: float = 2.0,
        alpha: Sequence[Sequence[float] | None] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise UsageError(f"The focal loss's gamma is {gamma}; expected 0 or more.")
        self.heads, self.gamma, self.reduction = heads, gamma, reduction
        for i, (head, row) in enumerate(zip(heads, alpha or [None] * len(heads), strict=True)):
            if row is not None and len(row) != len(head.classes):
                raise UsageError(f"alpha of head {head.name} has {len(row)} numbers for {len(head.classes)} classes.")
            if row is not None and head.spread is not None:
                raise UsageError(f"Head {head.name} is a distribution over a number, and takes no alpha.")
            self.register_buffer(f"alpha{i}", None if row is None else torch.tensor(row, dtype=torch.float32))
            targets = None if head.spread is None else normal_targets(head.numbers, head.spread)
            self.register_buffer(f"targets{i}", targets)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B, classes of all heads) logits, (B, heads) class numbers -> a scalar, or (B,) with reduction "none"."""
        logits, y = logits.as_subclass(Tensor), y.as_subclass(Tensor)
        total = torch.zeros(len(y), device=logits.device) if self.reduction == "none" else logits.new_zeros(())
        for i, (head, part) in enumerate(zip(self.heads, self.heads.split(logits), strict=True)):
            if head.spread is None:
                loss, weights = focal(part, y[:, i], self.gamma, getattr(self, f"alpha{i}"))
            else:
                loss, weights = distribution(part, y[:, i], getattr(self, f"targets{i}"))
            if self.reduction == "mean":
                # the smallest normal number keeps an empty head at 0 / tiny = 0
                loss = loss.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
            elif self.reduction == "sum":
                loss = loss.sum()
            total = total + head.weight * loss
        return total

    def activation(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities, each head's summing to 1."""
        return torch.cat([part.float().softmax(-1) for part in self.heads.split(logits)], dim=-1)

    def decodes(self, scores: Tensor) -> Tensor:
        """Logits or probabilities -> (B, heads) most probable class of each head."""
        return torch.stack([part.argmax(-1) for part in self.heads.split(scores)], dim=-1)


class CrossEntropyLoss(FocalLoss):
    """The sum over the heads of weight x mean cross-entropy: the focal loss at gamma 0."""

    def __init__(
        self, heads: Heads, alpha: Sequence[Sequence[float] | None] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(heads, gamma=0.0, alpha=alpha, reduction=reduction)
