"""Two data sets of another kind than people, as photos and a CSV: python examples/benchmarks/other_photos.py OUT

OUT/digits/photos.csv   scikit-learn's handwritten digits 0 to 3 in pairs: heads `left`, `right` and `ink` (dark on
                        light or light on dark). A mirror image has other labels. Each pair is photographed twice
OUT/shapes/photos.csv   drawn shapes on textured backgrounds: heads `shape`, `pattern` and `size`
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

SIDE, DIGITS, SHAPES = 128, 4, 900
PATTERNS, SIZES = ("plain", "stripes", "dots"), ("small", "large")
CORNERS = {"triangle": 3, "square": 4, "hexagon": 6, "circle": 64}


def background(rng: np.random.Generator, mean: float) -> np.ndarray:
    """(SIDE, SIDE, 3) smooth noise around a mean colour."""
    coarse = rng.normal(mean, 30, (8, 8, 3)).astype(np.float32)
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 8, (SIDE, SIDE, 3))


def pair_of_digits(images: tuple[np.ndarray, np.ndarray], dark: bool, rng: np.random.Generator) -> np.ndarray:
    """A photo of two 8 x 8 digits of 0 to 16 side by side, each moved and scaled a little."""
    photo = background(rng, 190 if dark else 70)
    for place, image in enumerate(images):
        high, wide = rng.integers(60, 84), rng.integers(44, 60)
        ink = cv2.resize(image.astype(np.float32) / 16, (int(wide), int(high)), interpolation=cv2.INTER_CUBIC)
        top, left = rng.integers(4, SIDE - high - 4), place * SIDE // 2 + rng.integers(0, SIDE // 2 - wide + 1)
        photo[top : top + high, left : left + wide] += (-1 if dark else 1) * 110 * ink[..., None]
    return np.asarray(photo.clip(0, 255).astype(np.uint8))


def drawn_shape(shape: str, pattern: str, size: str, rng: np.random.Generator) -> np.ndarray:
    """A photo of a filled shape, turned at random, with a pattern in a second colour."""
    radius = rng.uniform(16, 24) if size == "small" else rng.uniform(32, 44)
    centre = rng.uniform(radius + 4, SIDE - radius - 4, 2)
    turns = rng.uniform(0, 2 * np.pi) + np.arange(CORNERS[shape]) * 2 * np.pi / CORNERS[shape]
    corners = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    inside = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(inside, [corners.round().astype(np.int32)], 1)
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = {"plain": np.zeros((SIDE, SIDE)), "stripes": np.sin(x * 0.9), "dots": np.sin(x * 0.7) * np.sin(y * 0.7)}
    first, second = rng.uniform(30, 225, (2, 3))
    second = first + np.sign(127 - first) * rng.uniform(50, 90)
    fill = np.where((waves[pattern] > 0.3)[..., None], second, first) + rng.normal(0, 8, (SIDE, SIDE, 3))
    photo = np.where(inside[..., None] == 1, fill, background(rng, rng.uniform(60, 200)))
    return np.asarray(photo.clip(0, 255).astype(np.uint8))


def write(folder: Path, photos: list[np.ndarray], labels: pd.DataFrame) -> None:
    """Write PNGs and their CSV."""
    (folder / "photos").mkdir(parents=True)
    paths = [f"photos/{number:05}.png" for number in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        cv2.imwrite(str(folder / path), photo)
    labels.assign(path=paths).to_csv(folder / "photos.csv", index=False)


def write_digits(folder: Path, seed: int = 0) -> None:
    rng, (images, names) = np.random.default_rng(seed), load_digits(return_X_y=True)
    few = rng.permutation(np.flatnonzero(names < DIGITS))
    photos, rows = [], []
    for number, (left, right) in enumerate(few[: len(few) // 2 * 2].reshape(-1, 2)):
        for ink in ("dark", "light"):
            both = (images[left].reshape(8, 8), images[right].reshape(8, 8))
            photos.append(pair_of_digits(both, ink == "dark", rng))
            rows.append({"person": f"pair{number}", "left": names[left], "right": names[right], "ink": ink})
    write(folder, photos, pd.DataFrame(rows))


def write_shapes(folder: Path, seed: int = 0) -> None:
    rng, photos, rows = np.random.default_rng(seed), [], []
    for number in range(SHAPES):
        row = {"shape": rng.choice(list(CORNERS)), "pattern": rng.choice(PATTERNS), "size": rng.choice(SIZES)}
        photos.append(drawn_shape(**row, rng=rng))
        rows.append({"person": f"drawing{number}", **row})
    write(folder, photos, pd.DataFrame(rows))


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]) / "digits")
    write_shapes(Path(sys.argv[1]) / "shapes")
