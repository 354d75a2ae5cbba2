from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fastmask.data.contest import read_contest
from fastmask.data.photo import check_photos, decode_photo, read_photo
from fastmask.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)


def encoded(image, format_, **options):
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_has_the_pixels_that_pillow_gives(subsampling):
    data = encoded(Image.fromarray(RGB), "JPEG", quality=85, subsampling=subsampling)
    assert (decode_photo(data) == np.asarray(Image.open(BytesIO(data)))).all()


def test_png_is_exact():
    assert (decode_photo(encoded(Image.fromarray(RGB), "PNG")) == RGB).all()


def test_grey_palette_and_cmyk_become_rgb():
    image = Image.fromarray(RGB)
    grey = decode_photo(encoded(image.convert("L"), "JPEG"))
    assert grey.shape == RGB.shape
    assert (grey[..., 0] == grey[..., 2]).all()
    assert decode_photo(encoded(image.convert("P"), "PNG")).shape == RGB.shape
    cmyk = decode_photo(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert cmyk.shape == RGB.shape
    assert cmyk.mean() == pytest.approx(RGB.mean(), rel=0.05)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = (np.arange(60 * 40).reshape(60, 40) * 27).astype(np.uint16)
    seen = decode_photo(encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_allclose(seen[..., 1], deep / 257, atol=0.51)


def test_what_is_transparent_is_white():
    clear = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    assert (decode_photo(encoded(Image.fromarray(clear), "PNG")) == 255).all()


def test_a_photo_is_turned_as_its_exif_says():
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
def test_a_photo_that_cannot_be_used_is_named(tmp_path, content, message):
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
