"""Seen: the photos and persons that weights were trained on, as short hashes, and what the folds of a run validate."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from fastmask.data.table import Table

# of a million photos, two have the same 8 bytes with a probability of 3e-8
_BYTES = 8

Hashes = frozenset[bytes]


def hash_names(*, photos: Iterable[str] = (), persons: Iterable[str] = (), paths: Iterable[str] = ()) -> Hashes:
    """Short hashes of photos by their SHA-256, of the names of persons, and of paths.

    Without a salt, since hashes of several runs are joined and compared with those of any table. So whoever has a
    photo, or guesses the name of a person, can test whether it is among them.
    """
    kinds = (("photo", photos), ("person", persons), ("path", paths))
    return frozenset(_hash(kind, name) for kind, names in kinds for name in names)


def _hash(kind: str, name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_BYTES, person=kind.encode()).digest()


def hashes_to_text(hashes: Hashes) -> str:
    """Hashes as base64, in order."""
    return base64.b64encode(b"".join(sorted(hashes))).decode()


def text_to_hashes(text: str) -> Hashes:
    """The inverse of `hashes_to_text`; raises ValueError for other text."""
    joined = base64.b64decode(text, validate=True)
    if len(joined) % _BYTES:
        raise ValueError(f"found hashes of {len(joined)} bytes, expected a multiple of {_BYTES}")
    return frozenset(joined[at : at + _BYTES] for at in range(0, len(joined), _BYTES))


@dataclass(frozen=True)
class Validation:
    """What the folds of a run validate: the photos of a table by its (N,) `folds`.

    A photo of no fold is never validated. `digests` (N,) are the SHA-256 of the photos; `group` "person" means that no
    person of a fold may have been seen either; `chosen` are the folds to train, by default all. `versions` are those of
    some photos: the rows of these, and their SHA-256.
    """

    table: Table
    folds: np.ndarray
    digests: Sequence[str]
    group: str = "person"
    chosen: Sequence[int] | None = None
    versions: Sequence[tuple[np.ndarray, Sequence[str]]] = ()

    @property
    def chosen_folds(self) -> list[int]:
        """The folds to train."""
        return list(range(int(self.folds.max()) + 1) if self.chosen is None else self.chosen)

    def find(self, seen: Hashes, fold: int | None = None) -> str | None:
        """A photo ("photo PATH") or else a person ("person NAME") of a fold, or of any, with a hash in `seen`."""
        if not seen:
            return None
        rows = np.flatnonzero(self.folds >= 0 if fold is None else self.folds == fold).tolist()
        paths = self.table.frame["path"].tolist()
        contents = [[digest] for digest in self.digests]
        for origins, digests in self.versions:
            for row, digest in zip(origins.tolist(), digests, strict=True):
                contents[row].append(digest)
        for row in rows:
            if seen & hash_names(photos=contents[row], paths=[paths[row]]):
                return f"photo {paths[row]}"
        persons = sorted(set(self.table.persons[rows])) if self.group == "person" else []
        return next((f"person {name}" for name in persons if seen & hash_names(persons=[name])), None)
