"""The chapters of the guide: which there are, their search, and the table of settings."""

import re
from pathlib import Path

import pytest

import fastmask.guide
from fastmask.config import Config
from fastmask.guide.chapters import CHAPTERS, Found, read_chapter, search, title_of
from fastmask.guide.settings import settings_chapter
from fastmask.system.errors import UsageError

ROOT = Path(fastmask.guide.__file__).parents[2]


def test_every_file_is_a_chapter_that_the_readme_links():
    files = {file.stem for file in Path(fastmask.guide.__file__).parent.glob("*.md")}
    assert files == set(CHAPTERS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in CHAPTERS if f"[{title_of(name)}](fastmask/guide/{name}.md)" not in readme] == []


def test_an_unknown_chapter_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no chapter 'trian'; did you mean train"):
        read_chapter("trian")
    with pytest.raises(UsageError, match="no chapter 'x'; expected one of start, data, "):
        read_chapter("x")


def test_the_table_of_settings_is_that_of_the_code():
    assert read_chapter("settings") == settings_chapter(), "run: python -m fastmask.guide.settings"
    rows = [line for line in settings_chapter().splitlines() if line.startswith("| `")]
    assert len(rows) == len(Config.model_fields)
    assert "| `--extra-weight` | 1 | Loss weight of the photos of --extra. Needs `--extra`. |" in rows


def test_errors_name_chapters_that_exist():
    package = Path(fastmask.__file__).parent
    code = "\n".join(file.read_text(encoding="utf-8") for file in package.rglob("*.py") if file.parent.name != "guide")
    # texts that go on in the next line
    named = re.findall(r"see fastmask guide (\w+)", re.sub(r'"\s+f?"', "", code))
    assert set(named) <= set(CHAPTERS)
    assert len(named) > 7


def test_search_finds_lines_whatever_their_case(monkeypatch):
    text = "# Start\n\nA line that\nGoes on.\n\n## Next\n\n```sh\nfastmask fit  # goes\n```\n| goes | x |\n"
    monkeypatch.setattr("fastmask.guide.chapters.CHAPTERS", ("start",))
    monkeypatch.setattr("fastmask.guide.chapters.read_chapter", lambda name: text)
    assert search("GOES") == [
        Found("start", "Start", "A line that Goes on."),
        Found("start", "Next", "fastmask fit  # goes"),
        Found("start", "Next", "| goes | x |"),
    ]
    assert search("goes that") == [Found("start", "Start", "A line that Goes on.")]
    assert search("nowhere") == search(" ") == []
