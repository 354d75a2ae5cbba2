"""Photos to predict, from a folder or a list, prepared like the run's validation photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmask.data.augment import Augmentation, Stats, build_augmentations, check_fit
from fastmask.data.boxes import FaceCut, read_boxes
from fastmask.data.loaders import batch_stats, photo_loader
from fastmask.data.photo import check_photos, list_photos
from fastmask.data.photo_dl import PhotoDL
from fastmask.run.directory import RunDirectory
from fastmask.run.files import PIPELINES
from fastmask.system.errors import DataError, UsageError
from fastmask.training.build import make_framing

# a folder of photos, or a list of files
Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Photos:
    """Photos to predict, with a run's training and validation `augments` and the (height, width) that these give."""

    names: list[str]
    paths: list[Path]
    augments: tuple[Augmentation, Augmentation]
    faces: FaceCut | None
    size: tuple[int, int]

    @classmethod
    def find(
        cls, run: RunDirectory, images: Images, boxes: str | Path | None = None, root: str | Path | None = None
    ) -> Photos:
        """Find the photos of a folder or a list, and read each once; raises DataError for the first unusable one."""
        names, paths = find_photos(images, root)
        augments = augments_of(run)
        faces = face_cut(run, boxes, dict(zip(map(str, paths), names, strict=True)))
        # otherwise a broken photo at the end would waste the predictions before it
        size = check_fit({"the validation pipeline": (augments[1], check_photos(paths, faces))}, paths)
        return cls(names, paths, augments, faces, size)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def stats(self) -> Stats:
        """The means and deviations that batches are normalised by."""
        return batch_stats(self.augments)

    def loader(self, **options: Any) -> PhotoDL:
        """Batches of the photos in their order: see `fastmask.data.loaders.photo_loader`."""
        return photo_loader(self.paths, self.augments, self.stats, faces=self.faces, **options)


def find_photos(images: Images, root: str | Path | None = None) -> tuple[list[str], list[Path]]:
    """Find the names and paths of the photos of a folder (sorted, without hidden files) or of a list.

    Photos of a folder are named relative to it, photos of a list as given, or relative to the folder `root`.
    """
    if not isinstance(images, str | Path):
        paths = [Path(p) for p in images]
        outside = next((p for p in paths if root is not None and not p.is_relative_to(root)), None)
        if outside is not None:
            raise UsageError(f"{outside} is not in {root}, the folder that the photos' names are relative to.")
        names = [str(p) if root is None else p.relative_to(root).as_posix() for p in paths]
    else:
        folder = Path(images)
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; expected a folder of photos.")
        paths = list_photos(folder)
        names = [p.relative_to(folder).as_posix() for p in paths]
    if not paths:
        raise UsageError("The list of photos is empty; name one or more.")
    missing = next((p for p in paths if not p.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} does not exist; expected a photo there.")
    return names, paths


def augments_of(run: RunDirectory) -> tuple[Augmentation, Augmentation]:
    """A run's training and validation augmentation; raises DataError if its pipelines.yaml is broken."""
    try:
        return build_augmentations(run.pipelines)
    except UsageError as error:
        raise DataError(f"{run.path / PIPELINES}: {error}") from error


def face_cut(run: RunDirectory, boxes: str | Path | None, names: Mapping[str, str]) -> FaceCut | None:
    """The crop to faces for a run that was trained with boxes, else None; `names` maps paths to names.

    Raises UsageError if only the run, or only the photos, have boxes.
    """
    trained = run.config.boxes
    if trained is None and boxes is None:
        return None
    if trained is None:
        raise UsageError(f"--boxes needs a run that was trained with boxes, and {run.path} was not.")
    if boxes is None:
        raise UsageError(
            f"{run.path} was trained on faces (boxes {trained}), so it needs the faces of these photos, too: "
            "--boxes FILE, as written by fastmask faces."
        )
    return FaceCut(read_boxes(boxes), make_framing(run.config), names)
