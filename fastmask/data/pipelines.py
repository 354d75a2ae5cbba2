"""Pipelines: how a photo is scaled and cut for the network, and varied in training, by the settings of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from fastmask.config import CONTEST, CROP, PAD, REPORT_BRIGHTNESS_CONTRAST, REPORT_CROP, STRETCH, Config, Fit
from fastmask.data.augment import REPORT_STATS, Augmentation, Stats, from_plain, to_plain
from fastmask.data.catalog import RANDOM_CROP, PhotoFormat, Stage, make_augmentations
from fastmask.data.photo import read_size
from fastmask.data.table import Table
from fastmask.system.errors import UnreadableError, UsageError
from fastmask.system.text import percent

# the size of most of timm's bodies
DEFAULT_SIZE = (224, 224)
# a training photo of `crop` is kept larger than the network's by timm's factor, and a random part of it is taken
_MARGIN = 8 / 7
# photos whose size is read
_SAMPLED = 100
Transforms = list[A.BasicTransform]
Scaling = Callable[[tuple[int, int], tuple[float, ...], float], tuple[Transforms, Transforms]]


def _pad(size: tuple[int, int], fill: tuple[float, ...], share: float) -> tuple[Transforms, Transforms]:
    height, width = size
    scaled = A.LongestMaxSize(max_size_hw=_enlarge(size, 1 / share), area_for_downscale="image")
    padded = A.PadIfNeeded(min_height=height, min_width=width, border_mode=cv2.BORDER_CONSTANT, fill=fill)
    both: Transforms = [scaled, padded, *_middle(size, share)]
    return both, both


def _crop(size: tuple[int, int], fill: tuple[float, ...], share: float) -> tuple[Transforms, Transforms]:
    part = A.RandomResizedCrop(**PhotoFormat(size, fill).random_part)
    train: Transforms = [A.SmallestMaxSize(max_size_hw=_enlarge(size, _MARGIN), area_for_downscale="image"), part]
    filled = A.SmallestMaxSize(max_size_hw=_enlarge(size, 1 / share), area_for_downscale="image")
    return train, [filled, A.CenterCrop(height=size[0], width=size[1])]


def _stretch(size: tuple[int, int], fill: tuple[float, ...], share: float) -> tuple[Transforms, Transforms]:
    height, width = _enlarge(size, 1 / share)
    scaled: Transforms = [A.Resize(height=height, width=width, area_for_downscale="image"), *_middle(size, share)]
    return scaled, scaled


def _enlarge(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


def _middle(size: tuple[int, int], share: float) -> Transforms:
    """The cut to `size`, the middle of a photo that was scaled to be larger, if it was."""
    return [A.CenterCrop(height=size[0], width=size[1])] if share < 1 else []


# how a photo, or the middle `share` of its height and width, becomes one of `size`: the first transforms of training
# and of validation
SCALINGS: Mapping[Fit, Scaling] = {PAD: _pad, CROP: _crop, STRETCH: _stretch}


def fit_pipelines(
    fit: Fit = PAD,
    size: tuple[int, int] = DEFAULT_SIZE,
    stats: Stats = REPORT_STATS,
    erase: float = 0.0,
    augment: Sequence[str] = (),
    brightness_contrast: float = REPORT_BRIGHTNESS_CONTRAST,
    crop_pct: float = 1.0,
) -> tuple[A.Compose, A.Compose]:
    """Training and validation pipelines for photos of any size, which make them `size` (height, width).

    `fit` is "pad" (the whole photo, its aspect kept, on the mean colour), "crop" (the largest centred part with the
    aspect of `size`; in training a random part), or "stretch" (the whole photo, its aspect changed). Of that the middle
    `crop_pct` of the height and width is seen, as by timm's setting of this name; a random part is of the whole photo.
    What else varies a training photo is as in `report_pipelines`. Raises UsageError for another `fit`.

    >>> train, valid = fm.fit_pipelines("pad", size=(128, 96))
    >>> valid(image=np.zeros((480, 640, 3), np.uint8))["image"].shape
    torch.Size([3, 128, 96])
    """
    if fit not in SCALINGS:
        raise UsageError(f"fit is {fit!r}; expected one of {', '.join(SCALINGS)}.")
    return _complete(*SCALINGS[fit](size, _fill(stats), crop_pct), size, stats, erase, augment, brightness_contrast)


def report_pipelines(
    crop: tuple[int, int] = REPORT_CROP,
    stats: Stats = REPORT_STATS,
    resize: tuple[int, int] | None = None,
    erase: float = 0.0,
    augment: Sequence[str] = (),
    brightness_contrast: float = REPORT_BRIGHTNESS_CONTRAST,
) -> tuple[A.Compose, A.Compose]:
    """The report's training and validation pipelines; `crop` is (height, width) in pixels.

    `resize` (height, width) scales the crop, which the report did not do: for a network of fixed input size, or for
    speed. With probability `brightness_contrast` those of a training photo change by up to a tenth; with probability
    `erase` a rectangle of it gets the mean colour (Zhong et al. 2020). `augment` are further augmentations by name, see
    `catalog`.

    >>> train, valid = fm.report_pipelines(crop=(400, 200))
    >>> valid(image=np.zeros((512, 384, 3), np.uint8))["image"].shape
    torch.Size([3, 400, 200])
    """
    cut: Transforms = [A.CenterCrop(height=crop[0], width=crop[1])]
    if resize is not None:
        cut.append(A.Resize(height=resize[0], width=resize[1], interpolation=cv2.INTER_AREA))
    return _complete(cut, cut, resize or crop, stats, erase, augment, brightness_contrast)


def _complete(
    train: Transforms,
    valid: Transforms,
    size: tuple[int, int],
    stats: Stats,
    erase: float,
    augment: Sequence[str],
    brightness_contrast: float,
) -> tuple[A.Compose, A.Compose]:
    """The pipelines that begin with these transforms: in training the random ones, and the normalization."""
    added = make_augmentations(augment, PhotoFormat(size, _fill(stats)))
    after = [A.Normalize(mean=stats[0], std=stats[1]), A.ToTensorV2()]
    limits = {"brightness_limit": (-0.1, 0.1), "contrast_limit": (-0.1, 0.1)}
    lit = [A.RandomBrightnessContrast(**limits, p=brightness_contrast)] if brightness_contrast else []
    erasing = [A.Erasing(fill=_fill(stats), p=erase)] if erase else []
    random = [*lit, *added[Stage.COLOUR], *erasing, *added[Stage.COVER]]
    start = _crop_once(train, added[Stage.SHAPE])
    return A.Compose([*start, *random, *after], strict=True), A.Compose([*valid, *after], strict=True)


def _crop_once(train: Transforms, shapes: Transforms) -> Transforms:
    """Both in order, where a random part in `shapes` takes the place of that of `crop`, or of a crop's scaling.

    So it is a part of the photo's own pixels. Raises UsageError if it is the same as that of `crop`.
    """
    part = next((each for each in shapes if isinstance(each, A.RandomResizedCrop)), None)
    if part is None:
        return [*train, *shapes]
    *before, last = train
    if isinstance(last, A.RandomResizedCrop) and to_plain(last) == to_plain(part):
        raise UsageError(
            f"fit crop already takes a random part of each training photo: leave {RANDOM_CROP} out of augment, or give "
            f"it other arguments, such as {RANDOM_CROP}(scale=(0.2, 1))."
        )
    scales = isinstance(last, A.RandomResizedCrop) or any(isinstance(each, A.CenterCrop) for each in before)
    return [*(before if scales else train), part, *(each for each in shapes if each is not part)]


def _fill(stats: Stats) -> tuple[float, ...]:
    """The mean colour, which is about 0 after the normalization."""
    return tuple(round(255 * mean) for mean in stats[0])


def complete_pipeline(plain: Mapping[str, Any], stats: Stats | None, option: str) -> A.Compose:
    """The pipeline of `plain` with a Normalize and a ToTensorV2 at its end.

    If `stats` is None, those of the pipeline's Normalize are used, or else the report's. Raises UsageError if the
    pipeline's differ from `stats`.
    """
    pipeline = from_plain(plain, option)
    own = Augmentation(pipeline).stats
    if own is not None and stats is not None and own != stats:
        raise UsageError(f"{option} normalizes by {own}, --stats is {stats}; give the statistics once.")
    transforms = [t for t in pipeline.transforms if not isinstance(t, A.Normalize | A.ToTensorV2)]
    mean, std = own or stats or REPORT_STATS
    return A.Compose([*transforms, A.Normalize(mean=mean, std=std), A.ToTensorV2()], strict=True)


def pick_fit(config: Config, table: Table) -> Fit | None:
    """How the photos of a table are scaled and cut: as configured, or else by what is known of them.

    The contest's photos, and those with --crop or --boxes, are cut by the crop; others, and those with --crop-pct or
    --auto-resize, are padded. None with custom pipelines.
    """
    if config.fit is not None or config.train_pipeline is not None:
        return config.fit
    if config.crop is not None or config.boxes is not None:
        return CONTEST
    return PAD if config.crop_pct < 1 or config.auto_resize else table.fit


def effective_pipelines(config: Config, stats: Stats | None = None) -> dict[str, Any]:
    """The pipelines of a configuration, normalizing by `stats`, as {"train": ..., "valid": ...}.

    Without a `fit` the photos are the contest's, see `pick_fit`.
    """
    if config.train_pipeline is not None and config.valid_pipeline is not None:
        return {
            "train": to_plain(complete_pipeline(config.train_pipeline, stats, "train_pipeline")),
            "valid": to_plain(complete_pipeline(config.valid_pipeline, stats, "valid_pipeline")),
        }
    fit, used = config.fit or CONTEST, stats or REPORT_STATS
    random: dict[str, Any] = {
        "erase": config.erase,
        "augment": config.augment or (),
        "brightness_contrast": config.brightness_contrast,
    }
    if fit == CONTEST:
        train, valid = report_pipelines(config.crop or REPORT_CROP, used, config.resize, **random)
    else:
        train, valid = fit_pipelines(fit, config.resize or DEFAULT_SIZE, used, crop_pct=config.crop_pct, **random)
    return {"train": to_plain(train), "valid": to_plain(valid)}


def visible_share(augment: Augmentation, size: tuple[int, int]) -> float:
    """The share of a photo of `size` (height, width) that a pipeline's deterministic crops and scalings leave."""
    height, width = size
    moved = A.Compose(
        [t for t in augment.prefix.transforms if isinstance(t, A.DualTransform)],
        keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
    )(image=np.zeros((*size, 3), np.uint8), keypoints=np.array([[0.0, 0.0], [width, height]]))
    ends = np.sort(moved["keypoints"], axis=0)
    inside = np.clip(ends, 0, moved["image"].shape[1::-1])
    return float(np.prod(np.diff(inside, axis=0) / np.diff(ends, axis=0)))


def measure_shares(table: Table, augment: Augmentation) -> tuple[float, float] | None:
    """The least and the largest `visible_share` of up to 100 photos of a table; None with face crops."""
    if table.faces is not None or not len(table):
        return None
    shares = [visible_share(augment, size) for size in set(sample_sizes(table))]
    return (min(shares), max(shares)) if shares else None


def sample_sizes(table: Table) -> list[tuple[int, int]]:
    """The (height, width) of up to 100 photos of a table, those that can be read."""
    sizes = []
    for row in range(0, len(table), max(1, -(-len(table) // _SAMPLED))):
        try:
            sizes.append(read_size(table.photo(row)))
        except UnreadableError:
            # reported where photos are decoded
            continue
    return sizes


def describe_view(config: Config, shares: Sequence[float] | None) -> str:
    """What the network sees of each photo by an effective configuration, with the least and the largest share."""
    cut = config.crop or REPORT_CROP
    high, wide = config.resize or cut
    size = f"{high} x {wide}"
    crop = "the centre {} x {} pixels of photos".format(*cut)
    part = "whole photos" if config.crop_pct == 1 else f"the middle {percent(config.crop_pct)} of each side of photos"
    how = {
        PAD: f"{part} padded to {size}",
        CROP: f"photos scaled and cut to {size}",
        STRETCH: f"{part} stretched to {size}",
        CONTEST: crop if config.resize is None else f"{crop} scaled to {size}",
        None: "photos by custom pipelines",
    }[config.fit]
    if not shares or (config.fit in (PAD, STRETCH) and config.crop_pct == 1):
        return how
    least, most = (percent(round(share, 2)) for share in shares)
    return f"{how}, {least if least == most else f'{least} to {most}'} of each"
