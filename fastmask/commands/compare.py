"""The commands that compare results: compare, diff, ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import JUDGE, NEW_CSV, NEW_PICTURE, Commands, Json, echo, option
from fastmask.system.terminal import say

app = Commands()

_LEDGER = Path("runs") / "ledger.csv"
_Ledger = Annotated[Path, option("The ledger.")]


@app.command(rich_help_panel=JUDGE)
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A submission.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another on the same photos.", show_default=False)],
    runs: Annotated[
        tuple[Path, Path] | None, option("The runs that predicted them.", note="as noted in the ledger")
    ] = None,
    ledger: Annotated[Path | None, option("The ledger.", note=str(_LEDGER))] = None,
    out: Annotated[Path | None, option("A CSV of the photos that differ to write."), NEW_CSV] = None,
    json: Json = False,
) -> None:
    """Show where two submissions differ, and the expected change.

    The change of score is estimated from their runs' out-of-fold predictions.
    """
    from fastmask.evaluation.diff import diff_files, expect_files
    from fastmask.run.directory import RunDirectory

    found = diff_files(a, b, None if runs is None else RunDirectory.load(runs[0]).heads)
    expected = expect_files(a, b, runs, ledger or (_LEDGER if _LEDGER.exists() else None))
    if out is not None:
        found.to_csv(out)
    if json:
        from json import dumps

        typer.echo(dumps({**found.to_plain(), "expected": expected.to_plain()}, indent=2))
    else:
        typer.echo(f"{found}\n\n{expected}")


ledgers = Commands(no_args_is_help=True, help="Show, add and plot submissions and leaderboard scores.")
app.add_typer(ledgers, name="ledger", rich_help_panel=JUDGE)


@ledgers.command("show")
def show(ledger: _Ledger = _LEDGER) -> None:
    """Show the submissions, the newest last, and how well OOF predicts the leaderboard."""
    from fastmask.evaluation.ledger import read_ledger, summary

    typer.echo(summary(read_ledger(ledger)))


@ledgers.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="The submission, whatever its name.", show_default=False)],
    public: Annotated[float, option("The leaderboard's macro-F1, such as 0.757.")],
    accuracy: Annotated[float | None, option("The leaderboard's accuracy, such as 79.476.")] = None,
    text: Annotated[str, option("A note to keep with it.", "--note")] = "",
    ledger: _Ledger = _LEDGER,
    overwrite: Annotated[bool, option("Replace the score in the ledger.", "--overwrite")] = False,
) -> None:
    """Add a submission's leaderboard score."""
    from fastmask.evaluation.ledger import add_public, read_ledger, summary

    if not add_public(ledger, file, public, accuracy, text, overwrite).run:
        say(f"{ledger} has no run for {file}; it is added without a run.")
    typer.echo(summary(read_ledger(ledger)))


@ledgers.command("plot")
def plot(out: Annotated[Path, option("The PNG to write."), NEW_PICTURE], ledger: _Ledger = _LEDGER) -> None:
    """Draw OOF against leaderboard."""
    from fastmask.evaluation.ledger import read_ledger
    from fastmask.evaluation.plots import plot_ledger

    plot_ledger(read_ledger(ledger), out)
    typer.echo(str(out))


@app.command(rich_help_panel=JUDGE)
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, or CSVs of other predictions of their photos; the first is the baseline.",
            metavar="RUN RUN ...",
        ),
    ],
    names: Annotated[tuple[str, ...] | None, option("Names to show, such as base,ema.", note="their own")] = None,
    draws: Annotated[int, option("Bootstrap samples of persons for intervals and p.")] = 2000,
    plot: Annotated[Path | None, option("A PNG of scores and differences to write."), NEW_PICTURE] = None,
    out: Annotated[Path | None, option("A CSV to write, one row per result."), NEW_CSV] = None,
    json: Json = False,
) -> None:
    """Compare results on the same photos and labels.

    Prints scores, classes, cost, and which differences are beyond noise.
    """
    from fastmask.evaluation.comparison import compare as judge

    comparison = judge(results, names, draws)
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
