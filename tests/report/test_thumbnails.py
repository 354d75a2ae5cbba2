"""Thumbnails: sizes, JPEGs, unreadable photos, and sheets."""

from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from fastmask.report.blocks import QUIET, WRONG, Shown
from fastmask.report.thumbnails import HEIGHT, WIDTH, plot_sheet, read_thumbnails, thumbnail, to_uri
from fastmask.run.source import photos_of
from fastmask.system.errors import DataError


@pytest.mark.parametrize(
    ("size", "expected"),
    [((520, 400), (HEIGHT, 200)), ((100, 780), (50, WIDTH)), ((30, 20), (30, 20)), ((4000, 2), (HEIGHT, 1))],
)
def test_photos_keep_their_shape_and_never_grow(size, expected):
    assert thumbnail(np.zeros((*size, 3), np.uint8)).shape[:2] == expected


def test_a_jpeg_is_the_photo_again():
    photo = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 48, 3))
    again = np.asarray(Image.open(urlopen(to_uri(photo))))
    assert np.abs(again.astype(int) - photo).mean() < 3


def test_only_the_given_rows_are_read(make_run, labels, tmp_path):
    table = photos_of(make_run(labels))
    for path in sorted((tmp_path / "made-photos").iterdir())[2:]:
        path.write_bytes(b"no photo")
    first, second = read_thumbnails(table, [1, 2])
    assert first is not None
    assert second is None
    with pytest.raises(DataError, match=r"005\.jpg is not an image"):
        read_thumbnails(table, [5, 7])


def test_a_sheet_has_its_photos_in_rows_with_their_lines():
    photos = [Shown(np.zeros((4, 3, 3), np.uint8), "", [("a" * 99, WRONG), ("b/" * 50, QUIET)]) for _ in range(5)]
    figure = plot_sheet(photos, columns=2, title="All")
    assert len(figure.axes) == 5
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "All"
    assert texts[1].startswith("aaa")
    assert texts[1].endswith("…")
    assert texts[2].startswith("…")
    assert texts[2].endswith("b/")
    tops = sorted({round(axes.get_position().y1, 3) for axes in figure.axes})
    assert len(tops) == 3
