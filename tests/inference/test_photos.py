"""Photos to predict, and what a run needs to prepare them."""

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.augmentations.crops.transforms import CropSizeError
from PIL import Image

from fastmask.api import Run
from fastmask.data import transforms as photo_transforms
from fastmask.data.augment import Augmentation, Prefix, enlarge_for_crops
from fastmask.data.photo import read_photo
from fastmask.inference.photos import KEPT, Photos, _enlarges, _Reader, augments_of, face_cut
from fastmask.inference.sources import find_photos
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_yaml, write_yaml


def test_boxes_need_a_run_that_was_trained_with_them(finished_run):
    assert face_cut(finished_run, None, {}) is None
    with pytest.raises(UsageError, match="--boxes needs a run that was trained with boxes, and .*small was not"):
        face_cut(finished_run, "boxes.csv", {})


def test_a_pipeline_that_cannot_be_built_names_the_run(run_copy):
    (run_copy / "pipelines.yaml").write_text("train: {transform: 3}\nvalid: {transform: 3}\n")
    with pytest.raises(DataError, match="run_copy/pipelines.yaml: train_pipeline is not a pipeline"):
        augments_of(Run.load(run_copy))


def test_a_photo_that_is_too_small_for_the_crop_is_enlarged_just_as_far_as_it_fits(finished_run, tmp_path):
    webcam = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    Image.fromarray(webcam).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((400, 200, 3), np.uint8)).save(tmp_path / "b.png")
    photos = Photos.find(finished_run, tmp_path)
    assert photos.enlarged == {"a.png": (240, 320)}
    assert photos.note == (
        "1 of 2 photos is smaller than the crop, 400 high and 200 wide, and was enlarged, such as a.png, 240 high and "
        "320 wide."
    )
    # 400 / 240 of the width is 533
    by_hand = cv2.resize(webcam, (533, 400), interpolation=cv2.INTER_LINEAR)[:, 166:366]
    wanted = cv2.resize(by_hand, (32, 64), interpolation=cv2.INTER_AREA)
    made = photos.augments[1](webcam, np.random.default_rng(0))
    assert np.array_equal(made, wanted)


@pytest.mark.parametrize(
    ("transforms", "size", "enlarged"),
    [
        ([A.Resize(40, 30), A.CenterCrop(40, 20)], (9, 9), False),
        ([A.LongestMaxSize(40), A.PadIfNeeded(40, 40), A.CenterCrop(40, 40)], (9, 30), False),
        ([A.CenterCrop(40, 20, pad_if_needed=True)], (9, 9), False),
        ([A.SmallestMaxSize(40), A.CenterCrop(40, 60)], (100, 60), True),
        ([A.Crop(10, 0, 30, 40)], (30, 30), True),
        ([A.RandomCrop(40, 20)], (39, 300), None),
        ([A.HorizontalFlip(p=0.5), A.CenterCrop(40, 20)], (40, 19), None),
    ],
    ids=str,
)
def test_a_photo_is_enlarged_where_a_crop_does_not_fit_and_nowhere_else(transforms, size, enlarged):
    plain, made = Augmentation(A.Compose(transforms)), Augmentation(enlarge_for_crops(A.Compose(transforms)))
    large = np.random.default_rng(1).integers(0, 256, (100, 200, 3), np.uint8)
    assert np.array_equal(*(each(large, np.random.default_rng(0)) for each in (plain, made)))
    small = np.zeros((*size, 3), np.uint8)
    assert made(small, np.random.default_rng(0)).shape == made(large, np.random.default_rng(0)).shape
    if enlarged is False:
        assert np.array_equal(*(each(small, np.random.default_rng(0)) for each in (plain, made)))
    else:
        with pytest.raises((ValueError, CropSizeError)):
            plain(small, np.random.default_rng(0))
    if enlarged is not None:
        assert _enlarges(made.prefix.transforms, size) == enlarged


def test_a_photo_that_would_fill_the_memory_is_not_enlarged(finished_run, tmp_path):
    Image.new("L", (1, 200_000)).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match="thin.png is 200000 high and 1 wide, .*enlarged for the crop it is 40000000"):
        Photos.find(finished_run, tmp_path)


def test_the_size_of_most_photos_after_augmentation_counts(run_copy, tmp_path):
    pipelines = read_yaml(run_copy / "pipelines.yaml")
    for plain in pipelines.values():
        plain["transform"]["transforms"] = plain["transform"]["transforms"][2:]
    write_yaml(run_copy / "pipelines.yaml", pipelines)
    for name, size in {"a": (32, 65), "b": (32, 64), "c": (32, 64)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    found = find_photos([tmp_path / f"{name}.png" for name in "abc"])
    photos = Photos.survey(Run.load(run_copy), found)
    assert (photos.size, list(photos.errors)) == ((64, 32), [0])
    assert "a.png is 65 high and 32 wide after augmentation, other photos 64 and 32" in str(photos.errors[0])
    assert photos.without(photos.errors).names == found.names[1:]


@pytest.fixture
def faces_run(run_copy):
    """A run whose photos are cut to faces of 400 x 200 pixels."""
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "boxes": "boxes.csv"})
    return Run.load(run_copy)


def test_a_photo_without_a_row_in_the_boxes_is_an_error_of_this_photo(faces_run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (320, 240)).save(folder / name)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,x0,y0,x1,y1\na.png,10,10,60,110\nc.png,900,900,950,999\n")
    photos = Photos.survey(faces_run, find_photos(folder), boxes)
    assert list(photos.errors) == [1, 2]
    assert "b.png has no row in" in str(photos.errors[1])
    assert "lies outside c.png" in str(photos.errors[2])
    # faces are scaled to their size anyway
    assert photos.note is None
    boxes.write_text("path,x0,y0,x1,y1\nother.png,10,10,60,110\n")
    with pytest.raises(DataError, match="has no row for a.png .3 of 3 photos have none, its first is for other.png"):
        Photos.survey(faces_run, find_photos(folder), boxes)


def test_a_photo_in_memory_must_be_cut_to_its_face(faces_run):
    assert Photos.find(faces_run, np.zeros((400, 200, 3), np.uint8)).size == (64, 32)
    with pytest.raises(UsageError, match=r"240 high and 320 wide and given without its path, so its face is unknown"):
        Photos.find(faces_run, np.zeros((240, 320, 3), np.uint8))


def test_photos_that_are_kept_are_not_read_again(finished_run, contest, monkeypatch):
    """As many as there is memory for; the batches are the same."""
    files = sorted(contest.rglob("*.jpg"))[:20]
    # one of them twice, and one in memory
    files, pixels = [*files, files[0]], np.asarray(Image.open(files[1]))
    given = find_photos([*files, pixels])
    reads, batches = [], []
    monkeypatch.setattr(photo_transforms, "read_photo", lambda path: reads.append(path) or read_photo(path))
    # photos of 64 x 32 pixels: none, four and a half of them, all
    for most, count in ((0, 0), (27_648, 4), (KEPT, 20)):
        found = Photos.survey(finished_run, given, kept=most)
        assert len(found.kept) == count
        reads.clear()
        batches.append([x.numpy() for (x,) in found.loader(bs=9)])
        assert len(reads) == sum(found.kept.get(str(path)) is None for path in files)
    for one, *others in zip(*batches, strict=True):
        assert all(np.array_equal(one, other) for other in others)


def test_what_is_kept_of_a_photo_does_not_hold_all_of_it(finished_run, contest):
    """The crop of a photo of the crop's width is a part of it."""
    path = next(contest.rglob("*.jpg"))
    reader = _Reader(Prefix([A.CenterCrop(8, 384)]), None, KEPT)
    reader.read_all([(path, "photo")])
    made = reader.kept.get(str(path))
    assert made.shape == (8, 384, 3)
    assert made.base is None
    assert np.array_equal(made, read_photo(path)[252:260])
