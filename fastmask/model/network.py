"""Network: a timm body, pooled features, one linear head an attribute, one tensor of logits."""

from __future__ import annotations

import socket
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import group_parameters
from torch import Tensor, nn

from fastmask.heads import Heads
from fastmask.model.archs import REFUSALS, check_arch, size_options
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, UsageError, one_line

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "body.")


class MultiHeadNet(nn.Module):
    """(B, 3, H, W) -> logits (B, classes of all heads), in the order of `Heads.split`.

    `body` is any timm model without its classifier, `heads` a linear layer an attribute, `drop_rate` the share of the
    features that is dropped before them. `tag` is the body's full timm tag, such as tf_efficientnet_b4.ns_jft_in1k,
    `stats` the (mean, std) that those weights were trained with, and `initial_weights` says which weights it starts
    from.
    """

    def __init__(self, body: nn.Module, heads: Heads, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.body = body
        # ours, and not timm's: several bodies leave out their own with the classifier, or have none
        self.dropout = nn.Dropout(drop_rate)
        features: Any = getattr(body, "head_hidden_size", None) or body.num_features
        self.heads = nn.ModuleList([nn.Linear(int(features), size) for size in heads.sizes])
        cfg: dict[str, Any] = getattr(body, "pretrained_cfg", None) or {}
        name = cfg.get("architecture") or type(body).__name__
        self.tag = f"{name}.{cfg['tag']}" if cfg.get("tag") else str(name)
        self.stats = (tuple(cfg.get("mean") or ()), tuple(cfg.get("std") or ()))
        self.initial_weights = "random"

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, classes of all heads) logits."""
        # fastai's tensor subclasses cost microseconds an operation
        features = self.dropout(self.body(x.as_subclass(Tensor)))
        return torch.cat([head(features) for head in self.heads], dim=1)


def build_network(
    arch: str,
    heads: Heads,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    size: tuple[int, int] | None = None,
) -> MultiHeadNet:
    """A `MultiHeadNet` in channels-last memory (4 times as fast as the default on a CPU).

    `pretrained` takes the body's weights from timm's hub, `weights` from a file (safetensors, or a .pth of tensors
    only). `size` is the photos' (height, width), for the bodies that are made for one, such as Swin; the others take
    any. Raises UsageError for an arch that timm does not know, naming the nearest ones, or that takes no drop-path, and
    FastmaskError where the hub is out of reach.
    """
    check_start(arch, pretrained, weights)
    from_hub = pretrained and weights is None
    body = build_body(arch, size, pretrained=from_hub, drop_path_rate=drop_path_rate)
    network = MultiHeadNet(body, heads, drop_rate)
    if from_hub:
        network.initial_weights = f"timm's hub: {network.tag}"
    if weights is not None:
        matched, total = load_body(network.body, weights)
        network.initial_weights = f"{weights}: {matched} of {total} tensors"
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_body(
    arch: str, size: tuple[int, int] | None = None, *, pretrained: bool = False, drop_path_rate: float = 0.0
) -> nn.Module:
    """timm's `arch` without its classifier, made to take photos of `size` (height, width) where that can be had."""
    # 0, because some have a default of their own
    options = {"drop_rate": 0.0, **size_options(arch, size)}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    no_paths = UsageError(f"{arch!r} takes no drop-path rate; leave --drop-path at 0.")
    try:
        body: nn.Module = timm.create_model(arch, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if pretrained:
            raise _no_weights(arch, error) from error
        raise UsageError(f"timm cannot build {arch!r}: {one_line(error)}.") from error
    except TypeError as error:
        raise no_paths from error
    if drop_path_rate and not any(getattr(module, "drop_prob", 0) for module in body.modules()):
        raise no_paths
    return body


def check_start(arch: str, pretrained: bool = False, weights: str | Path | None = None) -> None:
    """Raise UsageError or FastmaskError where a body or its weights are not to be had, before anything is built."""
    check_arch(arch)
    if weights is not None:
        _existing(weights)
    elif pretrained:
        check_hub(arch)


def check_hub(arch: str) -> None:
    """Raise FastmaskError if the weights of `arch` are neither in the hub's cache nor, for want of a network, in reach.

    The hub's own client takes most of a minute of retries to find out.
    """
    cfg = timm.get_pretrained_cfg(arch)
    if cfg is None or not cfg.hf_hub_id or getproxies():
        return
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in files):
        return
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError as error:
        raise _no_weights(arch, error) from error


def _no_weights(arch: str, error: Exception) -> FastmaskError:
    return FastmaskError(
        f"The pretrained weights of {arch!r} cannot be fetched from timm's hub ({one_line(error)}); "
        "name a file with --weights, or start from random weights with --no-pretrained."
    )


def load_body(body: nn.Module, file: str | Path) -> tuple[int, int]:
    """Load a body's weights from a file and return (tensors matched, tensors the body has).

    Tensors match by name, after prefixes such as "module." or "body.", and by shape; position embeddings for photos of
    another size are resampled where timm can, and what the file has besides, such as its classifier, is left. Raises
    UsageError if under half match. Nothing in the file can run code.
    """
    own = body.state_dict()
    given = {name if name in own else _strip(name): tensor for name, tensor in read_weights(file).items()}
    matched = _matching(given, own)
    if len(own) <= len(matched) * 2 and any(n in own and n not in matched for n in given):
        matched = _matching(_resampled(given, body), own)
    if len(matched) * 2 < len(own):
        raise UsageError(
            f"{file} fits {len(matched)} of the body's {len(own)} tensors (it holds {len(given)}); "
            "expected weights of the same arch, at least half of them matching."
        )
    body.load_state_dict(matched, strict=False)
    if len(matched) < len(own):
        missing = next(n for n in own if n not in matched)
        warnings.warn(
            f"{file} fits {len(matched)} of the body's {len(own)} tensors; the others, such as {missing}, start anew.",
            FastmaskWarning,
            stacklevel=2,
        )
    return len(matched), len(own)


def _matching(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in given.items() if n in own and own[n].shape == t.shape}


def _resampled(given: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """What timm does with weights of its hub for a body that is made for another size of photos."""
    adapt = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    own = set(body.state_dict())
    try:
        # a tensor that the body has not may be of another arch, at which timm's function stumbles
        return adapt({n: t for n, t in given.items() if n in own}, body) if adapt else given
    except (*REFUSALS, AttributeError, KeyError):
        return given


def read_weights(file: str | Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a .pth that holds tensors only; raises UsageError or DataError."""
    from safetensors.torch import load_file

    path = _existing(file)
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except Exception as error:
        # whatever a reader stumbles at: nobody lists what torch raises for bytes that were tampered with
        raise DataError(f"{path} is not a file of weights that can be read safely: {one_line(error)}.") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise DataError(f"{path} holds {type(loaded).__name__}; expected a dictionary of tensors.")
    odd = next((name for name, tensor in loaded.items() if not isinstance(name, str) or not _is_dense(tensor)), None)
    if odd is not None:
        raise DataError(f"{path} holds something else than plain numbers at {odd!r}; expected dense tensors.")
    return loaded


def _load_pth(path: Path) -> Any:
    """What a .pth holds, without running what is in it, or unpacking more than it weighs."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as entries:
            unpacked = sum(entry.file_size for entry in entries.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked} bytes, which torch.save never does")
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has a number of its own for each of its places, so that it takes no more room than its file."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _existing(file: str | Path) -> Path:
    if not Path(file).is_file():
        raise UsageError(f"{file} does not exist; expected a file of weights (.safetensors or .pth).")
    return Path(file)


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def body_and_heads(network: MultiHeadNet) -> list[list[nn.Parameter]]:
    """fastai's splitter: the body's parameters, then the heads'."""
    return [list(network.body.parameters()), list(network.heads.parameters())]


def stages(body: nn.Module, coarse: bool = True) -> list[list[nn.Parameter]]:
    """A body's parameters in groups from the photo to the features, as timm groups them: stages, or else each block.

    A body that does not say how is one group.
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
    """fastai's splitter: each block of the body from the photo on, then the heads'."""
    return [*stages(network.body, coarse=False), list(network.heads.parameters())]


def layer_scales(network: MultiHeadNet, decay: float) -> list[float]:
    """The share of the learning rate of each of `blocks_and_heads`: 1 of the heads, `decay` times less a block down.

    Layer-wise decay, as in BEiT (Bao et al. 2021) and timm.
    """
    count = len(blocks_and_heads(network))
    return [decay ** (count - 1 - i) for i in range(count)]
