"""Cache: what the fixed beginning of an augmentation makes of photos, decoded once and kept, uint8.

A cache on the disk is one file of pixels in the order of the photos' digests, and an index beside it. Its name is a
digest of the photos' content, of the prefix and of what decodes, so another photo or prefix is another cache. Reading
takes no lock; building does, so that of several processes one builds and the others wait for it.

Beside the photos, in a folder of their own, lie the features that a screening has computed of them: a file a body. They
are listed and cleared here, and made and read there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from fastmask.data.augment import Prefix, is_photo, unfit
from fastmask.data.boxes import FaceCut
from fastmask.data.photo import decode_named, in_threads, read_bytes
from fastmask.system.errors import DataError, FastmaskWarning, UsageError, one_line
from fastmask.system.files import cache_home, read_json, replacing, write_json
from fastmask.system.terminal import bar
from fastmask.system.text import duration, in_bytes

FORMAT = 1
# what is left free on the disk, and how many photos stand for all
_RESERVE, _PROBED = 10**9, 16
_PIXELS, _INDEX, _FEATURES = ".photos", ".json", ".safetensors"
# no other file of somebody's folder is called so
_NAME = "[0-9a-f]{32}"
_BODY = re.compile(r"[\w.:/-]{1,100}", re.ASCII)
_BROKEN = "broken: made anew when it is needed"
# seconds after which nobody writes any more to a file of features that is not whole
_ABANDONED = 3600
_DECODERS = ("albumentations", "opencv-python-headless", "pillow", "simplejpeg")

Say = Callable[[str], None]
A = TypeVar("A")


class PhotoMap:
    """What a prefix made of photos, by their paths: read-only (height, width, 3) uint8.

    Sent to another process, a map of a file is opened there, and one in memory is left behind; what is not there is
    decoded.
    """

    def __init__(
        self, prefix: Sequence[Any] = (), photos: Mapping[str, np.ndarray] | None = None, file: Path | None = None
    ) -> None:
        self.prefix, self.file = list(prefix), file
        self._photos = dict(photos or {})

    def __len__(self) -> int:
        return len(self._photos)

    def get(self, path: str) -> np.ndarray | None:
        """What is kept of the photo at `path`, None where nothing is."""
        return self._photos.get(path)

    def sizes(self, paths: Iterable[str]) -> list[tuple[int, int]]:
        """(height, width) of what is kept of each of `paths`."""
        return [(self._photos[path].shape[0], self._photos[path].shape[1]) for path in paths]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            return PhotoMap, (self.prefix,)
        return _reopen, (self.prefix, self.file, list(self._photos), self.sizes(self._photos), self._starts())

    def _starts(self) -> list[int]:
        first = min(_address(photo) for photo in self._photos.values())
        return [_address(photo) - first for photo in self._photos.values()]


def digest_photos(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file's bytes; raises DataError naming one that cannot be read."""
    return list(_shown("reading photos", in_threads(_digest, paths), len(paths)))


def photo_map(
    paths: Sequence[Path],
    digests: Sequence[str],
    prefix: Prefix,
    cache: str = "auto",
    folder: str | Path | None = None,
    say: Say = lambda _: None,
    faces: FaceCut | None = None,
) -> PhotoMap:
    """What `prefix` makes of photos, cut to their `faces` where there are any, from a cache in `folder` or made now.

    `digests` are those of `digest_photos`. `cache` is "disk", "ram" (this process and those that it forks), "off" (an
    empty map, so that every photo is decoded whenever it is needed), or "auto": the first of disk, ram and off for
    which there is room. A cache that was asked for and cannot be had is a warning; `say` tells what else is done.
    Raises DataError naming a photo that cannot be read or that the prefix does not fit.
    """
    if cache == "off" or not len(paths):
        return PhotoMap(prefix.plain)
    source = _Source(paths, digests, prefix, faces)
    refusals: list[str] = []
    on_disk = partial(_on_disk, folder=Path(folder or photos_folder()))
    for place, make in (("disk", on_disk), ("ram", _in_memory)):
        if cache in (place, "auto"):
            try:
                made = make(source, say=say)
            except (OSError, UsageError) as error:
                refusals.append(f"{place}: {_why(error)}")
            else:
                if refusals:
                    say(f"Not kept on the {refusals[0]}")
                return made
    message = f"Photos are decoded anew in every epoch, for want of a cache ({'; '.join(refusals)})"
    if cache == "auto":
        say(message)
    else:
        warnings.warn(f"{message}.", FastmaskWarning, stacklevel=2)
    return PhotoMap(prefix.plain)


def _why(error: OSError | UsageError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return one_line(error)


def photos_folder() -> Path:
    """Where photos are kept unless somebody says otherwise."""
    return cache_home() / "photos"


def features_folder(folder: str | Path | None = None) -> Path:
    """Where features lie: in a folder that somebody has named for photos, or beside the one of photos."""
    return Path(folder or cache_home()) / "features"


def features_file(name: str, folder: str | Path | None = None) -> Path:
    """Where the features lie whose `name` is a digest, 32 hexadecimal digits, of all that they depend on."""
    return features_folder(folder) / f"{name}{_FEATURES}"


class _Source:
    """Photos and the prefix to apply: each content once, and each face of it, in the order of the digests."""

    def __init__(
        self, paths: Sequence[Path], digests: Sequence[str], prefix: Prefix, faces: FaceCut | None = None
    ) -> None:
        # a digest, and the face of a photo behind it
        marks = ("" if faces is None else f" {faces.mark(path)}" for path in paths)
        self.names = {str(path): f"{d}{mark}" for path, d, mark in zip(paths, digests, marks, strict=True)}
        self.prefix, self.faces = prefix, faces
        self.unique = sorted({digest: path for path, digest in self.names.items()}.items())
        self._local = threading.local()

    @property
    def key(self) -> str:
        """The name of the cache that these photos, this prefix and these decoders have, and no others."""
        what = [FORMAT, self.prefix.plain, [version(name) for name in _DECODERS], [d for d, _ in self.unique]]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]

    def decode(self, photo: tuple[str, str]) -> np.ndarray:
        """What the prefix makes of one (digest, path)."""
        digest, path = photo
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != digest.partition(" ")[0]:
            raise DataError(f"{path} was changed while it was read; start again once nobody writes to it.")
        image = decode_named(data, path)
        if self.faces is not None:
            image = self.faces(image, path)
        if not hasattr(self._local, "prefix"):
            # nobody says that a pipeline may be used by several threads
            self._local.prefix = copy.deepcopy(self.prefix)
        try:
            made: np.ndarray = self._local.prefix(image)
            if not is_photo(made):
                raise ValueError(f"it gives {made.dtype} {made.shape}")
        except Exception as error:
            raise unfit(Path(path), image.shape, "the pipeline", error) from error
        return np.ascontiguousarray(made)

    def decoded(self) -> Iterator[np.ndarray]:
        """What the prefix makes of each photo, in the order of the digests."""
        return _shown("decoding photos", in_threads(self.decode, self.unique), len(self.unique))

    @property
    def probed(self) -> range:
        """A few photos that stand for all."""
        return range(0, len(self.unique), -(-len(self.unique) // _PROBED))

    def bytes_needed(self) -> int:
        """How much all photos take, by a few of them."""
        return sum(self.decode(self.unique[i]).nbytes for i in self.probed) * len(self.unique) // len(self.probed)

    def map(self, photos: Sequence[np.ndarray], file: Path | None = None) -> PhotoMap:
        """The map of all paths, given the photos in the order of the digests."""
        by_digest = dict(zip((digest for digest, _ in self.unique), photos, strict=True))
        return PhotoMap(self.prefix.plain, {path: by_digest[d] for path, d in self.names.items()}, file)


def _on_disk(source: _Source, folder: Path, say: Say) -> PhotoMap:
    file = folder / f"{source.key}{_PIXELS}"
    found = _open(source, file)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_file(file))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process decodes the same photos into {folder}; waiting for it")
        lock.acquire()
    try:
        built = _open(source, file)
        return _build(source, file, say) if built is None else built
    finally:
        lock.release()


def _build(source: _Source, file: Path, say: Say) -> PhotoMap:
    """Decode all photos into `file`, whole or not at all."""
    for left in file.parent.glob(f".{file.stem}.*.part"):
        # of a process that was killed: whoever holds the lock is the only one that writes
        left.unlink()
    needed, free = source.bytes_needed(), shutil.disk_usage(file.parent).free
    if needed + _RESERVE > free:
        raise OSError(f"{file.parent} has {in_bytes(free)} free, photos take {in_bytes(needed)}")
    start, sizes = time.perf_counter(), []
    with replacing(file) as beside, beside.open("wb") as out:
        for photo in source.decoded():
            out.write(photo.data)
            sizes.append(photo.shape[:2])
        out.flush()
    index = {"format": FORMAT, "photos": len(sizes), "sizes": _runs(sizes), "prefix": source.prefix.plain}
    write_json(file.with_suffix(_INDEX), index)
    seconds = time.perf_counter() - start
    size = in_bytes(file.stat().st_size)
    say(f"Decoded {len(sizes)} different photos in {duration(seconds)} into {file.parent} ({size})")
    made = _open(source, file)
    if made is None:
        raise OSError(f"{file} is not what was written")
    return made


def _in_memory(source: _Source, say: Say) -> PhotoMap:
    needed, memory = source.bytes_needed(), psutil.virtual_memory().total
    if needed * 2 > memory:
        raise OSError(f"photos take {in_bytes(needed)}, this machine has {in_bytes(memory)}")
    photos = list(source.decoded())
    for photo in photos:
        photo.flags.writeable = False
    say(f"Decoded {len(photos)} different photos into memory ({in_bytes(sum(p.nbytes for p in photos))})")
    return source.map(photos)


def _open(source: _Source, file: Path) -> PhotoMap | None:
    """The map of a file of pixels; None where there is none, or not a whole one."""
    runs = _read_runs(file)
    if runs is None or sum(n for _, _, n in runs) != len(source.unique):
        return None
    sizes = [(h, w) for h, w, n in runs for _ in range(n)]
    ends = [0, *accumulate(height * width * 3 for height, width in sizes)]
    pixels = np.asarray(np.memmap(file, np.uint8, "r"))
    photos = [pixels[a:b].reshape(*size, 3) for (a, b), size in zip(pairwise(ends), sizes, strict=True)]
    # whatever has happened to the files, a few photos tell
    same = all(np.array_equal(photos[i], source.decode(source.unique[i])) for i in source.probed)
    return source.map(photos, file) if same else None


def _reopen(
    prefix: Sequence[Any], file: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]], starts: Sequence[int]
) -> PhotoMap:
    """A map that was sent to another process; empty where its file is not there."""
    if not file.is_file():
        return PhotoMap(prefix)
    pixels = np.asarray(np.memmap(file, np.uint8, "r"))
    placed = zip(names, sizes, starts, strict=True)
    photos = {name: pixels[at : at + h * w * 3].reshape(h, w, 3) for name, (h, w), at in placed}
    return PhotoMap(prefix, photos, file)


def _read_runs(file: Path) -> list[tuple[int, int, int]] | None:
    """[height, width, how many photos in a row] of a file of pixels, from its index; None where that is not whole.

    It may have been written by anybody, so nothing is laid out by it before it agrees with the size of the file.
    """
    if not all(part.is_file() and not part.is_symlink() for part in (file, file.with_suffix(_INDEX))):
        return None
    try:
        index = read_json(file.with_suffix(_INDEX))
        photos, runs = index["photos"], [(h, w, n) for h, w, n in index["sizes"]]
    except (DataError, KeyError, TypeError, ValueError):
        return None
    if any(type(number) is not int or number < 1 for run in runs for number in run):
        return None
    whole = sum(n for _, _, n in runs) == photos and sum(h * w * 3 * n for h, w, n in runs) == file.stat().st_size
    return runs if whole else None


def _runs(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Sizes as [height, width, how many photos in a row have them]."""
    runs: list[list[int]] = []
    for height, width in sizes:
        if runs and runs[-1][:2] == [height, width]:
            runs[-1][2] += 1
        else:
            runs.append([height, width, 1])
    return runs


@dataclass(frozen=True)
class CacheFile:
    """A cache on the disk: its file, what it holds, of how many photos, bytes, made when (seconds since 1970)."""

    path: Path
    what: str
    photos: int
    bytes: int
    made: float

    def __str__(self) -> str:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.made))
        return f"{self.path.stem}  {self.photos:7d} photos  {in_bytes(self.bytes):>8}  {made}  {self.what}"


def list_caches(folder: str | Path | None = None) -> list[CacheFile]:
    """The photos and features kept in a folder, the newest first; raises UsageError if there is no such folder."""
    if folder and not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; expected the --cache-dir of a run.")
    photos = [file for file in Path(folder or photos_folder()).glob(f"*{_PIXELS}") if file.is_file()]
    features = _features_in(features_folder(folder), f"{_NAME}{re.escape(_FEATURES)}")
    told = {**{file: _told(file) for file in photos}, **{file: _told_of_features(file) for file in features}}
    found = [CacheFile(file, *said, file.stat().st_size, file.stat().st_mtime) for file, said in told.items()]
    return sorted(found, key=lambda cache: -cache.made)


def _features_in(folder: Path, names: str) -> list[Path]:
    """The files of a folder of features whose names are of a pattern; none of one that a link has put there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [file for file in folder.iterdir() if re.fullmatch(names, file.name) and file.is_file()]


def _told_of_features(file: Path) -> tuple[str, int]:
    """What a file of features says for a person to read: of which body they are, and of how many photos."""
    try:
        with safe_open(file, framework="numpy") as opened:
            body = (opened.metadata() or {}).get("body", "")
            photos, each = opened.get_slice("features").get_shape()
    except (OSError, SafetensorError, ValueError):
        return _BROKEN, 0
    return f"{each} features of {body if _BODY.fullmatch(body) else 'a body'}", photos


def _told(file: Path) -> tuple[str, int]:
    """What a cache's index says for a person to read: the names of its transforms, and how many photos it holds."""
    runs = _read_runs(file)
    try:
        names = [t["transform"]["__class_fullname__"] for t in read_json(file.with_suffix(_INDEX))["prefix"]]
    except (DataError, KeyError, TypeError):
        names = [None]
    if runs is None or not all(isinstance(name, str) and name.isidentifier() for name in names):
        return _BROKEN, 0
    return ", ".join(names) or "whole photos", sum(n for _, _, n in runs)


def clear_cache(names: Sequence[str] = (), folder: str | Path | None = None) -> list[CacheFile]:
    """Remove the named photos or features of a folder, or all; a run that reads them keeps what it has open.

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
        cache.path.with_suffix(_INDEX).unlink(missing_ok=True)
    if not names:
        _clear_left(Path(folder or photos_folder()), features_folder(folder))
    return chosen


def _clear_left(folder: Path, features: Path) -> None:
    """Remove what builds and screenings that were killed have left, but not what one writes now."""
    for left in _features_in(features, rf"\.{_NAME}{re.escape(_FEATURES)}\.[0-9]+\.part"):
        if left.stat().st_mtime < time.time() - _ABANDONED:
            left.unlink(missing_ok=True)
    for left in folder.glob(".*.*.part"):
        lock = FileLock(folder / f".{left.name.split('.')[1]}.lock")
        try:
            with lock.acquire(timeout=0):
                left.unlink(missing_ok=True)
        except Timeout:
            continue


def _lock_file(file: Path) -> Path:
    return file.with_name(f".{file.stem}.lock")


def _shown(what: str, results: Iterator[A], total: int) -> Iterator[A]:
    """`results`, counted by a bar."""
    with bar(what) as progress:
        for done, result in enumerate(results, 1):
            yield result
            progress(done, total)


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _address(photo: np.ndarray) -> int:
    return int(photo.__array_interface__["data"][0])
