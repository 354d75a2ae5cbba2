"""Style: how the plots of a report look, in a notebook, as PNG, and as SVG with a light and a dark theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

# text, axes, grid lines; an SVG has other colours on a dark page
INK, QUIET, FAINT = "#1d2833", "#5d6975", "#d4dae0"
_DARK = {INK: "#e4e9ee", QUIET: "#a3afba", FAINT: "#36424d"}
# distinguishable with colour blindness, and on white as on black
SERIES = ("#2f6fbb", "#d1602d", "#2e8f68", "#9058b8", "#a8830f", "#2b93a8", "#c04a86", "#74808c")
RIGHT, WRONG = SERIES[2], SERIES[1]
DPI = 110
# fallbacks for a page without DejaVu Sans, as wide or narrower
_FONTS = "'DejaVu Sans', Verdana, system-ui, sans-serif"
# fonts with letters that DejaVu Sans lacks, used if installed
_OTHER_FONTS = [
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans KR",
    "Noto Sans JP",
    "Noto Sans SC",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "Yu Gothic",
    "MS Gothic",
    "Hiragino Sans",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Droid Sans Fallback",
    "Arial Unicode MS",
]
_SETTINGS: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(color={list(SERIES)})",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    # names may contain a dollar sign
    "text.parse_math": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    # text stays text, for searching and screen readers
    "svg.fonttype": "none",
    # for reproducible bytes
    "svg.hashsalt": "fastmask",
}


class Picture(Figure):
    """A matplotlib Figure that is drawn in the style of a report; a notebook shows it with any backend."""

    def draw(self, renderer: Any) -> None:
        # ticks are created on drawing, with the current settings
        with styled():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return to_png(self)


@contextmanager
def styled() -> Iterator[None]:
    """A context, or decorator, in which figures have the style of a report, whatever the user's own settings."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update({**_SETTINGS, "font.family": list(_families())})
        # `missing_letters` reports these
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


@cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ("DejaVu Sans", *(name for name in _OTHER_FONTS if name in installed))


@cache
def _has_letter(letter: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return any(get_font(findfont(name)).get_char_index(ord(letter)) for name in _families())


def missing_letters(picture: Figure) -> list[str]:
    """The letters of a picture that no installed font has, drawn as empty boxes."""
    letters = {letter for text in picture.findobj(Text) for letter in text.get_text()}
    return sorted(letter for letter in letters if letter.isprintable() and letter != " " and not _has_letter(letter))


def to_png(picture: Figure) -> bytes:
    """A picture as a PNG with a white background."""
    buffer = io.BytesIO()
    with styled():
        picture.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def to_svg(picture: Figure) -> str:
    """A picture as an SVG with a transparent background, and light text and lines in dark mode."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with styled():
        picture.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    # without the XML prolog, which contains a URL
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    names = {colour: f"--c{i}" for i, colour in enumerate(_DARK)}
    for colour, name in names.items():
        text = text.replace(colour, f"var({name})")
    light = ";".join(f"{name}:{colour}" for colour, name in names.items())
    dark = ";".join(f"{name}:{_DARK[colour]}" for colour, name in names.items())
    rules = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FONTS, text)
    return text.replace('<style type="text/css">', f'<style type="text/css">{rules}', 1)


def width_of(picture: Figure) -> int:
    """The width of a picture on a page, in CSS pixels."""
    return round(picture.get_size_inches()[0] * 96)
