"""Archs: timm's bodies by name, and the photo sizes that they take."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from fastmask.system.errors import UsageError, one_line
from fastmask.system.setting_text import plain_arch
from fastmask.system.text import join_some

# timm's options for transformers to take photos of any size: position embeddings are resampled for each, so that the
# shapes of the weights stay, and photos are padded to whole patches instead of being cut
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
# exceptions of bodies for an option or a size that they do not take
REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
# the sides of a photo must be multiples of these for some bodies: patches, windows, strides
STEPS = (8, 14, 16, 28, 32, 64)
# torchvision abbreviates the sizes in names such as vit_b_16
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}


@dataclass(frozen=True)
class Arch:
    """One of timm's models.

    `size` is the (height, width) of its weights' training, `fixed` whether timm builds it for one size,
    `parameters` their number without a classifier, and `tag` the full tag of the default pretrained weights.
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
    """timm's models with names that match a shell pattern or, without wildcards, contain it, one by one.

    Raises UsageError naming the nearest if none matches. Each takes 0.1 to 0.2 seconds.

    >>> [arch.name for arch in fm.list_archs("test_resnet*")]
    ['test_resnet']
    """
    pattern = pattern and plain_arch(pattern)
    wild = pattern and any(c in pattern for c in "*?[")
    names = timm.list_models(pattern if wild or not pattern else f"*{pattern}*")
    if not names:
        raise UsageError(
            f"timm {timm.__version__} has no arch that matches {pattern!r}{_suggest_nearest(pattern or '')}."
        )
    return map(describe_arch, names)


def describe_arch(arch: str) -> Arch:
    """What timm knows about a model, and the number of its parameters, counted without allocating them."""
    cfg = timm.get_pretrained_cfg(arch)
    try:
        parameters = sum(p.numel() for p in _create_on_meta(arch).parameters())
    except REFUSALS:
        parameters = None
    tag = ".".join(filter(None, (arch, cfg.tag))) if cfg and cfg.has_weights else None
    return Arch(arch, tuple(cfg.input_size[-2:]) if cfg else None, has_fixed_size(arch), parameters, tag)


def arch_size(arch: str) -> tuple[int, int]:
    """The (height, width) of the photos that the weights of `arch` were trained on; 224 by 224 where it is unknown."""
    cfg = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    return (cfg.input_size[-2], cfg.input_size[-1]) if cfg else (224, 224)


def check_arch(arch: str) -> str:
    """timm's name of `arch`, which may be in the spelling of its hub or of another library, such as EfficientNet-B0.

    Raises UsageError, naming the nearest, if timm has no such model, or no such tag of its weights.
    """
    plain = plain_arch(arch)
    if "/" in plain or ":" in plain:
        raise UsageError(
            f"{arch} is a repository or a folder; give timm's name of the model as --arch, and the file as --weights."
        )
    name = next((each for each in (plain, _spell(plain)) if timm.is_model(each)), None)
    if name is None:
        raise UsageError(f"timm {timm.__version__} has no arch {arch!r}{_suggest_nearest(_spell(plain))}.")
    model, _, tag = name.partition(".")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{model}.*")] if tag else []
    if tag not in ("", *tags):
        known = f"expected one of {join_some(tags)}" if tags else "it has no pretrained weights"
        raise UsageError(f"timm {timm.__version__} has no weights {tag!r} of {model}; {known}.")
    return name


def _spell(name: str) -> str:
    """A name in the spelling of timm."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _suggest_nearest(name: str) -> str:
    """The nearest names as the end of a sentence: those with the same parts in their order, then the most similar."""
    names, parts = timm.list_models(), [_SIZES.get(part, part) for part in name.strip("*?").split("_") if part]
    same = [each for each in names if re.search(".*".join(map(re.escape, parts)), each)] if parts else []
    same.sort(key=lambda each: (not each.startswith(parts[0]), len(each)))
    near = same or difflib.get_close_matches("_".join(parts), names, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(near[:3])}" if near else ""


def has_fixed_size(arch: str) -> bool:
    """Whether timm builds `arch` for photos of one size."""
    cfg = timm.get_pretrained_cfg(arch)
    return bool(cfg and cfg.fixed_input_size)


def needs_size(arch: str) -> bool:
    """Whether the photo size must be known before the body of `arch` is built."""
    return timm.is_model(arch) and has_fixed_size(arch) and not size_options(arch)


@cache
def size_options(arch: str, size: tuple[int, int] | None = None) -> Mapping[str, Any]:
    """timm's options with which `arch` takes photos of `size` (height, width), tried on the meta device.

    Those for any size if the arch has them; else none if it takes the size anyway; else the size itself. If nothing
    helps there are none, and `size_flaw` of the network describes the problem.
    """
    if _accepts(arch, ANY_SIZE):
        return ANY_SIZE
    if size is None or not has_fixed_size(arch) or _accepts(arch, {}, size):
        return {}
    made = {"img_size": size}
    return made if _accepts(arch, made, size) else {}


def _accepts(arch: str, options: Mapping[str, Any], size: tuple[int, int] | None = None) -> bool:
    try:
        body = _create_on_meta(arch, **options).eval()
        if size is not None:
            with torch.no_grad():
                body(torch.empty(1, 3, *size, device="meta"))
    except REFUSALS:
        return False
    return True


def _create_on_meta(arch: str, **options: Any) -> nn.Module:
    """A model on the meta device, without values or random initialization."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return timm.create_model(arch, num_classes=0, **options)


def size_flaw(network: nn.Module, size: tuple[int, int]) -> str | None:
    """The problem of a network with photos of `size` (height, width), as the end of a sentence; None without one.

    A network that cuts a photo to whole patches raises no error. So for each side of a photo, one row or column is set
    to NaN, 1 % away from the edge, which a stride of 2 may skip: everything that is computed from it is NaN too, even
    if a weight is 0.
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


def fit_size(arch: str, size: tuple[int, int]) -> tuple[int, int]:
    """`size` (height, width) if `arch` takes it whole, else the nearest that it does, or its own."""
    body = timm.create_model(arch, num_classes=0, **size_options(arch, size))
    return size if size_flaw(body, size) is None else nearest_size(arch, size) or arch_size(arch)


def nearest_size(arch: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """The size nearest to `size` (height, width) that `arch` takes whole; None if no likely size is."""
    body, made_with = nn.Module(), None
    for near in sizes_around(arch, size):
        options = size_options(arch, near)
        if options != made_with:
            body, made_with = timm.create_model(arch, num_classes=0, **options), options
        if size_flaw(body, near) is None:
            return near
    return None


def sizes_around(arch: str, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Likely sizes, the nearest first: whole steps, whole steps from the arch's own size, and its own size."""
    own = arch_size(arch)
    found: set[Any] = {own}
    for step, start in itertools.product(STEPS, (own, (0, 0))):
        below = [side - (side - origin) % step for side, origin in zip(size, start, strict=True)]
        found.update(itertools.product(*((side, low, low + step) for side, low in zip(size, below, strict=True))))
    likely = (near for near in found - {size} if min(near) > 0)
    return sorted(likely, key=lambda near: (abs(near[0] - size[0]) + abs(near[1] - size[1]), near))
