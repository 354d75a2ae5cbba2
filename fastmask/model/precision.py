"""Precision: the numbers in which a network computes on a device (bf16, fp16, TF32), and whether it can be compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# photos of a comparison, and its tolerances: bf16 changed the logits of ten bodies, untrained and trained, by 0.2 to
# 3.5 %, and the size of the gradients by 1 %; where a CPU computed it wrongly, the logits were NaN or 1e27
_COMPARED, _MOST_OFF, _MOST_GROWTH = 4, 0.5, 10.0


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


def usable_precision(
    network: nn.Module, size: tuple[int, int], device: torch.device, precision: str, auto: bool, trains: bool = True
) -> str:
    """The resolved `precision`, if a network computes nearly the same in it as in fp32; moves the network to `device`.

    Compares the outputs for a few photos of noise of `size` (height, width), and with `trains` the size of the
    gradients: some CPUs get NaN or 1e27 from a convolution in bf16. If they differ wildly, returns fp32 with a warning
    where the precision is the default (`auto`), else raises UsageError.
    """
    if precision == "fp32":
        return precision
    noise = torch.randn(_COMPARED, 3, *size, generator=torch.Generator().manual_seed(0))
    x, training = noise.to(device, memory_format=torch.channels_last), network.training
    network.to(device).eval()
    with torch.set_grad_enabled(trains):
        (exact, slope), (rough, rough_slope) = (_outputs(network, x, each) for each in ("fp32", precision))
    network.train(training)
    # in float64, since the square of 1e27 is inf in float32
    off = float((rough.double() - exact).norm() / exact.double().norm().clamp(min=1e-6))
    near, steady = off <= _MOST_OFF, rough_slope <= _MOST_GROWTH * slope + 1e-6
    # where fp32 gives NaN too, the precision is not the cause
    if (near and steady) or not exact.isfinite().all():
        return precision
    what = f"gradients are {rough_slope:.2g}, in fp32 {slope:.2g}"
    if not near:
        what = f"outputs differ from those in fp32 by {off:.2g} times their size"
    why = ", or the network overflows in it" if precision == "fp16" else ""
    found = (
        f"This {'CPU' if device.type == 'cpu' else 'GPU'} computes {precision} wrongly{why}: with the same weights and "
        f"photos, the {what}"
    )
    if not auto:
        raise UsageError(f"{found}; take --precision fp32.")
    warnings.warn(f"{found}; fp32 is used.", FastmaskWarning, stacklevel=2)
    return "fp32"


def _outputs(network: nn.Module, x: Tensor, precision: str) -> tuple[Tensor, float]:
    """A network's outputs in float32, and the norm of the gradients of their mean square; 0 without gradients."""
    with autocast(x.device, precision):
        outputs: Tensor = network(x)
    outputs = outputs.float()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not outputs.requires_grad:
        return outputs, 0.0
    grads: Any = torch.autograd.grad(outputs.square().mean(), weights, allow_unused=True)
    return outputs.detach(), float(nn.utils.get_total_norm([grad for grad in grads if grad is not None]))


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
