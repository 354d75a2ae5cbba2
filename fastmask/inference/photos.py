"""Photos to predict, prepared like the run's validation photos; those that cannot be predicted are found first."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.data.augment import (
    Augmentation,
    Enlarge,
    Prefix,
    Stats,
    build_augmentations,
    check_fit,
    enlarge_for_crops,
)
from fastmask.data.boxes import Boxes, FaceCut, read_boxes
from fastmask.data.cache import PhotoMap
from fastmask.data.loaders import batch_stats, photo_loader
from fastmask.data.photo import map_in_threads
from fastmask.data.photo_dl import PhotoDL
from fastmask.data.versions import cut_versions, join_cuts
from fastmask.inference.sources import Found, Images, Source, find_photos, read_source
from fastmask.run.directory import RunDirectory
from fastmask.run.files import PIPELINES
from fastmask.system.errors import DataError, PhotoSizeError, UsageError
from fastmask.system.text import count
from fastmask.training.build import make_framing

Size = tuple[int, int]
# bytes of photos that are kept once they have been read; others are read again when they are predicted
KEPT = 2**29


@dataclass(frozen=True)
class Photos:
    """Photos to predict, with a run's training and validation `augments` and the (height, width) that these give.

    `errors` are those of the photos that cannot be predicted, by their row, `enlarged` the sizes of those that are
    smaller than the crop, and `kept` the first photos, as the deterministic prefix of validation leaves them.
    """

    names: list[str]
    sources: list[Source]
    augments: tuple[Augmentation, Augmentation]
    faces: FaceCut | None
    size: Size
    errors: dict[int, DataError] = field(default_factory=dict)
    enlarged: dict[str, Size] = field(default_factory=dict)
    kept: PhotoMap = field(default_factory=PhotoMap)

    @classmethod
    def find(
        cls, run: RunDirectory, images: Images, boxes: str | Path | None = None, root: str | Path | None = None
    ) -> Photos:
        """Find the photos of a folder or a list, and read each once; raises DataError for the first unusable one."""
        photos = cls.survey(run, find_photos(images, root), boxes)
        if photos.errors:
            raise photos.errors[min(photos.errors)]
        return photos

    @classmethod
    def survey(
        cls,
        run: RunDirectory,
        photos: Found,
        boxes: str | Path | None = None,
        trains: bool = False,
        versions: Mapping[str, str] | None = None,
        kept: int = 0,
    ) -> Photos:
        """Read each photo once; raises DataError if none can be used.

        Up to `kept` bytes of them stay in memory. `trains` also tries the training augmentation, for views of the
        photos. Some of the photos may be `versions` of others, path -> path of the other, which are cut to its face.
        """
        names, sources = photos
        augments = augments_of(run)
        paths = {str(source): name for source, name in zip(sources, names, strict=True) if isinstance(source, Path)}
        faces = face_cut(run, boxes, {path: name for path, name in paths.items() if path not in (versions or {})})
        if versions:
            faces = join_cuts(faces, [cut_versions(versions, faces, run.config)])
        # otherwise a broken photo at the end would waste the predictions before it
        reader = _Reader(augments[1].prefix, faces, kept)
        found = reader.read_all(list(zip(sources, names, strict=True)))
        fits, enlarges = _Fits(augments, trains), cache(partial(_enlarges, augments[1].prefix.transforms))
        results = [
            one if isinstance(one, DataError) else fits(one, name) for one, name in zip(found, names, strict=True)
        ]
        size = _common(results)
        errors = {row: error for row, one in enumerate(results) if (error := _error(one, size, names[row]))}
        enlarged = {
            names[row]: one
            for row, one in enumerate(found)
            if row not in errors and not isinstance(one, DataError) and enlarges(one)
        }
        return cls(names, sources, augments, faces, size, errors, enlarged, reader.kept)

    def without(self, rows: Collection[int]) -> Photos:
        """The photos that are not in `rows`."""
        left = [row for row in range(len(self)) if row not in rows]
        names, sources = [self.names[row] for row in left], [self.sources[row] for row in left]
        return replace(self, names=names, sources=sources, errors={})

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stats(self) -> Stats:
        """The means and deviations that batches are normalised by."""
        return batch_stats(self.augments)

    @property
    def note(self) -> str | None:
        """A sentence about the photos that are enlarged."""
        if not self.enlarged:
            return None
        name, (height, width) = next(iter(self.enlarged.items()))
        crop = next(t for t in self.augments[1].pipeline.transforms if isinstance(t, Enlarge))
        verb, were = ("is", "was") if len(self.enlarged) == 1 else ("are", "were")
        return (
            f"{len(self.enlarged)} of {count(len(self), 'photo')} {verb} smaller than the crop, {crop.height} high and "
            f"{crop.width} wide, and {were} enlarged, such as {name}, {height} high and {width} wide."
        )

    @property
    def paths(self) -> list[Path]:
        """The files of the photos that have one."""
        return [source for source in self.sources if isinstance(source, Path)]

    def loader(self, **options: Any) -> PhotoDL:
        """Batches of the photos in their order: see `fastmask.data.loaders.photo_loader`."""
        readable = [source for source in self.sources if not isinstance(source, DataError)]
        paths = self.paths
        loads = options.get("training") or any(self.kept.get(str(path)) is None for path in paths)
        if len(paths) < len(self) or not loads:
            # other processes would get copies of photos in memory, or have nothing to do
            options["num_workers"] = 0
        # photos that are kept are found by texts
        sources = [str(source) if isinstance(source, Path) else source for source in readable]
        return photo_loader(sources, self.augments, self.stats, faces=self.faces, maps=[self.kept], **options)


class _Reader:
    """Reads photos, and keeps what a prefix makes of the first of them, up to a number of bytes."""

    def __init__(self, prefix: Prefix, faces: FaceCut | None, most: int) -> None:
        self._prefix, self._faces, self._left = prefix, faces, most
        self._photos: dict[str, np.ndarray] = {}
        self._lock, self._local = threading.Lock(), threading.local()

    @property
    def kept(self) -> PhotoMap:
        """What is kept of the photos that have a path."""
        return PhotoMap(self._prefix.plain, self._photos)

    def read_all(self, photos: Sequence[tuple[Source, str]]) -> list[Size | DataError]:
        """The (height, width) of each photo after its cut, or why it cannot be used."""
        return list(map_in_threads(self._read, photos))

    def _read(self, photo: tuple[Source, str]) -> Size | DataError:
        source, _ = photo
        try:
            image = read_source(*photo, self._faces)
        except DataError as error:
            return error
        if self._left > 0 and isinstance(source, Path):
            # a photo that the prefix does not fit is found by its size
            with suppress(Exception):
                self._keep(str(source), self._prefix_of_thread(image))
        return image.shape[0], image.shape[1]

    def _prefix_of_thread(self, image: np.ndarray) -> np.ndarray:
        if not hasattr(self._local, "prefix"):
            # albumentations does not promise that threads can share a pipeline
            self._local.prefix = deepcopy(self._prefix)
        # a copy, since a crop would keep the whole photo
        return np.array(self._local.prefix(image))

    def _keep(self, path: str, made: np.ndarray) -> None:
        with self._lock:
            if path not in self._photos and made.nbytes <= self._left:
                self._photos[path] = made
                self._left -= made.nbytes


class _Fits:
    """What a run's augmentations make of photos of a size, each size tried once."""

    def __init__(self, augments: tuple[Augmentation, Augmentation], trains: bool) -> None:
        self.pipelines = {"the validation pipeline": augments[1]}
        if trains:
            self.pipelines["the training pipeline"] = augments[0]
        self._results: dict[Size, Size] = {}

    def __call__(self, size: Size, name: str) -> Size | DataError:
        """The (height, width) after validation, or the error of an augmentation, which names the photo."""
        if size not in self._results:
            try:
                made = [check_fit({what: (augment, [size])}, [Path(name)]) for what, augment in self.pipelines.items()]
            except DataError as error:
                return error
            self._results[size] = made[0]
        return self._results[size]


def _enlarges(transforms: Sequence[Any], size: Size) -> bool:
    """Whether the first transforms of validation enlarge photos of a size."""
    if not any(isinstance(transform, Enlarge) for transform in transforms):
        return False
    image = np.zeros((*size, 3), np.uint8)
    for transform in transforms:
        if isinstance(transform, Enlarge) and transform.scale(*image.shape[:2]) > 1:
            return True
        image = transform(image=image)["image"]
    return False


def _common(results: Sequence[Size | DataError]) -> Size:
    """The size of most photos after augmentation; raises DataError if all are errors."""
    errors = [one for one in results if isinstance(one, DataError)]
    if len(errors) == len(results):
        first = errors[0]
        raise first if len(errors) == 1 else type(first)(f"None of the {len(errors)} photos can be predicted: {first}")
    return Counter(one for one in results if not isinstance(one, DataError)).most_common(1)[0][0]


def _error(result: Size | DataError, size: Size, name: str) -> DataError | None:
    """The error of a photo that cannot be read or augmented, or that differs in size after that."""
    if isinstance(result, DataError):
        return result
    if result == size:
        return None
    return PhotoSizeError(
        f"{name} is {result[0]} high and {result[1]} wide after augmentation, other photos {size[0]} and {size[1]}: "
        "the validation pipeline must end in one size, so add a crop or a resize."
    )


def augments_of(run: RunDirectory) -> tuple[Augmentation, Augmentation]:
    """A run's training and validation augmentation, which enlarge photos that are too small for a crop.

    Raises DataError if its pipelines.yaml is broken.
    """
    try:
        train, valid = build_augmentations(run.pipelines)
    except UsageError as error:
        raise DataError(f"{run.path / PIPELINES}: {error}") from error
    return Augmentation(enlarge_for_crops(train.pipeline)), Augmentation(enlarge_for_crops(valid.pipeline))


def face_cut(run: RunDirectory, boxes: str | Path | None, names: Mapping[str, str]) -> FaceCut | None:
    """The crop to faces for a run that was trained with boxes, else None; `names` maps paths to names.

    Raises UsageError if only the run, or only the photos, have boxes.
    """
    trained = run.config.boxes
    if trained is None and boxes is None:
        return None
    if trained is None:
        raise UsageError(f"--boxes needs a run that was trained with boxes, and {run.path} was not.")
    if boxes is None and names:
        raise UsageError(
            f"{run.path} was trained on faces (boxes {trained}), so it needs the faces of these photos, too: "
            "--boxes FILE, as written by fastmask faces (see fastmask guide faces)."
        )
    # photos without a path have no row
    read = Boxes(Path(trained), {}, {}) if boxes is None else read_boxes(boxes)
    known = {path: name for path, name in names.items() if name in read.faces}
    return FaceCut(read, make_framing(run.config), known or names)
