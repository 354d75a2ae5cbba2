"""The commands on photos, before anything is trained: faces, paint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmask.commands.options import DATA, DATA_SETS, Commands, option, with_settings
from fastmask.system.terminal import bar, quote, say

if TYPE_CHECKING:
    from fastmask.config import Config

app = Commands()


@app.command(rich_help_panel=DATA_SETS)
def faces(
    data: Annotated[str, typer.Argument(help="Contest folder, CSV, a folder a class, or any folder of photos.")],
    out: Annotated[Path, option("The CSV to write.")],
    detector: Annotated[str, typer.Option(help="mtcnn or retinaface.")] = "mtcnn",
    images: Annotated[str | None, option("The folder that a CSV's paths start from. (default: the CSV's)")] = None,
    image_column: Annotated[str | None, option("A CSV's column of photos. (default: path, or found)")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file to write.")] = False,
) -> None:
    """Find the face in each photo, for --boxes and for paint.

    Writes a CSV of boxes and landmarks.
    """
    from fastmask.preparation.faces import write_boxes

    with bar("finding faces") as progress:
        found = write_boxes(
            data, detector, out, images=images, image_column=image_column, overwrite=overwrite, progress=progress
        )
    typer.echo(f"{out}: faces in {int(found['x0'].notna().sum())} of {len(found)} photos")


@app.command(rich_help_panel=DATA_SETS)
@with_settings(DATA, only=("data", "heads", "images", "image_column", "group_column", "fixes", "age_bounds", "seed"))
def paint(
    settings: Config,
    landmarks: Annotated[Path, option("The CSV that `faces` wrote for these photos.")],
    out: Annotated[Path, option("A new or empty folder.")],
    per_face: Annotated[str, typer.Option(help="Photos of each kind to make of a face.")] = "wear=5,incorrect=1,none=1",
    head: Annotated[str, typer.Option(help="What the column of the mask is called.")] = "mask",
    classes: Annotated[str, typer.Option(help="What it calls worn, wrongly worn and bare.")] = "wear,incorrect,none",
    workers: Annotated[int | None, option("Threads that paint. (default: one a core)")] = None,
) -> None:
    """Paint masks on bare faces, for fit --extra.

    Masks are worn correctly or incorrectly. Writes photos and labels.csv.
    """
    from fastmask.commands.options import words
    from fastmask.data.readers import read_data
    from fastmask.preparation.paint import paint_set, parse_per_face

    counts = parse_per_face(per_face)
    table = read_data(settings, log=say)
    with bar("painting") as progress:
        painted = paint_set(
            table,
            landmarks,
            out,
            counts,
            settings.seed,
            head=head,
            classes=words(classes),
            workers=workers,
            progress=progress,
        )
    left = f"left out: {painted.faceless} photos without a face, {painted.covered} that are not bare"
    made = ", ".join(f"{count} {kind}" for kind, count in painted.photos.items() if count)
    typer.echo(f"{painted.folder}: photos {made}, of {painted.faces} faces; {left}")
    say(f"Next: fastmask fit --extra {quote(str(painted.folder / 'labels.csv'))}")
