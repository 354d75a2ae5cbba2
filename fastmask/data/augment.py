"""Augmentation: an albumentations pipeline as data and as a callable (image, rng), without its normalization."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastmask.config import check_stats
from fastmask.data.decode import MOST_PIXELS
from fastmask.system.errors import DataError, PhotoSizeError, UsageError, one_line

# otherwise albumentations asks the package index for a newer version at import
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
from albumentations.core.serialization import serialize_enum

import fastmask.data.policies  # noqa: F401 - a pipeline is read back with its transforms

# the advice for a photo that does not fit an augmentation; `app.trial` replaces it
CHANGE = "change --crop HEIGHT WIDTH, scale photos with --fit pad, or change the pipeline."
REPORT_STATS = ((0.548, 0.504, 0.479), (0.237, 0.247, 0.246))

# transforms that are deterministic at p=1, except for the arguments that `_is_deterministic` checks
_FIXED = (
    *(A.CenterCrop, A.Crop, A.Pad, A.PadIfNeeded),
    *(A.LongestMaxSize, A.Resize, A.SmallestMaxSize),
    *(A.HorizontalFlip, A.Transpose, A.VerticalFlip),
    *(A.InvertImg, A.ToGray),
)
# a pipeline may be malicious: arguments with which a transform reads other files, and the largest numbers, by a
# part of its argument's name (a photo of 16384 x 16384 takes 0.8 GB)
_READING = ("font_path", "read_fn", "reference_images")
_MOST, _MOST_NUMBER = {"seed": 2.0**64, "max_value": 2.0**32, "max_pixel_value": 2.0**32, "scale": 16.0}, 16384.0

Stats = tuple[tuple[float, ...], tuple[float, ...]]
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def to_plain(pipeline: A.Compose | A.BasicTransform) -> dict[str, Any]:
    """albumentations' own serialisation, as plain values for YAML."""
    plain: dict[str, Any] = _drop_inherited(serialize_enum(A.to_dict(pipeline)))
    return plain


def _drop_inherited(plain: Any) -> Any:
    """`plain` without arguments that a transform does not take: PadIfNeeded also serializes one of its base class."""
    if isinstance(plain, list | tuple):
        return [_drop_inherited(each) for each in plain]
    if not isinstance(plain, Mapping):
        return plain
    taken = defaults_of(plain.get("__class_fullname__", ""))
    return {
        key: _drop_inherited(value) for key, value in plain.items() if not taken or key in taken or key.startswith("__")
    }


def from_plain(plain: Mapping[str, Any], option: str = "the pipeline") -> A.Compose:
    """The reverse of `to_plain`, strict: raises UsageError for an unknown transform or argument, naming `option`."""
    try:
        check_plain(plain)
        with warnings.catch_warnings():
            # albumentations only warns of an unknown argument, and of a missing p, which it sets to 0.5
            warnings.simplefilter("error", UserWarning)
            pipeline = A.from_dict(dict(plain))
        if not isinstance(pipeline, A.Compose):
            raise ValueError(f"expected a Compose, found {type(pipeline).__name__}")
    except KeyError as error:
        raise UsageError(f"{option}: there is no {error} in albumentations {A.__version__}.") from error
    except Exception as error:
        raise UsageError(f"{option} is not a pipeline that albumentations can build: {one_line(error)}.") from error
    return pipeline


def check_plain(plain: Any, key: str = "") -> None:
    """Raise ValueError if a pipeline would read other files or fill the memory."""
    if isinstance(plain, Mapping):
        for name, value in plain.items():
            if name in _READING and value:
                raise ValueError(f"{name} reads other files than the photo")
            check_plain(value, str(name))
    elif isinstance(plain, list | tuple):
        for value in plain:
            check_plain(value, key)
    elif isinstance(plain, int | float):
        most = next((most for part, most in _MOST.items() if part in key), _MOST_NUMBER)
        if not abs(plain) <= most:
            raise ValueError(f"{key} is {plain:g}, expected at most {most:g}")


def build_augmentations(pipelines: Mapping[str, Any]) -> tuple[Augmentation, Augmentation]:
    """The training and the validation augmentation of {"train": ..., "valid": ...}, as a run saves them."""
    return (
        Augmentation(from_plain(pipelines["train"], "train_pipeline")),
        Augmentation(from_plain(pipelines["valid"], "valid_pipeline")),
    )


def defaults_of(name: str) -> dict[str, Any]:
    """The arguments of an albumentations transform and their defaults; {} where there is no such transform."""
    made = getattr(A, name, None)
    if not isinstance(made, type) or not issubclass(made, A.BasicTransform):
        return {}
    return {argument: one.default for argument, one in signature(made).parameters.items()}


class Enlarge(A.ImageOnlyTransform):
    """Scales a photo up, with its aspect ratio, just as far as a crop of (height, width) pixels fits into it."""

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """What albumentations checks the arguments by."""

        height: int
        width: int

    def __init__(self, height: int, width: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.height, self.width = height, width

    def scale(self, height: int, width: int) -> float:
        """The factor for a photo of that size, 1 if it is large enough."""
        return max(1.0, self.height / height, self.width / width)

    def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
        """The enlarged photo, interpolated linearly; raises ValueError if it would fill the memory."""
        scale = self.scale(*img.shape[:2])
        if scale == 1:
            return img
        height, width = (round(side * scale) for side in img.shape[:2])
        if height * width > MOST_PIXELS:
            raise ValueError(f"enlarged for the crop it is {height} high and {width} wide")
        return np.asarray(cv2.resize(img, (width, height), interpolation=cv2.INTER_LINEAR))


def enlarge_for_crops(pipeline: A.Compose) -> A.Compose:
    """The pipeline, with an `Enlarge` before each crop that photos may be too small for."""
    transforms: list[A.BasicTransform] = []
    for transform in pipeline.transforms:
        least = _least_size(transform)
        transforms += [transform] if least is None else [Enlarge(*least), transform]
    same = len(transforms) == len(pipeline.transforms)
    return pipeline if same else A.Compose(transforms, p=pipeline.p, strict=True)


def _least_size(transform: A.BasicTransform) -> tuple[int, int] | None:
    """The (height, width) that a crop needs; None for what takes photos of any size."""
    if getattr(transform, "pad_if_needed", True):
        return None
    if isinstance(transform, A.Crop):
        return transform.y_max, transform.x_max
    return (transform.height, transform.width) if isinstance(transform, A.CenterCrop | A.RandomCrop) else None


class Prefix:
    """A deterministic callable image -> image, both (height, width, 3) uint8 RGB; the identity without transforms.

    `plain` is its serialisation: a cached result is valid as long as that is the same.
    """

    def __init__(self, transforms: Sequence[A.BasicTransform] = ()) -> None:
        self.transforms = list(transforms)
        self._pipeline = A.Compose(self.transforms, strict=True)
        self.plain = [to_plain(transform) for transform in self.transforms]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Apply the transforms to one photo; raises ValueError where they would enlarge it beyond all measure."""
        if self.transforms:
            _check_growth(self.transforms[0], image.shape[:2])
            image = self._pipeline(image=image)["image"]
        return image


def _check_growth(first: A.BasicTransform, size: Sequence[int]) -> None:
    """Raise ValueError if a photo whose short side is scaled gets an enormous long side."""
    if isinstance(first, A.SmallestMaxSize):
        sides = first.max_size_hw or (first.max_size, first.max_size)
        scale = max(wanted / side for wanted, side in zip(sides, size, strict=True) if isinstance(wanted, int))
        if scale * max(size) > _MOST_NUMBER:
            raise ValueError(f"it would be {scale * max(size):.0f} pixels long")


def _is_deterministic(transform: A.BasicTransform) -> bool:
    if type(transform) not in (*_FIXED, Enlarge) or transform.p < 1:
        return False
    arguments = transform.get_transform_init_args()
    # a position may be random, and so may one of several sizes
    return "random" not in arguments.values() and not isinstance(arguments.get("max_size"), list | tuple)


def split_prefix(augment: Augment) -> tuple[Prefix, Augment]:
    """An augmentation as its deterministic prefix and the rest; a custom callable has no prefix."""
    return (augment.prefix, augment.vary) if isinstance(augment, Augmentation) else (Prefix(), augment)


class Augmentation:
    """A callable (image, rng) -> image, both (height, width, 3) uint8 RGB, around an albumentations pipeline.

    A Normalize and a ToTensorV2 at the end are removed: they are applied to the whole batch (`NormalizeBatch`), and
    `stats` keeps the Normalize's (mean, std), or None. `prefix` is the longest deterministic beginning, which can be
    cached, and `vary` the rest. All randomness is from `rng`, so the same generator state gives the same image.

    >>> import albumentations as A
    >>> augment = fm.Augmentation(A.Compose([A.CenterCrop(400, 200), A.HorizontalFlip(p=0.5)]))
    >>> augment(np.zeros((512, 384, 3), np.uint8), np.random.default_rng(0)).shape
    (400, 200, 3)
    >>> len(augment.prefix.transforms)
    1
    """

    def __init__(self, pipeline: A.Compose) -> None:
        self.pipeline = pipeline
        transforms = list(pipeline.transforms)
        self.stats: Stats | None = None
        if transforms and isinstance(transforms[-1], A.ToTensorV2):
            transforms.pop()
        if transforms and isinstance(transforms[-1], A.Normalize):
            self.stats = _stats_of(transforms.pop())
        if any(isinstance(t, A.Normalize | A.ToTensorV2) for t in transforms):
            raise UsageError(
                "Normalize and ToTensorV2 must be the last two of a pipeline: fastmask applies them to the batch."
            )
        if pipeline.p != 1:
            raise UsageError(f"The pipeline has p={pipeline.p}; expected 1, and a p for each of its transforms.")
        fixed = list(takewhile(_is_deterministic, transforms))
        self.prefix = Prefix(fixed)
        self._rest = A.Compose(transforms[len(fixed) :], strict=True)
        self._rng: np.random.Generator | None = None
        self._py_random = random.Random()

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment one photo."""
        return self.vary(self.prefix(image), rng)

    def vary(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment the output of `prefix`."""
        if not self._rest.transforms:
            return image
        if rng is not self._rng:
            # setting a generator costs 0.1 ms, seeding it 0.01
            self._rng = rng
            self._rest.set_random_state(rng, self._py_random)
        self._py_random.seed(int(rng.integers(2**63)))
        augmented: np.ndarray = self._rest(image=image)["image"]
        return augmented

    def __repr__(self) -> str:
        return f"Augmentation({[*self.prefix.transforms, *self._rest.transforms]})"

    def __getstate__(self) -> dict[str, Any]:
        # a pickled generator is another object, so a worker must set its own
        return {**self.__dict__, "_rng": None}


def _stats_of(normalize: A.Normalize) -> Stats:
    if normalize.normalization != "standard" or normalize.max_pixel_value != 255:
        raise UsageError("Only Normalize(normalization='standard', max_pixel_value=255) can be applied to the batch.")
    means, deviations = tuple(float(v) for v in normalize.mean), tuple(float(v) for v in normalize.std)
    try:
        check_stats(means, deviations)
    except ValueError as error:
        raise UsageError(f"The pipeline's Normalize: {error}.") from error
    return means, deviations


def check_fit(
    augments: Mapping[str, tuple[Augment, Sequence[tuple[int, int]]]], names: Sequence[Path]
) -> tuple[int, int]:
    """The (height, width) that every photo has after every one of `augments`.

    `augments` maps a name to an augmentation and the (height, width) of each of its photos; each size is tried once.
    Raises DataError naming the photo and the augmentation where it fails, where its result is not (height, width, 3)
    uint8, or where the results differ in size.
    """
    results: dict[tuple[int, int], Path] = {}
    for what, (augment, sizes) in augments.items():
        first: dict[tuple[int, int], Path] = {}
        for size, name in zip(sizes, names, strict=True):
            first.setdefault((size[0], size[1]), name)
        for size, name in first.items():
            results.setdefault(_size_after(augment, what, size, name), name)
    if len(results) > 1:
        (a, one), (b, other) = list(results.items())[:2]
        raise DataError(
            f"{one} is {a[0]} high and {a[1]} wide after augmentation, {other} {b[0]} and {b[1]}: the pipelines "
            "must end in one size, so add a crop or a resize to both."
        )
    return next(iter(results))


def _size_after(augment: Augment, what: str, size: tuple[int, int], name: Path) -> tuple[int, int]:
    try:
        image = augment(np.zeros((*size, 3), np.uint8), np.random.default_rng(0))
    except Exception as error:
        raise size_error(name, size, what, error) from error
    if not is_photo(image):
        raise DataError(f"{what} made {image.dtype} {image.shape} of {name}; expected uint8 (height, width, 3).")
    return image.shape[0], image.shape[1]


def size_error(name: Path, size: Sequence[int], what: str, error: Exception) -> DataError:
    """The error of a photo on which an augmentation fails."""
    return PhotoSizeError(
        f"{name} is {size[0]} high and {size[1]} wide, and {what} does not fit it ({one_line(error)}); {CHANGE}"
    )


def is_photo(image: np.ndarray) -> bool:
    """Whether an array is (height, width, 3) uint8 and not empty."""
    return bool(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size)
