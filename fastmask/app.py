"""The page for looking at a run: try a photo, browse the out-of-fold answers, mark wrong labels."""

from __future__ import annotations

import errno
import functools
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

# before it is imported: it would tell its makers of each start
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")

import gradio as gr
import numpy as np
import uvicorn
from fastapi import FastAPI

from fastmask.data.photo import read_photo
from fastmask.data.table import Table
from fastmask.errors import DataError, FastmaskError, FastmaskWarning, UsageError
from fastmask.guard import Guard
from fastmask.heads import JOINT
from fastmask.report import markup
from fastmask.report.browse import (
    ORDERS,
    PAGE,
    SHOWN,
    Filter,
    Page,
    answers,
    page_of,
    photo_answer,
    select,
)
from fastmask.report.marks import Mark, add_mark, check_marks, marks_on, place_of, read_marks, take_back
from fastmask.report.source import table_of
from fastmask.report.trial import MOST_BYTES, Trial
from fastmask.run import Run
from fastmask.terminal import say

ANY, UNKNOWN_LABEL = "any", "no label"
ANSWER, LABEL = "the answer", "the label"
THIS, PERSON = "this photo", "all photos of the person"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# ports that are tried, one after the other; heads that are shown as buttons and not as a list
_PORTS, _MOST_BUTTONS = 100, 6
# maps that are kept, some tens of kilobytes each
_KEPT = 256
# seconds between clearings away of photos that were sent, and how old those are
_CLEAR = (300, 1800)
# one photo at a time goes through the networks; what no program is to call by name
_NETWORK, _QUIET = "network", {"api_visibility": "private"}
_HINT = '<p class="fm-empty">The answer comes here. The photo stays on this machine.</p>'
_BAD = "fm-bad"
_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


class Viewer:
    """What the page knows and does; each method is one thing that it asks for, and gives plain values or HTML.

    `table` are the photos of the run, None where they are not here, for the reason `why_not`.
    """

    def __init__(self, run: Run, trial: Trial, table: Table | None, file: Path, why_not: str = "") -> None:
        self.run, self.trial, self.table, self.file, self.why_not = run, trial, table, file, why_not
        self._answers = functools.cache(functools.partial(answers, run))
        self._map = functools.lru_cache(maxsize=_KEPT)(self._map_of)

    @property
    def targets(self) -> list[str]:
        """The joint class, where it is more than a head, and the heads that make it."""
        names = list(self.run.heads.classified)
        return [JOINT, *names] if len(names) > 1 else names

    def classes(self, head: str) -> list[str]:
        """The classes that photos are labelled or answered with in a head, in order."""
        found = self._answers(head)
        there = set(found["true"]) | set(found["predicted"])
        names = self.run.heads[head].classes if head != JOINT else None
        return [name for name in names or sorted(there) if name in there]

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
        heads = self.run.heads
        parts = []
        for one, two in zip(*(self._parts(text) for text in (name, other)), strict=True):
            parts += [one] if one != two else []
        return " ".join(parts) if len(parts) < len(heads) else name

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - there is one viewer, as long as the process
    def _parts(self, joint: str) -> tuple[str, ...]:
        code = self._joint_codes[joint]
        return tuple(self.run.heads.decode(self.run.heads.unjoint(np.array([code]))[0]))

    @functools.cached_property
    def _joint_codes(self) -> dict[str, int]:
        heads = self.run.heads
        codes = np.unique([*heads.joint(self.run.true), *heads.joint(self.run.predicted)])
        return {heads.joint_name(int(code)): int(code) for code in codes}

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
        label = self._answers(head).iloc[row]["true"] if of == LABEL else None
        if label == "":
            raise UsageError("This photo has no label, so nothing speaks for it.")
        return self._map(row, head, label)

    def _map_of(self, row: int, head: str, label: str | None) -> str:
        one, boxes = self._row(row), self.run.config.boxes
        framed = {} if boxes is None else {"boxes": boxes, "root": self.photos.root}
        made = self.trial.explain_own(self.photos.root / one["path"], int(one["fold"]), head, label, **framed)
        return markup.figure(
            markup.picture(made.overlay, f"The photo under a map of what speaks for {made.label}"),
            f"What speaks for {made.label} ({markup.percent(made.probability)}), by fold {one['fold']}",
        )

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
    run: Run | str | Path, *, data: str | None = None, fixes: str | Path | None = None, device: str | None = None
) -> Viewer:
    """What the page shows of a run: its photos by its own settings, or where `data` says that they lie.

    Where they are not here, or nothing is out of fold yet, photos can be tried all the same. Raises UsageError or
    DataError for a run, data or a fix table that cannot be used.
    """
    run = Run.of(run)
    if not run.is_ensemble and not run.trained_folds:
        raise UsageError(f"{run.path} has not finished a fold yet, so there is nothing to look at.")
    file, why_not = place_of(run, fixes), ""
    table: Table | None = None
    if not run.is_scored:
        why_not = f"{run.path} has no oof.csv: the run has not finished."
    else:
        try:
            table = table_of(run, data, fixes=False)
        except FastmaskError as error:
            if data is not None:
                raise
            why_not = str(error)
    if table is not None:
        check_marks(file, table)
    return Viewer(run, Trial(run, device), table, file, why_not)


def _photo() -> Any:
    """Where a photo is dropped, pasted or taken; what it gives is the path of the file as it was sent, byte by byte.

    Not a class of its own, which Gradio would write a file for beside this one.
    """
    photo: Any = gr.Image(
        label="A photo: drop it, paste it, or take it",
        sources=["upload", "webcam", "clipboard"],
        type="filepath",
        height=380,
        elem_id="fm-photo",
        buttons=["fullscreen"],
    )
    # the run decodes it, as it does all others
    photo.preprocess = lambda payload: None if payload is None else payload.path
    return photo


def build(viewer: Viewer) -> gr.Blocks:
    """The page."""
    run = viewer.run
    with gr.Blocks(
        title=f"{run.path.name} · fastmask", analytics_enabled=False, delete_cache=_CLEAR, fill_width=True
    ) as page:
        gr.HTML(_header(run), apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Try a photo", id="try"):
                _try(viewer)
            with gr.Tab("Browse", id="browse") as tab:
                refresh = _browse(viewer, tab)
            with gr.Tab("Marked labels", id="marks") as tab:
                _marks(viewer, tab, refresh)
    return page


def _header(run: Run) -> str:
    words = f"{run.config.arch}, {run.config.folds} folds" if not run.is_ensemble else "an ensemble"
    if run.is_scored:
        joint = run.score(draws=0).joint
        words += f" · {len(run.oof)} photos · out-of-fold macro-F1 {joint.macro_f1:.4f}, accuracy {joint.accuracy:.4f}"
    caveats = "".join(markup.notice(caveat) for caveat in run.caveats) if run.is_scored else ""
    return f'<header class="fm-header"><h1>{escape(run.path.name)}</h1><p>{escape(words)}</p>{caveats}</header>'


def _choice(names: Sequence[str], label: str, **options: Any) -> Any:
    """One of a few names as buttons, of many as a list."""
    kind = gr.Radio if len(names) <= _MOST_BUTTONS else gr.Dropdown
    return kind(list(names), value=names[0], label=label, interactive=True, **options)


def _try(viewer: Viewer) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            photo = _photo()
        with gr.Column(scale=2, min_width=280):
            said = gr.HTML(_HINT, apply_default_css=False, elem_id="fm-said", elem_classes="fm-block")
        with gr.Column(scale=2, min_width=280):
            head = _choice(viewer.targets, "Where do the networks look, for", elem_id="fm-tried-head")
            heat = gr.HTML(apply_default_css=False, elem_id="fm-tried-heat", elem_classes="fm-block")
    tried = _told(1, lambda photo: viewer.try_photo(photo) or _HINT)
    heated = _told(1, lambda photo, head, said: "" if _BAD in said else viewer.try_heat(photo, head))
    photo.change(tried, photo, said, api_name="answer", concurrency_id=_NETWORK).then(
        heated, [photo, head, said], heat, api_visibility="private", concurrency_id=_NETWORK
    )
    head.change(heated, [photo, head, said], heat, api_name="explain", concurrency_id=_NETWORK)


class _Form(NamedTuple):
    """What a label is corrected with: its head, the right class or number, of whom; and what stands there."""

    head: Any
    status: Any
    right: Any
    number: Any
    unknown: Any
    whole: Any
    write: Any
    back: Any

    @property
    def fields(self) -> list[Any]:
        """What follows from the photo and the head."""
        return [self.status, self.right, self.number, self.unknown, self.whole, self.back]


def _form(names: Sequence[str]) -> _Form:
    with gr.Column(elem_id="fm-form"):
        gr.HTML("<h2>Is a label wrong?</h2>", apply_default_css=False, elem_classes="fm-block")
        status = gr.HTML(apply_default_css=False, elem_classes="fm-block")
        with gr.Row():
            head = gr.Dropdown(list(names), value=names[0], label="Label of", min_width=120)
            right = gr.Dropdown([], label="Right is", min_width=120)
            number = gr.Number(None, label="Right is", visible=False, min_width=120)
        unknown = gr.Checkbox(False, label="Nobody can tell: unknown")
        whole = gr.Radio([THIS], value=THIS, label="Of")
        with gr.Row():
            write = gr.Button("Mark as wrong", variant="primary", size="md", min_width=120, elem_id="fm-write")
            back = gr.Button("Take back", size="md", min_width=90, interactive=False, elem_id="fm-back")
    return _Form(head, status, right, number, unknown, whole, write, back)


def _filled(viewer: Viewer, row: int | None, head: str) -> list[Any]:
    """The fields of the form for a photo and a head."""
    if row is None:
        return [gr.skip()] * 6
    label, number, mark = viewer.marking(row, head)
    banded = bool(viewer.photos.heads[head].bounds)
    value = mark.value if mark else None
    of = f"{label} ({number})" if number else label
    words = f"Labelled {of or 'nothing'}."
    if mark:
        who = "a model proposes it" if mark.proposed else f"line {mark.line} of {viewer.file}"
        words = f"Marked: {markup.correction(mark)}, of {THIS if mark.path else PERSON} ({who})."
    count = viewer.photos_of(row)
    return [
        markup.notice(words, "good" if mark else "info"),
        gr.Dropdown(list(viewer.photos.heads[head].classes), value=value or None, visible=not banded),
        gr.Number(float(value) if banded and value else None, label=f"Right is (the number of {head})", visible=banded),
        value == "",
        gr.Radio(
            [(THIS, THIS), (f"all {count} photos of the person", PERSON)],
            value=PERSON if mark and not mark.path else THIS,
        ),
        gr.Button(interactive=mark is not None),
    ]


def _value(viewer: Viewer, head: str, right: str | None, number: float | None, unknown: bool) -> str:
    """What is to be written: a class, a number, or nothing."""
    if unknown:
        return ""
    given = number if viewer.photos.heads[head].bounds else right
    if given is None:
        raise UsageError(f"Say what is right of {head} first, or that nobody can tell.")
    return given if isinstance(given, str) else f"{given:g}"


def _browse(viewer: Viewer, tab: gr.Tab) -> Callable[[Any], Any]:
    """The tab of the run's own photos; returns what shows them again after an event."""
    if viewer.table is None:
        gr.HTML(markup.notice(viewer.why_not, "bad"), apply_default_css=False)
        return lambda event: event
    targets, names = viewer.targets, viewer.table.heads.names
    with gr.Row(elem_classes="fm-filters"):
        head, *filters = _filters(viewer)
    notice = gr.HTML(apply_default_css=False, elem_id="fm-notice")
    number, row = gr.Number(1, visible=False, precision=0), gr.Number(None, visible=False, precision=0)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=280):
            grid = gr.HTML(
                apply_default_css=False, elem_id="fm-grid", js_on_load="fm.grid(element, trigger, watch, 'select')"
            )
            with gr.Row(elem_classes="fm-pager"):
                before = gr.Button("‹ Previous", elem_id="fm-before", min_width=90, size="md")
                where = gr.HTML(apply_default_css=False, elem_id="fm-where")
                after = gr.Button("Next ›", elem_id="fm-after", min_width=90, size="md")
        with gr.Column(scale=4, min_width=280, elem_id="fm-detail"):
            with gr.Row(elem_classes="fm-pair"):
                large = gr.HTML(apply_default_css=False, elem_id="fm-large", min_width=140)
                heat = gr.HTML(apply_default_css=False, elem_id="fm-heat", min_width=140)
            with gr.Row():
                gr.Button("‹ Photo before", size="md", min_width=90).click(None, js="() => { fm.step(-1); }")
                gr.Button("Photo after ›", size="md", min_width=90).click(None, js="() => { fm.step(1); }")
            with gr.Row():
                looked = gr.Dropdown(targets, value=targets[0], label="Map of", min_width=120)
                of = gr.Radio([ANSWER, LABEL], value=ANSWER, label="for", min_width=160)
            facts = gr.HTML(apply_default_css=False, elem_id="fm-facts", elem_classes="fm-block")
            form = _form(names)

    def browsed(head: str, *given: Any) -> list[Any]:
        *wanted, number, row = given
        tiles, found, chosen = viewer.browse(head, _filter(*wanted), int(number or 1), row)
        return [tiles, found.number, chosen, _where(found), ""]

    def reset(head: str) -> list[Any]:
        choices = [ANY, *viewer.classes(head)]
        return [gr.Dropdown(choices, value=ANY), gr.Dropdown(choices, value=ANY), head, 1]

    def shown(row: int | None, head: str) -> list[Any]:
        if row is None:
            return ["", "", names[0], *_filled(viewer, None, names[0])]
        corrected = head if head in names else viewer.doubtful(row)
        return [*viewer.show(row, head), corrected, *_filled(viewer, row, corrected)]

    def heated(row: int | None, head: str, of: str) -> str:
        return "" if row is None else viewer.heat(row, head, of)

    def written(row: int | None, head: str, right: Any, number: Any, unknown: bool, whole: str) -> list[Any]:
        said = viewer.mark(_chosen(row), head, _value(viewer, head, right, number, unknown), whole == PERSON)
        return [*_filled(viewer, row, head), markup.notice(said, "good")]

    def unwritten(row: int | None, head: str) -> list[Any]:
        *_, mark = viewer.marking(_chosen(row), head)
        if mark is None:
            raise UsageError(f"{head} of this photo is not marked.")
        said = viewer.unmark(mark.target)
        return [*_filled(viewer, row, head), markup.notice(said, "good")]

    def look(event: Any, name: str | None = None) -> Any:
        """What follows once a photo is chosen: what is known of it, and its map."""
        outputs = [large, facts, form.head, *form.fields, notice]
        event = event.then(
            _told(len(outputs), lambda *given: [*shown(*given), gr.skip()]),
            [row, head],
            outputs,
            show_progress="hidden",
            **_named(name),
        )
        return event.then(_told(1, heated), [row, looked, of], heat, concurrency_id=_NETWORK, **_QUIET)

    def again(event: Any, name: str | None = None) -> Any:
        """What follows once the photos are others."""
        outputs = [grid, number, row, where, notice]
        inputs = [head, *filters, number, row]
        return event.then(_told(5, browsed), inputs, outputs, show_progress="hidden", **_named(name))

    always: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}
    true, predicted = filters[1:3]
    look(again(head.input(_told(4, reset, None), head, [true, predicted, looked, number], **always)))
    *others, text = filters
    # what is pasted or filled in is no input to it, but a change
    for changed in (*(each.input for each in others), text.change):
        look(again(changed(lambda: 1, None, number, **always)))
    look(again(before.click(lambda n: n - 1, number, number, **_QUIET)))
    look(again(after.click(lambda n: n + 1, number, number, **_QUIET)))
    look(grid.select(_row_of, None, row, **_QUIET))
    for each in (looked, of):
        each.input(_told(1, heated), [row, looked, of], heat, concurrency_id=_NETWORK, **always)
    fields = [*form.fields, notice]
    form.head.input(_told(7, lambda row, head: [*_filled(viewer, row, head), ""]), [row, form.head], fields, **always)
    asked = [row, form.head, form.right, form.number, form.unknown, form.whole]
    for event in (
        form.write.click(_told(7, written), asked, fields, show_progress="hidden", api_name="mark"),
        form.back.click(_told(7, unwritten), [row, form.head], fields, show_progress="hidden", api_name="take_back"),
    ):
        # what was said of the mark stays
        event.then(
            _told(4, lambda *given: browsed(*given)[:4], None),
            [head, *filters, number, row],
            [grid, number, row, where],
            **_QUIET,
        )
    look(again(tab.select(None, None, None), "browse"), "show")
    return lambda event: look(again(event))


def _filters(viewer: Viewer) -> list[Any]:
    """The head, then what the parameters of `_filter` are, in order."""
    targets, folds = viewer.targets, sorted(set(viewer.run.oof["fold"].tolist()))
    names = [ANY, *viewer.classes(targets[0])]
    return [
        gr.Dropdown(targets, value=targets[0], label="Head", min_width=110),
        gr.Dropdown(list(SHOWN), value=SHOWN[0], label="Show", min_width=110),
        gr.Dropdown(names, value=ANY, label="Label", min_width=110),
        gr.Dropdown(names, value=ANY, label="Answer", min_width=110),
        gr.Dropdown([ANY, *map(str, folds)], value=ANY, label="Fold", min_width=80),
        gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", min_width=110),
        gr.Number(0, label="Probability ≥ %", minimum=0, maximum=100, min_width=80),
        gr.Number(100, label="≤ %", minimum=0, maximum=100, min_width=80),
        gr.Textbox(label="Search", min_width=110, max_lines=1, max_length=200),
    ]


def _filter(
    show: str, true: str, predicted: str, fold: str, order: str, least: float | None, most: float | None, text: str
) -> Filter:
    classes = {ANY: None, UNKNOWN_LABEL: ""}
    return Filter(
        show,
        classes.get(true, true),
        classes.get(predicted, predicted),
        None if fold == ANY else int(fold),
        (least or 0) / 100,
        (100 if most is None else most) / 100,
        text or "",
        order,
    )


def _where(found: Page) -> str:
    first = (found.number - 1) * PAGE + 1
    words = f"{first} to {first + len(found.rows) - 1} of {found.total}" if found.total else "0 photos"
    return f'<p role="status">{words}<br><small>page {found.number} of {found.pages}</small></p>'


def _chosen(row: int | None) -> int:
    if row is None:
        raise UsageError("Choose a photo first.")
    return row


def _row_of(event: gr.EventData) -> int | None:
    row = getattr(event, "row", None)
    return row if isinstance(row, int) else None


def _marks(viewer: Viewer, tab: gr.Tab, again: Callable[[Any], Any]) -> None:
    if viewer.table is None:
        gr.HTML(markup.notice(viewer.why_not, "bad"), apply_default_css=False)
        return
    gr.HTML(
        f"<p>In <code>{escape(str(viewer.file))}</code>. Train on the corrected labels by "
        f"<code>fastmask fit --fixes {escape(quote(str(viewer.file)))}</code> with the run's other options.</p>",
        apply_default_css=False,
        elem_classes="fm-block",
    )
    notice = gr.HTML(apply_default_css=False)
    table = gr.HTML(apply_default_css=False, elem_id="fm-marks", js_on_load="fm.marks(element, trigger, 'select')")

    def unmarked(event: gr.EventData) -> list[Any]:
        target = getattr(event, "target_", None)
        if not (isinstance(target, list) and len(target) == 3 and all(isinstance(part, str) for part in target)):
            raise UsageError("There is no such mark; choose one of those shown.")
        said = viewer.unmark((target[0], target[1], target[2]))
        return [viewer.marks(), markup.notice(said, "good")]

    tab.select(_told(2, lambda: [viewer.marks(), ""]), None, [table, notice], api_name="marks")
    again(table.select(_told(2, unmarked), None, [table, notice], **_QUIET))


def free_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the first free port from `port` on; raises UsageError where there is none."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; expected 0 to 65535.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(
            f"--host is {host!r}, which is no name or address of this machine ({error.strerror})."
        ) from error
    last: OSError | None = None
    for number in range(port, min(port + _PORTS, 65536)):
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            # or a port would stay taken for a minute after the page has gone
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((place[0], number, *place[2:]))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            last = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    raise UsageError(
        f"Nothing can listen at {host}, port {port} and those after it: {last and last.strerror}."
    ) from last


@contextmanager
def served(viewer: Viewer, hosts: Sequence[str] = LOOPBACK) -> Iterator[Any]:
    """The page as an ASGI application, behind its guard; photos that are sent lie in a folder that goes with it.

    `hosts` are the names that a browser may call this machine by, all where there are none.
    """
    with tempfile.TemporaryDirectory(prefix="fastmask-app-", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(folder)
        try:
            blocks = build(viewer)
            blocks.queue(max_size=64)
            # only then does it check that what is asked about was sent before
            blocks.has_launched = True
            inner = gr.mount_gradio_app(
                FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
                blocks,
                path="",
                max_file_size=MOST_BYTES,
                allowed_paths=[],
                show_error=False,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                pwa=False,
                theme=_theme(),
                # not as css=, which it takes apart and puts together otherwise
                head=f"<style>{_asset('app.css')}</style><script>{_asset('app.js')}</script>",
            )
            yield Guard(inner, Path(folder), MOST_BYTES, hosts)
        finally:
            if before is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(viewer: Viewer, host: str = "127.0.0.1", port: int = 7860, told: Callable[[str], None] = say) -> None:
    """Serve the page until a Ctrl-C; `told` is told its address. Raises UsageError where nothing can listen there."""
    local = host in LOOPBACK
    with free_socket(host, port) as listening, served(viewer, LOOPBACK if local else ()) as application:
        if not local:
            warnings.warn(
                f"--host {host} shows the photos, and lets labels be marked, to everybody who reaches this machine; "
                "nobody is asked for a password.",
                FastmaskWarning,
                stacklevel=2,
            )
        number = listening.getsockname()[1]
        told(f"http://{f'[{host}]' if ':' in host else host}:{number}/")
        config = uvicorn.Config(application, log_level="warning", ws="none", timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listening])


def _theme() -> Any:
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        # those of the machine: none comes from elsewhere
        font=list(_SYSTEM),
        font_mono=["ui-monospace", "Consolas", "monospace"],
        radius_size="md",
        spacing_size="sm",
        text_size="md",
    )
    # light enough on dark, dark enough on light, to be read (WCAG: 4.5 to 1)
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
    )


def _asset(name: str) -> str:
    return (files("fastmask") / name).read_text(encoding="utf-8")


def _named(name: str | None) -> dict[str, Any]:
    return _QUIET if name is None else {"api_name": name}


def _told(outputs: int, work: Callable[..., Any], notice: int | None = -1) -> Callable[..., Any]:
    """Around what the page asks for: a mistake becomes a sentence in output `notice`; the others stay as they are."""

    @functools.wraps(work)
    def asked(*given: Any) -> Any:
        try:
            return work(*given)
        except FastmaskError as error:
            sentence = str(error)
        except OSError as error:
            # a full disk, a folder that may not be written to
            sentence = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
        said: list[Any] = [gr.skip()] * outputs
        if notice is not None:
            said[notice] = markup.notice(sentence, "bad")
        return said[0] if outputs == 1 else said

    return asked
