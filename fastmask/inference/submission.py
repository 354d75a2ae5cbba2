"""Submission: what the contest's CSV of ImageID and ans may hold, and where it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from fastmask.data.contest import contest_heads
from fastmask.heads import Heads
from fastmask.system.errors import DataError, UsageError

ID, ANSWER = "ImageID", "ans"


def check_names(file: Path, names: pd.Series) -> None:
    """Raise DataError if a CSV names no photos, or if a name is empty or duplicated."""
    if names.empty:
        raise DataError(f"{file} has no rows; expected one per photo.")
    for problem, rows in (("is duplicated", names.duplicated()), ("is empty", names == "")):
        if rows.any():
            line = names.index[rows][0]
            raise DataError(f"{file}, line {line}, column {names.name}: {names[line]!r} {problem}; remove the row.")


def is_contest(heads: Heads) -> bool:
    """Whether the joint classes of `heads` are the contest's."""
    contest = contest_heads()
    return (heads.classified, tuple(heads.sizes[i] for i in heads.joined)) == (contest.names, contest.sizes)


def check_heads(heads: Heads, info: Path) -> None:
    """Raise UsageError if the joint classes of `heads` are not those of the contest's info.csv."""
    if not is_contest(heads):
        raise UsageError(
            f"{info} has {ID} and {ANSWER}, which holds joint classes of {', '.join(contest_heads().names)}; the run's "
            f"are of {', '.join(heads.classified)}: name a file of your own contest, or leave --submission out."
        )
    if heads.unlearned:
        raise UsageError(
            f"The run has not learned {', '.join(heads.unlearned)} (weight 0), so a submission would be a guess; blend "
            "it with runs that have: fastmask ensemble."
        )


def check_out(info: Path, out: Path) -> None:
    """Raise UsageError if a submission would be written over its info.csv."""
    # realpath, unlike Path.resolve, does not raise for a symlink loop
    if os.path.realpath(out) == os.path.realpath(info):
        raise UsageError(f"--out {out} is the file of --submission itself; name another file.")
