"""Weights of a body: from timm's hub, or from a file."""

from __future__ import annotations

import re
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from torch import Tensor, nn

from fastmask.model.archs import REFUSALS, check_arch
from fastmask.model.checkpoint import check_dense, check_file, read_states
from fastmask.model.probe import PROBE
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError, one_line

# tensors by their names
State = Mapping[str, Tensor]
# seconds to wait for the hub
_PATIENCE = 10
# the most frequent prefixes of names, which are tried
_PREFIXES = 8
# where files keep averaged weights, in the words of timm, Ultralytics, DINO and others
_AVERAGED = re.compile(r"(?<![a-z])(ema|teacher)(?![a-z])", re.IGNORECASE)


def check_weights(arch: str, pretrained: bool = False, weights: str | Path | None = None) -> None:
    """Raise UsageError or FastmaskError if a body or its weights are not available, before anything is built."""
    check_arch(arch)
    if weights is not None:
        check_file(weights)
    elif pretrained:
        check_hub(arch)


def check_hub(arch: str) -> None:
    """Raise FastmaskError if the weights of `arch` are not in the hub's cache and the hub cannot be reached.

    The hub's own client retries for minutes before it fails.
    """
    cfg = timm.get_pretrained_cfg(arch)
    if cfg is None or not cfg.hf_hub_id or getproxies():
        return
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in files):
        return
    try:
        _connect(urlsplit(ENDPOINT))
    except OSError as error:
        raise hub_error(arch, error) from error


def _connect(hub: SplitResult) -> None:
    """Raise OSError if the hub has no address, or none of the first of each family answers."""
    found = socket.getaddrinfo(hub.hostname, hub.port or 443, 0, socket.SOCK_STREAM)
    failed: OSError | None = None
    for address in {family: address for family, _, _, _, address in reversed(found)}.values():
        try:
            socket.create_connection((str(address[0]), int(address[1])), timeout=_PATIENCE).close()
        except OSError as error:
            failed = error
        else:
            return
    if failed is not None:
        raise failed


def hub_error(arch: str, error: Exception) -> FastmaskError:
    """The error for weights that cannot be downloaded."""
    return FastmaskError(
        f"The pretrained weights of {arch!r} cannot be downloaded from timm's hub ({one_line(error)}), and are not in "
        f"its cache {HF_HUB_CACHE}; name a file with --weights, or start from random weights with --no-pretrained."
    )


@dataclass(frozen=True)
class _Fit:
    """The tensors of a file at `place` that have names of a body, by those, and the ones of its shapes."""

    place: str = ""
    named: State = field(default_factory=dict)
    matched: State = field(default_factory=dict)

    def rank(self) -> tuple[int, int, bool]:
        """The more the better; averaged weights among equal ones, as timm prefers them."""
        return len(self.matched), len(self.named), bool(_AVERAGED.search(self.place))


def load_body(body: nn.Module, file: str | Path) -> tuple[int, int]:
    """Load a body's weights from a file and return (tensors matched, tensors the body has).

    Tensors match by name and shape. Of the dictionaries in the file, and the prefixes of names such as "module." or
    "backbone.", those are taken that match most; among equal ones averaged weights ("ema", "teacher"), with a warning.
    Names of other tools and position embeddings for another input size are converted where timm can, and a stem for
    grey photos is spread over three channels. Other tensors of the file, such as a classifier, are ignored. Raises
    UsageError if fewer than half match. Nothing in the file can run code.
    """
    own = body.state_dict()
    states = {
        # a copy of the body as it was pretrained
        place: {str(name): t for name, t in state.items() if not str(name).startswith(f"{PROBE}.")}
        for place, state in read_states(file).items()
    }
    best, fits = _choose_fit(file, states, body)
    if len(best.matched) * 2 < len(own):
        raise _mismatch(file, best, own, max(states.values(), key=len))
    body.load_state_dict(best.matched, strict=False)
    for message in _describe_choices(best, fits, own):
        warnings.warn(f"{file} {message}.", FastmaskWarning, stacklevel=2)
    return len(best.matched), len(own)


def _choose_fit(file: str | Path, states: Mapping[str, State], body: nn.Module) -> tuple[_Fit, list[_Fit]]:
    """The tensors that match most, and all that were tried: as they are, then as timm converts them."""
    own = body.state_dict()
    fits = [fit for place, state in states.items() for fit in _find_fits(state, own, place)]
    best = max(fits, key=_Fit.rank, default=_Fit())
    # before timm makes larger tensors of them
    check_dense(file, best.named)
    if len(own) <= len(best.matched) * 2 and len(best.matched) < len(best.named):
        resampled = _match_tensors(_convert(best.named, body), own)
        best = max(best, _Fit(best.place, best.named, resampled), key=_Fit.rank)
    if len(best.matched) * 2 < len(own):
        for state in states.values():
            check_dense(file, state)
        fits = [fit for place, state in states.items() for fit in _find_fits(_convert(state, body), own, place)]
        best = max([best, *fits], key=_Fit.rank)
    return best, fits


def _find_fits(given: State, own: State, place: str) -> Iterator[_Fit]:
    """What has names of a body without each of the most frequent prefixes."""
    prefixes = Counter(name[:end] for name in given for end in range(len(name)) if name[end:] in own)
    for prefix, _ in prefixes.most_common(_PREFIXES):
        start = len(prefix)
        named = {n[start:]: given[n] for n in given if n.startswith(prefix) and n[start:] in own}
        yield _Fit(".".join(filter(None, (place, prefix.rstrip(".")))), named, _match_tensors(named, own))


def _match_tensors(given: State, own: State) -> dict[str, Tensor]:
    spread = {n: _spread_channel(t, own[n]) for n, t in given.items() if n in own}
    return {n: t for n, t in spread.items() if own[n].shape == t.shape}


def _spread_channel(given: Tensor, own: Tensor) -> Tensor:
    """The weights of a stem for grey photos, spread over three channels, which give the same for a grey photo."""
    is_grey = given.ndim == 4 and given.shape[1] == 1 and own.shape == (len(given), 3, *given.shape[2:])
    return given.expand(own.shape) / 3 if is_grey else given


def _convert(given: State, body: nn.Module) -> State:
    """Weights as timm converts those of its hub and of a model's authors, for a body of any input size."""
    adapt = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    try:
        # timm's function fails on tensors of another arch
        return adapt(dict(given), body) if adapt else given
    except (*REFUSALS, AttributeError, KeyError):
        return given


def _mismatch(file: str | Path, best: _Fit, own: State, given: State) -> UsageError:
    """The error of weights of another arch, with names in the file and in the body."""
    missing = next(name for name in own if name not in best.matched)
    return UsageError(
        f"{file} fits {len(best.matched)} of the body's {len(own)} tensors (it holds {len(given)}, such as "
        f"{next(iter(given))}; the body has {missing}); expected weights of the same arch in timm's names, as at "
        "huggingface.co/timm, at least half of them matching."
    )


def _describe_choices(best: _Fit, fits: Sequence[_Fit], own: State) -> list[str]:
    """What stays random, what was converted, and other weights of the file that fit as well."""
    # a count of batches, which older files lack, is no weight
    random = [n for n in own if n not in best.matched and not n.endswith("num_batches_tracked")]
    counts = f"fits {len(best.matched)} of the body's {len(own)} tensors; the others, such as"
    grey = [n for n, t in best.named.items() if n in best.matched and _spread_channel(t, own[n]) is not t]
    equal = [fit.place for fit in fits if fit.place != best.place and fit.rank()[:2] == best.rank()[:2]]
    return [
        *([f"{counts} {random[0]}, stay random"] if random else []),
        *([f"is for grey photos; {grey[0]} is spread over three channels"] if grey else []),
        *([f"has such weights at {', '.join((best.place, *equal))}; {best.place} is used"] if equal else []),
    ]


def read_weights(file: str | Path) -> Mapping[str, Tensor]:
    """The largest dictionary of tensors in a weights file; raises UsageError or DataError."""
    tensors = max(read_states(file).values(), key=len)
    check_dense(file, tensors)
    return tensors
