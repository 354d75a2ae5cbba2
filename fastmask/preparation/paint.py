"""Paint: masks painted on the bare faces of a table, as photos and labels to train on."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd

from fastmask.data.boxes import LANDMARKS, POINTS, Boxes, Face, read_boxes
from fastmask.data.photo import map_in_threads, read_photo
from fastmask.data.table import Table
from fastmask.heads import Head
from fastmask.preparation.masks import BARE, INCORRECT, KINDS, LOOKS, WORN, Landmarks, Pixels, paint
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_fillable, check_parent, fill_folder, real, write_csv
from fastmask.system.randomness import Counted, Stream
from fastmask.system.terminal import Progress

LABELS, IMAGES = "labels.csv", "images"
SUFFIXES = (".jpg", ".png")
MOST_PER_FACE, MOST_WORKERS = 100, 1024
_QUALITY = 95


@dataclass(frozen=True)
class Painted:
    """What was painted: the folder, how many photos of each kind (wear, incorrect, none), and what was left out.

    `faces` counts the photos that were painted on, `faceless` those without a face, `covered` those that are not bare.
    """

    folder: Path
    faces: int
    photos: Mapping[str, int]
    faceless: int
    covered: int


@dataclass(frozen=True)
class _Job:
    """A bare photo, where its landmarks are, and its copies: (kind, number of the copy, file to write)."""

    photo: Path
    path: str
    face: Face
    place: str
    copies: tuple[tuple[str, int, str], ...]

    def landmarks(self) -> Landmarks:
        """The landmarks of the face; raises DataError naming the line where there are none, or impossible ones."""
        if self.face.landmarks is None:
            raise DataError(
                f"{self.place}: {self.path} has a box, but no landmarks ({LANDMARKS[0]} and so on); find them with "
                "fastmask faces, or another detector of landmarks."
            )
        points = np.reshape(self.face.landmarks, (len(POINTS), 2)).tolist()
        try:
            return Landmarks(**{name: (x, y) for name, (x, y) in zip(POINTS, points, strict=True)}, box=self.face[:4])
        except DataError as fault:
            raise self.fault(fault) from fault

    def fault(self, error: DataError) -> DataError:
        """An error of the landmarks, with their line and the photo."""
        return DataError(f"{self.place}: {self.path}: {error}")


def parse_per_face(text: str) -> dict[str, int]:
    """Read "wear=5,incorrect=1,none=1" as {kind: photos per face}; raises UsageError for anything else."""
    counts: dict[str, int] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        found = re.fullmatch(r"([a-z]+)\s*=\s*([0-9]{1,9})", word)
        if found is None or found[1] in counts:
            raise UsageError(
                f"--per-face is {text!r}; expected each of {', '.join(KINDS)} once with a number, such as "
                "wear=5,incorrect=1,none=1."
            )
        counts[found[1]] = int(found[2])
    return _check_counts(counts)


def paint_set(
    table: Table,
    landmarks: str | Path,
    out: str | Path,
    per_face: Mapping[str, int],
    seed: int = 0,
    *,
    head: str = "mask",
    classes: Sequence[str] = KINDS,
    looks: Sequence[str] = tuple(LOOKS),
    suffix: str = ".jpg",
    workers: int | None = None,
    progress: Progress = lambda done, of: None,
) -> Painted:
    """Paint masks on the bare faces of a table: a new folder with photos and a labels.csv.

    labels.csv has the columns path, person, `head` and every other head of the table: its class, or the number from
    which the class follows. The same photo, landmarks and seed give the same bytes, whatever else is painted, and more
    copies of a kind do not change the first ones.

    Args:
        landmarks: a CSV of boxes with landmarks, see `read_boxes`, with a row for each bare photo.
        out: a new or empty folder, which is filled only when all is painted.
        per_face: photos to make of each face, by kind: wear, incorrect, none. `none`, 0 or 1, is the photo itself,
            encoded again like the others, so that a network cannot tell masks by their encoding.
        head: the column of the mask. Where the table has such a head, only photos of its class `classes[2]` are
            painted.
        classes: the classes of the head for worn, wrongly worn and bare.
        looks: those of LOOKS to draw from; copies of a kind have different ones as far as there are enough.
        suffix: .jpg (quality 95) or .png.
        progress: called with the numbers of faces done and of all faces.
    """
    out, counts = Path(out), _check_counts(per_face)
    named = _check_settings(table, head, classes, looks, suffix, seed)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers is {workers}; expected 1 to {MOST_WORKERS}.")
    _check_out(out, table)
    boxes = read_boxes(landmarks)
    bare = _find_bare(table, named)
    jobs, labels = _plan(table, np.flatnonzero(bare), boxes, counts, named, suffix)
    with fill_folder(out, IMAGES, LABELS) as made:
        for folder in sorted({(made / name).parent for job in jobs for _, _, name in job.copies}):
            folder.mkdir(parents=True, exist_ok=True)
        for done, _ in enumerate(map_in_threads(lambda job: _make(job, made, looks, seed), jobs, workers), start=1):
            progress(done, len(jobs))
        write_csv(made / LABELS, labels)
    photos = {kind: counts[kind] * len(jobs) for kind in KINDS}
    return Painted(out, len(jobs), photos, int(bare.sum()) - len(jobs), int((~bare).sum()))


def _check_counts(per_face: Mapping[str, int]) -> dict[str, int]:
    unknown = next((kind for kind in per_face if kind not in KINDS), None)
    if unknown is not None:
        raise UsageError(f"--per-face names {unknown!r}; expected some of {', '.join(KINDS)}.")
    counts = {kind: int(per_face.get(kind, 0)) for kind in KINDS}
    if not all(0 <= count <= MOST_PER_FACE for count in counts.values()) or not counts[WORN] + counts[INCORRECT]:
        raise UsageError(
            f"--per-face asks for {', '.join(f'{k}={n}' for k, n in counts.items())}; expected at least one of "
            f"{WORN} and {INCORRECT}, and at most {MOST_PER_FACE} of each."
        )
    if counts[BARE] > 1:
        raise UsageError(f"--per-face asks for {BARE}={counts[BARE]}; expected 0 or 1, more would be copies.")
    return counts


def _check_settings(
    table: Table, head: str, classes: Sequence[str], looks: Sequence[str], suffix: str, seed: int
) -> Head:
    """The mask's head; raises UsageError for a setting that does not exist or contradicts the table."""
    if len(classes) != len(KINDS):
        raise UsageError(f"Head {head} needs three classes, for {', '.join(KINDS)}; found {', '.join(classes)}.")
    named = Head(head, tuple(classes))
    if head in table.heads.names:
        missing = [name for name in classes if name not in table.heads[head].classes]
        if missing:
            raise UsageError(
                f"Head {head} has no class {missing[0]!r}, only {', '.join(table.heads[head].classes)}; name the three "
                "that mean worn, wrongly worn and bare."
            )
    unknown = next((look for look in looks if look not in LOOKS), None)
    if unknown is not None or not looks:
        raise UsageError(f"There is no look {unknown or ''!r}; expected some of {', '.join(LOOKS)}.")
    if suffix not in SUFFIXES:
        raise UsageError(f"Photos are written as {' or '.join(SUFFIXES)}; found {suffix!r}.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}; expected 0 or more.")
    return named


def _check_out(out: Path, table: Table) -> None:
    place, data = real(out), Path(str(table.reading.get("data", "")))
    if place in (real(table.root), real(data)) or (data.is_dir() and real(table.root) in place.parents):
        raise UsageError(f"{out} is the data to paint on, or inside it; name another --out.")
    check_parent(out)
    check_fillable(out)


def _copied_heads(table: Table, head: str) -> list[str]:
    """The heads with labels to copy: all but the mask and distributions over a number."""
    return [other.name for other in table.heads if other.name != head and other.spread is None]


def _find_bare(table: Table, named: Head) -> np.ndarray:
    """(N,) whether a photo shows a bare face; True for all if the table has no labels of the mask."""
    if named.name not in table.heads.names:
        return np.ones(len(table), bool)
    bare = (table.frame[named.name] == named.classes[2]).to_numpy()
    if not bare.any():
        raise DataError(
            f"None of the {len(table)} photos has {named.name} {named.classes[2]!r}; there is no bare face."
        )
    return np.asarray(bare)


def _plan(
    table: Table, rows: np.ndarray, boxes: Boxes, counts: Mapping[str, int], named: Head, suffix: str
) -> tuple[list[_Job], pd.DataFrame]:
    """What to paint on some rows of a table, and labels.csv."""
    paths, persons = ([str(cell) for cell in table.frame[column]] for column in ("path", "person"))
    bare = [paths[row] for row in rows]
    boxes.check(bare)
    copied = _copied_heads(table, named.name)
    cells = [_cells_of(table, name) for name in copied]
    # a.jpg and a.png would become the same photos
    whole = len({_stem(path) for path in bare}) < len(bare)
    jobs, labels = [], []
    for row in rows.tolist():
        path, face = paths[row], boxes.faces[paths[row]]
        if face is None:
            continue
        stem = PurePosixPath(path) if whole else PurePosixPath(path).with_suffix("")
        copies = tuple(
            (kind, copy, f"{IMAGES}/{stem}-{kind}{copy + 1 if kind != BARE else ''}{suffix}")
            for kind in KINDS
            for copy in range(counts[kind])
        )
        jobs.append(_Job(table.photo(row), path, face, f"{boxes.file}, line {boxes.lines[path]}", copies))
        rest = [column[row] for column in cells]
        labels += [(name, persons[row], named.classes[KINDS.index(kind)], *rest) for kind, _, name in copies]
    if not jobs:
        raise DataError(f"{boxes.file} says that none of the {len(bare)} bare photos shows a face.")
    for job in jobs:
        job.landmarks()
    return jobs, pd.DataFrame(labels, columns=["path", "person", named.name, *copied], dtype=str)


def _stem(path: str) -> str:
    # some file systems ignore case
    return str(PurePosixPath(path).with_suffix("")).casefold()


def _cells_of(table: Table, name: str) -> list[str]:
    """The labels of a head as a reader takes them: the class, or the number that it follows from."""
    if table.heads[name].bounds is None:
        return [str(cell) for cell in table.frame[name]]
    return ["" if math.isnan(number) else f"{number:.9g}" for number in table.frame[f"{name}_value"]]


def _make(job: _Job, folder: Path, looks: Sequence[str], seed: int) -> None:
    """Paint one photo's copies and write them."""
    image, landmarks = read_photo(job.photo), job.landmarks()
    try:
        landmarks.check_inside(*image.shape[:2])
    except DataError as fault:
        raise job.fault(fault) from fault
    counted = Counted(Stream.PAINT, seed)
    key = int.from_bytes(hashlib.sha256(job.path.encode()).digest()[:8], "big")
    for kind, copy, name in job.copies:
        painted = image
        if kind != BARE:
            number = KINDS.index(kind)
            # a permutation, so that the copies of one face look different
            order = counted.at(number, 0, key).permutation(len(looks))
            look = looks[int(order[copy % len(looks)])]
            painted = paint(image, landmarks, kind, look, counted.at(number, copy + 1, key))
        _write_photo(folder / name, painted)


def _write_photo(file: Path, pixels: Pixels) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if file.suffix == ".jpg" else []
    done, code = cv2.imencode(file.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise DataError(
            f"{file.name} of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be written as {file.suffix}."
        )
    file.write_bytes(code.tobytes())
