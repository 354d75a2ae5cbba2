"""Predict photos by a file that `fastmask export` wrote, with ONNX Runtime: no torch, no fastmask.

python predict_onnx.py model.onnx PHOTOS ... [--out answers.csv]

PHOTOS are files, and folders with the photos in them and in the folders inside. What becomes of a photo before the
network sees it is read from the model's metadata. Needs numpy, pillow and onnxruntime, and opencv-python-headless where
photos are scaled or padded, so that the pixels are those of the training.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image, ImageOps

FORMAT = "1"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# those of the endings above: Pillow knows others, of which one starts a program that runs what is in the file
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
_MOST_PIXELS = 178_956_970
_PART = ".part"


class WrongError(Exception):
    """Something that cannot be used, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict as the command line says, and give the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # the code page of a Windows console lacks most characters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = argparse.ArgumentParser(description="Predict photos by a file that fastmask export wrote.")
    words.add_argument("model", type=Path, help="the .onnx file")
    words.add_argument("photos", type=Path, nargs="+", help="photos, and folders of photos")
    words.add_argument("--out", type=Path, help="the CSV to write (default: print it)")
    words.add_argument("--overwrite", action="store_true", help="replace the CSV")
    words.add_argument("--bs", type=int, default=32, help="photos a batch (default: 32)")
    words.add_argument("--threads", type=int, default=0, help="threads (default: ONNX Runtime's own)")
    words.add_argument("--provider", default="CPUExecutionProvider", help="such as CUDAExecutionProvider")
    asked = words.parse_args(arguments)
    try:
        if asked.bs < 1 or asked.threads < 0:
            raise WrongError("--bs takes 1 or more, --threads 0 or more.")
        if asked.out is not None:
            check_new(asked.out, asked.overwrite)
        names, paths = find_photos(asked.photos)
        session = open_model(asked.model, asked.threads, asked.provider)
        meta = read_meta(session, asked.model)
        probabilities = np.concatenate(list(predict(session, meta, paths, asked.bs)))
        write_table(asked.out, table(meta, names, probabilities))
    except WrongError as error:
        sys.stderr.write(f"predict_onnx: error: {error}\n")
        return 1
    except OSError as error:
        # the name of the file in which the CSV is made tells nobody anything
        known = error.filename and not str(error.filename).endswith(_PART)
        sys.stderr.write(f"predict_onnx: error: {error.strerror or error}: {error.filename if known else asked.out}.\n")
        return 1
    return 0


def open_model(model: Path | bytes, threads: int = 0, provider: str = "CPUExecutionProvider") -> Any:
    """A session of ONNX Runtime for a file, or for what is in it; `threads` 0 leaves their number to ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise WrongError(
            f"Predicting needs the package onnxruntime ({error}); install it with pip install onnxruntime."
        ) from error
    if isinstance(model, Path) and not model.is_file():
        raise WrongError(f"{model} is not a file; expected one that fastmask export wrote.")
    if provider not in onnxruntime.get_available_providers():
        there = ", ".join(onnxruntime.get_available_providers())
        raise WrongError(f"There is no provider {provider!r} here; expected one of {there}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # of errors alone
    options.log_severity_level = 3
    try:
        given = str(model) if isinstance(model, Path) else model
        return onnxruntime.InferenceSession(given, options, providers=[provider])
    except Exception as error:
        name = model if isinstance(model, Path) else "The model"
        raise WrongError(f"{name} cannot be opened by ONNX Runtime: {_one_line(error)}.") from error


def read_meta(session: Any, name: object = "The model") -> dict[str, Any]:
    """What the file says of itself: its heads, the steps before the network, the size of its photos."""
    kept = session.get_modelmeta().custom_metadata_map
    try:
        meta = {part: json.loads(kept[part]) for part in ("heads", "joint", "steps", "size")}
        known = kept["fastmask_format"] == FORMAT and all(step["do"] in _STEPS for step in meta["steps"])
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise WrongError(f"{name} was not written by a fastmask that this script goes with; export it again.")
    return meta


def predict(session: Any, meta: dict[str, Any], photos: Sequence[Path], bs: int = 32) -> Iterator[np.ndarray]:
    """The (batch, classes of all heads) float32 probabilities of each batch of photos, in the order given."""
    for start in range(0, len(photos), bs):
        batch = [checked(read_photo(path), meta, path) for path in photos[start : start + bs]]
        yield answers(session, meta, np.stack(batch))


def answers(session: Any, meta: dict[str, Any], batch: np.ndarray) -> np.ndarray:
    """(B, height, width, 3) uint8 photos, prepared -> (B, classes of all heads) float32 probabilities."""
    outputs = [head["name"] for head in meta["heads"]]
    return np.concatenate(session.run(outputs, {session.get_inputs()[0].name: batch}), axis=1)


def find_photos(given: Sequence[Path]) -> tuple[list[str], list[Path]]:
    """Names and paths: a file as it is given, those of a folder by their names from there, without hidden ones."""
    names: list[str] = []
    paths: list[Path] = []
    for place in given:
        found = [place] if place.is_file() else _photos_in(place)
        paths += found
        names += [str(place)] if place.is_file() else [path.relative_to(place).as_posix() for path in found]
    return names, paths


def _photos_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise WrongError(f"{folder} does not exist; expected a photo or a folder of photos.")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    # Windows compares paths without regard to case
    found.sort(key=lambda path: path.parts)
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise WrongError(f"{folder} holds no photos (any of {', '.join(SUFFIXES)}).")
    return shown


def read_photo(path: Path) -> np.ndarray:
    """Decode a photo to (height, width, 3) uint8 RGB, turned as its EXIF says, alpha laid on white."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"it is {image.height} high and {image.width} wide")
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:
        # whatever a decoder stumbles at: nobody lists what Pillow raises for bytes that were tampered with
        raise WrongError(f"{path} is not a photo that can be read ({_one_line(error)}); replace it.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips 16-bit grey at 255 instead of scaling it
        deep = np.asarray(image, dtype=np.float64)
        return Image.fromarray((deep / 257).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def checked(photo: np.ndarray, meta: dict[str, Any], path: Path) -> np.ndarray:
    """A decoded photo as the network takes it."""
    made = prepare(photo, meta["steps"], path)
    if list(made.shape[:2]) != meta["size"]:
        raise WrongError(
            f"{path} comes out {made.shape[0]} high and {made.shape[1]} wide; the model takes {meta['size'][0]} high "
            f"and {meta['size'][1]} wide."
        )
    return made


def prepare(photo: np.ndarray, steps: Sequence[dict[str, Any]], name: object = "The photo") -> np.ndarray:
    """(height, width, 3) uint8 -> the same, cropped, scaled and padded step by step as albumentations does it."""
    for step in steps:
        photo = _STEPS[step["do"]](photo, step, name)
    return np.ascontiguousarray(photo)


def _center_crop(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    height, width = photo.shape[:2]
    if step["height"] > height or step["width"] > width:
        raise WrongError(
            f"{name} is {height} high and {width} wide; the model crops {step['height']} x {step['width']} out of it, "
            "so it needs larger photos."
        )
    top, left = (height - step["height"]) // 2, (width - step["width"]) // 2
    return photo[top : top + step["height"], left : left + step["width"]]


def _resize(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    smaller = step["height"] < photo.shape[0] or step["width"] < photo.shape[1]
    return _scaled(photo, step["height"], step["width"], "area" if step["area"] and smaller else step["by"])


def _longest(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    return _by_side(photo, step, step["side"] / max(photo.shape[:2]))


def _shortest(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    return _by_side(photo, step, step["side"] / min(photo.shape[:2]))


def _by_side(photo: np.ndarray, step: dict[str, Any], scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    return _scaled(photo, height, width, "area" if step["area"] and scale < 1 else step["by"])


def _scaled(photo: np.ndarray, height: int, width: int, by: str) -> np.ndarray:
    if photo.shape[:2] == (height, width):
        return photo
    cv2 = _opencv()
    how = getattr(cv2, f"INTER_{by.upper()}")
    return np.asarray(cv2.resize(np.ascontiguousarray(photo), (width, height), interpolation=how))


def _pad(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    rows, columns = (max(0, least - side) for least, side in zip(_least(step), photo.shape[:2], strict=True))
    if not rows and not columns:
        return photo
    cv2, place = _opencv(), step["position"]
    top = {"center": rows // 2, "top": 0, "bottom": rows}[place.partition("_")[0]]
    left = {"center": columns // 2, "left": 0, "right": columns}[place.rpartition("_")[2]]
    border = getattr(cv2, f"BORDER_{step['border'].upper()}")
    sides = (top, rows - top, left, columns - left)
    return np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(photo), *sides, border, value=step["fill"]))


def _least(step: dict[str, Any]) -> tuple[int, int]:
    return step["height"], step["width"]


_STEPS = {
    "center_crop": _center_crop,
    "resize": _resize,
    "longest": _longest,
    "shortest": _shortest,
    "pad": _pad,
}


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise WrongError("The model's photos are scaled by OpenCV: pip install opencv-python-headless.") from error
    return cv2


def table(meta: dict[str, Any], names: Sequence[str], probabilities: np.ndarray) -> list[list[str]]:
    """A row of texts a photo under a row of names: path, the joint class, each head's class, a probability a class.

    The joint class counts through the classes of the heads in `joint`, the first head the most significant.
    """
    heads = meta["heads"]
    ends = np.cumsum([len(head["classes"]) for head in heads])
    codes = {
        head["name"]: part.argmax(1)
        for head, part in zip(heads, np.split(probabilities, ends[:-1], axis=1), strict=True)
    }
    sizes = {head["name"]: len(head["classes"]) for head in heads}
    joint = np.zeros(len(names), np.int64)
    for name in meta["joint"]:
        joint = joint * sizes[name] + codes[name]
    columns = [f"{head['name']}.{one}" for head in heads for one in head["classes"]]
    rows = [["path", "predicted", *sizes, *columns]]
    for i, name in enumerate(names):
        classes = [head["classes"][codes[head["name"]][i]] for head in heads]
        rows.append([name, str(joint[i]), *classes, *(f"{value:.9g}" for value in probabilities[i])])
    return rows


def check_new(out: Path, overwrite: bool) -> None:
    """Raise WrongError where a CSV cannot be written, before any photo is read."""
    if out.is_dir():
        raise WrongError(f"{out} is a folder; name the CSV to write.")
    if out.exists() and not overwrite:
        raise WrongError(f"{out} exists; name another file, or replace it with --overwrite.")
    if not out.absolute().parent.is_dir():
        raise WrongError(f"{out.parent} is not a folder; make it, or name another file.")


def write_table(out: Path | None, rows: Sequence[Sequence[str]]) -> None:
    """Write rows as a CSV, whole or not at all, or print them."""
    if out is None:
        _write_rows(sys.stdout, rows)
        return
    beside = out.with_name(f".{out.name}.{os.getpid()}{_PART}")
    try:
        with beside.open("w", encoding="utf-8", newline="") as opened:
            _write_rows(opened, rows)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def _write_rows(opened: TextIO, rows: Sequence[Sequence[str]]) -> None:
    csv.writer(opened, lineterminator="\n").writerows(rows)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
