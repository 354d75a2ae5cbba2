"""Page: the web page of a run, with its tabs, as an application."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from fastapi import FastAPI

from fastmask.app import fragments
from fastmask.app.tabs import add_browse, add_marks, add_try
from fastmask.app.viewer import Viewer
from fastmask.run.directory import RunDirectory

# seconds between deletions of uploaded photos, and their minimum age
_CLEAR = (300, 1800)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


def build(viewer: Viewer) -> gr.Blocks:
    """The page."""
    title = f"{viewer.run.path.name} · fastmask"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=_CLEAR, fill_width=True) as page:
        gr.HTML(_header(viewer.run), apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Try a photo", id="try"):
                add_try(viewer)
            with gr.Tab("Browse", id="browse") as tab:
                refresh = add_browse(viewer, tab)
            with gr.Tab("Marked labels", id="marks") as tab:
                add_marks(viewer, tab, refresh)
    return page


def _header(run: RunDirectory) -> str:
    last = run.config.folds - 1
    folds = f"folds 0 to {last}, in fold0 to fold{last}" if last else "one fold, in fold0"
    words = "an ensemble" if run.is_ensemble else f"{run.config.arch}, {folds}"
    caveats = ""
    if run.is_scored:
        joint = run.score(draws=0).joint
        words += f" · {len(run.oof)} photos · out-of-fold macro-F1 {joint.macro_f1:.4f}, accuracy {joint.accuracy:.4f}"
        caveats = "".join(map(fragments.notice, run.caveats))
    return f'<header class="fm-header"><h1>{escape(run.path.name)}</h1><p>{escape(words)}</p>{caveats}</header>'


def mount_page(page: gr.Blocks, most_bytes: int) -> FastAPI:
    """A page as an application that accepts photos of at most `most_bytes`, without telemetry."""
    page.queue(max_size=64)
    # required by Gradio to check that a file in a request was uploaded before
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
        # screen readers read it, and Gradio has no translation
        i18n=gr.I18n(en={"common.complete": "Done"}),
        # not by css=, which Gradio rewrites
        head=f"<style>{fragments.asset('page.css')}</style><script>{fragments.asset('page.js')}</script>",
    )


def _theme() -> Any:
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        # installed fonts, because the page must not load any
        font=list(_FONTS),
        font_mono=["ui-monospace", "Consolas", "monospace"],
        radius_size="md",
        spacing_size="sm",
        text_size="md",
    )
    # contrast of at least 4.5 to 1 (WCAG)
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
