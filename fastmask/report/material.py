"""Material: a run with everything that several sections of its report need, each read once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from fastmask.data.table import Table
from fastmask.heads import JOINT, UNKNOWN
from fastmask.report.thumbnails import read_thumbnails
from fastmask.run.directory import RunDirectory
from fastmask.run.source import photos_of
from fastmask.scoring import Score, Scores, target_of
from fastmask.system.errors import UsageError


class Material:
    """A run with its scores and photos; `data` and `images` say where the photos are now."""

    def __init__(
        self, run: RunDirectory, data: str | None = None, photos: bool = True, images: str | None = None
    ) -> None:
        self.run, self.data, self.photos, self.images = run, data, photos, images

    @cached_property
    def scores(self) -> Scores:
        """The scores with their intervals."""
        return self.run.score()

    def score(self, target: str) -> Score:
        """The score of a head or of the joint class."""
        return self.scores.joint if target == JOINT else self.scores.heads[target]

    @property
    def targets(self) -> tuple[str, ...]:
        """The joint class and its heads; for a single head only the head."""
        classified = self.run.heads.classified
        return classified if len(classified) == 1 else (JOINT, *classified)

    @cached_property
    def labelled(self) -> list[str]:
        """The targets for which some photo has a label; raises UsageError if there is none."""
        found = [target for target in self.targets if self.has_label(target).any()]
        if not found:
            raise UsageError("No photo has a label.")
        return found

    def has_label(self, target: str) -> np.ndarray:
        """(N,) whether each photo of `oof` has a label for a head, or for all heads."""
        return np.asarray(target_of(self.run.heads, self.run.true, target) != UNKNOWN)

    @property
    def labelled_heads(self) -> list[str]:
        """The heads among `labelled`."""
        return [target for target in self.labelled if target != JOINT]

    def worst_heads(self, most: int, by: str = "accuracy") -> list[str]:
        """The `most` heads with the lowest accuracy (or another score), in their order."""
        worst = sorted(self.labelled_heads, key=lambda head: float(getattr(self.score(head), by)))[:most]
        return [head for head in self.labelled_heads if head in worst]

    @cached_property
    def table(self) -> Table:
        """The run's photos where they are now; raises UsageError if they are not found or not wanted."""
        if not self.photos:
            raise UsageError("Photos are left out because of --no-photos.")
        return photos_of(self.run, self.data, self.images)

    @cached_property
    def missing_photos(self) -> list[str]:
        """The paths of photos of the run that no longer exist."""
        return [path for row, path in enumerate(self.table.frame["path"]) if not self.table.photo(row).is_file()]

    def photos_at(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        """The photos of some rows of `oof`, small; None for a photo that cannot be read."""
        paths = pd.Index(self.table.frame["path"]).get_indexer(pd.Index(self.run.oof["path"].iloc[list(rows)]))
        return read_thumbnails(self.table, paths.tolist())
