import albumentations as A
import cv2
import numpy as np
import pytest
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from fastmask.config import make_config
from fastmask.data.augment import REPORT_STATS, Augmentation, build_augmentations
from fastmask.data.contest import read_contest
from fastmask.data.pipelines import (
    effective_pipelines,
    fit_pipelines,
    measure_shares,
    pick_fit,
    report_pipelines,
    visible_share,
)
from fastmask.data.readers import read_csv
from fastmask.system.errors import UsageError

IMAGE = np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)
MEAN_COLOUR = [140, 129, 122]


def rng(seed=0):
    return np.random.default_rng(seed)


def fitted(fit, size=(60, 40)):
    return tuple(map(Augmentation, fit_pipelines(fit, size)))


def test_the_report_s_pipelines():
    train, valid = report_pipelines()
    assert [type(t).__name__ for t in train] == ["CenterCrop", "RandomBrightnessContrast", "Normalize", "ToTensorV2"]
    assert [type(t).__name__ for t in valid] == ["CenterCrop", "Normalize", "ToTensorV2"]
    light = train[1]
    assert (light.brightness_limit, light.contrast_limit, light.p) == ((-0.1, 0.1), (-0.1, 0.1), 0.5)
    assert (tuple(valid[1].mean), tuple(valid[1].std)) == REPORT_STATS


def test_without_light_a_training_photo_is_the_one_that_is_validated():
    for pipelines in (report_pipelines(brightness_contrast=0), fit_pipelines(brightness_contrast=0)):
        train, valid = map(Augmentation, pipelines)
        assert [type(t).__name__ for t in train.pipeline] == [type(t).__name__ for t in valid.pipeline]
        assert np.array_equal(train(IMAGE, rng()), valid(IMAGE, rng()))
    settings = {"brightness_contrast": 0.9, "fit": "stretch", "resize": [60, 40]}
    (lit,) = [
        each
        for each in build_augmentations(effective_pipelines(make_config(settings)))[0].pipeline
        if isinstance(each, A.RandomBrightnessContrast)
    ]
    assert lit.p == 0.9


def test_the_crop_is_the_middle_height_before_width():
    train, valid = (Augmentation(pipeline) for pipeline in report_pipelines(crop=(400, 200)))
    assert train(IMAGE, rng()).shape == (400, 200, 3)
    assert (valid(IMAGE, rng()) == IMAGE[56:456, 92:292]).all()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1200, 1600), (1600, 1200), (96, 72), (10, 600), (7, 5)])
def test_photos_of_every_size_get_the_size_that_is_wanted(fit, size):
    photo = np.full((*size, 3), 200, np.uint8)
    for augment in fitted(fit, (224, 160)):
        assert augment(photo, rng()).shape == (224, 160, 3)


def test_a_padded_photo_is_whole_and_keeps_its_aspect():
    # twice as wide as high: 40 wide and 20 high between two bands of 20 lines
    train, valid = fitted("pad")
    photo = cv2.resize(IMAGE, (80, 40), interpolation=cv2.INTER_AREA)
    made = valid(photo, rng())
    assert np.array_equal(made[20:40], cv2.resize(photo, (40, 20), interpolation=cv2.INTER_AREA))
    assert (np.concatenate([made[:20], made[40:]]) == MEAN_COLOUR).all()
    assert np.array_equal(train.prefix(photo), made)  # decoded once for both


def test_a_cut_photo_is_its_middle_scaled():
    photo = IMAGE[:120, :240]
    # 60 high and 120 wide, of which the middle 40 are left
    scaled = cv2.resize(photo, (120, 60), interpolation=cv2.INTER_AREA)
    train, valid = fitted("crop")
    assert np.array_equal(valid(photo, rng()), scaled[:, 40:80])
    # training photos are kept whole, an eighth larger, and a random part of each is taken
    assert train.prefix(photo).shape == (69, 138, 3)
    assert not np.array_equal(train(photo, rng(0)), train(photo, rng(1)))


def test_a_strip_is_not_scaled_beyond_all_measure():
    # from 3 lines to 60, and for training to 69
    for augment, length in zip(fitted("crop"), (92000, 80000), strict=True):
        with pytest.raises(ValueError, match=f"it would be {length} pixels long"):
            augment(np.zeros((3, 4000, 3), np.uint8), rng())
    assert fitted("pad")[1](np.zeros((3, 4000, 3), np.uint8), rng()).shape == (60, 40, 3)


def test_a_stretched_photo_is_whole_in_another_aspect():
    made = fitted("stretch")[1](IMAGE, rng())
    assert np.array_equal(made, cv2.resize(IMAGE, (40, 60), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(
    ("fit", "mode", "photo", "share"),
    # of 120 x 120 padded to 60 x 40, the middle 48 x 32: all 40 rows and 32 of 40 columns
    [
        ("pad", "border", (120, 120), 0.8),
        ("crop", "center", (160, 80), 0.8 * 0.8 * 120 / 160),
        ("stretch", "squash", (300, 200), 0.64),
    ],
)
def test_the_middle_of_a_photo_is_that_of_timm(fit, mode, photo, share):
    photo, size, stats = IMAGE[: photo[0], : photo[1]], (48, 32), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    train, valid = map(Augmentation, fit_pipelines(fit, size, stats, crop_pct=0.8))
    made = valid(photo, rng())
    fill = tuple(round(255 * mean) for mean in stats[0])
    theirs = create_transform(
        (3, *size), crop_pct=0.8, crop_mode=mode, interpolation="box", mean=stats[0], std=stats[1]
    )
    if fit == "pad":
        theirs.transforms[1].fill = fill
    mean, std = (np.array(each)[:, None, None] for each in stats)
    expected = 255 * (theirs(Image.fromarray(photo)).numpy() * std + mean).transpose(1, 2, 0)
    assert made.shape == (*size, 3)
    assert np.abs(made - expected).mean() < 3
    assert visible_share(valid, photo.shape[:2]) == pytest.approx(share, abs=0.02)
    if fit != "crop":
        assert np.array_equal(train.prefix(photo), made)  # decoded once for both


def test_an_unknown_fit_is_refused():
    with pytest.raises(UsageError, match="fit is 'squish'; expected one of pad, crop, stretch"):
        fit_pipelines("squish")


def test_the_share_of_a_photo_that_is_seen():
    contest = Augmentation(report_pipelines()[1])
    assert visible_share(contest, (512, 384)) == pytest.approx(400 * 200 / (512 * 384))
    assert visible_share(contest, (1200, 1600)) == pytest.approx(400 * 200 / (1200 * 1600))
    assert visible_share(fitted("pad")[1], (9, 1600)) == visible_share(fitted("stretch")[1], (9, 1600)) == 1
    # of a photo of 1:1 two thirds are left in an input of 3:2
    assert visible_share(fitted("crop")[1], (300, 300)) == pytest.approx(2 / 3, abs=0.01)
    turned = A.Compose([A.Transpose(p=1), A.HorizontalFlip(p=1), A.CenterCrop(200, 100), A.RandomCrop(50, 50)])
    assert visible_share(Augmentation(turned), (400, 400)) == pytest.approx(200 * 100 / 400**2, abs=0.01)


def test_the_shares_of_a_table_use_the_size_after_the_exif_rotation(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "a.jpg", exif=turned)  # shown 400 high and 200 wide
    Image.new("RGB", (400, 800)).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"damaged")
    rows = "".join(f"{name},{name},{label}\n" for name, label in zip(("a.jpg", "b.png", "c.jpg"), "xyx", strict=True))
    (tmp_path / "my.csv").write_text(f"path,person,head\n{rows}")
    table = read_csv(tmp_path / "my.csv", ["head"])
    assert measure_shares(table, Augmentation(report_pipelines()[1])) == pytest.approx((0.25, 1))
    assert measure_shares(table.select([2]), Augmentation(report_pipelines()[1])) is None


def test_the_contest_s_photos_are_cut_and_others_are_padded(contest, tmp_path):
    table = read_contest(contest)
    table.frame.to_csv(tmp_path / "my.csv", index=False)
    other = read_csv(tmp_path / "my.csv", ["mask"], images=table.root)
    assert [pick_fit(make_config(), each) for each in (table, other)] == ["contest", "pad"]
    assert pick_fit(make_config({"fit": "stretch"}), table) == "stretch"
    for settings in ({"crop_pct": 0.9}, {"auto_resize": True}):
        assert pick_fit(make_config(settings), table) == "pad"
    # a crop of so many pixels
    assert pick_fit(make_config({"crop": [400, 200]}), other) == "contest"
    assert pick_fit(make_config({"boxes": "boxes.csv"}), other) == "contest"


def test_the_pipelines_of_a_configuration():
    train, valid = build_augmentations(effective_pipelines(make_config({"fit": "pad", "resize": [60, 40]})))
    assert np.array_equal(valid(IMAGE, rng()), fitted("pad")[1](IMAGE, rng()))
    assert train.stats == valid.stats == REPORT_STATS
    assert build_augmentations(effective_pipelines(make_config()))[1](IMAGE, rng()).shape == (400, 200, 3)


@pytest.mark.parametrize(("name", "value"), [("crop", [300, 100]), ("boxes", "boxes.csv")])
def test_settings_without_effect_are_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} has no effect with fit pad"):
        make_config({"fit": "pad", name: value})
