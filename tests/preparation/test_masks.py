"""Masks: what they cover and what they leave, and the same bytes again."""

from itertools import cycle

import numpy as np
import pytest
from bare_faces import changed, drawn, landmarks_of, moved

from fastmask.preparation.masks import LOOKS, Landmarks, paint
from fastmask.system.errors import DataError, UsageError

TILTED_LOOKS = list(zip(LOOKS, cycle([0.4, -0.4])))
LOWER = ("mouth", "right_mouth", "left_mouth")


def worn(image, points, how="wear", look="kf94-white", seed=0):
    return paint(image, landmarks_of(points), how, look, np.random.default_rng(seed))


@pytest.mark.parametrize(("look", "tilt"), TILTED_LOOKS)
def test_a_worn_mask_covers_nose_and_mouth_and_leaves_the_eyes_bit_for_bit(look, tilt):
    image, points = drawn(1, tilt)
    mask = worn(image, points, "wear", look)
    assert mask.shape == image.shape
    assert mask.dtype == np.uint8
    for name in ("nose", "chin", *LOWER):
        assert changed(image, mask, points[name], 1).mean() > 0.9, name
        assert moved(image, mask, points[name]) > 3, name
    for eye in ("right_eye", "left_eye"):
        assert not changed(image, mask, points[eye], 6).any()


@pytest.mark.parametrize(("look", "tilt"), TILTED_LOOKS)
def test_the_two_ways_to_wear_it_wrongly(look, tilt):
    image, points = drawn(2, tilt)
    nose_bare, on_chin = (worn(image, points, how, look) for how in ("nose-bare", "on-chin"))
    assert not changed(image, nose_bare, points["nose"]).any()
    for name in ("chin", *LOWER):
        assert changed(image, nose_bare, points[name], 1).mean() > 0.9, name
    for name in ("nose", *LOWER):
        assert not changed(image, on_chin, points[name]).any(), name
    assert changed(image, on_chin, points["chin"], 1).mean() > 0.9


def test_incorrect_is_one_of_the_two_by_the_generator():
    image, points = drawn(3)
    bare = []
    for seed in range(24):
        wrong = worn(image, points, "incorrect", "cloth-black", seed)
        assert not changed(image, wrong, points["nose"]).any()
        bare.append(not changed(image, wrong, points["mouth"]).any())
    assert 4 <= sum(bare) <= 16


def test_nothing_changes_away_from_the_face():
    image, points = drawn(4)
    differs = (image != worn(image, points, look="surgical-blue")).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    eyes, apart = points["right_eye"][1], points["left_eye"][0] - points["right_eye"][0]
    middle, chin = points["mouth"][0], points["chin"][1]
    assert rows[0] > eyes - 0.2 * apart
    assert rows[-1] < chin + 0.5 * apart
    assert middle - 1.5 * apart < columns[0]
    assert columns[-1] < middle + 1.5 * apart


def test_a_turned_face_has_a_mask_that_is_narrower_on_the_far_side():
    """By hand: a grey photo, eyes 60 apart, the nose 15 to the right of their middle, so the face looks there."""
    image = np.full((256, 256, 3), 170, np.uint8)
    turned = Landmarks((98, 100), (158, 100), (143, 140), (113, 166), (158, 166), (70, 50, 190, 210))
    straight = Landmarks((98, 100), (158, 100), (128, 140), (106, 166), (150, 166), (70, 50, 190, 210))
    widths = []
    for face in (straight, turned):
        white = paint(image, face, "wear", "cloth-black", np.random.default_rng(0))
        covered = np.flatnonzero(white[150].mean(axis=1) < 100)
        widths.append((face.nose[0] - covered[0], covered[-1] - face.nose[0]))
    (near, far), (turned_near, turned_far) = widths
    assert near == pytest.approx(far, rel=0.15)
    assert turned_far < 0.7 * turned_near


def test_it_depends_only_on_its_arguments():
    image, points = drawn(5)
    kept = image.copy()
    once, again = (
        {seed: worn(image, points, look="cloth-dots", seed=seed) for seed in order} for order in ((0, 1), (1, 0))
    )
    assert all(np.array_equal(once[seed], again[seed]) for seed in once)
    assert not np.array_equal(once[0], once[1])
    assert np.array_equal(image, kept)


def test_a_face_cut_by_the_edge_of_the_photo_is_painted():
    image, points = drawn(6)
    cut = np.ascontiguousarray(image[: round(points["mouth"][1]) - 2])
    mask = worn(cut, points)
    assert mask.shape == cut.shape
    assert changed(cut, mask, points["nose"], 1).all()


def test_landmarks_that_no_face_has_are_refused():
    eyes, rest = {"right_eye": (40, 40), "left_eye": (80, 40)}, {"nose": (60, 62), "box": (20, 10, 100, 110)}
    mouth = {"right_mouth": (46, 84), "left_mouth": (74, 84)}
    Landmarks(**eyes, **mouth, **rest)
    with pytest.raises(DataError, match="on one point"):
        Landmarks(**{**eyes, "left_eye": (40, 40)}, **mouth, **rest)
    with pytest.raises(DataError, match="person's right one"):
        Landmarks(right_eye=(80, 40), left_eye=(40, 40), **mouth, **rest)
    with pytest.raises(DataError, match="landmarks have NaN or inf"):
        Landmarks(**{**eyes, "left_eye": (float("nan"), 40)}, **mouth, **rest)
    image = np.zeros((60, 64, 3), np.uint8)
    with pytest.raises(DataError, match=r"right_mouth at \(46, 84\) is outside the photo of 64x60"):
        paint(image, Landmarks(**eyes, **mouth, **rest), "wear", "kf94-white", np.random.default_rng(0))


@pytest.mark.parametrize(("how", "look"), [("worn", "kf94-white"), ("wear", "scarf")])
def test_unknown_words_are_refused(how, look):
    with pytest.raises(UsageError, match="found"):
        worn(*drawn(0), how, look)
