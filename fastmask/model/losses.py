"""Losses over logits (B, classes of all heads) and targets y, which are class numbers or soft labels.

Class numbers are (B, heads) int64, -1 where a label is unknown; soft labels are (B, classes of all heads) float, or in
two parts with a teacher at a temperature, see `fastmask.labels`. To add a loss for one head, write a subclass of
`HeadLoss`, name it in `HEAD_LOSSES`, and add the name to `HeadLossName` (fastmask/config.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.config import HeadOptions
from fastmask.heads import Head, Heads
from fastmask.labels import broadcast_photos, join_parts, soft_labels
from fastmask.model.head_layers import Options, check_options
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some


def smooth_labels(labels: Tensor, share: float) -> Tensor:
    """(B, K) soft labels with a `share` of their weight spread evenly over all classes (Szegedy et al. 2016)."""
    return labels * (1 - share) + labels.sum(-1, keepdim=True) * (share / labels.shape[-1]) if share else labels


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """The focal loss of one head: of a class number y, (1 - p_y)^gamma (-log p_y) (Lin et al. 2017).

    (B, K) logits, (B, K) soft labels -> (B,) losses: weight x d^gamma x cross-entropy, with the weight and the
    distribution q of the label, and the total variation d, half the sum of |q - p|: quality focal loss (Li et al. 2020)
    for a softmax. So the minimum is at p = q for every gamma, and gamma 0 is cross-entropy. With (1 - p_c)^gamma for
    each class c it would be at a less confident p: at 0.69 for a label of 0.9 and gamma 2.
    """
    log_p, (q, weights) = F.log_softmax(logits.float(), dim=-1), _normalize(labels)
    # the sum of q - p where it is above 0, exact also where both are near 1
    variation = (q * F.relu(-torch.expm1(log_p - torch.where(q > 0, q, 1.0).log()))).sum(-1)
    # the floor keeps the gradient finite at p = q for a gamma under 1
    return weights * (variation.clamp(min=1e-12) ** gamma * -(q * log_p).sum(-1))


def coral(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over the thresholds between ordered classes of the binary cross-entropy (Cao, Mirjalili, Raschka 2020).

    (B, K) logits, (B, K) soft labels -> (B,) losses. The probability to be above a threshold is the sum of those of the
    classes above it, and so is its label.
    """
    log_p, loss = F.log_softmax(logits.float(), dim=-1), labels.new_zeros(len(labels))
    for k in range(1, labels.shape[-1]):
        below, above = (part.sum(-1) for part in (labels[:, :k], labels[:, k:]))
        loss = loss - below * log_p[:, :k].logsumexp(-1) - above * log_p[:, k:].logsumexp(-1)
    return loss


def distillation(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The divergence of a student from its teacher, both at a temperature T, times T^2 (Hinton, Vinyals, Dean 2015).

    (B, K) logits, (B, K) probabilities of the teacher at T = 1, each row times a weight -> (B,) losses: weight x T^2
    KL(teacher, student). The minimum is at the teacher's probabilities, for every T.
    """
    q, weights = _normalize(labels)
    softened, _ = _normalize(q ** (1 / temperature))
    log_p = F.log_softmax(logits.float() / temperature, dim=-1)
    return weights * temperature**2 * F.kl_div(log_p, softened, reduction="none").sum(-1)


def _normalize(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) soft labels -> (B, K) distributions, all 0 if unknown, and (B,) weights."""
    weights = labels.sum(-1)
    return labels / weights.clamp(min=torch.finfo(weights.dtype).tiny)[:, None], weights


def soft_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - macro-F1 of a batch for one head, with probabilities for counts (Bénédict et al. 2021, sigmoidF1).

    (B, K) logits, (B, K) soft labels -> a scalar, the mean over the classes of the labels; 0 without any label.
    """
    p = F.softmax(logits.float(), dim=-1) * labels.sum(-1, keepdim=True)
    truth = labels.sum(0)
    tiny = torch.finfo(p.dtype).tiny
    f1 = 2 * (p * labels).sum(0) / (p.sum(0) + truth).clamp(min=tiny)
    there = (truth > 0).to(p.dtype)
    return ((1 - f1) * there).sum() / there.sum().clamp(min=1)


def distribution(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence of a distribution over numbers from its target (label distribution learning, Gao 2017).

    (B, K) logits, (B, K) soft labels, (K, K) the target of each class -> (B,) Kullback-Leibler divergences, multiplied
    by the labels' weights, and (B,) these weights, 0 if unknown.
    """
    weights = labels.sum(-1)
    # not a matrix product, which bf16 and TF32 would round
    target = (labels[:, :, None] * targets).sum(1)
    loss = F.kl_div(F.log_softmax(logits.float(), dim=-1), target, reduction="none").sum(-1)
    return loss - torch.xlogy(weights, weights), weights


def normal_targets(numbers: np.ndarray, spread: float) -> Tensor:
    """(K, K) for each of (K,) numbers a normal distribution around it over all of them."""
    apart = torch.from_numpy(numbers - numbers[:, None])
    return (-((apart / spread) ** 2) / 2).softmax(dim=-1).float()


def probabilities_of(logits: Tensor, heads: Heads) -> Tensor:
    """(B, classes of all heads) logits -> probabilities, each head's summing to 1."""
    return torch.cat([part.float().softmax(-1) for part in heads.split(logits)], dim=-1)


class HeadLoss(nn.Module):
    """The loss of one head; a subclass implements `each`, and may implement `distil`."""

    # buffers of the subclasses
    alpha: Tensor | None
    targets: Tensor

    def each(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) logits, (B, K) soft labels -> (B,) the loss of each photo, and (B,) its weight in the mean."""
        raise NotImplementedError

    def distil(self, logits: Tensor, own: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        """As `each`, for labels in two parts (B, K): of the photo's own label, and of the teacher's probabilities."""
        return self.each(logits, own + taught)

    def per_photo(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `each`, for labels (B, K), or (B, 2, K) in two parts."""
        return self.distil(logits, *labels.unbind(1)) if labels.dim() == 3 else self.each(logits, labels)

    def weights(self, labels: Tensor) -> Tensor:
        """(B,) the weight of each photo in the mean, for labels as in `per_photo`."""
        return join_parts(labels).sum(-1)

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean over a batch, 0 with a gradient of 0 where no label is known."""
        loss, weights = self.per_photo(logits, labels)
        total = weights.sum()
        # a smoothed label whose class has an alpha of 0 has a loss, and no weight
        return loss.sum() * (total > 0) / total.clamp(min=torch.finfo(total.dtype).tiny)


class ClassLoss(HeadLoss):
    """The focal loss of a head with classes, or in a subclass another `loss`; soft F1 replaces its share `f1_share`."""

    def __init__(
        self,
        head: Head,
        alpha: Sequence[float] | None,
        gamma: float,
        label_smoothing: float,
        f1_share: float,
        temperature: float,
    ) -> None:
        super().__init__()
        if alpha is not None and len(alpha) != len(head.classes):
            classes = f"{len(head.classes)} classes ({join_some(head.classes)})"
            raise UsageError(f"alpha (--class-weight) of head {head.name} has {len(alpha)} numbers for {classes}.")
        self.gamma, self.label_smoothing, self.f1_share = gamma, label_smoothing, f1_share
        self.temperature = temperature
        self.register_buffer("alpha", None if alpha is None else torch.tensor(alpha, dtype=torch.float32))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B, K) soft labels -> (B,) losses, multiplied by the labels' weights."""
        return focal(logits, labels, self.gamma)

    def each(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.loss(logits, self._weigh(smooth_labels(labels, self.label_smoothing)))
        return loss, self._weigh(labels).sum(-1)

    def distil(self, logits: Tensor, own: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        loss, weights = self.each(logits, own)
        taught = self._weigh(taught)
        return loss + distillation(logits, taught, self.temperature), weights + taught.sum(-1)

    def weights(self, labels: Tensor) -> Tensor:
        return self._weigh(join_parts(labels)).sum(-1)

    def _weigh(self, labels: Tensor) -> Tensor:
        return labels if self.alpha is None else labels * self.alpha.to(labels)

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().mean(logits, labels)
        return (
            (1 - self.f1_share) * loss + self.f1_share * soft_f1(logits, join_parts(labels)) if self.f1_share else loss
        )


class CrossEntropyClassLoss(ClassLoss):
    """Cross-entropy; of a layer for classes in order, the negative log-likelihood of a cumulative link model."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return focal(logits, labels, 0.0)


class CoralLoss(ClassLoss):
    """The binary cross-entropies of the thresholds between classes in order; see `coral`."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return coral(logits, labels)


class DistributionLoss(HeadLoss):
    """The divergence from a normal distribution around the label, for a head of numbers with a `spread`."""

    def __init__(self, head: Head, alpha: Sequence[float] | None, **_: float) -> None:
        super().__init__()
        if alpha is not None:
            raise UsageError(f"Head {head.name} is a distribution over a number, and takes no alpha.")
        assert head.spread is not None
        self.register_buffer("targets", normal_targets(head.numbers, head.spread))

    def each(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return distribution(logits, labels, self.targets)


DISTRIBUTION = "distribution"
# by name; each is called with a head, its row of alpha or None, and by name with the numbers of `FocalLoss`
HEAD_LOSSES: dict[str, type[HeadLoss]] = {
    "focal": ClassLoss,
    "ce": CrossEntropyClassLoss,
    "coral": CoralLoss,
    # its layer makes it a cumulative link model
    "cumulative": CrossEntropyClassLoss,
    DISTRIBUTION: DistributionLoss,
}
# the settings of a loss that a head may have its own of
_NUMBERS = ("gamma", "label_smoothing", "f1_share")


def _build_head_loss(
    head: Head, alpha: Sequence[float] | None, loss: str, own: HeadOptions, shared: dict[str, float]
) -> HeadLoss:
    """The loss of a head: its own options, over those that all heads share."""
    given = {name: getattr(own, name) for name in _NUMBERS if getattr(own, name) is not None}
    name = DISTRIBUTION if head.spread is not None else own.loss or loss
    return HEAD_LOSSES[name](head, alpha, **{**shared, **given})


class FocalLoss(nn.Module):
    """The sum over the heads of weight x mean loss: the focal loss, or of a distribution over a number its divergence.

    It takes logits (B, classes of all heads), and labels: (B, heads) class numbers, -1 where unknown, or soft ones.

    `gamma` 0 is cross-entropy. `alpha` has a row of class weights per head, or None. `label_smoothing` spreads a share
    of each label over all classes. `f1_share` is the share of the loss that is replaced by the batch's soft F1; it has
    no value for one photo, so "none" and "sum" leave it out. `temperature` is that of `distillation`, the loss of
    the teacher's part of labels in two parts, to which gamma and smoothing do not apply. None of these applies to
    distributions.

    With gamma 0 the loss of class numbers is that of `F.cross_entropy(weight=alpha, label_smoothing=...)`. One-hot soft
    labels have the same loss: each class counts by its alpha, and a head's mean is over the alphas of its known labels,
    before smoothing, where PyTorch divides soft labels by the photos. With alpha, the
    minimum is therefore at label x alpha, as with PyTorch. A head without a label in the batch adds exactly nothing,
    and its gradient is 0. `reduction` "none" gives (B,): the heads' weighted losses of each photo. `activation` and
    `decodes` let fastai turn logits into probabilities (B, classes of all heads) and class numbers (B, heads).

    fastai's MixUp and CutMix mix the two photos' losses, lam x loss(y) + (1 - lam) x loss(y of the other), and then
    take the mean over all photos of the batch: an unknown label adds nothing, but its photo counts, and `alpha` scales
    the loss instead of weighing its mean.

    `loss` is the loss of each head with classes: focal, or ce for cross-entropy. `per_head` are the options of single
    heads by name, which replace it and the numbers above: coral and cumulative, for classes in order, fit a network
    that was built with the same `per_head`.

    A head that merges the classes of another, see `Heads.merges`, is trained by the other's loss; its own is that of
    photos for which only its label is known, at gamma 0 the negative log-likelihood of a union of classes. Each photo
    counts once in the other's mean.

    >>> heads = fm.Heads([fm.Head("mask", ("wear", "not wear"))])
    >>> logits, y = torch.zeros(1, 2), torch.tensor([[0]])
    >>> fm.FocalLoss(heads, gamma=2)(logits, y)
    tensor(0.1733)
    >>> round((1 - 0.5) ** 2 * -np.log(0.5).item(), 4)
    0.1733
    """

    # for fastai: mix two losses, not two targets
    y_int = True

    def __init__(
        self,
        heads: Heads,
        gamma: float = 2.0,
        alpha: Sequence[Sequence[float] | None] | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        f1_share: float = 0.0,
        temperature: float = 1.0,
        loss: str = "focal",
        per_head: Options | None = None,
    ) -> None:
        super().__init__()
        check_options(heads, per_head or {})
        if gamma < 0:
            raise UsageError(f"The focal loss's gamma is {gamma}; expected 0 or more.")
        for name, share in (("label smoothing", label_smoothing), ("share of soft F1", f1_share)):
            if not 0 <= share <= 1:
                raise UsageError(f"The focal loss's {name} is {share}; expected 0 to 1.")
        if not temperature > 0:
            raise UsageError(f"The focal loss's temperature is {temperature}; expected above 0.")
        self.heads, self.gamma, self.reduction = heads, gamma, reduction
        options = {
            "gamma": gamma,
            "label_smoothing": label_smoothing,
            "f1_share": f1_share,
            "temperature": temperature,
        }
        rows = zip(heads, alpha or [None] * len(heads), strict=True)
        merges = {number: heads.merges(number) for number in range(len(heads))}
        self._merging = {number: merge[0] for number, merge in merges.items() if merge is not None}
        # a head that merges another's classes has the options of the other
        named = [heads[self._merging.get(number, number)].name for number in range(len(heads))]
        own = [(per_head or {}).get(name, HeadOptions()) for name in named]
        self.losses = nn.ModuleList(
            [_build_head_loss(head, row, loss, each, options) for (head, row), each in zip(rows, own, strict=True)]
        )
        self.register_load_state_dict_pre_hook(_rename_buffers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # of a learner that an earlier version exported, with a buffer alpha0, alpha1, ... per head
        if "losses" not in self._modules:
            buffers = [self._buffers[f"alpha{i}"] for i in range(len(self.heads))]
            alpha = [None if row is None else row.tolist() for row in buffers]
            shares = state["label_smoothing"], state["f1_share"]
            FocalLoss.__init__(self, self.heads, self.gamma, alpha, self.reduction, *shares)
        # or without heads that merge others
        self._merging = state.get("_merging", {})

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B, classes of all heads) logits, targets of either kind -> a scalar, or (B,) with reduction "none"."""
        logits = logits.as_subclass(Tensor)
        labels = soft_labels(y.as_subclass(Tensor), self.heads)
        total = torch.zeros(len(y), device=logits.device) if self.reduction == "none" else logits.new_zeros(())
        parts = list(zip(self.losses, self.heads.split(logits), self.heads.split(labels), strict=True))
        for number, (head, (loss, part, wanted)) in enumerate(zip(self.heads, parts, strict=True)):
            if number in self._merging:
                continue
            assert isinstance(loss, HeadLoss)
            unions = [parts[other] for other, source in self._merging.items() if source == number]
            if self.reduction == "mean":
                value = loss.mean(part, wanted)
            else:
                value, _ = loss.per_photo(part, wanted)
            if unions:
                value = self._add_unions(value, wanted, loss, unions)
            total = total + head.weight * (value.sum() if self.reduction == "sum" else value)
        return total

    def _add_unions(self, value: Tensor, wanted: Tensor, loss: HeadLoss, unions: Sequence[Any]) -> Tensor:
        """The loss of a head, with that of the photos for which only heads that merge its classes have a label."""
        unknown = (wanted.flatten(1).sum(1) == 0).to(wanted.dtype)
        each = [other.per_photo(part, labels * broadcast_photos(unknown, labels)) for other, part, labels in unions]
        losses = torch.stack([one for one, _ in each]).sum(0)
        if self.reduction != "mean":
            return value + losses
        own = loss.weights(wanted).sum()
        more = torch.stack([weights for _, weights in each]).amax(0).sum()
        return (value * own + losses.sum()) / (own + more).clamp(min=torch.finfo(own.dtype).tiny)

    def activation(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities, each head's summing to 1."""
        return probabilities_of(logits, self.heads)

    def decodes(self, scores: Tensor) -> Tensor:
        """Logits or probabilities -> (B, heads) predicted class of each head, see `Heads.choose`."""
        sums = torch.stack([part.sum(-1) for part in self.heads.split(scores)])
        given = bool((scores >= 0).all() and torch.isclose(sums, torch.ones_like(sums), atol=1e-2).all())
        return torch.stack(self.heads.choose(scores if given else self.activation(scores)), dim=-1)


def _rename_buffers(loss: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Accept the names alpha0 and targets0 of earlier versions, in the states of unfinished runs."""
    for name in list(state):
        old = re.fullmatch(rf"{re.escape(prefix)}(alpha|targets)([0-9]+)", name)
        if old:
            state[f"{prefix}losses.{old[2]}.{old[1]}"] = state.pop(name)


class CrossEntropyLoss(FocalLoss):
    """The sum over the heads of weight x mean cross-entropy: `FocalLoss` at gamma 0, with the same shapes.

    >>> heads = fm.contest_heads()
    >>> y = torch.tensor([[0, 1, 2]])
    >>> loss = fm.CrossEntropyLoss(heads)(torch.zeros(1, heads.n_logits), y)
    >>> round(loss.item(), 4), round(np.log(3 * 2 * 3).item(), 4)
    (2.8904, 2.8904)
    """

    def __init__(
        self,
        heads: Heads,
        alpha: Sequence[Sequence[float] | None] | None = None,
        reduction: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(heads, gamma=0.0, alpha=alpha, reduction=reduction, **options)
