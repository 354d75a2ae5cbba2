"""Head layers: from the features of a photo to the logits of one head.

A layer is called with the (B, features) features and the logits of the heads that are computed before it, by position,
and returns (B, classes) logits, whose softmax is the probabilities of the classes. So all that follows takes the
softmax of a head's logits, however they are computed: a layer whose probabilities have another form returns their
logarithms. What a head has of its own is in its `HeadOptions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.config import LOSS_OPTIONS, ORDINAL, HeadOptions
from fastmask.heads import Head, Heads
from fastmask.model.pooling import build_pool, pooled_features
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some

Logits = Mapping[int, Tensor]
Options = Mapping[str, HeadOptions]
# the least distance of two thresholds
_LEAST_GAP = 1e-6


class HeadInput(nn.Module):
    """The features of a head that pools the body's map by itself, or has its own dropout."""

    def __init__(self, pool: str | None, drop_rate: float) -> None:
        super().__init__()
        self.pool = None if pool is None else build_pool(pool)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, features: Tensor, places: Tensor | None) -> Tensor:
        """(B, features) before dropout, and the map (B, channels, places, 1) if a head pools -> (B, features)."""
        own: Tensor = self.dropout(features if self.pool is None else self.pool(places))
        return own


class HeadLayer(nn.Module):
    """The base of all layers; `input` is None for features that all heads share, after their dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.input: HeadInput | None = None


class LinearLayer(HeadLayer):
    """A linear layer on the features."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        linear = nn.Linear(features, classes)
        # not the layer itself, so that checkpoints keep the names of its tensors
        self.weight, self.bias = linear.weight, linear.bias

    @classmethod
    def of(cls, linear: nn.Module) -> LinearLayer:
        """The layer with the weights of another linear one."""
        assert isinstance(linear, nn.Linear)
        made = cls(linear.in_features, linear.out_features)
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """(B, features) -> (B, classes) logits."""
        return F.linear(features, self.weight, self.bias)


class MergedLayer(HeadLayer):
    """The logits of classes that are unions of the classes of another head: the logarithms of their sums.

    `source` is the position of the other head, `target` (classes of the other head,) the class that each becomes.
    """

    def __init__(self, source: int, target: np.ndarray) -> None:
        super().__init__()
        self.source = source
        self.groups = [np.flatnonzero(target == number).tolist() for number in range(int(target.max()) + 1)]

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """The logits of the other head -> (B, classes) logits."""
        finer = logits[self.source].float()
        return torch.stack([finer[:, group].logsumexp(-1) for group in self.groups], dim=1)


class OrdinalLayer(HeadLayer):
    """Classes in order: one score per photo, and rising thresholds between the classes (McCullagh 1980).

    P(class <= k) = sigmoid(threshold k - score): cumulative link, or proportional odds. At first, a score of 0 gives
    all classes the same probability.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Linear(features, 1, bias=False).weight
        shares = torch.arange(1, classes, dtype=torch.float64) / classes
        thresholds = torch.logit(shares)
        self.first = nn.Parameter(thresholds[:1].float())
        # the inverse of softplus, so that later thresholds are above the earlier ones
        self.steps = nn.Parameter(thresholds.diff().expm1().log().float())

    def thresholds(self) -> tuple[Tensor, Tensor]:
        """(classes - 1,) rising thresholds and (classes - 2,) their distances, float32."""
        gaps = F.softplus(self.steps.float()).clamp(min=_LEAST_GAP)
        first = self.first.float()
        return torch.cat([first, first + gaps.cumsum(0)]), gaps

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """(B, features) -> (B, classes) logarithms of probabilities."""
        thresholds, gaps = self.thresholds()
        above = thresholds - F.linear(features, self.weight).float()
        below_log, above_log = F.logsigmoid(above), F.logsigmoid(-above)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which does not cancel
        between = below_log[:, 1:] + above_log[:, :-1] + torch.log(-torch.expm1(-gaps))
        return torch.cat([below_log[:, :1], between, above_log[:, -1:]], dim=1)


class HiddenLayer(HeadLayer):
    """A hidden layer with ReLU and dropout before another layer."""

    def __init__(self, features: int, units: int, drop_rate: float, output: HeadLayer) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, units)
        self.dropout = nn.Dropout(drop_rate)
        self.output = output

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """(B, features) -> (B, classes) logits."""
        made: Tensor = self.output(self.dropout(F.relu(self.hidden(features))), logits)
        return made


class RoutedLayer(HeadLayer):
    """A layer per class of another head, mixed by its probabilities: a mixture of experts (Jacobs et al. 1991).

    `router` is the position of the other head, which does not learn from the mixture.
    """

    def __init__(self, router: int, experts: list[HeadLayer]) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.ModuleList(experts)

    def forward(self, features: Tensor, logits: Logits) -> Tensor:
        """(B, features), the logits of the other head -> (B, classes) logarithms of probabilities."""
        shares = logits[self.router].detach().float().log_softmax(-1)
        each = [expert(features, logits).float().log_softmax(-1) for expert in self.experts]
        return (torch.stack(each, dim=1) + shares[:, :, None]).logsumexp(1)


def build_head_layers(
    heads: Heads, features: int, options: Options | None = None, drop_rate: float = 0.0, channels: int | None = None
) -> list[HeadLayer]:
    """A layer per head, on `features` features, or if it pools by itself on a map of `channels`.

    `options` are by the names of heads, `drop_rate` is the dropout of the heads without their own. Raises UsageError
    for options that the heads cannot have.
    """
    options = options or {}
    check_options(heads, options)
    layers: list[HeadLayer] = []
    for position, head in enumerate(heads):
        merged = heads.merges(position)
        own = options.get(head.name, HeadOptions())
        rate = drop_rate if own.drop_rate is None else own.drop_rate
        width = features if own.pool is None else pooled_features(own.pool, channels or features)
        if merged is not None:
            layer: HeadLayer = MergedLayer(*merged)
        elif own.router is not None:
            router = heads.position(own.router)
            layer = RoutedLayer(router, [_build_layer(head, width, own, rate) for _ in heads[router].classes])
        else:
            layer = _build_layer(head, width, own, rate)
        if own.pool is not None or own.drop_rate is not None:
            layer.input = HeadInput(own.pool, rate)
        layers.append(layer)
    return layers


def _build_layer(head: Head, features: int, options: HeadOptions, drop_rate: float) -> HeadLayer:
    """The layer of a head that is not routed."""
    width = options.hidden or features
    kind = OrdinalLayer if options.loss in ORDINAL else LinearLayer
    output = kind(width, len(head.classes))
    # the output first, whose random weights are those of a head without a hidden layer
    return HiddenLayer(features, options.hidden, drop_rate, output) if options.hidden else output


def layer_order(heads: Heads, options: Options | None = None) -> list[int]:
    """The positions of the heads in the order of their computation: after those that they merge, or are routed by.

    Raises UsageError if heads wait for each other.
    """
    waits = {position: set(_sources(heads, position, options or {})) for position in range(len(heads))}
    try:
        return list(TopologicalSorter(waits).static_order())
    except CycleError as error:
        circle = [heads[position].name for position in error.args[1]]
        raise UsageError(
            f"per_head routes heads in a circle: {' by '.join(reversed(circle))}; leave one router out."
        ) from None


def _sources(heads: Heads, position: int, options: Options) -> Iterator[int]:
    """The heads whose logits a head needs."""
    merged, own = heads.merges(position), options.get(heads[position].name)
    if merged is not None:
        yield merged[0]
    if own is not None and own.router is not None:
        yield heads.position(own.router)


def check_options(heads: Heads, options: Options) -> None:
    """Raise UsageError for options of an unknown head, or that a head cannot have."""
    for name, own in options.items():
        unknown = next((each for each in (name, own.router) if each is not None and each not in heads.names), None)
        if unknown is not None:
            raise UsageError(f"per_head names the head {unknown!r}, and the heads are {', '.join(heads.names)}.")
        head, merged = heads[name], heads.merges(heads.position(name))
        if merged is not None:
            other = heads[merged[0]].name
            raise UsageError(f"per_head of {name} has no effect: {name} merges the classes of {other}; name {other}.")
        idle = [option for option in LOSS_OPTIONS if getattr(own, option) is not None]
        if head.spread is not None and idle:
            raise UsageError(f"per_head {name}.{idle[0]} has no effect: {name} is learned as a distribution.")
        if own.loss in ORDINAL and (len(head.classes) < 3 or head.joint_share is not None):
            raise UsageError(
                f"per_head {name}.loss is {own.loss}, which is for three or more classes in order, and {name} has "
                f"{join_some(head.classes)}; give it focal or ce."
            )
        if own.router is not None and (own.router == name or heads[own.router].spread is not None):
            raise UsageError(f"per_head {name}.router is {own.router}; expected another head with classes.")
    layer_order(heads, options)
