"""Tabs: try a photo, browse the out-of-fold predictions, list the marked labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from fastmask.app import fragments
from fastmask.app.selection import ORDERS, PAGE, SHOWN, Filter, Page
from fastmask.app.viewer import LABEL, PREDICTION, Viewer
from fastmask.system.errors import FastmaskError, UsageError
from fastmask.system.terminal import quote

# values of a filter; a class has a prefix, because it may have the name of one of the others
ANY, NO_LABEL, _CLASS = "*", "-", "="
THIS, PERSON = "this photo", "all photos of the person"
# heads that are shown as buttons; more are a list
_MOST_BUTTONS = 6
# one photo at a time goes through the networks; events without a name are not part of the API
_NETWORK, _PRIVATE = "network", {"api_visibility": "private"}
_HIDDEN: dict[str, Any] = {"show_progress": "hidden"}
_HINT = fragments.empty("Predictions are shown here. The photo stays on this machine.")
_QUESTION = "<h2>Is a label wrong?</h2>"
_HTML = functools.partial(gr.HTML, apply_default_css=False)


def with_notice(outputs: int, work: Callable[..., Any], notice: int | None = -1) -> Callable[..., Any]:
    """A handler that shows errors as a sentence in output number `notice`, and leaves other outputs unchanged."""

    # without its name, by which Gradio would name an event of the API
    @functools.wraps(work, assigned=("__doc__", "__annotations__"))
    def handler(*given: Any) -> Any:
        try:
            return work(*given)
        except FastmaskError as error:
            sentence = str(error)
        except OSError as error:
            # such as a full disk or a folder without permission
            sentence = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
        said: list[Any] = [gr.skip()] * outputs
        if notice is not None:
            said[notice] = fragments.notice(sentence, "bad")
        return said[0] if outputs == 1 else said

    return handler


def add_try(viewer: Viewer) -> None:
    """The tab that predicts a photo of the user."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            photo = _photo_input()
        with gr.Column(scale=2, min_width=280):
            said = _HTML(_HINT, elem_id="fm-said", elem_classes="fm-block")
        with gr.Column(scale=2, min_width=280):
            kind = gr.Radio if len(viewer.targets) <= _MOST_BUTTONS else gr.Dropdown
            head = kind(
                viewer.targets,
                value=viewer.targets[0],
                label="Where do the networks look, for",
                interactive=True,
                elem_id="fm-tried-head",
            )
            heat = _HTML(elem_id="fm-tried-heat", elem_classes="fm-block")
    predict = with_notice(1, lambda photo: viewer.try_photo(photo) or _HINT)
    explain = with_notice(1, lambda photo, head, said: "" if "fm-bad" in said else viewer.try_heat(photo, head))
    inputs = [photo, head, said]
    predicted = photo.change(predict, photo, said, api_name="answer", concurrency_id=_NETWORK)
    predicted.then(explain, inputs, heat, concurrency_id=_NETWORK, **_PRIVATE)
    head.change(explain, inputs, heat, api_name="explain", concurrency_id=_NETWORK)


def _photo_input() -> Any:
    """A photo that is dropped, pasted or taken, as the path of the file as it was sent.

    Not a subclass, for which Gradio would write a file next to this one.
    """
    photo: Any = gr.Image(
        label="A photo: drop it, paste it, or take it",
        sources=["upload", "webcam", "clipboard"],
        type="filepath",
        height=380,
        elem_id="fm-photo",
        buttons=["fullscreen"],
    )
    # fastmask decodes it like the photos of a data set
    photo.preprocess = lambda payload: None if payload is None else payload.path
    return photo


class Browser:
    """The handlers of the tab Browse: each takes the values of some fields and returns those of others."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, self.heads = viewer, viewer.photos.heads

    def browse(self, head: str, *given: Any) -> list[Any]:
        """A page of photos: tiles, page number, chosen row, position, and no notice."""
        *wanted, number, row = given
        tiles, found, chosen = self.viewer.browse(head, _filter(*wanted), int(number or 1), row)
        return [tiles, found.number, chosen, _where(found), ""]

    def reset(self, head: str) -> list[Any]:
        """After a change of head: the filters by label and prediction, the head of the map, the first page."""
        choices = _classes(self.viewer, head)
        return [gr.Dropdown(choices, value=ANY), gr.Dropdown(choices, value=ANY), head, 1]

    def show(self, row: int | None, head: str) -> list[Any]:
        """A photo: enlarged, with its facts, the head to correct, the row, and the fields of the form."""
        if row is None:
            return ["", "", self.heads.names[0], None, *self.fill(None, self.heads.names[0])]
        corrected = head if head in self.heads.names else self.viewer.doubtful(row)
        return [*self.viewer.show(row, head), corrected, row, *self.fill(row, corrected)]

    def explain(self, row: int | None, head: str, of: str) -> str:
        """Where the networks look in a photo."""
        return "" if row is None else self.viewer.heat(row, head, of)

    def fill(self, row: int | None, head: str) -> list[Any]:
        """The fields of the form for a photo and a head."""
        if row is None:
            return [gr.skip()] * 6
        label, number, mark = self.viewer.marking(row, head)
        banded = bool(self.heads[head].bounds)
        value = mark.value if mark else None
        words = f"Label: {f'{label} ({number})' if number else label or 'none'}."
        if mark:
            who = "proposed by a model" if mark.proposed else f"line {mark.line} of {self.viewer.file}"
            words = f"Marked: {fragments.correction(mark)}, of {THIS if mark.path else PERSON} ({who})."
        whole = [(THIS, THIS), (f"all {self.viewer.photos_of(row)} photos of the person", PERSON)]
        return [
            _QUESTION + fragments.notice(words, "good" if mark else "info"),
            # hidden fields are sent too, and Gradio accepts only values among the choices
            gr.Dropdown(list(self.heads[head].classes), value=None if banded else value or None, visible=not banded),
            gr.Number(float(value) if banded and value else None, label=f"Correct number ({head})", visible=banded),
            value == "",
            gr.Radio(whole, value=PERSON if mark and not mark.path else THIS),
            gr.Button(interactive=mark is not None),
        ]

    def write(self, row: int | None, head: str, right: Any, number: Any, unknown: bool, whole: str) -> list[Any]:
        """Mark a label as wrong: the fields of the form, and what was written."""
        given = "" if unknown else number if self.heads[head].bounds else right
        if given is None:
            raise UsageError(f"Choose the correct label of {head} first, or unknown.")
        value = given if isinstance(given, str) else f"{given:g}"
        said = self.viewer.mark(_chosen(row), head, value, whole == PERSON)
        return [*self.fill(row, head), fragments.notice(said, "good")]

    def remove(self, row: int | None, head: str) -> list[Any]:
        """Remove a mark: the fields of the form, and what was removed."""
        *_, mark = self.viewer.marking(_chosen(row), head)
        if mark is None:
            raise UsageError(f"{head} of this photo is not marked.")
        said = self.viewer.unmark(mark.target)
        return [*self.fill(row, head), fragments.notice(said, "good")]

    def refresh(self, *given: Any) -> list[Any]:
        """After a mark: the tiles, page number, position, and the facts of the photo."""
        *asked, corrected = given
        tiles, number, _, where, _ = self.browse(*asked)
        # another photo may have been chosen in the meantime
        stays = asked[-1] == corrected
        return [tiles, number, where, self.viewer.show(_chosen(corrected), given[0])[1] if stays else gr.skip()]


def add_browse(viewer: Viewer, tab: gr.Tab) -> Callable[[Any], Any]:
    """The tab of the run's own photos; returns a function that shows them again after an event."""
    if viewer.table is None:
        _HTML(fragments.notice(viewer.why_not, "bad"))
        return lambda event: event
    return _connect(Browser(viewer), _Fields(viewer), tab)


class _Fields:
    """The fields of the tab Browse."""

    def __init__(self, viewer: Viewer) -> None:
        targets = viewer.targets
        with gr.Row(elem_classes="fm-filters"):
            self.head, *self.filters = _filters(viewer)
        self.notice = _HTML(elem_id="fm-notice")
        self.number = gr.Number(1, visible=False, precision=0)
        self.row = gr.Number(None, visible=False, precision=0)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=280):
                self.grid = _HTML(elem_id="fm-grid", js_on_load="fm.grid(element, trigger, watch, 'select')")
                with gr.Row(elem_classes="fm-pager"):
                    self.before = gr.Button("‹ Previous", elem_id="fm-before", min_width=90, size="md")
                    self.where = _HTML(elem_id="fm-where")
                    self.after = gr.Button("Next ›", elem_id="fm-after", min_width=90, size="md")
            with gr.Column(scale=4, min_width=280, elem_id="fm-detail"):
                with gr.Row(elem_classes="fm-pair"):
                    self.large = _HTML(elem_id="fm-large", min_width=140)
                    self.heat = _HTML(elem_id="fm-heat", min_width=140)
                with gr.Row():
                    for text, step in (("‹ Previous photo", -1), ("Next photo ›", 1)):
                        gr.Button(text, size="md", min_width=90).click(None, js=f"() => {{ fm.step({step}); }}")
                with gr.Row():
                    self.heat_head = gr.Dropdown(targets, value=targets[0], label="Map of", min_width=120)
                    self.heat_of = gr.Radio([PREDICTION, LABEL], value=PREDICTION, label="for", min_width=160)
                self.facts = _HTML(elem_id="fm-facts", elem_classes="fm-block")
                with gr.Column(elem_id="fm-form"):
                    self._add_form(list(viewer.photos.heads.classified))
        self.browsed = [self.head, *self.filters, self.number, self.row]

    def _add_form(self, names: list[str]) -> None:
        # the photo that the form is filled for, while another may be chosen
        self.form_row = gr.Number(None, visible=False, precision=0)
        status = _HTML(_QUESTION, elem_classes="fm-block")
        with gr.Row():
            self.form_head = gr.Dropdown(names, value=names[0], label="Label of", min_width=120)
            right = gr.Dropdown([], label="Correct label", min_width=120)
            number = gr.Number(None, label="Correct number", visible=False, min_width=120)
        unknown = gr.Checkbox(False, label="Unknown: it cannot be told from the photo")
        whole = gr.Radio([THIS], value=THIS, label="Applies to")
        with gr.Row():
            self.write = gr.Button("Mark as wrong", variant="primary", size="md", min_width=120, elem_id="fm-write")
            self.remove = gr.Button("Remove mark", size="md", min_width=90, interactive=False, elem_id="fm-back")
        said = _HTML(elem_id="fm-form-said")
        # in the order of `Browser.write` and `Browser.fill`
        self.form_inputs = [self.form_row, self.form_head, right, number, unknown, whole]
        self.form_outputs = [status, right, number, unknown, whole, self.remove, said]


def _filters(viewer: Viewer) -> list[Any]:
    """The head, then the parameters of `_filter` in order."""
    targets, folds = viewer.targets, sorted(set(viewer.run.oof["fold"].tolist()))
    names = _classes(viewer, targets[0])
    return [
        gr.Dropdown(targets, value=targets[0], label="Head", min_width=110),
        gr.Dropdown(list(SHOWN), value=SHOWN[0], label="Show", min_width=110),
        gr.Dropdown(names, value=ANY, label="Label", min_width=110),
        gr.Dropdown(names, value=ANY, label="Prediction", min_width=110),
        gr.Dropdown([("any", ANY), *((str(fold), str(fold)) for fold in folds)], value=ANY, label="Fold", min_width=80),
        gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", min_width=110),
        gr.Number(0, label="Probability ≥ %", minimum=0, maximum=100, min_width=80),
        gr.Number(100, label="≤ %", minimum=0, maximum=100, min_width=80),
        gr.Textbox(label="Search", min_width=110, max_lines=1, max_length=200),
    ]


def _connect(browser: Browser, fields: _Fields, tab: gr.Tab) -> Callable[[Any], Any]:
    """Call the handlers on events; returns `again`."""
    always: dict[str, Any] = {**_PRIVATE, "trigger_mode": "always_last"}
    explain = with_notice(1, browser.explain)
    map_inputs = [fields.form_row, fields.heat_head, fields.heat_of]

    def look(event: Any, **options: Any) -> Any:
        """After a photo was chosen: its facts, then its map."""
        outputs = [fields.large, fields.facts, fields.form_head, fields.form_row, *fields.form_outputs, fields.notice]
        show = with_notice(len(outputs), lambda *given: [*browser.show(*given), "", gr.skip()])
        event = event.then(show, [fields.row, fields.head], outputs, **(options or _PRIVATE), **_HIDDEN)
        return event.then(explain, map_inputs, fields.heat, concurrency_id=_NETWORK, **_PRIVATE)

    def again(event: Any, **options: Any) -> Any:
        """After the selection has changed: its photos."""
        outputs = [fields.grid, fields.number, fields.row, fields.where, fields.notice]
        return event.then(with_notice(5, browser.browse), fields.browsed, outputs, **(options or _PRIVATE), **_HIDDEN)

    reset, cleared = with_notice(4, browser.reset, None), [*fields.filters[1:3], fields.heat_head, fields.number]
    look(again(fields.head.input(reset, fields.head, cleared, **always)))
    *others, text = fields.filters
    # pasted or filled-in text is a change, but not an input
    for changed in (*(each.input for each in others), text.change):
        look(again(changed(lambda: 1, None, fields.number, **always)))
    look(again(fields.before.click(lambda number: number - 1, fields.number, fields.number, **_PRIVATE)))
    look(again(fields.after.click(lambda number: number + 1, fields.number, fields.number, **_PRIVATE)))
    look(fields.grid.select(_row_of, None, fields.row, **_PRIVATE))
    for each in (fields.heat_head, fields.heat_of):
        each.input(explain, map_inputs, fields.heat, concurrency_id=_NETWORK, **always)
    fill = with_notice(7, lambda row, head: [*browser.fill(row, head), ""])
    fields.form_head.input(fill, fields.form_inputs[:2], fields.form_outputs, **always)
    write, remove = with_notice(7, browser.write), with_notice(7, browser.remove)
    for event in (
        fields.write.click(write, fields.form_inputs, fields.form_outputs, api_name="mark", **_HIDDEN),
        fields.remove.click(remove, fields.form_inputs[:2], fields.form_outputs, api_name="take_back", **_HIDDEN),
    ):
        # the photo and the message stay, even if the filter no longer selects the photo
        outputs = [fields.grid, fields.number, fields.where, fields.facts]
        refresh = with_notice(4, browser.refresh, None)
        event.then(refresh, [*fields.browsed, fields.form_row], outputs, **_HIDDEN, **_PRIVATE)
    look(again(tab.select(None, None, None), api_name="browse"), api_name="show")
    return lambda event: look(again(event))


def _classes(viewer: Viewer, head: str) -> list[tuple[str, str]]:
    """The choices of a head: (text, value for `_filter`)."""
    named = [(name, _CLASS + name) if name else ("no label", NO_LABEL) for name in viewer.classes(head)]
    return [("any", ANY), *named]


def _filter(
    show: str, true: str, predicted: str, fold: str, order: str, least: float | None, most: float | None, text: str
) -> Filter:
    classes = {ANY: None, NO_LABEL: ""}
    return Filter(
        show,
        classes.get(true, true.removeprefix(_CLASS)),
        classes.get(predicted, predicted.removeprefix(_CLASS)),
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


def add_marks(viewer: Viewer, tab: gr.Tab, again: Callable[[Any], Any]) -> None:
    """The tab of all marks; `again` shows the photos of the other tab again after one is removed."""
    if viewer.table is None:
        _HTML(fragments.notice(viewer.why_not, "bad"))
        return
    _HTML(
        f"<p>In <code>{escape(str(viewer.file))}</code>. Train on the corrected labels by "
        f"<code>fastmask fit --fixes {escape(quote(str(viewer.file)))}</code> with the run's other options.</p>",
        elem_classes="fm-block",
    )
    notice = _HTML(elem_id="fm-marks-said")
    table = _HTML(elem_id="fm-marks", js_on_load="fm.marks(element, trigger, 'select')")

    def remove(event: gr.EventData) -> list[Any]:
        target = getattr(event, "target_", None)
        if not (isinstance(target, list) and len(target) == 3 and all(isinstance(part, str) for part in target)):
            raise UsageError("There is no such mark; choose one of those shown.")
        said = viewer.unmark((target[0], target[1], target[2]))
        return [viewer.marks(), fragments.notice(said, "good")]

    tab.select(with_notice(2, lambda: [viewer.marks(), ""]), None, [table, notice], api_name="marks")
    again(table.select(with_notice(2, remove), None, [table, notice], **_PRIVATE))
