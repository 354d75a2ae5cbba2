"""Photo versions: photos and other versions of them, predicted as one list, and the mean over those of a photo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastmask.data.versions import check_different, find_versions
from fastmask.inference.failures import reason_of
from fastmask.inference.sources import Found
from fastmask.system.errors import DataError, UsageError
from fastmask.system.text import count


@dataclass(frozen=True)
class PhotoVersions:
    """The `photos` to predict, and rows of these and of their other versions.

    `rows` are first the photos, then the versions; `owners` (rows,) is the number of the photo that each shows,
    `photo_of` maps the path of each version to that of its photo. `notes` are sentences about photos without versions.
    """

    photos: Found
    rows: Found
    owners: np.ndarray
    photo_of: Mapping[str, str]
    notes: Sequence[str] = ()

    @classmethod
    def find(cls, photos: Found, folders: Sequence[str]) -> PhotoVersions:
        """The photos with their versions in folders; raises UsageError for a folder that has none."""
        check_different(folders)
        names, sources, owners = [*photos.names], [*photos.sources], [*range(len(photos.names))]
        paths, notes, photo_of = _relative_paths(photos) if folders else {}, [], {}
        for folder in folders:
            found = find_versions({path: Path(str(photos.sources[row])) for row, path in paths.items()}, folder)
            for row, path in paths.items():
                if path in found.paths:
                    version = found.root / found.paths[path]
                    names.append(str(version))
                    sources.append(version)
                    owners.append(row)
                    photo_of[str(version)] = str(photos.sources[row])
            if found.lacking:
                notes.append(f"{found}; a photo without a version is predicted without it.")
        return cls(photos, Found(names, sources), np.array(owners, int), photo_of, notes)

    def without(self, failed: Mapping[int, DataError]) -> PhotoVersions:
        """The photos and versions without the rows that cannot be predicted, with a note if these are versions."""
        left = [row for row in range(len(self.owners)) if row not in failed]
        lost = [row for row in failed if row >= len(self.photos.names)]
        saved = [row for row in failed if row < len(self.photos.names) and row in self.owners[left]]
        notes = [*self.notes]
        if lost:
            first = reason_of(failed[lost[0]])
            notes.append(f"{count(len(lost), 'version')} cannot be predicted and will be left out: {first}.")
        if saved:
            notes.append(
                f"{count(len(saved), 'photo')} cannot be predicted, such as {self.photos.names[saved[0]]}, and other "
                "versions will be taken."
            )
        rows = Found([self.rows.names[row] for row in left], [self.rows.sources[row] for row in left])
        return replace(self, rows=rows, owners=self.owners[left], notes=notes)

    @property
    def names(self) -> list[str]:
        """The names of the photos with a row or more."""
        return [self.photos.names[number] for number in self.answered]

    @property
    def unanswered(self) -> list[int]:
        """The numbers of the photos of which neither they nor a version can be predicted."""
        return sorted({*range(len(self.photos.names))} - {*self.answered})

    @property
    def answered(self) -> list[int]:
        """The numbers of the photos with a row or more."""
        return sorted(set(self.owners.tolist()))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """(rows, K) probabilities -> (answered photos, K): the mean over the versions of each photo."""
        places = np.searchsorted(self.answered, self.owners)
        sums = np.zeros((len(self.answered), values.shape[1]))
        np.add.at(sums, places, values)
        made: np.ndarray = sums / np.bincount(places)[:, None]
        return made


def _relative_paths(photos: Found) -> dict[int, str]:
    """The paths by which the files among photos are found in other folders, by row.

    They are their names in a folder or a list; of photos that are given one by one, relative to their common folder.
    """
    files = {row: source for row, source in enumerate(photos.sources) if isinstance(source, Path)}
    if not files:
        raise UsageError("--images-also finds versions by the paths of photos, and none of these photos is a file.")
    if any(photos.names[row] != str(source) for row, source in files.items()):
        return {row: photos.names[row] for row in files}
    common = os.path.commonpath([os.path.abspath(file.parent) for file in files.values()])
    return {row: Path(os.path.relpath(file, common)).as_posix() for row, file in files.items()}
