"""The command guide: its chapters, as Markdown or in a pager, and its search."""

from collections.abc import Callable
from typing import Any

import click
import pytest

from fastmask.commands import guide
from fastmask.guide.chapters import CHAPTERS, read_chapter


def test_chapters_are_listed_and_printed(fastmask: Callable[..., Any]) -> None:
    listed = fastmask("guide").out.splitlines()
    assert [line.split()[0] for line in listed] == list(CHAPTERS)
    assert fastmask("guide", "train").out == read_chapter("train")


def test_a_terminal_shows_a_chapter_in_a_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(guide.sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(click, "echo_via_pager", lambda text, color: shown.append(text))
    guide.guide("judge", None)
    assert "Scores and intervals" in shown[0]
    assert "##" not in shown[0]
    assert "\x1b[" in shown[0]


def test_search_prints_chapter_and_heading(fastmask: Callable[..., Any]) -> None:
    (found,) = fastmask("guide", "--search", "Deconvolution").out.splitlines()
    assert found.startswith("judge, Decide: `bound` turns the predicted")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nothing"], "The guide has no chapter 'nothing'"),
        (["--search", "flibbertigibbet"], "The guide does not have 'flibbertigibbet'"),
        (["train", "--search", "lr"], "--search looks through all chapters"),
    ],
)
def test_what_is_not_there_is_refused(invalid: Callable[..., None], words: list[str], error: str) -> None:
    invalid("guide", *words, named=[error])
