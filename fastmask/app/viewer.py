"""Viewer: what can be asked of a run that is looked at: its photos, their answers and maps, its marks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.app import html as markup
from fastmask.app.browse import Filter, Page, answers, page_of, photo_answer, select
from fastmask.app.marks import Mark, add_mark, check_marks, marks_on, place_of, read_marks, take_back
from fastmask.app.trial import Trial
from fastmask.data.photo import read_photo
from fastmask.data.table import Table
from fastmask.heads import JOINT
from fastmask.report.gradcam import Explanation
from fastmask.report.sections.curves import scored_epochs
from fastmask.run.directory import RunDirectory
from fastmask.run.source import table_of
from fastmask.system.errors import DataError, FastmaskError, UsageError
from fastmask.system.text import percent

# for which class a map is drawn
ANSWER, LABEL = "the answer", "the label"
# maps that are kept, some tens of kilobytes each
_KEPT = 256


class Viewer:
    """What the page knows and does; each method is one thing that it asks for, and gives plain values or HTML.

    `table` are the photos of the run, None where they are not here, for the reason `why_not`. `boxes` are the faces of
    those of a run that was trained with boxes.
    """

    def __init__(
        self, run: RunDirectory, trial: Trial, table: Table | None, file: Path, why_not: str = "", boxes: Any = None
    ) -> None:
        self.run, self.trial, self.table, self.file, self.why_not = run, trial, table, file, why_not
        self.boxes = boxes or run.config.boxes
        self._answers = functools.cache(functools.partial(answers, run))
        self._map = functools.lru_cache(maxsize=_KEPT)(self._map_of)

    @property
    def targets(self) -> list[str]:
        """The joint class, where it is more than a head, and the heads that make it."""
        names = list(self.run.heads.classified)
        return [JOINT, *names] if len(names) > 1 else names

    def classes(self, head: str) -> list[str]:
        """The classes that photos are labelled or answered with in a head, in order; "" where a label is unknown."""
        found = self._answers(head)
        there = set(found["true"]) | set(found["predicted"])
        names = list(self._joint) if head == JOINT else ["", *self.run.heads[head].classes]
        return [name for name in names if name in there]

    def try_photo(self, photo: str | None) -> str:
        """Each head's answer to a photo that was sent."""
        if photo is None:
            return ""
        predictions, remark = self.trial.answer(photo)
        return markup.answer(photo_answer(predictions.heads, predictions.probabilities[0]), remark)

    def try_heat(self, photo: str | None, head: str) -> str:
        """Where the networks look in it."""
        if photo is None:
            return ""
        made = self.trial.explain(photo, head)
        return markup.figure(
            markup.picture(made.overlay, f"The photo under a map of what speaks for {made.label}"),
            f"What speaks for {made.label}, by the mean of {len(self.run.trained_folds)} folds",
        )

    def browse(self, head: str, wanted: Filter, number: int, row: int | None) -> tuple[str, Page, int | None]:
        """A page of small photos, and the row that is looked at: the same, if it is there, or the first."""
        table = self.photos
        marks = read_marks(self.file, table.root)
        found = self._answers(head)
        marked = self._marked(marks, head)
        page = page_of(select(found, wanted, marked), number)
        rows = page.rows["row"].tolist()
        chosen = row if row in rows else rows[0] if rows else None
        tiles = [
            {
                "row": each.row,
                "image": markup.small(table.root / each.path),
                "label": self._shortened(head, each.true, each.predicted),
                "answer": self._shortened(head, each.predicted, each.true),
                "probability": each.probability,
                "marked": each.row in marked,
            }
            for each in page.rows.itertuples()
        ]
        return markup.grid(tiles, chosen), page, chosen

    def _shortened(self, head: str, name: str, other: str) -> str:
        """Of two joint classes that differ, the classes of the heads in which they do."""
        if head != JOINT or not name or not other or name == other:
            return name
        both = zip(self._joint[name], self._joint[other], strict=True)
        return " ".join(one for one, two in both if one != two)

    @functools.cached_property
    def _joint(self) -> dict[str, tuple[str, ...]]:
        """The joint classes that there are, in order, by name: the classes of their heads."""
        heads = self.run.heads
        codes = np.unique([*heads.joint(self.run.true), *heads.joint(self.run.predicted)])
        return {heads.joint_name(int(code)): heads.decode(heads.unjoint(np.array([code]))[0]) for code in codes}

    def _marked(self, marks: Sequence[Mark], head: str) -> set[int]:
        """The rows that have a mark in a head, or, for the joint class, in any."""
        wanted = [mark for mark in marks if head in (JOINT, mark.column)]
        paths, persons = {m.path for m in wanted if m.path}, {m.person for m in wanted if not m.path}
        oof = self.run.oof
        return set(np.flatnonzero(oof["path"].isin(paths) | oof["person"].isin(persons)).tolist())

    def show(self, row: int, head: str) -> tuple[str, str]:
        """A photo, large; and what was said of it, with what else is known."""
        table, one = self.photos, self._row(row)
        said = photo_answer(self.run.heads, self.run.probabilities[row], self.run.true[row])
        photo = table.root / one["path"]
        try:
            image = markup.picture(read_photo(photo), f"Photo {one['path']}")
        except DataError as error:
            image = markup.notice(str(error), "bad")
        count = self.photos_of(row)
        marks = marks_on(read_marks(self.file, table.root), one["person"], one["path"])
        known = [
            ("Person", f"{one['person']} ({count} photo{'s' * (count != 1)})"),
            ("Photo", str(one["path"])),
            ("Fold", f"{one['fold']}, whose networks have not seen this person"),
            *(("Marked", markup.correction(mark)) for mark in marks.values()),
        ]
        if self.run.is_ensemble or self.run.config.group == "none":
            known[2] = ("Fold", str(one["fold"]))
        return markup.figure(image, "The photo"), markup.answer(said) + markup.facts(known)

    def heat(self, row: int, head: str, of: str) -> str:
        """Where the networks that have not seen the photo look, for their answer or for its label."""
        self._row(row)
        label = self._answers(head).iloc[row]["true" if of == LABEL else "predicted"]
        if label == "":
            raise UsageError("This photo has no label, so nothing speaks for it.")
        return self._map(row, head, label)

    def _map_of(self, row: int, head: str, label: str) -> str:
        one = self._row(row)
        framed = {} if self.boxes is None else {"boxes": self.boxes, "root": self.photos.root}
        made = self.trial.explain_own(self.photos.root / one["path"], int(one["fold"]), head, label, **framed)
        return markup.figure(
            markup.picture(made.overlay, f"The photo under a map of what speaks for {made.label}"),
            self._told_of(made, self._answers(head).iloc[row]["predicted"], int(one["fold"])),
        )

    def _told_of(self, made: Explanation, answered: str, fold: int) -> str:
        """Which network a map is of, what that answers itself, and where the answer beside the map is another's."""
        told = f"What speaks for {made.label} in the network that is kept, of {made.by}. "
        if made.label == made.prediction:
            told += f"Its own answer is the same, {percent(made.prediction_probability, 1)}"
        else:
            told += (
                f"It gives that {percent(made.probability, 1)}, and answers {made.prediction} itself, "
                f"{percent(made.prediction_probability, 1)}"
            )
        if made.prediction == answered:
            return f"{told}."
        epochs = ", ".join(map(str, scored_epochs(self.run, fold)))
        of = f", by the network of epoch {epochs}, which the other folds chose" if epochs else ""
        return f"{told}. Out of fold the answer is {answered}{of}."

    def marking(self, row: int, head: str) -> tuple[str, str, Mark | None]:
        """Of a photo and a head: what it is labelled, the number behind it where there is one, and its mark."""
        table, one = self.photos, self._row(row)
        there = table.frame.loc[table.frame["path"] == one["path"]].iloc[0]
        number = there[f"{head}_value"] if table.heads[head].bounds else np.nan
        mark = marks_on(read_marks(self.file, table.root), one["person"], one["path"]).get(head)
        return str(there[head]), "" if np.isnan(number) else f"{number:g}", mark

    def mark(self, row: int, head: str, value: str, whole: bool) -> str:
        """Write down what a label should be, of one photo or of all of its person; says so."""
        table, one = self.photos, self._row(row)
        label, number, _ = self.marking(row, head)
        try:
            name, _ = table.heads[head].read(value)
        except DataError as fault:
            raise UsageError(f"The right label of {head}: {fault}") from fault
        if not whole and value == (number or label):
            raise UsageError(f"{head} is labelled {number or label} already.")
        mark = Mark(one["person"], "" if whole else one["path"], head, value, number or label)
        before = add_mark(self.file, mark, table)
        whom = f"all photos of {one['person']}" if whole else str(one["path"])
        band = f" ({name})" if number and value else ""
        instead = f", in the place of {before.value or 'unknown'}" if before else ""
        return f"Written to {self.file}: {head} of {whom} is {value or 'unknown'}{band}{instead}."

    def unmark(self, target: tuple[str, str, str]) -> str:
        """Take a mark back; says so."""
        gone = take_back(self.file, target, self.photos)
        return f"Taken back: {markup.correction(gone)} of {gone.path or f'all photos of {gone.person}'}."

    def marks(self) -> str:
        """All rows of the fix table."""
        return markup.marks(read_marks(self.file, self.photos.root), self.file)

    def photos_of(self, row: int) -> int:
        """How many photos there are of the person of a photo."""
        return int((self.photos.frame["person"] == self._row(row)["person"]).sum())

    def doubtful(self, row: int) -> str:
        """The head whose label is to be looked at first: one that is answered otherwise, or the first."""
        self._row(row)
        said, labels = self.run.predicted[row], self.run.true[row]
        wrong = [
            head.name
            for head, one, two in zip(self.run.heads, said, labels, strict=True)
            if one != two and head.name in self.photos.heads.names
        ]
        return str((wrong or self.photos.heads.names)[0])

    def _row(self, row: Any) -> Any:
        if not isinstance(row, int) or not 0 <= row < len(self.run.oof):
            raise UsageError("There is no such photo; choose one of those shown.")
        return self.run.oof.iloc[row]

    @property
    def photos(self) -> Table:
        """The photos of the run; raises UsageError where they are not here."""
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
    """What the page shows of a run: its photos by its own settings, or where `data`, `images`
    and `boxes` say that they lie.

    Where they are not here, or nothing is out of fold yet, photos can be tried all the same. Raises UsageError or
    DataError for a run, data or a fix table that cannot be used.
    """
    run = RunDirectory.of(run)
    if not run.is_ensemble and not run.trained_folds:
        raise UsageError(f"{run.path} has not finished a fold yet, so there is nothing to look at.")
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
