"""Cache files: decoded photos, digests, features and near copies on the disk: their paths, contents and removal.

`cache` makes and reads the photos: a file of pixels and its index. `digests` makes and reads the digests: one file of
all. `training.features` makes and reads the features: a file per body. `preparation.near_copies` makes and reads the
near copies: a file per data set.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import cache_home, read_json
from fastmask.system.text import count, in_bytes

PIXELS, INDEX, _FEATURES, _COPIES = ".photos", ".json", ".safetensors", ".json"
# digests, so that no other files of the folder match
_NAME = "[0-9a-f]{32}"
_DIGEST = re.compile("[0-9a-f]{64}")
_BODY = re.compile(r"[\w.:/-]{1,100}", re.ASCII)
_BROKEN = "broken: it is made again when needed"
# seconds after which an unfinished file of features counts as abandoned
_ABANDONED = 3600


@dataclass(frozen=True)
class CacheFile:
    """A cache on the disk: its file, its content in words, its photos, bytes, time made (seconds since 1970)."""

    path: Path
    what: str
    photos: int
    bytes: int
    made: float

    def __str__(self) -> str:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.made))
        return f"{self.path.stem}  {self.photos:7d} photos  {in_bytes(self.bytes):>8}  {made}  {self.what}"


def photos_folder() -> Path:
    """The default folder of decoded photos."""
    return cache_home() / "photos"


def digests_file() -> Path:
    """The file of the digests of photos, of all data sets."""
    # another number for other columns
    return cache_home() / "digests-1.sqlite"


def features_folder(folder: str | Path | None = None) -> Path:
    """The folder of features: in the given folder of photos, by default next to the default one."""
    return Path(folder or cache_home()) / "features"


def features_file(name: str, folder: str | Path | None = None) -> Path:
    """The file of features called `name`, a digest (32 hexadecimal digits) of all that they depend on."""
    return features_folder(folder) / f"{name}{_FEATURES}"


def copies_file(name: str, folder: str | Path | None = None) -> Path:
    """The file of near copies called `name`, a digest (32 hexadecimal digits) of the photos and their persons."""
    return _copies_folder(folder) / f"{name}{_COPIES}"


def _copies_folder(folder: str | Path | None = None) -> Path:
    return Path(folder or cache_home()) / "copies"


def read_copies(file: Path) -> list[tuple[str, str]] | None:
    """The digests of each two photos in a file of near copies; None if it is missing or broken."""
    if not file.is_file() or file.is_symlink():
        return None
    try:
        pairs = [(str(one), str(other)) for one, other in read_json(file)["pairs"]]
    except (DataError, KeyError, TypeError, ValueError):
        return None
    return pairs if all(_DIGEST.fullmatch(digest) for pair in pairs for digest in pair) else None


def read_sizes(file: Path) -> list[tuple[int, int, int]] | None:
    """[height, width, number of consecutive photos] of a file of pixels, by its index; None if either is incomplete.

    The index may be malicious, so it must agree with the size of the file before anything is allocated.
    """
    if not all(part.is_file() and not part.is_symlink() for part in (file, file.with_suffix(INDEX))):
        return None
    try:
        index = read_json(file.with_suffix(INDEX))
        photos, runs = index["photos"], [(h, w, n) for h, w, n in index["sizes"]]
    except (DataError, KeyError, TypeError, ValueError):
        return None
    if any(type(number) is not int or number < 1 for run in runs for number in run):
        return None
    whole = sum(n for _, _, n in runs) == photos and sum(h * w * 3 * n for h, w, n in runs) == file.stat().st_size
    return runs if whole else None


def list_caches(folder: str | Path | None = None) -> list[CacheFile]:
    """The photos, features and near copies kept in a folder, by default the user's, and its digests; the newest first.

    Raises UsageError if there is no such folder.
    """
    if folder and not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; expected the --cache-dir of a run.")
    photos = [file for file in Path(folder or photos_folder()).glob(f"*{PIXELS}") if file.is_file()]
    features = _files_in(features_folder(folder), f"{_NAME}{re.escape(_FEATURES)}")
    copies = _files_in(_copies_folder(folder), f"{_NAME}{re.escape(_COPIES)}")
    contents = {
        **{file: _photos_content(file) for file in photos},
        **{file: _features_content(file) for file in features},
        **{file: _copies_content(file) for file in copies},
    }
    if not folder and digests_file().is_file():
        contents[digests_file()] = _digests_content(digests_file())
    states = ((file, file.stat(), content) for file, content in contents.items())
    found = [CacheFile(file, *content, state.st_size, state.st_mtime) for file, state, content in states]
    return sorted(found, key=lambda cache: -cache.made)


def _files_in(folder: Path, names: str) -> list[Path]:
    """The files of a folder of features or near copies by a pattern of names; none where the folder is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [file for file in folder.iterdir() if re.fullmatch(names, file.name) and file.is_file()]


def _photos_content(file: Path) -> tuple[str, int]:
    """The names of the transforms of a file of pixels, and its number of photos."""
    runs = read_sizes(file)
    try:
        names = [t["transform"]["__class_fullname__"] for t in read_json(file.with_suffix(INDEX))["prefix"]]
    except (DataError, KeyError, TypeError):
        names = [None]
    if runs is None or not all(isinstance(name, str) and name.isidentifier() for name in names):
        return _BROKEN, 0
    return ", ".join(names) or "whole photos", sum(n for _, _, n in runs)


def _features_content(file: Path) -> tuple[str, int]:
    """The body of a file of features, and its number of photos."""
    try:
        with safe_open(file, framework="numpy") as opened:
            body = (opened.metadata() or {}).get("body", "")
            photos, each = opened.get_slice("features").get_shape()
    except (OSError, SafetensorError, ValueError):
        return _BROKEN, 0
    return f"{each} features of {body if _BODY.fullmatch(body) else 'a body'}", photos


def _copies_content(file: Path) -> tuple[str, int]:
    """The number of pairs of a file of near copies, and its number of photos."""
    pairs = read_copies(file)
    photos = read_json(file).get("photos") if pairs is not None else None
    if pairs is None or type(photos) is not int:
        return _BROKEN, 0
    return f"near copies: {count(len(pairs), 'pair')} of persons", photos


def _digests_content(file: Path) -> tuple[str, int]:
    """A word about a file of digests, and its number of photos."""
    try:
        with closing(sqlite3.connect(file)) as opened:
            return "digests", int(opened.execute("SELECT COUNT(*) FROM digests").fetchone()[0])
    except sqlite3.Error:
        return _BROKEN, 0


def clear_cache(names: Sequence[str] = (), folder: str | Path | None = None) -> list[CacheFile]:
    """Remove the named files of a folder, or all; a run that has them open can still read them.

    Raises UsageError for an unknown name, OSError on Windows if a run has the file open.
    """
    found = list_caches(folder)
    unknown = sorted(set(names) - {cache.path.stem for cache in found})
    if unknown:
        raise UsageError(f"{folder or cache_home()} has no cache {unknown[0]!r}; fastmask cache list names them.")
    chosen = [cache for cache in found if not names or cache.path.stem in names]
    for cache in chosen:
        # pixels first: Windows refuses while a run has them open, and then the index must stay
        cache.path.unlink(missing_ok=True)
        cache.path.with_suffix(INDEX).unlink(missing_ok=True)
    if not names:
        _clear_unfinished(Path(folder or photos_folder()), features_folder(folder))
    return chosen


def _clear_unfinished(folder: Path, features: Path) -> None:
    """Remove the unfinished files of processes that were killed, but not those that are being written."""
    for left in _files_in(features, rf"\.{_NAME}{re.escape(_FEATURES)}\.[0-9]+\.part"):
        if left.stat().st_mtime < time.time() - _ABANDONED:
            left.unlink(missing_ok=True)
    for left in folder.glob(".*.*.part"):
        lock = FileLock(folder / f".{left.name.split('.')[1]}.lock")
        try:
            with lock.acquire(timeout=0):
                left.unlink(missing_ok=True)
        except Timeout:
            continue
