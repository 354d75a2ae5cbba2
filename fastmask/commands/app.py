"""The command that shows a run in the browser: app."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import PREDICT, Commands, option
from fastmask.system.errors import UsageError, install_line
from fastmask.system.terminal import say

app = Commands()


@app.command("app", rich_help_panel=PREDICT)
def open_page(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    data: Annotated[str | None, option("Where the run's photos lie now. (default: where it was trained)")] = None,
    images: Annotated[str | None, option("The folder that their paths start from now. (default: found)")] = None,
    boxes: Annotated[Path | None, option("Their faces, of a run with --boxes. (default: as it was trained)")] = None,
    fixes: Annotated[
        Path | None, option("The table that marked labels go to. (default: the run's own, or fixes.csv beside it)")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; another shows it to others.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port, or the next that is free.")] = 7860,
    device: Annotated[str | None, option("cpu, cuda:0. (default: the GPU if there is one)")] = None,
) -> None:
    """Open a web page: try photos, browse predictions, fix labels.

    The predictions are out of fold.
    """
    if find_spec("gradio") is None:
        raise UsageError(f"The page needs the package gradio; install it with {install_line('app')}.")
    from fastmask.app.server import serve
    from fastmask.app.viewer import open_viewer

    viewer = open_viewer(run, data=data, images=images, boxes=boxes, fixes=fixes, device=device)
    if viewer.why_not:
        say(f"Only photos of your own can be looked at: {viewer.why_not}")
    else:
        say(f"Marked labels go to {viewer.file}")
    serve(viewer, host, port, lambda address: say(f"Open {address} in a browser; end it with Ctrl-C"))
