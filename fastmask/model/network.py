"""Network: a timm body, pooled features, one linear head an attribute, one tensor of logits."""

from __future__ import annotations

import difflib
import pickle
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from torch import Tensor, nn

from fastmask.errors import DataError, FastmaskError, FastmaskWarning, UsageError, one_line
from fastmask.heads import Heads

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "body.")


class MultiHeadNet(nn.Module):
    """(B, 3, H, W) -> logits (B, classes of all heads), in the order of `Heads.split`.

    `body` is any timm model without its classifier, `heads` a linear layer an attribute. `tag` is the body's full timm
    tag, such as tf_efficientnet_b4.ns_jft_in1k, `stats` the (mean, std) that those weights were trained with, and
    `initial_weights` says which weights it starts from.
    """

    def __init__(self, body: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.body = body
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
        features = self.body(x.as_subclass(Tensor))
        return torch.cat([head(features) for head in self.heads], dim=1)


def build_network(
    arch: str,
    heads: Heads,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> MultiHeadNet:
    """A `MultiHeadNet` in channels-last memory (4 times as fast as the default on a CPU).

    `pretrained` takes the body's weights from timm's hub, `weights` from a file (safetensors, or a .pth of tensors
    only). Raises UsageError for an arch that timm does not know, naming the nearest ones, and FastmaskError where the
    hub is out of reach.
    """
    check_arch(arch)
    options = {"drop_rate": drop_rate, **({"drop_path_rate": drop_path_rate} if drop_path_rate else {})}
    from_hub = pretrained and weights is None
    if from_hub:
        check_hub(arch)
    try:
        body = timm.create_model(arch, pretrained=from_hub, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if from_hub:
            raise _no_weights(arch, error) from error
        raise UsageError(f"timm cannot build {arch!r}: {_line(error)}.") from error
    except TypeError as error:
        raise UsageError(f"{arch!r} takes no drop-path rate ({_line(error)}); leave --drop-path at 0.") from error
    network = MultiHeadNet(body, heads)
    if from_hub:
        network.initial_weights = f"timm's hub: {network.tag}"
    if weights is not None:
        matched, total = load_body(network.body, weights)
        network.initial_weights = f"{weights}: {matched} of {total} tensors"
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def check_arch(arch: str) -> None:
    """Raise UsageError, naming the nearest, if timm has no model called `arch`."""
    if timm.is_model(arch):
        return
    near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    raise UsageError(f"timm {timm.__version__} has no arch {arch!r}{hint}.")


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
        f"The pretrained weights of {arch!r} cannot be fetched from timm's hub ({_line(error)}); "
        "name a file with --weights, or start from random weights with --no-pretrained."
    )


def load_body(body: nn.Module, file: str | Path) -> tuple[int, int]:
    """Load a body's weights from a file and return (tensors matched, tensors the body has).

    Tensors match by name, after prefixes such as "module." or "body.", and by shape; what the file has besides, such as
    its classifier, is left. Raises UsageError if under half match. Nothing in the file can run code.
    """
    own = body.state_dict()
    given = {name if name in own else _strip(name): tensor for name, tensor in read_weights(file).items()}
    matched = {n: t for n, t in given.items() if n in own and own[n].shape == t.shape}
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


def read_weights(file: str | Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a .pth that holds tensors only; raises UsageError or DataError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; expected a file of weights (.safetensors or .pth).")
    try:
        loaded = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is not a file of weights that can be read safely: {_line(error)}.") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise DataError(f"{path} holds {type(loaded).__name__}; expected a dictionary of tensors.")
    return loaded


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def body_and_heads(network: MultiHeadNet) -> list[list[nn.Parameter]]:
    """fastai's splitter: the body's parameters, then the heads'."""
    return [list(network.body.parameters()), list(network.heads.parameters())]


def _line(error: BaseException) -> str:
    text = one_line(error)
    return text if len(text) <= 200 else text[:200] + " ..."
