"""Cache: photos after the deterministic prefix of an augmentation, decoded once and kept as uint8.

A cache on the disk is a file of pixels in the order of the photos' digests, and its index. Its name is a digest of the
photos' content, the prefix and the decoders, so another photo or prefix is another cache. Only building a cache takes a
lock, so that one of several processes builds it and the others wait.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from filelock import FileLock, Timeout

from fastmask.data.augment import Prefix, is_photo, size_error
from fastmask.data.boxes import FaceCut
from fastmask.data.cache_files import INDEX, PIXELS, photos_folder, read_sizes
from fastmask.data.photo import decode_named, map_in_threads, read_bytes
from fastmask.system.errors import DataError, FastmaskWarning, UsageError, one_line
from fastmask.system.files import atomic_write, write_json
from fastmask.system.terminal import Say, progress_bar
from fastmask.system.text import duration, in_bytes

FORMAT = 2
# bytes that are left free on the disk, and the number of photos that are compared or measured as a sample
_RESERVE, _PROBED = 10**9, 16
_DECODERS = ("albumentations", "opencv-python-headless", "pillow", "simplejpeg")


class PhotoMap:
    """Photos after a prefix, by their paths: read-only (height, width, 3) uint8.

    When it is unpickled in another process, the map of a file opens the file again, and one in memory is empty.
    """

    def __init__(
        self, prefix: Sequence[Any] = (), photos: Mapping[str, np.ndarray] | None = None, file: Path | None = None
    ) -> None:
        self.prefix, self.file = list(prefix), file
        self._photos = dict(photos or {})

    def __len__(self) -> int:
        return len(self._photos)

    def get(self, path: str) -> np.ndarray | None:
        """The cached photo at `path`, or None."""
        return self._photos.get(path)

    def sizes(self, paths: Iterable[str]) -> list[tuple[int, int]]:
        """(height, width) of the cached photo at each of `paths`."""
        return [(self._photos[path].shape[0], self._photos[path].shape[1]) for path in paths]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            return PhotoMap, (self.prefix,)
        places = [photo.ctypes.data for photo in self._photos.values()]
        starts = [place - min(places) for place in places]
        return _reopen, (self.prefix, self.file, list(self._photos), self.sizes(self._photos), starts)


def photo_map(
    paths: Sequence[Path],
    digests: Sequence[str],
    prefix: Prefix,
    cache: str = "auto",
    folder: str | Path | None = None,
    say: Say = lambda _: None,
    faces: FaceCut | None = None,
) -> PhotoMap:
    """Photos after `prefix`, cut to their `faces` if given, from a cache in `folder` or decoded now.

    `digests` are those of `digest_photos`. `cache` is "disk", "ram" (this process and those that it forks), "off" (an
    empty map: every photo is decoded each time), or "auto": the first of disk, ram and off for which there is room.
    Warns where "disk" or "ram" is not possible; `say` reports the rest. Raises DataError naming a photo that cannot be
    read or that does not fit the prefix.
    """
    if cache == "off" or not len(paths):
        return PhotoMap(prefix.plain)
    source = _Source(paths, digests, prefix, faces)
    refusals: list[str] = []
    on_disk = partial(_cache_on_disk, folder=Path(folder or photos_folder()))
    for place, make in (("disk", on_disk), ("ram", _cache_in_memory)):
        if cache in (place, "auto"):
            try:
                made = make(source, say=say)
            except (OSError, UsageError) as error:
                refusals.append(f"{place}: {_why(error)}")
            else:
                if refusals:
                    say(f"Not cached on the {refusals[0]}")
                return made
    message = f"Photos are decoded again in every epoch, without a cache ({'; '.join(refusals)})"
    if cache == "auto":
        say(message)
    else:
        warnings.warn(f"{message}.", FastmaskWarning, stacklevel=2)
    return PhotoMap(prefix.plain)


def _why(error: OSError | UsageError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return one_line(error)


class _Source:
    """Photos and the prefix to apply: each content and face once, in the order of the digests."""

    def __init__(
        self, paths: Sequence[Path], digests: Sequence[str], prefix: Prefix, faces: FaceCut | None = None
    ) -> None:
        # a digest, followed by the face of the photo
        marks = ("" if faces is None else f" {faces.key_of(path)}" for path in paths)
        self.names = {str(path): f"{d}{mark}" for path, d, mark in zip(paths, digests, marks, strict=True)}
        self.prefix, self.faces = prefix, faces
        self.unique = sorted({digest: path for path, digest in self.names.items()}.items())
        self._local = threading.local()

    @property
    def key(self) -> str:
        """The name of the cache of these photos, this prefix and these decoders."""
        what = [FORMAT, self.prefix.plain, [version(name) for name in _DECODERS], [d for d, _ in self.unique]]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]

    def decode(self, photo: tuple[str, str]) -> np.ndarray:
        """One photo, given as (digest, path), after the prefix."""
        digest, path = photo
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != digest.partition(" ")[0]:
            raise DataError(f"{path} was changed while it was read; start again once no other program writes to it.")
        image = decode_named(data, path)
        if self.faces is not None:
            image = self.faces(image, path)
        if not hasattr(self._local, "prefix"):
            # albumentations does not promise that threads can share a pipeline
            self._local.prefix = copy.deepcopy(self.prefix)
        try:
            made: np.ndarray = self._local.prefix(image)
            if not is_photo(made):
                raise ValueError(f"it gives {made.dtype} {made.shape}")
        except Exception as error:
            raise size_error(Path(path), image.shape, "the pipeline", error) from error
        return np.ascontiguousarray(made)

    def decoded(self) -> Iterator[np.ndarray]:
        """Each photo after the prefix, in the order of the digests."""
        with progress_bar("decoding photos") as progress:
            for done, photo in enumerate(map_in_threads(self.decode, self.unique), 1):
                yield photo
                progress(done, len(self.unique))

    @property
    def probed(self) -> range:
        """A few photos, spread evenly."""
        return range(0, len(self.unique), -(-len(self.unique) // _PROBED))

    def bytes_needed(self) -> int:
        """The bytes of all photos, estimated from a few."""
        return sum(self.decode(self.unique[i]).nbytes for i in self.probed) * len(self.unique) // len(self.probed)

    def map(self, photos: Sequence[np.ndarray], file: Path | None = None) -> PhotoMap:
        """The map of all paths, given the photos in the order of the digests."""
        by_digest = dict(zip((digest for digest, _ in self.unique), photos, strict=True))
        return PhotoMap(self.prefix.plain, {path: by_digest[d] for path, d in self.names.items()}, file)


def _cache_on_disk(source: _Source, folder: Path, say: Say) -> PhotoMap:
    file = folder / f"{source.key}{PIXELS}"
    found = _open(source, file)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.stem}.lock"))
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
        # left by a killed process: only the holder of the lock writes
        left.unlink()
    needed, free = source.bytes_needed(), shutil.disk_usage(file.parent).free
    if needed + _RESERVE > free:
        raise OSError(f"{file.parent} has {in_bytes(free)} free, photos take {in_bytes(needed)}")
    start, sizes = time.perf_counter(), []
    with atomic_write(file) as temporary, temporary.open("wb") as out:
        for photo in source.decoded():
            out.write(photo.data)
            sizes.append(photo.shape[:2])
        out.flush()
    runs = [[*size, len(list(run))] for size, run in groupby(sizes)]
    index = {"format": FORMAT, "photos": len(sizes), "sizes": runs, "prefix": source.prefix.plain}
    write_json(file.with_suffix(INDEX), index)
    seconds = time.perf_counter() - start
    size = in_bytes(file.stat().st_size)
    say(f"Decoded {len(sizes)} different photos in {duration(seconds)} into {file.parent} ({size})")
    made = _open(source, file)
    if made is None:
        raise OSError(f"{file} is not what was written")
    return made


def _cache_in_memory(source: _Source, say: Say) -> PhotoMap:
    needed, memory = source.bytes_needed(), psutil.virtual_memory().total
    if needed * 2 > memory:
        raise OSError(f"photos take {in_bytes(needed)}, this machine has {in_bytes(memory)}")
    photos = list(source.decoded())
    for photo in photos:
        photo.flags.writeable = False
    say(f"Decoded {len(photos)} different photos into memory ({in_bytes(sum(p.nbytes for p in photos))})")
    return source.map(photos)


def _open(source: _Source, file: Path) -> PhotoMap | None:
    """The map of a file of pixels; None where it is missing or not whole."""
    runs = read_sizes(file)
    if runs is None or sum(n for _, _, n in runs) != len(source.unique):
        return None
    sizes = [(h, w) for h, w, n in runs for _ in range(n)]
    photos = _map_photos(file, sizes, [0, *accumulate(height * width * 3 for height, width in sizes)])
    # a few photos are compared, because the files may have been changed
    same = all(np.array_equal(photos[i], source.decode(source.unique[i])) for i in source.probed)
    return source.map(photos, file) if same else None


def _reopen(
    prefix: Sequence[Any], file: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]], starts: Sequence[int]
) -> PhotoMap:
    """A map that was sent to another process; empty where its file is missing."""
    if not file.is_file():
        return PhotoMap(prefix)
    return PhotoMap(prefix, dict(zip(names, _map_photos(file, sizes, starts), strict=True)), file)


def _map_photos(file: Path, sizes: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[np.ndarray]:
    """The photos of a file of pixels by their sizes and first bytes, mapped into memory."""
    pixels = np.asarray(np.memmap(file, np.uint8, "r"))
    return [pixels[at : at + h * w * 3].reshape(h, w, 3) for (h, w), at in zip(sizes, starts, strict=False)]
