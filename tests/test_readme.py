"""The blocks of the README and of the guide are run, or compared with what runs them."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastmask.commands.main import app, join_numbers
from fastmask.guide.chapters import CHAPTERS

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "fastmask" / "guide"
PAGES = {"README": ROOT / "README.md", **{name: GUIDE / f"{name}.md" for name in CHAPTERS}}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}


def blocks(language, *names):
    return [block for n in names or PAGES for block in re.findall(rf"```{language}\n(.*?)```", TEXTS[n], re.DOTALL)]


def lines_of(script):
    return (ROOT / ".ci" / script).read_text(encoding="utf-8").splitlines()


def anchors(text):
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len(TEXTS["README"].splitlines()) <= 220


def test_ci_runs_exactly_the_two_commands():
    lines = [line for block in blocks("sh", "README") for line in block.splitlines()]
    first, second = (line for line in lines if line.startswith("pip install -e"))
    for command, script in ((first, "newcomer"), (second, "run")):
        install, what_follows = command.split(" && ", 1)
        assert f"quietly {install}" in lines_of("run")
        assert what_follows in lines_of(script)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README", "python"])
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # twelve persons are few for five folds
def test_the_python_block_runs(contest, tmp_path, monkeypatch, name):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(contest, "data")
    (code,) = blocks("python", name)
    exec(compile(code.replace("resnet18", "test_resnet"), f"{name}.md", "exec"), {})
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


@pytest.mark.parametrize("script", sorted(set(re.findall(r"python (examples/\S+\.py)", "".join(TEXTS.values())))))
def test_every_script_in_a_command_exists(script):
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    links = re.findall(r"\]\(((?!https?://)[^)]*)\)", TEXTS[name])
    for path, _, anchor in (link.partition("#") for link in links):
        page = PAGES[name].parent / path if path else PAGES[name]
        assert page.exists(), path
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), (path, anchor)
