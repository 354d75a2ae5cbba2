import albumentations as A
import cv2
import numpy as np
import pytest

from fastmask.data.augment import REPORT_STATS, Augmentation, enlarge_for_crops
from fastmask.export.predict_onnx import WrongError, prepare
from fastmask.export.steps import steps_of
from fastmask.system.errors import UsageError

PIPELINES = [
    [A.CenterCrop(40, 21)],
    [A.CenterCrop(41, 20), A.Resize(17, 33, interpolation=cv2.INTER_AREA)],
    [A.Resize(90, 30, interpolation=cv2.INTER_CUBIC, area_for_downscale="image")],
    [A.Resize(20, 30, interpolation=cv2.INTER_LANCZOS4, area_for_downscale="image")],
    [A.SmallestMaxSize(31), A.CenterCrop(31, 31)],
    [A.SmallestMaxSize(80, interpolation=cv2.INTER_CUBIC, area_for_downscale="image"), A.CenterCrop(70, 80)],
    [A.LongestMaxSize(45), A.PadIfNeeded(45, 45, fill=(3, 2, 1))],
    [A.LongestMaxSize(max_size_hw=(50, 45), area_for_downscale="image"), A.PadIfNeeded(50, 45, fill=(3, 2, 1))],
    [A.LongestMaxSize(max_size_hw=(150, 145), area_for_downscale="image"), A.PadIfNeeded(150, 145)],
    [A.SmallestMaxSize(max_size_hw=(30, 40), area_for_downscale="image"), A.CenterCrop(30, 40)],
    [A.PadIfNeeded(81, 64, position="bottom_right", border_mode=cv2.BORDER_REFLECT_101)],
    [A.PadIfNeeded(81, 64, position="top_left", fill=7)],
    [A.CenterCrop(77, 33, pad_if_needed=True, border_mode=cv2.BORDER_REPLICATE)],
]


@pytest.mark.parametrize("transforms", PIPELINES, ids=str)
@pytest.mark.parametrize("size", [(64, 48), (57, 43)])
def test_the_steps_give_the_pixels_that_albumentations_gives(transforms, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    closing = [A.Normalize(*REPORT_STATS), A.ToTensorV2()]
    steps = steps_of(Augmentation(A.Compose([*transforms, *closing])))
    assert np.array_equal(prepare(photo, steps), A.Compose(transforms)(image=photo)["image"])


@pytest.mark.parametrize("transforms", PIPELINES, ids=str)
@pytest.mark.parametrize("size", [(20, 30), (41, 7), (1, 1), (39, 21)])
def test_the_steps_enlarge_photos_as_inference_does(transforms, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    augment = Augmentation(enlarge_for_crops(A.Compose(transforms)))
    assert np.array_equal(prepare(photo, steps_of(augment)), augment(photo, np.random.default_rng(0)))


@pytest.mark.parametrize(
    "transform",
    [
        A.CLAHE(p=1),
        A.CenterCrop(40, 20, p=0.5),
        A.RandomCrop(40, 20),
        A.SmallestMaxSize([30, 40]),
        A.LongestMaxSize(max_size_hw=(30, None)),
        A.PadIfNeeded(None, None, pad_height_divisor=32, pad_width_divisor=32),
        A.PadIfNeeded(81, 64, position="random"),
        A.HorizontalFlip(p=1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_what_the_script_cannot_do_is_refused_by_name(transform):
    with pytest.raises(UsageError, match=rf"has {type(transform).__name__}\(p=.* it supports CenterCrop, PadIfNeeded"):
        steps_of(Augmentation(A.Compose([A.CenterCrop(60, 40), transform])))


def test_a_photo_that_is_too_small_is_named():
    with pytest.raises(WrongError, match=r"a\.jpg is 30 high and 40 wide; the model crops 31 x 20"):
        prepare(np.zeros((30, 40, 3), np.uint8), [{"do": "center_crop", "height": 31, "width": 20}], "a.jpg")
