"""Resume: the command that resumes a run, and the settings and machine that it needs for the same result."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from io import StringIO
from pathlib import Path

import torch

from fastmask.config import MOST_THREADS, Config, Kind, spell_option
from fastmask.data.table import SAME_AS
from fastmask.run.directory import RunDirectory, resume_command
from fastmask.run.files import FOLDS, PIPELINES
from fastmask.run.identity import NOT_COMPARED, differing_settings, differing_start
from fastmask.system.errors import FastmaskError, UnreadableError, UsageError, mark_reported
from fastmask.system.files import frame_to_csv
from fastmask.system.terminal import quote
from fastmask.system.text import shorten
from fastmask.training.fold import clear_fold
from fastmask.training.plan import Plan
from fastmask.training.progress.display import Log


@contextmanager
def suggest_resume(command: str, view: Log) -> Iterator[None]:
    """A block of training; messages about interruptions and errors of files include the command that resumes it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        view.say(f"Interrupted. To resume: {command}", important=True)
        mark_reported(error)
        raise
    except UnreadableError as error:
        raise UnreadableError(f"{error} Once it is back, resume: {command}") from error
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise FastmaskError(f"{error.strerror or error}{where}. Once that is fixed: {command}") from error


def spell_resume(run: RunDirectory, plan: Plan, fold: Sequence[int] | None) -> str:
    """The command that resumes the same folds, with the options that are not saved in the run."""
    if plan.loss_func is not None or plan.opt_func is not None:
        return f"cross_validate(..., out={str(run.path)!r}, resume=True)"
    options = [] if fold is None else ["--fold", ",".join(map(str, fold))]
    restated = Config.of_kind(Kind.RESTATED)
    for name in NOT_COMPARED:
        value = getattr(plan.config, name)
        saved = plan.config.default(name) if name in restated else getattr(run.config, name)
        if value not in (None, saved):
            options += spell_option(name, value)
    return resume_command(run.path, *options)


@contextmanager
def restore_threads(run: RunDirectory, plan: Plan, say: Callable[[str], None]) -> Iterator[None]:
    """A block in which a CPU has as many threads as when the run was started, since their number changes rounding.

    Logs other differences of the machine.
    """
    then, now = run.environment, plan.environment
    differing = [name for name in ("device", "packages") if then.get(name) != now[name]]
    differing += ["processes"] if then.get("processes", 1) != now["processes"] else []
    if differing:
        say(f"Other {' and '.join(differing)} than when {run.path} was started: the result may differ in its last bits")
    with saved_threads(run.path, say) if now["device"] == "cpu" else nullcontext():
        yield


@contextmanager
def saved_threads(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A block with the threads that the run at `path` was started with, if there is one."""
    before, count = torch.get_num_threads(), None
    with suppress(FastmaskError):
        # what is wrong with the run is reported where it is opened
        count = RunDirectory.load(path).environment.get("threads")
    if isinstance(count, int) and 0 < count <= MOST_THREADS and count != before:
        say(f"Torch's threads: {count}, as {path} was started with")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reopen_run(out: Path, plan: Plan) -> RunDirectory:
    """The run to resume; raises UsageError naming a difference that would change the result."""
    run = RunDirectory.load(out)
    if run.soup is not None:
        command = ["--weights", str(out), "--folds-file", str(out / FOLDS), "--out", "ANOTHER"]
        raise UsageError(
            f"{out} is a soup, which is not trained; to train on from it: {' '.join(map(quote, command))}."
        )
    check_same(run, plan)
    for fold in run.trained_folds:
        # if the process was killed when it had just finished the fold
        clear_fold(run, fold)
    return run


def check_same(run: RunDirectory, plan: Plan) -> None:
    """Raise UsageError naming a difference between a run and a plan that would change the result."""
    out = run.path
    differing = differing_settings(run.config, plan.config)
    if differing:
        raise _differing_error(run, plan, differing)
    if run.pipelines != plan.pipelines:
        raise UsageError(
            f"{out} was started with other pipelines, see {out / PIPELINES}; start anew with another --out."
        )
    buffer = StringIO()
    frame_to_csv(plan.folds_frame, buffer)
    then, now = (out / FOLDS).read_text(encoding="utf-8"), buffer.getvalue()
    if run.heads != plan.table.heads:
        raise UsageError(f"{out} was started with other heads or classes than there are now; name another --out.")
    changes = _describe_changes(_rows(then), _rows(now))
    if changes:
        raise UsageError(
            f"{out} was started with other photos or labels than are there now: {changes}. Undo that, or start anew "
            "with another --out."
        )
    if then != now:
        raise UsageError(
            f"{out} was started with other folds than are made now, such as by another version of fastmask or "
            f"scikit-learn; resume with its own: --folds-file {out / FOLDS}."
        )
    differing = differing_start(run.start, plan.environment["start"])
    if differing:
        raise UsageError(
            f"{out} was started with another {' and another '.join(differing)} than there is now; --resume needs the "
            "same, another --out starts anew."
        )


def _differing_error(run: RunDirectory, plan: Plan, differing: Sequence[str]) -> UsageError:
    """The error of settings that differ: what they were and are, and how to train on with others."""
    then, now = run.config.to_plain(), plan.config.to_plain()
    changes = [f"{name} {shorten(str(then[name]), 60)}, now it is {shorten(str(now[name]), 60)}" for name in differing]
    limit = run.config.time_limit
    if limit is not None and plan.config.time_limit is None:
        mend = f"--{limit} had chosen that: give --{limit} again."
    else:
        command = ["--weights", str(run.path), "--folds-file", str(run.path / FOLDS), "--out", "ANOTHER"]
        mend = f"To train on from it with others, start a new run: {' '.join(map(quote, command))}."
    return UsageError(
        f"{run.path} was started with {'; '.join(changes)}; --resume needs the same settings (see fastmask guide "
        f"resume). {mend}"
    )


Rows = dict[str, dict[str, str]]


def _rows(table: str) -> Rows:
    """The rows of the text of folds.csv by their paths, without their folds."""
    rows = {row["path"]: row for row in csv.DictReader(StringIO(table))}
    return {path: {name: cell for name, cell in row.items() if name != "fold"} for path, row in rows.items()}


def _describe_changes(then: Rows, now: Rows) -> str:
    """The photos that are missing, new, or have other labels or identical photos than then; "" without a change."""
    both = [path for path in then if path in now]
    regrouped = [path for path in both if _same_as(then[path]) != _same_as(now[path])]
    joined = [path for path in regrouped if _same_as(now[path]) != now[path]["person"]]
    changes = {
        "missing or left out": [path for path in then if path not in now],
        "new": [path for path in now if path not in then],
        "of another person, label or draw weight": [path for path in both if _labels(then[path]) != _labels(now[path])],
        "of a person with photos identical to another's, which the run does not keep in one fold": joined,
        "of a person whose photos are no longer identical to another's": [p for p in regrouped if p not in joined],
    }
    return "; ".join(f"{_such_as(paths)} {what}" for what, paths in changes.items() if paths)


def _same_as(row: dict[str, str]) -> str:
    """The first person with the same photos, or the person; runs of earlier versions have no column for it."""
    return row.get(SAME_AS) or row["person"]


def _labels(row: dict[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name != SAME_AS}


def _such_as(paths: Sequence[str]) -> str:
    """`a.jpg is`, `a.jpg and 2 more are`."""
    return f"{paths[0]} is" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more are"
