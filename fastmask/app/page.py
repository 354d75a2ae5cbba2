"""The page for looking at a run: try a photo, browse the out-of-fold answers, mark wrong labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import gradio as gr
from fastapi import FastAPI

from fastmask.app import html as markup
from fastmask.app.browse import ORDERS, PAGE, SHOWN, Filter, Page
from fastmask.app.viewer import ANSWER, LABEL, Viewer
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import FastmaskError, UsageError
from fastmask.system.terminal import quote

# what a filter takes besides classes, which stand behind a mark: one may be called as these are
ANY, NO_LABEL, _CLASS = "*", "-", "="
THIS, PERSON = "this photo", "all photos of the person"
# heads that are shown as buttons and not as a list
_MOST_BUTTONS = 6
# seconds between clearings away of photos that were sent, and how old those are
_CLEAR = (300, 1800)
# one photo at a time goes through the networks; what no program is to call by name
_NETWORK, _QUIET = "network", {"api_visibility": "private"}
_HINT = '<p class="fm-empty">The answer comes here. The photo stays on this machine.</p>'
_ASKED = "<h2>Is a label wrong?</h2>"
_BAD = "fm-bad"
_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


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


def _header(run: RunDirectory) -> str:
    folds = run.config.folds
    words = f"{run.config.arch}, folds 0 to {folds - 1}, of the folders fold0 to fold{folds - 1}"
    words = "an ensemble" if run.is_ensemble else words
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
    """What a label is corrected with: its head, the right class or number, of whom; and what stands there.

    `row` is the photo that it is filled for: another may be chosen by now, and not yet be shown.
    """

    row: Any
    head: Any
    status: Any
    right: Any
    number: Any
    unknown: Any
    whole: Any
    write: Any
    back: Any
    said: Any

    @property
    def fields(self) -> list[Any]:
        """What follows from the photo and the head."""
        return [self.status, self.right, self.number, self.unknown, self.whole, self.back]


def _form(names: Sequence[str]) -> _Form:
    with gr.Column(elem_id="fm-form"):
        row = gr.Number(None, visible=False, precision=0)
        status = gr.HTML(_ASKED, apply_default_css=False, elem_classes="fm-block")
        with gr.Row():
            head = gr.Dropdown(list(names), value=names[0], label="Label of", min_width=120)
            right = gr.Dropdown([], label="Right is", min_width=120)
            number = gr.Number(None, label="Right is", visible=False, min_width=120)
        unknown = gr.Checkbox(False, label="Nobody can tell: unknown")
        whole = gr.Radio([THIS], value=THIS, label="Of")
        with gr.Row():
            write = gr.Button("Mark as wrong", variant="primary", size="md", min_width=120, elem_id="fm-write")
            back = gr.Button("Take back", size="md", min_width=90, interactive=False, elem_id="fm-back")
        said = gr.HTML(apply_default_css=False, elem_id="fm-form-said")
    return _Form(row, head, status, right, number, unknown, whole, write, back, said)


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
        _ASKED + markup.notice(words, "good" if mark else "info"),
        # hidden or not it goes with every question, and Gradio lets only its choices through
        gr.Dropdown(
            list(viewer.photos.heads[head].classes), value=None if banded else value or None, visible=not banded
        ),
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
        choices = _classes(viewer, head)
        return [gr.Dropdown(choices, value=ANY), gr.Dropdown(choices, value=ANY), head, 1]

    def shown(row: int | None, head: str) -> list[Any]:
        if row is None:
            return ["", "", names[0], None, *_filled(viewer, None, names[0])]
        corrected = head if head in names else viewer.doubtful(row)
        return [*viewer.show(row, head), corrected, row, *_filled(viewer, row, corrected)]

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

    def marked(*given: Any) -> list[Any]:
        *asked, corrected = given
        tiles, number, _, where, _ = browsed(*asked)
        # another photo may have been chosen in the meantime
        stays = asked[-1] == corrected
        return [tiles, number, where, viewer.show(_chosen(corrected), given[0])[1] if stays else gr.skip()]

    def look(event: Any, name: str | None = None) -> Any:
        """What follows once a photo is chosen: what is known of it, and its map."""
        outputs = [large, facts, form.head, form.row, *form.fields, form.said, notice]
        event = event.then(
            _told(len(outputs), lambda *given: [*shown(*given), "", gr.skip()]),
            [row, head],
            outputs,
            show_progress="hidden",
            **_named(name),
        )
        return event.then(_told(1, heated), [form.row, looked, of], heat, concurrency_id=_NETWORK, **_QUIET)

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
        each.input(_told(1, heated), [form.row, looked, of], heat, concurrency_id=_NETWORK, **always)
    fields = [*form.fields, form.said]
    form.head.input(
        _told(7, lambda row, head: [*_filled(viewer, row, head), ""]), [form.row, form.head], fields, **always
    )
    asked = [form.row, form.head, form.right, form.number, form.unknown, form.whole]
    for event in (
        form.write.click(_told(7, written), asked, fields, show_progress="hidden", api_name="mark"),
        form.back.click(
            _told(7, unwritten), [form.row, form.head], fields, show_progress="hidden", api_name="take_back"
        ),
    ):
        # the photo stays, and what was said of its mark, even where the filter has it no more
        inputs, outputs = [head, *filters, number, row, form.row], [grid, number, where, facts]
        event.then(_told(4, marked, None), inputs, outputs, show_progress="hidden", **_QUIET)
    look(again(tab.select(None, None, None), "browse"), "show")
    return lambda event: look(again(event))


def _filters(viewer: Viewer) -> list[Any]:
    """The head, then what the parameters of `_filter` are, in order."""
    targets, folds = viewer.targets, sorted(set(viewer.run.oof["fold"].tolist()))
    names = _classes(viewer, targets[0])
    return [
        gr.Dropdown(targets, value=targets[0], label="Head", min_width=110),
        gr.Dropdown(list(SHOWN), value=SHOWN[0], label="Show", min_width=110),
        gr.Dropdown(names, value=ANY, label="Label", min_width=110),
        gr.Dropdown(names, value=ANY, label="Answer", min_width=110),
        gr.Dropdown([("any", ANY), *((str(fold), str(fold)) for fold in folds)], value=ANY, label="Fold", min_width=80),
        gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", min_width=110),
        gr.Number(0, label="Probability ≥ %", minimum=0, maximum=100, min_width=80),
        gr.Number(100, label="≤ %", minimum=0, maximum=100, min_width=80),
        gr.Textbox(label="Search", min_width=110, max_lines=1, max_length=200),
    ]


def _classes(viewer: Viewer, head: str) -> list[tuple[str, str]]:
    """What may be chosen of a head: (as it is called, as `_filter` takes it)."""
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
    notice = gr.HTML(apply_default_css=False, elem_id="fm-marks-said")
    table = gr.HTML(apply_default_css=False, elem_id="fm-marks", js_on_load="fm.marks(element, trigger, 'select')")

    def unmarked(event: gr.EventData) -> list[Any]:
        target = getattr(event, "target_", None)
        if not (isinstance(target, list) and len(target) == 3 and all(isinstance(part, str) for part in target)):
            raise UsageError("There is no such mark; choose one of those shown.")
        said = viewer.unmark((target[0], target[1], target[2]))
        return [viewer.marks(), markup.notice(said, "good")]

    tab.select(_told(2, lambda: [viewer.marks(), ""]), None, [table, notice], api_name="marks")
    again(table.select(_told(2, unmarked), None, [table, notice], **_QUIET))


def mounted(page: gr.Blocks, most_bytes: int) -> FastAPI:
    """A page as an application of its own that takes photos of at most so many bytes, and tells nobody of anything."""
    page.queue(max_size=64)
    # only then does Gradio check that what is asked about was sent before
    page.has_launched = True
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        max_file_size=most_bytes,
        allowed_paths=[],
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=_theme(),
        # a word that it reads out and has no translation of
        i18n=gr.I18n(en={"common.complete": "Done"}),
        # not as css=, which it takes apart and puts together otherwise
        head=f"<style>{_asset('page.css')}</style><script>{_asset('page.js')}</script>",
    )


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
    return (files("fastmask.app") / name).read_text(encoding="utf-8")


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
