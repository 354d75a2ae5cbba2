"""The README's blocks are run, or compared with what runs them."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastmask.commands.main import app, join_numbers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def lines_of(script):
    return (ROOT / ".ci" / script).read_text(encoding="utf-8").splitlines()


def test_ci_runs_exactly_the_two_commands():
    first, second = (line for block in blocks("sh") for line in block.splitlines() if line.startswith("pip install -e"))
    for command, script in ((first, "newcomer"), (second, "run")):
        install, what_follows = command.split(" && ", 1)
        assert f"quietly {install}" in lines_of("run")
        assert what_follows in lines_of(script)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # twelve persons are few for five folds
def test_the_python_block_runs(contest, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(contest, "data")
    (code,) = blocks("python")
    exec(compile(code.replace("resnet18", "test_resnet"), "README.md", "exec"), {})
    assert (tmp_path / "submission.csv").is_file()


@pytest.mark.parametrize(
    "line", [li.split("  #")[0] for b in blocks("sh") for li in b.splitlines() if li.startswith("fastmask")]
)
def test_every_option_in_a_command_exists(line):
    words = join_numbers(line.replace("...", "").split()[1:])
    command = words[:2] if words[0] in ("cache", "ledger") else words[:1]
    shown = (CliRunner().invoke(app, [*command, option], env={"COLUMNS": "200"}) for option in ("--help-all", "--help"))
    known = next(one.output for one in shown if one.exit_code == 0)
    assert [w for w in words if w.startswith("--") and w not in known] == []


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()
