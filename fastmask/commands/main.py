"""The command line: parse, call, print.

Results go to stdout, everything else to stderr. Exit 0: done; 1: failed; 2: asked wrongly; 130, 143: interrupted by a
Ctrl-C, by SIGTERM. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fastmask import __version__
from fastmask.commands import app as pages
from fastmask.commands import compare as choices
from fastmask.commands import data as photos
from fastmask.commands import export as exports
from fastmask.commands import predict as answers
from fastmask.commands import report as looks
from fastmask.commands import tune as searches
from fastmask.commands.options import (
    AUGMENT,
    DATA,
    DATA_SETS,
    GROUPS,
    LAUNCHING,
    MACHINE,
    MODELS,
    NETWORK,
    RUN,
    TRAIN,
    TRAINING,
    Commands,
    echo,
    join_numbers,
    numbers,
    option,
    with_settings,
)
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError, is_said, one_line
from fastmask.system.files import check_new, check_new_picture
from fastmask.system.terminal import bar, between_words, launched, print_in_any_code_page, quote, say
from fastmask.system.text import in_bytes, shorten

if TYPE_CHECKING:
    from fastmask.config import Config
    from fastmask.data.table import Table
    from fastmask.run.directory import RunDirectory


class _Grouped(TyperGroup):
    """The commands in the order of their groups, as the help shows them."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: GROUPS.index(self.commands[name].rich_help_panel))  # type: ignore[attr-defined]


app = Commands(
    name="fastmask",
    cls=_Grouped,
    help="Train, cross-validate, judge and apply classifiers of several attributes of one photo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# the exit codes that typer gives a Ctrl-C, and that we give what a scheduler sends
INTERRUPTED, TERMINATED = 130, 128 + signal.SIGTERM
# SIGTERM; on Windows also Ctrl-Break and a closed console
_END_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"fastmask {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=TRAIN)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN)
def fit(
    settings: Config,
    out: Annotated[Path | None, option("The run directory. (default: runs/ARCH)", RUN)] = None,
    fold: Annotated[str | None, option("Only these folds, such as 0,3. (default: all)", RUN, rare=True)] = None,
    resume: Annotated[bool, option("Go on with the folds that the run in --out lacks.", RUN, "--resume")] = False,
    overwrite: Annotated[bool, option("Replace the run in --out.", RUN, "--overwrite")] = False,
    dry_run: Annotated[bool, option("Check all, try one step, say what a run would cost.", RUN, "--dry-run")] = False,
    print_config: Annotated[bool, option("Print the effective settings and stop.", RUN, "--print-config")] = False,
    report: Annotated[bool, option("Write a report at the end. (default: yes)", RUN, "--report/--no-report")] = True,
) -> None:
    """Train every fold, and print the out-of-fold score.

    Settings: command line over --set over --config over --recipe over defaults.
    The defaults are the report's recipe with whole persons in each fold.
    """
    if print_config:
        from fastmask.system.files import to_yaml

        # may be redirected to a file, which --config reads as UTF-8
        typer.echo(to_yaml(settings.to_plain(), in_ascii=(sys.stdout.encoding or "utf-8").lower() != "utf-8"), nl=False)
        return
    folds = None if fold is None else numbers("--fold", fold, int)
    _check_out(out, resume, overwrite)
    if resume and out is not None:
        from fastmask.run.directory import resume_config

        settings = resume_config(settings, out)
    if dry_run:
        _rehearse(settings, folds, out or Path("runs") / settings.arch, resume)
        return
    table = _read_table(settings)
    # after the table, which answers at once where something is wrong with it
    from fastmask.api import cross_validate

    if out is None and launched()[1] > 1:
        raise UsageError("Several processes that train together need --out, the run directory.")
    out = out or _free_name(Path("runs") / settings.arch)
    run = cross_validate(table, settings, out=out, fold=folds, overwrite=overwrite, resume=resume)
    if launched()[0] > 0:
        # of several processes the first has it all
        return
    _tell(run, report)


def _tell(run: RunDirectory, report: bool) -> None:
    """Print the score of a run that is finished, and say where it lies and what comes next."""
    typer.echo(str(run.score()))
    optimistic = run.scores["optimistic"]["joint"]["macro_f1"]
    if optimistic is not None:
        say(f"Optimistic figure, each fold's epoch chosen by the fold itself: macro-F1 {optimistic:.4f}")
    say(
        f"Written to {run.path}: oof.csv, scores.json, checkpoints. "
        f"Next: fastmask predict {quote(str(run.path))} IMAGES --out FILE"
    )
    if report:
        _report(run)


def _report(run: RunDirectory) -> None:
    """Write the report of a finished run, which is whole whatever goes wrong with that."""
    try:
        from fastmask.report.write import write_report

        say(f"Report: {write_report(run)}")
    except Exception as error:  # noqa: BLE001 - the work of days must not end in an error of its picture
        why = one_line(error)
        again = f"fastmask report {quote(str(run.path))}"
        _show_warning(
            f"The run is whole, but its report is not written ({why}); to try again: {again}", FastmaskWarning
        )


def _rehearse(settings: Config, folds: Sequence[int] | None, out: Path, resume: bool) -> None:
    table = _read_table(settings)
    from fastmask.inference.teacher import open_teacher
    from fastmask.training.budget import RESERVE, check_whole, given_up, shorten
    from fastmask.training.crossval import reopen
    from fastmask.training.plan import prepare
    from fastmask.training.rehearsal import fitted, rehearse

    check_whole(settings.hours, folds)
    plan = fitted(prepare(table, settings, say=say, open_teacher=open_teacher), say)
    plan.check_folds(folds)
    if settings.hours is not None and not resume:
        asked = plan.config
        plan = shorten(plan, rehearse(plan), settings.hours * 3600 * (1 - RESERVE))
        say(given_up(asked, plan.config))
    chosen = plan.check_folds(folds)
    if resume:
        done = reopen(out, plan).trained_folds
        chosen = [fold for fold in chosen if fold not in done]
    say(between_words(str(plan)))
    typer.echo(str(rehearse(plan, chosen, out)) if chosen else f"{out} has all its folds; nothing is left to train")


def _check_out(out: Path | None, resume: bool, overwrite: bool) -> None:
    """Refuse a directory in use before torch takes its seconds to load."""
    from fastmask.run.files import check_free
    from fastmask.system.lock import check_not_held, held

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other.")
    if resume and out is None:
        raise UsageError("--resume needs --out, the run directory to go on with.")
    if out is not None:
        check_not_held(out)
    if resume and out is not None and not out.exists():
        # somebody who held it may have been killed while he replaced it, and then it is given back
        with held(out):
            pass
    if out is not None and not resume:
        check_free(out, overwrite)


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _read_table(settings: Config) -> Table:
    from fastmask.data.readers import read_data

    return read_data(settings, log=say)


@app.command(rich_help_panel=TRAIN)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN, without=LAUNCHING)
def lr_find(
    settings: Config,
    out: Annotated[Path | None, option("The picture; JSON beside it. (default: lr-find.png)", RUN)] = None,
    fold: Annotated[int, typer.Option(help="Train on all folds but this.", rich_help_panel=RUN)] = 0,
    overwrite: Annotated[bool, option("Replace the files of --out.", RUN, "--overwrite")] = False,
) -> None:
    """Suggest a learning rate with fastai's finder.

    Prints it, and writes the curve as a picture and as JSON.
    """
    out = out or _free_name(Path("lr-find.png"))
    check_new_picture(out, overwrite)
    json = out.with_suffix(".json")
    check_new(json, overwrite)
    table = _read_table(settings)
    from fastmask.inference.teacher import open_teacher
    from fastmask.model.precision import tf32
    from fastmask.system.files import write_json
    from fastmask.training import finder
    from fastmask.training.plan import prepare
    from fastmask.training.rehearsal import fitted

    plan = fitted(prepare(table, settings, say=say, open_teacher=open_teacher), say)
    if plan.teacher is not None:
        plan = plan.taught_by(plan.teacher.answers(plan, say))
    learn = plan.learner(fold)
    say(between_words(f"{plan}; trying {finder.STEPS} learning rates without fold {fold}"))
    with tf32(learn.dls.device, settings.tf32):
        found = finder.lr_find(learn)
    found.plot(out)
    write_json(json, found.to_plain())
    typer.echo(str(found))
    say(f"Written: {out}, {json}. Next: fastmask fit --lr {found.suggestion:.1e} with the same options")


@app.command(rich_help_panel=DATA_SETS)
@with_settings(DATA, without=("data",))
def check(
    settings: Config,
    data: Annotated[str, typer.Argument(help="Contest folder, CSV, a folder a class, or 'sample'.")],
    out: Annotated[Path | None, option("A CSV to write the findings to.")] = None,
    overwrite: Annotated[bool, option("Replace the file in --out.", None, "--overwrite")] = False,
) -> None:
    """Report everything that is wrong with a data set.

    Every photo is read. Exits 1 if training would fail.
    """
    if out is not None:
        check_new(out, overwrite)
    from fastmask.preparation.check import ERROR, check_data, findings_frame, summary
    from fastmask.system.files import write_csv

    with bar("reading") as progress:
        findings = check_data(settings.model_copy(update={"data": data}), progress, log=say)
    if out is not None:
        write_csv(out, findings_frame(findings))
    typer.echo(summary(findings))
    if any(f.level == ERROR for f in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=MACHINE)
@with_settings(DATA, AUGMENT, NETWORK, TRAINING, RUN, without=LAUNCHING)
def bench(
    settings: Config,
    seconds: Annotated[float, typer.Option(help="How long to measure, at least.", rich_help_panel=RUN)] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=RUN)] = False,
) -> None:
    """Measure what limits a run on this machine.

    Prints how close training comes to a plain PyTorch loop,
    and how long a whole run takes.
    """
    table = _read_table(settings)
    from fastmask.inference.teacher import open_teacher
    from fastmask.training.bench import bench as measure
    from fastmask.training.plan import prepare
    from fastmask.training.rehearsal import fitted

    plan = fitted(prepare(table, settings, say=say, open_teacher=open_teacher), say)
    say(between_words(str(plan)))
    measured = measure(plan, seconds)
    echo(measured, json)


@app.command(rich_help_panel=MODELS)
def archs(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as 'vit_*384'.")] = "",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only those with weights.")] = False,
) -> None:
    """List timm's models: input size, parameters, weights."""
    from fastmask.model.archs import list_archs

    for row in list_archs(pattern or None):
        if row.weights or not pretrained:
            typer.echo(str(row))


@app.command(rich_help_panel=TRAIN)
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Runs whose folds were trained apart.", metavar="RUN RUN ...")],
    out: Annotated[Path, typer.Option(help="The run directory to make.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write a report at the end. (default: yes)", show_default=False)
    ] = True,
) -> None:
    """Join folds that were trained apart (fit --fold) into one run."""
    from fastmask.run.merge import merge_runs

    run = merge_runs(runs, out, overwrite=overwrite)
    _tell(run, report)


caches = Commands(no_args_is_help=True, help="List or clear cached photos and features.")
app.add_typer(caches, name="cache", rich_help_panel=MACHINE)
_CACHE_DIR = Annotated[
    Path | None, option("The folder that runs and screenings were given. (default: the user's cache)")
]


@caches.command("list")
def list_(cache_dir: _CACHE_DIR = None) -> None:
    """List the caches, the newest first: name, photos, size, when it was made, what it holds."""
    from fastmask.data.cache_files import list_caches
    from fastmask.system.files import cache_home

    found = list_caches(cache_dir)
    for cache in found:
        typer.echo(str(cache))
    say(f"{cache_dir or cache_home()}: caches {len(found)}, {in_bytes(sum(c.bytes for c in found))}")


@caches.command("clear")
def clear(
    names: Annotated[
        list[str] | None, typer.Argument(help="Caches by name. (default: all)", show_default=False)
    ] = None,
    cache_dir: _CACHE_DIR = None,
) -> None:
    """Remove caches; the next run decodes its photos anew, the next screening computes its features."""
    from fastmask.data.cache_files import clear_cache

    gone = clear_cache(names or (), cache_dir)
    typer.echo(f"caches removed: {len(gone)}, {in_bytes(sum(c.bytes for c in gone))}")


@app.command(rich_help_panel=MACHINE)
def doctor() -> None:
    """Show what this machine has, and try a short run on it.

    The run takes about ten seconds. Exits 1 if it fails.
    """
    from fastmask.commands.doctor import examine

    for line in examine():
        typer.echo(line)


@app.command(rich_help_panel=DATA_SETS)
def sample(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    persons: Annotated[int, typer.Option(help="Persons to train on, seven photos each.")] = 160,
    seed: Annotated[int, typer.Option(help="Another seed draws other people.")] = 0,
) -> None:
    """Draw people in the contest's format, to try fastmask."""
    from fastmask.data.sample import write_sample

    written = write_sample(folder, persons, seed)
    typer.echo(f"{written}: {persons * 7} photos of {persons} persons in train, and others with answers.csv in eval")


app.add_typer(answers.app)
app.add_typer(choices.app)
app.add_typer(exports.app)
app.add_typer(looks.app)
app.add_typer(photos.app)
app.add_typer(pages.app)
app.add_typer(searches.app)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **kwargs: Any) -> None:
    if issubclass(category, FastmaskWarning):
        say(f"fastmask: warning: {message}", important=True)
    else:
        _plain_warning(message, category, *where, **kwargs)


_plain_warning = warnings.showwarning


def _end_in_peace() -> None:
    """What was asked for is done or told by now: a signal while Python clears up must not change the exit code."""
    for number in (signal.SIGINT, *_END_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake becomes one sentence on stderr and an exit code."""
    warnings.showwarning = _show_warning
    print_in_any_code_page()
    # so that temporary files go, and a lock with them
    for number in _END_SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(TERMINATED))
    # Intel's Fortran runtime, part of some SciPy builds, ends the process before Python handles Ctrl-C
    os.environ.setdefault("FOR_DISABLE_CONSOLE_CTRL_HANDLER", "1")
    # torch and pandas speak of fastai's and timm's own code, about which a user can do nothing
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
    try:
        app(join_numbers(sys.argv[1:] if arguments is None else arguments))
    except FastmaskError as error:
        # of several processes all find what was asked wrongly, and one says it
        if launched()[0] == 0 or not isinstance(error, UsageError):
            say(f"fastmask: error: {error}", important=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # a full disk, a folder that vanished, a name too long: the system's own words and the file
        place = str(error.filename or "")
        say(
            f"fastmask: error: {error.strerror or error}{f': {shorten(place, 1000)}' if place else ''}.", important=True
        )
        sys.exit(1)
    except MemoryError:
        say("fastmask: error: Out of memory; use smaller photos or a smaller --bs.", important=True)
        sys.exit(1)
    except SystemExit as done:
        if done.code in (INTERRUPTED, TERMINATED) and not is_said(done):
            say("fastmask: interrupted", important=True)
        raise
    finally:
        # registered last, so called first: before torch's own, which a second Ctrl-C would break off with a traceback
        atexit.unregister(_end_in_peace)
        atexit.register(_end_in_peace)
