"""The command that searches for settings: tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmask.commands.options import (
    AUGMENT,
    DATA,
    NETWORK,
    RUN,
    TRAIN,
    TRAINING,
    Commands,
    echo,
    option,
    with_settings,
)
from fastmask.system.errors import UsageError
from fastmask.system.terminal import say

if TYPE_CHECKING:
    from fastmask.config import Config

app = Commands()
_SEARCH = "Search"


@app.command(rich_help_panel=TRAIN)
@with_settings(
    DATA, AUGMENT, NETWORK, TRAINING, RUN, without=("hours", "refit", "launcher", "address", "per_fold", "fetch")
)
def tune(
    settings: Config,
    out: Annotated[Path, option("The folder of the search, and of the runs in it.", _SEARCH)],
    space: Annotated[
        Path | None, option("A YAML: setting: {low: , high: , log: , step: }, or choices.", _SEARCH)
    ] = None,
    trials: Annotated[int | None, option("Trials in all. (default: 30)", _SEARCH)] = None,
    hours: Annotated[float | None, option("Begin no trial that would not end within these hours.", _SEARCH)] = None,
    pruner: Annotated[
        str | None, option("median: end trials that are worse than half of those before; none.", _SEARCH)
    ] = None,
    keep: Annotated[int | None, option("Keep the checkpoints of the best so many. (default: 1)", _SEARCH)] = None,
    resume: Annotated[bool, option("Go on with the search in --out, or join it.", _SEARCH, "--resume")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=RUN)] = False,
) -> None:
    """Search for the settings with the best score, with Optuna.

    The score is the out-of-fold macro-F1. Each trial is a run in --out.
    Options of fit apply to every trial; settings in --space are searched.
    """
    from fastmask.search.space import read_space
    from fastmask.search.spec import PRUNERS, check_new_search, resume_config

    if pruner is not None and pruner not in PRUNERS:
        raise UsageError(f"There is no pruner {pruner!r}; expected one of {', '.join(PRUNERS)}.")
    if space is None and not resume:
        raise UsageError("A search needs --space, a YAML of settings and the values that each may take.")
    given = None if space is None else read_space(space)
    if resume:
        settings = resume_config(settings, out)
    else:
        check_new_search(out)
    from fastmask.data.readers import read_data

    table = read_data(settings, log=say)
    # after the table, which answers at once where something is wrong with it
    from fastmask.search.tune import tune as search

    tuned = search(table, given, settings, out=out, trials=trials, hours=hours, pruner=pruner, keep=keep, resume=resume)
    echo(tuned, json)
    pictures = "history.png, importance.png" if tuned.importance else "history.png"
    say(f"Written to {out}: trials.csv, best.yaml, {pictures}. Next: {tuned.next}")
