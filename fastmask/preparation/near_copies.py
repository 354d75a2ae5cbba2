"""Near copies: photos of two persons that are one picture with other bytes, searched once and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmask.data.cache_files import copies_file, read_copies
from fastmask.data.photo import map_in_threads
from fastmask.preparation.duplicates import SAME, NearPair, likeness, near_pairs, shrink, signature
from fastmask.system.files import write_json
from fastmask.system.terminal import progress_bar

# increased whenever the search changes
_FORMAT = 1
# pairs of persons that are compared in full, the most similar ones
MOST_CANDIDATES = 2_000
WHOLE = "whole"

# a row's photo, (height, width, 3) uint8 RGB
PhotoOf = Callable[[int], np.ndarray]


class NearCopies(NamedTuple):
    """The pairs that are one picture, and the number of similar pairs, of which MOST_CANDIDATES are compared."""

    pairs: list[NearPair]
    candidates: int


def find_near_copies(
    signatures: np.ndarray,
    persons: np.ndarray,
    contents: Sequence[Hashable],
    photo_of: PhotoOf,
    workers: int | None = None,
) -> NearCopies:
    """The two most similar photos of each two persons who have one picture, the most similar first.

    `signatures` are (N, 1153), see `duplicates.signature`; photos of equal `contents` are not compared.
    """
    pairs = near_pairs(signatures, persons, contents)

    def compare(pair: NearPair) -> float:
        one, other = photo_of(pair.one), photo_of(pair.other)
        return likeness(one, np.ascontiguousarray(other[:, ::-1]) if pair.mirrored else other)

    compared = pairs[:MOST_CANDIDATES]
    shares = map_in_threads(compare, compared, workers)
    return NearCopies([pair for pair, share in zip(compared, shares, strict=True) if share >= SAME], len(pairs))


def search_near_copies(groups: np.ndarray, digests: Sequence[str], photo_of: PhotoOf) -> list[tuple[str, str]]:
    """The digests of two photos that are one picture, for each two groups that have one.

    `groups` (N,) and `digests` are those of the photos; no two groups share a digest. Each photo is asked for once, and
    again if it is similar to another.
    """
    signatures = []
    with progress_bar("looking for near copies") as progress:
        for each in map_in_threads(lambda row: signature(shrink(photo_of(row))), range(len(digests))):
            signatures.append(each)
            progress(len(signatures), len(digests))
    found = find_near_copies(np.stack(signatures), groups, digests, photo_of)
    return [(digests[pair.one], digests[pair.other]) for pair in found.pairs]


def recall_near_copies(
    groups: np.ndarray, digests: Sequence[str], folder: str | Path | None = None, shown_as: object = WHOLE
) -> list[tuple[str, str]] | None:
    """What was found among these photos in these groups, in any order, shown whole or as `shown_as`; else None."""
    files = (_file(groups, digests, folder, each) for each in (WHOLE, shown_as))
    known = set(digests)
    for found in map(read_copies, files):
        if found is not None:
            return [pair for pair in found if known.issuperset(pair)]
    return None


def remember_near_copies(
    groups: np.ndarray,
    digests: Sequence[str],
    found: Sequence[tuple[str, str]],
    folder: str | Path | None = None,
    shown_as: object = WHOLE,
) -> None:
    """Keep what `search_near_copies` found in the cache `folder`; raises OSError or UsageError if it cannot.

    `shown_as`, plain values, is what was made of the photos before: a crop has fewer near copies.
    """
    pairs = [list(pair) for pair in found]
    write_json(_file(groups, digests, folder, shown_as), {"photos": len(digests), "pairs": pairs})


def _file(groups: np.ndarray, digests: Sequence[str], folder: str | Path | None, shown_as: object) -> Path:
    what = [_FORMAT, shown_as, sorted(zip(groups.tolist(), digests, strict=True))]
    return copies_file(hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32], folder)
