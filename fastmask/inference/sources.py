"""Sources: what photos to predict are given as, by name: files, folders, opened images, arrays, the bytes of files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fastmask.data.boxes import FaceCut
from fastmask.data.columns import find_listed_photos
from fastmask.data.formats import describe_empty, list_files
from fastmask.data.paths import locate_photos
from fastmask.data.photo import decode_named, fault_of_name, read_image, warn_of_others
from fastmask.data.transforms import read_or_copy
from fastmask.system.errors import DataError, UnreadableError, UsageError
from fastmask.system.files import read_strings
from fastmask.system.text import shorten_repr

# a photo, or a folder, or several of both: a path, a PIL image, an array, an opened file or the bytes of one
Images = Any
# a photo that is not read yet; one that could not be found or opened is its error
Source = Path | bytes | np.ndarray | DataError


class Found(NamedTuple):
    """Photos, and their names."""

    names: list[str]
    sources: list[Source]

    @property
    def paths(self) -> list[Path]:
        """Where the photos are, or would be; a photo in memory is at its name."""
        return [source if isinstance(source, Path) else Path(name) for name, source in zip(*self, strict=True)]


EXPECTED = (
    "expected photos: a path, a folder, a PIL image, a uint8 array (height, width, 3) of RGB, the bytes of a file, or "
    "a list of these"
)
_LISTS = (".csv", ".tsv", ".txt")
_TABLES = (".json", ".yaml", ".xlsx", ".parquet")


def find_photos(images: Images, root: str | Path | None = None) -> Found:
    """Find the names of photos, and the photos.

    Those of a folder are sorted, without hidden ones, and named relative to it; those of a CSV are in its order, and
    named as in it, relative to `root` or its own folder. Of several, paths are named as given, or relative to the
    folder `root`, and photos in memory "photo 0", "photo 1", by their place. Raises UsageError for what is not a photo,
    and if there is none.
    """
    if isinstance(images, Found):
        return images
    if isinstance(images, str | os.PathLike):
        images = os.path.expanduser(images)
        if not str(images).strip() or not Path(images).exists():
            raise UsageError(f"{str(images) or repr('')} does not exist; expected a photo or a folder of photos.")
        if Path(images).is_dir():
            return _named(_in_folder(Path(images)), Path(images))
    names, photos = [], []
    for number, item in enumerate(_each(images)):
        if is_list(item):
            own, found = _listed(Path(item), root)
        elif isinstance(item, str | os.PathLike):
            own, found = _named(_at(Path(item)), None if root is None else Path(root))
        else:
            own, found = [f"photo {number}"], [_in_memory(item, f"photo {number}")]
        names += own
        photos += found
    if not photos:
        raise UsageError(f"Found no photos in an empty list; {EXPECTED}.")
    return Found(names, photos)


def is_list(item: Any) -> bool:
    """Whether something is the path of a table or a text that may list photos."""
    is_path = isinstance(item, str | os.PathLike)
    return is_path and str(item).lower().endswith(_LISTS) and Path(item).is_file()


def find_cells(table: Path, cells: pd.Series, folder: Path, option: str) -> Found:
    """The photos in a folder that the cells of a table's column name, in their order; a missing one is its error."""
    where = locate_photos(list(cells.unique()), folder, f"{table}, column {cells.name}", option=option)
    photos = Found([], [])
    for line, name in cells.items():
        found = where[name]
        photos.names.append(found if isinstance(found, str) else name)
        wrong = DataError(f"{table}, line {line}, column {cells.name}: {found}")
        photos.sources.append(folder / found if isinstance(found, str) else wrong)
    return photos


def read_source(photo: Source, name: str, faces: FaceCut | None = None) -> np.ndarray:
    """A photo as (height, width, 3) uint8, cut to its face; raises DataError if it cannot be read."""
    if isinstance(photo, DataError):
        raise photo
    if isinstance(photo, bytes):
        photo = decode_named(photo, name)
    return read_or_copy(photo, faces)


def _each(images: Images) -> Iterable[Any]:
    """The photos and folders of what is given; raises UsageError for what is neither."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | io.IOBase):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU" and images.ndim < 4:
        return [images]
    if isinstance(images, torch.Tensor | Mapping) or hasattr(images, "columns") or not isinstance(images, Iterable):
        raise UsageError(f"Found {_describe(images)}; {EXPECTED}.")
    return images


def _listed(table: Path, root: str | Path | None) -> Found:
    cells = find_listed_photos(str(table), read_strings(table, ()))
    if cells.empty:
        raise UsageError(f"{table} has no rows; expected one per photo.")
    return find_cells(table, cells, table.parent if root is None else Path(root), "a second argument")


def _at(path: Path) -> list[Path]:
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() in _TABLES and path.is_file():
        raise UsageError(
            f"{path} is not a photo; give the photos, their folder, or a CSV with a column of their paths."
        )
    return [path]


def _in_folder(folder: Path) -> list[Path]:
    photos, others = list_files(folder)
    if not photos:
        raise UsageError(describe_empty(folder, others))
    warn_of_others(others)
    return photos


def _named(paths: Iterable[Path], root: Path | None) -> Found:
    """Names and photos of paths; a name that a table cannot hold is escaped, and its photo an error."""
    paths = list(paths)
    outside = next((p for p in paths if root is not None and not p.is_relative_to(root)), None)
    if outside is not None:
        raise UsageError(f"{outside} is not in {root}, the folder that the photos' names are relative to.")
    names = [str(p) if root is None else p.relative_to(root).as_posix() for p in paths]
    faults = [fault_of_name(path) for path in paths]
    return Found(
        [name if fault is None else repr(name) for name, fault in zip(names, faults, strict=True)],
        [path if fault is None else fault for path, fault in zip(paths, faults, strict=True)],
    )


def _in_memory(photo: Any, name: str) -> Source:
    """A photo without a path: the bytes of a file, or its pixels."""
    if isinstance(photo, io.IOBase):
        photo = photo.read()
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, np.ndarray):
        return _pixels(photo, name)
    if not isinstance(photo, Image.Image):
        raise UsageError(f"{name.capitalize()} is {_describe(photo)}; {EXPECTED}.")
    try:
        # now, because an image that Pillow reads later cannot be shared by threads and processes
        return read_image(photo, name)
    except UnreadableError as error:
        return error


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    """RGB of a uint8 array: RGB as it is, grey and RGBA as Pillow converts them; raises UsageError for others."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 3 and array.shape[2] == 3:
            return array
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 4):
            return read_image(Image.fromarray(array), name)
    raise UsageError(f"{name.capitalize()} is {_describe(array)}; {EXPECTED}.{_hint(array)}")


def _hint(array: np.ndarray) -> str:
    """How to make a photo of a common other array."""
    steps = []
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] > 4:
        steps.append(".transpose(1, 2, 0)")
    if array.dtype.kind == "f":
        steps.append(" times 255, rounded, .astype(numpy.uint8), if its values are from 0 to 1")
    return f" Give the array{' and'.join(steps)}." if steps else ""


def _describe(value: Any) -> str:
    """A wrong value in words."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} (tensor.permute(1, 2, 0).numpy() is an array)"
    if hasattr(value, "columns"):
        return "a DataFrame (give its column of paths)"
    return shorten_repr(value, 80)
