"""The pixels of unusual files, against arithmetic and OpenCV, which has decoders of its own."""

import struct
import warnings
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from fastmask.data.decode import PhotoError, decode, ignore_pillow
from fastmask.data.photo import decode_photo, read_size

HEIGHT, WIDTH = 48, 64
# from 0 to 1, with a mean of 1/3
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) ** 2
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP**2], axis=-1)
_CODES = {1: "B", 3: "H", 4: "I", 8: "h", 11: "f"}


def tiff(values, tags=(), photometric=1, planar=1, endian="<", kind=None):
    """An uncompressed TIFF, written by hand; `tags` are (number, type, values)."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = kind or {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = (values if planar == 1 else values.transpose(2, 0, 1)).astype(values.dtype.newbyteorder(endian)).tobytes()
    strips = channels if planar == 2 else 1
    entries = [
        (256, 4, [values.shape[1]]),
        (257, 4, [values.shape[0]]),
        (258, 3, [values.dtype.itemsize * 8] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [0] * strips),
        (277, 3, [channels]),
        (278, 4, [values.shape[0]]),
        (279, 4, [len(data) // strips] * strips),
        (284, 3, [planar]),
        (339, 3, [kind] * channels),
        *tags,
    ]
    entries.sort()
    packed = {tag: struct.pack(endian + _CODES[of] * len(v), *v) for tag, of, v in entries}
    start = 8 + 2 + 12 * len(entries) + 4 + sum(len(p) for p in packed.values() if len(p) > 4)
    packed[273] = struct.pack(f"{endian}{strips}I", *(start + i * len(data) // strips for i in range(strips)))
    directory, longer, at = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, of, v in entries:
        directory += struct.pack(endian + "HHI", tag, of, len(v))
        if len(packed[tag]) > 4:
            directory += struct.pack(endian + "I", at + len(longer))
            longer += packed[tag]
        else:
            directory += packed[tag].ljust(4, b"\0")
    first = struct.pack(endian + "2sHI", b"II" if endian == "<" else b"MM", 42, 8)
    return first + struct.pack(endian + "H", len(entries)) + directory + bytes(4) + longer + data


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values, significant=None):
    """A PNG of 16 bits, written by hand, with the chunk sBIT for `significant` bits."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    said = chunk(b"sBIT", bytes([significant] * channels)) if significant else b""
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + said + ends


def whole(values, top, kind):
    return (values * top).round().astype(kind)


def assert_grey(data, expected, atol=0.65):
    seen = decode_photo(data)
    assert atol > 1 or (seen == seen[..., :1]).all()
    np.testing.assert_allclose(seen[..., 0], 255 * expected, atol=atol)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("top", [1, 255])
def test_floats_are_from_0_to_1_or_to_255(top, endian):
    data = tiff((RAMP * top).astype(np.float32), endian=endian)
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(stored, RAMP * top, rtol=1e-6)
    assert_grey(data, RAMP)


def test_integers_of_all_their_bits_are_scaled_by_these():
    assert_grey(png(whole(RAMP, 65535, np.uint16)), RAMP)
    for kind, top in (("u2", 65535), ("i2", 32767), ("u4", 2**32 - 1), ("i4", 2**31 - 1)):
        # Pillow refuses unsigned big-endian ones of 32 bits
        for endian in "<" if kind == "u4" else "<>":
            assert_grey(tiff(whole(RAMP, top, kind), endian=endian), RAMP)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_significant_bits_count_where_the_file_says_so(bits):
    values = whole(RAMP, 2**bits - 1, np.uint16)
    assert_grey(png(values, significant=bits), RAMP)
    assert_grey(tiff(values, [(281, 3, [2**bits - 1])]), RAMP)
    # some programs state the largest value of this photo, not the largest possible one
    assert_grey(tiff(values // 4 * 3, [(281, 3, [int(values.max() // 4 * 3)])]), values // 4 * 3 / (2**bits - 1))


def test_a_png_that_scales_its_significant_bits_as_the_specification_asks_is_not_scaled_again():
    values = whole(RAMP, 4095, np.uint16)
    assert_grey(png(values * 16, significant=12), values * 16 / 65535)


def test_twelve_bits_packed_in_a_tiff():
    pairs = np.array([[0, 4095, 2048, 1024]], np.uint16)
    packed = np.frombuffer(bytes.fromhex("000fff800400"), np.uint8).reshape(1, 6)
    data = bytearray(tiff(packed))
    # the file holds 4 values of 12 bits in these 6 bytes
    data[data.index(struct.pack("<HHII", 256, 4, 1, 6)) + 8] = 4
    data[data.index(struct.pack("<HHII", 258, 3, 1, 8)) + 8] = 12
    assert_grey(bytes(data), pairs / 4095)


def test_the_range_that_a_tiff_states_is_black_to_white():
    assert_grey(tiff((RAMP * 1000 - 100).astype(np.float32), [(340, 11, [-100.0]), (341, 11, [900.0])]), RAMP)
    assert_grey(tiff(whole(RAMP, 4000, np.int16) - 1000, [(340, 8, [-1000]), (341, 8, [3000])]), RAMP)
    # one that the pixels contradict is ignored
    assert_grey(tiff(RAMP.astype(np.float32), [(340, 11, [0.2]), (341, 11, [0.5])]), RAMP)


def test_white_may_be_zero():
    assert_grey(tiff(whole(RAMP, 65535, np.uint16), photometric=0), 1 - RAMP)
    assert_grey(tiff(RAMP.astype(np.float32), photometric=0), 1 - RAMP)
    assert_grey(tiff(whole(RAMP, 255, np.uint8), photometric=0), 1 - RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["u1", "u2", ">u2", "f4"])
def test_a_tiff_is_turned_as_it_says(tmp_path, kind, orientation):
    endian, top = (">" if kind[0] == ">" else "<"), {"1": 255, "2": 65535, "4": 1}[kind[-1]]
    values = RAMP.astype("f4") if kind == "f4" else whole(RAMP, top, kind.strip(">"))
    turned = [RAMP, RAMP[:, ::-1], RAMP[::-1, ::-1], RAMP[::-1]]
    turned += [RAMP.T, RAMP[::-1].T, RAMP[::-1, ::-1].T, RAMP[:, ::-1].T]
    data = tiff(values, [(274, 3, [orientation])], endian=endian)
    assert_grey(data, turned[orientation - 1])
    (tmp_path / "a.tif").write_bytes(data)
    assert read_size(tmp_path / "a.tif") == turned[orientation - 1].shape


def test_colours_of_sixteen_bits():
    values = whole(COLOURS, 65535, np.uint16)
    for data in (png(values), tiff(values, photometric=2), tiff(values, photometric=2, endian=">")):
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert (read == values).all()
        np.testing.assert_allclose(decode_photo(data), read / 257, atol=1.01)
    clear = np.dstack([values, whole(RAMP, 65535, np.uint16)])
    on_white = COLOURS * RAMP[..., None] + 1 - RAMP[..., None]
    np.testing.assert_allclose(decode_photo(png(clear)), 255 * on_white, atol=2)


FLOATS = RAMP.astype(np.float32)
DARK = (
    r"would come out nearly black: no value is above {}, and white is {}; scale its values{}, or, if it is that dark, "
)
REFUSED = {
    "12 bits": (png(whole(RAMP, 4095, "u2")), DARK.format("4,095", "65,535", r" \(12-bit values times 16\)")),
    "10 bits": (tiff(whole(RAMP, 1023, "u2")), DARK.format("1,023", "65,535", r" \(10-bit values times 64\)")),
    "8 of 32 bits": (tiff(whole(RAMP, 255, "i4")), DARK.format("255", "2,147,483,647", "")),
    "12 bits of colour": (png(whole(COLOURS, 4095, "u2")), DARK.format("4,095", "65,535", ".*times 16.")),
    "12 bits, alpha": (
        png(np.dstack([whole(COLOURS, 4095, "u2"), whole(RAMP, 65535, "u2")])),
        DARK.format("4,095", "65,535", ".*"),
    ),
    "12 bits of colour, TIFF": (tiff(whole(COLOURS, 4095, "u2"), photometric=2), DARK.format("4,095", "65,535", ".*")),
    "12 bits as floats": (tiff(FLOATS / 16), DARK.format("0.0625", "1", "")),
    "floats above": (
        tiff(FLOATS * 3.7),
        "has floats of up to 3.7, expected 0 to 1 or 0 to 255; scale them, or save it",
    ),
    "floats far above": (tiff(FLOATS * 4095), "has floats of up to 4095, expected 0 to 1 or 0 to 255"),
    "negative": (tiff(FLOATS - 0.25), "has negative values, the lowest -0.25, and 0 would be black"),
    "negative integers": (tiff(whole(RAMP, 30000, "i2") - 9999), "has negative values, the lowest -9999"),
    "NaN": (tiff(np.where(RAMP == 1, np.float32("nan"), FLOATS)), "has pixels that are NaN or inf"),
    "inf": (tiff(np.where(RAMP == 1, np.float32("inf"), FLOATS)), "has pixels that are NaN or inf"),
    "signed bytes": (tiff(whole(RAMP, 127, "i1")), "has signed 8-bit values"),
    "planes": (tiff(whole(COLOURS, 65535, "u2"), photometric=2, planar=2), "separate planes of 16 bits"),
    "doubles": (
        tiff(RAMP),
        r"is a TIFF of 1 channel\(s\) of 64 bits \(float\), which Pillow does not read; save it with",
    ),
    "colour floats": (tiff(COLOURS.astype("f4"), photometric=2), r"3 channel\(s\) of 32 bits \(float\)"),
    "5 bands": (
        tiff(np.dstack([COLOURS] * 2)[..., :5].astype("u2"), [(338, 3, [0] * 4)]),
        r"5 channel\(s\) of 16 bits",
    ),
    "YCbCr": (tiff(whole(COLOURS, 255, "u1"), photometric=6), "is an uncompressed TIFF of YCbCr"),
    "raw": (tiff(whole(RAMP, 255, "u1"), [(50706, 1, [1, 4, 0, 0])]), "is a camera's raw file"),
    "preview": (tiff(whole(RAMP, 255, "u1"), [(254, 4, [1])]), "its first page is a preview"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_known_range_is_refused_with_what_mends_it(what):
    data, message = REFUSED[what]
    with pytest.raises(PhotoError, match=message):
        decode(data)


def test_separate_planes_of_8_bits_are_read():
    values = whole(COLOURS, 255, np.uint8)
    assert (decode_photo(tiff(values, photometric=2, planar=2)) == values).all()


def encoded(image, format_, **options):
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def test_grey_with_alpha_palettes_and_bits():
    grey = whole(RAMP, 255, np.uint8)
    half = np.dstack([grey, np.full_like(grey, 128)])
    expected = grey * (128 / 255) + 127
    np.testing.assert_allclose(decode_photo(encoded(Image.fromarray(half, "LA"), "PNG"))[..., 1], expected, atol=1)
    palette = Image.fromarray(np.tile(np.array([[0, 1], [2, 1]], np.uint8), (8, 8)), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    seen = decode_photo(encoded(palette, "PNG", transparency=1))
    assert seen[:2, :2].tolist() == [[[255, 0, 0], [255, 255, 255]], [[0, 0, 255], [255, 255, 255]]]
    bits = Image.fromarray(RAMP > 0.5)
    for format_ in ("PNG", "TIFF", "BMP"):
        assert (decode_photo(encoded(bits, format_))[..., 0] == np.where(RAMP > 0.5, 255, 0)).all()


@pytest.mark.parametrize("options", [{"save_all": True}, {"save_all": True, "lossless": True}])
@pytest.mark.parametrize("format_", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_counts(format_, options):
    first, second = (Image.new("RGB", (20, 10), colour) for colour in ("red", "blue"))
    if format_ != "WEBP":
        options = {"save_all": True}
    data = encoded(first, format_, append_images=[second], **options)
    assert abs(decode_photo(data).astype(int) - [255, 0, 0]).max() < 5


def test_the_main_photo_of_a_phone_counts():
    picture, depth = (Image.fromarray(whole(c, 255, np.uint8)) for c in (COLOURS, 1 - COLOURS))
    data = encoded(picture, "MPO", save_all=True, append_images=[depth], quality=95)
    assert (decode_photo(data) == np.asarray(Image.open(BytesIO(encoded(picture, "JPEG", quality=95))))).all()


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_each_format_is_turned_by_its_exif(tmp_path, format_):
    exif = Image.Exif()
    exif[0x0112] = 6
    try:
        data = encoded(Image.fromarray(whole(RAMP, 255, np.uint8)), format_, exif=exif, quality=100)
    except KeyError:
        pytest.skip(f"this Pillow has no {format_}")
    assert_grey(data, RAMP[::-1].T, atol=6)
    (tmp_path / "a").write_bytes(data)
    assert read_size(tmp_path / "a") == (WIDTH, HEIGHT)


def jpeg(**options):
    return encoded(Image.fromarray(whole(COLOURS, 255, np.uint8)), "JPEG", quality=95, **options)


def test_bytes_behind_and_between_the_parts_of_a_jpeg_are_skipped():
    plain = jpeg()
    pixels = np.asarray(Image.open(BytesIO(plain)))
    junk = plain[:20] + b"\0\0" + plain[20:]
    # as libjpeg itself does, which OpenCV contains a copy of
    assert (cv2.imdecode(np.frombuffer(junk, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] == pixels).all()
    for data in (junk, plain + bytes(1199), plain[:-2] + b"\0\0\0" + plain[-2:]):
        assert (decode_photo(data) == pixels).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_refused_where_pillow_refuses_it(progressive):
    """What libjpeg only warns of, such as an unknown JFIF version, is no damage; a file that is cut short is."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = encoded(Image.fromarray(noise), "JPEG", progressive=progressive)
    unknown = plain.replace(b"JFIF\0\1\1", b"JFIF\0\0\0")
    assert unknown != plain
    assert (decode_photo(unknown) == np.asarray(Image.open(BytesIO(plain)))).all()
    for place in range(1000, len(plain) - 20, 97):
        ours, pillows = (
            _outcome(read, plain[:place] + b"\xa5\x5a" * 4 + plain[place + 8 :]) for read in (decode_photo, decode)
        )
        assert (ours is None) == (pillows is None)
        assert ours is None or np.abs(ours - pillows).max() <= 2
        assert _outcome(decode_photo, plain[:place]) is _outcome(decode, plain[:place]) is None


def _outcome(read, data):
    try:
        return read(data).astype(int)
    except OSError:
        return None


@pytest.mark.parametrize(
    "exif", [b"junk", b"", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\xff\xff\x12\1\3\0\1\0\0\0\x63"]
)
def test_a_jpeg_with_damaged_exif_is_not_turned(exif):
    plain, part = jpeg(), b"Exif\0\0" + exif
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + plain[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignore_pillow()
        assert (decode_photo(data) == np.asarray(Image.open(BytesIO(plain)))).all()


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_png_may_have_long_texts_and_profiles(name):
    plain = encoded(Image.fromarray(whole(COLOURS, 255, np.uint8)), "PNG")
    data = plain[:33] + chunk(name, b"history\0\0" + zlib.compress(bytes(2**21))) + plain[33:]
    assert (decode_photo(data) == whole(COLOURS, 255, np.uint8)).all()


@pytest.mark.parametrize("size", [(1, 1), (65500, 1), (1, 65500)])
def test_a_photo_may_be_as_small_or_wide_as_jpeg_allows(size):
    assert (decode_photo(encoded(Image.new("RGB", size, "white"), "JPEG")) == 255).all()


def test_cmyk_is_inverted_where_adobe_stores_it_so():
    colours = whole(COLOURS, 255, np.uint8)
    seen = decode_photo(encoded(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert abs(seen.astype(int) - colours).max() < 12
