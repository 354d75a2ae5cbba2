"""The drawn photos: their size, what the labels and the mask change in them, and the same bytes again."""

import cv2
import numpy as np
import pytest

from fastmask.data.drawing import HEIGHT, STEMS, WIDTH, Person, Pose, draw, take_photo


@pytest.fixture
def person():
    return Person((0, 0, 0), gender=1, band=1)


def pose(seed=0):
    return Pose(np.random.default_rng(seed))


def decoded(code: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize(
    ("index", "extension", "start"),
    [(0, ".jpg", b"\xff\xd8\xff"), (3, ".jpeg", b"\xff\xd8\xff"), (5, ".png", b"\x89PNG")],
)
def test_photo_is_384_by_512_and_of_the_format_its_extension_says(index, extension, start):
    person = Person((0, 0, index), gender=0, band=0)
    code = take_photo(person, "mask1")
    assert person.extension == extension
    assert code.startswith(start)
    assert decoded(code).shape == (512, 384, 3) == (HEIGHT, WIDTH, 3)


def test_colours_are_not_swapped_on_the_way_into_the_file(person):
    person.backdrop = np.full_like(person.backdrop, (200, 100, 50))
    blue, green, red = decoded(take_photo(person, "normal"))[:40, :40].mean((0, 1))
    assert red > green > blue


def test_photos_depend_on_stem_and_key_alone(person):
    photos = [take_photo(each, stem) for each in (person, Person((1, 0, 0), 1, 1)) for stem in STEMS]
    assert len(set(photos)) == len(photos)
    assert photos[3] == take_photo(Person((0, 0, 0), gender=1, band=1), STEMS[3])


def test_age_lies_within_its_band():
    ages = [[Person((0, 0, index), 0, band).age for index in range(20)] for band in range(3)]
    assert all(18 <= age < 30 for age in ages[0])
    assert all(30 <= age < 60 for age in ages[1])
    assert set(ages[2]) == {60}


def test_labels_show_in_the_looks():
    def mean(look, gender, band):
        return np.mean([getattr(Person((0, 0, index), gender, band), look) for index in range(12)])

    for hint in ("grey", "wrinkles", "bags", "receding", "blotches", "tired"):
        assert mean(hint, 0, 0) < mean(hint, 0, 1) < mean(hint, 0, 2)
    assert mean("brow", 0, 0) > mean("brow", 1, 0)
    assert mean("lashes", 0, 0) < mean("lashes", 1, 0)


@pytest.mark.parametrize("hint", ["grey", "wrinkles", "bags", "receding", "blotches", "tired"])
def test_every_hint_at_age_is_drawn(person, hint):
    setattr(person, hint, 0.0)
    young = draw(person, "normal", pose())
    setattr(person, hint, 1.0)
    assert (draw(person, "normal", pose()) != young).any()


def test_mask_changes_nothing_above_the_nose(person):
    bare, masked = (draw(person, stem, pose()).astype(int) for stem in ("normal", "mask3"))
    rows = np.nonzero(abs(bare - masked).max((1, 2)))[0]
    assert rows.min() > 230, "the eyes are at about 246, where the loops reach the ears"
    assert rows.max() > 340


def test_incorrect_mask_leaves_the_nose_free(person):
    bare, correct, incorrect = (
        draw(person, stem, pose()).astype(int) for stem in ("normal", "mask3", "incorrect_mask")
    )
    x, y = round(pose().x), round(pose().y + 40)
    nose = np.s_[y - 8 : y + 4, x - 5 : x + 5]
    assert (bare[nose] == incorrect[nose]).all()
    assert (bare[nose] != correct[nose]).any()


def test_face_and_mask_stay_inside_the_centre_crop():
    """A photo without and with mask differ by the mask, which covers the chin: 400 x 200 pixels must contain it."""
    for index in range(6):
        person = Person((0, 0, index), gender=index % 2, band=index % 3)
        bare, masked = (draw(person, stem, pose(index)) for stem in ("normal", "mask3"))
        fabric = (bare.max(axis=2) > 120) & (masked.max(axis=2) < 80)
        ys, xs = np.nonzero(fabric)
        assert fabric.sum() > 8000
        assert ys.min() >= 56
        assert ys.max() < 456
        assert xs.min() >= 92
        assert xs.max() < 292
