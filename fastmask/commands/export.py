"""The command that exports a run for use without torch: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastmask.commands.options import PREDICT, Commands, Json, Overwrite, RunArgument, echo, option, with_options
from fastmask.export.options import ExportOptions, check_model
from fastmask.system.terminal import quote, say

app = Commands()


@app.command(rich_help_panel=PREDICT)
@with_options(ExportOptions)
def export(
    options: ExportOptions,
    run: RunArgument,
    out: Annotated[Path | None, option("A file with the suffix .onnx, or a folder.", note="RUN-onnx")] = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a run as one ONNX file that needs no torch.

    Its outputs are compared with PyTorch's. A script that predicts with it is
    written next to it.
    """
    # before torch is loaded, which takes seconds
    check_model(run, out, options, overwrite)
    from fastmask.export.onnx import export_onnx

    made = export_onnx(run, out, options, overwrite=overwrite, say=say)
    echo(made, json)
    say(f"Next, without torch: python {quote(str(made.script))} {quote(str(made.model))} PHOTOS --out FILE")
