"""The table: one checked row per photo, with its path, its person and a column per head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmask.config import PAD, Fit
from fastmask.heads import UNKNOWN, Head, Heads, number_of
from fastmask.system.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastmask.data.boxes import FaceCut, Framing

# the column of the first of the persons who share identical photos, where any do: see `groups.join_identical`
SAME_AS = "same_as"
NO_PERSONS = (
    "says who is in each photo, so every photo counts as a different person; several photos of one person would leak "
    "across folds."
)
# the column of the fold that validates each photo, where the data itself has a fixed split
FOLD = "fold"
# the fold of a photo that is trained on and never validated, as in scikit-learn's PredefinedSplit
TRAIN_ONLY = -1
# and of one that is neither
LEFT_OUT = -2
OnFault = Callable[[DataError], None]
# classes of a distribution over a number
_MOST_NUMBERS = 300


def raise_fault(fault: DataError) -> None:
    """The default for the faults of readers: raise them. Where they are collected, their rows are left out."""
    raise fault


def groups_of(frame: pd.DataFrame) -> np.ndarray:
    """(N,) the group of each photo of a table or of folds.csv, see `Table.groups`."""
    return frame[SAME_AS if SAME_AS in frame else "person"].to_numpy(dtype=object)


@dataclass(frozen=True)
class Table:
    """One row per photo.

    `frame` has the columns path (relative to `root`), person, source, one per head with the name of the class by the
    score's bounds ("" where unknown), HEAD_value with the number behind a head of bands, and fold where the data has a
    fixed split: the fold that validates the photo, or TRAIN_ONLY. `reading` are the settings of `Config` that the table
    was read with. `proposed` counts corrections that a model proposed and no person has checked. `faces` cuts photos
    when they are read; None leaves them whole. `fit` is how they are scaled and cut by default, see
    `fastmask.data.pipelines`.
    """

    frame: pd.DataFrame
    heads: Heads
    root: Path
    reading: Mapping[str, Any] = field(default_factory=dict)
    proposed: int = 0
    faces: FaceCut | None = None
    fit: Fit = PAD

    def __post_init__(self) -> None:
        columns = ["path", "person", *self.heads.names, *(f"{h.name}_value" for h in self.heads if h.bounds)]
        missing = [c for c in columns if c not in self.frame.columns]
        if missing:
            raise UsageError(f"A table of {', '.join(self.heads.names)} needs the column {missing[0]!r}.")

    def __len__(self) -> int:
        return len(self.frame)

    def with_number(self, name: str, spread: float) -> Table:
        """The table with a head NAME_number in addition to the head `name`, which has bands of that number.

        Its classes are the whole numbers from the least to the greatest, its targets have the deviation `spread`. It is
        not part of the joint class. Raises UsageError if the classes are not bands.
        """
        head = self.heads[name]
        if head.bounds is None:
            raise UsageError(f"Head {name} is not made of bands of a number, so no distribution can be learned.")
        numbers = self.frame[f"{name}_value"].round()
        low, high = numbers.min(), numbers.max()
        if not 1 <= high - low < _MOST_NUMBERS:
            raise UsageError(
                f"The numbers of {name} are {low:g} to {high:g}; expected 2 to {_MOST_NUMBERS} whole numbers, such as "
                "years, for a distribution."
            )
        added = Head(number_of(name), tuple(str(n) for n in range(int(low), int(high) + 1)), spread=spread)
        texts = [str(int(n)) if known else "" for n, known in zip(numbers.fillna(0), numbers.notna(), strict=True)]
        return replace(self, frame=self.frame.assign(**{added.name: texts}), heads=Heads([*self.heads, added]))

    @property
    def y(self) -> np.ndarray:
        """(N, heads) int64 class numbers by the score's bounds; UNKNOWN is -1."""
        return self.heads.encode_frame(self.frame)

    @property
    def train_y(self) -> np.ndarray:
        """(N, heads) int64 class numbers to train on: like `y`, but by the training bounds where a head has them."""
        y = self.y
        for i, head in enumerate(self.heads):
            if head.train_bounds and head.train_bounds != head.bounds:
                banded = head.band(self.frame[f"{head.name}_value"].to_numpy(np.float64), training=True)
                y[:, i] = np.where(y[:, i] == UNKNOWN, UNKNOWN, banded)
        return y

    @property
    def persons(self) -> np.ndarray:
        """(N,) the person of each photo."""
        return self.frame["person"].to_numpy(dtype=object)

    @property
    def groups(self) -> np.ndarray:
        """(N,) the group of each photo, which is in one fold: its person, or persons who share identical photos."""
        return groups_of(self.frame)

    def photo(self, row: int) -> Path:
        """The path of the photo of row `row`."""
        return self.root / self.frame["path"].iat[row]

    def cut_to_faces(self, file: str | Path, framing: Framing) -> Table:
        """The table with photos cut to the faces of a CSV; raises DataError if a photo has no row in it."""
        from fastmask.data.boxes import FaceCut, read_boxes

        paths = self.frame["path"].tolist()
        return replace(self, faces=FaceCut(read_boxes(file), framing, {str(self.root / path): path for path in paths}))

    def select(self, rows: np.ndarray | Sequence[int]) -> Table:
        """The table with only some rows."""
        return replace(self, frame=self.frame.iloc[rows].reset_index(drop=True))
