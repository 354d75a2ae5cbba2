"""Versions: the same photos once more in another folder, changed: without background, aligned, super-resolved.

A version has the path of its photo, with any ending: PERSON/mask1.jpg -> FOLDER/PERSON/mask1.png. It shows the same
person and has the same labels, so no fold trains on a version of a person that it validates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from fastmask.config import CONTEST, Config
from fastmask.data.boxes import FaceCut
from fastmask.data.extra import Extra
from fastmask.data.formats import describe_empty, list_files
from fastmask.data.paths import photo_key
from fastmask.data.photo import map_in_threads, read_size
from fastmask.data.table import Table
from fastmask.system.errors import DataError, PhotoSizeError, UnreadableError, UsageError
from fastmask.system.files import real
from fastmask.system.text import count

# folders of photos in the folder of a data set
_INSIDE = ("", "images", "train/images")
# the largest factor between two heights / widths that are the same but for rounding
_SHAPE = 1.02

Size = tuple[int, int]


@dataclass(frozen=True)
class Versions:
    """The versions of photos in a folder: `paths`, relative to `root`, by the paths of the photos.

    `lacking` are the photos without one, `stray` the files that are a version of none.
    """

    folder: str
    root: Path
    paths: Mapping[str, str]
    lacking: Sequence[str]
    stray: Sequence[str]

    def __str__(self) -> str:
        every = len(self.paths) + len(self.lacking)
        lacking = f", lacking such as {self.lacking[0]}" if self.lacking else ""
        stray = f"; {count(len(self.stray), 'file')} of no photo, such as {self.stray[0]}" if self.stray else ""
        return f"{self.folder} has versions of {len(self.paths):,} of {count(every, 'photo')}{lacking}{stray}"


def find_versions(photos: Mapping[str, Path], folder: str, option: str = "--images-also") -> Versions:
    """Find the version of each of the `photos`, path -> file, in a folder, or in its `images` or `train/images`.

    Raises UsageError if it is not a folder, has no version or holds the photos themselves, DataError for two versions
    of a photo.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{option} {folder} is not a folder; expected one with other versions of the photos.")
    places = [place for inside in _INSIDE if (place := Path(folder) / inside).is_dir()]
    each = (_match_files(list(photos), folder, place) for place in places)
    found = next((one for one in each if one.paths), None)
    if found is None:
        _, others = files = list_files(Path(folder))
        first = next(iter(photos))
        held = f"It holds {files[0][0]}." if files[0] else describe_empty("It", others)
        raise UsageError(
            f"{option} {folder} has a version of none of the {len(photos):,} photos; expected such as "
            f"{Path(folder) / first}, with any ending. {held}"
        )
    same = next((path for path, own in found.paths.items() if real(found.root / own) == real(photos[path])), None)
    if same is not None:
        raise UsageError(
            f"{option} {folder} holds the photos themselves, such as {photos[same]}; expected other versions of them."
        )
    return found


def _match_files(paths: Sequence[str], folder: str, root: Path) -> Versions:
    """The files below `root` with the paths of photos, with any ending."""
    listed, others = ([file.relative_to(root).as_posix() for file in files] for files in list_files(root))
    by_key, same_key, exact = defaultdict(list), defaultdict(list), set(listed)
    for path in paths:
        same_key[photo_key(path)].append(path)
    for own in listed:
        by_key[photo_key(own)].append(own)
    found: dict[str, str] = {}
    for key, same in same_key.items():
        if len(same) > 1:
            # a.jpg and a.png are two photos, told apart by their endings
            found |= {path: path for path in same if path in exact}
        elif len(by_key[key]) > 1:
            one, two = by_key[key][:2]
            raise DataError(f"{root} has both {one} and {two}, and one photo, {same[0]}; remove one of them.")
        elif by_key[key]:
            found[same[0]] = by_key[key][0]
    used = set(found.values())
    stray = [own for own in (*listed, *others) if own not in used]
    return Versions(folder, root, found, [path for path in paths if path not in found], stray)


def check_different(folders: Sequence[str], option: str = "--images-also") -> None:
    """Raise UsageError for a folder that is named twice, also by a link."""
    if not all(folder.strip() for folder in folders):
        raise UsageError(f"{option} has an empty name; expected folders with other versions of the photos.")
    places = [real(folder) for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            first = folders[places.index(place)]
            raise UsageError(f"{option} {folders[number]} is the same folder as {first}; name each once.")


def read_versions(table: Table, config: Config) -> list[tuple[Versions, Extra]]:
    """The versions of a table's photos in each folder, as photos to train on with the labels of the table.

    `config` is effective: it has a fit.
    """
    folders = config.images_also or ()
    check_different(folders)
    photos = {path: table.root / path for path in table.frame["path"]}
    return [(found, _as_extra(table, found)) for found in (find_versions(photos, folder) for folder in folders)]


def _as_extra(table: Table, found: Versions) -> Extra:
    rows = np.flatnonzero(table.frame["path"].isin(list(found.paths)))
    own = table.select(rows)
    frame = own.frame.assign(path=own.frame["path"].map(found.paths), source="version")
    made = replace(own, frame=frame, root=found.root, faces=None, missing=())
    return Extra(made, np.ones(len(rows)), np.zeros((len(rows), 0), bool), origins=rows)


def cut_extra(versions: Extra, table: Table, config: Config) -> Extra:
    """The versions, cut as the photos of their table: see `cut_versions`."""
    if versions.origins is None:
        return versions
    photos = {str(versions.table.photo(row)): str(table.photo(own)) for row, own in enumerate(versions.origins)}
    return replace(versions, table=replace(versions.table, faces=cut_versions(photos, table.faces, config)))


class VersionCut(FaceCut):
    """Scales versions to the `sizes`, (height, width) by their path, and then cuts all photos to their `faces`, if any.

    The pixels of a crop and of boxes are those of the photos.
    """

    def __init__(self, sizes: Mapping[str, Size], faces: FaceCut | None) -> None:
        self.sizes, self.faces = dict(sizes), faces

    def __call__(self, photo: np.ndarray, path: str | Path) -> np.ndarray:
        """The photo at `path`, scaled and cut."""
        size = self.sizes.get(str(path))
        if size is not None and photo.shape[:2] != size:
            how = cv2.INTER_AREA if photo.shape[0] > size[0] else cv2.INTER_LINEAR
            photo = np.asarray(cv2.resize(photo, size[::-1], interpolation=how))
        return photo if self.faces is None else self.faces(photo, path)

    def check_cut(self, photo: np.ndarray) -> np.ndarray:
        """As `FaceCut.check_cut`."""
        return photo if self.faces is None else self.faces.check_cut(photo)

    def key_of(self, path: str | Path) -> str:
        """The size and the face of the photo at `path`, as text."""
        return f"{self.sizes.get(str(path))} {'' if self.faces is None else self.faces.key_of(path)}"


def cut_versions(photos: Mapping[str, str], faces: FaceCut | None, config: Config) -> FaceCut | None:
    """How versions, path -> path of the photo, are cut to the faces of their photos.

    Where the crop is in pixels of the photos, a version of another size is scaled to that of its photo first. Raises
    PhotoSizeError if it has another shape.
    """
    if faces is not None:
        names = {own: faces.names[photo] for own, photo in photos.items() if photo in faces.names}
        faces = FaceCut(faces.boxes, faces.framing, names)
    if config.boxes is None and config.fit != CONTEST:
        return faces
    both = (list(photos), list(photos.values()))
    own, expected = (dict(zip(photos, map_in_threads(_size_of, paths), strict=True)) for paths in both)
    sizes = {path: size for path, size in expected.items() if size is not None and own[path] not in (None, size)}
    for path, size in sizes.items():
        _check_shape(path, own[path] or size, size, "--boxes" if config.boxes else "--fit contest")
    return VersionCut(sizes, faces) if sizes else faces


def _size_of(path: str) -> Size | None:
    """(height, width) of a photo; None if it cannot be read, which is reported where photos are decoded."""
    try:
        return read_size(path)
    except UnreadableError:
        return None


def _check_shape(path: str, own: Size, photo: Size, cut: str) -> None:
    slant = own[0] / own[1] * photo[1] / photo[0]
    if max(slant, 1 / slant) > _SHAPE:
        raise PhotoSizeError(
            f"{path} is {own[0]} high and {own[1]} wide, its photo {photo[0]} and {photo[1]}: of another shape, it "
            f"shows another part, and {cut} cuts both at the same pixels; take --fit pad, crop or stretch."
        )


def join_cuts(faces: FaceCut | None, versions: Iterable[FaceCut | None]) -> FaceCut | None:
    """The cut of photos and of their versions."""
    sizes: dict[str, Size] = {}
    for cut in versions:
        inner = cut.faces if isinstance(cut, VersionCut) else cut
        sizes |= cut.sizes if isinstance(cut, VersionCut) else {}
        faces = faces if faces is None or inner is None else faces.join(inner)
    return VersionCut(sizes, faces) if sizes else faces
