"""The command that describes a run as a whole: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import JUDGE, Commands, Overwrite, RunArgument, option
from fastmask.system.terminal import say

app = Commands()

Data = Annotated[str | None, option("Where the run's photos are now.", note="where it was trained")]
Images = Annotated[str | None, option("The folder that their paths are relative to now.", note="found")]


@app.command(rich_help_panel=JUDGE)
def report(
    run: RunArgument,
    data: Data = None,
    images: Images = None,
    out: Annotated[Path | None, option("Another folder to write to, new or empty.", note="the run")] = None,
    photos: Annotated[bool, option("Show photos on the page.", "--photos/--no-photos")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's report: an HTML page, pictures, a model card."""
    from fastmask.report.write import write_report
    from fastmask.run.files import PICTURES

    made = write_report(run, data, out, images=images, photos=photos, overwrite=overwrite)
    for title, why in made.missing.items():
        say(f"Left out: {title}: {why}")
    if made.gone:
        say(f"Missing: {len(made.gone):,} of the run's photos, such as {made.gone[0]}")
    if made.kept:
        say(f"{made.card} was changed by hand and is kept; remove it to have it written again.")
    typer.echo(str(made))
    written = [str(made.page), *([] if made.kept else [str(made.card)])]
    say(f"Written: {', '.join(written)}, {len(made.pictures)} pictures in {made.page.parent / PICTURES}")
