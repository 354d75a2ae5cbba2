"""The command that takes a run to where there is no torch: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import PREDICT, Commands, echo, option
from fastmask.system.terminal import quote, say

app = Commands()


@app.command(rich_help_panel=PREDICT)
def export(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    out: Annotated[Path | None, option("A file called .onnx, or a folder. (default: RUN-onnx)")] = None,
    fold: Annotated[int | None, option("Only this fold's networks. (default: the mean of all)")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16: half the size; says what it costs.")] = "fp32",
    soup: Annotated[
        bool, typer.Option("--soup", help="One network a fold, of the mean of its checkpoints' weights (--top-k).")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option("--refit/--no-refit", help="Of a run with --refit: its last networks, or its checkpoints."),
    ] = True,
    images: Annotated[Path | None, option("Photos to check the file on. (default: the run's own)")] = None,
    data: Annotated[str | None, option("Where the run's photos lie now. (default: where they lay)")] = None,
    photos: Annotated[int, typer.Option(help="Photos to check it on, at most.")] = 200,
    oof_photos: Annotated[
        int | None, option("Of fp16: photos that tell what it changes of the OOF macro-F1. (default: all)")
    ] = None,
    bs: Annotated[int, typer.Option(help="Photos a batch of the check and of what is timed.")] = 16,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files to write.")] = False,
) -> None:
    """Write a run as one ONNX file that needs no torch.

    Its outputs are compared with PyTorch's. A script that predicts with it is
    written next to it.
    """
    from fastmask.export.result import SCRIPT, check_asked

    # what is asked wrongly is told before torch takes its seconds to load
    check_asked(run, out, fold, precision, format_, overwrite)
    from fastmask.export.onnx import export_onnx

    made = export_onnx(
        run,
        out,
        fold=fold,
        precision=precision,
        soup=soup,
        refit=refit,
        images=images,
        data=data,
        photos=photos,
        oof_photos=oof_photos,
        bs=bs,
        overwrite=overwrite,
        say=say,
    )
    echo(made, json)
    script = quote(str(made.model.with_name(SCRIPT)))
    say(f"Next, without torch: python {script} {quote(str(made.model))} PHOTOS --out FILE")
