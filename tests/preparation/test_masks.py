"""Painted masks: what they cover and what they leave, and the same bytes again."""

import numpy as np
import pytest
from bare_faces import changed, drawn, landmarks_of, moved

from fastmask.preparation.masks import LOOKS, Landmarks, paint
from fastmask.system.errors import DataError, UsageError


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("tilt", [0.4, -0.4])
def test_a_worn_mask_covers_nose_and_mouth_and_leaves_the_eyes_bit_for_bit(look, tilt):
    image, points = drawn(1, tilt)
    worn = paint(image, landmarks_of(points), "wear", look, np.random.default_rng(0))
    assert worn.shape == image.shape
    assert worn.dtype == np.uint8
    for name in ("nose", "mouth", "right_mouth", "left_mouth", "chin"):
        assert changed(image, worn, points[name], 3).mean() > 0.9, name
        assert moved(image, worn, points[name]) > 3, name
    for eye in ("right_eye", "left_eye"):
        assert not changed(image, worn, points[eye], 12).any()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("tilt", [0.4, -0.4])
def test_the_two_ways_to_wear_it_wrongly(look, tilt):
    image, points = drawn(2, tilt)
    nose_bare = paint(image, landmarks_of(points), "nose-bare", look, np.random.default_rng(0))
    assert not changed(image, nose_bare, points["nose"], 1).any()
    for name in ("mouth", "right_mouth", "left_mouth", "chin"):
        assert changed(image, nose_bare, points[name], 2).mean() > 0.9, name
    on_chin = paint(image, landmarks_of(points), "on-chin", look, np.random.default_rng(0))
    for name in ("nose", "mouth", "right_mouth", "left_mouth"):
        assert not changed(image, on_chin, points[name], 1).any(), name
    assert changed(image, on_chin, points["chin"], 2).mean() > 0.9


def test_incorrect_is_one_of_the_two_by_the_generator():
    image, points = drawn(3)
    bare = []
    for seed in range(24):
        wrong = paint(image, landmarks_of(points), "incorrect", "cloth-black", np.random.default_rng(seed))
        assert not changed(image, wrong, points["nose"], 1).any()
        bare.append(not changed(image, wrong, points["mouth"], 1).any())
    assert 4 <= sum(bare) <= 16


def test_nothing_changes_away_from_the_face():
    image, points = drawn(4)
    worn = paint(image, landmarks_of(points), "wear", "surgical-blue", np.random.default_rng(0))
    differs = (image != worn).any(axis=2)
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


def test_it_depends_on_its_arguments_alone():
    image, points = drawn(5)
    kept = image.copy()
    once = [paint(image, landmarks_of(points), "wear", "cloth-dots", np.random.default_rng(s)) for s in (0, 1)]
    again = [paint(image, landmarks_of(points), "wear", "cloth-dots", np.random.default_rng(s)) for s in (1, 0)]
    assert np.array_equal(once[0], again[1])
    assert np.array_equal(once[1], again[0])
    assert not np.array_equal(once[0], once[1])
    assert np.array_equal(image, kept)


def test_a_face_cut_by_the_edge_of_the_photo_is_painted():
    image, points = drawn(6)
    cut_at = round(points["mouth"][1]) - 2
    cut = np.ascontiguousarray(image[:cut_at])
    worn = paint(cut, landmarks_of(points), "wear", "kf94-white", np.random.default_rng(0))
    assert worn.shape == cut.shape
    assert changed(cut, worn, points["nose"], 2).all()


def test_landmarks_that_no_face_has_are_refused():
    eyes, rest = {"right_eye": (40, 40), "left_eye": (80, 40)}, {"nose": (60, 62), "box": (20, 10, 100, 110)}
    mouth = {"right_mouth": (46, 84), "left_mouth": (74, 84)}
    Landmarks(**eyes, **mouth, **rest)
    with pytest.raises(DataError, match="on one point"):
        Landmarks(**{**eyes, "left_eye": (40, 40)}, **mouth, **rest)
    with pytest.raises(DataError, match="person's own"):
        Landmarks(right_eye=(80, 40), left_eye=(40, 40), **mouth, **rest)
    with pytest.raises(DataError, match="landmarks have NaN or inf"):
        Landmarks(**{**eyes, "left_eye": (float("nan"), 40)}, **mouth, **rest)
    image = np.zeros((60, 64, 3), np.uint8)
    with pytest.raises(DataError, match=r"right_mouth at \(46, 84\) is outside the photo of 64x60"):
        paint(image, Landmarks(**eyes, **mouth, **rest), "wear", "kf94-white", np.random.default_rng(0))


def test_unknown_words_are_refused():
    image, points = drawn(0)
    for how, look in (("worn", "kf94-white"), ("wear", "scarf")):
        with pytest.raises(UsageError, match="found"):
            paint(image, landmarks_of(points), how, look, np.random.default_rng(0))
