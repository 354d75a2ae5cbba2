"""Views: slightly changed copies of a photo, over which predictions are averaged (test-time augmentation, TTA).

To add one, write a function of a batch (B, 3, H, W) and give it a line in `VIEWS`, with its help; the option and its
checks follow. A photo of one colour, or of one pixel, must stay as it is. Importing this module does not load torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fastmask.system.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fastmask.heads import Heads

# shares of width and height: the size of a shift, and the size of a photo that is scaled
SHIFT, SCALE = 0.04, 0.92

View = Callable[["Tensor"], "Tensor"]


def plain(x: Tensor) -> Tensor:
    """The photos (B, 3, H, W) as they are."""
    return x


def flip(x: Tensor) -> Tensor:
    """The mirror images of (B, 3, H, W) photos."""
    return x.flip(-1)


def shift(x: Tensor, right: int = 0, down: int = 0) -> Tensor:
    """Photos (B, 3, H, W) moved by 4 % of their width and height, `right` and `down` times; the border is reflected.

    By whole pixels, at least one, so that photos are not blurred.
    """
    from torch.nn.functional import pad

    height, width = x.shape[-2:]
    dy, dx = _pixels(height), _pixels(width)
    padded = pad(x, (dx, dx, dy, dy), mode="reflect")
    top, left = dy * (1 - down), dx * (1 - right)
    return padded[..., top : top + height, left : left + width]


def _pixels(side: int) -> int:
    # a reflected border has at most one pixel less than the photo
    return min(max(1, round(SHIFT * side)), side - 1)


def closer(x: Tensor) -> Tensor:
    """The middle 92 % of the height and width of (B, 3, H, W) photos, scaled up to the full size."""
    from torch.nn.functional import interpolate

    height, width = x.shape[-2:]
    (top, left), (h, w) = _middle(height, width)
    return interpolate(x[..., top : top + h, left : left + w], size=(height, width), mode="bilinear")


def farther(x: Tensor) -> Tensor:
    """Photos (B, 3, H, W) scaled down to 92 % of their height and width, with a reflected border around."""
    from torch.nn.functional import interpolate, pad

    height, width = x.shape[-2:]
    (top, left), (h, w) = _middle(height, width)
    small = interpolate(x, size=(h, w), mode="bilinear", antialias=True)
    return pad(small, (left, width - w - left, top, height - h - top), mode="reflect")


def _middle(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The start (top, left) of the middle, and its height and width."""
    h, w = (max(1, round(SCALE * side)) for side in (height, width))
    return ((height - h) // 2, (width - w) // 2), (h, w)


class Views(NamedTuple):
    """The views that a name of the option adds, and their description in its help."""

    help: str
    views: tuple[View, ...]


VIEWS = {
    "flip": Views("mirrored", (flip,)),
    "shift": Views(
        "moved by 4 % to each side",
        tuple(partial(shift, right=right, down=down) for right, down in ((-1, 0), (1, 0), (0, -1), (0, 1))),
    ),
    "scale": Views("8 % closer and farther", (closer, farther)),
}


def make_views(names: Sequence[str]) -> list[View]:
    """The photo itself and the views of all `names`; raises UsageError for an unknown or repeated name."""
    for i, name in enumerate(names):
        if name not in VIEWS:
            raise UsageError(f"There are no views {name!r}; expected some of {', '.join(VIEWS)}.")
        if name in names[:i]:
            raise UsageError(f"The views {name} are named twice; name each once.")
    return [plain, *(view for name in names for view in VIEWS[name].views)]


def average_views(each: Sequence[Tensor], heads: Heads) -> Tensor:
    """Average the probabilities of views: (B, classes of all heads) logits of each -> the logits of the mean, float32.

    These are the logarithms of each head's mean probabilities, finite also where those are 0 in float32.
    """
    import torch

    logs = torch.stack([torch.cat([part.float().log_softmax(-1) for part in heads.split(one)], dim=-1) for one in each])
    return logs.logsumexp(0) - math.log(len(each))
