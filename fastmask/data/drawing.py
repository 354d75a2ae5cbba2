"""Drawing: cartoons of people with the contest's three heads and their difficulties.

The mask is obvious, the gender nearly so, and the age shows in several vague hints. As in the contest, background and
clothes belong to the person, so a split by photo instead of by person gives scores that are too good.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 384, 512
STEMS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
# first and last age of each band, as in the contest
AGES = ((18, 29), (30, 59), (60, 60))
JPEG_QUALITY = 90

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]
Placed = NDArray[np.int32]
Random = np.random.Generator

LIGHT_HAIR: Colour = (206, 204, 208)
WHITE: Colour = (250, 250, 250)
INK: Colour = (40, 30, 32)
FABRICS: dict[str, Colour] = {
    "mask1": (246, 247, 249),
    "mask2": (160, 206, 236),
    "mask3": (44, 44, 50),
    "mask5": (150, 153, 160),
}
SKULL_TOP = -112
# heights of a mask's upper edge in the middle of the face, where the tip of the nose is at 45 and the mouth at 72
EDGE_WORN, EDGE_BELOW_NOSE, EDGE_BELOW_MOUTH = 14.0, 55.0, 91.0
# lower end of the hair, for the haircuts that cover the ears
HAIR_LENGTH = {"bob": 96.0, "long": 178.0}
STRANDS = 41
GRAIN_MARGIN = 64
# the byte for a gain of 1; the brightest pose has a gain of 1.2
GAIN = 210


class Person:
    """The labels of a person, and the appearance that all photos of the person share.

    It depends only on the key, the gender (1 is a woman) and the age band (an index of AGES). Lengths are in pixels of
    a head drawn at scale 1, with the origin between the eyes. The hints at the age are from 0 to 1, old.
    """

    def __init__(self, key: tuple[int, int, int], gender: int, band: int) -> None:
        rng = np.random.default_rng(key)
        self.key, self.gender, self.band = key, gender, band
        self.age = int(rng.integers(*AGES[band], endpoint=True))
        self.extension = {5: ".png", 3: ".jpeg", 13: ".jpeg"}.get(key[-1] % 20, ".jpg")
        self._choose_surroundings(rng)
        self._choose_face(rng, woman=gender == 1)
        self._choose_hair(rng, woman=gender == 1)
        self._show_age(rng)

    def _choose_surroundings(self, rng: Random) -> None:
        """Choose what differs between persons whatever their gender and age."""
        self.backdrop = _backdrop(rng)
        self.shirt = _hsv(rng.uniform(), rng.uniform(0.15, 0.65), rng.uniform(0.35, 0.92))
        self.collar = rng.choice(["round", "v", "shirt", "hood"])
        self.fabric = _hsv(rng.uniform(), rng.uniform(0.25, 0.5), rng.uniform(0.75, 0.92))
        self.pattern = rng.choice(["dots", "stripes", "bricks"])
        self.skin = _mix((250, 220, 196), (214, 166, 130), rng.uniform())
        self.iris = _mix((46, 30, 24), (92, 58, 38), rng.uniform())
        self.glasses = _hsv(rng.uniform(), 0.35, rng.uniform(0.12, 0.4)) if rng.uniform() < 0.2 else None

    def _choose_face(self, rng: Random, woman: bool) -> None:
        self.half_width = rng.normal(76 if woman else 79, 2)
        self.jaw = rng.normal(1.95 if woman else 2.4, 0.12)
        self.chin = rng.normal(114 if woman else 119, 2.5)
        self.brow = max(3.0, rng.normal(4.6 if woman else 8.2, 1.1))
        self.brow_arch = rng.normal(7 if woman else 3.5, 1.2)
        self.lashes = min(max(rng.normal(0.85 if woman else 0.1, 0.2), 0), 1)
        self.eye = rng.normal(1.06 if woman else 0.97, 0.05)
        self.eye_apart = rng.normal(34, 1.5)
        self.lips = _mix((206, 84, 92) if woman else (190, 112, 100), (190, 112, 100), rng.uniform(0, 0.6))

    def _choose_hair(self, rng: Random, woman: bool) -> None:
        """Choose the hair, which is sometimes a wrong hint at the gender."""
        cuts = [0.10, 0.32, 0.46, 0.12] if woman else [0.88, 0.08, 0.03, 0.01]
        self.haircut = rng.choice(["crop", "bob", "long", "bun"], p=cuts)
        self.fringe = rng.choice(["bangs", "side", "up"], p=[0.35, 0.45, 0.2] if woman else [0.2, 0.45, 0.35])
        self.parting = rng.choice([-1, 1]) * rng.uniform(0.6, 1.2)
        self.volume = rng.uniform(8, 20)
        self.natural_hair = _mix((30, 26, 30), (104, 66, 44), rng.uniform() ** 1.8)
        self.strands = rng.permutation(np.arange(3, STRANDS - 3))

    def _show_age(self, rng: Random) -> None:
        """Turn the age into hints, with a noise that they share and a noise of each.

        The jump at 60 makes the oldest band learnable: it is a single age, which smooth hints could not separate from
        59.
        """
        apparent = self.age + 8 * (self.age >= 60) + rng.normal(0, 3)

        def hint(middle: float, spread: float, noise: float) -> float:
            return float(1 / (1 + np.exp((middle - apparent - rng.normal(0, noise)) / spread)))

        self.grey = hint(56, 4.5, 3) * (0.2 if rng.uniform() < 0.1 else 1)
        self.wrinkles = hint(42, 7, 3)
        self.bags = hint(35, 6, 3)
        self.receding = hint(52, 7, 5) * (0.3 if self.gender else 1)
        self.blotches = hint(54, 5, 4)
        self.tired = hint(34, 6, 3)
        self.spots = rng.uniform((-10, -8, 3, 2.5), (10, 8, 6.5, 5), (6, 4))
        self.hair = _mix(self.natural_hair, LIGHT_HAIR, 0.9 * self.grey)


class Pose:
    """The random differences between photos of a person."""

    def __init__(self, rng: Random) -> None:
        self.x, self.y = WIDTH / 2 + rng.uniform(-10, 10), 246 + rng.uniform(-10, 10)
        self.scale = rng.uniform(0.96, 1.04)
        self.tilt = rng.normal(0, 0.03)
        self.brightness = rng.uniform(0.9, 1.07)
        self.sidelight = rng.uniform(-0.12, 0.12)
        self.smile = rng.uniform(1, 9)
        self.mouth_open = rng.uniform(-6, 7)
        self.eyelids = rng.uniform(0.9, 1.06)
        self.gaze = rng.uniform(-2.5, 2.5)
        self.brows_up = rng.uniform(-2, 3)
        self.mask_offset = rng.uniform(-3, 3)
        self.incorrect_fabric = rng.choice(STEMS[:5])
        self.incorrect_edge = EDGE_BELOW_NOSE if rng.uniform() < 0.6 else EDGE_BELOW_MOUTH
        self.grain = rng.integers(1, GRAIN_MARGIN, 2)


class Canvas:
    """Pixels to draw on in the coordinates of a head that is placed, scaled and tilted."""

    BITS = 4

    def __init__(self, pixels: Pixels, x: float, y: float, scale: float, tilt: float) -> None:
        self.pixels, self.scale = pixels, scale
        cos, sin = scale * np.cos(tilt), scale * np.sin(tilt)
        self.matrix = np.array([[cos, -sin, x], [sin, cos, y]]) * (1 << self.BITS)

    def place(self, points: Points) -> Placed:
        """Points of the head -> points of the image, in sixteenths of a pixel."""
        return cv2.transform(points[None], self.matrix)[0].astype(np.int32)

    def fill(self, colour: Colour, *polygons: Points) -> None:
        """Fill polygons that do not overlap."""
        cv2.fillPoly(self.pixels, [self.place(points) for points in polygons], colour, cv2.LINE_AA, self.BITS)

    def lines(self, colour: Colour, width: float, *lines: Points) -> None:
        """Draw open lines of one width."""
        self._stroke(self.pixels, [self.place(line) for line in lines], colour, width)

    def tint(self, colour: Colour, opacity: float, blur: float, *shapes: Points, width: float = 0) -> None:
        """Draw a soft, transparent colour over polygons, or over lines if there is a `width`."""
        placed, margin = [self.place(points) for points in shapes], int(3 * blur + width) + 2
        every = np.concatenate(placed) >> self.BITS
        low, high = (every.min(0) - margin).clip(0), every.max(0) + margin
        area = self.pixels[low[1] : high[1], low[0] : high[0]]
        cover = np.zeros(area.shape[:2], np.uint8)
        moved = [points - (low << self.BITS) for points in placed]
        if width:
            self._stroke(cover, moved, (255 * opacity,), width)
        else:
            cv2.fillPoly(cover, moved, (255 * opacity,), cv2.LINE_AA, self.BITS)
        # two box filters look like a Gaussian filter, and their cost does not depend on their width
        size = (2 * round(1.2 * blur) + 1,) * 2
        _blend(area, colour, cv2.blur(cv2.blur(cover, size), size))

    def _stroke(self, pixels: Pixels, lines: list[Placed], colour: tuple[float, ...], width: float) -> None:
        cv2.polylines(pixels, lines, False, colour, max(1, round(width * self.scale)), cv2.LINE_AA, self.BITS)


def take_photo(person: Person, stem: str) -> bytes:
    """The photo `stem` of a person as the bytes of a file with the person's extension, always the same bytes."""
    pose = Pose(np.random.default_rng([*person.key, STEMS.index(stem)]))
    pixels = cv2.cvtColor(draw(person, stem, pose), cv2.COLOR_RGB2BGR)
    png = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    options = png if person.extension == ".png" else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, code = cv2.imencode(person.extension, pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV cannot write {person.extension} images.")
    return bytes(code)


def draw(person: Person, stem: str, pose: Pose) -> Pixels:
    """Draw a person in a pose with the mask of `stem`, as (height, width, 3) RGB."""
    pixels = person.backdrop.copy()
    head = Canvas(pixels, pose.x, pose.y, pose.scale, pose.tilt)
    body = Canvas(pixels, WIDTH / 2 + (pose.x - WIDTH / 2) * 0.6, pose.y, pose.scale, 0)
    _draw_hair_behind(head, person)
    _draw_body(body, person)
    _draw_collar(body, person)
    _draw_face(head, person)
    _draw_age(head, person)
    for side in (-1, 1):
        _draw_eye(head, person, pose, side)
    _draw_nose(head, person)
    _draw_mouth(head, person, pose)
    if stem != "normal":
        _draw_mask(head, person, stem, pose)
    _draw_hair(head, person)
    if person.glasses:
        x = person.eye_apart
        temple = _points((x + 24, -2), (person.half_width + 2, -6))
        head.lines(person.glasses, 3, *_both(_ellipse(x, 3, 25, 21)), _arc(0, x - 25, 0, -4), *_both(temple))
    return _expose(pixels, pose)


def _expose(pixels: Pixels, pose: Pose) -> Pixels:
    """Light the scene, a little from one side, and add the sensor's noise."""
    light = pose.brightness * np.linspace(1 - pose.sidelight, 1 + pose.sidelight, WIDTH)
    # as fine as bytes allow, because coarser steps are visible as stripes
    gain = np.repeat((light * GAIN).round().astype(np.uint8), 3).reshape(1, WIDTH, 3)
    lit = cv2.multiply(pixels, cv2.repeat(gain, HEIGHT, 1), scale=1 / GAIN)
    (y, x), grain = pose.grain, _grain()
    return cv2.subtract(cv2.add(lit, grain[y:][:HEIGHT, :WIDTH]), grain[:, x:][:HEIGHT, :WIDTH])


@lru_cache(maxsize=1)
def _grain() -> Pixels:
    # made once and shifted per photo, because new noise takes longer than the rest of a photo; positive, to be added at
    # one shift and subtracted at another, because unsigned bytes are several times faster
    shape = (HEIGHT + GRAIN_MARGIN, WIDTH + GRAIN_MARGIN, 3)
    return abs(np.random.default_rng(0).normal(0, 4, shape)).round().astype(np.uint8)


def _backdrop(rng: Random) -> Pixels:
    """Paint the wall behind a person: soft colours, with a pattern on half of the walls."""
    hue, value = rng.uniform(), rng.uniform(0.7, 0.95)
    top = _hsv(hue, rng.uniform(0.08, 0.3), value)
    bottom = _hsv(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.08, 0.3), value * rng.uniform(0.75, 1))
    wall = cv2.resize(np.array([[top], [bottom]], np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    kind, step = rng.choice(["plain", "plain", "panels", "dots"]), int(rng.integers(48, 90))
    lighter = _mix(top, WHITE, 0.3)
    for column, x in enumerate(range(step // 2, WIDTH + step, step)):
        if kind == "panels":
            cv2.line(wall, (x, 0), (x, HEIGHT), lighter, step // 5)
        if kind == "dots":
            for y in range(column % 2 * step // 2, HEIGHT + step, step):
                cv2.circle(wall, (x, y), step // 6, lighter, -1)
    return np.asarray(cv2.blur(wall, (9, 9)))


def _draw_body(canvas: Canvas, person: Person) -> None:
    wide, shade = 1.0 if person.gender else 1.1, _mix(person.shirt, INK, 0.25)
    shoulder = _smooth((36, 138), (62, 158), (122 * wide, 178), (156 * wide, 212), (172 * wide, 340))
    canvas.fill(person.shirt, _mirrored(shoulder))
    canvas.lines(shade, 3, *_both(_points((112, 246), (118, 340))))
    if person.collar == "hood":
        canvas.fill(shade, _mirrored(_smooth((52, 134), (78, 158), (64, 196), (0, 226))))
    neck = _points((40 * wide, 60), (38 * wide, 130), (41 * wide, 164), (0, 196))
    canvas.fill(_mix(person.skin, (190, 120, 96), 0.16), _mirrored(neck))
    canvas.tint((130, 70, 56), 0.38, 7, _ellipse(0, 98, 48, 44))


def _draw_collar(canvas: Canvas, person: Person) -> None:
    skin, shade, light = _mix(person.skin, INK, 0.06), _mix(person.shirt, INK, 0.25), _mix(person.shirt, WHITE, 0.35)
    if person.collar == "round":
        canvas.fill(skin, _arc(0, 46, 174, 22))
        canvas.lines(shade, 9, _arc(0, 60, 150, 46))
    elif person.collar == "v":
        canvas.fill(skin, _points((-52, 158), (52, 158), (0, 222)))
        canvas.lines(shade, 8, _points((-58, 150), (0, 224), (58, 150)))
    elif person.collar == "shirt":
        canvas.fill(skin, _points((-44, 164), (44, 164), (0, 214)))
        canvas.fill(light, *_both(_points((48, 140), (66, 158), (50, 206), (0, 206))))
        canvas.lines(shade, 2, _points((0, 206), (0, 340)))
    else:
        canvas.lines(light, 5, _arc(0, 58, 158, 50))
        canvas.lines(WHITE, 4, *_both(_points((22, 206), (24, 260))))


def _draw_face(canvas: Canvas, person: Person) -> None:
    width, shade = person.half_width, _mix(person.skin, (196, 110, 84), 0.35)
    if person.haircut not in HAIR_LENGTH:
        canvas.fill(person.skin, *_both(_ellipse(width + 4, 18, 13, 23)))
        canvas.fill(shade, *_both(_ellipse(width + 6, 18, 6, 14)))
    canvas.fill(person.skin, np.concatenate([_bow(width, SKULL_TOP, 2.2), _bow(-width, person.chin, person.jaw)]))
    canvas.tint((236, 112, 108), 0.3 * (1 - 0.75 * person.tired), 7, *_both(_ellipse(46, 50, 17, 12)))
    canvas.tint(shade, 0.55, 4, _bow(width - 3, person.chin - 3, person.jaw)[::2], width=7)


def _draw_eye(canvas: Canvas, person: Person, pose: Pose, side: int) -> None:
    x, look = side * person.eye_apart, side * person.eye_apart + pose.gaze
    wide, high = 16.5 * person.eye, 11.5 * person.eye * pose.eyelids * (1 - 0.38 * person.tired)
    canvas.fill(WHITE, _ellipse(x, 0, wide, high))
    canvas.fill(person.iris, _ellipse(look, 0, min(9.0, high), min(9.6, high)))
    canvas.fill((16, 12, 12), _ellipse(look, 0, 4.6, min(4.8, high)))
    canvas.fill(WHITE, _ellipse(look + 3, -3.2, 2.7, 2.7))
    lid = _arc(x, wide + 1, 1, -high - 1.5)
    canvas.lines(INK, 2.4 + 1.8 * person.lashes, lid)
    canvas.lines(_mix(person.skin, (130, 74, 60), 0.5), 1.5, _lower(lid, -5.5))
    if person.lashes > 0.4:
        canvas.lines(INK, 2.6, _points((x + side * (wide - 2), -3), (x + side * (wide + 6), -9)))
    y, colour = -25 - pose.brows_up + 3 * person.tired, _mix(person.natural_hair, INK, 0.3)
    middle = _arc(x + side, side * 20, y, -person.brow_arch)
    # thick next to the nose and pointed outside
    taper = np.linspace(0.5, 0.125, len(middle))[:, None] * (0, person.brow)
    brow = np.concatenate([middle - taper, (middle + taper)[::-1]])
    canvas.fill(_mix(colour, LIGHT_HAIR, 0.6 * person.grey), brow)


def _draw_nose(canvas: Canvas, person: Person) -> None:
    shade = _mix(person.skin, (150, 78, 58), 0.55)
    canvas.tint((214, 120, 96), 0.35, 4, _ellipse(0, 36, 12, 9))
    canvas.lines(shade, 2.6, _smooth((-11, 38), (-7, 43), (0, 45), (7, 43), (11, 38)))
    canvas.tint(shade, 0.5, 2, _points((7, 10), (10, 30)), width=3)


def _draw_mouth(canvas: Canvas, person: Person, pose: Pose) -> None:
    y, wide, smile, is_open = 72.0, 22 + pose.smile * 0.6, pose.smile, pose.mouth_open > 1
    upper = _arc(0, wide, y, smile * 0.4 if is_open else smile)
    if is_open:
        lower = _arc(0, -wide, y, smile + pose.mouth_open * 2)
        teeth = np.concatenate([_arc(0, wide - 4, y + 1, smile * 0.4 + 1), _lower(lower[3:-3], -5)])
        canvas.fill((120, 40, 44), np.concatenate([upper, lower]))
        canvas.fill(WHITE, teeth)
        canvas.lines(person.lips, 3.4, lower)
    canvas.lines(person.lips, 4.4, upper)
    canvas.tint(_mix(person.skin, (150, 78, 58), 0.55), 0.35, 2, _arc(0, 10, y + 17, 2), width=3)


def _draw_age(canvas: Canvas, person: Person) -> None:
    """Draw the hints at the age."""
    line, x = _mix(person.skin, (112, 58, 42), 0.8), person.eye_apart
    for number in range(3):
        depth = min(max(person.wrinkles * 3.2 - number * 0.75, 0), 1)
        canvas.lines(_mix(person.skin, line, 0.7 * depth), 2.4, _arc(0, 40 - 5 * number, -46 - 11 * number, -4))
    for rise in (-4, 1, 6):
        foot = _points((x + 21, rise), (x + 32, rise * 2.2))
        canvas.lines(_mix(person.skin, line, 0.7 * person.wrinkles), 2, *_both(foot))
    canvas.lines(_mix(person.skin, line, 0.6 * person.wrinkles), 2.4, *_both(_smooth((17, 38), (30, 54), (34, 76))))
    canvas.tint((116, 66, 84), 0.7 * person.bags, 1.3, *_both(_arc(x, 16, 10, 8)), width=4.5)
    places = zip((-1, 1, -1, 1, -1, 1), (-40, -38, 10, 14, -62, -60), person.spots, strict=True)
    spots = [_ellipse(side * (person.half_width - 24) + dx, y + dy, *size) for side, y, (dx, dy, *size) in places]
    canvas.tint((134, 82, 52), 0.75 * person.blotches, 1.5, *spots)


def _draw_hair_behind(canvas: Canvas, person: Person) -> None:
    wide, low, shade = person.half_width, HAIR_LENGTH.get(person.haircut), _mix(person.hair, INK, 0.35)
    if person.haircut == "bun":
        canvas.fill(person.hair, _ellipse(0, SKULL_TOP - 26, 36, 30))
        canvas.lines(shade, 3, _arc(0, 30, SKULL_TOP - 18, 12))
    if low:
        tip = (wide + 17, low * 0.7), (wide + 6, low), (0, low + 6)
        canvas.fill(shade, _mirrored(_smooth((0, -100), (wide, -60), (wide + 16, 10), *tip)))


def _draw_hair(canvas: Canvas, person: Person) -> None:
    outer, inner = _hair_edges(person)
    if person.haircut in HAIR_LENGTH:
        wide, low = person.half_width, HAIR_LENGTH[person.haircut]
        outside = _smooth((wide - 8, -70), (wide + 8, -20), (wide + 19, 40), (wide + 18, low * 0.75), (wide + 2, low))
        inside = _smooth((wide - 6, low * 0.8), (wide - 4, 50), (wide - 7, 10), (wide - 14, -50))
        canvas.fill(person.hair, *_both(np.concatenate([outside, inside])))
    canvas.tint((120, 66, 48), 0.3, 3, _lower(inner[4:-4:2], 4), width=6)
    canvas.fill(person.hair, np.concatenate([outer, inner[::-1]]))
    _draw_strands(canvas, person, outer, inner)


def _hair_edges(person: Person) -> tuple[Points, Points]:
    """The outer edge of the hair and its edge on the forehead, from right to left."""
    wide, u = person.half_width, np.linspace(1, -1, STRANDS)
    outer = _bow(wide + 7, SKULL_TOP - person.volume * (1 - 0.4 * person.receding), 2.3)
    outer[[0, -1], 1] = 12 if person.haircut == "crop" else 30
    crown = {"bangs": -50, "side": -64, "up": -76}[person.fringe] - 20 * person.receding
    y = crown + (6 - crown) * abs(u) ** 6
    if person.fringe == "side":
        y += person.parting * 16 * u * (1 - u**4)
    if person.fringe == "bangs":
        y += 5 * abs(np.sin(u * 9)) * (1 - u**4)
    y -= 26 * person.receding * np.exp(-(((abs(u) - 0.6) / 0.22) ** 2))
    return outer, np.stack([u * (wide - 2), np.maximum(y, outer[:, 1] + 7)], axis=1)


def _draw_strands(canvas: Canvas, person: Person, outer: Points, inner: Points) -> None:
    """Draw single hairs, of which grey ones are visible before all the hair is grey."""
    along = np.array([0.1, 0.3, 0.5, 0.7, 0.87])[:, None]
    bent = inner[person.strands, None] * (1 - along) + outer[person.strands, None] * along
    bent[..., 0] += np.array([0, 2, 3, 2, 0]) * person.parting
    canvas.lines(_mix(person.hair, WHITE, 0.16), 2, *bent[:9])
    canvas.lines(_mix(person.hair, INK, 0.35), 2, *bent[9:16])
    canvas.lines(_mix(person.hair, LIGHT_HAIR, 0.7), 2, *bent[16 : 16 + round(18 * person.grey**0.5)])


def _draw_mask(canvas: Canvas, person: Person, stem: str, pose: Pose) -> None:
    fabric, edge = (pose.incorrect_fabric, pose.incorrect_edge) if stem == "incorrect_mask" else (stem, EDGE_WORN)
    edge += pose.mask_offset
    colour = FABRICS.get(fabric, person.fabric)
    side = _mask_side(person, edge)
    (x, y), ear = side[16], person.half_width + 10
    low = 0.5 * y + 50
    loops = _points((x, y + 4), (ear, 6)), _points((_half_width_at(person, low), low), (ear + 2, 30))
    canvas.lines(_mix(colour, WHITE, 0.4), 2.4, *(half for loop in loops for half in _both(loop)))
    canvas.tint((110, 60, 50), 0.4, 3, _lower(_mirrored(side), 3))
    canvas.fill(colour, _mirrored(side))
    if fabric == "mask4":
        _draw_pattern(canvas, person, edge, _mix(colour, WHITE, 0.65))
    heights = np.linspace(edge, person.chin, 5)[1:-1]
    folds = [_arc(0, _half_width_at(person, y) - 6, y, 5) for y in heights]
    canvas.lines(_mix(colour, WHITE, 0.2), 2, *(_lower(fold, 2) for fold in folds))
    canvas.lines(_mix(colour, INK, 0.17), 2, *folds, *_both(_lower(side[:17], 4)))


def _mask_side(person: Person, edge: float) -> Points:
    """The right half of a mask's outline: its side follows the face, its lower edge is below the chin."""
    jaw = _bow(person.half_width + 2, person.chin + 8, person.jaw + 0.15)[:21]
    side = jaw[jaw[:, 1] > edge + 12]
    return np.concatenate([_smooth((0, edge), (22, edge + 2), (side[0, 0], side[0, 1])), side[1:]])


def _draw_pattern(canvas: Canvas, person: Person, edge: float, colour: Colour) -> None:
    for row, y in enumerate(np.arange(edge + 20, person.chin - 8, 15)):
        wide = _half_width_at(person, y) - 5
        places = [x for x in range(-60 + row % 2 * 10, 61, 20) if abs(x) < wide - 4]
        if person.pattern == "dots":
            canvas.fill(colour, *(_ellipse(x, y, 3.6, 3.6) for x in places))
        else:
            canvas.lines(colour, 4, _arc(0, wide, y, 4))
        if person.pattern == "bricks":
            canvas.lines(colour, 4, *(_points((x, y - 11), (x, y + 3)) for x in places))


def _half_width_at(person: Person, y: float) -> float:
    """Half the width of the face at a height between eyes and chin."""
    share = min(y / person.chin, 1)
    return float(person.half_width * (1 - share**person.jaw) ** (1 / person.jaw))


def _blend(area: Pixels, colour: Colour, weight: Pixels) -> None:
    weight = cv2.merge([weight] * 3)
    paint = cv2.multiply(weight, (*colour, 0), scale=1 / 255)
    cv2.add(cv2.multiply(area, ~weight, scale=1 / 255), paint, dst=area)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


_TURN = np.linspace(0, 2 * np.pi, 29)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_HALF_TURN = np.linspace(0, np.pi, STRANDS)
_COS, _SIN = np.cos(_HALF_TURN), np.sin(_HALF_TURN).clip(0)
_PARABOLA = np.stack([np.linspace(-1, 1, 13), 1 - np.linspace(-1, 1, 13) ** 2], axis=1)
# weights of four neighbouring points for eight points of a Catmull-Rom curve between the middle two
_CATMULL_ROM = np.vander(np.arange(8) / 8, 4, increasing=True) @ np.array(
    [[0, 1, 0, 0], [-0.5, 0, 0.5, 0], [1, -2.5, 2, -0.5], [-0.5, 1.5, -1.5, 0.5]]
)


def _points(*points: tuple[float, float]) -> Points:
    return np.array(points, float)


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> Points:
    return _CIRCLE * (half_width, half_height) + (x, y)


def _arc(x: float, half_width: float, y: float, sag: float) -> Points:
    """A parabola from left to right with its ends at height y and its middle at x, lower by `sag`."""
    return _PARABOLA * (half_width, sag) + (x, y)


def _bow(half_width: float, height: float, power: float) -> Points:
    """Half a superellipse from its right end over (0, height) to its left end."""
    x = half_width * np.sign(_COS) * abs(_COS) ** (2 / power)
    return np.stack([x, height * _SIN ** (2 / power)], axis=1)


def _smooth(*points: tuple[float, float]) -> Points:
    """A Catmull-Rom curve through the points, with eight points from one to the next."""
    given = _points(*points)
    padded = np.concatenate([2 * given[:1] - given[1:2], given, 2 * given[-1:] - given[-2:-1]])
    windows = np.stack([padded[i : i + len(given) - 1] for i in range(4)], axis=1)
    return np.concatenate([(_CATMULL_ROM @ windows).reshape(-1, 2), given[-1:]])


def _lower(points: Points, by: float) -> Points:
    return points + np.array([0, by])


def _both(right: Points) -> tuple[Points, Points]:
    return right, right * (-1, 1)


def _mirrored(right: Points) -> Points:
    """A closed outline from its right half, from top to bottom."""
    return np.concatenate([right, right[::-1] * (-1, 1)])
