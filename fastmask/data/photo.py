"""Photos as a person sees them: one file -> (height, width, 3) uint8 RGB."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmask.system import limits
from fastmask.system.errors import DataError, UnreadableError, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# the formats of these suffixes; Pillow has others, one of which (EPS) executes the file in another program
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
_ORIENTATION = 0x0112
# control characters, and bytes of a name that are not UTF-8
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# (photo, path) -> the photo cut to its face
Cut = Callable[[np.ndarray, Path], np.ndarray]
A = TypeVar("A")
B = TypeVar("B")


class TooLargeError(ValueError):
    """A photo that would take gigabytes when decoded."""


def read_photo(path: str | Path) -> np.ndarray:
    """Decode a photo to (height, width, 3) uint8 RGB, rotated by its EXIF, transparency on white.

    Raises DataError naming the file if it is missing, empty, cut short or not an image.
    """
    return decode_named(read_bytes(path), path)


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a photo after its EXIF rotation, from its header; raises DataError as `read_photo` does."""
    try:
        with Image.open(BytesIO(read_bytes(path)), formats=_FORMATS) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except UnreadableError:
        raise
    except Exception as error:
        # it is not documented what Pillow raises for invalid bytes
        raise UnreadableError(f"{path} is not an image that can be read; replace it or remove its row.") from error


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; raises DataError naming it if it is missing or empty or cannot be read."""
    try:
        if not Path(path).is_file():
            raise UnreadableError(f"{path} is not a file; expected a photo there.")
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
    """Decode the bytes of the file at `path`; raises DataError naming it."""
    try:
        return decode_photo(data)
    except UnidentifiedImageError as error:
        raise UnreadableError(f"{path} is not an image that can be read; replace it or remove its row.") from error
    except (TooLargeError, Image.DecompressionBombError) as error:
        raise UnreadableError(
            f"{path} has too many pixels ({one_line(error)}), expected at most {limits.PIXELS}; scale it down, or "
            "remove its row."
        ) from error
    except Exception as error:
        # it is not documented what Pillow raises for invalid bytes
        raise UnreadableError(
            f"{path} is damaged or cut short ({one_line(error)}); copy the file again or remove its row."
        ) from error


def decode_photo(data: bytes) -> np.ndarray:
    """Decode the bytes of a photo; plain JPEGs by simplejpeg (4 times as fast, the same pixels), all else by Pillow."""
    image = Image.open(BytesIO(data), formats=_FORMATS)
    if image.width * image.height > limits.PIXELS:
        raise TooLargeError(f"it is {image.height} high and {image.width} wide")
    if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    image.load()
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips 16-bit grey at 255 instead of scaling it
        deep = np.asarray(image, dtype=np.float64)
        return Image.fromarray((deep / 257).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def list_photos(folder: Path) -> list[Path]:
    """The photos in a folder and the folders inside it, sorted, without hidden ones."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    shown = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    # paths of Windows compare without case, and the order must be the same everywhere
    photos = sorted(shown, key=lambda path: path.parts)
    unnamed = next((p for p in photos if _UNWRITABLE.search(str(p))), None)
    if unnamed is not None:
        raise DataError(f"{str(unnamed)!r} has characters in its name that a table cannot hold; rename it.")
    special = next((p for p in photos if not p.is_file()), None)
    if special is not None:
        raise DataError(f"{special} is neither a file nor a folder, or a link to nothing; remove it.")
    return photos


def links_outside(path: Path, folder: Path) -> bool:
    """Whether `path`, which starts with `folder`, is or passes a link out of it."""
    between = [path, *path.parents[: len(path.parts) - len(folder.parts) - 1]]
    return any(p.is_symlink() for p in between) and not Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    )


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
