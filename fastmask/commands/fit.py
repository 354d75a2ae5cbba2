"""The commands that train: fit, lr-find, merge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmask.commands.options import (
    NEW_PICTURE,
    TRAIN,
    Commands,
    NewRun,
    Overwrite,
    option,
    with_settings,
)
from fastmask.config import AUGMENT, DATA, NETWORK, RUN, TRAINING, Config, Kind
from fastmask.system.errors import UsageError, one_line
from fastmask.system.files import check_new
from fastmask.system.terminal import launcher_rank, quote, say, say_warning, wrap_words

if TYPE_CHECKING:
    from fastmask.run.directory import RunDirectory
    from fastmask.training.plan import Plan

app = Commands()

_Report = Annotated[bool, option("Write a report at the end.", "--report/--no-report")]


@app.command(rich_help_panel=TRAIN)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN)
def fit(
    settings: Config,
    out: Annotated[Path | None, option("The run directory.", note="runs/ARCH")] = None,
    fold: Annotated[tuple[int, ...] | None, option("Only these folds, such as 0,3.", note="all", rare=True)] = None,
    resume: Annotated[bool, option("Resume the run in --out: train the folds that it lacks.", "--resume")] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, option("Check everything, try one step, estimate the run's cost.", "--dry-run")] = False,
    print_config: Annotated[bool, option("Print the effective settings and exit.", "--print-config")] = False,
    report: _Report = True,
) -> None:
    """Train every fold, and print the out-of-fold score.

    Settings: command line over --set over --config over --recipe over defaults.
    The defaults are those of the recipe report, with the official age bounds.
    """
    if print_config:
        from fastmask.system.yaml_text import to_yaml

        # may be redirected to a file, which --config reads as UTF-8
        typer.echo(to_yaml(settings.to_plain(), in_ascii=(sys.stdout.encoding or "utf-8").lower() != "utf-8"), nl=False)
        return
    _check_out(out, resume, overwrite)
    if resume and out is not None:
        from fastmask.run.directory import resume_config

        settings = resume_config(settings, out)
    if dry_run:
        _rehearse(settings, fold, out or Path("runs") / settings.arch, resume)
        return
    from fastmask.data.readers import read_data

    table = read_data(settings, log=say)
    # after the table, which answers at once where something is wrong with it
    from fastmask.api import cross_validate

    if out is None and launcher_rank()[1] > 1:
        raise UsageError("Several processes that train together need --out, the run directory.")
    out = out or _free_name(Path("runs") / settings.arch)
    run = cross_validate(table, settings, out=out, fold=fold, overwrite=overwrite, resume=resume)
    # of several processes only the first has all results
    if launcher_rank()[0] == 0:
        _show(run, report)


def _show(run: RunDirectory, report: bool) -> None:
    """Print the score of a finished run, where it is, and the next step."""
    typer.echo(str(run.score()))
    optimistic = run.scores["optimistic"]["joint"]["macro_f1"]
    if optimistic is not None:
        say(f"Optimistic figure, each fold's epoch chosen by the fold itself: macro-F1 {optimistic:.4f}")
    _advise(run)
    say(
        f"Written to {run.path}: oof.csv, scores.json, checkpoints. "
        f"Next: fastmask predict {quote(str(run.path))} IMAGES --out FILE"
    )
    if report:
        _report(run)


def _advise(run: RunDirectory) -> None:
    """Print what would most likely raise the score of a finished run, which stays complete whatever goes wrong here."""
    try:
        from fastmask.evaluation.advice import advise

        for advice in advise(run):
            say(f"To raise the score: {advice}")
    except Exception as error:  # noqa: BLE001 - days of training must not end in an error of the advice
        say_warning(f"The run is complete, but there is no advice on it ({one_line(error)})")


def _report(run: RunDirectory) -> None:
    """Write the report of a finished run, which stays complete whatever goes wrong here."""
    try:
        from fastmask.report.write import write_report

        say(f"Report: {write_report(run)}")
    except Exception as error:  # noqa: BLE001 - days of training must not end in an error of the report
        why = one_line(error)
        again = f"fastmask report {quote(str(run.path))}"
        say_warning(f"The run is complete, but its report is not written ({why}); to try again: {again}")


def _rehearse(settings: Config, folds: Sequence[int] | None, out: Path, resume: bool) -> None:
    from fastmask.training.budget import RESERVE, check_all_folds, describe_cost, shorten_plan
    from fastmask.training.description import describe_plan
    from fastmask.training.near_copies import note_near_copies
    from fastmask.training.rehearsal import rehearse
    from fastmask.training.resume import reopen_run

    check_all_folds(settings, folds)
    plan = make_plan(settings)
    plan = plan if resume else note_near_copies(plan, say)
    plan.check_folds(folds)
    if settings.limit_seconds is not None and not resume:
        wanted = plan.config
        plan = shorten_plan(plan, rehearse(plan), settings.limit_seconds * (1 - RESERVE))
        say(describe_cost(wanted, plan.config))
    chosen = plan.check_folds(folds)
    if resume:
        done = reopen_run(out, plan).trained_folds
        chosen = [fold for fold in chosen if fold not in done]
    say(wrap_words(describe_plan(plan)))
    typer.echo(str(rehearse(plan, chosen, out)) if chosen else f"{out} has all its folds; nothing is left to train")


def make_plan(settings: Config) -> Plan:
    """The plan of a run, with what is auto chosen: its batch size, and whether its network is compiled."""
    from fastmask.data.readers import read_data

    table = read_data(settings, log=say)
    # after the table, which answers at once where something is wrong with it
    import torch

    from fastmask.inference.teacher import open_teacher
    from fastmask.training.compiling import choose_compile
    from fastmask.training.rehearsal import fit_batch_size
    from fastmask.training.setup import prepare

    torch.set_num_threads(settings.threads or torch.get_num_threads())
    plan = fit_batch_size(prepare(table, settings, say=say, open_teacher=open_teacher), say)
    return choose_compile(plan, say=say)


def _check_out(out: Path | None, resume: bool, overwrite: bool) -> None:
    """Refuse a directory in use before torch is loaded, which takes seconds."""
    from fastmask.run.files import check_free
    from fastmask.system.lock import check_unlocked, lock_run

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other.")
    if resume and out is None:
        raise UsageError("--resume needs --out, the run directory to resume.")
    if out is not None:
        check_unlocked(out)
    if resume and out is not None and not out.exists():
        # restores the old run if a process was killed while replacing it
        with lock_run(out):
            pass
    if out is not None and not resume:
        check_free(out, overwrite)


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(2, 1000))]
    return next(name for name in names if not name.exists())


@app.command(rich_help_panel=TRAIN)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN, without=Config.of_kind(Kind.LAUNCHING))
def lr_find(
    settings: Config,
    out: Annotated[Path | None, option("A PNG to write; JSON next to it.", note="lr-find.png"), NEW_PICTURE] = None,
    fold: Annotated[int, option("Train on all folds but this one.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Suggest a learning rate with fastai's finder.

    Prints it, and writes the curve as a picture and as JSON.
    """
    out = out or _free_name(Path("lr-find.png"))
    json = out.with_suffix(".json")
    check_new(json, overwrite)
    plan = make_plan(settings)
    from fastmask.model.precision import tf32
    from fastmask.system.files import write_json
    from fastmask.training import finder
    from fastmask.training.description import describe_plan

    if plan.teacher is not None:
        plan = plan.soften_labels(plan.teacher.predict(plan, say))
    learn = plan.learner(fold)
    say(wrap_words(f"{describe_plan(plan)}; trying {finder.STEPS} learning rates without fold {fold}"))
    with tf32(learn.dls.device, settings.tf32):
        found = finder.lr_find(learn)
    found.plot(out)
    write_json(json, found.to_plain())
    typer.echo(str(found))
    say(f"Written: {out}, {json}. Next: fastmask fit --lr {found.suggestion:.1e} with the same options")


@app.command(rich_help_panel=TRAIN)
def merge(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs that were trained with different --fold.", metavar="RUN RUN ...")
    ],
    out: NewRun,
    overwrite: Overwrite = False,
    report: _Report = True,
) -> None:
    """Join folds that were trained apart (fit --fold) into one run."""
    from fastmask.run.merge import merge_runs

    _show(merge_runs(runs, out, overwrite=overwrite), report)
