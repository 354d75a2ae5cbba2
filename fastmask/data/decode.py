"""Decode: the bytes of a photo -> (height, width, 3) uint8 RGB, by Pillow; needs only NumPy and Pillow.

The script of an export contains this module, so it imports nothing of fastmask but `formats`, which is there, too.

Grey photos of more than 8 bits are scaled by what their file states, never by other photos: the number of bits; fewer
significant bits (a PNG's sBIT, a TIFF's MaxSampleValue); the range of a TIFF's SMinSampleValue and SMaxSampleValue; for
floats without one 0 to 1, or 0 to 255. A photo that would be nearly black, such as one of 12-bit values in a 16-bit
file without sBIT, is refused.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from fastmask.data.formats import READABLE, describe_unreadable, is_heif

# above it Pillow itself refuses a photo
MOST_PIXELS = 178_956_970
# a photo of more than 8 bits whose brightest pixel is darker, of 255, is refused
DARKEST = 16
_SAVE = "save it with 8 bits, as PNG or JPEG"
# half a grey level, which rounding or scaling may have added to a range
_SLACK = 0.5 / 255
_BITS, _PHOTOMETRIC, _PLANAR, _KIND = 258, 262, 284, 339
_PREVIEW, _DNG = 254, 50706
_KINDS = {1: "unsigned", 2: "signed", 3: "float"}


def ignore_pillow() -> None:
    """Ignore Pillow's warnings of photos that it reads anyway, such as of damaged EXIF or 90 million pixels."""
    for category in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=category, module=r"PIL\.")


ignore_pillow()
# texts and colour profiles of some programs are longer than the 1 MB that Pillow allows
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class PhotoError(ValueError):
    """A file that is not a photo, or not of a supported kind; the message follows the name of the file."""


class Samples(NamedTuple):
    """How a file stores the values of a pixel: `bits` of each and those that are significant, and the range."""

    bits: int = 8
    kind: str = "unsigned"
    significant: int = 0
    range: tuple[float, float] | None = None
    white_is_zero: bool = False


def decode(data: bytes) -> np.ndarray:
    """Decode a photo to (height, width, 3) uint8 RGB, turned by its EXIF, transparency on white, its first frame.

    Raises PhotoError, and for damaged bytes whatever Pillow raises.
    """
    return to_array(open_image(data), data)


def open_image(data: bytes) -> Image.Image:
    """Read the header of a photo; raises PhotoError if it cannot be read, or has too many pixels."""
    too_large = PhotoError(f"has more than {MOST_PIXELS:,} pixels; scale it down")
    try:
        image = Image.open(BytesIO(data), formats=_formats(data))
    except UnidentifiedImageError as error:
        raise PhotoError(_describe_tiff(data) or describe_unreadable(data)) from error
    except Image.DecompressionBombError as error:
        raise too_large from error
    if image.width * image.height > MOST_PIXELS:
        raise too_large
    return image


def to_array(image: Image.Image, data: bytes = b"") -> np.ndarray:
    """The pixels of an opened image, as `decode` returns them; `data` is its file, if that is known."""
    samples = _read_samples(image, data)
    # some of Pillow's plugins turn the photo while they load it
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I") or turned.mode == "F":
        return np.repeat(_scale(np.asarray(turned), samples)[..., None], 3, axis=2)
    if samples.bits > 8:
        # of colours Pillow keeps the upper 8 of 16 bits
        _check_brightness(256 * _brightest(turned) + 255, 0, 65535)
    return np.array(_to_rgb(turned))


def _formats(data: bytes) -> tuple[str, ...]:
    if "HEIF" not in READABLE or not is_heif(data):
        return tuple(name for name in READABLE if name != "HEIF")
    # from an optional package, whose import takes a while
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return ("HEIF",)


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        image = image.convert("RGBA")
    except ValueError as error:
        raise PhotoError(f"has the colour mode {image.mode}, which Pillow does not convert to RGB; {_SAVE}") from error
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _brightest(image: Image.Image) -> int:
    extrema = np.array(image.getextrema()).reshape(-1, 2)
    return max(int(most) for band, (_, most) in zip(image.getbands(), extrema, strict=True) if band != "A")


def _scale(stored: np.ndarray, samples: Samples) -> np.ndarray:
    """(height, width) values of a grey photo -> uint8."""
    values = stored.astype(np.float64)
    if samples == Samples(32):
        # Pillow reads them as signed
        values %= 2**32
    low, high = _find_range(float(values.min()), float(values.max()), samples)
    _check_brightness(float(values.max()), low, high)
    scaled = ((values - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)
    return 255 - scaled if samples.white_is_zero else scaled


def _find_range(least: float, most: float, samples: Samples) -> tuple[float, float]:
    """The values of black and white."""
    if not np.isfinite([least, most]).all():
        raise PhotoError(f"has pixels that are NaN or inf; replace them, or {_SAVE}")
    if samples.range and samples.range[0] <= least and most <= samples.range[1]:
        return samples.range
    top = _find_float_white(most) if samples.kind == "float" else _find_white(most, samples)
    if least < -_SLACK * top:
        raise PhotoError(f"has negative values, the lowest {least:g}, and 0 would be black; scale them, or {_SAVE}")
    return 0, top


def _find_white(most: float, samples: Samples) -> int:
    bits = samples.bits - (samples.kind == "signed")
    return 2 ** (samples.significant if most < 2**samples.significant else bits) - 1


def _find_float_white(most: float) -> int:
    if most <= 1 + _SLACK:
        return 1
    if DARKEST <= most <= 255 * (1 + _SLACK):
        return 255
    raise PhotoError(f"has floats of up to {most:g}, expected 0 to 1 or 0 to 255; scale them, or {_SAVE}")


def _check_brightness(most: float, low: float, high: float) -> None:
    if (most - low) / (high - low) * 255 >= DARKEST:
        return
    bits = next(bits for bits in (8, 10, 12) if most < 2**bits)
    hint = f" ({bits}-bit values times {round(high / (2**bits - 1))})" if high == 65535 else ""
    raise PhotoError(
        f"would come out nearly black: no value is above {most:,.5g}, and white is {high:,.10g}; scale its "
        f"values{hint}, or, if it is that dark, {_SAVE}"
    )


def _read_samples(image: Image.Image, data: bytes) -> Samples:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _read_tiff_samples(image)
    if image.format == "PNG" and data:
        return Samples(data[24], significant=_significant_bits(data))
    if image.mode == "F":
        return Samples(32, "float")
    return Samples(16 if image.mode.startswith("I") else 8)


def _significant_bits(png: bytes) -> int:
    """The bits of the first channel in a PNG's chunk sBIT, or 0."""
    at = 8
    while at + 9 <= len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        if name in (b"sBIT", b"IDAT"):
            return png[at + 8] if name == b"sBIT" else 0
        at += 12 + length
    return 0


def _read_tiff_samples(image: TiffImagePlugin.TiffImageFile) -> Samples:
    tags = image.tag_v2
    bits, kind = int(_number(tags, _BITS, 1)), _KINDS.get(int(_number(tags, _KIND, 1)), "unsigned")
    _check_tiff(image, bits, kind)
    high = _number(tags, 341, _number(tags, 281, 0))
    stated = (_number(tags, 340, 0), high)
    return Samples(
        bits=bits,
        kind=kind,
        significant=int(high).bit_length() if 0 < high < 2**32 and kind == "unsigned" else 0,
        range=stated if kind != "unsigned" and np.isfinite(stated).all() and stated[0] < high else None,
        white_is_zero=_number(tags, _PHOTOMETRIC, 1) == 0,
    )


def _number(tags: Any, tag: int, default: float) -> float:
    value = tags.get(tag, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) else default


def _check_tiff(image: TiffImagePlugin.TiffImageFile, bits: int, kind: str) -> None:
    """Raise PhotoError for files that Pillow opens, but decodes wrongly."""
    tags = image.tag_v2
    if _DNG in tags or int(_number(tags, _PREVIEW, 0)) & 1:
        raise PhotoError("is a camera's raw file, or its first page is a preview; convert it to JPEG or PNG")
    if _number(tags, _PHOTOMETRIC, 1) == 6 and _number(tags, 259, 1) == 1:
        raise PhotoError(f"is an uncompressed TIFF of YCbCr, which Pillow does not read; {_SAVE}")
    if kind == "signed" and bits == 8:
        raise PhotoError(f"has signed 8-bit values, which Pillow reads as unsigned; {_SAVE}")
    if bits > 8 and _number(tags, _PLANAR, 1) == 2 and len(image.getbands()) > 1:
        raise PhotoError(f"is a TIFF of separate planes of {bits} bits, which Pillow reads wrongly; {_SAVE}")


def _describe_tiff(data: bytes) -> str:
    """The kind of a TIFF that Pillow does not read; "" for other files."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return ""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits, kind = _number(tags, _BITS, 1), _KINDS.get(int(_number(tags, _KIND, 1)), "unknown")
    channels = int(_number(tags, 277, 1))
    return f"is a TIFF of {channels} channel(s) of {bits:g} bits ({kind}), which Pillow does not read; {_SAVE}"
