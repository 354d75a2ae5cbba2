"""Steps: a validation pipeline as plain values, which `predict_onnx.py` executes without albumentations.

Normalisation is not a step, because it is part of the network's file.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2

from fastmask.data.augment import Augmentation, Enlarge
from fastmask.system.errors import UsageError
from fastmask.system.text import shorten

# OpenCV's constants by their names
_INTERPOLATIONS = {
    int(getattr(cv2, f"INTER_{name}")): name.lower()
    for name in ("NEAREST", "LINEAR", "CUBIC", "AREA", "LANCZOS4", "LINEAR_EXACT", "NEAREST_EXACT")
}
_BORDERS = {
    int(getattr(cv2, f"BORDER_{name}")): name.lower()
    for name in ("CONSTANT", "REPLICATE", "REFLECT", "WRAP", "REFLECT_101")
}
_ABLE = (A.CenterCrop, A.PadIfNeeded, A.Resize, A.LongestMaxSize, A.SmallestMaxSize)
Step = dict[str, Any]


def steps_of(augment: Augmentation) -> list[Step]:
    """Convert a pipeline to steps, each with a name ("do") and numbers.

    Raises UsageError for the first transform that is random or not supported.
    """
    steps: list[Step] = []
    for transform in augment.pipeline.transforms:
        if isinstance(transform, A.Normalize | A.ToTensorV2):
            continue
        given = transform.get_transform_init_args()
        made = _steps(transform, given) if transform.p == 1 else None
        if made is None:
            shown = ", ".join(f"{name}={value}" for name, value in {"p": transform.p, **given}.items())
            raise UsageError(
                f"The validation pipeline has {type(transform).__name__}({shorten(shown)}), which predict_onnx.py "
                f"does not support; it supports {', '.join(able.__name__ for able in _ABLE)} with the default "
                "arguments of albumentations and p=1 (see fastmask guide export)."
            )
        steps.extend(made)
    return steps


def _steps(transform: A.BasicTransform, given: dict[str, Any]) -> list[Step] | None:
    """The steps of a transform, or None if it is not supported."""
    match transform:
        case Enlarge():
            return [{"do": "enlarge", "height": given["height"], "width": given["width"]}]
        case A.CenterCrop():
            side = {"height": given["height"], "width": given["width"]}
            crop = {"do": "center_crop", **side}
            return _pad(given, given["pad_position"], side, crop) if given["pad_if_needed"] else [crop]
        case A.PadIfNeeded():
            return _pad(given, given["position"], {"height": given["min_height"], "width": given["min_width"]})
        case A.Resize():
            return [{"do": "resize", "height": given["height"], "width": given["width"], **_interpolation(given)}]
        case A.LongestMaxSize() | A.SmallestMaxSize():
            return _scale(given, "longest" if isinstance(transform, A.LongestMaxSize) else "shortest")
    return None


def _scale(given: dict[str, Any], do: str) -> list[Step] | None:
    side, sides = given["max_size"], given["max_size_hw"] or (None, None)
    if isinstance(side, int):
        return [{"do": do, "side": side, **_interpolation(given)}]
    return None if None in sides else [{"do": do, "sides": list(sides), **_interpolation(given)}]


def _pad(given: dict[str, Any], position: str, side: Step, *after: Step) -> list[Step] | None:
    if position == "random" or None in side.values():
        return None
    fill = given["fill"]
    values = list(fill) if isinstance(fill, list | tuple) else [fill] * 3
    border = _BORDERS[int(given["border_mode"])]
    return [{"do": "pad", **side, "position": position, "border": border, "fill": values}, *after]


def _interpolation(given: dict[str, Any]) -> Step:
    """The interpolation `by`; with `area`, a larger photo is scaled down by averaging instead."""
    return {"by": _INTERPOLATIONS[int(given["interpolation"])], "area": given["area_for_downscale"] is not None}
