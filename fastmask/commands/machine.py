"""The commands on this machine: bench, doctor, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.fit import make_plan
from fastmask.commands.options import MACHINE, Commands, Json, echo, option, with_settings
from fastmask.config import AUGMENT, DATA, NETWORK, RUN, TRAINING, Config, Kind
from fastmask.system.terminal import say, wrap_words
from fastmask.system.text import in_bytes

app = Commands()


@app.command(rich_help_panel=MACHINE)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN, without=Config.of_kind(Kind.LAUNCHING))
def bench(
    settings: Config, seconds: Annotated[float, option("Minimum time to measure, in seconds.")] = 20, json: Json = False
) -> None:
    """Measure what limits a run on this machine.

    Prints how close training comes to a plain PyTorch loop,
    and how long a whole run takes.
    """
    plan = make_plan(settings)
    from fastmask.training.bench import bench as measure
    from fastmask.training.description import describe_plan

    say(wrap_words(describe_plan(plan)))
    echo(measure(plan, seconds), json)


@app.command(rich_help_panel=MACHINE)
def doctor() -> None:
    """Show what this machine has, and try a short run on it.

    The run takes about ten seconds. Exits 1 if it fails.
    """
    from fastmask.commands.doctor import examine

    for line in examine():
        typer.echo(line)


caches = Commands(no_args_is_help=True, help="List or clear cached photos and what was found in them.")
app.add_typer(caches, name="cache", rich_help_panel=MACHINE)
_CacheDir = Annotated[Path | None, option("The --cache-dir of runs and screenings.", note="the user's cache")]


@caches.command("list")
def list_(cache_dir: _CacheDir = None) -> None:
    """List the caches, the newest first: name, photos, size, when it was made, what it holds."""
    from fastmask.data.cache_files import list_caches
    from fastmask.system.files import cache_home

    found = list_caches(cache_dir)
    for cache in found:
        typer.echo(str(cache))
    say(f"{cache_dir or cache_home()}: caches {len(found)}, {in_bytes(sum(c.bytes for c in found))}")


@caches.command("clear")
def clear(
    names: Annotated[list[str] | None, typer.Argument(help="Caches by name.", show_default="all")] = None,
    cache_dir: _CacheDir = None,
) -> None:
    """Remove caches; the next run reads and decodes its photos again, the next screening computes its features."""
    from fastmask.data.cache_files import clear_cache

    gone = clear_cache(names or (), cache_dir)
    typer.echo(f"caches removed: {len(gone)}, {in_bytes(sum(c.bytes for c in gone))}")
