"""Formats: which files are photos, by their names and by their first bytes; needs only Pillow.

The script of an export contains this module, so it imports nothing of fastmask.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import features

# endings by Pillow's names of formats; of its other formats, one (EPS) executes the file in another program, and one
# (TGA) accepts most bytes
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# the names that Pillow gives to the libraries of formats, which an installation may lack
_LIBRARIES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
_INSTALL = {
    "HEIF": "install the package pillow-heif (pip install pillow-heif)",
    "AVIF": "install Pillow 11.3 or newer (pip install --upgrade pillow)",
}
# first bytes, in lower case, of files that are often taken for photos
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS", "run git lfs pull"),
    (b"\xff\x0a", "JPEG XL", "convert it to JPEG"),
    (b"\0\0\0\x0cjxl ", "JPEG XL", "convert it to JPEG"),
    (b"8bps", "a Photoshop file", "save it as JPEG"),
    (b"%pdf", "a PDF", "save its picture as JPEG"),
    (b"%!ps", "PostScript", "save it as JPEG"),
    (b"<svg", "an SVG drawing", "save it as PNG"),
    (b"<?xml", "XML, perhaps an SVG drawing", "save it as PNG"),
    (b"<!doctype html", "a web page, perhaps of a failed download", "download the photo again"),
    (b"<html", "a web page, perhaps of a failed download", "download the photo again"),
    (b"pk\x03\x04", "a zip file", "unpack it"),
    (b"\0\5\x16\7", "macOS's notes about another file", "delete it"),
    (b"\x93numpy", "a NumPy array", "save it as PNG"),
)
# of operating systems, network drives and Python, in lower case
_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "__pycache__", "@eadir")
# the files of every run
_RUN = ("heads.json", "config.yaml")


def is_readable(name: str) -> bool:
    """Whether the installed packages read a format of `FORMATS`."""
    if name == "HEIF":
        return find_spec("pillow_heif") is not None
    library = _LIBRARIES.get(name)
    known = library in features.modules or library in features.codecs
    return library is None or (known and bool(features.check(library)))


READABLE = tuple(name for name in FORMATS if is_readable(name))
SUFFIXES = tuple(suffix for name in READABLE for suffix in FORMATS[name])
# one per format, for messages
ENDINGS = ", ".join(FORMATS[name][0] for name in READABLE)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or of the operating system, by its name."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_photo(name: str) -> bool:
    """Whether a file is a photo, by its name; hidden ones are not."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def photo_names(folder: Path) -> list[str]:
    """The names of the photos in a folder, without those in folders inside it, sorted."""
    return sorted(filter(is_photo, os.listdir(folder)))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run: its pictures are not photos to train on or to predict."""
    return all((folder / name).is_file() for name in _RUN)


def list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos in a folder and the folders inside it, and the other files; both sorted, without hidden ones.

    A run inside the folder is one of the others, without its files. Links to folders outside are followed.
    """
    found = list(_walk(folder, []))
    runs = {path.parent for path in found if path.name == _RUN[0] and is_run(path.parent)} - {folder}
    found = [path for path in found if runs.isdisjoint(path.parents)] if runs else found
    photos = [path for path in found if is_photo(path.name)]
    others = [*(path for path in found if not is_photo(path.name)), *runs]
    # paths of Windows compare without case, and the order must be the same everywhere
    return sorted(photos, key=lambda path: path.parts), sorted(others, key=lambda path: path.parts)


def _walk(folder: Path, above: Sequence[Path]) -> Iterator[Path]:
    """The files in a folder and the folders inside it; `above` are the real places of the links that led to it."""
    reached = [*above, Path(os.path.realpath(folder))]
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(place, name) for name in files if not is_hidden(name))
        for link in (path for name in folders if (path := Path(place, name)).is_symlink()):
            target = Path(os.path.realpath(link))
            # a link into a folder that is listed anyway, or to one that contains it, would list photos again
            if not any(target.is_relative_to(root) or root.is_relative_to(target) for root in reached):
                yield from _walk(link, reached)


def describe_runs(runs: Iterable[object]) -> str:
    """A sentence on folders with results of fastmask, which are left out."""
    first, *more = map(str, runs)
    rest = f" and {len(more):,} more hold" if more else " holds"
    return f"{first}{rest} results of fastmask, not photos, and {'are' if more else 'is'} left out."


def describe_left_out(others: Sequence[Path]) -> str:
    """Sentences on files that are left out: their number, endings, an example, and how to read these formats."""
    runs = [path for path in others if is_run(path)]
    files = [path for path in others if path not in runs]
    return " ".join([*([describe_runs(runs)] if runs else []), *([_describe_files(files)] if files else [])])


def _describe_files(others: Sequence[Path]) -> str:
    endings = Counter(p.suffix.lower() or "without an ending" for p in others)
    several = [f"{n:,} {ending}" for ending, n in endings.most_common(4)]
    rest = len(endings) - len(several)
    parts = ", ".join(several) + (f" and {rest} more endings" if rest else "")
    needed = [name for name in _INSTALL if name not in READABLE and endings.keys() & set(FORMATS[name])]
    hints = [f"To read {FORMATS[name][0]}, {_INSTALL[name]}." for name in needed]
    if endings.keys() - {suffix for name in needed for suffix in FORMATS[name]}:
        hints.append(f"Names of photos end in {ENDINGS} or similar; rename or convert other photos.")
    are = "1 file is" if len(others) == 1 else f"{len(others):,} files are"
    return " ".join([f"{are} left out ({parts}), such as {others[0]}.", *hints])


def describe_empty(folder: object, others: Sequence[Path]) -> str:
    """A sentence on a folder without photos, and the files that it holds instead."""
    if not others:
        return f"{folder} holds no photos (such as {ENDINGS})."
    return f"{folder} holds no photos: {describe_left_out(others)}"


def is_heif(data: bytes) -> bool:
    """Whether bytes are a HEIC photo, by the brands in their first box."""
    return _has_brand(data, b"hei", b"hev", b"mif1", b"msf1") and not _has_brand(data, b"avif", b"avis")


def _has_brand(data: bytes, *brands: bytes) -> bool:
    return data[4:8] == b"ftyp" and any(brand in data[8:40] for brand in brands)


def describe_unreadable(data: bytes) -> str:
    """What a file that is not a readable image holds, and how to mend it, to follow its name."""
    what, mend = _identify(data)
    return (
        f"is {what}, not a photo that can be read; {mend}" if what else "is not an image that can be read; replace it"
    )


def _identify(data: bytes) -> tuple[str, str]:
    if is_heif(data):
        return "HEIC", "replace it" if "HEIF" in READABLE else f"{_INSTALL['HEIF']}, or convert it to JPEG"
    if _has_brand(data, b"avif", b"avis"):
        return "AVIF", "replace it" if "AVIF" in READABLE else f"{_INSTALL['AVIF']}, or convert it to JPEG"
    if data[4:8] == b"ftyp":
        return "a video", "save one of its frames as JPEG"
    first = data[:64].lower()
    return next(((what, mend) for start, what, mend in _OTHERS if first.startswith(start)), ("", "replace it"))
