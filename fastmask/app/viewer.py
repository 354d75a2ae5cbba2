"""Viewer: a run's photos, predictions, maps and marks, as the page shows them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.app import fragments
from fastmask.app.marks import Mark, add_mark, check_marks, marks_on, place_of, read_marks, remove_mark
from fastmask.app.selection import Filter, Page, page_of, photo_answer, select
from fastmask.app.trial import Trial
from fastmask.data.photo import read_photo
from fastmask.data.table import Table
from fastmask.heads import JOINT
from fastmask.report.gradcam import Explanation
from fastmask.report.sections.curves import scored_epochs
from fastmask.report.sections.mistakes import answers
from fastmask.run.directory import RunDirectory
from fastmask.run.source import table_of
from fastmask.system.errors import DataError, FastmaskError, UsageError
from fastmask.system.text import count, percent

# the class that a map is for
PREDICTION, LABEL = "the prediction", "the label"
# maps that are cached, some tens of kilobytes each
_CACHED = 256


class Viewer:
    """The content of the page, as plain values or HTML.

    `table` has the photos of the run, or is None for the reason `why_not`. `boxes` are their faces, for a run that was
    trained with boxes.
    """

    def __init__(
        self, run: RunDirectory, trial: Trial, table: Table | None, file: Path, why_not: str = "", boxes: Any = None
    ) -> None:
        self.run, self.trial, self.table, self.file, self.why_not = run, trial, table, file, why_not
        self.boxes = boxes or run.config.boxes
        self._answers = functools.cache(functools.partial(answers, run))
        self._map = functools.lru_cache(maxsize=_CACHED)(self._map_of)

    @property
    def targets(self) -> list[str]:
        """The joint class and its heads; for a single head only the head."""
        names = list(self.run.heads.classified)
        return [JOINT, *names] if len(names) > 1 else names

    def classes(self, head: str) -> list[str]:
        """The classes of a head that occur as label or prediction, in order; "" is an unknown label."""
        found = self._answers(head)
        there = set(found["true"]) | set(found["predicted"])
        names = list(self._joint) if head == JOINT else ["", *self.run.heads[head].classes]
        return [name for name in names if name in there]

    def try_photo(self, photo: str | None) -> str:
        """Predict an uploaded photo."""
        if photo is None:
            return ""
        predictions, remark = self.trial.answer(photo)
        return fragments.answer(photo_answer(predictions.heads, predictions.probabilities[0]), remark)

    def try_heat(self, photo: str | None, head: str) -> str:
        """Where the networks look in an uploaded photo."""
        if photo is None:
            return ""
        made = self.trial.explain(photo, head)
        return _figure(made, f"What supports {made.label}, the mean of {len(self.run.trained_folds)} folds")

    def browse(self, head: str, wanted: Filter, number: int, row: int | None) -> tuple[str, Page, int | None]:
        """A page of small photos, and the chosen row: `row` if it is on the page, else the first one."""
        table = self.photos
        marks = read_marks(self.file, table)
        found = self._answers(head)
        marked = self._marked(marks, head)
        page = page_of(select(found, wanted, marked), number)
        rows = page.rows["row"].tolist()
        chosen = row if row in rows else rows[0] if rows else None
        tiles = [
            {
                "row": each.row,
                "image": fragments.tile_picture(table.root / each.path),
                "label": self._shortened(head, each.true, each.predicted),
                "answer": self._shortened(head, each.predicted, each.true),
                "probability": each.probability,
                "marked": each.row in marked,
            }
            for each in page.rows.itertuples()
        ]
        return fragments.grid(tiles, chosen), page, chosen

    def _shortened(self, head: str, name: str, other: str) -> str:
        """The parts of a joint class that differ from another joint class."""
        if head != JOINT or not name or not other or name == other:
            return name
        both = zip(self._joint[name], self._joint[other], strict=True)
        return " ".join(one for one, two in both if one != two)

    @functools.cached_property
    def _joint(self) -> dict[str, tuple[str, ...]]:
        """The joint classes that occur, in order: name to the classes of the heads."""
        heads = self.run.heads
        codes = np.unique([*heads.joint(self.run.true), *heads.joint(self.run.predicted)])
        y = heads.unjoint(codes)
        return {
            heads.joint_name(int(code)): tuple(heads[i].decode(each[i]) for i in heads.joined)
            for code, each in zip(codes, y, strict=True)
        }

    def _marked(self, marks: Sequence[Mark], head: str) -> set[int]:
        """The rows with a mark for a head, or for any head."""
        wanted = [mark for mark in marks if head in (JOINT, mark.column)]
        paths, persons = {m.path for m in wanted if m.path}, {m.person for m in wanted if not m.path}
        oof = self.run.oof
        return set(np.flatnonzero(oof["path"].isin(paths) | oof["person"].isin(persons)).tolist())

    def show(self, row: int, head: str) -> tuple[str, str]:
        """A large photo, and its predictions with other facts."""
        table, one = self.photos, self._row(row)
        found = photo_answer(self.run.heads, self.run.probabilities[row], self.run.true[row])
        try:
            image = fragments.picture(read_photo(table.root / one["path"]), f"Photo {one['path']}")
        except DataError as error:
            image = fragments.notice(str(error), "bad")
        marks = marks_on(read_marks(self.file, table), one["person"], one["path"])
        unseen = not self.run.is_ensemble and self.run.config.group != "none"
        facts = [
            ("Person", f"{one['person']} ({count(self.photos_of(row), 'photo')})"),
            ("Photo", str(one["path"])),
            ("Fold", f"{one['fold']}{', with networks that have not seen this person' if unseen else ''}"),
            *(("Marked", fragments.correction(mark)) for mark in marks.values()),
        ]
        return fragments.figure(image, "The photo"), fragments.answer(found) + fragments.facts(facts)

    def heat(self, row: int, head: str, of: str) -> str:
        """Where the networks that have not seen the photo look, for the prediction or the label."""
        self._row(row)
        label = self._answers(head).iloc[row]["true" if of == LABEL else "predicted"]
        if label == "":
            raise UsageError("This photo has no label, so there is no map for it.")
        return self._map(row, head, label)

    def _map_of(self, row: int, head: str, label: str) -> str:
        one = self._row(row)
        framed = {} if self.boxes is None else {"boxes": self.boxes, "root": self.photos.root}
        made = self.trial.explain_own(self.photos.root / one["path"], int(one["fold"]), head, label, **framed)
        return _figure(made, self._caption(made, self._answers(head).iloc[row]["predicted"], int(one["fold"])))

    def _caption(self, made: Explanation, predicted: str, fold: int) -> str:
        """Which network a map is of, its own prediction, and whether the out-of-fold prediction differs."""
        said = f"What supports {made.label} in the kept network, of {made.by}. "
        if made.label == made.prediction:
            said += f"Its own prediction is the same, {percent(made.prediction_probability, 1)}."
        else:
            said += (
                f"It predicts {made.prediction}, {percent(made.prediction_probability, 1)}, and {made.label} with "
                f"{percent(made.probability, 1)}."
            )
        if made.prediction == predicted:
            return said
        epochs = ", ".join(map(str, scored_epochs(self.run, fold)))
        of = f", by the network of epoch {epochs}, which the other folds chose" if epochs else ""
        return f"{said} The out-of-fold prediction is {predicted}{of}."

    def marking(self, row: int, head: str) -> tuple[str, str, Mark | None]:
        """The label of a photo in a head, the number behind it or "", and its mark."""
        table, one = self.photos, self._row(row)
        there = table.frame.loc[table.frame["path"] == one["path"]].iloc[0]
        number = there[f"{head}_value"] if table.heads[head].bounds else np.nan
        mark = marks_on(read_marks(self.file, table), one["person"], one["path"]).get(head)
        return str(there[head]), "" if np.isnan(number) else f"{number:g}", mark

    def mark(self, row: int, head: str, value: str, whole: bool) -> str:
        """Mark a label as wrong, of one photo or of all photos of its person; returns a message."""
        table, one = self.photos, self._row(row)
        label, number, _ = self.marking(row, head)
        try:
            name, _ = table.heads[head].read(value)
        except DataError as fault:
            raise UsageError(f"The correct label of {head}: {fault}") from fault
        if not whole and value == (number or label):
            raise UsageError(f"The label of {head} is already {number or label}.")
        mark = Mark(one["person"], "" if whole else one["path"], head, value, number or label)
        before = add_mark(self.file, mark, table)
        whom = f"all photos of {one['person']}" if whole else str(one["path"])
        band = f" ({name})" if number and value else ""
        instead = f", in place of {before.value or 'unknown'}" if before else ""
        return f"Written to {self.file}: {head} of {whom} is {value or 'unknown'}{band}{instead}."

    def unmark(self, target: tuple[str, str, str]) -> str:
        """Remove a mark; returns a message."""
        gone = remove_mark(self.file, target, self.photos)
        return f"Removed: {fragments.correction(gone)} of {gone.path or f'all photos of {gone.person}'}."

    def marks(self) -> str:
        """All rows of the fix table."""
        return fragments.marks(read_marks(self.file, self.photos), self.file)

    def photos_of(self, row: int) -> int:
        """The number of photos of the person of a photo."""
        return int((self.photos.frame["person"] == self._row(row)["person"]).sum())

    def doubtful(self, row: int) -> str:
        """The first head with a prediction that differs from the label, or else the first head."""
        self._row(row)
        codes = zip(self.run.heads.names, self.run.predicted[row], self.run.true[row], strict=True)
        names = self.photos.heads.classified
        return next((name for name, predicted, true in codes if predicted != true and name in names), names[0])

    def _row(self, row: Any) -> Any:
        if not isinstance(row, int) or not 0 <= row < len(self.run.oof):
            raise UsageError("There is no such photo; choose one of those shown.")
        return self.run.oof.iloc[row]

    @property
    def photos(self) -> Table:
        """The photos of the run; raises UsageError if they are not found."""
        if self.table is None:
            raise UsageError(self.why_not)
        return self.table


def open_viewer(
    run: RunDirectory | str | Path,
    *,
    data: str | None = None,
    images: str | None = None,
    boxes: str | Path | None = None,
    fixes: str | Path | None = None,
    device: str | None = None,
) -> Viewer:
    """The content of the page of a run; `data`, `images` and `boxes` say where its photos and faces are now.

    Without the photos, or before the run has finished, other photos can still be tried. Raises UsageError or DataError
    for a run, data or a fix table that cannot be used.
    """
    run = RunDirectory.of(run)
    if not run.is_ensemble and not run.trained_folds:
        raise UsageError(f"{run.path} has not finished a fold yet.")
    file, why_not = place_of(run, fixes), ""
    table: Table | None = None
    if not run.is_scored:
        why_not = f"{run.path} has no oof.csv: the run has not finished."
    else:
        try:
            table = table_of(run, data, fixes=False, images=images)
        except FastmaskError as error:
            if data is not None or images is not None:
                raise
            why_not = str(error)
    if table is not None:
        check_marks(file, table)
    return Viewer(run, Trial(run, device), table, file, why_not, boxes)


def _figure(made: Explanation, caption: str) -> str:
    alt = f"The photo under a map of what supports {made.label}"
    return fragments.figure(fragments.picture(made.overlay, alt), caption)
