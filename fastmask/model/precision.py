"""Precision: the numbers in which a network computes on a device (bf16, fp16, TF32), and whether it can be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from fastmask.system.errors import FastmaskError, UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16": `name`, or what is fast on `device` if `name` is "auto".

    That is bf16 on a GPU that computes in it, fp16 on another, and fp32 on a CPU. Raises UsageError for fp16 on a CPU
    and for an unknown name.
    """
    if name not in ("auto", "fp32", *_DTYPES):
        raise UsageError(f"There is no precision {name!r}; expected auto, fp32, bf16 or fp16.")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("Precision fp16 needs a GPU; on a CPU use fp32 or bf16.")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A block in which a network computes in a resolved `precision` on `device`; its weights stay float32."""
    return torch.autocast(device.type, dtype=_DTYPES.get(precision), enabled=precision in _DTYPES)


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """A block in which a GPU multiplies and convolves float32 in TF32, or does not; no effect on other devices.

    Set by torch's older switches: torch 2.9 has newer ones as well, but its compiler fails where only those were set.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    try:
        before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError as error:
        raise UsageError(
            "This process has set TF32 by fp32_precision of torch.backends, which conflicts with the setting tf32; "
            "set it by torch.set_float32_matmul_precision and torch.backends.cudnn.allow_tf32."
        ) from error
    try:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


def check_compiler(device: torch.device) -> None:
    """Raise FastmaskError if torch cannot compile for `device`, which would otherwise fail in the first step."""
    try:
        # a cached result would pass without a compiler
        compiled = torch.compile(lambda x: x.sin() + 1, options={"force_disable_caches": True})
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            compiled(torch.zeros(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise FastmaskError(
            f"torch cannot compile here ({why}); install a C++ compiler, and for a GPU triton, or leave --compile out."
        ) from error
