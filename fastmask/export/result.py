"""Exported: what an export writes and under which names, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmask.system.errors import UsageError, install_line
from fastmask.system.files import check_new, real
from fastmask.system.text import in_bytes

ONNX, SCRIPT = ".onnx", "predict_onnx.py"
FORMATS, PRECISIONS, PACKAGES = ("onnx",), ("fp32", "fp16"), ("onnx", "onnxscript", "onnxruntime")
# in probability, how far the file may answer from PyTorch
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}


def model_file(run: Path, out: Path | None, fold: int | None, precision: str) -> Path:
    """Where the model is written: `out` itself if it is called .onnx, or in that folder, by default one beside `run`.

    A fold and fp16 have names of their own, so that all may lie in one folder.
    """
    if out is not None and out.suffix == ONNX:
        return out
    name = "".join(["model", "" if fold is None else f"-fold{fold}", "" if precision == "fp32" else f"-{precision}"])
    return (run.with_name(f"{run.name}-onnx") if out is None else out) / f"{name}{ONNX}"


def check_asked(
    run: Path, out: Path | None, fold: int | None, precision: str, format_: str = FORMATS[0], overwrite: bool = False
) -> Path:
    """The model to write; raises UsageError for a format or a precision that there is not, or where a file is there.

    And where a package is missing.
    """
    for what, asked, known in (("format", format_, FORMATS), ("precision", precision, PRECISIONS)):
        if asked not in known:
            raise UsageError(f"There is no {what} {asked!r} of an export; expected one of {', '.join(known)}.")
    missing = next((name for name in PACKAGES if find_spec(name) is None), None)
    if missing is not None:
        raise UsageError(f"An export needs the package {missing}; install it with {install_line('onnx')}.")
    model = model_file(run, out, fold, precision)
    _check_free(run, model, overwrite)
    return model


def _check_free(run: Path, model: Path, overwrite: bool) -> None:
    """Raise UsageError where the model or the script beside it cannot be written.

    In a run nothing is written: it would not be one any more. A script that is the same already may stay.
    """
    if real(run) in real(model).parents:
        raise UsageError(f"{model} lies in the run, where only a run's own files belong; name another --out.")
    check_new(model, overwrite)
    script = model.with_name(SCRIPT)
    if not (script.is_file() and script.read_bytes() == script_text().encode()):
        check_new(script, overwrite)


def script_text() -> str:
    """The script that predicts by an exported file."""
    return Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Rates:
    """Photos a second of ONNX Runtime and of PyTorch, in turns on one batch of `bs` photos, with as many threads."""

    onnx: float
    torch: float
    bs: int
    threads: int

    def __str__(self) -> str:
        ratio = self.onnx / self.torch
        return (
            f"{self.onnx:.1f} photos/s, PyTorch {self.torch:.1f}: {ratio:.2f} times as fast ({self.threads} threads, "
            f"batches of {self.bs})"
        )


@dataclass(frozen=True)
class Rounded:
    """What half precision changes: macro-F1 of `photos` photos of `folds`, each answered by its own fold's networks.

    `full` in float32 by PyTorch, `half` by the fp16 files; `answers` are the joint classes that differ.
    """

    photos: int
    folds: tuple[int, ...]
    full: float
    half: float
    answers: int
    whole: int

    @property
    def change(self) -> float:
        """Of the macro-F1."""
        return self.half - self.full

    def __str__(self) -> str:
        part = "" if self.photos == self.whole else f" of {self.whole}"
        folds = ", ".join(map(str, self.folds))
        return (
            f"OOF macro-F1 {self.change:+.4f}: {self.half:.4f}, fp32 {self.full:.4f}; {self.photos}{part} photos of "
            f"folds {folds}, each by its own fold's checkpoints; {self.answers} answers differ"
        )


@dataclass(frozen=True)
class Exported:
    """A model that was written, and what was found of it before.

    `difference` is the greatest between its probabilities and PyTorch's on `photos` photos, `networks` how many are in
    it, `rounded` what fp16 changes, where the run's photos could tell.
    """

    model: Path
    script: Path
    precision: str
    nbytes: int
    networks: int
    heads: tuple[str, ...]
    size: tuple[int, int]
    photos: int
    difference: float
    tolerance: float
    rates: Rates
    rounded: Rounded | None = None

    def __str__(self) -> str:
        rows = {
            "model": f"{self.model}, {in_bytes(self.nbytes)}: {self.networks} network(s) in {self.precision}, photos "
            f"{self.size[0]} high and {self.size[1]} wide -> {', '.join(self.heads)}",
            "parity": f"{self.difference:.1e} in probability at most from PyTorch on {self.photos} photos "
            f"(allowed {self.tolerance:.0e})",
            "speed": str(self.rates),
            **({} if self.rounded is None else {"fp16": str(self.rounded)}),
        }
        return "\n".join(f"{name:8}{text}" for name, text in rows.items())

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rounded = self.rounded
        return {
            "model": str(self.model),
            "script": str(self.script),
            "precision": self.precision,
            "bytes": self.nbytes,
            "networks": self.networks,
            "heads": list(self.heads),
            "size": list(self.size),
            "parity": {"photos": self.photos, "difference": self.difference, "tolerance": self.tolerance},
            "photos_a_second": {
                "onnx": self.rates.onnx,
                "torch": self.rates.torch,
                "bs": self.rates.bs,
                "threads": self.rates.threads,
            },
            "oof_macro_f1": None
            if rounded is None
            else {
                "fp32": rounded.full,
                "fp16": rounded.half,
                "change": rounded.change,
                "photos": rounded.photos,
                "of": rounded.whole,
                "folds": list(rounded.folds),
                "answers_that_differ": rounded.answers,
            },
        }
