"""The commands that choose a model before it is trained: archs, screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import MODELS, NEW_CSV, Commands, Json, Overwrite, echo, option, with_settings
from fastmask.config import DATA, NETWORK, RUN, Config, Kind
from fastmask.system.errors import UsageError
from fastmask.system.files import check_new, check_parent
from fastmask.system.terminal import progress_bar, say

app = Commands()


@app.command(rich_help_panel=MODELS)
def archs(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as 'vit_*384'.")] = "",
    pretrained: Annotated[bool, option("Only models with pretrained weights.", "--pretrained")] = False,
) -> None:
    """List timm's models: input size, parameters, weights."""
    from fastmask.model.archs import list_archs

    for row in list_archs(pattern or None):
        if row.weights or not pretrained:
            typer.echo(str(row))


@app.command(rich_help_panel=MODELS)
@with_settings(DATA, NETWORK, RUN, without=["arch", "weights", *Config.of_kind(Kind.TRAINING)])
def screen(
    settings: Config,
    archs: Annotated[tuple[str, ...], option("timm models to rank, such as resnet50,convnext_tiny.", panel=NETWORK)],
    weights: Annotated[
        list[str] | None,
        option("Start an arch from this file; may be repeated.", panel=NETWORK, metavar="ARCH=FILE"),
    ] = None,
    bs: Annotated[int, option("Photos per batch.", min=1, max=65536)] = 64,
    out: Annotated[Path | None, option("A CSV of the ranking to write."), NEW_CSV] = None,
    oof: Annotated[Path | None, option("A folder to write each model's OOF probabilities to, for compare.")] = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Rank models by linear heads on their frozen features.

    Scores are out of fold, and take minutes, not days. Features are cached, so
    a model that is added later costs only its own time.
    """
    if oof is not None:
        for name in archs:
            check_new(oof / f"{name}.csv", overwrite)
        check_parent(oof / "any.csv")
    files = _files_of(weights or [])
    from fastmask.data.readers import read_data

    table = read_data(settings, log=say)
    # after the table, which fails fast if it has errors
    from fastmask.search.screen import screen as rank

    with progress_bar("features") as progress:
        screening = rank(table, archs, settings, weights=files, bs=bs, say=say, progress=progress)
    if out is not None:
        screening.to_csv(out)
        say(f"Written: {out}")
    if oof is not None:
        say(f"Written: {', '.join(map(str, screening.write_oof(oof)))}. Next: fastmask compare RUN FILE")
    echo(screening, json)


def _files_of(pairs: Sequence[str]) -> dict[str, str]:
    """ARCH=FILE pairs as {arch: file}; raises UsageError for anything else, and for an arch twice."""
    files: dict[str, str] = {}
    for pair in pairs:
        arch, equals, file = pair.partition("=")
        if not arch or not equals or not file:
            raise UsageError(f"--weights {pair}: expected ARCH=FILE, such as resnet50=resnet50.safetensors.")
        if arch in files:
            raise UsageError(f"--weights {pair}: {arch} has {files[arch]} already; give one file per arch.")
        files[arch] = file
    return files
