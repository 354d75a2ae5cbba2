"""The command line on what to choose: results beside each other, bodies before they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmask.commands.options import (
    DATA,
    JUDGE,
    LAUNCHING,
    MODELS,
    NETWORK,
    RUN,
    Commands,
    echo,
    option,
    with_settings,
    words,
)
from fastmask.system.errors import UsageError
from fastmask.system.files import check_new, check_new_picture, check_parent
from fastmask.system.terminal import bar, say

if TYPE_CHECKING:
    from fastmask.config import Config

app = Commands()

_DRAWS = 2000
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace the files to write.")]
# settings of the panels of `screen` that it has no use for, or has in its own way
_TRAINING_ALONE = (
    *("extra", "extra_images", "extra_weight", "pseudo", "pseudo_weight", "pseudo_least", "drop", "sampler"),
    *("teacher", "teacher_weight", "teacher_temperature"),
    *("arch", "weights", "drop_rate", "drop_path"),
    *("freeze", "unfreeze", "layer_decay", "save_every", "tensorboard", "wandb", "mlflow", "compile"),
    *LAUNCHING,
)


@app.command(rich_help_panel=JUDGE)
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, and CSVs of others' answers to their photos; the first is the baseline.", metavar="RUN RUN ..."
        ),
    ],
    names: Annotated[str | None, option("What to call them, such as base,ema. (default: their own names)")] = None,
    draws: Annotated[int, typer.Option(help="Draws of persons behind intervals and p.")] = _DRAWS,
    plot: Annotated[Path | None, option("A PNG of scores and differences to write.")] = None,
    out: Annotated[Path | None, option("A CSV to write, a row a result.")] = None,
    json: _JSON = False,
    overwrite: _OVERWRITE = False,
) -> None:
    """Compare results on the same photos and labels.

    Prints scores, classes, cost, and which differences are beyond noise.
    """
    if plot is not None:
        check_new_picture(plot, overwrite, *results)
    if out is not None:
        check_new(out, overwrite, *results)
    from fastmask.evaluation.comparison import compare as beside

    comparison = beside(results, None if names is None else words(names), draws)
    if plot is not None:
        comparison.plot(plot)
        say(f"Written: {plot}")
    if out is not None:
        comparison.to_csv(out)
        say(f"Written: {out}")
    if json:
        echo(comparison, json)
    else:
        from shutil import get_terminal_size

        typer.echo(comparison.text(get_terminal_size((100, 24)).columns))


@app.command(rich_help_panel=MODELS)
@with_settings(DATA, NETWORK, RUN, without=_TRAINING_ALONE)
def screen(
    settings: Config,
    archs: Annotated[str, option("timm models to rank, such as resnet50,convnext_tiny.", NETWORK)],
    weights: Annotated[
        list[str] | None,
        option("Start an arch from this file; may be repeated.", NETWORK, "--weights", metavar="ARCH=FILE"),
    ] = None,
    bs: Annotated[int, typer.Option(help="Photos a batch.", rich_help_panel=RUN, min=1, max=65536)] = 64,
    out: Annotated[Path | None, option("A CSV of the ranking to write.", RUN)] = None,
    oof: Annotated[Path | None, option("A folder to write each body's OOF probabilities to, for compare.", RUN)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=RUN)] = False,
    overwrite: Annotated[bool, option("Replace the files to write.", RUN, "--overwrite")] = False,
) -> None:
    """Rank models by linear heads on their frozen features.

    Scores are out of fold, and take minutes, not days. Features are kept, so
    another model added later costs only its own time.
    """
    names = words(archs)
    for file in (out, *([] if oof is None else [oof / f"{name}.csv" for name in names])):
        if file is not None:
            check_new(file, overwrite)
    if oof is not None:
        check_parent(oof / "any.csv")
    files = _files_of(weights or [])
    from fastmask.data.readers import read_data

    table = read_data(settings, log=say)
    # after the table, which answers at once where something is wrong with it
    from fastmask.search.screen import screen as rank

    with bar("features") as progress:
        screening = rank(table, names, settings, weights=files, bs=bs, say=say, progress=progress)
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
            raise UsageError(f"--weights {pair}: {arch} has {files[arch]} already; name one file an arch.")
        files[arch] = file
    return files
