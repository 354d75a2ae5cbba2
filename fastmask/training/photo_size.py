"""Photo size: the size of the network's photos by their aspect and the arch (`fit --auto-resize`)."""

from __future__ import annotations

import math
import statistics

from fastmask.data.pipelines import sample_sizes
from fastmask.data.table import Table
from fastmask.model.archs import arch_size, fit_size

# what a side of the network's photos is a multiple of
_STEP = 8


def size_of_photos(table: Table, arch: str) -> tuple[int, int]:
    """The (height, width) in the median aspect of a table's photos, with as many pixels as `arch` was trained on."""
    aspects = [height / width for height, width in sample_sizes(table)]
    return size_of_pixels(arch, math.prod(arch_size(arch)), statistics.median(aspects or [1.0]))


def size_of_pixels(arch: str, pixels: float, aspect: float) -> tuple[int, int]:
    """The (height, width) that `arch` takes, nearest to `pixels` pixels with an `aspect` of height / width."""
    sides = (math.sqrt(pixels * aspect), math.sqrt(pixels / aspect))
    height, width = (max(_STEP, round(side / _STEP) * _STEP) for side in sides)
    return fit_size(arch, (height, width))
