"""Result: the files of an export, and their comparison with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmask.decision.rule import PLAIN
from fastmask.scoring import Plain, plain
from fastmask.system.text import in_bytes, join_some


@dataclass(frozen=True)
class Rates(Plain):
    """Photos per second of ONNX Runtime and of PyTorch, timed in turns on one batch of `bs` photos."""

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
class Rounded(Plain):
    """The effect of half precision: macro-F1 of OOF photos of `folds`, each predicted by its own fold's networks.

    `fp32` is from PyTorch, `fp16` from files in half precision. `photos` is the number of photos predicted, `of` the
    number of all.
    """

    fp32: float
    fp16: float
    change: float
    photos: int
    of: int
    folds: tuple[int, ...]
    answers_that_differ: int

    def __str__(self) -> str:
        part = "" if self.photos == self.of else f" of {self.of}"
        folds = ", ".join(map(str, self.folds))
        return (
            f"OOF macro-F1 {self.change:+.4f}: {self.fp16:.4f}, fp32 {self.fp32:.4f}; {self.photos}{part} photos of "
            f"folds {folds}, each by its own fold's checkpoints; {self.answers_that_differ} predicted classes differ"
        )


@dataclass(frozen=True)
class Exported:
    """An exported model, and the results of its check.

    `difference` is the largest difference in probability from PyTorch on `photos` photos, `networks` the number of
    networks, `views` the views that these average, `decision` the run's, which is not in the file, `rounded` the effect
    of fp16, if the run's photos are available to measure it.

    >>> exported = fm.export_onnx(run, "model.onnx", fold=0)
    >>> exported.heads, exported.size, exported.networks
    (('mask', 'gender', 'age'), (64, 32), 1)
    >>> exported.difference < exported.tolerance
    True
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
    views: tuple[str, ...] = ()
    decision: str = PLAIN
    rounded: Rounded | None = None

    def __str__(self) -> str:
        views = f", mean over the photo and its views {join_some(self.views)}" if self.views else ""
        rows = {
            "model": f"{self.model}, {in_bytes(self.nbytes)}: {self.networks} network(s) in {self.precision}"
            f"{views}, photos "
            f"{self.size[0]} high and {self.size[1]} wide -> {', '.join(self.heads)}",
            "parity": f"{self.difference:.1e} in probability at most from PyTorch on {self.photos} photos "
            f"(allowed {self.tolerance:.0e})",
            "speed": str(self.rates),
            **({} if self.decision == PLAIN else {"classes": f"the most probable ones, not by {self.decision}"}),
            **({} if self.rounded is None else {"fp16": str(self.rounded)}),
        }
        return "\n".join(f"{name:8}{text}" for name, text in rows.items())

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": str(self.model),
            "script": str(self.script),
            "precision": self.precision,
            "bytes": self.nbytes,
            "networks": self.networks,
            "heads": list(self.heads),
            "views": list(self.views),
            "decision": PLAIN,
            "size": list(self.size),
            "parity": {"photos": self.photos, "difference": self.difference, "tolerance": self.tolerance},
            **plain({"photos_a_second": self.rates, "oof_macro_f1": self.rounded}),
        }
