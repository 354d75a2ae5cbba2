"""Boxes: a CSV of the face in each photo, by any detector, and photos cut to the face or a part of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from fastmask.data.paths import name_paths
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_rows

BOX = ("x0", "y0", "x1", "y1")
SCORE = "score"
# right and left are the person's
POINTS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")
COLUMNS = ("path", *BOX, SCORE, *LANDMARKS)
REGIONS = ("face", "forehead", "nose-to-chin", "chin-to-neck")
# what is left of a photo without a face
NO_FACE = WHOLE, CENTRE = "whole", "crop"
DEFAULT_MARGIN, MOST_MARGIN = 0.3, 10.0

# the heights of the eyes, the tip of the nose and the mouth in a box without landmarks, as shares of its height: the
# medians of MTCNN's and RetinaFace's boxes
_SHARES = (0.40, 0.59, 0.765)
# mouth to chin over eyes to mouth, and the visible part of the neck over eyes to chin
_CHIN, _NECK = 0.65, 0.5
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
# pixels, more than any photo has
_MOST = 1e6
# a file whose longest box is shorter has fractions of the photos, a little more than 1 where a face is cut off
_FRACTION = 2.0

Rectangle = tuple[float, float, float, float]


class Face(NamedTuple):
    """A face in pixels of the photo after its EXIF rotation: x0 < x1, y0 < y1, the photo starts at 0.

    `score` is NaN where unknown; `landmarks` are the numbers of the columns LANDMARKS, in order.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    score: float = float("nan")
    landmarks: tuple[float, ...] | None = None

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


class Window(NamedTuple):
    """A rectangle of whole pixels inside a photo: photo[y0:y1, x0:x1]."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Framing:
    """How photos are cut to their faces: the (height, width) of the result, the margin and the region.

    `margin` widens the region on each side, as a share of its width and of its height. `no_face` is what is left of a
    photo without a face: "whole", the largest centred window, or "crop", its middle of `size` pixels, as by
    albumentations' CenterCrop. Raises UsageError for an invalid margin, region or `no_face`.
    """

    size: tuple[int, int]
    margin: float = DEFAULT_MARGIN
    region: str = "face"
    no_face: str = WHOLE

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UsageError(f"A face is cut to a height and a width of 1 or more; found {self.size}.")
        if not 0 <= self.margin <= MOST_MARGIN:
            raise UsageError(f"--margin is {self.margin:g}; expected 0 to {MOST_MARGIN:g}, 0.3 is 30 % on each side.")
        if self.region not in REGIONS:
            raise UsageError(f"--region is {self.region!r}; expected one of {', '.join(REGIONS)}.")
        if self.no_face not in NO_FACE:
            raise UsageError(f"--no-face is {self.no_face!r}; expected one of {', '.join(NO_FACE)}.")

    def window(self, face: Face | None, height: int, width: int) -> Window:
        """The pixels to cut out of a photo of that size; without a face those of `no_face`.

        A window that exceeds the photo is moved inside, and shrunk if it is larger than the photo.
        """
        if face is None:
            return self._faceless_window(height, width)
        x0, y0, x1, y1 = region_of(face, self.region)
        wide, high = self.margin * (x1 - x0), self.margin * (y1 - y0)
        return fit_window((x0 - wide, y0 - high, x1 + wide, y1 + high), self.size, height, width)

    def _faceless_window(self, height: int, width: int) -> Window:
        high, wide = self.size
        if self.no_face == WHOLE or high > height or wide > width:
            return fit_window((0, 0, width, height), self.size, height, width)
        # rounded as by CenterCrop
        left, top = (width - wide) // 2, (height - high) // 2
        return Window(left, top, left + wide, top + high)

    def cut(self, photo: np.ndarray, face: Face | None) -> np.ndarray:
        """(H, W, 3) uint8 -> the window scaled to (height, width, 3): by area means to shrink it, else bilinear."""
        window, (height, width) = self.window(face, *photo.shape[:2]), self.size
        part = photo[window.y0 : window.y1, window.x0 : window.x1]
        how = cv2.INTER_AREA if part.shape[0] * part.shape[1] > height * width else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(part, (width, height), interpolation=how))


def region_of(face: Face, region: str) -> Rectangle:
    """The rectangle of a part of the face, as wide as the box.

    - face: the box.
    - forehead: the top of the box to the eyes.
    - nose-to-chin: midway between the eyes and the tip of the nose, to the chin.
    - chin-to-neck: midway between the mouth and the chin, to half the eyes-to-chin distance below the chin.

    The heights of the eyes, the nose and the mouth are those of the landmarks; without landmarks, or where these are
    not in the order of an upright face, they are fixed shares of the box. The chin follows from them. A contest team
    let models of these regions vote.
    """
    eyes, nose, mouth = _face_heights(face)
    chin = mouth + _CHIN * (mouth - eyes)
    top, bottom = {
        "face": (face.y0, face.y1),
        "forehead": (face.y0, eyes),
        "nose-to-chin": ((eyes + nose) / 2, chin),
        "chin-to-neck": ((mouth + chin) / 2, chin + _NECK * (chin - eyes)),
    }[region]
    return face.x0, top, face.x1, bottom


def _face_heights(face: Face) -> tuple[float, float, float]:
    if face.landmarks is not None:
        right_eye, left_eye, nose, right_mouth, left_mouth = face.landmarks[1::2]
        eyes, mouth = (right_eye + left_eye) / 2, (right_mouth + left_mouth) / 2
        if face.y0 < eyes < nose < mouth:
            return eyes, nose, mouth
    eyes, nose, mouth = (face.y0 + share * (face.y1 - face.y0) for share in _SHARES)
    return eyes, nose, mouth


def fit_window(rectangle: Rectangle, size: tuple[int, int], height: int, width: int) -> Window:
    """The rectangle grown around its centre to the shape of `size` (height, width), inside a photo of height x width.

    It is shrunk to the photo where it is larger, and moved inside where it exceeds an edge.
    """
    x0, y0, x1, y1 = rectangle
    shape = size[1] / size[0]
    wide, high = max(x1 - x0, (y1 - y0) * shape), max(y1 - y0, (x1 - x0) / shape)
    smaller = min(1.0, width / wide, height / high)
    left, right = _place_inside((x0 + x1) / 2, wide * smaller, width)
    top, bottom = _place_inside((y0 + y1) / 2, high * smaller, height)
    return Window(left, top, right, bottom)


def _place_inside(centre: float, length: float, end: int) -> tuple[int, int]:
    """Whole pixels from 0 to `end`, `length` long but at least one, as near to the centre as possible."""
    pixels = min(max(_round_half_up(length), 1), end)
    start = min(max(_round_half_up(centre - pixels / 2), 0), end - pixels)
    return start, start + pixels


def _round_half_up(value: float) -> int:
    # not `round`, which rounds half to even: a box and its window must move by the same pixels
    return int(np.floor(value + 0.5))


@dataclass(frozen=True, eq=False)
class Boxes:
    """The faces of a CSV by the photo's path, None where none was found; `lines` are their lines in the file."""

    file: Path
    faces: Mapping[str, Face | None]
    lines: Mapping[str, int]

    def check(self, paths: Sequence[str]) -> None:
        """Raise DataError if a photo has no row."""
        missing = [path for path in paths if path not in self.faces]
        if missing:
            raise DataError(
                f"{self.file} has no row for {missing[0]} ({len(missing)} of {len(paths)} photos have none, its first "
                f"is for {next(iter(self.faces))}); find the faces of these photos with fastmask faces, or add rows "
                "with empty cells for photos without a face."
            )

    def cut(self, photo: np.ndarray, path: str, framing: Framing) -> np.ndarray:
        """The photo at `path`, (H, W, 3) uint8, cut to its face; raises DataError for a box outside the photo."""
        face = self.faces[path]
        height, width = photo.shape[:2]
        if face is not None and not (face.x0 < width and face.y0 < height and face.x1 > 0 and face.y1 > 0):
            raise DataError(
                f"{self.file}, line {self.lines[path]}: the box ({', '.join(f'{v:g}' for v in face[:4])}) lies outside "
                f"{path}, which is {width} wide and {height} high; expected pixels of the photo as it is shown."
            )
        return framing.cut(photo, face)

    def digest(self, paths: Iterable[str] | None = None) -> str:
        """SHA-256 of the boxes and landmarks of some photos, or all, in any order."""
        found = hashlib.sha256()
        for path in sorted(self.faces if paths is None else paths):
            face = self.faces[path]
            values = () if face is None else (*face[:4], *(face.landmarks or ()))
            found.update("\t".join([path, *(repr(float(value)) for value in values)]).encode() + b"\n")
        return found.hexdigest()


class FaceCut:
    """Cuts photos to their faces: a callable (photo, path) -> (height, width, 3) uint8 of the framing's size.

    `names` maps the path of each photo to its path in the boxes. Raises DataError where one has no row.
    """

    def __init__(self, boxes: Boxes, framing: Framing, names: Mapping[str, str]) -> None:
        own = {name: cell for cell, name in name_paths(boxes.faces, set(names.values()), Path()).items()}
        self.boxes, self.framing = boxes, framing
        self.names = {path: name if name in boxes.faces else own.get(name, name) for path, name in names.items()}
        boxes.check(list(self.names.values()))

    def __call__(self, photo: np.ndarray, path: str | Path) -> np.ndarray:
        """The photo at `path` cut to its face."""
        return self.boxes.cut(photo, self._name(path), self.framing)

    def check_cut(self, photo: np.ndarray) -> np.ndarray:
        """A photo given without its path; raises UsageError unless it has the framing's size."""
        if photo.shape[:2] != self.framing.size:
            raise UsageError(
                f"A photo is {photo.shape[0]} high and {photo.shape[1]} wide and given without its path, so its "
                f"face is unknown; give its path, or the photo cut to {self.framing.size[0]} by {self.framing.size[1]}."
            )
        return photo

    def key_of(self, path: str | Path) -> str:
        """The framing and the face of the photo at `path`, as text."""
        face = self.boxes.faces[self._name(path)]
        return f"{self.framing} {None if face is None else (*face[:4], face.landmarks)}"

    def join(self, other: FaceCut) -> FaceCut:
        """A cut of the photos of both."""
        return FaceCut(self.boxes, self.framing, {**self.names, **other.names})

    def count_faceless(self) -> int:
        """How many of the photos have no face."""
        return sum(self.boxes.faces[name] is None for name in self.names.values())

    def describe_faceless(self) -> str:
        """How many of the photos have no face, and what is left of them."""
        left = "left whole" if self.framing.no_face == WHOLE else "cut to its centre"
        return f"{self.count_faceless()} without one {left}"

    def digest(self) -> str:
        """SHA-256 of the boxes and landmarks of all photos."""
        return self.boxes.digest(sorted(set(self.names.values())))

    def _name(self, path: str | Path) -> str:
        if str(path) not in self.names:
            raise DataError(f"{path} has no row in {self.boxes.file}; find its face with fastmask faces.")
        return self.names[str(path)]


def read_boxes(file: str | Path) -> Boxes:
    """Read a CSV of faces: path, x0, y0, x1, y1, optionally score and the ten columns LANDMARKS, in pixels.

    Paths are relative to the folder of the photos. Empty cells mean that no face was found. Of several rows of a photo
    the one with the highest score is taken, then the largest box, then the first row. Raises UsageError if there is no
    such file, DataError naming line and column of an invalid cell.
    """
    file = Path(file)
    frame = read_rows(file, ("path", *BOX))
    marks = _landmark_columns(file, list(frame.columns))
    faces: dict[str, Face | None] = {}
    lines: dict[str, int] = {}
    for line, row in zip(frame.index.tolist(), frame.to_dict("records"), strict=True):
        try:
            path, face = _read_row(row, marks)
        except DataError as fault:
            raise DataError(f"{file}, line {line}, {fault}") from fault
        if path not in faces or _rank(face) > _rank(faces[path]):
            faces[path], lines[path] = face, line
    _check_pixels(file, [face for face in faces.values() if face is not None])
    return Boxes(file, faces, lines)


def _check_pixels(file: Path, faces: Sequence[Face]) -> None:
    """Raise DataError for boxes in fractions of the photos, as those of YOLO are."""
    longest = max((max(face.x1 - face.x0, face.y1 - face.y0) for face in faces), default=_FRACTION)
    if longest < _FRACTION:
        raise DataError(
            f"{file}: no box is longer than {longest:.3g}, so these are fractions of the photos; expected pixels: "
            "multiply x0 and x1 by the width of the photo, y0 and y1 by its height."
        )


def _landmark_columns(file: Path, header: Sequence[str]) -> tuple[str, ...]:
    """The columns of the landmarks, all or none."""
    missing = [column for column in LANDMARKS if column not in header]
    if len(missing) == len(LANDMARKS):
        return ()
    if missing:
        every = ", ".join(LANDMARKS)
        raise DataError(f"{file} has no column {missing[0]!r}, but other landmarks; expected all of {every}, or none.")
    return LANDMARKS


def _read_row(row: Mapping[str, str], marks: Sequence[str]) -> tuple[str, Face | None]:
    if not row["path"]:
        raise DataError("column path: found nothing, expected the path of a photo.")
    box = _read_numbers(row, BOX, "all four of the box, or none where no face was found")
    score = _read_number(row, SCORE) if row.get(SCORE) else float("nan")
    landmarks = _read_numbers(row, marks, "all ten of the landmarks, or none")
    if box is None:
        if landmarks is not None:
            raise DataError("column x0: found nothing, expected a number: the row has landmarks, but no box.")
        return row["path"], None
    for low, high in (("x0", "x1"), ("y0", "y1")):
        if box[BOX.index(high)] <= box[BOX.index(low)]:
            raise DataError(f"column {high}: found {row[high]}, expected more than {low}, which is {row[low]}.")
    x0, y0, x1, y1 = box
    return row["path"], Face(x0, y0, x1, y1, score, landmarks)


def _read_numbers(row: Mapping[str, str], columns: Sequence[str], all_or_none: str) -> tuple[float, ...] | None:
    """The numbers of some columns; None where all their cells are empty."""
    empty = [column for column in columns if not row[column]]
    if len(empty) == len(columns):
        return None
    if empty:
        raise DataError(f"column {empty[0]}: found nothing, expected a number: {all_or_none}.")
    return tuple(_read_number(row, column) for column in columns)


def _read_number(row: Mapping[str, str], column: str) -> float:
    cell = row[column]
    if _NUMBER.fullmatch(cell) is None:
        raise DataError(f"column {column}: found {cell!r}, expected a number.")
    if abs(float(cell)) > _MOST:
        raise DataError(f"column {column}: found {cell}, expected a number from {-_MOST:.0f} to {_MOST:.0f}.")
    return float(cell)


def _rank(face: Face | None) -> tuple[float, float]:
    """The order of several rows of a photo, the best last."""
    if face is None:
        return -np.inf, -1.0
    return (-np.inf if np.isnan(face.score) else face.score), face.area


def boxes_frame(paths: Sequence[str], faces: Sequence[Face | None]) -> pd.DataFrame:
    """One row per photo with COLUMNS, as `read_boxes` reads it; NaN, an empty cell, where there is no face."""
    rows = [
        (path,) if face is None else (path, *face[:5], *(face.landmarks or ()))
        for path, face in zip(paths, faces, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS[: max(map(len, rows), default=1)])).reindex(columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(COLUMNS[1:], np.float64))
