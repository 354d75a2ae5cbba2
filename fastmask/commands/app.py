"""The command that shows a run in the browser: app."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from fastmask.commands.options import PREDICT, Commands, RunArgument, option
from fastmask.commands.report import Data, Images
from fastmask.config import DEVICE, DEVICE_DEFAULT
from fastmask.system.errors import UsageError, install_line
from fastmask.system.terminal import say

app = Commands()


@app.command("app", rich_help_panel=PREDICT)
def open_page(
    run: RunArgument,
    data: Data = None,
    images: Images = None,
    boxes: Annotated[
        Path | None, option("Their faces, for a run with --boxes.", note="those that it was trained with")
    ] = None,
    fixes: Annotated[
        Path | None, option("The table to write marked labels to.", note="the run's own, or fixes.csv next to it")
    ] = None,
    host: Annotated[str, option("The address to listen on; others than this make it public.")] = "127.0.0.1",
    port: Annotated[int, option("The port, or the next that is free.")] = 7860,
    device: Annotated[str | None, option(DEVICE, note=DEVICE_DEFAULT)] = None,
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
        say(f"Only uploaded photos can be shown: {viewer.why_not}")
    else:
        say(f"Marked labels are written to {viewer.file}")
    serve(viewer, host, port, lambda address: say(f"Open {address} in a browser; stop it with Ctrl-C"))
