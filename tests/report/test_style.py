"""Style: plots as PNG and SVG, reproducible, and independent of matplotlib's settings."""

import xml.etree.ElementTree as ET
from io import BytesIO

import matplotlib as mpl
from PIL import Image

from fastmask.report.style import DPI, INK, Picture, missing_letters, styled, to_png, to_svg, width_of


@styled()
def drawn():
    figure = Picture(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4])
    axes.set(title="한글 $\\frac <script>", xlabel="age")
    return figure


def test_an_svg_is_text_that_follows_the_theme():
    svg = to_svg(drawn())
    root = ET.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"한글 $\\frac <script>", "age"} <= set(texts)
    assert "prefers-color-scheme:dark" in svg
    assert svg.count(INK) == 1
    assert "var(--c0)" in svg
    assert not [word for word in ("<script>", "DOCTYPE", "metadata", "http://purl", "fill: #ffffff") if word in svg]


def test_the_same_figure_gives_the_same_bytes():
    assert to_svg(drawn()) == to_svg(drawn())
    assert to_png(drawn()) == to_png(drawn())


def test_a_png_has_a_white_background_and_the_size_of_the_figure():
    image = Image.open(BytesIO(to_png(drawn()))).convert("RGB")
    assert image.size == (3 * DPI, 2 * DPI)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert width_of(drawn()) == 288


def test_the_settings_of_the_user_stay_and_have_no_effect():
    expected, before = to_png(drawn()), dict(mpl.rcParams)
    with mpl.rc_context({"axes.grid": True, "xtick.color": "red", "font.size": 30}):
        assert to_png(drawn()) == expected
        assert mpl.rcParams["font.size"] == 30
    assert dict(mpl.rcParams) == before


def test_letters_that_no_font_has_are_found_without_a_warning(recwarn):
    to_png(drawn())
    assert [w for w in recwarn if "Glyph" in str(w.message)] == []
    figure = Picture()
    # DejaVu Sans has these
    figure.text(0, 0, "größe\n \N{GREEK SMALL LETTER ALPHA}\N{HORIZONTAL ELLIPSIS}")
    assert missing_letters(figure) == []
    figure.subplots().set_title("日 größe \U0001fad8")
    unknown = missing_letters(figure)
    assert "\U0001fad8" in unknown
    assert set(unknown) <= {"日", "\U0001fad8"}


def test_a_notebook_shows_a_picture_by_itself():
    assert drawn()._repr_png_().startswith(b"\x89PNG")
