"""The command that shows the manual: guide."""

from __future__ import annotations

import shutil
import sys
from io import StringIO
from typing import Annotated

import click
import typer

from fastmask.commands.options import MANUAL, Commands, option
from fastmask.guide.chapters import CHAPTERS, read_chapter, search, title_of
from fastmask.system.errors import UsageError

# longer lines are hard to read
_WIDEST = 120

app = Commands()


@app.command(rich_help_panel=MANUAL)
def guide(
    chapter: Annotated[str | None, typer.Argument(help="A chapter.", show_default="lists the chapters")] = None,
    words: Annotated[str | None, option("Print the lines that have these words.", "--search")] = None,
) -> None:
    """Read the manual.

    A terminal shows a chapter in a pager; elsewhere its Markdown is printed.
    """
    if words is not None:
        if chapter is not None:
            raise UsageError("--search looks through all chapters; leave the chapter out.")
        found = search(words)
        if not found:
            raise UsageError(f"The guide does not have {words!r}; fastmask guide lists its chapters.")
        for line in found:
            typer.echo(str(line))
    elif chapter is None:
        for name in CHAPTERS:
            typer.echo(f"{name:14}{title_of(name)}")
    elif sys.stdout.isatty():
        click.echo_via_pager(_rendered(read_chapter(chapter)), color=True)
    else:
        typer.echo(read_chapter(chapter), nl=False)


def _rendered(markdown: str) -> str:
    """Markdown as text with the colours of a terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    out = StringIO()
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    Console(file=out, force_terminal=True, width=width).print(Markdown(markdown, hyperlinks=False))
    return out.getvalue()
