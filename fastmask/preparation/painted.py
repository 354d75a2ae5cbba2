"""Painted sets: bare faces of a table, with painted masks, as photos and labels to train on."""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd

from fastmask.data.boxes import LANDMARKS, POINTS, Boxes, Face, read_boxes
from fastmask.data.photo import in_threads, read_photo
from fastmask.data.table import Table
from fastmask.heads import Head
from fastmask.preparation.paint import BARE, INCORRECT, KINDS, LOOKS, WORN, Landmarks, Pixels, paint
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_parent, real, write_csv
from fastmask.system.randomness import Counted, Stream

LABELS, IMAGES = "labels.csv", "images"
SUFFIXES = (".jpg", ".png")
MOST_PER_FACE, MOST_WORKERS = 100, 1024
_QUALITY = 95


@dataclass(frozen=True)
class Painted:
    """What was painted: the folder, how many photos of each kind (wear, incorrect, none), and what was left out.

    `faces` are the photos that were painted on, `faceless` those without a face, `covered` those whose mask label is
    another than bare or unknown.
    """

    folder: Path
    faces: int
    photos: Mapping[str, int]
    faceless: int
    covered: int


@dataclass(frozen=True)
class _Job:
    """A bare photo and what to make of it: (kind, number of the copy, name of the file to write)."""

    photo: Path
    path: str
    face: Face
    place: str
    copies: tuple[tuple[str, int, str], ...]


def parse_per_face(text: str) -> dict[str, int]:
    """Read "wear=5,incorrect=1,none=1" as {kind: photos a face}; raises UsageError for anything else."""
    counts: dict[str, int] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        found = re.fullmatch(r"([a-z]+)\s*=\s*([0-9]{1,9})", word)
        if found is None or found[1] in counts:
            raise UsageError(
                f"--per-face is {text!r}; expected each of {', '.join(KINDS)} once with a number, such as "
                "wear=5,incorrect=1,none=1."
            )
        counts[found[1]] = int(found[2])
    return _counts(counts)


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
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Painted:
    """Paint masks on the bare faces of a table: a new folder with photos and a labels.csv.

    labels.csv has the columns path, person, `head` and every other head of the table: its class, or the number behind
    it where classes are bands of a number. All photos of one face have its person. Whatever the order of the rows and
    the number of photos, the same photo, landmarks and seed give the same bytes; the first copies of a kind stay the
    same where more are asked for.

    Args:
        landmarks: a CSV of boxes with landmarks, see `read_boxes`; it must have a row for each photo to paint on.
        out: a new or empty folder, which is filled only when all is painted.
        per_face: photos to make of each face, by kind: wear, incorrect, none. `none`, 0 or 1, is the photo itself,
            encoded anew as the others are, so that a network cannot tell masks by their encoding.
        head: the column of the mask. Where the table has such a head, only photos of its class `classes[2]` are
            painted.
        classes: what the head calls worn, wrongly worn and bare.
        looks: those of LOOKS to draw from; copies of a kind have different ones as far as there are enough.
        suffix: .jpg (quality 95) or .png.
        progress: is told how many faces of how many are done.
    """
    out, counts = Path(out), _counts(per_face)
    named = _check_settings(table, head, classes, looks, suffix, seed)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers is {workers}; expected 1 to {MOST_WORKERS}.")
    _check_out(out, table)
    boxes = read_boxes(landmarks)
    jobs, rows, faceless, covered = _plan(table, boxes, counts, named, suffix)
    labels = pd.DataFrame(rows, columns=["path", "person", head, *_carried(table, head)], dtype=str)
    # An empty folder stays in place, because it may be a mount point or somebody's working directory.
    is_new = not out.exists()
    # folders above it are made only when all is painted
    beside = next(above for above in out.absolute().parents if above.exists()) if is_new else out
    with tempfile.TemporaryDirectory(prefix=".paint-", dir=beside, ignore_cleanup_errors=True) as temporary:
        # Inside a folder of its own, because temporary folders are closed to other users and the result should not be.
        made = Path(temporary) / "painted"
        for folder in sorted({(made / name).parent for job in jobs for _, _, name in job.copies}):
            folder.mkdir(parents=True, exist_ok=True)
        for done, _ in enumerate(in_threads(lambda job: _make(job, made, looks, seed), jobs, workers), start=1):
            progress(done, len(jobs))
        write_csv(made / LABELS, labels)
        if is_new:
            out.parent.mkdir(parents=True, exist_ok=True)
            made.rename(out)
        else:
            # The labels last, because those are what a reader looks for.
            (made / IMAGES).rename(out / IMAGES)
            (made / LABELS).rename(out / LABELS)
    return Painted(out, len(jobs), {kind: counts[kind] * len(jobs) for kind in KINDS}, faceless, covered)


def _counts(per_face: Mapping[str, int]) -> dict[str, int]:
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
        raise UsageError(f"The classes of {head} are three, for {', '.join(KINDS)}; found {', '.join(classes)}.")
    named = Head(head, tuple(classes))
    if head in table.heads.names:
        missing = [name for name in classes if name not in table.heads[head].classes]
        if missing:
            raise UsageError(
                f"Head {head} has no class {missing[0]!r}; it has {', '.join(table.heads[head].classes)}: name the "
                "three that mean worn, wrongly worn and bare."
            )
    unknown = next((look for look in looks if look not in LOOKS), None)
    if unknown is not None or not looks:
        raise UsageError(f"There is no look {unknown or ''!r}; expected some of {', '.join(LOOKS)}.")
    if suffix not in SUFFIXES:
        raise UsageError(f"Photos are written as {' or '.join(SUFFIXES)}; found {suffix!r}.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}: choose one of 0 or more.")
    return named


def _check_out(out: Path, table: Table) -> None:
    place, data = real(out), Path(str(table.reading.get("data", "")))
    if place in (real(table.root), real(data)) or (data.is_dir() and real(table.root) in place.parents):
        raise UsageError(f"{out} is the data to paint on, or inside it; name another --out.")
    check_parent(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder: choose another folder, or delete it first.")


def _carried(table: Table, head: str) -> list[str]:
    """The heads whose labels go with a photo: all but the mask, and numbers of another head learned in order."""
    return [other.name for other in table.heads if other.name != head and other.spread is None]


def _plan(
    table: Table, boxes: Boxes, counts: Mapping[str, int], named: Head, suffix: str
) -> tuple[list[_Job], list[tuple[str, ...]], int, int]:
    """What to paint, the rows of labels.csv, and how many photos have no face, and how many are not bare."""
    frame = table.frame
    bare = np.ones(len(frame), bool)
    if named.name in table.heads.names:
        bare = (frame[named.name] == named.classes[2]).to_numpy()
    paths = [str(path) for path in frame["path"][bare]]
    if not paths:
        raise DataError(
            f"None of the {len(frame)} photos has {named.name} {named.classes[2]!r}; there is no bare face."
        )
    boxes.check(paths)
    carried = [_cells_of(table, name) for name in _carried(table, named.name)]
    # a.jpg and a.png would become the same photos
    whole = len({_stem(path) for path in paths}) < len(paths)
    jobs, rows = [], []
    for row in np.flatnonzero(bare):
        path = str(frame["path"].iat[row])
        face = boxes.faces[path]
        if face is None:
            continue
        stem = PurePosixPath(path) if whole else PurePosixPath(path).with_suffix("")
        copies = tuple(
            (kind, copy, f"{IMAGES}/{stem}-{kind}{copy + 1 if kind != BARE else ''}{suffix}")
            for kind in KINDS
            for copy in range(counts[kind])
        )
        jobs.append(_Job(table.photo(int(row)), path, face, f"{boxes.file}, line {boxes.lines[path]}", copies))
        labels = [cells[row] for cells in carried]
        person = str(frame["person"].iat[row])
        rows += [(name, person, named.classes[KINDS.index(kind)], *labels) for kind, _, name in copies]
    if not jobs:
        raise DataError(f"{boxes.file} says that none of the {len(paths)} bare photos shows a face.")
    for job in jobs:
        _landmarks_of(job)
    return jobs, rows, len(paths) - len(jobs), int((~bare).sum())


def _stem(path: str) -> str:
    # Some file systems take names that differ by case as one.
    return str(PurePosixPath(path).with_suffix("")).casefold()


def _cells_of(table: Table, name: str) -> list[str]:
    """The labels of a head as a reader takes them: the class, or the number behind it."""
    if table.heads[name].bounds is None:
        return [str(cell) for cell in table.frame[name]]
    return ["" if math.isnan(number) else f"{number:.9g}" for number in table.frame[f"{name}_value"]]


def _landmarks_of(job: _Job) -> Landmarks:
    """The landmarks of a photo's face; raises DataError naming the line where there are none, or impossible ones."""
    if job.face.landmarks is None:
        raise DataError(
            f"{job.place}: {job.path} has a box, but no landmarks ({LANDMARKS[0]} and so on); find them with fastmask "
            "faces, or a detector that gives them."
        )
    points = np.reshape(job.face.landmarks, (len(POINTS), 2)).tolist()
    try:
        return Landmarks(**{name: (x, y) for name, (x, y) in zip(POINTS, points, strict=True)}, box=job.face[:4])
    except DataError as fault:
        raise DataError(f"{job.place}: {job.path}: {fault}") from fault


def _make(job: _Job, folder: Path, looks: Sequence[str], seed: int) -> None:
    """Paint one photo's copies and write them."""
    image, landmarks = read_photo(job.photo), _landmarks_of(job)
    try:
        landmarks.check_inside(*image.shape[:2])
    except DataError as fault:
        raise DataError(f"{job.place}: {job.path}: {fault}") from fault
    counted = Counted(Stream.PAINT, seed)
    key = int.from_bytes(hashlib.sha256(job.path.encode()).digest()[:8], "big")
    for kind, copy, name in job.copies:
        painted = image
        if kind != BARE:
            number = KINDS.index(kind)
            # Dealt, not drawn, so that the copies of one face look different.
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
