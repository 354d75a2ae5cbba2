"""The command line: parse, call, print.

Results go to stdout, everything else to stderr. Exit 0: done; 1: failed; 2: invalid arguments; 130, 143: interrupted by
Ctrl-C or SIGTERM. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastmask import __version__
from fastmask.commands import app as pages
from fastmask.commands import compare, data, export, fit, guide, machine, models, predict, report, score, tune
from fastmask.commands.options import GROUPS, Commands, expand_home, join_numbers
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError, is_reported
from fastmask.system.terminal import launcher_rank, replace_unencodable, say, say_warning
from fastmask.system.text import shorten


class _Grouped(TyperGroup):
    """The commands in the order of their groups, as the help shows them."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: GROUPS.index(self.commands[name].rich_help_panel))  # type: ignore[attr-defined]


app = Commands(
    name="fastmask",
    cls=_Grouped,
    help="Train, cross-validate, judge and apply classifiers of several attributes of a photo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# exit codes after a Ctrl-C, which is typer's, and after a scheduler's signal
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


for group in (fit, tune, predict, export, pages, score, compare, report, data, models, machine, guide):
    app.add_typer(group.app)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **kwargs: Any) -> None:
    if issubclass(category, FastmaskWarning):
        say_warning(message)
    else:
        _plain_warning(message, category, *where, **kwargs)


_plain_warning = warnings.showwarning


def _ignore_signals() -> None:
    """Ignore signals while Python shuts down: the work is done, and they must not change the exit code."""
    for number in (signal.SIGINT, *_END_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake becomes one sentence on stderr and an exit code."""
    warnings.showwarning = _show_warning
    replace_unencodable()
    # as an exception, so that temporary files and locks are removed
    for number in _END_SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(TERMINATED))
    # Intel's Fortran runtime, part of some SciPy builds, ends the process before Python handles Ctrl-C
    os.environ.setdefault("FOR_DISABLE_CONSOLE_CTRL_HANDLER", "1")
    # warnings about fastai's and timm's code, which a user cannot change
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
    try:
        app(expand_home(join_numbers(sys.argv[1:] if arguments is None else arguments)))
    except FastmaskError as error:
        # of several processes, only one reports invalid arguments
        if launcher_rank()[0] == 0 or not isinstance(error, UsageError):
            say(f"fastmask: error: {error}", important=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # a full disk, a removed folder, a name too long: the system's message and the file
        place = f": {shorten(str(error.filename), 1000)}" if error.filename else ""
        say(f"fastmask: error: {error.strerror or error}{place}.", important=True)
        sys.exit(1)
    except MemoryError:
        say("fastmask: error: Out of memory; use smaller photos or a smaller --bs.", important=True)
        sys.exit(1)
    except SystemExit as done:
        if done.code in (INTERRUPTED, TERMINATED) and not is_reported(done):
            say("fastmask: interrupted", important=True)
        raise
    finally:
        # registered last, so called first: during torch's own handlers a second Ctrl-C would print a traceback
        atexit.unregister(_ignore_signals)
        atexit.register(_ignore_signals)
