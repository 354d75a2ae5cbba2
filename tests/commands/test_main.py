"""The command line as a whole: help, completion, errors, interruptions, what it imports."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fastmask.api import Run
from fastmask.config import Config
from fastmask.run.directory import RunDirectory
from fastmask.system.fields import describe, option_name
from fastmask.training.progress.display import Log
from fastmask.training.resume import suggest_resume

DONE, FAILED, INVALID, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
Command = Callable[..., Any]

GROUPS = {
    "Train": ["fit", "lr-find", "merge", "tune"],
    "Predict": ["predict", "ensemble", "soup", "pseudo", "export", "app"],
    "Judge": ["score", "decide", "bound", "label-errors", "diff", "compare", "ledger", "report"],
    "Data": ["check", "sample", "faces", "paint"],
    "Models": ["archs", "screen"],
    "This machine": ["bench", "doctor", "cache"],
    "Manual": ["guide"],
}
HEAVY = {"torch", "fastai", "timm", "pandas", "numpy", "sklearn", "albumentations", "cv2", "matplotlib"}


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands_in_groups_one_per_line(
    option: str, fastmask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = fastmask(option)
    assert answer.code == DONE
    listed: dict[str, list[str]] = {}
    for line in answer.out.splitlines():
        if line.startswith("╭─ "):
            rows = listed.setdefault(line.strip("╭─╮ "), [])
        elif line.startswith("│"):
            # a second line of a row would begin with a space
            rows.append(line[2:].split(" ")[0])
    assert {group: rows for group, rows in listed.items() if group != "Options"} == GROUPS


def test_fit_shows_common_options_and_all_on_demand(fastmask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = [fastmask("fit", option).out for option in ("--help", "--help-all")]
    common, every = (set(re.findall(r"^│ (--[a-z0-9-]+)", text, re.MULTILINE)) for text in shown)
    shown_first = {name: describe(Config, name).common for name in Config.model_fields if describe(Config, name).panel}
    of_settings = {option_name(Config, name).partition("/")[0]: first for name, first in shown_first.items()}
    of_run = {"--out", "--resume", "--overwrite", "--dry-run", "--print-config", "--report"}
    others = {*of_run, "--config", "--recipe", "--set", "--quiet", "--help", "--help-all"}
    assert common == {option for option, first in of_settings.items() if first} | others
    assert every == of_settings.keys() | others | {"--fold"}
    assert {"--data", "--arch", "--folds", "--epochs"} < common
    # more than a screen is not read
    assert len(common) < 30
    assert "[default" not in shown[1]


def test_version(fastmask: Command) -> None:
    answer = fastmask("--version")
    assert (answer.code, answer.out) == (DONE, f"fastmask {version('fastmask')}\n")


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    def completed(line: str) -> str:
        typed = {"_FASTMASK_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        fish_and_zsh = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        code = "import sys; sys.argv = ['fastmask']; from fastmask.commands.main import main; main()"
        command, environment = [sys.executable, "-c", code], {**os.environ, **typed, **fish_and_zsh}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout

    assert "predict" in completed("fastmask ")
    assert "--sampler" in completed("fastmask fit --")


@pytest.mark.parametrize("code", ["pass", "cli.main(['fit', '--print-config'])", "cli.main(['fit', '--data', 'none'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, tmp_path: Path) -> None:
    lines = [
        "import atexit, sys",
        f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr))",
        "from fastmask.commands import main as cli",
        code,
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    *others, imported = done.stderr.splitlines()
    if "none" in code:
        # tables need pandas
        assert "torch" not in imported
        assert (done.returncode, len(others)) == (INVALID, 1)
    else:
        assert (done.returncode, others, imported) == (DONE, [], "[]")


def test_the_installed_command_keeps_stdout_for_results(finished_run: Run, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("fastmask")
    command = [script, "score", finished_run.path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert set(json.loads(done.stdout)) == {"joint", "heads", "notes"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("fit --folds three", ["--folds", "integer"]),
        ("fit --crop 400x", ["crop", "400x"]),
        ("merge run", ["--out"]),
        ("predict run", ["images"]),
        ("predict run images", ["--out"]),
        ("predict run images --out p.csv --tta many", ["--tta", "integer"]),
        ("learn", ["learn"]),
    ],
)
def test_a_wrong_option_is_named_and_exits_2(words: str, named: list[str], fastmask: Command) -> None:
    answer = fastmask(*words.split())
    assert (answer.code, answer.out) == (INVALID, "")
    assert [part for part in named if part not in " ".join(answer.err)] == []


def test_a_name_that_no_system_takes_is_shortened(fastmask: Command) -> None:
    answer = fastmask("fit", "--config", "x" * 6000)
    assert answer.code == FAILED
    assert answer.errors == [f"File name too long: {'x' * 999}…."]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt, INTERRUPTED), (partial(SystemExit, TERMINATED), TERMINATED)]
)
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize("training", [True, False])
def test_an_interruption_is_reported_once_also_with_quiet(
    fastmask: Command,
    finished_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], BaseException],
    code: int,
    quiet: list[str],
    training: bool,
) -> None:
    def interrupt(*_: Any) -> None:
        if not training:
            raise error()
        with suggest_resume("fastmask fit", Log(sys.stderr)):
            raise error()

    monkeypatch.setattr(RunDirectory, "load", interrupt)
    answer = fastmask("score", finished_run.path, *quiet)
    said = "Interrupted. To resume: fastmask fit" if training else "fastmask: interrupted"
    assert (answer.code, answer.out, answer.err) == (code, "", [said])
