"""Archs: the bodies that timm has by name, and the sizes of photos that they take."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from fastmask.system.errors import UsageError, one_line

# timm's options by which a transformer takes photos of any size: it resamples its position embeddings for each, so
# that the shapes of its weights stay, and pads a photo to whole patches where it would cut it
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
# what bodies raise for an option or a size that they do not take
REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
# what the sides of a photo must be multiples of for one body or another: patches, windows, strides
STEPS = (8, 14, 16, 28, 32, 64)


@dataclass(frozen=True)
class Arch:
    """One of timm's models.

    `size` is the (height, width) that its weights were trained at, `fixed` whether timm makes it for one size,
    `parameters` the body's, without a classifier, and `tag` the full tag of the weights that pretrained takes.
    """

    name: str
    size: tuple[int, int] | None
    fixed: bool
    parameters: int | None
    tag: str | None

    @property
    def weights(self) -> bool:
        """Whether there are pretrained weights."""
        return self.tag is not None

    def __str__(self) -> str:
        size = "x".join(map(str, self.size)) if self.size else "?"
        millions = "?" if self.parameters is None else f"{self.parameters / 1e6:.1f}"
        kind = "one size" if self.fixed else "any size"
        return f"{self.name:40} {size:>9} {kind} {millions:>7} M  {self.tag or 'no weights'}"


def list_archs(pattern: str | None = None) -> Iterator[Arch]:
    """timm's models one by one, those whose name matches a shell pattern or, without wildcards, contains it.

    Raises UsageError, naming the nearest, where nothing matches. A row takes a tenth of a second or two.
    """
    wild = pattern and any(c in pattern for c in "*?[")
    names = timm.list_models(pattern if wild or not pattern else f"*{pattern}*")
    if not names:
        raise UsageError(f"timm {timm.__version__} has no arch that matches {pattern!r}{_nearest(pattern or '')}.")
    return map(describe, names)


def describe(arch: str) -> Arch:
    """What timm knows of a model, and the number of its parameters, counted without making them."""
    cfg = timm.get_pretrained_cfg(arch)
    try:
        parameters = sum(p.numel() for p in _weightless(arch).parameters())
    except REFUSALS:
        parameters = None
    tag = ".".join(filter(None, (arch, cfg.tag))) if cfg and cfg.has_weights else None
    return Arch(arch, tuple(cfg.input_size[-2:]) if cfg else None, made_for_a_size(arch), parameters, tag)


def check_arch(arch: str) -> None:
    """Raise UsageError, naming the nearest, if timm has no model called `arch`."""
    if not timm.is_model(arch):
        raise UsageError(f"timm {timm.__version__} has no arch {arch!r}{_nearest(arch)}.")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.strip("*?"), timm.list_models(), n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(near)}" if near else ""


def made_for_a_size(arch: str) -> bool:
    """Whether timm says that `arch` is made for photos of one size."""
    cfg = timm.get_pretrained_cfg(arch)
    return bool(cfg and cfg.fixed_input_size)


def needs_size(arch: str) -> bool:
    """Whether the size of the photos must be known before the body of `arch` is built."""
    return timm.is_model(arch) and made_for_a_size(arch) and not size_options(arch)


@cache
def size_options(arch: str, size: tuple[int, int] | None = None) -> Mapping[str, Any]:
    """timm's options with which `arch` takes photos of `size` (height, width), tried out without weights.

    Those for any size, where the arch has them; else none, where it takes the size as it is; else the size itself.
    Where nothing helps there are none, and `size_flaw` of the network says what is wrong.
    """
    if _takes(arch, ANY_SIZE):
        return ANY_SIZE
    if size is None or not made_for_a_size(arch) or _takes(arch, {}, size):
        return {}
    made = {"img_size": size}
    return made if _takes(arch, made, size) else {}


def _takes(arch: str, options: Mapping[str, Any], size: tuple[int, int] | None = None) -> bool:
    try:
        body = _weightless(arch, **options).eval()
        if size is not None:
            with torch.no_grad():
                body(torch.empty(1, 3, *size, device="meta"))
    except REFUSALS:
        return False
    return True


def _weightless(arch: str, **options: Any) -> nn.Module:
    """A model on the device that holds no numbers: shapes only, quickly, and nothing is drawn for it."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return timm.create_model(arch, num_classes=0, **options)


def size_flaw(network: nn.Module, size: tuple[int, int]) -> str | None:
    """What a network does wrong with photos of `size` (height, width), as the end of a sentence; None if nothing.

    A network that cuts a photo to whole patches says nothing of it. So what is left of each edge of a photo in turn,
    but for 1 % of its side, which a stride of 2 may well skip, is made NaN: whatever is computed from it is NaN too,
    even where a weight is 0.
    """
    height, width = size
    photos = torch.zeros(4, 3, height, width)
    y, x = height // 100, width // 100
    edges = (photos[0, :, y], photos[1, :, -1 - y], photos[2, :, :, x], photos[3, :, :, -1 - x])
    for edge in edges:
        edge.fill_(torch.nan)
    try:
        with torch.no_grad():
            seen = network.eval()(photos).isnan().any(dim=1)
    except REFUSALS as error:
        return f"cannot take photos {height} high and {width} wide ({one_line(error)})"
    names = ("first row", "last row", "first column", "last column")
    unseen = [name for name, yes in zip(names, seen.tolist(), strict=True) if not yes]
    return f"cuts photos {height} high and {width} wide: it leaves out their {' and '.join(unseen)}" if unseen else None


def nearest_size(arch: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """The nearest to `size` (height, width) of the sizes that `arch` takes whole; None where no likely one is."""
    body, made_with = nn.Module(), None
    for near in sizes_around(arch, size):
        options = size_options(arch, near)
        if options != made_with:
            body, made_with = timm.create_model(arch, num_classes=0, **options), options
        if size_flaw(body, near) is None:
            return near
    return None


def sizes_around(arch: str, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Likely sizes, the nearest first: sides in whole steps, or in whole steps from the arch's own, and its own."""
    cfg = timm.get_pretrained_cfg(arch)
    own = tuple(cfg.input_size[-2:]) if cfg else (224, 224)
    found = {own}
    for step, start in itertools.product(STEPS, (own, (0, 0))):
        below = [side - (side - origin) % step for side, origin in zip(size, start, strict=True)]
        found.update(itertools.product(*((side, low, low + step) for side, low in zip(size, below, strict=True))))
    likely = (near for near in found - {size} if min(near) > 0)
    return sorted(likely, key=lambda near: (abs(near[0] - size[0]) + abs(near[1] - size[1]), near))
