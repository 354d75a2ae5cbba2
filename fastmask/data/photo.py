"""Photos as a person sees them: one file -> (height, width, 3) uint8 RGB."""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin

from fastmask.data.decode import PhotoError, open_image, to_array
from fastmask.data.formats import describe_empty, describe_left_out, list_files
from fastmask.data.links import describe_broken
from fastmask.system import limits
from fastmask.system.errors import DataError, FastmaskWarning, UnreadableError, UsageError, one_line

_ORIENTATION = 0x0112
# control characters, and bytes of a name that are not UTF-8
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# (photo, path) -> the photo cut to its face
Cut = Callable[[np.ndarray, Path], np.ndarray]
A = TypeVar("A")
B = TypeVar("B")


def read_photo(path: str | Path) -> np.ndarray:
    """Decode a photo to (height, width, 3) uint8 RGB, rotated by its EXIF, transparency on white.

    Raises DataError naming the file if it is missing, empty, cut short or not an image.
    """
    return decode_named(read_bytes(path), path)


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a photo after its EXIF rotation, from its header; raises DataError as `read_photo` does."""
    data = read_bytes(path)
    with _naming(path):
        image = open_image(data)
        # Pillow's size of a TIFF is turned already, in some versions
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        return (width, height) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (height, width)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; raises DataError naming it if it is missing or empty or cannot be read."""
    try:
        if not Path(path).is_file():
            raise UnreadableError(describe_broken(Path(path)) or f"{path} is not a file; expected a photo there.")
        if Path(path).stat().st_size > limits.PHOTO_BYTES:
            most = limits.PHOTO_BYTES >> 20
            raise UnreadableError(f"{path} is longer than {most} MB, the limit of a photo; replace it.")
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror}); expected a photo there.") from error
    if not data:
        raise UnreadableError(f"{path} is empty; expected a photo. Copy the file again or remove its row.")
    return data


def decode_named(data: bytes, path: str | Path) -> np.ndarray:
    """Decode the bytes of the file at `path`; raises UnreadableError naming it."""
    with _naming(path):
        return decode_photo(data)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Raise the errors of decoding as UnreadableError with the name of the file."""
    try:
        yield
    except PhotoError as error:
        raise UnreadableError(f"{path} {error}, or remove its row.") from error
    except Exception as error:
        # it is not documented what Pillow raises for invalid bytes
        raise UnreadableError(
            f"{path} is damaged or cut short ({one_line(error)}); copy the file again or remove its row."
        ) from error


def decode_photo(data: bytes) -> np.ndarray:
    """Decode the bytes of a photo; plain JPEGs by simplejpeg (4 times as fast, the same pixels), all else by Pillow."""
    image = open_image(data)
    if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1:
        # its errors are also what libjpeg only warns of: Pillow decides what is damaged
        with suppress(ValueError):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
    return to_array(image, data)


def read_image(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of an image that Pillow has opened, like those of its file; raises UnreadableError naming it."""
    with _naming(name):
        return to_array(image)


def list_photos(folder: Path) -> list[Path]:
    """The photos in a folder and the folders inside it, sorted, without hidden ones; warns of the other files.

    Raises UsageError if there are none.
    """
    photos, others = split_files(folder)
    if not photos:
        raise UsageError(describe_empty(folder, others))
    warn_of_others(others)
    return photos


def split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos in a folder and the folders inside it, and the files that are left out; without hidden ones."""
    photos, others = list_files(folder)
    fault = next(filter(None, map(fault_of_name, photos)), None)
    if fault is not None:
        raise fault
    special = next((p for p in photos if not p.is_file()), None)
    if special is not None:
        raise DataError(describe_broken(special) or f"{special} is neither a file nor a folder; remove it.")
    return photos, others


def warn_of_others(others: Sequence[Path]) -> None:
    """Warn of the files of a folder that are left out, if there are any."""
    if others:
        warnings.warn(describe_left_out(others), FastmaskWarning, stacklevel=3)


def fault_of_name(path: Path) -> UnreadableError | None:
    """The error of a photo whose name a table cannot hold."""
    if not _UNWRITABLE.search(str(path)):
        return None
    return UnreadableError(f"{str(path)!r} has characters in its name that a table cannot hold; rename it.")


def has_more_pages(data: bytes) -> bool:
    """Whether a photo is a TIFF with pages after the first, which alone is read."""
    image = open_image(data)
    return isinstance(image, TiffImagePlugin.TiffImageFile) and bool(image.tag_v2.next)


def check_photos(paths: Sequence[Path], cut: Cut | None = None) -> list[tuple[int, int]]:
    """Decode every photo and return its (height, width), after `cut`; raises DataError naming an unreadable one.

    Headers do not suffice: that of a truncated file is complete.
    """

    def size(path: Path) -> tuple[int, int]:
        photo = read_photo(path)
        height, width, _ = (photo if cut is None else cut(photo, path)).shape
        return height, width

    return list(map_in_threads(size, paths))


def map_in_threads(work: Callable[[A], B], items: Sequence[A], workers: int | None = None) -> Iterator[B]:
    """The results of `work` for each item, in order, computed in threads: decoders release the GIL.

    A few results are computed in advance. After an interrupt or an error the remaining items are skipped.
    """
    workers = workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
