import os
import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fastmask.data.contest import read_contest
from fastmask.data.formats import READABLE
from fastmask.data.photo import check_photos, decode_photo, list_photos, read_photo
from fastmask.system.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)


def encoded(image, format_, **options):
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_has_the_pixels_that_pillow_gives(subsampling):
    data = encoded(Image.fromarray(RGB), "JPEG", quality=85, subsampling=subsampling)
    assert (decode_photo(data) == np.asarray(Image.open(BytesIO(data)))).all()


def test_png_is_exact_and_grey_palette_and_cmyk_become_rgb():
    image = Image.fromarray(RGB)
    assert (decode_photo(encoded(image, "PNG")) == RGB).all()
    grey, cmyk = decode_photo(encoded(image.convert("L"), "JPEG")), decode_photo(encoded(image.convert("CMYK"), "JPEG"))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert grey.shape == cmyk.shape == decode_photo(encoded(image.convert("P"), "PNG")).shape == RGB.shape
    assert cmyk.mean() == pytest.approx(RGB.mean(), rel=0.05)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = (np.arange(60 * 40).reshape(60, 40) * 27).astype(np.uint16)
    seen = decode_photo(encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_allclose(seen[..., 1], deep / 257, atol=0.51)


def test_transparency_is_on_white():
    clear = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    assert (decode_photo(encoded(Image.fromarray(clear), "PNG")) == 255).all()


def test_a_photo_is_rotated_by_its_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    half = RGB.copy()
    half[:, :20], half[:, 20:] = 0, 255
    seen = decode_photo(encoded(Image.fromarray(half), "JPEG", exif=exif))
    assert seen.shape == (40, 60, 3)
    assert seen[:15].mean() < 10
    assert seen[25:].mean() > 245


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file"),
        (b"", "is empty"),
        (b"not an image at all", "is not an image"),
        (encoded(Image.fromarray(RGB), "JPEG")[:-200], "damaged or cut short"),
        (encoded(Image.fromarray(RGB), "PNG")[:-500], "damaged or cut short"),
        (encoded(Image.fromarray(RGB), "JPEG")[:30], "is not an image|damaged or cut short"),
    ],
)
def test_an_unreadable_photo_is_named(tmp_path, content, message):
    file = tmp_path / "mask1.jpg"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_photo(file)
    assert str(file) in str(caught.value)


def test_every_photo_is_decoded_before_anything_starts(contest_copy):
    table = read_contest(contest_copy)
    photos = [table.photo(i) for i in range(len(table))]
    assert set(check_photos(photos)) == {(512, 384)}
    photos[17].write_bytes(photos[17].read_bytes()[:-999])
    with pytest.raises(DataError, match=photos[17].name):
        check_photos(photos)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width, height):
    """A PNG of a few bytes that says it is so large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of(width, height):
    plain = encoded(Image.fromarray(RGB), "JPEG")
    assert plain.count(struct.pack(">HH", 60, 40)) == 1
    return plain.replace(struct.pack(">HH", 60, 40), struct.pack(">HH", height, width))


# 13377 x 13378 pixels are the first above the bound, and Pillow itself refuses only twice that
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", [png_of, jpeg_of])
@pytest.mark.parametrize("size", [(60_000, 60_000), (13_377, 13_378)])
def test_a_photo_that_says_it_is_enormous_is_refused_before_it_takes_memory(tmp_path, make, size):
    (tmp_path / "a.jpg").write_bytes(make(*size))
    tracemalloc.start()
    with pytest.raises(DataError, match="a.jpg has more than 178,956,970 pixels; scale it down, or remove its row"):
        read_photo(tmp_path / "a.jpg")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10**7


def test_other_formats_are_not_opened(tmp_path):
    # Pillow would start Ghostscript for it
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert Image.open(tmp_path / "a.jpg").format == "EPS"
    with pytest.raises(DataError, match="is PostScript, not a photo that can be read; save it as JPEG, or"):
        read_photo(tmp_path / "a.jpg")


def test_a_file_longer_than_any_photo_is_not_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match="a.jpg is longer than 256 MB"):
        read_photo(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", [name for name in READABLE if name != "HEIF"])
def test_changed_bytes_give_a_photo_or_a_sentence(tmp_path, format_):
    whole, rng = encoded(Image.fromarray(RGB), format_), np.random.default_rng(0)
    sentences = []
    for _ in range(100):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 300), 8):
            data[at] = rng.integers(256)
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            assert read_photo(tmp_path / "a.jpg").dtype == np.uint8
        except DataError as error:
            sentences.append(str(error))
    assert len(sentences) > 10
    assert all(sentence.startswith(str(tmp_path / "a.jpg")) for sentence in sentences)


@pytest.mark.parametrize("name", [b"\xff.jpg", b"a\nb.jpg", b"\x1b[2J.jpg"])
def test_a_name_that_no_table_can_hold_is_refused(tmp_path, name):
    (tmp_path / "photos").mkdir()
    with open(os.fsencode(tmp_path / "photos") + b"/" + name, "wb"):
        pass
    with pytest.raises(DataError, match="has characters in its name that a table cannot hold; rename it"):
        list_photos(tmp_path / "photos")
