"""Masks: drawn on photos of bare faces, worn and wrongly worn, by five landmarks per face.

The face is modelled as an egg with the yaw and pitch of its landmarks (weak perspective). Each pixel has a longitude
and a height on the egg, where the mask is cut out and shaded, so that it gets narrower on the far side. After
MaskTheFace (Anwar and Raychowdhury 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fastmask.data.boxes import POINTS
from fastmask.system.errors import DataError, UsageError

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]
Point = tuple[float, float]
# x0, y0, x1, y1
Area = tuple[int, int, int, int]
# how much of each pixel is covered, and the colour
Layer = tuple[Field, Field]
Random = np.random.Generator

WORN, NOSE_BARE, ON_CHIN = "wear", "nose-bare", "on-chin"
INCORRECT, BARE = "incorrect", "none"
# the kinds of photos in a painted set, by the contest's names of classes
KINDS = (WORN, INCORRECT, BARE)

# the egg: half its width at the cheeks in eye distances, its depth over its width, and the heights of its cheeks and
# its chin, with the eyes at 0 and the mouth at 1
_CHEEK, _DEPTH, _CHEEKS_AT, _CHIN_AT, _JAW = 1.1, 1.25, 0.25, 1.64, 2.3
_CLOTH_OFF = 1.035
_EAR = 1.62
# radius around an eye in which nothing changes, in eye distances
_EYE = 0.26
# how far the nose stands out from the eyes, and the height of its tip between eyes and mouth, in a frontal face
_NOSE_OUT, _NOSE_AT = 0.62, 0.61
# eyes to mouth over eye to eye, of a mean face
_MOUTH_DOWN = 1.1
_MOST_YAW, _MOST_PITCH = 0.85, 0.25


@dataclass(frozen=True)
class Landmarks:
    """Five points and a box (x0, y0, x1, y1) of a face in pixels; right and left are the person's.

    Raises DataError where no face can look like that.
    """

    right_eye: Point
    left_eye: Point
    nose: Point
    right_mouth: Point
    left_mouth: Point
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        again = "detect the face again or empty the row's cells."
        if not np.isfinite([*np.ravel(self.points), *self.box]).all():
            raise DataError(f"its landmarks have NaN or inf; {again}")
        if self.eye_distance < 2:
            raise DataError(f"its eyes are on one point, {_text(self.right_eye)}; {again}")
        right, left, nose, *mouth = self.points
        across = (left - right) / self.eye_distance
        down = (-across[1], across[0])
        fall, of_nose = (float((point - (right + left) / 2) @ down) for point in (np.mean(mouth, axis=0), nose))
        if fall < 0.25 * self.eye_distance:
            raise DataError(
                "its mouth is not below its eyes; the right eye must be the person's right one, on the left of the "
                "photo."
            )
        # a head that looks far up or down has it above its eyes or below its mouth, but not farther than that
        if not -0.5 * fall <= of_nose <= 1.5 * fall:
            raise DataError(f"its nose at {_text(self.nose)} is far from its eyes and its mouth; {again}")

    @property
    def points(self) -> NDArray[np.float64]:
        """(5, 2) the points x, y: right eye, left eye, nose, right and left corner of the mouth."""
        return np.array([getattr(self, name) for name in POINTS], dtype=np.float64)

    @property
    def eye_distance(self) -> float:
        """From eye to eye, in pixels."""
        return math.dist(self.right_eye, self.left_eye)

    def check_inside(self, height: int, width: int) -> None:
        """Raise DataError for a point outside the photo by more than half the eye distance: edges may cut a face."""
        most = self.eye_distance / 2
        for name, (x, y) in zip(POINTS, self.points, strict=True):
            if not (-most <= x <= width + most and -most <= y <= height + most):
                raise DataError(
                    f"its {name} at {_text((x, y))} is outside the photo of {width}x{height} pixels; detect faces in "
                    "the photos to paint on."
                )


@dataclass(frozen=True)
class Look:
    """How a mask looks: its cut, its colours to draw from (RGB), its pattern, the colour of its straps.

    `cut` is "pleats" (surgical), "boat" (KF94: two folds across), "cup" (N95) or "seam" (cloth with a middle seam).
    """

    cut: str
    colours: tuple[tuple[int, int, int], ...]
    pattern: str = ""
    straps: tuple[int, int, int] = (238, 238, 236)


_WHITE, _BLACK = ((240, 241, 242), (232, 236, 240)), ((34, 34, 38), (46, 45, 48))
_CLOTH = (
    *((196, 92, 88), (88, 118, 168), (108, 146, 112), (206, 170, 110), (150, 118, 160), (214, 178, 176)),
    *((72, 84, 108), (176, 176, 172), (222, 206, 186)),
)
LOOKS: dict[str, Look] = {
    "surgical-blue": Look("pleats", ((156, 200, 224), (136, 186, 218), (176, 208, 226))),
    "surgical-white": Look("pleats", _WHITE),
    "surgical-green": Look("pleats", ((164, 208, 194), (150, 200, 178))),
    "surgical-black": Look("pleats", _BLACK, straps=(48, 48, 52)),
    "kf94-white": Look("boat", _WHITE),
    "kf94-black": Look("boat", _BLACK, straps=(44, 44, 48)),
    "n95-white": Look("cup", ((236, 236, 230), (228, 230, 228)), straps=(226, 206, 150)),
    "cloth-black": Look("seam", _BLACK, straps=(40, 40, 44)),
    "cloth-grey": Look("seam", ((128, 130, 134), (96, 98, 104)), straps=(110, 112, 116)),
    "cloth-colour": Look("seam", _CLOTH, straps=(214, 210, 204)),
    "cloth-dots": Look("seam", _CLOTH, "dots"),
    "cloth-stripes": Look("seam", _CLOTH, "stripes"),
    "cloth-checks": Look("seam", _CLOTH, "checks"),
}


def paint(image: Pixels, landmarks: Landmarks, how: str, look: str, rng: Random) -> Pixels:
    """Paint a mask on a face: (H, W, 3) uint8 RGB -> a new photo of the same size.

    `how` is "wear", "nose-bare", "on-chin" or "incorrect", for which `rng` draws one of the last two. `look` is one of
    LOOKS. The result depends only on the arguments. Raises UsageError for another name, DataError for a point outside
    the photo.
    """
    if how not in (WORN, INCORRECT, NOSE_BARE, ON_CHIN) or look not in LOOKS:
        raise UsageError(
            f"A mask is {WORN}, {INCORRECT}, {NOSE_BARE} or {ON_CHIN} and looks like one of {', '.join(LOOKS)}; found "
            f"{how!r}, {look!r}."
        )
    landmarks.check_inside(*image.shape[:2])
    way = how if how != INCORRECT else (NOSE_BARE, ON_CHIN)[int(rng.random() < 0.4)]
    pose = _pose(landmarks)
    area = _area(pose, *image.shape[:2])
    if min(area[2] - area[0], area[3] - area[1]) < 1:
        return image.copy()
    part = image[area[1] : area[3], area[0] : area[2]]
    fine = 3 if pose.wide < 40 else 2 if pose.wide < 110 else 1
    shape = _Shape.drawn(pose, way, LOOKS[look].cut, rng)
    egg = _Egg.seen(pose, area, fine)
    # the same egg at the photo's own pixels, to measure the light on the face
    plain = egg if fine == 1 else _Egg.seen(pose, area, 1)
    light = _Light.on(part, pose, plain)
    layer = _layer(pose, egg, shape, LOOKS[look], light, rng)
    straps = _straps(pose, shape, area, fine, light.exposure, LOOKS[look], rng)
    painted = _lay(part, [_shrunk(field, part.shape) for field in (*layer, *straps)], pose, plain, light, rng)
    result = image.copy()
    result[area[1] : area[3], area[0] : area[2]] = painted
    return result


@dataclass(frozen=True)
class _Pose:
    """The position and the rotation of a face.

    `wide` and `high` are the pixels of a unit across and down. `middle` has the coefficients of the middle line
    of the face, x = middle[0] y + middle[1] y^2. `nose` is the height of its tip, `eyes` are the eyes, in these units.
    """

    origin: NDArray[np.float64]
    across: NDArray[np.float64]
    wide: float
    high: float
    yaw: float
    pitch: float
    middle: tuple[float, float]
    nose: float
    eyes: tuple[Point, Point]

    @property
    def down(self) -> NDArray[np.float64]:
        return np.array([-self.across[1], self.across[0]])

    def middle_at(self, y: Any) -> Any:
        """Where the middle of the face is at height y."""
        y = np.clip(y, 0, 1.25)
        return self.middle[0] * y + self.middle[1] * y * y

    def axes(self, y: Any) -> tuple[Any, Any]:
        """Half the visible width at height y, and the angle by which its edge is turned."""
        cos, sin = math.cos(self.yaw), _DEPTH * math.sin(self.yaw)
        return _half_width(y) * math.hypot(cos, sin), math.atan2(sin, cos)

    def place(self, longitude: Any, y: Any) -> NDArray[np.float64]:
        """Points on the egg -> (..., 2) pixels."""
        wide, turn = self.axes(y)
        x = wide * (np.sin(longitude + turn) - np.sin(turn)) + self.middle_at(y)
        seen = y + self.pitch * (np.cos(longitude) - 1)
        return self.origin + x[..., None] * self.wide * self.across + seen[..., None] * self.high * self.down


def _half_width(y: Any) -> Any:
    share = np.clip((y - _CHEEKS_AT) / (_CHIN_AT - _CHEEKS_AT) / _CLOTH_OFF, 0, 1)
    return _CHEEK * _CLOTH_OFF * (1 - share**_JAW) ** (1 / _JAW)


def _pose(landmarks: Landmarks) -> _Pose:
    right, left, nose, *corners = landmarks.points
    mouth, origin, distance = np.mean(corners, axis=0), (right + left) / 2, landmarks.eye_distance
    across = (left - right) / distance
    down = np.array([-across[1], across[0]])
    high = float((mouth - origin) @ down)
    yaw = float(np.clip(math.atan(float((nose - origin) @ across) / (_NOSE_OUT * distance)), -_MOST_YAW, _MOST_YAW))
    # yaw shortens the eye distance, pitch the way to the mouth, so each corrects the other
    wide = 0.6 * distance / math.cos(yaw) + 0.4 * high / _MOUTH_DOWN
    tip = float(np.clip((nose - origin) @ down / high, 0.3, 0.85))
    pitch = float(np.clip((tip - _NOSE_AT) / _NOSE_OUT, -_MOST_PITCH, _MOST_PITCH))
    rows = np.array([[tip, tip**2], [1, 1]])
    at = np.array([0.85 * (nose - origin) @ across, (mouth - origin) @ across]) / wide
    first, second = np.linalg.solve(rows, at)
    eyes = ((-distance / 2 / wide, 0.0), (distance / 2 / wide, 0.0))
    return _Pose(origin, across, wide, high, yaw, pitch, (float(first), float(second)), tip, eyes)


def _area(pose: _Pose, height: int, width: int) -> Area:
    """The pixels of the photo that a mask may change."""
    corners = [(x, y) for x in (-1.9, 1.9) for y in (-0.2, 2.15)]
    placed = [pose.origin + x * pose.wide * pose.across + y * pose.high * pose.down for x, y in corners]
    low, high = np.floor(np.min(placed, axis=0)), np.ceil(np.max(placed, axis=0))
    (x0, y0), (x1, y1) = np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))
    return int(x0), int(y0), int(x1), int(y1)


@dataclass(frozen=True)
class _Egg:
    """The egg at each pixel of an area: longitude, height, pixels inside the outline.

    `facing` is the egg's normal, to the right and to the viewer; `flat` is the pixel's place, across and down.
    """

    longitude: Field
    y: Field
    inside: Field
    facing: tuple[Field, Field]
    flat: tuple[Field, Field]

    @classmethod
    def seen(cls, pose: _Pose, area: Area, fine: int) -> _Egg:
        x0, y0, x1, y1 = area
        columns = (np.arange((x1 - x0) * fine, dtype=np.float32) + 0.5) / fine + (x0 - pose.origin[0] - 0.5)
        rows = (np.arange((y1 - y0) * fine, dtype=np.float32) + 0.5)[:, None] / fine + (y0 - pose.origin[1] - 0.5)
        x = ((columns * pose.across[0] + rows * pose.across[1]) / pose.wide).astype(np.float32)
        flat_y = ((columns * pose.down[0] + rows * pose.down[1]) / pose.high).astype(np.float32)
        wide, turn = pose.axes(flat_y)
        from_axis = x - pose.middle_at(flat_y) + wide * math.sin(turn)
        around = np.arcsin(np.clip(from_axis / np.maximum(wide, 1e-3), -1, 1))
        longitude = (around - turn).astype(np.float32)
        y = flat_y - pose.pitch * (np.cos(longitude) - 1)
        inside = (wide - abs(from_axis)) * pose.wide
        # near the chin the outline runs across, not down
        inside = np.minimum(inside, (_CHIN_AT * _CLOTH_OFF - flat_y) * 1.6 * pose.high)
        return cls(longitude, y.astype(np.float32), inside, (np.sin(around), np.cos(around)), (x, flat_y))


@dataclass(frozen=True)
class _Shape:
    """The outline of a mask on the egg: heights of its edges in the middle and at its sides, their longitude."""

    top: float
    top_side: float
    hump: float
    bottom: float
    bottom_side: float
    side: float
    tilt: float

    @classmethod
    def drawn(cls, pose: _Pose, way: str, cut: str, rng: Random) -> _Shape:
        jitter = rng.uniform(-1, 1, 7)
        hump = 0.22 if cut in ("pleats", "boat") else 0.3
        top, top_side = 0.3 + 0.04 * jitter[0], 0.5 + 0.04 * jitter[1]
        bottom, bottom_side = _CHIN_AT + 0.06, 1.12 + 0.06 * jitter[2]
        side = {"pleats": 1.08, "boat": 1.12, "cup": 0.92, "seam": 1.06}[cut] + 0.05 * jitter[3]
        if way == NOSE_BARE:
            top, hump = pose.nose + 0.55 * (1 - pose.nose) + 0.02 * jitter[0], 0.4
            top_side = top - 0.05 + 0.05 * jitter[1]
            bottom_side = 1.2 + 0.05 * jitter[2]
        elif way == ON_CHIN:
            top, hump = 1.31 + 0.03 * jitter[0], 0.6
            top_side, bottom_side = top - 0.1 + 0.04 * jitter[1], 1.42 + 0.04 * jitter[2]
            side = min(side, 1.02)
            bottom = 1.95 + 0.05 * jitter[4]
        return cls(top, top_side, hump + 0.04 * jitter[5], bottom, bottom_side, side, 0.03 * jitter[6])

    def edges(self, s: Any) -> tuple[Any, Any]:
        """Heights of the upper and the lower edge at s, which is -1 and 1 at the sides."""
        fall = 1 - np.exp(-((s / self.hump) ** 2))
        upper = self.top + (self.top_side - self.top) * fall + self.tilt * s
        lower = self.bottom - (self.bottom - self.bottom_side) * abs(s) ** 2.2 + self.tilt * s
        return upper, lower


@dataclass(frozen=True)
class _Light:
    """The light on a face: the brightness of white, its slope to the right and down, and the grain.

    `hair` is how surely a pixel next to the cheeks is hair, which hangs over a mask; `skin` how surely it is skin,
    the only place where straps are visible.
    """

    exposure: float
    slope: tuple[float, float]
    grain: float
    hair: Field
    skin: Field

    @classmethod
    def on(cls, part: Pixels, pose: _Pose, egg: _Egg) -> _Light:
        grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY).astype(np.float32)
        x, y = egg.flat
        cheeks = (egg.inside > 0) & (abs(egg.longitude) < 0.9) & (y > 0.2) & (y < 1.45)
        if cheeks.sum() < 20:
            return cls(0.9, (0.0, 0.0), 1.0, np.zeros_like(grey), np.ones_like(grey))
        seen = grey[cheeks]
        skin = float(np.median(seen))
        usual = abs(seen - skin) < 0.45 * skin
        plane = np.stack([x[cheeks], y[cheeks] - 0.8, np.ones(len(seen))], axis=1)[usual]
        right, down, _ = np.linalg.lstsq(plane, seen[usual] / max(skin, 1), rcond=None)[0] if usual.any() else (0, 0, 1)
        white = float(np.percentile(grey, 95))
        exposure = float(np.clip(0.5 * white / 225 + 0.5 * skin / 165, 0.35, 1.08))
        grain = float(np.median(abs(grey - cv2.medianBlur(part, 3).astype(np.float32) @ _GREY)[cheeks])) * 1.2
        slope = float(np.clip(right, -0.25, 0.25)), float(np.clip(down, -0.15, 0.1))
        return cls(exposure, slope, min(grain, 5.0), *_skin(part, cheeks, pose, egg))


_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def _skin(part: Pixels, cheeks: Any, pose: _Pose, egg: _Egg) -> tuple[Field, Field]:
    """How surely pixels are hair, and how surely skin, compared with the brightness and redness of the cheeks.

    Hair is far darker than skin and, unlike skin in the shade, not red.
    """
    soft = cv2.GaussianBlur(part, (0, 0), max(0.5, 0.012 * pose.wide)).astype(np.float32)
    grey = soft @ _GREY
    redness = (soft[..., 0] - soft[..., 2]) / (soft.mean(2) + 8)
    usual, red = float(np.median(grey[cheeks])), float(np.median(redness[cheeks]))
    dark, outer = _ramp(grey, 0.55 * usual, 0.35 * usual), _ramp(abs(egg.longitude), 0.6, 0.85)
    hair = dark * outer * _ramp(redness, 0.95 * max(red, 0) + 0.05, 0.7 * max(red, 0) + 0.03)
    skin = _ramp(grey, 0.4 * usual, 0.6 * usual) * _ramp(abs(redness - red), 0.35, 0.2)
    return hair.astype(np.float32), skin.astype(np.float32)


def _ramp(value: Any, start: Any, end: Any) -> Any:
    """0 before `start`, 1 after `end`, smooth between; `end` may be below `start`."""
    share = np.clip((value - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)


def _layer(pose: _Pose, egg: _Egg, shape: _Shape, look: Look, light: _Light, rng: Random) -> Layer:
    """The mask without its straps."""
    s = egg.longitude / shape.side
    upper, lower = shape.edges(np.clip(s, -1, 1))
    edges = (
        (egg.y - upper) * pose.high,
        (lower - egg.y) * pose.high,
        (1 - abs(s)) * shape.side * _CHEEK * pose.wide * np.maximum(egg.facing[1], 0.3),
    )
    distance = np.minimum(_rounded(edges, 0.07 * pose.wide), egg.inside)
    fine = max(1.0, 0.008 * pose.wide)
    cover = np.clip(distance / fine + 0.5, 0, 1)
    t = (egg.y - upper) / np.maximum(lower - upper, 0.05)
    folds = _FOLDS[look.cut](s, t, rng) + _creases(s, t, rng) + _border(edges, pose, look.cut)
    right, front = egg.facing
    x, y = egg.flat
    lit = 0.80 + 0.22 * front + 0.10 * right * np.sign(light.slope[0]) * min(1.0, 8 * abs(light.slope[0]))
    lit = lit + light.slope[0] * x + light.slope[1] * (y - 0.8) - 0.10 * _ramp(t, 0.55, 1.05)
    colour = _cloth(s, t, look, rng)
    # folds of dark cloth are visible by their highlights, not by their shadows
    dark = 1 - colour.mean(2, keepdims=True) / 255
    shaded = colour * (light.exposure * (lit + folds))[..., None] + dark * (60 * light.exposure * folds)[..., None]
    return cover.astype(np.float32), np.clip(shaded, 0, 255).astype(np.float32)


def _rounded(distances: tuple[Field, ...], radius: float) -> Field:
    """The least of several distances, with round corners (polynomial smooth minimum)."""
    least: Any = distances[0]
    for other in distances[1:]:
        mix = np.clip(0.5 + 0.5 * (other - least) / radius, 0, 1)
        least = other * (1 - mix) + least * mix - radius * mix * (1 - mix)
    return least


def _cloth(s: Field, t: Field, look: Look, rng: Random) -> Field:
    """The colour of the cloth with its pattern, (..., 3), without light."""
    base = np.array(look.colours[int(rng.integers(len(look.colours)))], np.float32) * rng.uniform(0.95, 1.03)
    base = np.clip(base + rng.uniform(-5, 5, 3), 0, 255).astype(np.float32)
    if not look.pattern:
        return np.broadcast_to(base, (*s.shape, 3))
    drawn = np.array(look.colours[int(rng.integers(len(look.colours)))], np.float32)
    light = base + (250 - base) * rng.uniform(0.5, 0.9)
    second = light if abs(drawn - base).sum() < 90 else drawn
    across, down, count = s * 1.05, t * 0.95, float(rng.integers(5, 12))
    turn = float(rng.uniform(0, math.pi) if look.pattern != "checks" else rng.choice([0.0, math.pi / 4]))
    u = (across * math.cos(turn) + down * math.sin(turn)) * count
    v = (down * math.cos(turn) - across * math.sin(turn)) * count
    soft = count * 0.012
    stripes = _ramp(abs(u % 1 - 0.5), 0.25 - soft, 0.25 + soft)
    if look.pattern == "stripes":
        weight = stripes
    elif look.pattern == "checks":
        weight = (stripes + _ramp(abs(v % 1 - 0.5), 0.25, 0.25 + soft)) / 2
    else:
        # every other row is shifted by half a step
        along = (u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5
        weight = _ramp(np.hypot(along, v % 1 - 0.5), 0.25 + soft, 0.25 - soft)
    return np.asarray(base + (second - base) * weight[..., None], np.float32)


def _line(distance: Any, width: float) -> Any:
    return np.exp(-((distance / width) ** 2))


def _pleats(s: Field, t: Field, rng: Random) -> Field:
    """Three folds across that spread in the middle, each a bright edge over its shadow."""
    shade, first, step = np.zeros_like(s), rng.uniform(0.3, 0.36), rng.uniform(0.12, 0.16)
    for number in range(3):
        at = first + step * number
        bent = 0.47 + (at - 0.47) * (0.8 + 0.3 * (1 - s * s)) + rng.uniform(-0.012, 0.012) * s
        below = t - bent
        shade = shade - 0.13 * _line(below - 0.008, 0.012) - 0.06 * _ramp(below, 0.1, 0.0) * (below > 0)
        shade = shade + 0.05 * _line(below + 0.015, 0.016)
    return shade


def _boat(s: Field, t: Field, rng: Random) -> Field:
    """Two folds across that divide the mask into three panels, of which the middle one stands out."""
    upper = rng.uniform(0.27, 0.33) + 0.06 * s * s
    lower = rng.uniform(0.7, 0.76) - 0.1 * s * s
    shade = -0.12 * _line(t - upper - 0.008, 0.011) - 0.13 * _line(t - lower, 0.011)
    shade = shade + 0.05 * _line(t - upper + 0.02, 0.02)
    shade = shade - 0.05 * _ramp(t, lower, lower + 0.02) + 0.03 * _ramp(t, upper + 0.02, upper)
    return np.asarray(shade + 0.04 * _line(s, 0.3) * _ramp(t, lower, lower - 0.3), np.float32)


def _cup(s: Field, t: Field, rng: Random) -> Field:
    """A stiff bowl, bright in its middle, with a ridge around it and a metal clip over the nose."""
    from_middle = np.hypot(s * 0.95, (t - 0.5) * 1.9)
    ridge = rng.uniform(0.66, 0.74)
    shade = 0.06 - 0.2 * from_middle**2 - 0.09 * _line(from_middle - ridge, 0.025)
    shade = shade + 0.06 * _line(from_middle - ridge + 0.05, 0.03)
    clip = _line(t - 0.1, 0.025) * _ramp(abs(s), 0.42, 0.36)
    return np.asarray(shade - 0.16 * clip, np.float32)


def _seam(s: Field, t: Field, rng: Random) -> Field:
    """A seam down the middle, which joins two curved pieces."""
    bent = s + rng.uniform(-0.02, 0.02) * t
    return np.asarray(-0.1 * _line(bent, 0.014) + 0.06 * _line(abs(bent) - 0.05, 0.04) - 0.07 * _ramp(t, 0.62, 0.95))


_FOLDS = {"pleats": _pleats, "boat": _boat, "cup": _cup, "seam": _seam}


def _creases(s: Field, t: Field, rng: Random) -> Field:
    """Soft creases from the sides, where the straps pull, towards the middle."""
    shade = np.zeros_like(s)
    for side in (-1, 1):
        for _ in range(int(rng.integers(2, 5))):
            start, bend, reach = rng.uniform(0.1, 0.9), rng.uniform(-0.25, 0.25), rng.uniform(0.3, 0.7)
            inwards = 1 - side * s
            fade = _ramp(inwards, reach, 0.0) * (inwards >= 0)
            off = t - start - bend * inwards
            shade = shade + rng.uniform(0.02, 0.06) * fade * (_line(off + 0.02, 0.03) - _line(off - 0.02, 0.03))
    # the nose and the chin show through
    shade = shade + 0.05 * _line(s, 0.16) * _line(t - 0.18, 0.14)
    return np.asarray(shade - 0.03 * _line(abs(s) - 0.22, 0.1) * _line(t - 0.2, 0.18))


def _border(edges: tuple[Field, ...], pose: _Pose, cut: str) -> Field:
    """The hem along the edges."""
    hem, width = 0.055 * pose.wide, max(0.012 * pose.wide, 0.45)
    strength = 0.09 if cut in ("pleats", "boat") else 0.05
    upper, lower, side = (_line(distance - hem, width) for distance in edges)
    rim = sum(_ramp(distance, 0.04 * pose.wide, 0.0) for distance in edges)
    return np.asarray(-strength * np.maximum(np.maximum(upper, 0.6 * lower), side) - 0.06 * rim, np.float32)


def _straps(pose: _Pose, shape: _Shape, area: Area, fine: int, exposure: float, look: Look, rng: Random) -> Layer:
    """The straps from the mask to the ears."""
    cover = np.zeros(((area[3] - area[1]) * fine, (area[2] - area[0]) * fine), np.uint8)
    thick = max(1, round(rng.uniform(0.025, 0.045) * pose.wide * fine))
    ear_top, ear_low = 0.2 + rng.uniform(-0.05, 0.05), 0.56 + rng.uniform(-0.05, 0.05)
    for side in (-1, 1):
        upper, lower = shape.edges(np.float64(side))
        # a strap ends at the ear, or where the head turns away
        end = min(_EAR, math.pi / 2 - side * pose.axes(np.float64(0.5))[1] - 0.02)
        start = 0.93 * shape.side
        if end <= start:
            continue
        share = np.linspace(0, 1, 12)
        for begin, finish, sag in ((upper + 0.07, ear_top, 0.02), (lower - 0.06, ear_low, 0.05)):
            y = begin + (finish - begin) * share + sag * np.sin(math.pi * share)
            line = pose.place(side * (start + (end - start) * share), y)
            line = ((line - area[:2] + 0.5) * fine - 0.5) * 16
            cv2.polylines(cover, [np.rint(line).astype(np.int32)], False, 255, thick, cv2.LINE_AA, 4)
    colour = np.array(look.straps, np.float32) * exposure * 0.94
    return np.asarray(cover / np.float32(255), np.float32), np.broadcast_to(colour, (*cover.shape, 3))


def _shrunk(field: Field, shape: tuple[int, ...]) -> Field:
    if field.shape[:2] == tuple(shape[:2]):
        return field
    return np.asarray(cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_AREA), np.float32)


def _lay(part: Pixels, fields: list[Field], pose: _Pose, plain: _Egg, light: _Light, rng: Random) -> Pixels:
    """Lay shadow, straps and mask on a part of a photo; all other pixels stay as they are, bit for bit."""
    cover, colour, strap, strap_colour = fields
    free = 1 - 0.95 * light.hair
    for x, y in pose.eyes:
        free = free * (np.hypot(plain.flat[0] - x, (plain.flat[1] - y) * pose.high / pose.wide) > _EYE)
    shadow = _shadow(cover, pose, plain)
    # as soft as the photo: an edge sharper than anything else in it gives a painted mask away
    soft = 0.35 + 0.006 * pose.wide
    weight = cv2.GaussianBlur(cover, (0, 0), soft)
    colour = cv2.GaussianBlur(colour * cover[..., None], (0, 0), soft) / np.maximum(weight, 1e-3)[..., None]
    colour = colour + rng.normal(0, 1, cover.shape)[..., None] * max(light.grain, 0.6) + _weave(cover.shape, pose, rng)
    weight, strap = np.where(weight < 0.01, 0, weight) * free, 0.9 * strap * light.skin * free
    under = part * (1 - 0.34 * shadow * (free > 0))[..., None]
    under = under + (strap_colour - under) * strap[..., None]
    mixed = under + (colour - under) * weight[..., None]
    touched = (weight > 0) | (strap > 0) | (shadow * (free > 0) > 0)
    return np.where(touched[..., None], mixed.clip(0, 255).round(), part).astype(np.uint8)


def _shadow(cover: Field, pose: _Pose, plain: _Egg) -> Field:
    """The shadow of a mask on the face and the neck around it, 0 to 1."""
    moved = np.array([[1, 0, 0.04 * pose.high * pose.down[0]], [0, 1, 0.04 * pose.high * pose.down[1]]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, moved, cover.shape[::-1]), (0, 0), 0.05 * pose.wide + 0.3)
    x, y = plain.flat
    neck = _ramp(y, 1.4, 1.5) * _ramp(abs(x - pose.middle_at(1.25)), 0.7, 0.55)
    skin = np.maximum(_ramp(plain.inside, -0.02 * pose.wide, 0.04 * pose.wide), neck)
    shadow = shadow * skin * (1 - cover)
    return np.where(shadow < 0.02, 0, shadow).astype(np.float32)


def _weave(shape: tuple[int, ...], pose: _Pose, rng: Random) -> Any:
    """The unevenness of cloth: faint clouds, each a tenth of the face wide."""
    clouds = rng.normal(0, 1, (13, 17)).astype(np.float32)
    return 2.5 * cv2.resize(clouds, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)[..., None]


def _text(point: Any) -> str:
    return f"({point[0]:g}, {point[1]:g})"
