"""The commands that judge one run: score, decide, bound, label-errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastmask.commands.options import JUDGE, NEW_CSV, NEW_PICTURE, Commands, Json, RunArgument, echo, option
from fastmask.system.errors import UsageError
from fastmask.system.terminal import quote, say

app = Commands()


@app.command(rich_help_panel=JUDGE)
def score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A run; or PREDICTIONS, a CSV of predict, and LABELS: a CSV with a column per head, or a folder per "
            "class.",
            metavar="RUN | PREDICTIONS LABELS",
        ),
    ],
    run: Annotated[
        Path | None, option("The run that predicted, for labels that are numbers.", note="by the names of the classes")
    ] = None,
    json: Json = False,
) -> None:
    """Score a run, or predictions against labels.

    Prints macro-F1 and accuracy with 95 % intervals. A run is scored by its
    out-of-fold predictions. Photos of a CSV are matched by path; intervals
    are over persons if LABELS has a column person.
    """
    from fastmask.run.directory import RunDirectory

    if len(paths) == 1 and run is None:
        scores = RunDirectory.load(paths[0]).score()
    elif len(paths) == 2:
        from fastmask.evaluation.truth import score_files

        scores = score_files(paths[0], paths[1], None if run is None else RunDirectory.load(run).heads)
    elif run is not None:
        raise UsageError(f"--run goes with predictions and labels; found {len(paths)} path{'s' * (len(paths) != 1)}.")
    else:
        raise UsageError(f"score takes a run, or predictions and labels; found {len(paths)} paths.")
    echo(scores, json)


@app.command(rich_help_panel=JUDGE)
def decide(
    run: RunArgument,
    same_person: Annotated[
        bool,
        option("Also average over each person: needs the person of every new photo.", "--same-person"),
    ] = False,
    plot: Annotated[Path | None, option("A PNG of each head's reliability to write."), NEW_PICTURE] = None,
    json: Json = False,
) -> None:
    """Compare decision rules: plain, calibrated, f1.

    They are scored on the out-of-fold predictions. Prints the one to use.
    """
    from fastmask.evaluation.decisions import decide as compare
    from fastmask.run.directory import RunDirectory

    loaded = RunDirectory.load(run)
    decisions = compare(loaded, same_person)
    if plot is not None:
        from fastmask.evaluation.plots import plot_reliability

        plot_reliability(decisions.calibration, plot)
        say(f"Written: {plot}")
    echo(decisions, json)
    if decisions.averaging_loses:
        say(f"Next: fastmask decide {quote(str(run))}")
        return
    options = [f"--decision {decisions.best}"] * (decisions.best != loaded.config.decision)
    options += ["--same-person COLUMN"] * same_person
    say(" ".join(["Next: fastmask predict", quote(str(run)), "IMAGES", *options, "--out FILE"]))


@app.command(rich_help_panel=JUDGE)
def bound(
    run: RunArgument,
    head: Annotated[
        str | None, option("The head with the last bound to move.", note="the one trained with --order")
    ] = None,
    bounds: Annotated[
        tuple[float, ...] | None, option("Bounds to try, such as 55,58,60.", note="five below the official")
    ] = None,
    plot: Annotated[Path | None, option("A PNG of the curve to write."), NEW_PICTURE] = None,
    json: Json = False,
) -> None:
    """Score a run trained with --order at several bounds.

    At each bound, out-of-fold predictions are scored against the official classes.
    """
    from fastmask.evaluation.bound import bound_curve

    curve = bound_curve(run, head, bounds)
    if plot is not None:
        from fastmask.evaluation.plots import plot_bound

        plot_bound(curve, plot)
        say(f"Written: {plot}")
    echo(curve, json)


@app.command(rich_help_panel=JUDGE)
def label_errors(
    run: RunArgument,
    out: Annotated[Path | None, option("A table of fixes to write, for fit --fixes."), NEW_CSV] = None,
    heads: Annotated[tuple[str, ...] | None, option("Only these heads, such as gender,mask.", note="all")] = None,
    most: Annotated[int, option("Maximum number of rows per head.", min=0)] = 20,
) -> None:
    """List the labels that the out-of-fold predictions contradict.

    Photos and persons, the most suspicious first.
    """
    from fastmask.evaluation.label_errors import find_label_errors, summary, to_fixes
    from fastmask.run.directory import RunDirectory
    from fastmask.system.files import write_csv

    loaded = RunDirectory.load(run)
    errors = find_label_errors(loaded, heads)
    # a band does not give the number, and most of these labels are right, so only on request
    banded = [head.name for head in loaded.heads if head.bounds and head.weight and heads is None]
    if out is not None:
        write_csv(out, to_fixes([error for error in errors if error.head not in banded]))
        for name in banded:
            say(f"{name} is not in {out}: its classes do not give the number. Name it by --heads to include its rows.")
    typer.echo(summary(errors, most))
    if loaded.config.group == "none":
        say("The split is leaky (--group none): the models have seen these persons, and their wrong labels are hidden.")
    if out is not None:
        say(f"Written: {out}. Look at each photo and keep the rows that are right; then fastmask fit --fixes FILE")
