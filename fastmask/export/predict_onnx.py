"""Predict photos with a file of `fastmask export` and ONNX Runtime, without torch and fastmask.

python predict_onnx.py model.onnx PHOTOS ... [--out predictions.csv]

PHOTOS are files and folders, which are searched recursively. How a photo is cropped and scaled is read from the model's
metadata; one that is too small for the crop is enlarged. Photos that cannot be predicted are listed in
predictions.failed.csv, and the exit code is 1. Needs numpy, pillow and onnxruntime, and opencv-python-headless where
photos are scaled or padded.
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
from typing import Any

import numpy as np

from fastmask.data.decode import MOST_PIXELS, PhotoError, decode
from fastmask.data.formats import describe_empty, describe_left_out, list_files

# of files without a joint head, and with one
FORMATS = ("1", "2")
_LEAST = np.float32(1e-30)
_PART = ".part"


class WrongError(Exception):
    """An input that cannot be used, in one sentence."""


class BadPhotoError(WrongError):
    """A photo that cannot be predicted; other photos can."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict by the arguments of the command line, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a Windows console lacks most characters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(description="Predict photos with a file of fastmask export.")
    parser.add_argument("model", type=Path, help="the .onnx file")
    parser.add_argument("photos", type=Path, nargs="+", help="photos, and folders of photos")
    parser.add_argument("--out", type=Path, help="the CSV to write (default: print it)")
    parser.add_argument("--overwrite", action="store_true", help="replace the CSV")
    parser.add_argument("--bs", type=int, default=32, help="photos per batch (default: 32)")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: ONNX Runtime's own)")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="such as CUDAExecutionProvider")
    parser.add_argument(
        "--on-bad-photo",
        choices=["skip", "error"],
        default="skip",
        help="a photo that cannot be predicted: skip and list it, or error before any is (default: skip)",
    )
    options = parser.parse_args(arguments)
    try:
        run(options)
    except WrongError as error:
        sys.stderr.write(f"predict_onnx: error: {error}\n")
        return 1
    except OSError as error:
        # the temporary file is not the user's
        named = error.filename and not str(error.filename).endswith(_PART)
        file = error.filename if named else options.out
        sys.stderr.write(f"predict_onnx: error: {error.strerror or error}: {file}.\n")
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Predict by the options; raises WrongError if photos cannot be predicted, after all others are written."""
    if options.bs < 1 or options.threads < 0:
        raise WrongError("--bs takes 1 or more, --threads 0 or more.")
    if options.out is not None:
        check_new(options.out, options.overwrite)
    listed = None if options.out is None else failed_list(options.out)
    names, paths = find_photos(options.photos)
    session = open_model(options.model, options.threads, options.provider)
    meta = read_meta(session, options.model)
    if options.on_bad_photo == "error":
        check_photos(paths, meta)
    failed: dict[int, str] = {}
    found = list(predict(session, meta, paths, options.bs, failed))
    if not found:
        raise WrongError(f"None of the {len(paths)} photos can be predicted: {next(iter(failed.values()))}")
    left = [name for row, name in enumerate(names) if row not in failed]
    write_table(options.out, to_rows(meta, left, np.concatenate(found)))
    if listed is not None:
        write_failed(listed, {names[row]: reason for row, reason in failed.items()})
    if failed:
        where = "" if listed is None else f" and {'is' if len(failed) == 1 else 'are'} listed in {listed}"
        first = next(iter(failed.values()))
        raise WrongError(f"{len(failed)} of {len(names)} photos could not be predicted{where}; the first: {first}")


def open_model(model: Path | bytes, threads: int = 0, provider: str = "CPUExecutionProvider") -> Any:
    """A session of ONNX Runtime for a file or its content; with `threads` 0, ONNX Runtime chooses their number."""
    try:
        import onnxruntime
    except ImportError as error:
        raise WrongError(
            f"Predicting needs the package onnxruntime ({error}); install it with pip install onnxruntime."
        ) from error
    if isinstance(model, Path) and not model.is_file():
        raise WrongError(f"{model} is not a file; expected one of fastmask export.")
    if provider not in onnxruntime.get_available_providers():
        there = ", ".join(onnxruntime.get_available_providers())
        raise WrongError(f"There is no provider {provider!r} here; expected one of {there}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # errors only
    options.log_severity_level = 3
    try:
        given = str(model) if isinstance(model, Path) else model
        return onnxruntime.InferenceSession(given, options, providers=[provider])
    except Exception as error:
        name = model if isinstance(model, Path) else "The model"
        raise WrongError(f"{name} cannot be opened by ONNX Runtime: {_one_line(error)}.") from error


def read_meta(session: Any, name: object = "The model") -> dict[str, Any]:
    """The metadata of a file: its heads, the steps before the network, the size of its photos."""
    kept = session.get_modelmeta().custom_metadata_map
    try:
        meta = {part: json.loads(kept[part]) for part in ("heads", "joint", "steps", "size")}
        known = kept["fastmask_format"] in FORMATS and all(step["do"] in _STEPS for step in meta["steps"])
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise WrongError(f"{name} was not written by this script's version of fastmask; export it again.")
    return meta


def predict(
    session: Any, meta: dict[str, Any], photos: Sequence[Path], bs: int = 32, failed: dict[int, str] | None = None
) -> Iterator[np.ndarray]:
    """The (batch, classes of all heads) float32 probabilities of each batch of photos, in their order.

    A photo that cannot be predicted raises BadPhotoError, or is left out if `failed` is given: its row and why.
    """
    for start in range(0, len(photos), bs):
        batch = list(_prepared(photos[start : start + bs], meta, failed, start))
        if batch:
            yield run_model(session, meta, np.stack(batch))


def check_photos(photos: Sequence[Path], meta: dict[str, Any]) -> None:
    """Read all photos; raises BadPhotoError for the first that cannot be predicted, with the number of the others."""
    failed: dict[int, str] = {}
    for _ in _prepared(photos, meta, failed):
        pass
    if failed:
        more = f" {len(failed) - 1} more of {len(photos)} photos cannot be predicted." if len(failed) > 1 else ""
        raise BadPhotoError(next(iter(failed.values())) + more)


def _prepared(
    photos: Sequence[Path], meta: dict[str, Any], failed: dict[int, str] | None, start: int = 0
) -> Iterator[np.ndarray]:
    """The photos for the network, without those that cannot be predicted: see `predict`; rows count from `start`."""
    for row, path in enumerate(photos, start):
        try:
            yield prepare_photo(read_photo(path), meta, path)
        except BadPhotoError as error:
            if failed is None:
                raise
            failed[row] = str(error)


def run_model(session: Any, meta: dict[str, Any], batch: np.ndarray) -> np.ndarray:
    """(B, height, width, 3) prepared uint8 photos -> (B, classes of all heads) float32 probabilities."""
    outputs = [head["name"] for head in meta["heads"]]
    return np.concatenate(session.run(outputs, {session.get_inputs()[0].name: batch}), axis=1)


def find_photos(given: Sequence[Path]) -> tuple[list[str], list[Path]]:
    """Names and paths of photos, without hidden ones: those of one folder relative to it, others by their paths."""
    paths = [path for place in given for path in (_photos_in(place) if place.is_dir() else [place])]
    if len(given) == 1 and given[0].is_dir():
        return [path.relative_to(given[0]).as_posix() for path in paths], paths
    missing = next((place for place in given if len(given) == 1 and not place.is_file()), None)
    if missing is not None:
        raise WrongError(f"{missing} does not exist; expected a photo or a folder of photos.")
    return [str(path) for path in paths], paths


def _photos_in(folder: Path) -> list[Path]:
    photos, others = list_files(folder)
    if not photos:
        raise WrongError(describe_empty(folder, others))
    if others:
        sys.stderr.write(f"predict_onnx: warning: {describe_left_out(others)}\n")
    return photos


def read_photo(path: Path) -> np.ndarray:
    """Decode a photo to (height, width, 3) uint8 RGB, turned as its EXIF says, alpha laid on white."""
    if not path.is_file():
        # reading a pipe would block
        raise BadPhotoError(f"{path} is not a file; expected a photo there.")
    try:
        return decode(path.read_bytes())
    except PhotoError as error:
        raise BadPhotoError(f"{path} {error}.") from error
    except Exception as error:
        # Pillow raises undocumented exceptions for forged files
        raise BadPhotoError(f"{path} is not a photo that can be read ({_one_line(error)}); replace it.") from error


def prepare_photo(photo: np.ndarray, meta: dict[str, Any], path: Path) -> np.ndarray:
    """A decoded photo, prepared for the network, with its size checked."""
    made = prepare(photo, meta["steps"], path)
    if list(made.shape[:2]) != meta["size"]:
        raise BadPhotoError(
            f"{path} comes out {made.shape[0]} high and {made.shape[1]} wide; the model takes {meta['size'][0]} high "
            f"and {meta['size'][1]} wide."
        )
    return made


def prepare(photo: np.ndarray, steps: Sequence[dict[str, Any]], name: object = "The photo") -> np.ndarray:
    """(height, width, 3) uint8 -> the same, cropped, scaled and padded as by albumentations."""
    for step in steps:
        photo = _STEPS[step["do"]](photo, step, name)
    return np.ascontiguousarray(photo)


def _center_crop(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    height, width = photo.shape[:2]
    if step["height"] > height or step["width"] > width:
        raise BadPhotoError(
            f"{name} is {height} high and {width} wide; the model crops {step['height']} x {step['width']} out of it, "
            "so it needs larger photos."
        )
    top, left = (height - step["height"]) // 2, (width - step["width"]) // 2
    return photo[top : top + step["height"], left : left + step["width"]]


def _enlarge(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    scale = max(1.0, step["height"] / photo.shape[0], step["width"] / photo.shape[1])
    height, width = (round(side * scale) for side in photo.shape[:2])
    if height * width > MOST_PIXELS:
        raise BadPhotoError(
            f"{name} is too narrow: enlarged for the model's crop it is {height} high and {width} wide."
        )
    return _scaled(photo, height, width, "linear")


def _resize(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    smaller = step["height"] < photo.shape[0] or step["width"] < photo.shape[1]
    return _scaled(photo, step["height"], step["width"], "area" if step["area"] and smaller else step["by"])


def _max_size(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    sides, longest = photo.shape[:2], step["do"] == "longest"
    if "sides" in step:
        # both sides at most, or at least, these
        scale = (min if longest else max)(most / side for most, side in zip(step["sides"], sides, strict=True))
    else:
        scale = step["side"] / (max if longest else min)(sides)
    height, width = (max(1, round(side * scale)) for side in sides)
    return _scaled(photo, height, width, "area" if step["area"] and scale < 1 else step["by"])


def _scaled(photo: np.ndarray, height: int, width: int, by: str) -> np.ndarray:
    if photo.shape[:2] == (height, width):
        return photo
    cv2 = _opencv()
    how = getattr(cv2, f"INTER_{by.upper()}")
    return np.asarray(cv2.resize(np.ascontiguousarray(photo), (width, height), interpolation=how))


def _pad(photo: np.ndarray, step: dict[str, Any], name: object) -> np.ndarray:
    rows, columns = max(0, step["height"] - photo.shape[0]), max(0, step["width"] - photo.shape[1])
    if not rows and not columns:
        return photo
    cv2, place = _opencv(), step["position"]
    top = {"center": rows // 2, "top": 0, "bottom": rows}[place.partition("_")[0]]
    left = {"center": columns // 2, "left": 0, "right": columns}[place.rpartition("_")[2]]
    border = getattr(cv2, f"BORDER_{step['border'].upper()}")
    sides = (top, rows - top, left, columns - left)
    return np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(photo), *sides, border, value=step["fill"]))


_STEPS = {
    "enlarge": _enlarge,
    "center_crop": _center_crop,
    "resize": _resize,
    "longest": _max_size,
    "shortest": _max_size,
    "pad": _pad,
}


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise WrongError("The model's photos are scaled by OpenCV: pip install opencv-python-headless.") from error
    return cv2


def to_rows(meta: dict[str, Any], names: Sequence[str], probabilities: np.ndarray) -> list[list[str]]:
    """A row of texts per photo below a header: path, the joint class, each head's class, a probability per class.

    The joint class counts through the classes of the heads in `joint`, the first head the most significant. With a head
    of the joint class it is the most probable one, of which the heads' classes are parts.
    """
    classes = {head["name"]: head["classes"] for head in meta["heads"]}
    parts = np.split(probabilities, np.cumsum([len(each) for each in classes.values()])[:-1], axis=1)
    codes = {head["name"]: answer(head, part) for head, part in zip(meta["heads"], parts, strict=True)}
    mixed = next((place for place, head in enumerate(meta["heads"]) if head.get("joint_share")), None)
    if mixed is not None:
        share = meta["heads"][mixed]["joint_share"]
        product = join([part for part, name in zip(parts, classes, strict=True) if name in meta["joint"]])
        joint = (share * parts[mixed] + (1 - share) * product).argmax(1)
        sizes = tuple(len(classes[name]) for name in meta["joint"])
        codes |= dict(zip(meta["joint"], np.unravel_index(joint, sizes), strict=True))
        codes[meta["heads"][mixed]["name"]] = joint
    joint = np.zeros(len(names), np.int64)
    for name in meta["joint"]:
        joint = joint * len(classes[name]) + codes[name]
    rows = [["path", "predicted", *classes, *(f"{name}.{one}" for name, each in classes.items() for one in each)]]
    for i, name in enumerate(names):
        named = [each[codes[head][i]] for head, each in classes.items()]
        rows.append([name, str(joint[i]), *named, *(f"{value:.9g}" for value in probabilities[i])])
    return rows


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(N, classes) probabilities of several heads -> (N, joint classes) products."""
    joint = parts[0]
    for part in parts[1:]:
        joint = (joint[:, :, None] * part[:, None, :]).reshape(len(joint), -1)
    return joint


def answer(head: dict[str, Any], part: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities of a head -> (N,) class numbers: the most probable; of a number, the median.

    The probabilities of numbers are widened by training, which is undone first, as by fastmask.model.number.
    """
    # files of earlier versions do not say which heads are numbers
    if not head.get("spread"):
        return np.asarray(part.argmax(1))
    numbers = np.array(head["classes"], np.float64)
    targets = np.exp(-(((numbers - numbers[:, None]) / head["spread"]) ** 2) / 2)
    targets = (targets / targets.sum(1, keepdims=True)).astype(np.float32)
    given = part / part.sum(1, keepdims=True)
    found = np.full_like(given, 1 / given.shape[1])
    for _ in range(100):
        found = found * ((given / np.maximum(found @ targets, _LEAST)) @ targets.T)
    alone = given @ np.log(np.maximum(targets, _LEAST)).T
    single = alone.max(1) >= (given * np.log(np.maximum(found @ targets, _LEAST))).sum(1)
    found[single] = np.eye(given.shape[1], dtype=np.float32)[alone[single].argmax(1)]
    steps = (found / found.sum(1, keepdims=True)).astype(np.float64).cumsum(1)
    return np.asarray((steps < 0.5 - 1e-6).sum(1).clip(max=given.shape[1] - 1))


def check_new(out: Path, overwrite: bool) -> None:
    """Raise WrongError if a CSV cannot be written, before any photo is read."""
    if out.is_dir():
        raise WrongError(f"{out} is a folder; name the CSV to write.")
    if out.exists() and not overwrite:
        raise WrongError(f"{out} exists; name another file, or replace it with --overwrite.")
    if not out.absolute().parent.is_dir():
        raise WrongError(f"{out.parent} is not a folder; make it, or name another file.")


def failed_list(out: Path) -> Path:
    """The CSV of the photos that failed, next to the CSV to write; raises WrongError if that is another file."""
    file = out.with_name(f"{out.stem}.failed.csv")
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as opened:
            if not opened.readline(100).startswith("path,reason"):
                raise WrongError(f"{file} exists, and photos that fail would be listed there; name another --out.")
    return file


def write_failed(file: Path, failed: dict[str, str]) -> None:
    """Write the list of the photos that failed; without any, remove an old one."""
    if failed:
        write_table(file, [["path", "reason"], *(list(row) for row in failed.items())])
    else:
        file.unlink(missing_ok=True)


def write_table(out: Path | None, rows: Sequence[Sequence[str]]) -> None:
    """Write rows as a CSV, whole or not at all, or print them."""
    if out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    part = out.with_name(f".{out.name}.{os.getpid()}{_PART}")
    try:
        with part.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows(rows)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
