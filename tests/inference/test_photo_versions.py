"""Predictions averaged over versions of the photos, next to a plain mean of those of each version."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps
from trained_runs import predict_by_hand

from fastmask.api import blend_runs
from fastmask.inference.photo_versions import PhotoVersions
from fastmask.inference.predictions import predict
from fastmask.inference.sources import find_photos
from fastmask.system.errors import DataError, PhotoSizeError, UsageError
from fastmask.system.files import read_yaml, write_yaml


@pytest.fixture(scope="module")
def images(contest, tmp_path_factory):
    """Eight photos of eval."""
    folder = tmp_path_factory.mktemp("some") / "images"
    folder.mkdir()
    for photo in sorted((contest / "eval" / "images").iterdir())[:8]:
        shutil.copy(photo, folder)
    return folder


@pytest.fixture(scope="module")
def photos(images):
    return sorted(images.iterdir())


@pytest.fixture
def inverted(photos, tmp_path):
    """A negative of each photo but the third."""
    folder = tmp_path / "inverted"
    folder.mkdir()
    for photo in [*photos[:2], *photos[3:]]:
        ImageOps.invert(Image.open(photo).convert("RGB")).save(folder / f"{photo.stem}.png")
    return folder


@pytest.fixture
def mirrored(photos, tmp_path):
    folder = tmp_path / "mirrored"
    folder.mkdir()
    for photo in photos:
        ImageOps.mirror(Image.open(photo).convert("RGB")).save(folder / f"{photo.stem}.png")
    return folder


def predicted(run, images, **options):
    return predict(run, images, workers=0, device="cpu", **options)


def test_each_photo_has_the_mean_over_its_versions(finished_run, images, photos, inverted, mirrored):
    folders = (str(inverted), str(mirrored))
    found = predicted(finished_run, images, images_also=folders, bs=7)
    assert found.names == [photo.name for photo in photos]
    for fold in (0, 1):
        expected = []
        for photo in photos:
            versions = [photo, *(file for one in (inverted, mirrored) if (file := one / f"{photo.stem}.png").exists())]
            each = [predict_by_hand(finished_run, [version], fold)[0] for version in versions]
            expected.append(np.mean(each, axis=0))
        np.testing.assert_allclose(found.members[f"fold{fold}"], expected, atol=2e-5)
    np.testing.assert_allclose(found.probabilities, np.mean([*found.members.values()], axis=0), atol=1e-6)
    counted = f"{len(photos) - 1} of {len(photos)} photos, lacking such as {photos[2].name}"
    assert found.notes == [f"{inverted} has versions of {counted}; a photo without a version is predicted without it."]
    # in any order, and given one by one
    back = predicted(finished_run, photos[::-1], images_also=folders)
    np.testing.assert_allclose(back.probabilities[::-1], found.probabilities, atol=1e-5)
    alone = predicted(finished_run, images)
    np.testing.assert_allclose(
        predicted(finished_run, photos[2], images_also=[str(mirrored)]).probabilities[0],
        (alone.probabilities[2] + predicted(finished_run, mirrored / f"{photos[2].stem}.png").probabilities[0]) / 2,
        atol=2e-5,
    )


def test_views_are_of_each_version(finished_run, images, photos, mirrored):
    # the mirror images of both are the same two pictures
    both = predicted(finished_run, images, images_also=[str(mirrored)], views=["flip"])
    np.testing.assert_allclose(
        both.probabilities, predicted(finished_run, images, views=["flip"]).probabilities, atol=2e-5
    )


def test_an_ensemble_blends_the_means_of_its_runs(finished_run, run_copy, images, inverted, tmp_path):
    shutil.copytree(run_copy, tmp_path / "second")
    blended = blend_runs([finished_run.path, tmp_path / "second"], out=tmp_path / "both").run
    found = predicted(blended, images, images_also=[str(inverted)])
    alone = predicted(finished_run, images, images_also=[str(inverted)])
    np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=1e-5)


def test_what_cannot_be_read_is_left_out_and_counted(finished_run, images, photos, inverted, mirrored, tmp_path):
    (inverted / f"{photos[0].stem}.png").write_bytes(b"none")
    own = tmp_path / "own"
    shutil.copytree(images, own)
    (own / photos[1].name).write_bytes(b"none")
    (own / photos[2].name).write_bytes(b"none")
    found = predicted(finished_run, own, images_also=[str(inverted)])
    # the third has no version either
    assert list(found.failed) == [photos[2].name]
    assert found.names == [photo.name for photo in photos if photo != photos[2]]
    left = [note for note in found.notes if "left out" in note]
    broken = inverted / f"{photos[0].stem}.png"
    assert left == [f"1 version cannot be predicted and will be left out: {broken} is not an image that can be read."]
    assert f"1 photo cannot be predicted, such as {photos[1].name}, and other versions will be taken." in found.notes
    for name, version in ((photos[0].name, photos[0]), (photos[1].name, inverted / f"{photos[1].stem}.png")):
        alone = predicted(finished_run, version)
        row = found.names.index(name)
        np.testing.assert_allclose(found.probabilities[row], alone.probabilities[0], atol=2e-5)
    with pytest.raises(DataError, match="and 2 more of .* photos cannot be predicted"):
        predicted(finished_run, own, images_also=[str(inverted)], on_bad_photo="error")


def test_a_larger_version_is_cut_as_its_photo_where_the_crop_is_in_pixels(run_copy, images, photos, tmp_path):
    (tmp_path / "large").mkdir()
    for photo in photos[:3]:
        large = Image.open(photo).convert("RGB")
        large.resize((768, 1024), Image.Resampling.NEAREST).save(tmp_path / "large" / f"{photo.stem}.png")
    config = read_yaml(run_copy / "config.yaml")
    assert config["fit"] is None
    options = {"images_also": [str(tmp_path / "large")]}
    custom = predicted(run_copy, photos[:3], **options).probabilities
    write_yaml(run_copy / "config.yaml", {**config, "train_pipeline": None, "valid_pipeline": None, "fit": "contest"})
    alone = predicted(run_copy, photos[:3]).probabilities
    # a photo doubled and halved is the same
    np.testing.assert_allclose(predicted(run_copy, photos[:3], **options).probabilities, alone, atol=1e-5)
    assert np.abs(custom - alone).max() > 1e-4
    Image.new("RGB", (500, 500)).save(tmp_path / "large" / f"{photos[1].stem}.png")
    with pytest.raises(PhotoSizeError, match="500 high and 500 wide, its photo 512 and 384: of another shape"):
        predicted(run_copy, photos[:3], **options)


def test_what_does_nothing_is_refused(finished_run, images, photos, inverted, tmp_path):
    for folders, message in (
        ([str(images)], "holds the photos themselves"),
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(inverted), f"{inverted}/"], "is the same folder as"),
        ([""], "has an empty name"),
        ([str(tmp_path)], "has a version of none of the"),
    ):
        with pytest.raises(UsageError, match=message):
            predicted(finished_run, images, images_also=folders)
    with pytest.raises(UsageError, match="none of these photos is a file"):
        predicted(finished_run, Image.open(photos[0]), images_also=[str(inverted)])


def test_photos_are_matched_by_their_place_in_their_folder(images, photos, mirrored, tmp_path):
    for folder in ("a", "b"):
        shutil.copytree(images, tmp_path / "own" / folder)
    shutil.copytree(mirrored, tmp_path / "red" / "a")
    given = [tmp_path / "own" / folder / photos[0].name for folder in ("a", "b")]
    for listed in (find_photos(given), find_photos(tmp_path / "own")):
        versions = PhotoVersions.find(listed, [str(tmp_path / "red")])
        assert all(str(own).startswith(str(tmp_path / "own" / "a")) for own in versions.photo_of.values())
        assert len(versions.photo_of) == (1 if len(listed.names) == 2 else len(photos))
