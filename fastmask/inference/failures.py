"""Failures: the photos that could not be predicted, in a sentence and in a CSV next to the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_target, write_csv

FAILED = "failed.csv"
_COLUMNS = ["path", "reason"]


def reason_of(error: DataError) -> str:
    """An error of a photo without the advice at its end, which is for training."""
    return str(error).rpartition("; ")[0] or str(error).removesuffix(".")


def failed_list(out: Path) -> Path:
    """The CSV of the photos that failed, next to the output file; raises UsageError if that is another file."""
    file = out.with_name(f"{out.stem}.{FAILED}")
    if file.exists() or file.is_symlink():
        check_target(file)
        with file.open(encoding="utf-8", errors="replace") as opened:
            header = opened.readline(100).strip().split(",")
        if header[: len(_COLUMNS)] != _COLUMNS:
            raise UsageError(f"{file} exists, and photos that fail would be listed there; name another --out.")
    return file


def write_failed(file: Path, failed: Mapping[str, str], answer: int | str | None = None) -> None:
    """Write the list of photos that failed, with the `answer` that a submission gives for them; remove an old one."""
    if not failed:
        file.unlink(missing_ok=True)
        return
    frame = pd.DataFrame(list(failed.items()), columns=_COLUMNS)
    write_csv(file, frame if answer is None else frame.assign(answer=answer))


def describe_failed(
    failed: Mapping[str, str], predicted: int, file: Path | None = None, answer: int | str | None = None
) -> str:
    """A sentence on the photos that failed, next to a number of `predicted` ones, and the file that lists them."""
    name, reason = next(iter(failed.items()))
    listed = f" and {'is' if len(failed) == 1 else 'are'} listed in {file}" if file else ""
    answered = (
        "" if answer is None else f"; in the submission they have class {answer}, the most common in the run's labels"
    )
    # most reasons name the photo
    first = reason if name in reason else f"{name}: {reason}"
    total = f"{len(failed)} of {len(failed) + predicted} photos"
    return f"{total} could not be predicted{listed}{answered}; the first: {first}."
