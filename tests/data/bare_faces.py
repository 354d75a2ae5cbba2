"""Drawn faces with their landmarks, for the tests of painting."""

import math

import numpy as np

from fastmask.data.drawing import Person, Pose, draw
from fastmask.data.paint import Landmarks

# In the drawing's own pixels: the tip of the nose is at 45, the mouth at 72, both below the eyes.
NOSE, MOUTH = 45, 72


def points_of(person: Person, pose: Pose) -> dict[str, tuple[float, float]]:
    """Where the drawing puts things, by hand: turned by the tilt, scaled, moved."""

    def place(x: float, y: float) -> tuple[float, float]:
        cos, sin = pose.scale * math.cos(pose.tilt), pose.scale * math.sin(pose.tilt)
        return pose.x + cos * x - sin * y, pose.y + sin * x + cos * y

    return {
        "right_eye": place(-person.eye_apart, 0),
        "left_eye": place(person.eye_apart, 0),
        "nose": place(0, NOSE),
        "right_mouth": place(-22, MOUTH),
        "left_mouth": place(22, MOUTH),
        "mouth": place(0, MOUTH),
        "chin": place(0, person.chin - 4),
    }


def landmarks_of(points: dict[str, tuple[float, float]]) -> Landmarks:
    names = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")
    x, y = np.array([points[name] for name in names]).T
    return Landmarks(**{name: points[name] for name in names}, box=(x.min() - 40, y.min() - 70, x.max() + 40, y.max()))


def drawn(number: int = 0, tilt: float = 0.0) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """A bare face and its points."""
    person, pose = Person((0, 0, number), number % 2, number % 3), Pose(np.random.default_rng(number))
    pose.tilt = tilt
    return draw(person, "normal", pose), points_of(person, pose)


def changed(before: np.ndarray, after: np.ndarray, point: tuple[float, float], radius: int = 0) -> np.ndarray:
    """Which pixels around a point differ."""
    x, y = round(point[0]), round(point[1])
    rows, columns = slice(y - radius, y + radius + 1), slice(x - radius, x + radius + 1)
    return (before[rows, columns] != after[rows, columns]).any(axis=2)


def moved(before: np.ndarray, after: np.ndarray, point: tuple[float, float]) -> float:
    """By how many grey levels the surroundings of a point differ, in the mean."""
    x, y = round(point[0]), round(point[1])
    window = np.s_[y - 2 : y + 3, x - 2 : x + 3]
    return float(abs(before[window].astype(float) - after[window]).mean())
