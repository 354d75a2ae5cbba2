"""Trial: single photos against `predict` and `explain`, and what is not a photo."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageColor

from fastmask.api import Run
from fastmask.app.trial import MOST_BYTES, Trial, check_photo
from fastmask.data.boxes import Face, boxes_frame
from fastmask.inference.predictions import predict
from fastmask.preparation import faces
from fastmask.report.gradcam import explain
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_csv


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height):
    """A PNG of a few bytes whose header gives any size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


BAD = {
    "text.jpg": (b"this is no photo", "is not an image that can be read"),
    "empty.png": (b"", "is empty"),
    "bomb.png": (png(50_000, 50_000), "has more than 178,956,970 pixels; scale it down"),
    "drawing.svg": (
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "is an SVG drawing, not a photo",
    ),
    "page.html": (b"<script>alert(1)</script>", "is not an image"),
    "cut.png": (png(10, 10)[:60], "is damaged or truncated"),
    "long.jpg": (bytes(MOST_BYTES + 1), "is larger than 25 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_a_photo_has_an_error_with_its_name(name, tmp_path):
    (tmp_path / "upload").write_bytes(BAD[name][0])
    with pytest.raises(DataError, match=f"^{name} {BAD[name][1]}"):
        check_photo(tmp_path / "upload", name)


def test_a_truncated_jpeg_is_damaged(photo, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    with pytest.raises(DataError, match=r"^mine is damaged or truncated"):
        check_photo(tmp_path / "cut.jpg", "mine")


def test_predictions_are_those_of_predict_and_networks_are_loaded_once(finished_run, photo, monkeypatch):
    trial = Trial(finished_run)
    first, _ = trial.answer(photo)
    monkeypatch.setattr("fastmask.app.trial.load_network", None)
    again, remark = trial.answer(photo)
    assert remark == ""
    expected = finished_run.predict([photo]).probabilities
    for predictions in (first, again):
        np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-7)


def test_the_map_is_the_mean_over_folds(finished_run, photo):
    made = Trial(finished_run).explain(photo, "mask")
    label = finished_run.heads["mask"].classes[finished_run.predict([photo]).y[0, 0]]
    folds = [explain(finished_run, [photo], "mask", label, fold=fold)[0] for fold in (0, 1)]
    heat = (folds[0].heat + folds[1].heat) / 2
    np.testing.assert_allclose(made.heat, heat / heat.max(), atol=1e-6)
    assert (made.label, made.probability) == (label, pytest.approx((folds[0].probability + folds[1].probability) / 2))


def test_an_error_of_the_pipeline_names_the_photo_and_suggests_what_the_page_can_do(finished_run, tmp_path):
    Image.new("L", (1, 200_000)).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=r"^thin.png is 200000 high and 1 wide, [^/]*; choose a larger photo\.$"):
        Trial(finished_run).answer(tmp_path / "thin.png")


def test_a_photo_that_is_smaller_than_the_crop_is_enlarged_with_a_remark(finished_run, tmp_path):
    Image.new("RGB", (320, 240), "pink").save(tmp_path / "webcam.png")
    predictions, remark = Trial(finished_run).answer(tmp_path / "webcam.png")
    assert remark == "The photo is smaller than the run's crop and was enlarged."
    expected = predict(finished_run, np.full((400, 200, 3), np.array(ImageColor.getrgb("pink")), np.uint8))
    np.testing.assert_allclose(predictions.probabilities, expected.probabilities, atol=1e-6)


def test_a_run_of_faces_detects_the_face(run_copy, photo, tmp_path, monkeypatch):
    config = (run_copy / "config.yaml").read_text().replace("boxes: null", "boxes: boxes.csv")
    (run_copy / "config.yaml").write_text(config)
    run = Run.load(run_copy)
    found: list[Face] = []
    monkeypatch.setitem(faces.DETECTORS, "mtcnn", lambda: lambda image: found)
    for face, said in (
        (Face(100, 100, 300, 350, 0.9), ""),
        (None, "No face was found, so the photo was not cut to one."),
    ):
        found[:] = [face] if face else []
        write_csv(tmp_path / "boxes.csv", boxes_frame([photo.name], [face]))
        expected = run.predict([photo], boxes=tmp_path / "boxes.csv", root=photo.parent).probabilities
        predictions, remark = Trial(run).answer(photo)
        assert remark == said
        np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-7)

    def missing():
        raise UsageError("The detector mtcnn needs a package that is missing; install it.")

    monkeypatch.setitem(faces.DETECTORS, "mtcnn", missing)
    with pytest.raises(UsageError, match=r"was trained on faces, so the face must be detected. The detector mtcnn"):
        Trial(run).answer(photo)
