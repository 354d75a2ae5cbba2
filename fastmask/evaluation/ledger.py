"""Ledger: the submissions, each with its run and rule, its OOF score and its leaderboard score."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.inference.answers import PREDICTED, AnswersFile, check_cells
from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import LEDGER, read_strings, real, write_csv
from fastmask.system.lock import lock_file
from fastmask.system.text import shorten_start, table_lines

if TYPE_CHECKING:
    import pandas as pd

    from fastmask.scoring import Score

# seconds to wait for another process that writes to the ledger, which takes a few milliseconds
_WAIT = 60.0
# the minimum of submissions for a mean difference and a rank correlation
_FEWEST = 3


@dataclass(frozen=True)
class Entry:
    """A submission: its date and origin, its OOF score, its leaderboard score.

    Scores are shares from 0 to 1, None if unknown. `date` is in UTC (ISO 8601), `oof_low` and `oof_high` are the ends
    of the 95 % interval, `caveats` say why the OOF score may be too high. Characters that cannot be printed become "�".
    """

    date: str
    file: str
    sha256: str
    run: str = ""
    members: str = ""
    tta: int | None = None
    decision: str = ""
    oof_macro_f1: float | None = None
    oof_low: float | None = None
    oof_high: float | None = None
    oof_accuracy: float | None = None
    public: float | None = None
    public_accuracy: float | None = None
    note: str = ""
    caveats: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                text = "".join(c if c.isprintable() else "�" for c in " ".join(value.split()))
                object.__setattr__(self, name, text[: limits.CELL])

    @property
    def label(self) -> str:
        """Its name in a plot: its run and rule."""
        name = Path(self.run or self.file).name
        return name if self.decision in ("", "plain") else f"{name}, {self.decision}"


COLUMNS = [field.name for field in fields(Entry)]


def ledger_of(run: str | Path) -> Path:
    """The ledger of all runs in the folder of `run`."""
    return real(run).parent / LEDGER


def digest(file: str | Path) -> str:
    """SHA-256 of a file's bytes; raises UsageError if there is no file."""
    if not Path(file).is_file():
        raise UsageError(f"{file} is not a file; expected a submission.")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def entry_of(file: str | Path, oof: Score | None = None, **known: Any) -> Entry:
    """The entry of a submission that has just been written; `known` are fields such as run, members, tta, decision."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if oof is not None:
        low, high = oof.macro_f1_interval or (None, None)
        known |= {"oof_macro_f1": oof.macro_f1, "oof_low": low, "oof_high": high, "oof_accuracy": oof.accuracy}
    return Entry(now, str(real(file)), digest(file), **known)


def read_ledger(path: str | Path) -> list[Entry]:
    """Read the submissions of a ledger, in order; raises UsageError if it is missing, DataError if it is broken."""
    file = Path(path)
    frame = read_strings(file, COLUMNS)
    other = next((column for column in frame.columns if column not in COLUMNS), None)
    if other is not None:
        raise DataError(f"{file} has an unknown column {other!r}; expected {', '.join(COLUMNS)}.")
    twice = frame["sha256"].duplicated()
    if twice.any():
        line = frame.index[twice][0]
        raise DataError(
            f"{file}, line {line}, column sha256: found {frame['sha256'][line]!r} a second time, expected each "
            "submission once; remove one of the rows."
        )
    for column, (is_valid, expected) in _CELLS.items():
        check_cells(file, frame[column], frame[column].map(is_valid).astype(bool), expected)
    return [_read_entry(f"{file}, line {line}", row) for line, row in frame.iterrows()]


def _read_entry(where: str, row: pd.Series) -> Entry:
    numbers = {column: float(row[column]) if row[column] else None for column in _SHARES}
    entry = Entry(**{**row, **numbers, "tta": int(row["tta"]) if row["tta"] else None})
    middle = entry.oof_macro_f1
    for column, low, high in (("oof_low", entry.oof_low, middle), ("oof_high", middle, entry.oof_high)):
        if low is not None and high is not None and low > high:
            raise DataError(
                f"{where}, column {column}: found {row[column]!r}, expected an interval around the oof_macro_f1 of "
                f"{row['oof_macro_f1']}."
            )
    return entry


def _is_date(text: str) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _is_share(text: str) -> bool:
    try:
        return text == "" or 0 <= float(text) <= 1
    except ValueError:
        return False


_SHARES = ("oof_macro_f1", "oof_low", "oof_high", "oof_accuracy", "public", "public_accuracy")
# per column that is not free text: a check of a cell, and a description of valid cells
_CELLS: dict[str, tuple[Callable[[str], Any], str]] = {
    "date": (_is_date, "a date such as 2026-01-31T12:00:00+00:00"),
    "sha256": (re.compile("[0-9a-f]{64}").fullmatch, "the 64 digits (0-9, a-f) of a SHA-256"),
    "tta": (re.compile("([1-9][0-9]{0,5})?").fullmatch, "a whole number from 1, or nothing"),
    **dict.fromkeys(_SHARES, (_is_share, "a number from 0 to 1, or nothing")),
}


@contextmanager
def _changing(path: str | Path) -> Iterator[dict[str, Entry]]:
    """A context with a locked ledger's entries by SHA-256, which are written if the block ends without an error."""
    import pandas as pd

    with lock_file(path, _WAIT) as place:
        entries = {entry.sha256: entry for entry in (read_ledger(path) if place.exists() else [])}
        yield entries
        write_csv(place, pd.DataFrame([vars(entry) for entry in entries.values()], columns=COLUMNS))


def note(path: str | Path, entry: Entry) -> Entry | None:
    """Append a submission to a ledger, and return the entry with the same bytes that it replaces, if any.

    Public scores and the note of that entry are kept if `entry` has none. Raises DataError, without changing the file,
    if the ledger is broken.
    """
    with _changing(path) as entries:
        before = entries.pop(entry.sha256, None)
        known = before or entry
        kept = {name: getattr(known, name) for name in ("public", "public_accuracy") if getattr(entry, name) is None}
        entries[entry.sha256] = replace(entry, **kept, note=entry.note or known.note)
    return before


def add_public(
    path: str | Path,
    file: str | Path,
    public: float,
    accuracy: float | None = None,
    note: str = "",
    overwrite: bool = False,
) -> Entry:
    """Write the leaderboard's scores of a submission into a ledger, and return its entry.

    The submission is found by its bytes, regardless of its file name; if it is not in the ledger, it is added without a
    run. `public` is the macro-F1, 0 to 1; `accuracy` is a share, or a percentage if above 1, as the contest shows it,
    and is written as a share. A `note` replaces the previous one. Raises UsageError for a score that cannot be one,
    and, unless `overwrite`, for one that differs from the one in the ledger.
    """
    given = {"public": public}
    if not 0 <= public <= 1:
        hint = f": for {public:g} % give {public / 100:g}" if 1 < public <= 100 else ""
        raise UsageError(f"The public macro-F1 is {public:g}; expected a share from 0 to 1{hint}.")
    if accuracy is not None:
        if not 0 <= accuracy <= 100:
            raise UsageError(f"The public accuracy is {accuracy:g}; expected a share from 0 to 1, or a percentage.")
        given["public_accuracy"] = accuracy if accuracy <= 1 else accuracy / 100
    if PREDICTED in AnswersFile.read(file).frame:
        raise DataError(f"{file} holds probabilities; expected a submission, as predict --submission FILE writes one.")
    found = entry_of(file)
    with _changing(path) as entries:
        entry = entries.get(found.sha256, found)
        for name, value in given.items():
            before = getattr(entry, name)
            # nine digits are written
            if before is not None and not math.isclose(before, value, abs_tol=1e-8) and not overwrite:
                raise UsageError(
                    f"{path}, column {name}: {file} has {before:g} already, not {value:g}; replace it with --overwrite "
                    "if that is right."
                )
        entries[entry.sha256] = replace(entry, **given, note=note or entry.note)  # type: ignore[arg-type]
    return entries[entry.sha256]


def summary(entries: Sequence[Entry]) -> str:
    """A table of the submissions, the newest last, and how OOF and leaderboard agree if three or more have both."""
    if not entries:
        return "The ledger has no submissions."
    header = ("date", "file", "run", "decision", "OOF macro-F1", "public", "public - OOF", "accuracy")
    lines = table_lines([header, *map(_row, sorted(entries, key=lambda entry: entry.date))])
    texts = [f"{shorten_start(e.file)}: {text}" for e in entries for text in (e.note, e.caveats) if text]
    return "\n".join([*lines, *([""] if texts else []), *texts, *_agreement(entries)])


def _row(entry: Entry) -> tuple[str, ...]:
    low, oof, high, public = entry.oof_low, entry.oof_macro_f1, entry.oof_high, entry.public
    interval = "" if low is None or high is None else f" ({low:.4f} … {high:.4f})"
    return (
        entry.date[:16].replace("T", " "),
        shorten_start(entry.file),
        shorten_start(entry.run),
        shorten_start(entry.decision),
        "" if oof is None else f"{oof:.4f}{interval}{' !' if entry.caveats else ''}",
        "" if public is None else f"{public:.4f}",
        "" if oof is None or public is None else f"{public - oof:+.4f}",
        "" if entry.public_accuracy is None else f"{entry.public_accuracy:.4f}",
    )


def both_scores(entries: Sequence[Entry]) -> list[tuple[Entry, float, float]]:
    """(entry, OOF, public) of the entries with both scores and without caveats."""
    both = ((entry, entry.oof_macro_f1, entry.public) for entry in entries if not entry.caveats)
    return [(entry, oof, public) for entry, oof, public in both if oof is not None and public is not None]


def _agreement(entries: Sequence[Entry]) -> list[str]:
    """Sentences on the agreement of leaderboard and OOF scores; none for fewer than three submissions."""
    scored = both_scores(entries)
    if len(scored) < _FEWEST:
        return []
    from scipy.stats import spearmanr

    _, oof, public = zip(*scored, strict=True)
    mean = sum(public - oof for _, oof, public in scored) / len(scored)
    correlation = "there is no rank correlation, since one of the two is constant"
    if len(set(oof)) > 1 and len(set(public)) > 1:
        correlation = f"Spearman's rank correlation of the two is {spearmanr(oof, public).statistic:+.2f}"
    first = f"{len(scored)} submissions have both: public - OOF is {mean:+.4f} on average; {correlation}."
    sides = [
        (public > entry.oof_high) - (public < entry.oof_low)
        for entry, _, public in scored
        if entry.oof_low is not None and entry.oof_high is not None
    ]
    inside = (
        f"Of {len(sides)} public scores {sides.count(0)} lie in OOF's 95 % interval, {sides.count(-1)} below, "
        f"{sides.count(1)} above."
    )
    return ["", first, *([inside] if sides else [])]
