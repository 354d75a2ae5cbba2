"""Findings: what is wrong with a data set, as rows, as a table for the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

import pandas as pd

ERROR, WARNING = "error", "warning"
COLUMNS = ("level", "kind", "photo", "person", "other", "detail")


@dataclass(frozen=True)
class Finding:
    """One row of the report: `level` "error" (training would fail) or "warning" (its result suffers).

    `photo` is a path of the table, `other` more of them parted by "; "; either and `person` are "" where none is meant.
    """

    level: str
    kind: str
    detail: str
    photo: str = ""
    person: str = ""
    other: str = ""


def findings_frame(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row a finding, errors first: level, kind, photo, person, other, detail."""
    return pd.DataFrame([vars(f) for f in sorted(findings, key=order)], columns=list(COLUMNS))


def summary(findings: Iterable[Finding], width: int | None = None, rows: int = 10) -> str:
    """The findings as a table for the terminal, `width` columns wide: how many of each kind, then `rows` of each."""
    kinds = [(key, list(group)) for key, group in groupby(sorted(findings, key=order), lambda f: (f.level, f.kind))]
    if not kinds:
        return "Nothing wrong found."
    width = max(40, width or shutil.get_terminal_size((100, 24)).columns)
    counts = [f"{level:8} {kind:24} {len(group):7,}" for (level, kind), group in kinds]
    return "\n".join([*counts, *(line for key, group in kinds for line in _section(key, group, width, rows))])


def _section(key: tuple[str, str], group: Sequence[Finding], width: int, rows: int) -> Iterator[str]:
    yield from ("", ": ".join(key))
    subjects = [f.photo or f.person for f in group[:rows]]
    left = min(width // 2, max(map(len, subjects)))
    for subject, finding in zip(subjects, group, strict=False):
        texts = ((subject, max(left, 1)), (finding.detail, width - left - 4))
        cells = (textwrap.wrap(text, size, break_on_hyphens=False) for text, size in texts)
        yield from (f"  {a:{left}}  {b}".rstrip() for a, b in zip_longest(*cells, fillvalue=""))
    if len(group) > rows:
        yield f"  ... and {len(group) - rows:,} more; the CSV of --out has all"


def order(finding: Finding) -> tuple[bool, str, str, str]:
    """Errors first, then by kind."""
    return finding.level != ERROR, finding.kind, finding.photo, finding.person
