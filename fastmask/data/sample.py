"""Draws people in the contest's folder format, so that anybody can try the trainer without licensed photos.

The people are cartoons, yet they pose the contest's three questions at its three levels of difficulty: the mask is
plain to see, the gender nearly so, and the age is a matter of several vague hints. As in the photos of the contest,
background and clothes belong to the person and to nothing else: whoever splits train and validation by photo rather
than by person sees scores that are too good.
"""

from __future__ import annotations

import colorsys
import csv
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from fastmask.errors import UsageError

WIDTH, HEIGHT = 384, 512
STEMS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
GENDERS = ("male", "female")
RACE = "Asian"
# Persons of the contest by (gender, age band): the sample keeps their proportions.
CONTEST_PERSONS = {(0, 0): 549, (0, 1): 410, (0, 2): 83, (1, 0): 732, (1, 1): 817, (1, 2): 109}
# First and last age of each band; nobody in the contest is older than 60.
AGES = ((18, 29), (30, 59), (60, 60))
FEWEST_PERSONS = 6
SPLITS = {"train": 0, "eval": 1}
JPEG_QUALITY = 90
# Raised whenever the drawing changes, so that a cached sample is never an older drawing.
VERSION = 1

Colour = tuple[int, int, int]
Points = np.ndarray
Random = np.random.Generator

LIGHT_HAIR: Colour = (206, 204, 208)
WHITE: Colour = (250, 250, 250)
INK: Colour = (40, 30, 32)


# --------------------------------------------------------------------------------------------------------------------
# Folder
# --------------------------------------------------------------------------------------------------------------------


def write_sample(folder: str | Path, persons: int = 120, seed: int = 0, eval_persons: int | None = None) -> Path:
    """Write `persons` drawn people for training, and others for evaluation, into `folder` in the contest's format.

    The same seed and numbers of persons give the same bytes. `folder` must be new or empty, and it appears only when
    complete. `eval_persons` is a third of `persons` unless given. `eval/answers.csv`, which a contest keeps to
    itself, holds the true classes.
    """
    folder = Path(folder).resolve()
    eval_persons = max(2, persons // 3) if eval_persons is None else eval_persons
    _check(folder, persons, seed, eval_persons)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Inside a folder of its own, because temporary folders are closed to other users and the result should not be.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "sample"
        _write_train(unfinished / "train", _people(seed, "train", persons))
        _write_eval(unfinished / "eval", _people(seed, "eval", eval_persons), seed)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    return folder


def cached_sample(persons: int = 120, seed: int = 0, log: Callable[[str], None] = lambda _: None) -> Path:
    """The sample of `persons` and `seed` in the user's cache folder, drawn when it is asked for first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "fastmask" / f"sample{VERSION}-{persons}-{seed}"
    if not folder.exists():
        log(f"Drawing {persons} persons into {folder}")
        write_sample(folder, persons, seed)
    return folder


def _check(folder: Path, persons: int, seed: int, eval_persons: int) -> None:
    if persons < FEWEST_PERSONS:
        raise UsageError(f"A sample needs at least {FEWEST_PERSONS} persons, not {persons}: ask for more.")
    if eval_persons < 1:
        raise UsageError(f"A sample needs at least 1 person for evaluation, not {eval_persons}: ask for more.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}: choose one of 0 or more.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: choose another folder, or delete it first.")


def _write_train(folder: Path, people: Iterable[Person]) -> None:
    rows = []
    for number, person in enumerate(people, start=1):
        gender = GENDERS[person.gender]
        path = f"{number:06d}_{gender}_{RACE}_{person.age}"
        rows.append((f"{number:06d}", gender, RACE, person.age, path))
        (folder / "images" / path).mkdir(parents=True)
        for stem in STEMS:
            (folder / "images" / path / f"{stem}{person.extension}").write_bytes(_photo(person, stem))
    _write_csv(folder / "train.csv", ("id", "gender", "race", "age", "path"), rows)


def _write_eval(folder: Path, people: Iterable[Person], seed: int) -> None:
    answers = []
    (folder / "images").mkdir(parents=True)
    for person in people:
        for stem in STEMS:
            name = hashlib.sha1(f"{person.key}/{stem}".encode(), usedforsecurity=False).hexdigest() + person.extension
            (folder / "images" / name).write_bytes(_photo(person, stem))
            answers.append((name, _class(stem, person)))
    np.random.default_rng([seed, SPLITS["eval"]]).shuffle(answers)
    _write_csv(folder / "info.csv", ("ImageID", "ans"), [(name, 0) for name, _ in answers])
    _write_csv(folder / "answers.csv", ("ImageID", "ans"), answers)


def _class(stem: str, person: Person) -> int:
    mask = {"incorrect_mask": 1, "normal": 2}.get(stem, 0)
    return mask * 6 + person.gender * 3 + person.band


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


# --------------------------------------------------------------------------------------------------------------------
# People
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """A drawn person: the labels, and the looks that all photos of the person share.

    Lengths are in pixels of a head drawn at scale 1, with the origin between the eyes. The hints at the age (`grey`
    to `tired`) run from 0, young, to 1, old.
    """

    key: tuple[int, int, int]
    gender: int
    age: int
    extension: str
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    shirt: Colour
    collar: str
    backdrop: np.ndarray
    fabric: Colour
    pattern: str
    half_width: float
    jaw: float
    chin: float
    brow: float
    brow_arch: float
    lashes: float
    eye: float
    eye_apart: float
    haircut: str
    fringe: str
    parting: float
    volume: float
    glasses: Colour | None
    grey: float
    wrinkles: float
    bags: float
    receding: float
    blotches: float
    tired: float

    @property
    def band(self) -> int:
        """Return the age band: 0 below 30, 1 below 60, 2 from 60."""
        return int(self.age >= 30) + int(self.age >= 60)


def _people(seed: int, split: str, count: int) -> Iterator[Person]:
    groups = [group for group, share in _shares(count).items() for _ in range(share)]
    order = np.random.default_rng([seed, SPLITS[split], count]).permutation(count)
    for index, place in enumerate(order):
        yield _person((seed, SPLITS[split], index), *groups[place])


def _shares(count: int) -> dict[tuple[int, int], int]:
    """Divide `count` persons over gender and age band like the contest, by largest remainder with a floor.

    Rare groups get two persons, if there are enough to go round, so that each can be both learnt and validated.
    """
    total = sum(CONTEST_PERSONS.values())
    shares = {group: count * size // total for group, size in CONTEST_PERSONS.items()}
    by_remainder = sorted(CONTEST_PERSONS, key=lambda group: -(count * CONTEST_PERSONS[group] % total))
    for group in by_remainder[: count - sum(shares.values())]:
        shares[group] += 1
    floor = min(2, count // len(shares))
    while min(shares.values()) < floor:
        shares[max(shares, key=shares.__getitem__)] -= 1
        shares[min(shares, key=shares.__getitem__)] += 1
    return shares


def _person(key: tuple[int, int, int], gender: int, band: int) -> Person:
    """Draw up a person, who depends on the key (seed, split, index), the gender and the age band alone."""
    rng = np.random.default_rng(key)
    first, last = AGES[band]
    age = int(rng.integers(first, last + 1))
    return Person(
        key=key,
        gender=gender,
        age=age,
        extension=_extension(key[-1]),
        **_surroundings(rng),
        **_features(rng, gender),
        **_hints_at_age(rng, gender, age),
    )


def _extension(index: int) -> str:
    if index % 20 == 5:
        return ".png"
    return ".jpeg" if index % 10 == 3 else ".jpg"


def _surroundings(rng: Random) -> dict:
    """Choose what tells persons apart and says nothing about gender or age."""
    hue = rng.uniform()
    return {
        "backdrop": _backdrop(rng),
        "shirt": _hsv(rng.uniform(), rng.uniform(0.15, 0.65), rng.uniform(0.35, 0.92)),
        "collar": str(rng.choice(["round", "v", "shirt", "hood"])),
        "fabric": _hsv(hue, rng.uniform(0.25, 0.5), rng.uniform(0.75, 0.92)),
        "pattern": str(rng.choice(["dots", "stripes", "checks"])),
        "skin": _mix((250, 220, 196), (214, 166, 130), rng.uniform()),
        "iris": _mix((46, 30, 24), (92, 58, 38), rng.uniform()),
        "glasses": _hsv(rng.uniform(), 0.35, rng.uniform(0.12, 0.4)) if rng.uniform() < 0.2 else None,
    }


def _features(rng: Random, gender: int) -> dict:
    """Choose the face and the haircut, whose hints at the gender now and then point the wrong way."""
    woman = gender == 1
    haircuts = ["crop", "bob", "long", "bun"]
    cap = str(rng.choice(haircuts, p=[0.10, 0.32, 0.46, 0.12] if woman else [0.88, 0.08, 0.03, 0.01]))
    fringe = str(rng.choice(["bangs", "side", "up"], p=[0.35, 0.45, 0.2] if woman else [0.2, 0.45, 0.35]))
    return {
        "half_width": rng.normal(76 if woman else 79, 2),
        "jaw": rng.normal(1.95 if woman else 2.4, 0.12),
        "chin": rng.normal(114 if woman else 119, 2.5),
        "brow": max(3.0, rng.normal(4.6 if woman else 8.2, 1.1)),
        "brow_arch": rng.normal(7 if woman else 3.5, 1.2),
        "lashes": float(np.clip(rng.normal(0.85 if woman else 0.1, 0.2), 0, 1)),
        "eye": rng.normal(1.06 if woman else 0.97, 0.05),
        "eye_apart": rng.normal(34, 1.5),
        "lips": _mix((206, 84, 92) if woman else (190, 112, 100), (190, 112, 100), rng.uniform(0, 0.6)),
        "haircut": cap,
        "fringe": fringe,
        "parting": rng.choice([-1, 1]) * rng.uniform(0.6, 1.2),
        "volume": rng.uniform(8, 20),
        "hair": _mix((30, 26, 30), (104, 66, 44), rng.uniform() ** 1.8),
    }


def _hints_at_age(rng: Random, gender: int, age: int) -> dict:
    """Turn the age in years into what shows of it, with noise common to all hints and noise of each.

    The jump at 60 makes the oldest band learnable: it holds one age only, which no hint that changes smoothly could
    tell from 59.
    """
    apparent = age + 8 * (age >= 60) + rng.normal(0, 3)

    def hint(middle: float, spread: float, noise: float) -> float:
        return float(1 / (1 + np.exp((middle - apparent - rng.normal(0, noise)) / spread)))

    dyed = rng.uniform() < 0.1
    return {
        "grey": hint(56, 4.5, 3) * (0.2 if dyed else 1),
        "wrinkles": hint(42, 7, 3),
        "bags": hint(35, 6, 3),
        "receding": hint(52, 7, 5) * (0.3 if gender else 1),
        "blotches": hint(54, 5, 4),
        "tired": hint(34, 6, 3),
    }


def _backdrop(rng: Random) -> np.ndarray:
    """Paint the wall behind a person: soft colours, with a pattern on half of the walls."""
    hue, value = rng.uniform(), rng.uniform(0.7, 0.95)
    top = _hsv(hue, rng.uniform(0.08, 0.3), value)
    bottom = _hsv(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.08, 0.3), value * rng.uniform(0.75, 1))
    wall = cv2.resize(np.array([[top], [bottom]], np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    kind, step = rng.choice(["plain", "plain", "panels", "dots"]), int(rng.integers(48, 90))
    lighter = _mix(top, WHITE, 0.3)
    if kind == "panels":
        for x in range(int(rng.integers(0, step)), WIDTH, step):
            cv2.line(wall, (x, 0), (x, HEIGHT), lighter, int(step / 5), cv2.LINE_AA)
    if kind == "dots":
        for row, y in enumerate(range(0, HEIGHT, step)):
            for x in range(row % 2 * step // 2, WIDTH + step, step):
                cv2.circle(wall, (x, y), step // 6, lighter, -1, cv2.LINE_AA)
    return cv2.blur(wall, (9, 9))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * float(share)) for a, b in zip(start, end, strict=True))
    return red, green, blue


# --------------------------------------------------------------------------------------------------------------------
# Photos
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """What differs between two photos of a person."""

    x: float
    y: float
    scale: float
    tilt: float
    brightness: float
    sidelight: float
    smile: float
    mouth_open: float
    eyelids: float
    gaze: float
    brows_up: float
    mask_offset: float
    grain: tuple[int, int]


def _photo(person: Person, stem: str) -> bytes:
    """Take the photo of a person that goes by the name of `stem`, as the bytes of an image file."""
    rng = np.random.default_rng([*person.key, STEMS.index(stem)])
    pixels = _draw(person, stem, _pose(rng), rng)
    return _encode(pixels, person.extension)


def _encode(pixels: np.ndarray, extension: str) -> bytes:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if extension == ".png" else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, code = cv2.imencode(extension, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RuntimeError(f"OpenCV cannot write {extension} images.")
    return code.tobytes()


def _pose(rng: Random) -> Pose:
    return Pose(
        x=WIDTH / 2 + rng.uniform(-10, 10),
        y=246 + rng.uniform(-10, 10),
        scale=rng.uniform(0.96, 1.04),
        tilt=rng.normal(0, 0.03),
        brightness=rng.uniform(0.9, 1.07),
        sidelight=rng.uniform(-0.12, 0.12),
        smile=rng.uniform(1, 9),
        mouth_open=max(0.0, rng.uniform(-6, 7)),
        eyelids=rng.uniform(0.9, 1.06),
        gaze=rng.uniform(-2.5, 2.5),
        brows_up=rng.uniform(-2, 3),
        mask_offset=rng.uniform(-3, 3),
        grain=(int(rng.integers(1, GRAIN_MARGIN)), int(rng.integers(1, GRAIN_MARGIN))),
    )


def _draw(person: Person, stem: str, pose: Pose, rng: Random) -> np.ndarray:
    pixels = person.backdrop.copy()
    head = Canvas(pixels, pose.x, pose.y, pose.scale, pose.tilt)
    body = Canvas(pixels, WIDTH / 2 + (pose.x - WIDTH / 2) * 0.6, pose.y, pose.scale, 0)
    _draw_hair_behind(head, person)
    _draw_body(body, person)
    _draw_face(head, person)
    _draw_age(head, person)
    for side in (-1, 1):
        _draw_eye(head, person, pose, side)
    _draw_nose(head, person)
    _draw_mouth(head, person, pose)
    if stem != "normal":
        _draw_mask(head, person, stem, pose, rng)
    _draw_hair(head, person)
    if person.glasses:
        _draw_glasses(head, person)
    return _expose(pixels, pose)


GRAIN_MARGIN = 64
# The byte that stands for a gain of 1: the brightest pose has a gain of 1.2.
GAIN = 210


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    # Drawn once, then shifted from photo to photo: fresh noise would take longer than all the rest of a photo. Only
    # positive, to be added at one shift and subtracted at another, since bytes are several times faster than signed.
    shape = (HEIGHT + GRAIN_MARGIN, WIDTH + GRAIN_MARGIN, 3)
    return abs(np.random.default_rng(0).normal(0, 4, shape)).round().astype(np.uint8)


def _expose(pixels: np.ndarray, pose: Pose) -> np.ndarray:
    """Light the scene, a little from one side, and add the sensor's noise."""
    light = pose.brightness * (1 + pose.sidelight * np.linspace(-1, 1, WIDTH))
    # As fine as bytes allow, because coarser steps show as stripes on the wall.
    row = np.repeat((light * GAIN).round().astype(np.uint8)[None, :, None], 3, axis=2)
    gain = cv2.resize(row, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    lit = cv2.multiply(pixels, gain, scale=1 / GAIN)
    (y, x), grain = pose.grain, _grain()
    return cv2.subtract(cv2.add(lit, grain[y:][:HEIGHT, :WIDTH]), grain[:, x:][:HEIGHT, :WIDTH])


class Canvas:
    """Pixels to draw on in the coordinates of a head that is placed, scaled and tilted."""

    BITS = 4

    def __init__(self, pixels: np.ndarray, x: float, y: float, scale: float, tilt: float):
        """Place the origin of all drawing at (x, y) of `pixels`."""
        self.pixels, self.scale = pixels, scale
        self.offset = np.array([x, y])
        cos, sin = scale * np.cos(tilt), scale * np.sin(tilt)
        self.matrix = np.array([[cos, sin], [-sin, cos]])

    def place(self, points: Points) -> np.ndarray:
        """Return points of the head as points of the image, in sixteenths of a pixel."""
        return np.rint((points @ self.matrix + self.offset) * (1 << self.BITS)).astype(np.int32)

    def fill(self, points: Points, colour: Colour) -> None:
        """Fill a polygon."""
        cv2.fillPoly(self.pixels, [self.place(points)], colour, cv2.LINE_AA, self.BITS)

    def lines(self, lines: Sequence[Points], colour: Colour, width: float) -> None:
        """Draw open lines of one width."""
        placed = [self.place(line) for line in lines]
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.pixels, placed, False, colour, thickness, cv2.LINE_AA, self.BITS)

    def tint(self, shapes: Sequence[Points], colour: Colour, opacity: float, blur: float, width: float = 0) -> None:
        """Lay a soft-edged, see-through colour over polygons, or over lines if there is a `width`."""
        placed = [self.place(points) for points in shapes]
        every, margin = np.concatenate(placed) >> self.BITS, int(3 * blur + width) + 2
        low, high = np.maximum(every.min(0) - margin, 0), every.max(0) + margin + 1
        area = self.pixels[low[1] : high[1], low[0] : high[0]]
        if opacity <= 0.01 or not area.size:
            return
        moved = [points - (low << self.BITS) for points in placed]
        self._blend(area, colour, self._cover(area.shape[:2], moved, blur, width), opacity)

    def _cover(self, shape: tuple[int, int], placed: Sequence[np.ndarray], blur: float, width: float) -> np.ndarray:
        cover = np.zeros(shape, np.uint8)
        if width:
            cv2.polylines(cover, placed, False, 255, max(1, round(width * self.scale)), cv2.LINE_AA, self.BITS)
        else:
            cv2.fillPoly(cover, placed, 255, cv2.LINE_AA, self.BITS)
        # Two box filters look like a Gaussian one and cost the same however wide they are.
        size = (2 * round(1.2 * blur) + 1,) * 2
        return cv2.blur(cv2.blur(cover, size), size)

    @staticmethod
    def _blend(area: np.ndarray, colour: Colour, cover: np.ndarray, opacity: float) -> None:
        weight = cv2.merge([cv2.convertScaleAbs(cover, alpha=opacity)] * 3)
        paint = cv2.multiply(weight, (*colour, 0), scale=1 / 255)
        cv2.add(cv2.multiply(area, cv2.bitwise_not(weight), scale=1 / 255), paint, dst=area)


TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)], axis=1)


def _points(*points: tuple[float, float]) -> Points:
    return np.array(points, float)


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> Points:
    return CIRCLE * (half_width, half_height) + (x, y)


def _arc(x0: float, y0: float, x1: float, y1: float, sag: float, count: int = 9) -> Points:
    """Return a parabola between two points that hangs lower than the straight line by `sag` in its middle."""
    t = _steps(count)
    return np.stack([x0 + (x1 - x0) * t, y0 + (y1 - y0) * t + 4 * sag * t * (1 - t)], axis=1)


@lru_cache
def _steps(count: int) -> np.ndarray:
    return np.linspace(0, 1, count)


def _shift(points: Points, down: float) -> Points:
    return points + np.array([0, down])


def _mirrored(points: Points) -> Points:
    """Return a closed outline from its right half, which runs from top to bottom."""
    return np.concatenate([points, points[::-1] * (-1, 1)])


def _smooth(points: Points, count: int = 8) -> Points:
    """Return a Catmull-Rom curve through the points."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = _steps(count + 1)[:-1, None]
    a, b, c, d = (padded[i : len(points) - 1 + i, None] for i in range(4))
    curve = b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2) + t**3 * (1.5 * (b - c) + (d - a) / 2)
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


SKULL_TOP = 112


def _bow(half_width: float, height: float, power: float, count: int = 25) -> Points:
    """Return half of a superellipse from its right end over (0, height) to its left end."""
    angle = np.pi * _steps(count)
    cos, sin = np.cos(angle), np.sin(angle).clip(0)
    return np.stack([half_width * np.sign(cos) * abs(cos) ** (2 / power), height * sin ** (2 / power)], axis=1)


def _half_width_at(person: Person, y: Points | float) -> Points:
    """Return half of the width of the face at a height below the eyes."""
    share = np.clip(np.asarray(y, float) / person.chin, 0, 1)
    return person.half_width * (1 - share**person.jaw) ** (1 / person.jaw)


# --------------------------------------------------------------------------------------------------------------------
# Body and face
# --------------------------------------------------------------------------------------------------------------------


def _draw_body(canvas: Canvas, person: Person) -> None:
    wide = 1.0 if person.gender else 1.1
    shade, light = _mix(person.shirt, INK, 0.25), _mix(person.shirt, WHITE, 0.35)
    shoulder = _smooth(_points((36, 138), (62, 158), (122 * wide, 178), (156 * wide, 212), (172 * wide, 340)))
    neck = _points((40 * wide, 60), (38 * wide, 130), (41 * wide, 164), (0, 196))
    canvas.fill(_mirrored(shoulder), person.shirt)
    for side in (-1, 1):
        canvas.lines([_arc(side * 112, 246, side * 118, 340, 0)], shade, 3)
    if person.collar == "hood":
        canvas.fill(_mirrored(_smooth(_points((52, 134), (78, 158), (64, 196), (0, 226)))), shade)
    canvas.fill(_mirrored(neck), _mix(person.skin, (190, 120, 96), 0.16))
    canvas.tint([_ellipse(0, 98, 48, 44)], (130, 70, 56), 0.38, blur=7)
    _draw_collar(canvas, person, shade, light)


def _draw_collar(canvas: Canvas, person: Person, shade: Colour, light: Colour) -> None:
    if person.collar == "round":
        canvas.fill(_mirrored(_smooth(_points((56, 150), (44, 176), (0, 196)))[8:]), _mix(person.skin, INK, 0.08))
        canvas.lines([_arc(-60, 150, 60, 150, 46, 17)], shade, 9)
    elif person.collar == "v":
        canvas.fill(_points((-52, 158), (52, 158), (0, 222)), _mix(person.skin, INK, 0.06))
        canvas.lines([_points((-58, 150), (0, 224), (58, 150))], shade, 8)
    elif person.collar == "shirt":
        canvas.fill(_points((-44, 164), (44, 164), (0, 214)), _mix(person.skin, INK, 0.06))
        for side in (-1, 1):
            canvas.fill(_points((48, 140), (66, 158), (50, 206), (0, 206)) * (side, 1), light)
        canvas.lines([_points((0, 206), (0, 340))], shade, 2)
    else:
        canvas.lines([_arc(-58, 158, 58, 158, 50, 17)], light, 5)
        canvas.lines([_points((-22, 206), (-24, 262)), _points((22, 206), (24, 258))], WHITE, 4)


def _draw_face(canvas: Canvas, person: Person) -> None:
    width, shade = person.half_width, _mix(person.skin, (196, 110, 84), 0.35)
    for side in () if person.haircut in HAIR_LENGTH else (-1, 1):
        canvas.fill(_ellipse(side * (width + 4), 18, 13, 23), person.skin)
        canvas.fill(_ellipse(side * (width + 6), 18, 6, 14), shade)
    outline = np.concatenate([_bow(width, -SKULL_TOP, 2.2), _bow(width, person.chin, person.jaw)[::-1]])
    canvas.fill(outline, person.skin)
    cheeks = [_ellipse(side * 46, 50, 17, 12) for side in (-1, 1)]
    canvas.tint(cheeks, (236, 112, 108), 0.3 * (1 - 0.75 * person.tired), blur=7)
    rim = _bow(width - 3, person.chin - 3, person.jaw)
    canvas.tint([rim], shade, 0.55, blur=4, width=7)


def _draw_eye(canvas: Canvas, person: Person, pose: Pose, side: int) -> None:
    x = side * person.eye_apart
    wide, high = 16.5 * person.eye, 11.5 * person.eye * pose.eyelids * (1 - 0.38 * person.tired)
    look = x + pose.gaze
    canvas.fill(_ellipse(x, 0, wide, high), WHITE)
    canvas.fill(_ellipse(look, 0, min(9.0, high), min(9.6, high)), person.iris)
    canvas.fill(_ellipse(look, 0, 4.6, min(4.8, high)), (16, 12, 12))
    canvas.fill(_ellipse(look + 3, -3.2, 2.7, 2.7), WHITE)
    lid = _arc(x - wide - 1, 1, x + wide + 1, 1, -high - 1.5)
    canvas.lines([lid], INK, 2.4 + 1.8 * person.lashes)
    canvas.lines([_shift(lid, -5.5)], _mix(person.skin, (130, 74, 60), 0.5), 1.5)
    if person.lashes > 0.4:
        corner = x + side * wide
        canvas.lines([_points((corner - side * 2, -3), (corner + side * 6, -9))], INK, 2.6)
    _draw_brow(canvas, person, x, -27 - pose.brows_up + 3 * person.tired, side)


def _draw_brow(canvas: Canvas, person: Person, x: float, y: float, side: int) -> None:
    colour = _mix(_mix(person.hair, INK, 0.3), LIGHT_HAIR, 0.6 * person.grey)
    top = _arc(x - side * 19, y + 2, x + side * 21, y + 2, -person.brow_arch)
    # Thick next to the nose and pointed outside, which is what makes it a brow and no bar.
    taper = np.linspace(1, 0.25, len(top))[:, None] * (0, person.brow)
    canvas.fill(np.concatenate([top - taper / 2, (top + taper / 2)[::-1]]), colour)


def _draw_nose(canvas: Canvas, person: Person) -> None:
    shade = _mix(person.skin, (150, 78, 58), 0.55)
    canvas.tint([_ellipse(0, 36, 12, 9)], (214, 120, 96), 0.35, blur=4)
    canvas.lines([_smooth(_points((-11, 38), (-7, 43), (0, 45), (7, 43), (11, 38)), 4)], shade, 2.6)
    canvas.tint([_points((7, 10), (10, 30))], shade, 0.5, blur=2, width=3)


def _draw_mouth(canvas: Canvas, person: Person, pose: Pose) -> None:
    y, wide, smile = 72.0, 22 + pose.smile * 0.6, pose.smile
    is_open = pose.mouth_open > 1
    upper = _arc(-wide, y, wide, y, smile * 0.4 if is_open else smile)
    if is_open:
        lower = _arc(-wide, y, wide, y, smile + pose.mouth_open * 2)
        teeth = np.concatenate([_arc(4 - wide, y + 1, wide - 4, y + 1, smile * 0.4 + 1), _shift(lower[2:-2][::-1], -5)])
        canvas.fill(np.concatenate([upper, lower[::-1]]), (120, 40, 44))
        canvas.fill(teeth, WHITE)
        canvas.lines([lower], person.lips, 3.4)
    canvas.lines([upper], person.lips, 4.4)
    canvas.tint([_arc(-10, y + 17, 10, y + 17, 2)], _mix(person.skin, (150, 78, 58), 0.55), 0.35, blur=2, width=3)


def _draw_age(canvas: Canvas, person: Person) -> None:
    """Draw what the years leave on a face, the more the stronger each hint."""
    line = _mix(person.skin, (112, 58, 42), 0.8)
    for number in range(3):
        depth = np.clip(person.wrinkles * 3.2 - number * 0.75, 0, 1)
        half = 40 - 5 * number
        crease = _mix(person.skin, line, 0.7 * depth)
        canvas.lines([_arc(-half, -46 - 11 * number, half, -46 - 11 * number, -4)], crease, 2.4)
    for side in (-1, 1):
        x = side * person.eye_apart
        canvas.tint([_arc(x - 16, 10, x + 16, 10, 8)], (116, 66, 84), 0.7 * person.bags, 1.3, 4.5)
        feet = [_points((x + side * 21, rise), (x + side * 32, rise * 2.2)) for rise in (-4, 1, 6)]
        canvas.lines(feet, _mix(person.skin, line, 0.7 * person.wrinkles), 2)
        fold = _smooth(_points((17 * side, 38), (30 * side, 54), (34 * side, 76)))
        canvas.lines([fold], _mix(person.skin, line, 0.6 * person.wrinkles), 2.4)
    _draw_blotches(canvas, person)


def _draw_blotches(canvas: Canvas, person: Person) -> None:
    if person.blotches < 0.02:
        return
    rng = np.random.default_rng([*person.key, len(STEMS)])
    places = ((-1, -40, 24), (1, -38, 26), (-1, 10, 10), (1, 14, 10), (-1, -62, 30), (1, -60, 18))
    spots = []
    for side, y, spread in places:
        x = side * (person.half_width - 24) + rng.uniform(-10, 10)
        spots.append(_ellipse(x, y + rng.uniform(-spread, spread) / 3, rng.uniform(3, 6.5), rng.uniform(2.5, 5)))
    canvas.tint(spots, (134, 82, 52), 0.75 * person.blotches, blur=1.5)


def _draw_glasses(canvas: Canvas, person: Person) -> None:
    x = person.eye_apart
    colour = person.glasses or INK
    rims = [_ellipse(side * x, 3, 25, 21) for side in (-1, 1)]
    canvas.lines([np.concatenate([rim, rim[:1]]) for rim in rims], colour, 3)
    canvas.lines([_arc(25 - x, 0, x - 25, 0, -4, 5)], colour, 3)
    canvas.lines([_points((side * (x + 24), -2), (side * (person.half_width + 2), -6)) for side in (-1, 1)], colour, 3)


# --------------------------------------------------------------------------------------------------------------------
# Hair
# --------------------------------------------------------------------------------------------------------------------

# How far down the hair reaches, for the haircuts that cover the ears.
HAIR_LENGTH = {"bob": 96.0, "long": 178.0}


def _hair_colour(person: Person) -> Colour:
    return _mix(person.hair, LIGHT_HAIR, 0.9 * person.grey)


def _draw_hair_behind(canvas: Canvas, person: Person) -> None:
    colour = _mix(_hair_colour(person), INK, 0.35)
    if person.haircut == "bun":
        canvas.fill(_ellipse(0, -SKULL_TOP - 26, 36, 30), _hair_colour(person))
        canvas.lines([_arc(-30, -SKULL_TOP - 18, 30, -SKULL_TOP - 18, 12)], colour, 3)
    if person.haircut in HAIR_LENGTH:
        wide, low = person.half_width, HAIR_LENGTH[person.haircut]
        top, tip = ((0, -100), (wide, -60), (wide + 16, 10)), ((wide + 17, low * 0.7), (wide + 6, low), (0, low + 6))
        canvas.fill(_mirrored(_smooth(_points(*top, *tip))), colour)


def _draw_hair(canvas: Canvas, person: Person) -> None:
    colour = _hair_colour(person)
    outer, inner = _hair_edges(person)
    if person.haircut in HAIR_LENGTH:
        for side in (-1, 1):
            canvas.fill(_lock(person, side), colour)
    canvas.tint([_shift(inner[4:-4], 4)], (120, 66, 48), 0.3, blur=3, width=6)
    canvas.fill(np.concatenate([outer, inner[::-1]]), colour)
    _draw_strands(canvas, person, outer, inner)


def _hair_edges(person: Person) -> tuple[Points, Points]:
    """Return the hair's edge against the wall and its edge on the forehead, point by point from right to left."""
    wide = person.half_width
    outer = _bow(wide + 7, -SKULL_TOP - person.volume * (1 - 0.4 * person.receding), 2.3, 41)
    outer[[0, -1], 1] = 12 if person.haircut == "crop" else 30
    u = np.linspace(1, -1, 41)
    crown = {"bangs": -50, "side": -64, "up": -76}[person.fringe] - 20 * person.receding
    y = crown + (6 - crown) * abs(u) ** 6
    if person.fringe == "side":
        y += person.parting * 16 * u * (1 - u**4)
    if person.fringe == "bangs":
        y += 5 * abs(np.sin(u * 9)) * (1 - u**4)
    y -= 26 * person.receding * np.exp(-(((abs(u) - 0.6) / 0.22) ** 2))
    inner = np.stack([u * (wide - 2), np.maximum(y, outer[:, 1] + 7)], axis=1)
    return outer, inner


def _lock(person: Person, side: int) -> Points:
    wide, low = person.half_width, HAIR_LENGTH[person.haircut]
    outside = _points((wide - 8, -70), (wide + 8, -20), (wide + 19, 40), (wide + 18, low * 0.75), (wide + 2, low))
    inside = _points((wide - 6, low * 0.8), (wide - 4, 50), (wide - 7, 10), (wide - 14, -50))
    return np.concatenate([_smooth(outside), _smooth(inside)]) * (side, 1)


def _draw_strands(canvas: Canvas, person: Person, outer: Points, inner: Points) -> None:
    """Draw single hairs, of which those that are grey already stand out before the whole head turns."""
    colour = _hair_colour(person)
    rng = np.random.default_rng([*person.key, len(STEMS) + 1])
    starts = rng.permutation(np.arange(3, len(outer) - 3))
    along = np.array([0.1, 0.3, 0.5, 0.7, 0.87])[:, None]
    bent = inner[starts, None] * (1 - along) + outer[starts, None] * along
    bent[..., 0] += np.array([0, 2, 3, 2, 0]) * person.parting
    canvas.lines(bent[:9], _mix(colour, WHITE, 0.16), 2)
    canvas.lines(bent[9:16], _mix(colour, INK, 0.35), 2)
    grey = bent[16 : 16 + round(18 * np.sqrt(person.grey))]
    if len(grey):
        canvas.lines(grey, _mix(colour, LIGHT_HAIR, 0.7), 2)


# --------------------------------------------------------------------------------------------------------------------
# Mask
# --------------------------------------------------------------------------------------------------------------------

FABRICS: dict[str, Colour] = {
    "mask1": (246, 247, 249),
    "mask2": (160, 206, 236),
    "mask3": (44, 44, 50),
    "mask5": (150, 153, 160),
}
# Height of the upper edge in the middle of the face; the tip of the nose is at 45, the mouth at 72.
EDGE_WORN, EDGE_BELOW_NOSE, EDGE_BELOW_MOUTH = 14.0, 55.0, 91.0


def _draw_mask(canvas: Canvas, person: Person, stem: str, pose: Pose, rng: Random) -> None:
    look, edge = stem, EDGE_WORN
    if stem == "incorrect_mask":
        look = str(rng.choice(STEMS[:5]))
        edge = EDGE_BELOW_NOSE if rng.uniform() < 0.6 else EDGE_BELOW_MOUTH
    edge += pose.mask_offset
    colour = FABRICS.get(look, person.fabric)
    outline = _mask_outline(person, edge)
    _draw_loops(canvas, person, outline, _mix(colour, WHITE, 0.4))
    canvas.tint([_shift(outline, 3)], (110, 60, 50), 0.4, blur=3)
    canvas.fill(outline, colour)
    if look == "mask4":
        _draw_pattern(canvas, person, edge, _mix(colour, WHITE, 0.65))
    _draw_folds(canvas, person, outline, edge, colour)


def _mask_outline(person: Person, edge: float) -> Points:
    """Return the mask's outline: the sides follow the face, the lower edge lies below the chin."""
    jaw = _bow(person.half_width + 2, person.chin + 8, person.jaw + 0.15, 49)[:25]
    side = jaw[jaw[:, 1] > edge + 12]
    top = np.concatenate([_points((0, edge), (22, edge + 2)), side[:1]])
    return _mirrored(np.concatenate([_smooth(top), side[1:]]))


def _draw_loops(canvas: Canvas, person: Person, outline: Points, colour: Colour) -> None:
    corner = outline[16]
    for side in (-1, 1):
        ear, y = side * (person.half_width + 10), 0.5 * corner[1] + 50
        upper = _points((side * corner[0], corner[1] + 4), (ear, 6))
        lower = _points((side * _half_width_at(person, y), y), (ear + side * 2, 30))
        canvas.lines([upper, lower], colour, 2.4)


def _draw_pattern(canvas: Canvas, person: Person, edge: float, colour: Colour) -> None:
    for row, y in enumerate(np.arange(edge + 20, person.chin - 2, 15)):
        wide = float(_half_width_at(person, y)) - 5
        if person.pattern == "dots":
            for x in np.arange(-60 + row % 2 * 10, 61, 20):
                if abs(x) < wide - 4:
                    canvas.fill(_ellipse(x, y, 3.6, 3.6), colour)
        else:
            canvas.lines([_arc(-wide, y, wide, y, 4)], colour, 4)
    if person.pattern == "checks":
        columns = [x for x in range(-60, 61, 20) if abs(x) < person.half_width - 10]
        lows = [min(person.chin, 1.15 * person.chin * (1 - abs(x) / 130)) for x in columns]
        canvas.lines([_points((x, edge + 14), (x * 0.9, low)) for x, low in zip(columns, lows, strict=True)], colour, 4)


def _draw_folds(canvas: Canvas, person: Person, outline: Points, edge: float, colour: Colour) -> None:
    dark, light = _mix(colour, INK, 0.17), _mix(colour, WHITE, 0.2)
    folds = []
    for y in np.linspace(edge, person.chin, 5)[1:-1]:
        wide = float(_half_width_at(person, y)) - 6
        folds.append(_arc(-wide, y, wide, y, 5))
    canvas.lines([_shift(fold, 2) for fold in folds], light, 2)
    canvas.lines(folds, dark, 2)
    rim = _shift(outline[:17], 4)
    canvas.lines([rim, rim * (-1, 1)], dark, 2)
