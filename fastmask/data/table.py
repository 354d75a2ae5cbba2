"""The table: one checked row a photo, with its path, its person and a column a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, UNKNOWN, Head, Heads, number_of
from fastmask.system.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastmask.data.boxes import FaceCut, Framing

OnFault = Callable[[DataError], None]
# that are learned in order
_MOST_NUMBERS = 300


def strict(fault: DataError) -> None:
    """What readers do with a fault unless told otherwise: raise it. Told to collect, they leave its row out."""
    raise fault


@dataclass(frozen=True)
class Table:
    """One row a photo.

    `frame` has the columns path (relative to `root`), person, source, one a head with the class's name ("" where it is
    unknown) by the score's bounds, and HEAD_value with the number behind a head whose classes are bands of a number.
    `stratify` is what folds are stratified on where nobody says otherwise: a head's name or "joint". `reading` are the
    settings of `Config` that the table was read with. `proposed` counts corrections that a model proposed and nobody
    has looked at. `faces` says what photos are cut to before anything else sees them; None leaves them whole.
    """

    frame: pd.DataFrame
    heads: Heads
    root: Path
    stratify: str = JOINT
    reading: Mapping[str, Any] = field(default_factory=dict)
    proposed: int = 0
    faces: FaceCut | None = None

    def __post_init__(self) -> None:
        columns = ["path", "person", *self.heads.names, *(f"{h.name}_value" for h in self.heads if h.bounds)]
        missing = [c for c in columns if c not in self.frame.columns]
        if missing:
            raise UsageError(f"A table of {', '.join(self.heads.names)} needs the column {missing[0]!r}.")

    def __len__(self) -> int:
        return len(self.frame)

    def with_number(self, name: str, spread: float) -> Table:
        """The table with a head NAME_number beside the head `name`, whose classes are bands of that number.

        Its classes are the whole numbers from the least to the greatest, its targets have the deviation `spread`. It
        stands beside the others: no part of the joint class. Raises UsageError for a head that has no number behind it.
        """
        head = self.heads[name]
        if head.bounds is None:
            raise UsageError(f"Head {name} has no number behind it, so there is none to learn in order.")
        numbers = self.frame[f"{name}_value"].round()
        low, high = numbers.min(), numbers.max()
        if not 1 <= high - low < _MOST_NUMBERS:
            raise UsageError(
                f"The numbers of {name} go from {low:g} to {high:g}; to be learned in order they must be 2 to "
                f"{_MOST_NUMBERS} whole ones, such as years."
            )
        beside = Head(number_of(name), tuple(str(n) for n in range(int(low), int(high) + 1)), spread=spread)
        texts = [str(int(n)) if known else "" for n, known in zip(numbers.fillna(0), numbers.notna(), strict=True)]
        return replace(self, frame=self.frame.assign(**{beside.name: texts}), heads=Heads([*self.heads, beside]))

    @property
    def y(self) -> np.ndarray:
        """(N, heads) int64 class numbers by the score's bounds; UNKNOWN is -1."""
        return self.heads.encode_frame(self.frame)

    @property
    def train_y(self) -> np.ndarray:
        """(N, heads) int64 class numbers to train on: as `y`, but by the training bounds where a head has them."""
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

    def photo(self, row: int) -> Path:
        """Where the photo of row `row` lies."""
        return self.root / self.frame["path"].iat[row]

    def cut_to_faces(self, file: str | Path, framing: Framing) -> Table:
        """The table with photos cut to the faces of a CSV; raises DataError where one has no row in it."""
        from fastmask.data.boxes import FaceCut, read_boxes

        paths = self.frame["path"].tolist()
        return replace(self, faces=FaceCut(read_boxes(file), framing, {str(self.root / path): path for path in paths}))

    def select(self, rows: np.ndarray | Sequence[int]) -> Table:
        """The table of some rows."""
        return replace(self, frame=self.frame.iloc[rows].reset_index(drop=True))
