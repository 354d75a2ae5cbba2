"""Views: a photo seen a little otherwise, over which a network's answers are averaged (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from fastmask.system.errors import UsageError

# of the width or the height that a photo is shifted by; what is kept of both where it is scaled
SHIFT, SCALE = 0.04, 0.92

View = Callable[[Tensor], Tensor]


def plain(x: Tensor) -> Tensor:
    """The photos (B, 3, H, W) as they are."""
    return x


def flip(x: Tensor) -> Tensor:
    """The mirror images of (B, 3, H, W) photos."""
    return x.flip(-1)


def shift(x: Tensor, right: int = 0, down: int = 0) -> Tensor:
    """Photos (B, 3, H, W) moved by 4 % of their width and height, `right` and `down` times; the border is reflected.

    By whole pixels, one at least, so that none is blurred.
    """
    height, width = x.shape[-2:]
    dy, dx = _pixels(height), _pixels(width)
    padded = F.pad(x, (dx, dx, dy, dy), mode="reflect")
    top, left = dy * (1 - down), dx * (1 - right)
    return padded[..., top : top + height, left : left + width]


def _pixels(side: int) -> int:
    # a reflection has one pixel less than the photo
    return min(max(1, round(SHIFT * side)), side - 1)


def closer(x: Tensor) -> Tensor:
    """The middle 92 % of the height and width of (B, 3, H, W) photos, scaled up to the whole."""
    height, width = x.shape[-2:]
    (top, left), (h, w) = _middle(height, width)
    return F.interpolate(x[..., top : top + h, left : left + w], size=(height, width), mode="bilinear")


def farther(x: Tensor) -> Tensor:
    """Photos (B, 3, H, W) scaled down to 92 % of their height and width, with a reflected border around."""
    height, width = x.shape[-2:]
    (top, left), (h, w) = _middle(height, width)
    small = F.interpolate(x, size=(h, w), mode="bilinear", antialias=True)
    return F.pad(small, (left, width - w - left, top, height - h - top), mode="reflect")


def _middle(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the middle begins, and its height and width."""
    h, w = (max(1, round(SCALE * side)) for side in (height, width))
    return ((height - h) // 2, (width - w) // 2), (h, w)


VIEWS: dict[str, tuple[View, ...]] = {
    "flip": (flip,),
    "shift": tuple(partial(shift, right=right, down=down) for right, down in ((-1, 0), (1, 0), (0, -1), (0, 1))),
    "scale": (closer, farther),
}


def make_views(names: Sequence[str]) -> list[View]:
    """The photo itself and the views of each name, which add up; raises UsageError for a name that there is not."""
    for i, name in enumerate(names):
        if name not in VIEWS:
            raise UsageError(f"There are no views {name!r}; expected some of {', '.join(VIEWS)}.")
        if name in names[:i]:
            raise UsageError(f"The views {name} are named twice; name each once.")
    return [plain, *(view for name in names for view in VIEWS[name])]
