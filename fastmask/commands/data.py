"""The commands on photos before anything is trained: check, sample, faces, paint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import DATA_SETS, NEW_CSV, Commands, Overwrite, option, with_settings
from fastmask.config import DATA, Config, Kind
from fastmask.system.terminal import progress_bar, quote, say

app = Commands()

_NewFolder = Annotated[Path, option("A new or empty folder.")]


@app.command(rich_help_panel=DATA_SETS)
@with_settings(DATA, without=["data"])
def check(
    settings: Config,
    data: Annotated[str, typer.Argument(help="Contest folder, CSV, a folder per class, or 'sample'.")],
    out: Annotated[Path | None, option("A CSV to write the findings to."), NEW_CSV] = None,
) -> None:
    """Report everything that is wrong with a data set.

    Every photo is read. Exits 1 if training would fail.
    """
    from fastmask.preparation.check import ERROR, check_data, findings_frame, format_findings
    from fastmask.system.files import write_csv

    with progress_bar("reading") as progress:
        findings = check_data(settings.model_copy(update={"data": data}), progress, log=say)
    if out is not None:
        write_csv(out, findings_frame(findings))
    typer.echo(format_findings(findings))
    if any(f.level == ERROR for f in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=DATA_SETS)
def sample(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    persons: Annotated[int, option("Persons to train on, seven photos each.")] = 160,
    seed: Annotated[int, option("Seed: another one draws other people.")] = 0,
) -> None:
    """Draw people in the contest's format, to try fastmask."""
    from fastmask.data.sample import write_sample

    written = write_sample(folder, persons, seed)
    typer.echo(f"{written}: {persons * 7} photos of {persons} persons in train, and others with answers.csv in eval")


@app.command(rich_help_panel=DATA_SETS)
def faces(
    data: Annotated[str, typer.Argument(help="Contest folder, CSV, a folder per class, or any folder of photos.")],
    out: Annotated[Path, option("The CSV to write.")],
    detector: Annotated[str, option("mtcnn or retinaface.")] = "mtcnn",
    images: Annotated[str | None, option("The folder that a CSV's paths are relative to.", note="the CSV's")] = None,
    image_column: Annotated[str | None, option("A CSV's column of photos.", note="path, or found")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the face in each photo, for --boxes and for paint.

    Writes a CSV of boxes and landmarks.
    """
    from fastmask.preparation.faces import write_boxes

    with progress_bar("finding faces") as progress:
        found = write_boxes(
            data, detector, out, images=images, image_column=image_column, overwrite=overwrite, progress=progress
        )
    typer.echo(f"{out}: faces in {int(found['x0'].notna().sum())} of {len(found)} photos")


@app.command(rich_help_panel=DATA_SETS)
@with_settings(DATA, only=[*Config.of_kind(Kind.TABLE), "seed"])
def paint(
    settings: Config,
    landmarks: Annotated[Path, option("The CSV that fastmask faces wrote for these photos.")],
    out: _NewFolder,
    per_face: Annotated[str, option("Photos of each kind to make per face.")] = "wear=5,incorrect=1,none=1",
    head: Annotated[str, option("The name of the mask's column.")] = "mask",
    classes: Annotated[
        tuple[str, ...], option("Its classes for a mask that is worn, worn incorrectly, and not worn.")
    ] = ("wear", "incorrect", "none"),
    workers: Annotated[int | None, option("Threads that paint.", note="one per core")] = None,
) -> None:
    """Paint masks on bare faces, for fit --extra.

    Masks are worn correctly or incorrectly. Writes photos and labels.csv.
    """
    from fastmask.data.readers import read_data
    from fastmask.preparation.paint import paint_set, parse_per_face

    counts = parse_per_face(per_face)
    table = read_data(settings, log=say)
    with progress_bar("painting") as progress:
        painted = paint_set(
            table,
            landmarks,
            out,
            counts,
            settings.seed,
            head=head,
            classes=classes,
            workers=workers,
            progress=progress,
        )
    left = f"left out: {painted.faceless} photos without a face, {painted.covered} that are not bare"
    made = ", ".join(f"{count} {kind}" for kind, count in painted.photos.items() if count)
    typer.echo(f"{painted.folder}: photos {made}, of {painted.faces} faces; {left}")
    say(f"Next: fastmask fit --extra {quote(str(painted.folder / 'labels.csv'))}")
