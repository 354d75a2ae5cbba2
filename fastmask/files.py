"""Plain files, each written beside its name and renamed into place, so that a reader never sees half of one."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastmask.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def cache_home() -> Path:
    """The folder of what fastmask keeps for a user between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmask"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which replaces `path` when the block ends well and vanishes when it does not."""
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Raise UsageError if a file cannot be written at `path`: something else is there, or no folder can be made."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file; name another one to write.")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Raise UsageError if nothing can be made at `path`, because of the folders above it."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"{path} cannot be written, {above} is not a folder that can be written to; name another --out."
        )


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON; NaN becomes null, which every JSON reader accepts."""
    write_text(path, json.dumps(_without_nan(value), indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: str | Path, value: Any) -> None:
    """Write plain values as YAML, in the order given."""
    write_text(path, to_yaml(value))


def to_yaml(value: Any) -> str:
    """Plain values as YAML text, in the order given."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def read_json(path: str | Path) -> Any:
    """Read JSON; raises DataError naming the file and the line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error


def read_yaml(path: str | Path) -> Any:
    """Read YAML without letting it build objects; raises DataError naming the file and the line."""
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error


def read_strings(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV with every cell as text, empty cells as "", indexed by the line of the file that a row starts on.

    Raises UsageError if there is no such file, DataError if it is not a CSV or lacks one of `columns`.
    """
    import pandas as pd

    expected = f"a CSV with the columns {', '.join(columns)}" if columns else "a CSV"
    if not file.is_file():
        raise UsageError(f"{file} is not a file; expected {expected}.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = list(_lines(csv.reader(opened, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a CSV in UTF-8 ({error}); save it as one.") from error
    if not lines:
        raise DataError(f"{file} is empty; expected {expected}.")
    (_, header), *rows = lines
    other = next((name for mark, name in _SEPARATORS.items() if len(header) == 1 and mark in header[0]), None)
    if other:
        raise DataError(f"{file} parts its cells by {other}; expected commas: save it as a CSV with commas.")
    require_columns(file, header, columns)
    if len(set(header)) < len(header):
        raise DataError(f"{file} has two columns of one name; found {', '.join(header)}.")
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{file}, line {line}: found {len(cells)} cells, expected {len(header)}: {', '.join(header)}."
            )
    return pd.DataFrame([cells for _, cells in rows], columns=header, index=[line for line, _ in rows], dtype=str)


def require_columns(file: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raise DataError naming the first of `columns` that the header of a CSV lacks."""
    missing = [c for c in columns if c not in header]
    if missing:
        raise DataError(
            f"{file} has no column {missing[0]!r}; found {', '.join(header)}, expected {', '.join(columns)}."
        )


def _lines(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """(line of the file, cells) of each row of a CSV that is not blank."""
    start = 1
    for cells in reader:
        if any(cells):
            yield start, [cell.strip() for cell in cells]
        start = reader.line_num + 1


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a frame as CSV; numbers with nine significant digits, enough for float32 to come back as it was."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as opened:
        frame_to_csv(frame, opened)


def frame_to_csv(frame: pd.DataFrame, opened: TextIO) -> None:
    """Write a frame as CSV to an opened file."""
    frame.to_csv(opened, index=False, float_format="%.9g", lineterminator="\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value
