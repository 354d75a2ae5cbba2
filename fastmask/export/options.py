"""Options of `export_onnx`, shared by the API and the command line, and the files that it writes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from fastmask.config import Positive
from fastmask.inference.options import NetworkOptions
from fastmask.system.errors import UsageError, install_line
from fastmask.system.fields import option_field
from fastmask.system.files import check_new, real

ONNX, SCRIPT = ".onnx", "predict_onnx.py"
_IMPORT = re.compile(r"^from fastmask\.(?P<module>[\w.]+) import .*\n", re.MULTILINE)
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# how far the file's probabilities may be from PyTorch's
_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}


class ExportOptions(NetworkOptions):
    """Which networks `export_onnx` writes to the file, and how it checks the file."""

    format: Literal["onnx"] = option_field("onnx", "onnx.")
    fold: int | None = option_field(None, "Only this fold's networks.", note="the mean of all")
    precision: Literal["fp32", "fp16"] = option_field("fp32", "fp32, or fp16: half the size; reports what that costs.")
    images: Path | tuple[Path, ...] | None = option_field(
        None, "Photos to check the file on.", note="the run's own", read=Path
    )
    data: str | None = option_field(None, "Where the run's photos are now.", note="where it was trained")
    photos: Positive = option_field(200, "Maximum number of photos to check it on.")
    oof_photos: Positive | None = option_field(
        None, "With fp16: photos to measure the change of the OOF macro-F1 on.", note="all"
    )
    bs: Positive = option_field(16, "Photos per batch of the check and the timing.")
    # how far probabilities may be from PyTorch's, by default 1e-4, in fp16 2e-2
    tolerance: float | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.oof_photos is not None and not self.half:
            raise UsageError("--oof-photos needs --precision fp16, since they measure its effect on the OOF macro-F1.")
        return self

    @property
    def half(self) -> bool:
        """Whether the file computes in half precision."""
        return self.precision == "fp16"

    @property
    def members(self) -> list[str] | None:
        """The members of the run to export; None is all."""
        return None if self.fold is None else [f"fold{self.fold}"]

    @property
    def allowed(self) -> float:
        """How far the file's probabilities may be from PyTorch's."""
        return _TOLERANCES[self.precision] if self.tolerance is None else self.tolerance


def check_packages(what: str) -> None:
    """Raise UsageError if a package that ONNX files need is missing; `what` needs it."""
    missing = next((name for name in _PACKAGES if find_spec(name) is None), None)
    if missing is not None:
        raise UsageError(f"{what} needs the package {missing}; install it with {install_line('onnx')}.")


def check_model(run: Path, out: Path | None, options: ExportOptions, overwrite: bool = False) -> Path:
    """The model file to write; raises UsageError if a package is missing or a file cannot be written.

    That is `out` itself if its name ends in .onnx, or a file in that folder, by default RUN-onnx. The names of a fold
    and of fp16 differ, so that all can be in one folder. Nothing is written into a run directory, which only has the
    run's own files.
    """
    check_packages("An export")
    if out is not None and out.suffix == ONNX:
        model = out
    else:
        fold = "" if options.fold is None else f"-fold{options.fold}"
        name = f"model{fold}{'-fp16' if options.half else ''}{ONNX}"
        model = (run.with_name(f"{run.name}-onnx") if out is None else out) / name
    if real(run) in real(model).parents:
        raise UsageError(f"{model} is in the run, where only a run's own files belong; name another --out.")
    check_new(model, overwrite)
    script = model.with_name(SCRIPT)
    # an identical script is kept
    if not (script.is_file() and script.read_bytes() == script_text().encode()):
        check_new(script, overwrite)
    return model


def script_text() -> str:
    """The script that predicts with an exported file: with the modules of fastmask that it imports written out."""
    return _IMPORT.sub(lambda found: _module_text(found["module"]), _source("export/predict_onnx.py"))


def _module_text(module: str) -> str:
    """The source of a module without its imports from fastmask and the future, which must come first in a file."""
    text = _source(f"{module.replace('.', '/')}.py")
    return _IMPORT.sub("", text.replace("from __future__ import annotations\n", ""))


def _source(file: str) -> str:
    return (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
