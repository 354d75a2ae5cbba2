"""The table: one checked row per photo, with its path, its person and a column per head."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmask.config import PAD, Fit
from fastmask.data.auxiliary import auxiliary_labels, bands_head, joint_head, number_head
from fastmask.data.frames import texts_in
from fastmask.heads import UNKNOWN, Head, Heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.text import join_some, shorten_repr

if TYPE_CHECKING:
    from fastmask.data.boxes import FaceCut, Framing

# the column of the first of the persons who share identical photos, where any do: see `groups.join_identical`
SAME_AS = "same_as"
NO_PERSONS = (
    "names the person in each photo, so every photo counts as a different person; several photos of one person would "
    "leak across folds."
)
# the column of the fold that validates each photo, where the data itself has a fixed split
FOLD = "fold"
# the folds of a fixed split, as in scikit-learn's PredefinedSplit; a photo that is left out is in none of them
VALIDATED, TRAIN_ONLY, LEFT_OUT = 0, -1, -2
# the words of a fixed split in the files and folders of other tools
SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), TRAIN_ONLY),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), VALIDATED),
    **dict.fromkeys(("test", "testing", "pred", "prediction"), LEFT_OUT),
}
OnFault = Callable[[DataError], None]


def raise_fault(fault: DataError) -> None:
    """The default for the faults of readers: raise them. Where they are collected, their rows are left out."""
    raise fault


def check_labels(cells: pd.Series, head: Head) -> None:
    """Raise UsageError for a label that is not a class of its head."""
    known = {*head.classes, ""}
    wrong = next((label for label in cells.unique() if label not in known), None)
    if wrong is not None:
        raise UsageError(
            f"A table has the label {wrong!r} of {head.name} in row {cells.tolist().index(wrong)}; expected one of "
            f"{join_some(head.classes)}, or nothing if unknown."
        )


def groups_of(frame: pd.DataFrame) -> np.ndarray:
    """(N,) the group of each photo of a table or of folds.csv, see `Table.groups`."""
    return frame[SAME_AS if SAME_AS in frame else "person"].to_numpy(dtype=object)


@dataclass(frozen=True)
class Table:
    """One row per photo.

    `frame` has the columns path (relative to `root`), person, source, one per head with the name of the class by the
    score's bounds ("" where unknown), HEAD_value with the number behind a head of bands, and fold where the data has a
    fixed split: the fold that validates the photo, or TRAIN_ONLY. `reading` are the settings of `Config` that the table
    was read with. `proposed` counts corrections that a model proposed and no person has checked. `missing` are photos
    that were left out because they do not exist, and why. `faces` cuts photos when they are read; None leaves them
    whole. `fit` is how they are scaled and cut by default, see `fastmask.data.pipelines`.

    >>> frame = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "person": ["ann", "bob"], "mask": ["worn", ""]})
    >>> table = fm.Table(frame, fm.Heads([fm.Head("mask", ("none", "worn"))]), Path("photos"))
    >>> len(table), table.y
    (2, array([[ 1], [-1]]))
    >>> table.photo(0).as_posix()
    'photos/a.jpg'
    """

    frame: pd.DataFrame
    heads: Heads
    root: Path
    reading: Mapping[str, Any] = field(default_factory=dict)
    proposed: int = 0
    missing: Sequence[tuple[str, str]] = ()
    faces: FaceCut | None = None
    fit: Fit = PAD

    def __post_init__(self) -> None:
        self._check_types()
        columns = ["path", "person", *self.heads.names, *(f"{h.name}_value" for h in self.heads if h.bounds)]
        missing = [c for c in columns if c not in self.frame.columns]
        if missing:
            raise UsageError(
                f"A table of {', '.join(self.heads.names)} needs the column {missing[0]!r}; fm.read_frame makes a "
                "table of any DataFrame."
            )
        object.__setattr__(self, "frame", texts_in(self.frame, ["path", "person", *self.heads.names]))
        for head in self.heads:
            check_labels(self.frame[head.name], head)

    def _check_types(self) -> None:
        frame, heads, root = self._given()
        if not isinstance(frame, pd.DataFrame):
            raise UsageError(f"A table is made of a pandas DataFrame, found {shorten_repr(frame)}; see fm.read_frame.")
        if not isinstance(heads, Heads):
            listed = list(heads) if isinstance(heads, list | tuple) else [heads]
            if not all(isinstance(head, Head) for head in listed):
                raise UsageError(
                    f"A table has the heads {shorten_repr(heads)}; expected fm.Heads, or a list of fm.Head."
                )
            object.__setattr__(self, "heads", Heads(listed))
        if not isinstance(root, str | os.PathLike):
            raise UsageError(f"A table has the root {shorten_repr(root)}; expected the folder of its photos.")
        object.__setattr__(self, "root", Path(root))

    def _given(self) -> tuple[Any, Any, Any]:
        """The arguments, of any type."""
        return self.frame, self.heads, self.root

    def __len__(self) -> int:
        return len(self.frame)

    def with_number(self, name: str, spread: float) -> Table:
        """The table with a head NAME_number in addition to the head `name`, which has bands of that number.

        Its classes are the whole numbers from the least to the greatest, its targets have the deviation `spread`. It is
        not part of the joint class. Raises UsageError if the classes are not bands.
        """
        return self.with_auxiliary([number_head(self.frame, self.heads[name], spread)])

    def with_bands(self, name: str, bounds: Sequence[float]) -> Table:
        """The table with a head NAME_bands of finer bands of the head `name`, whose probabilities become their sums.

        Raises UsageError if the classes of `name` are not bands, or these are not finer.
        """
        return self.with_auxiliary([bands_head(self.heads[name], bounds)])

    def with_joint(self, share: float = 1.0) -> Table:
        """The table with a head of the joint class, whose part in the joint probability is `share`.

        With a share of 1 it replaces the other heads: their probabilities are the sums of its own. Raises UsageError
        for a single head, and for too many joint classes.
        """
        return self.with_auxiliary([joint_head(self.heads, share)])

    def with_auxiliary(self, added: Sequence[Head]) -> Table:
        """The table with heads next to those of the joint class, and all their labels."""
        heads = Heads([*self.heads, *added])
        return replace(self, frame=self.frame.assign(**auxiliary_labels(self.frame, heads)), heads=heads)

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
        if self.heads.joint_head is not None:
            y[:, self.heads.joint_head] = self.heads.joint(y)
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

    def sample_rows(self, most: int, seed: int) -> np.ndarray:
        """At most `most` rows at random, in order."""
        return np.sort(np.random.default_rng(seed).permutation(len(self))[:most])

    def select(self, rows: np.ndarray | Sequence[int]) -> Table:
        """The table with only some rows."""
        return replace(self, frame=self.frame.iloc[rows].reset_index(drop=True))
