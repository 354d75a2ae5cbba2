"""Transforms: of the DataBlock for photos and labels, and the types of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from fastai.torch_core import TensorBase, TensorImage, show_title
from fasttransform import DisplayedTransform, Transform
from PIL import Image

from fastmask.data.augment import is_photo
from fastmask.data.boxes import FaceCut
from fastmask.data.photo import decode_named, read_image, read_photo
from fastmask.heads import Heads
from fastmask.labels import join_parts
from fastmask.system.errors import DataError, UsageError


class Handed(TensorBase):
    """A tensor of a batch, which is copied from pinned memory to a GPU asynchronously."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """`Tensor.to`; fastai's blocking copy would wait for all pending work of the GPU."""
        if self.is_pinned():
            kwargs["non_blocking"] = True
        return super().to(*args, **kwargs)


class TensorPhotos(Handed, TensorImage):
    """Photos of a batch: (B, 3, H, W)."""


class TensorHeads(Handed):
    """Class numbers: (heads,) or (B, heads) int64, -1 where unknown.

    Or soft labels, the weight of each class: (classes of all heads,) or (B, classes of all heads) float32, or in two
    parts, see `fastmask.labels`.
    """


class HeadNames(list[str]):
    """A class name per head, shown as the title of its photo."""

    def show(self, ctx: Any = None, **kwargs: Any) -> Any:
        """Set the title of a matplotlib axis, or print."""
        return show_title(str(self), ctx=ctx, **kwargs)

    def __str__(self) -> str:
        return " ".join(name or "?" for name in self)


# the class number, for every head, of a photo that could not be read and was substituted
UNREADABLE = -2


class EncodeHeads(DisplayedTransform):
    """Class numbers or names, one per head, or soft labels -> TensorHeads, and back to names."""

    def __init__(self, heads: Heads) -> None:
        self.heads = heads

    def encodes(self, y: np.ndarray | list) -> TensorHeads:  # type: ignore[type-arg] # plum dispatches on it
        codes: Any = self.heads.encode(list(y)) if isinstance(y[0], str) else y
        return TensorHeads(targets_of(codes))

    def decodes(self, y: TensorHeads) -> HeadNames:
        classes = self.heads.harden(join_parts(y[None]).cpu().numpy())[0] if y.is_floating_point() else y
        return HeadNames(self.heads.decode(classes.tolist()))

    @property
    def vocab(self) -> Any:
        """Raises UsageError: fastai would use it for one target, and count class 0 of two heads as the same class."""
        raise UsageError(
            f"A photo has a class of each of {', '.join(self.heads.names)}, so there is no single vocabulary; use "
            "fm.interpretation(learn, head) to interpret a head, or heads_of(dls) for the classes."
        )


def targets_of(labels: Any) -> torch.Tensor:
    """Class numbers as int64, soft labels as float32."""
    array = np.asarray(labels)
    return torch.as_tensor(array, dtype=torch.float32 if array.dtype.kind == "f" else torch.int64)


class ReadPhoto(Transform):
    """A path, an opened image or an array -> (height, width, 3) uint8 RGB, cut to its face with `faces`."""

    input_types = (str, Path, Image.Image)

    def __init__(self, faces: FaceCut | None = None) -> None:
        super().__init__()
        self.faces = faces

    def encodes(self, photo: str | Path | Image.Image) -> np.ndarray:
        return read_or_copy(photo, self.faces)


def read_or_copy(photo: str | Path | bytes | Image.Image | np.ndarray, faces: FaceCut | None = None) -> np.ndarray:
    """`ReadPhoto` without fastai's dispatch."""
    if isinstance(photo, str | Path):
        whole = read_photo(photo)
        return whole if faces is None else faces(whole, photo)
    if isinstance(photo, bytes):
        image = decode_named(photo, "The photo")
    else:
        # a copy, because augmentations may write to it
        image = read_image(photo, "The photo") if isinstance(photo, Image.Image) else np.array(photo, order="C")
    if not is_photo(image):
        raise DataError(f"A photo is {image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB.")
    return image if faces is None else faces.check_cut(image)


class Lookup(Transform):
    """A row number -> the item of `values`: its path, or its labels."""

    input_types = int

    def __init__(self, values: Sequence[Any] | np.ndarray) -> None:
        super().__init__()
        self.values = values

    def encodes(self, row: int) -> object:
        return self.values[row]


class NormalizeBatch(DisplayedTransform):
    """(B, 3, H, W) uint8 -> float32 (x / 255 - mean) / std, like albumentations' Normalize and ToTensorV2."""

    order = 99

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def encodes(self, x: TensorImage) -> TensorImage:
        if x.dtype != torch.uint8:
            return x
        pixels = x.as_subclass(torch.Tensor).permute(0, 2, 3, 1)
        if x.device.type == "cpu" and pixels.is_contiguous() and pixels.numel():
            return TensorImage(self._looked_up(pixels.numpy()).permute(0, 3, 1, 2))
        return self._normalized(x)

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self._per_channel(x)
        return x.float().sub_(mean * 255).div_(std * 255)

    def _looked_up(self, pixels: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3): the same result by a table of the 256 values per channel."""
        values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 3, 256, 1)
        table = self._normalized(values)[0, ..., 0].T.reshape(256, 1, 3).numpy()
        out = np.empty(pixels.shape, np.float32)
        width = pixels.shape[2]
        cv2.LUT(pixels.reshape(-1, width, 3), table, dst=out.reshape(-1, width, 3))
        return torch.from_numpy(out)

    def decodes(self, x: TensorImage) -> TensorImage:
        mean, std = self._per_channel(x)
        return (x * std + mean).clamp(0, 1)

    def _per_channel(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and deviations as (1, channels, 1, 1), copied to a device once, because a copy waits for it."""
        if x.device not in self._on_device:
            mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
            self._on_device[x.device] = mean, std
        return self._on_device[x.device]

    def __getstate__(self) -> dict[str, Any]:
        # an exported learner may be loaded where there is no such device
        return {**self.__dict__, "_on_device": {}}
