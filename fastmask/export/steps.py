"""Steps: what a validation pipeline does to a photo before the network sees it, as plain values for other programs.

`fastmask.export.predict_onnx` does them without albumentations. Normalising is no step: it is in the network's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import albumentations as A
import cv2

from fastmask.data.augment import Augmentation
from fastmask.system.errors import UsageError

# OpenCV's numbers by the names that other programs find them under
_INTERPOLATIONS = {
    int(getattr(cv2, f"INTER_{name}")): name.lower()
    for name in ("NEAREST", "LINEAR", "CUBIC", "AREA", "LANCZOS4", "LINEAR_EXACT", "NEAREST_EXACT")
}
_BORDERS = {
    int(getattr(cv2, f"BORDER_{name}")): name.lower()
    for name in ("CONSTANT", "REPLICATE", "REFLECT", "WRAP", "REFLECT_101")
}
Step = dict[str, Any]


def steps_of(augment: Augmentation) -> list[Step]:
    """The steps of a pipeline, each {"do": its name, and its numbers}.

    Raises UsageError naming the first transform that draws something, or that there is no step for.
    """
    steps: list[Step] = []
    for transform in augment.pipeline.transforms:
        if isinstance(transform, A.Normalize | A.ToTensorV2):
            continue
        name = type(transform).__name__
        made = _MAKERS.get(type(transform), _nothing)(transform.get_transform_init_args())
        if made is None or transform.p < 1:
            raise UsageError(
                f"The validation pipeline has {name}({_told(transform)}), which predict_onnx.py cannot do without "
                f"albumentations; it can do {', '.join(maker.__name__ for maker in _MAKERS)} as albumentations makes "
                "them by default, with p=1."
            )
        steps.extend(made)
    return steps


def _told(transform: A.BasicTransform) -> str:
    arguments = {"p": transform.p, **transform.get_transform_init_args()}
    return ", ".join(f"{name}={value}" for name, value in arguments.items())[:200]


def _nothing(given: Mapping[str, Any]) -> list[Step] | None:
    return None


def _center_crop(given: Mapping[str, Any]) -> list[Step] | None:
    crop = {"do": "center_crop", "height": given["height"], "width": given["width"]}
    if not given["pad_if_needed"]:
        return [crop]
    padded = _padded(given["height"], given["width"], given["pad_position"], given)
    return None if padded is None else [padded, crop]


def _pad_if_needed(given: Mapping[str, Any]) -> list[Step] | None:
    if given["min_height"] is None or given["min_width"] is None:
        return None
    padded = _padded(given["min_height"], given["min_width"], given["position"], given)
    return None if padded is None else [padded]


def _padded(height: int, width: int, position: str, given: Mapping[str, Any]) -> Step | None:
    if position == "random":
        return None
    fill = given["fill"]
    values = list(fill) if isinstance(fill, list | tuple) else [fill] * 3
    border = _BORDERS[int(given["border_mode"])]
    return {"do": "pad", "height": height, "width": width, "position": position, "border": border, "fill": values}


def _resize(given: Mapping[str, Any]) -> list[Step] | None:
    return [{"do": "resize", "height": given["height"], "width": given["width"], **_how(given)}]


def _max_size(do: str) -> Callable[[Mapping[str, Any]], list[Step] | None]:
    def make(given: Mapping[str, Any]) -> list[Step] | None:
        side = given["max_size"]
        return [{"do": do, "side": side, **_how(given)}] if isinstance(side, int) else None

    return make


def _how(given: Mapping[str, Any]) -> Step:
    """How pixels are interpolated; `area` where those of a larger photo are averaged whatever `by` says."""
    return {"by": _INTERPOLATIONS[int(given["interpolation"])], "area": given["area_for_downscale"] is not None}


_MAKERS: dict[type, Callable[[Mapping[str, Any]], list[Step] | None]] = {
    A.CenterCrop: _center_crop,
    A.PadIfNeeded: _pad_if_needed,
    A.Resize: _resize,
    A.LongestMaxSize: _max_size("longest"),
    A.SmallestMaxSize: _max_size("shortest"),
}
