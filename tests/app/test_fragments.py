"""Fragments: what is written by others stays text, and probabilities are not rounded to certainty."""

from pathlib import Path

import numpy as np
from PIL import Image

from fastmask.app import fragments
from fastmask.app.marks import Mark
from fastmask.app.selection import HeadAnswer, PhotoAnswer

EVIL = "<img src=x onerror='alert(1)'>\""


def test_no_text_becomes_markup(tmp_path):
    head = HeadAnswer(EVIL, EVIL, 0.9, ((EVIL, 0.9), ("b", 0.1)), label=EVIL)
    tile = {"row": 1, "image": "", "label": EVIL, "answer": EVIL * 2, "probability": 0.5, "marked": True}
    made = [
        fragments.answer(PhotoAnswer((head, head), head), EVIL),
        fragments.grid([tile], 1),
        fragments.marks([Mark(EVIL, "", EVIL, EVIL, EVIL), Mark("", EVIL, EVIL, EVIL, EVIL)], Path(EVIL)),
        fragments.marks([], Path(EVIL)),
        fragments.facts([(EVIL, EVIL)]),
        fragments.figure("", EVIL),
        fragments.notice(EVIL, "bad"),
        fragments.picture(np.zeros((2, 2, 3), np.uint8), EVIL),
    ]
    for html in made:
        assert "&lt;img src=x onerror=&#x27;alert(1)&#x27;&gt;&quot;" in html or "&lt;img" in html
        assert "<img src=x" not in html
        assert "onerror='" not in html


def test_one_photo_can_be_reached_by_the_tab_key():
    tiles = [{"row": r, "image": "", "label": "a", "answer": "b", "probability": 0.5, "marked": False} for r in (4, 7)]
    html = fragments.grid(tiles, 7)
    assert html.count('tabindex="0"') == 1
    assert (
        'data-row="7" tabindex="0" aria-current=true aria-label="labelled a, predicted b, 50.0\N{NO-BREAK SPACE}%"'
        in html
    )


def test_a_picture_is_scaled_down_and_never_up(tmp_path):
    import base64
    import io
    import re

    for shape, expected in (((2000, 1000, 3), (512, 1024)), ((20, 10, 3), (10, 20))):
        html = fragments.picture(np.zeros(shape, np.uint8), "a")
        data = re.search(r"base64,([^\"]*)", html)
        assert data is not None
        assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == expected


def test_a_photo_that_cannot_be_read_leaves_a_sign(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    assert "cannot be read" in fragments.tile_picture(tmp_path / "a.jpg")
