"""Weights of a body: from timm's hub, or from a file."""

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
from torch import Tensor, nn

from fastmask.model.archs import REFUSALS, check_arch
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, UsageError, one_line

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "body.")


def check_weights(arch: str, pretrained: bool = False, weights: str | Path | None = None) -> None:
    """Raise UsageError or FastmaskError if a body or its weights are not available, before anything is built."""
    check_arch(arch)
    if weights is not None:
        _check_exists(weights)
    elif pretrained:
        check_hub(arch)


def check_hub(arch: str) -> None:
    """Raise FastmaskError if the weights of `arch` are not in the hub's cache and the hub cannot be reached.

    The hub's own client retries for most of a minute before it fails.
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
        raise hub_error(arch, error) from error


def hub_error(arch: str, error: Exception) -> FastmaskError:
    """The error for weights that cannot be downloaded."""
    return FastmaskError(
        f"The pretrained weights of {arch!r} cannot be downloaded from timm's hub ({one_line(error)}); "
        "name a file with --weights, or start from random weights with --no-pretrained."
    )


def load_body(body: nn.Module, file: str | Path) -> tuple[int, int]:
    """Load a body's weights from a file and return (tensors matched, tensors the body has).

    Tensors match by name, without prefixes such as "module." or "body.", and by shape. Position embeddings for another
    input size are resampled where timm can; other tensors of the file, such as a classifier, are ignored. Raises
    UsageError if fewer than half match. Nothing in the file can run code.
    """
    own = body.state_dict()
    given = {name if name in own else _strip(name): tensor for name, tensor in read_weights(file).items()}
    matched = _match_tensors(given, own)
    if len(own) <= len(matched) * 2 and any(n in own and n not in matched for n in given):
        matched = _match_tensors(_resample(given, body), own)
    if len(matched) * 2 < len(own):
        raise UsageError(
            f"{file} fits {len(matched)} of the body's {len(own)} tensors (it holds {len(given)}); "
            "expected weights of the same arch, at least half of them matching."
        )
    body.load_state_dict(matched, strict=False)
    if len(matched) < len(own):
        missing = next(n for n in own if n not in matched)
        warnings.warn(
            f"{file} fits {len(matched)} of the body's {len(own)} tensors; the others, such as {missing}, stay random.",
            FastmaskWarning,
            stacklevel=2,
        )
    return len(matched), len(own)


def _match_tensors(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in given.items() if n in own and own[n].shape == t.shape}


def _resample(given: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Weights as timm converts those of its hub for a body with another input size."""
    adapt = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    own = set(body.state_dict())
    try:
        # timm's function fails on tensors of another arch
        return adapt({n: t for n, t in given.items() if n in own}, body) if adapt else given
    except (*REFUSALS, AttributeError, KeyError):
        return given


def read_weights(file: str | Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a .pth that holds tensors only; raises UsageError or DataError."""
    from safetensors.torch import load_file

    path = _check_exists(file)
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except Exception as error:
        # torch documents no list of what it raises for corrupt or forged bytes
        raise DataError(f"{path} is not a weights file that can be read safely: {one_line(error)}.") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise DataError(f"{path} holds {type(loaded).__name__}; expected a dictionary of tensors.")
    odd = next((name for name, tensor in loaded.items() if not isinstance(name, str) or not _is_dense(tensor)), None)
    if odd is not None:
        raise DataError(f"{path} holds something other than a dense tensor of numbers at {odd!r}.")
    return loaded


def _load_pth(path: Path) -> Any:
    """The content of a .pth, without running code in it or decompressing more than the file's size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as entries:
            unpacked = sum(entry.file_size for entry in entries.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked} bytes, which torch.save never does")
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor stores a number for each of its elements, so that it takes no more memory than its file."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _check_exists(file: str | Path) -> Path:
    if not Path(file).is_file():
        raise UsageError(f"{file} does not exist; expected a weights file (.safetensors or .pth).")
    return Path(file)


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
