"""The command that searches for settings: tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastmask.commands.options import TRAIN, Commands, Json, echo, option, with_settings
from fastmask.config import AUGMENT, DATA, NETWORK, RUN, TRAINING, Config, Kind
from fastmask.system.errors import UsageError
from fastmask.system.terminal import say

app = Commands()
_SEARCH = "Search"


@app.command(rich_help_panel=TRAIN)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN, without=Config.of_kind(Kind.RESTATED | Kind.UNSCORED))
def tune(
    settings: Config,
    out: Annotated[Path, option("The folder of the search and of its runs.", panel=_SEARCH)],
    space: Annotated[
        Path | None, option("A YAML file: setting: {low: , high: , log: , step: }, or choices.", panel=_SEARCH)
    ] = None,
    trials: Annotated[int | None, option("Trials in total.", panel=_SEARCH, note="30")] = None,
    hours: Annotated[float | None, option("Time limit: start no trial that would end after it.", panel=_SEARCH)] = None,
    pruner: Annotated[
        str | None,
        option("median stops trials that are worse than half of the earlier ones; or none.", panel=_SEARCH),
    ] = None,
    keep: Annotated[int | None, option("Best trials to keep checkpoints of.", panel=_SEARCH, note="1")] = None,
    resume: Annotated[bool, option("Resume the search in --out, or join it.", "--resume", panel=_SEARCH)] = False,
    json: Json = False,
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
    # after the table, which fails fast if it has errors
    from fastmask.search.tune import tune as search

    tuned = search(table, given, settings, out=out, trials=trials, hours=hours, pruner=pruner, keep=keep, resume=resume)
    echo(tuned, json)
    pictures = "history.png, importance.png" if tuned.importance else "history.png"
    say(f"Written to {out}: trials.csv, best.yaml, {pictures}. Next: {tuned.next}")
