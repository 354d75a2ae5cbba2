"""Material: what the sections of a report are made of, read once however many ask for it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from fastmask.data.table import Table
from fastmask.heads import JOINT, UNKNOWN
from fastmask.run.directory import DONE, SCORES, RunDirectory
from fastmask.run.source import photos_of
from fastmask.scoring import Scores, target_of
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_json


class Material:
    """A run, its scores, and its photos where they can be found and are wanted."""

    def __init__(
        self, run: RunDirectory, data: str | None = None, photos: bool = True, images: str | None = None
    ) -> None:
        self.run, self.data, self.photos, self.images = run, data, photos, images

    @cached_property
    def scores(self) -> Scores:
        """The scores with their intervals."""
        return self.run.score()

    @cached_property
    def table(self) -> Table:
        """The run's photos, where they lie now; raises UsageError where they are not there, or not wanted."""
        if not self.photos:
            raise UsageError("Photos are left out, as --no-photos asks.")
        return photos_of(self.run, self.data, self.images)

    @cached_property
    def gone(self) -> list[str]:
        """The paths of the run's photos that are not there any more."""
        return [path for row, path in enumerate(self.table.frame["path"]) if not self.table.photo(row).is_file()]

    @property
    def targets(self) -> tuple[str, ...]:
        """The joint class and the heads that it is made of; of a single head that alone."""
        classified = self.run.heads.classified
        return classified if len(classified) == 1 else (JOINT, *classified)

    def known(self, target: str) -> np.ndarray:
        """(N,) which photos of `oof` have a label of a head, or of all heads."""
        return np.asarray(target_of(self.run.heads, self.run.true, target) != UNKNOWN)

    @property
    def target(self) -> str:
        """What to look at photo by photo: the joint class, or else the first head that has labels.

        Raises UsageError where nothing has.
        """
        found = next((target for target in self.targets if self.known(target).any()), None)
        if found is None:
            raise UsageError("No photo has a label.")
        return found


def chosen_epochs(run: RunDirectory) -> dict[int, list[int]]:
    """The epochs, from 0, that the score of each trained fold is of, as scores.json has them."""
    found, entries = {}, run.scores.get("folds", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not _whole(entry.get("epochs")) or type(entry.get("fold")) is not int:
            raise DataError(f"{run.path / SCORES} does not say which epochs each fold is scored by; restore it.")
        found[entry["fold"]] = list(entry["epochs"])
    return found


def kept_epochs(run: RunDirectory, fold: int) -> list[int]:
    """The epochs, from 0, whose weights a fold has kept."""
    done = read_json(run.fold_path(fold) / DONE)
    kept: Any = done.get("checkpoints") if isinstance(done, dict) else None
    if not _whole(kept):
        raise DataError(f"{run.fold_path(fold) / DONE} does not say which epochs the fold has kept; restore it.")
    return list(kept)


def _whole(value: object) -> bool:
    return isinstance(value, list) and all(type(epoch) is int for epoch in value)
