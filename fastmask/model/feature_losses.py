"""Losses on the pooled features of photos, added to the loss of the logits: ArcFace, supervised contrastive.

To add one, write a subclass of `FeatureLoss` and name it in `FEATURE_LOSSES`. Its keyword arguments with defaults are
what `feature_args` may set.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.config import Config
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some, shorten_repr

# centres of a class; more are typing errors
_MOST_CENTRES = 1000
# joint classes that have centres
_MOST_JOINT = 20_000


class FeatureLoss(nn.Module):
    """The loss of (B, features) features and (B,) class numbers, -1 if unknown; a subclass implements `of_each`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features, self.classes = features, classes

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        """The mean loss of the photos with a known class, 0 with a gradient of 0 if there are none."""
        known = y != UNKNOWN
        losses, weights = self.of_each(F.normalize(features.float()), y.clamp(min=0), known)
        weights = weights * known
        # not an index, which waits for a GPU
        total = weights.sum()
        return torch.where(weights > 0, losses, 0.0).sum() / total.clamp(min=1)

    def of_each(self, features: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """(B, features) of length 1, (B,) classes, (B,) which are known -> (B,) losses, and which of them count."""
        raise NotImplementedError


class ArcFace(FeatureLoss):
    """Additive angular margin loss (Deng et al. 2019), with `centres` per class (Deng et al. 2020, sub-centre ArcFace).

    The cosine of a photo to a class is that to the nearest of its centres. The angle to its own class is enlarged by
    `margin`, in radians, and the cosines times `scale` are the logits of a cross-entropy.
    """

    def __init__(
        self, features: int, classes: int, *, margin: float = 0.5, scale: float = 30.0, centres: int = 1
    ) -> None:
        super().__init__(features, classes)
        if not 0 <= margin < math.pi / 2 or not scale > 0 or not 1 <= centres <= _MOST_CENTRES:
            raise UsageError(
                f"ArcFace takes a margin from 0 to under {math.pi / 2:.2f}, a scale above 0 and 1 to {_MOST_CENTRES} "
                f"centres; found margin {margin:g}, scale {scale:g}, centres {centres}."
            )
        self.margin, self.scale, self.centres = margin, scale, centres
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes * centres, features)))

    def of_each(self, features: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        cosines = F.linear(features, F.normalize(self.weight.float()))
        cosines = cosines.view(len(features), self.classes, self.centres).amax(-1)
        own = cosines.gather(1, y[:, None])
        logits = self.scale * cosines.scatter(1, y[:, None], self._enlarge(own))
        return F.cross_entropy(logits, y, reduction="none"), torch.ones_like(y, dtype=features.dtype)

    def _enlarge(self, cosine: Tensor) -> Tensor:
        """The cosine of the angle plus the margin; beyond 180 degrees, the linear continuation of the paper's code."""
        sine = (1 - cosine**2).clamp(min=1e-12).sqrt()
        enlarged = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine < -math.cos(self.margin)
        return torch.where(beyond, cosine - self.margin * math.sin(self.margin), enlarged)


class SupervisedContrastive(FeatureLoss):
    """Supervised contrastive loss (Khosla et al. 2020, the sum outside the logarithm) over the photos of a batch.

    A photo is drawn to the photos of its class and away from all others, by their cosines over `temperature`. A photo
    whose class no other photo of the batch has does not count.
    """

    def __init__(self, features: int, classes: int, *, temperature: float = 0.1) -> None:
        super().__init__(features, classes)
        if not temperature > 0:
            raise UsageError(f"The contrastive loss takes a temperature above 0, found {temperature:g}.")
        self.temperature = temperature

    def of_each(self, features: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        others = known[None] & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        logits = (features @ features.T) / self.temperature
        log_p = logits - logits.masked_fill(~others, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
        alike = others & (y[:, None] == y[None])
        count = alike.sum(1)
        loss = -torch.where(alike, log_p, 0.0).sum(1) / count.clamp(min=1)
        return loss, (count > 0).to(loss)


# makes the loss for a number of features
MakeFeatureLoss = Callable[[int], FeatureLoss]
FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {"arcface": ArcFace, "supcon": SupervisedContrastive}


def feature_arguments(name: str) -> dict[str, Any]:
    """The arguments of a loss on features, with their defaults."""
    parameters = inspect.signature(FEATURE_LOSSES[name]).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def make_feature_loss(name: str, features: int, classes: int, arguments: Mapping[str, Any]) -> FeatureLoss:
    """The loss called `name`; raises UsageError for an argument that it does not take."""
    taken = feature_arguments(name)
    unknown = next((one for one in arguments if one not in taken), None)
    if unknown is not None:
        raise UsageError(f"feature_args: {name} takes no {unknown!r}; expected some of {join_some(list(taken))}.")
    for one, value in arguments.items():
        whole = isinstance(taken[one], int)
        if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
            wanted = "a whole number" if whole else "a number"
            raise UsageError(f"feature_args: {one} of {name} is {shorten_repr(value)}; expected {wanted}.")
    values = {one: type(taken[one])(value) for one, value in arguments.items()}
    return FEATURE_LOSSES[name](features, classes, **values)


def feature_loss_of(config: Config, heads: Heads) -> MakeFeatureLoss | None:
    """What makes the loss on features of a configuration; None without one."""
    if config.feature_loss is None:
        return None
    target = config.feature_head
    classes = heads.n_joint if target == JOINT else len(heads[target].classes)
    if config.feature_loss == "arcface" and target == JOINT and classes > _MOST_JOINT:
        raise UsageError(
            f"The heads {join_some(heads.classified)} make {classes:,} joint classes, and arcface has centres of at "
            f"most {_MOST_JOINT:,}; name one of the heads (--feature-head)."
        )
    return partial(make_feature_loss, config.feature_loss, classes=classes, arguments=config.feature_args or {})
