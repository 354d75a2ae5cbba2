"""The commands on a run as a whole: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import JUDGE, Commands, option
from fastmask.system.terminal import say

app = Commands()


@app.command(rich_help_panel=JUDGE)
def report(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    data: Annotated[str | None, option("Where its photos lie now. (default: where they lay)")] = None,
    images: Annotated[str | None, option("The folder that their paths start from now. (default: found)")] = None,
    out: Annotated[Path | None, option("Another folder to write to, new or empty. (default: the run)")] = None,
    photos: Annotated[bool, typer.Option("--photos/--no-photos", help="Show photos on the page.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report in --out.")] = False,
) -> None:
    """Write a run's report: an HTML page, pictures, a model card."""
    from fastmask.report.write import write_report
    from fastmask.run.files import PICTURES

    made = write_report(run, data, out, images=images, photos=photos, overwrite=overwrite)
    for title, why in made.missing.items():
        say(f"Left out: {title}: {why}")
    if made.gone:
        say(f"Not there any more: {len(made.gone):,} of the run's photos, such as {made.gone[0]}")
    if made.kept:
        say(f"{made.card} was changed by hand and stays as it is; remove it to have it written anew.")
    typer.echo(str(made))
    written = [str(made.page), *([] if made.kept else [str(made.card)])]
    say(f"Written: {', '.join(written)}, {len(made.pictures)} pictures in {made.page.parent / PICTURES}")
