"""Export: the networks of a run as one ONNX file, checked against PyTorch before it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastmask.export.options import SCRIPT, ExportOptions, check_model, script_text
from fastmask.export.parity import measure_difference, measure_rounding, time_both
from fastmask.export.predict_onnx import open_model
from fastmask.export.result import Exported
from fastmask.export.selection import select
from fastmask.run.directory import RunDirectory
from fastmask.system.files import atomic_write, write_text
from fastmask.system.memory import keep_memory


def export_onnx(
    run: RunDirectory | str | Path,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
    **given: Any,
) -> Exported:
    """Write the networks of a run as one ONNX file, and a script that predicts with it without torch.

    The file takes (batch, height, width, 3) uint8 RGB photos that are cropped and scaled as its metadata says, and has
    an output per head: (batch, classes) float32 probabilities. Nothing is written if PyTorch's differ by more than
    the tolerance (FastmaskError). UsageError: boxes, an unsupported pipeline, runs that crop differently, over 2 GB.

    Args:
        out: the file, its name ending in .onnx, or a folder; by default RUN-onnx. The script is next to the file.
        options: see `ExportOptions`, or `given` by name, such as `fold=0`; `say` is called with a line about each step.

    Example:
        >>> fm.export_onnx(run, "fold0.onnx", fold=0).networks
        1
    """
    run, options = RunDirectory.of(run), ExportOptions.of(options, given)
    model = check_model(run.path, None if out is None else Path(out), options, overwrite)
    selection = select(run, options)
    photos = selection.photos()
    paths, size = photos.paths, photos.size
    keep_memory()
    networks = selection.load(size)
    say(f"Tracing {', '.join(sorted({one.config.arch for one in selection.runs.values()}))} in {options.precision}")
    from fastmask.export.graph import build

    metadata = selection.metadata(size, networks)
    built = build(run.heads, networks, selection.blend, half=options.half, metadata=metadata).SerializeToString()
    session = open_model(built, torch.get_num_threads())
    say(f"Checking it on {len(paths)} photos")
    difference = measure_difference(session, selection, paths)
    say("Timing it")
    rates = time_both(session, networks, paths, options.bs)
    rounded = measure_rounding(selection, networks, say) if options.half else None
    with atomic_write(model) as partial:
        partial.write_bytes(built)
    write_text(model.with_name(SCRIPT), script_text())
    return Exported(
        model=model,
        script=model.with_name(SCRIPT),
        precision=options.precision,
        nbytes=len(built),
        networks=sum(1 for one in networks.values() for _ in one.weighted),
        heads=run.heads.names,
        size=size,
        photos=len(paths),
        difference=difference,
        tolerance=options.allowed,
        rates=rates,
        views=tuple(dict.fromkeys(view for one in networks.values() for view in one.views)),
        decision=run.config.decision,
        rounded=rounded,
    )
