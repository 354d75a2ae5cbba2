"""Network: a timm body, pooled features, a layer per head, one tensor of logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from fastmask.heads import Heads
from fastmask.model.archs import check_arch, size_options
from fastmask.model.feature_losses import MakeFeatureLoss
from fastmask.model.head_layers import HeadLayer, LinearLayer, Options, build_head_layers, layer_order
from fastmask.model.pooling import check_map, to_places
from fastmask.model.probe import LinearProbe, ProbeWeights, mean_logits
from fastmask.model.weights import check_weights, hub_error, load_body
from fastmask.system.errors import UsageError, one_line

# `initial_weights` of a network that starts from none
RANDOM = "random"


class MultiHeadNet(nn.Module):
    """(B, 3, H, W) -> logits (B, classes of all heads), in the order of `Heads.split`.

    `body` is any timm model without its classifier, `heads` a layer per head, see `fastmask.model.head_layers`,
    `drop_rate` the share of the features that is dropped before them, `options` what single heads have of their own
    (`fastmask.config.HeadOptions`, by name). `tag` is the body's full timm tag, such as
    tf_efficientnet_b4.ns_jft_in1k, `stats` the (mean, std) of its weights' training, and `initial_weights` describes
    the weights that it starts from. With a `probe`, logits in evaluation mode are of the geometric mean with it.

    >>> import timm
    >>> body = timm.create_model("test_resnet", num_classes=0)
    >>> network = fm.MultiHeadNet(body, fm.contest_heads())
    >>> network(torch.zeros(2, 3, 64, 32)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        body: nn.Module,
        heads: Heads,
        drop_rate: float = 0.0,
        options: Options | None = None,
        feature_loss: MakeFeatureLoss | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        # not timm's: several bodies drop theirs with the classifier, or have none
        self.dropout = nn.Dropout(drop_rate)
        features: Any = getattr(body, "head_hidden_size", None) or body.num_features
        layers = build_head_layers(heads, int(features), options, drop_rate, int(body.num_features))  # type: ignore[arg-type]
        self.heads = nn.ModuleList(layers)
        self._order = layer_order(heads, options)
        self._pools = any(layer.input is not None and layer.input.pool is not None for layer in layers)
        if self._pools:
            check_map(body)
        # part of the network, since it may have parameters
        self.feature_loss = None if feature_loss is None else feature_loss(int(features))
        self.probe: LinearProbe | None = None
        cfg: dict[str, Any] = getattr(body, "pretrained_cfg", None) or {}
        name = cfg.get("architecture") or type(body).__name__
        self.tag = f"{name}.{cfg['tag']}" if cfg.get("tag") else str(name)
        self.stats = (tuple(cfg.get("mean") or ()), tuple(cfg.get("std") or ()))
        self.initial_weights = RANDOM

    def add_probe(self, heads: Heads, weights: ProbeWeights) -> None:
        """Average predictions of its `heads` with a linear model on what the body sees with its present weights."""
        self.probe = LinearProbe(self.body, heads, weights)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # of a learner that an earlier version exported, whose heads are torch's linear layers
        if "_pools" not in state:
            self.heads = nn.ModuleList([LinearLayer.of(layer) for layer in self.heads])
            self._order, self._pools, self.feature_loss = list(range(len(self.heads))), False, None
        if "probe" not in self._modules and "probe" not in state:
            self.probe = None

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) float -> (B, classes of all heads) logits; in training also the features, for a loss on them.

        `seen` are the features for the probe, if they are known already.
        """
        # fastai's tensor subclasses cost microseconds an operation
        x = x.as_subclass(Tensor)
        features, places = self.pool(x)
        logits = self.classify_features(features, places, self._probed(x, seen))
        return torch.cat([*logits, features] if self.training and self.feature_loss is not None else logits, dim=1)

    def classify(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) float -> the (B, classes) logits of each head."""
        return self.classify_features(*self.pool(x), self._probed(x))

    def _probed(self, x: Tensor, seen: Tensor | None = None) -> Mapping[int, Tensor]:
        """The logits of the probe, which has no part in training."""
        return {} if self.probe is None or self.training else self.probe(x, seen)

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) float -> (B, features) pooled features, and their map if a head pools by itself."""
        body: Any = self.body
        return self.pool_map(body.forward_features(x)) if self._pools else (body(x), None)

    def pool_map(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The body's last features, before its pooling -> as `pool`."""
        body: Any = self.body
        return body.forward_head(features), to_places(body, features) if self._pools else None

    def classify_features(
        self, features: Tensor, places: Tensor | None = None, probed: Mapping[int, Tensor] = MappingProxyType({})
    ) -> list[Tensor]:
        """(B, features) pooled features -> the (B, classes) logits of each head; `places` for heads that pool.

        `probed` are the logits of heads, by position, with which theirs are averaged.
        """
        logits: dict[int, Tensor] = {}
        dropped = self.dropout(features)
        for position in self._order:
            layer = self.heads[position]
            assert isinstance(layer, HeadLayer)
            own = dropped if layer.input is None else layer.input(features, places)
            found = layer(own, logits)
            logits[position] = mean_logits(found, probed[position]) if position in probed else found
        return [logits[position] for position in range(len(self.heads))]


def build_network(
    arch: str,
    heads: Heads,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    size: tuple[int, int] | None = None,
    per_head: Options | None = None,
    feature_loss: MakeFeatureLoss | None = None,
) -> MultiHeadNet:
    """A `MultiHeadNet` in channels-last memory (4 times as fast as the default on a CPU).

    `pretrained` takes the body's weights from timm's hub, `weights` from a file (safetensors, or a .pth of tensors
    only). `size` is the photos' (height, width), for bodies with a fixed input size, such as Swin; the others take any.
    `per_head` are the layers of single heads, by name, `feature_loss` makes a loss on features.
    Raises UsageError for an arch that timm does not have, naming the nearest ones, or that has no drop-path, and
    FastmaskError where the hub cannot be reached.

    >>> network = fm.build_network("test_resnet", fm.contest_heads())
    >>> network(torch.zeros(2, 3, 64, 32)).shape
    torch.Size([2, 8])
    >>> network.tag
    'test_resnet.r160_in1k'
    """
    arch = check_arch(arch)
    check_weights(arch, pretrained, weights)
    from_hub = pretrained and weights is None
    body = build_body(arch, size, pretrained=from_hub, drop_path_rate=drop_path_rate)
    network = MultiHeadNet(body, heads, drop_rate, per_head, feature_loss)
    if from_hub:
        network.initial_weights = f"timm's hub: {network.tag}"
    if weights is not None:
        matched, total = load_body(network.body, weights)
        network.initial_weights = f"{weights}: {matched} of {total} tensors"
    _keep_channels_last(network)
    return network


def _keep_channels_last(network: nn.Module) -> None:
    """Store tensors of photos channels last; `Module.to` fails on a body with a 3D convolution."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def build_body(
    arch: str, size: tuple[int, int] | None = None, *, pretrained: bool = False, drop_path_rate: float = 0.0
) -> nn.Module:
    """timm's `arch` without its classifier, built for photos of `size` (height, width) where that is possible."""
    # explicitly 0, because some bodies have another default
    options = {"drop_rate": 0.0, **size_options(arch, size)}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    no_paths = UsageError(f"{arch!r} takes no drop-path rate; leave --drop-path at 0.")
    try:
        body: nn.Module = timm.create_model(arch, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if pretrained:
            raise hub_error(arch, error) from error
        raise UsageError(f"timm cannot build {arch!r}: {one_line(error)}.") from error
    except TypeError as error:
        raise no_paths from error
    if drop_path_rate and not any(getattr(module, "drop_prob", 0) for module in body.modules()):
        raise no_paths
    return body


def body_and_heads(network: MultiHeadNet) -> list[list[nn.Parameter]]:
    """fastai's splitter: the body's parameters, then the heads'."""
    return [list(network.body.parameters()), _head_parameters(network)]


def _head_parameters(network: MultiHeadNet) -> list[nn.Parameter]:
    """The parameters that are not the body's."""
    return [*network.heads.parameters(), *(network.feature_loss.parameters() if network.feature_loss else ())]


def stages(body: nn.Module, coarse: bool = True) -> list[list[nn.Parameter]]:
    """A body's parameters in groups from input to features, as timm groups them: by stage, or else by block.

    A body without a grouping is one group.
    """
    matcher: Any = getattr(body, "group_matcher", None)
    if matcher is None:
        return [list(body.parameters())]
    number_of = group_parameters(body, matcher(coarse=coarse), reverse=True)
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in body.named_parameters():
        groups.setdefault(int(number_of[name]), []).append(parameter)
    return [groups[number] for number in sorted(groups)]


def blocks_and_heads(network: MultiHeadNet) -> list[list[nn.Parameter]]:
    """fastai's splitter: each block of the body from the input on, then the heads'."""
    return [*stages(network.body, coarse=False), _head_parameters(network)]


def layer_scales(network: MultiHeadNet, decay: float) -> list[float]:
    """The factor of the learning rate of each of `blocks_and_heads`: 1 for the heads, times `decay` per block below.

    Layer-wise decay, as in BEiT (Bao et al. 2021) and timm.
    """
    count = len(blocks_and_heads(network))
    return [decay ** (count - 1 - i) for i in range(count)]
