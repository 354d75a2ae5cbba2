"""Duplicates: signatures of photos that survive re-encoding, and all pairs of persons that share a picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

# similarity of signatures that may be of one picture: copies that are smaller, darker or mirrored have 0.95 or more,
# cropped by 3 % 0.96, by 6 % 0.9; two people reach 0.88 among 600 portraits, 0.97 among 600 drawings
ALIKE = 0.9
# likeness of one picture: copies have 0.95, two people 0.54 in portraits, 0.91 in drawings of one style
SAME = 0.935
_SIDE, _COLOUR_SIDE, _REGISTERED_SIDE, _MARGIN = 32, 8, 128, 10
# grey levels below which contrast and colour are ignored
_CONTRAST_FLOOR, _COLOUR_FLOOR = 4.0, 8.0


class NearPair(NamedTuple):
    """The rows of the two most similar photos of two persons, and the number of their similar pairs."""

    one: int
    other: int
    similarity: float
    mirrored: bool
    pairs: int


def shrink(photo: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 RGB -> (32, 32, 3), by area means."""
    return np.asarray(cv2.resize(photo, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))


def signature(small: np.ndarray) -> np.ndarray:
    """A photo from `shrink` -> (1153,) float32 of length 1; the dot product of two is the similarity of the photos.

    Half is outlines, 32 x 32; half is coarse colour, without which all portraits before a plain wall are similar.
    """
    halves = np.concatenate([_unit(_outlines(_blur(_grey(small), 1), 4).ravel()), _unit(_colour(small))])
    return np.asarray(halves / np.sqrt(2), dtype=np.float32)


def _colour(small: np.ndarray) -> np.ndarray:
    tints = cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float32) - 128
    coarse = cv2.resize(tints, (_COLOUR_SIDE, _COLOUR_SIDE), interpolation=cv2.INTER_AREA).ravel()
    # the constant makes two nearly grey photos similar in colour, whatever the tint of their noise
    return np.append(coarse, _COLOUR_FLOOR * np.sqrt(coarse.size))


def _outlines(grey: np.ndarray, reach: float) -> np.ndarray:
    """The photo without shading, its contrast equalised over `reach` pixels, so that brightness does not matter."""
    detail = grey - _blur(grey, 3)
    even = detail / (np.sqrt(_blur(detail**2, reach)) + _CONTRAST_FLOOR)
    return np.asarray(even - even.mean())


def _grey(photo: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32))


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def mirrored(signatures: np.ndarray) -> np.ndarray:
    """(N, 1153) signatures -> those of the mirrored photos."""
    structure = np.arange(_SIDE**2).reshape(_SIDE, _SIDE)[:, ::-1].ravel()
    colour = np.arange(2 * _COLOUR_SIDE**2).reshape(_COLOUR_SIDE, _COLOUR_SIDE, 2)[:, ::-1].ravel()
    constant = [signatures.shape[1] - 1]
    return np.asarray(signatures[:, np.concatenate([structure, structure.size + colour, constant])])


def exact_groups(contents: Sequence[Hashable]) -> list[list[int]]:
    """The rows of each duplicated content, in order."""
    rows: dict[Hashable, list[int]] = {}
    for row, content in enumerate(contents):
        rows.setdefault(content, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_pairs(
    signatures: np.ndarray,
    persons: Sequence[Hashable] | np.ndarray,
    contents: Sequence[Hashable],
    alike: float = ALIKE,
    block: int = 2048,
) -> list[NearPair]:
    """A NearPair for each two persons with photos at least `alike`, plain or mirrored, the most similar first.

    Photos of equal content are left to `exact_groups`. Compares all pairs, `block` x `block` at a time.
    """
    who, what = pd.factorize(np.asarray(persons))[0], pd.factorize(np.asarray(contents))[0]
    starts = range(0, len(signatures), block)
    found = [_alike_in(signatures, who, what, a, b, alike, block) for a in starts for b in starts if a <= b]
    if not found:
        return []
    best = _best_of_persons(pd.concat(found, ignore_index=True))
    return [NearPair(*row) for row in best[list(NearPair._fields)].itertuples(index=False)]


def _alike_in(
    signatures: np.ndarray, who: np.ndarray, what: np.ndarray, a: int, b: int, alike: float, block: int
) -> pd.DataFrame:
    left, right = signatures[a : a + block], signatures[b : b + block].T
    plain, mirror = left @ right, mirrored(left) @ right
    i, j = np.nonzero(np.maximum(plain, mirror) >= alike)
    one, other = i + a, j + b
    keep = (one < other) & (who[one] != who[other]) & (what[one] != what[other])
    i, j, one, other = i[keep], j[keep], one[keep], other[keep]
    ends = np.sort(np.stack([who[one], who[other]]), axis=0)
    likeness = {"similarity": np.maximum(plain[i, j], mirror[i, j]), "mirrored": mirror[i, j] > plain[i, j]}
    return _best_of_persons(
        pd.DataFrame({"one": one, "other": other, **likeness, "pairs": 1, "p": ends[0], "q": ends[1]})
    )


def _best_of_persons(frame: pd.DataFrame) -> pd.DataFrame:
    ordered = frame.sort_values(["similarity", "one", "other"], ascending=[False, True, True])
    totals = ordered.groupby(["p", "q"])["pairs"].transform("sum")
    return ordered.assign(pairs=totals).drop_duplicates(["p", "q"])


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of the outlines of two aligned photos, (height, width, 3) uint8 RGB; from SAME on one picture.

    The alignment finds shift, scale and rotation, so that a cropped copy has a high likeness.
    """
    size = (_REGISTERED_SIDE, _REGISTERED_SIDE)
    a, b = (_blur(_grey(cv2.resize(photo, size, interpolation=cv2.INTER_AREA)), 1) for photo in (one, other))
    warp = np.eye(2, 3, dtype=np.float32)
    # without convergence they are compared as they are
    with suppress(cv2.error):
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)
        _, warp = cv2.findTransformECC(a, b, warp, cv2.MOTION_AFFINE, stop, None, 5)
    b = cv2.warpAffine(b, warp, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    inner = slice(_MARGIN, -_MARGIN)
    return float(_unit(_outlines(a, 6)[inner, inner].ravel()) @ _unit(_outlines(b, 6)[inner, inner].ravel()))
