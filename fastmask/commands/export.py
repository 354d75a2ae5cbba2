"""The command that takes a run to where there is no torch: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastmask.commands.options import PREDICT, Commands, Json, Overwrite, RunArgument, echo, option
from fastmask.system.terminal import quote, say

app = Commands()


@app.command(rich_help_panel=PREDICT)
def export(
    run: RunArgument,
    format_: Annotated[str, option("onnx.", "--format")] = "onnx",
    out: Annotated[Path | None, option("A file with the suffix .onnx, or a folder.", note="RUN-onnx")] = None,
    fold: Annotated[int | None, option("Only this fold's networks.", note="the mean of all")] = None,
    precision: Annotated[str, option("fp32, or fp16: half the size; reports what that costs.")] = "fp32",
    soup: Annotated[
        bool, option("One network per fold: the mean of its checkpoints' weights (--top-k).", "--soup")
    ] = False,
    refit: Annotated[
        bool, option("For a run with --refit: its final networks, or its checkpoints.", "--refit/--no-refit")
    ] = True,
    images: Annotated[Path | None, option("Photos to check the file on.", note="the run's own")] = None,
    data: Annotated[str | None, option("Where the run's photos are now.", note="where it was trained")] = None,
    photos: Annotated[int, option("Maximum number of photos to check it on.")] = 200,
    oof_photos: Annotated[
        int | None, option("With fp16: photos to measure the change of the OOF macro-F1 on.", note="all")
    ] = None,
    bs: Annotated[int, option("Photos per batch of the check and the timing.")] = 16,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a run as one ONNX file that needs no torch.

    Its outputs are compared with PyTorch's. A script that predicts with it is
    written next to it.
    """
    from fastmask.export.result import SCRIPT, check_asked

    # before torch takes its seconds to load
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
