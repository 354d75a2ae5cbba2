"""Setting text: the values of settings in the texts of the command line; what is wrong with one is a ValueError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationInfo

from fastmask.system.text import shorten_repr
from fastmask.system.yaml_text import parse_yaml

# a number as text
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
# how Hugging Face and timm write that a model is on the hub
_HUB = re.compile(r"(hf[-_]hub:|(https?://)?(huggingface|hf)\.co/)?(timm/)?")


def plain_arch(name: str) -> str:
    """The name of a model without timm's hub: hf-hub:timm/NAME and timm/NAME -> NAME; other text stays."""
    plain = _HUB.sub("", name, count=1)
    return name if "/" in plain or ":" in plain else plain


def read_ranges(text: str) -> dict[str, list[list[float]]]:
    """`27-29,57` -> {"age": [[27, 29], [57, 57]]}; raises ValueError for anything else."""
    try:
        ends = [[float(end) for end in part.split("-")] for part in text.split(",")]
        pairs = [[low, high] for low, high in ([*both, *both][:2] if len(both) == 1 else both for both in ends)]
    except ValueError:
        raise ValueError("expected ranges such as 27-29,57-59") from None
    return {"age": pairs}


def read_shares(text: str) -> dict[str, float]:
    """`gpu=0.5,cpu=4` -> {"gpu": 0.5, "cpu": 4}; raises ValueError for anything else, and for duplicates."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    try:
        shares = {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ValueError("expected shares such as gpu=0.5,cpu=4") from None
    if len(shares) < len(pairs):
        raise ValueError("expected each of cpu and gpu once")
    return shares


def read_counts(text: str) -> int | dict[str, int]:
    """`1` -> 1, `mask.wear=1,age.60+=2` -> {"mask.wear": 1, "age.60+": 2}; raises ValueError for anything else."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    counts = {name.strip(): _whole(number) for name, _, number in pairs}
    if len(counts) < len(pairs) or ("" in counts and len(counts) > 1):
        raise ValueError("expected a number, or one per class, such as mask.wear=1,age.60+=2")
    return counts.get("", counts)


def _whole(text: str) -> int:
    """The number in a text; raises ValueError unless it is a whole one."""
    if not (text.strip().isdecimal() and text.isascii()):
        raise ValueError("expected a whole number, or one per class, such as mask.wear=1")
    return int(text)


def join_names(value: Any) -> Any:
    """Names of classes in mappings by head, as --set makes them: {"age": {"60+": 2}} -> {"age.60+": 2}."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[Any, Any] = {}
    for name, inside in value.items():
        below = join_names(inside)
        flat |= {f"{name}.{key}": each for key, each in below.items()} if isinstance(below, Mapping) else {name: below}
    return flat


def read_bands(text: str) -> dict[str, list[float]]:
    """`age=20,30,40` -> {"age": [20, 30, 40]}, several heads apart by `;`; raises ValueError for anything else."""
    pairs = [part.strip().partition("=") for part in text.split(";")]
    try:
        found = {name: [float(bound) for bound in bounds.split(",")] for name, _, bounds in pairs}
    except ValueError:
        raise ValueError("expected bounds such as age=20,30,40,50,60") from None
    if len(found) < len(pairs):
        raise ValueError("expected the bounds of each head once, such as age=20,30,40,50,60")
    return found


def read_arguments(text: str) -> dict[str, Any]:
    """`momentum=0.8,betas=0.9,0.95` -> {"momentum": 0.8, "betas": [0.9, 0.95]}; raises ValueError for anything else."""
    expected = "expected arguments such as momentum=0.8,betas=0.9,0.95"
    found: dict[str, Any] = {}
    for part in re.split(r",\s*(?=[A-Za-z_]\w*\s*=)", text):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name or name in found:
            raise ValueError(f"{expected}, each once")
        found[name] = parse_yaml(f"[{value}]" if "," in value and value[0] not in "[(" else value)
        if isinstance(found[name], str) and re.fullmatch(_NUMBER, found[name]):
            # YAML takes 1e-4 for text
            found[name] = float(found[name])
    return found


def check_plain(arguments: dict[str, Any], field: ValidationInfo) -> dict[str, Any]:
    """The arguments in a setting; raises ValueError unless they are plain, finite values, or lists of these."""
    for name, value in arguments.items():
        for one in value if isinstance(value, list) else [value]:
            finite = not isinstance(one, float) or math.isfinite(one)
            if not (finite and (one is None or isinstance(one, bool | int | float | str))):
                found = f"{field.field_name} has {name} {shorten_repr(value)}"
                raise ValueError(f"{found}; expected a finite number, a text, true or false")
    return arguments


def read_options(text: str) -> dict[str, dict[str, str]]:
    """`age.loss=coral,mask.gamma=1` -> {"age": {"loss": "coral"}, "mask": {"gamma": "1"}}.

    Raises ValueError for anything else, and for duplicates.
    """
    options: dict[str, dict[str, str]] = {}
    for part in text.split(","):
        path, _, value = (word.strip() for word in part.partition("="))
        head, _, name = path.rpartition(".")
        if not (head and name and value):
            raise ValueError("expected options of heads such as age.loss=coral,age.hidden=256,mask.gamma=1")
        if name in options.setdefault(head, {}):
            raise ValueError(f"expected {path} once")
        options[head][name] = value
    return options
