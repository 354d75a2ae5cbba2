"""Mix: mix-up and CutMix of a batch and its labels, which become soft labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastai.learner import Callback
from torch import Tensor

from fastmask.config import Config
from fastmask.data.halves import ANY, SAME
from fastmask.data.named_classes import find_class, is_of_any, is_of_class
from fastmask.heads import UNKNOWN, Heads
from fastmask.labels import hard_labels, mix_labels, soft_labels
from fastmask.system.errors import UsageError
from fastmask.training.guards import SkipUnreadable


def mix_callbacks(heads: Heads, config: Config) -> list[Callback]:
    """The callback `Mix`, if a configuration has it."""
    options = config.mixup, config.cutmix, config.mix_prob, config.mix_classes, config.mix_partner
    return [Mix(heads, *options)] if config.mixup or config.cutmix else []


class Mix(Callback):
    """Mixes each training batch, and its labels, with a permutation of itself, or some of its photos with others.

    A batch is mixed with `probability`: by mix-up (Zhang et al. 2018), where each photo's share is sampled from
    Beta(`mixup`, `mixup`), or by CutMix (Yun et al. 2019), where it is the area of a rectangle, from Beta(`cutmix`,
    `cutmix`); if neither is 0, each is chosen half of the time. Labels become soft, (B, classes of all heads), and a
    head that is unknown for one of two photos is unknown; the loss must accept soft labels, as `FocalLoss` does. Random
    numbers are those of `CountedSteps`. fastai's MixUp mixes losses instead, and counts unknown labels in their mean.

    With `classes`, names of `find_class`, only photos of these are mixed. With `partner` "same", the other photo is one
    of the same joint class, or with the name of a class one of that class, instead of any; a photo without one stays as
    it is. The class of a soft label is the one of most weight.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, cbs=fm.Mix(table.heads, mixup=0.4))
    >>> learn.mix.probability
    1.0
    """

    # after the labels of unreadable photos are removed
    order, run_valid = SkipUnreadable.order + 1, False

    def __init__(
        self,
        heads: Heads,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        probability: float = 1.0,
        classes: Sequence[str] | None = None,
        partner: str = ANY,
    ) -> None:
        if min(mixup, cutmix) < 0 or not 0 <= probability <= 1:
            raise UsageError(
                f"Mixing takes parameters of 0 or more and a probability, found {mixup:g}, {cutmix:g}, {probability:g}."
            )
        self.heads, self.probability, self.classes = heads, probability, classes
        self.partner = partner
        self._codes = None if partner in (ANY, SAME) else find_class(heads, partner)
        self.ways = [(way, alpha) for way, alpha in ((mix_up, mixup), (cut_mix, cutmix)) if alpha]

    def before_batch(self) -> None:
        (x,), (y,) = self.learn.xb, self.learn.yb
        x, labels = x.as_subclass(Tensor), soft_labels(y.as_subclass(Tensor), self.heads)
        if self.ways and torch.rand(()) < self.probability:
            way, alpha = self.ways[int(torch.randint(len(self.ways), ()))]
            order = self._pair(hard_labels(y.as_subclass(Tensor), self.heads))
            shares = torch.distributions.Beta(alpha, alpha).sample((len(x),))
            x, shares = way(x, x[order], shares)
            labels = mix_labels(labels, labels[order], to_device(shares, labels.device), self.heads)
        self.learn.xb, self.learn.yb = (x,), (labels,)

    def _pair(self, y: Tensor) -> Tensor:
        """The partner of each photo of a batch with class numbers (B, heads); its own position for one to leave."""
        own = torch.arange(len(y), device=y.device)
        if self.partner == ANY:
            order = to_device(torch.randperm(len(y)), y.device)
        else:
            chances = to_device(torch.rand(len(y), len(y)), y.device)
            values, order = chances.masked_fill(~self._allowed(y), -1).max(dim=1)
            order = torch.where(values < 0, own, order)
        return torch.where(is_of_any(y, self.heads, self.classes), order, own) if self.classes else order

    def _allowed(self, y: Tensor) -> Tensor:
        """(B, B) whether a photo may be mixed with another."""
        if self._codes is None:
            joint = self.heads.joint(y)
            allowed = (joint[:, None] == joint) & (joint != UNKNOWN)
        else:
            allowed = is_of_class(y, self._codes).expand(len(y), len(y))
        return allowed & ~torch.eye(len(y), dtype=torch.bool, device=y.device)


def mix_up(x: Tensor, others: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) photos, others, and the shares (B,) of these -> (1 - share) x photo + share x other, shares."""
    return torch.lerp(x, others, to_device(shares.to(x.dtype), x.device)[:, None, None, None]), shares


def cut_mix(x: Tensor, others: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Photos with a rectangle of the other photo, and its shares (B,) of the area.

    A rectangle has the photo's aspect ratio and a uniformly random centre, and is cropped at the photo's edges.
    """
    inside, areas = [], torch.ones(len(x))
    for length in x.shape[-2:]:
        centre, side = (torch.rand(len(x)) * length).long(), (shares.sqrt() * length).long()
        low, high = (centre - side // 2).clamp(min=0), (centre - side // 2 + side).clamp(max=length)
        place = torch.arange(length)
        inside.append((place >= low[:, None]) & (place < high[:, None]))
        areas *= (high - low).clamp(min=0) / length
    rows, columns = (to_device(part, x.device) for part in inside)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], others, x), areas


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
