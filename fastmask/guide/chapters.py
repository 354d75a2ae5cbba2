"""Chapters: the files of the guide, their text, and a search in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from fastmask.system.errors import UsageError

# in the order of reading
CHAPTERS = (
    "start",
    "data",
    "train",
    "augment",
    "resume",
    "judge",
    "predict",
    "faces",
    "search",
    "machines",
    "export",
    "report",
    "python",
    "settings",
    "recipes",
    "figures",
    "inside",
    "contributing",
)


class Found(NamedTuple):
    """A line of a chapter, below a heading."""

    chapter: str
    heading: str
    line: str

    def __str__(self) -> str:
        return f"{self.chapter}, {self.heading}: {self.line}"


def read_chapter(name: str) -> str:
    """The Markdown of a chapter; raises UsageError with the nearest names if there is none."""
    if name not in CHAPTERS:
        near = difflib.get_close_matches(name, CHAPTERS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(CHAPTERS)}."
        raise UsageError(f"The guide has no chapter {name!r}; {meant}")
    return (files(__package__) / f"{name}.md").read_text(encoding="utf-8")


def title_of(name: str) -> str:
    """The title of a chapter."""
    return read_chapter(name).partition("\n")[0].removeprefix("# ")


def search(words: str) -> list[Found]:
    """The lines of the guide that have all of some words, in any case, in the order of the chapters."""
    wanted = words.casefold().split()
    lines = (found for name in CHAPTERS for found in _lines(name))
    return [found for found in lines if all(word in found.line.casefold() for word in wanted)] if wanted else []


def _lines(name: str) -> Iterator[Found]:
    """The lines of a chapter with their headings; those of a paragraph or an item of a list are joined."""
    heading, is_code, paragraph = "", False, ""
    for line in [*read_chapter(name).splitlines(), ""]:
        is_heading = line.startswith("#") and not is_code
        stands_alone = is_code or is_heading or line.startswith(("|", "```")) or not line
        if paragraph and (stands_alone or line.startswith("- ")):
            yield Found(name, heading, paragraph)
            paragraph = ""
        is_code ^= line.startswith("```")
        if is_heading:
            heading = line.lstrip("# ")
        if not stands_alone:
            paragraph = f"{paragraph} {line}".strip()
        elif line and not line.startswith("```"):
            yield Found(name, heading, line)
