import pickle
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import yaml

from fastmask.data.augment import REPORT_STATS, Augmentation, check_fit, defaults_of, from_plain, to_plain
from fastmask.data.pipelines import report_pipelines
from fastmask.system.errors import DataError, UsageError

IMAGE = np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_pipeline_survives_yaml_and_does_the_same():
    train = report_pipelines()[0]
    again = from_plain(yaml.safe_load(yaml.safe_dump(to_plain(train))))
    one, other = Augmentation(train), Augmentation(again)
    assert one.stats == other.stats == REPORT_STATS
    for seed in range(5):
        assert (one(IMAGE, rng(seed)) == other(IMAGE, rng(seed))).all()


def test_padding_survives_yaml():
    # albumentations serializes an argument of PadIfNeeded that it does not take
    padded = A.Compose([A.OneOf([A.PadIfNeeded(600, 400, fill=(3, 2, 1))], p=1)])
    again = from_plain(yaml.safe_load(yaml.safe_dump(to_plain(padded))))
    assert (Augmentation(again)(IMAGE, rng()) == padded(image=IMAGE)["image"]).all()


def test_all_randomness_is_from_the_generator():
    augment = Augmentation(
        A.Compose([A.RandomCrop(50, 40), A.RandomBrightnessContrast(p=0.5), A.HorizontalFlip(p=0.5)])
    )
    kept = rng(7)
    state = kept.bit_generator.state
    first = augment(IMAGE, kept)
    augment(IMAGE, kept)
    kept.bit_generator.state = state
    assert (augment(IMAGE, kept) == first).all()  # the same generator, set back
    assert (augment(IMAGE, rng(7)) == first).all()  # another generator in the same state
    assert (pickle.loads(pickle.dumps(augment))(IMAGE, rng(7)) == first).all()  # in a worker
    assert any((augment(IMAGE, rng(seed)) != first).any() for seed in range(8, 11))


def test_normalize_is_removed_and_kept_as_statistics():
    augment = Augmentation(A.Compose([A.Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), A.ToTensorV2()]))
    assert augment.stats == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert augment(IMAGE, rng()).dtype == np.uint8
    assert Augmentation(A.Compose([A.HorizontalFlip()])).stats is None
    with pytest.raises(UsageError, match="The pipeline's Normalize: stats are of pixels from 0 to 1, .*divide by 255"):
        Augmentation(A.Compose([A.Normalize((123.0, 117.0, 104.0), (58.0, 57.0, 57.0))]))


@pytest.mark.parametrize(
    "transforms",
    [
        [A.Normalize(), A.CenterCrop(10, 10)],
        [A.ToTensorV2(), A.Normalize()],
        [A.Normalize(normalization="image"), A.ToTensorV2()],
    ],
)
def test_normalize_anywhere_else_is_refused(transforms):
    with pytest.raises(UsageError, match="Normalize"):
        Augmentation(A.Compose(transforms))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(__class_fullname__="CentreCrop"), "there is no 'CentreCrop' in albumentations"),
        (lambda t: t.update(hight=3), "Argument.* 'hight'"),
        (lambda t: t.pop("height"), "height"),
    ],
)
def test_a_pipeline_that_cannot_be_built_names_the_setting(change, message):
    plain = to_plain(report_pipelines()[0])
    change(plain["transform"]["transforms"][0])
    with pytest.raises(UsageError, match=f"train_pipeline.*{message}"):
        from_plain(plain, "train_pipeline")


@pytest.mark.parametrize(
    "plain", [{}, {"transform": {}}, {"transform": 3}, {"transform": {"__class_fullname__": "Blur", "p": 1}}]
)
def test_invalid_pipelines_are_refused(plain):
    with pytest.raises(UsageError):
        from_plain(plain)


def fit(augment, *sizes):
    return check_fit({"the pipeline": (augment, sizes)}, [Path(f"photo{i}.jpg") for i in range(len(sizes))])


def test_every_size_of_photo_is_tried():
    assert fit(Augmentation(report_pipelines()[1]), (512, 384), (400, 200)) == (400, 200)
    with pytest.raises(DataError, match=r"photo1\.jpg is 300 high and 384 wide.*change --crop"):
        fit(Augmentation(report_pipelines()[1]), (512, 384), (300, 384))


def test_sizes_that_come_out_differently_are_named():
    with pytest.raises(
        DataError, match=r"photo0\.jpg is 40 high and 20 wide after augmentation, photo1\.jpg 50 and 20"
    ):
        fit(lambda image, rng: image, (40, 20), (50, 20))


@pytest.mark.parametrize("augment", [lambda i, rng: i[..., 0], lambda i, rng: i / 255, lambda i, rng: i[:0, :0]])
def test_a_callable_must_give_a_photo(augment):
    with pytest.raises(DataError, match="the pipeline made"):
        fit(augment, (40, 20))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"__class_fullname__": "Lambda", "__name__": "f", "p": 1}, "non-serializable"),
        ({"__class_fullname__": "os.system", "command": "true", "p": 1}, "there is no 'os.system'"),
        ({"__class_fullname__": 5, "p": 1}, "cannot|can build"),
        ({"__class_fullname__": "TextImage", "font_path": "/etc/passwd", "p": 1}, "font_path reads other files"),
        ({"__class_fullname__": "FDA", "reference_images": ["/etc/passwd"], "p": 1}, "reference_images reads other"),
        ({"__class_fullname__": "Resize", "height": 100_000, "width": 9, "p": 1}, "height is 100000, expected at most"),
        (
            {"__class_fullname__": "RandomScale", "scale_limit": [0, 500], "p": 1},
            "scale_limit is 500, expected at most",
        ),
        ({"__class_fullname__": "Resize", "height": float("nan"), "width": 9, "p": 1}, "height is nan"),
    ],
)
def test_a_forged_pipeline_reads_no_files_and_is_limited(transform, message):
    plain = {"transform": {"__class_fullname__": "Compose", "transforms": [transform]}}
    with pytest.raises(UsageError, match=message):
        from_plain(plain)


def test_the_defaults_of_a_transform():
    assert defaults_of("RandomBrightnessContrast")["brightness_limit"] == (-0.2, 0.2)
    assert defaults_of("CenterCrop")["pad_if_needed"] is False
    for name in ("NoSuchTransform", "os", "Compose", "__name__"):
        assert defaults_of(name) == {}
