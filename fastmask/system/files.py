"""Files: plain files, written under a temporary name and then renamed, so that readers never see an incomplete one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO

from fastmask.system import limits
from fastmask.system.cells import encoding_of, read_cells
from fastmask.system.errors import DataError, UsageError, one_line
from fastmask.system.text import join_some
from fastmask.system.yaml_text import parse_yaml, to_yaml

if TYPE_CHECKING:
    import pandas as pd


# harmless errors of folders that cannot be opened or synced
_NO_SYNC = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL, errno.ENOTSUP, errno.EBADF}
# seconds between attempts to replace a file that another program has open
_WAITS = (0.01, 0.05, 0.1, 0.3, 0.5)


# endings by which other programs would not read a CSV
_NO_CSV = {
    *(".xls", ".xlsx", ".ods", ".json", ".jsonl", ".yaml", ".yml", ".html", ".pdf"),
    *(".parquet", ".feather", ".arrow", ".pkl", ".zip", ".gz", ".png", ".jpg"),
}

# the ledger of submissions of the runs in one folder
LEDGER = "ledger.csv"


def cache_home() -> Path:
    """The user's cache folder; raises UsageError if the user has no home directory."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmask"
    except RuntimeError as error:
        # a user id without an entry in passwd, as in many containers
        raise UsageError(
            "Cannot find a home directory for the cache; set XDG_CACHE_HOME to a writable folder."
        ) from error


@contextmanager
def atomic_write(path: str | Path, parents: bool = True) -> Iterator[Path]:
    """A path to write to, which replaces `path` at the end of the block and is removed if an exception is raised.

    `parents` creates missing parent folders. Without it a missing folder raises OSError, so that a removed run is not
    partly recreated.
    """
    path = Path(path)
    if parents:
        check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    # a link there would be followed
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        sync_file(temporary)
        _replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # errors of a write have no file name, or the temporary one
        if str(error.filename or temporary) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def real(path: str | Path) -> Path:
    """A path with its links resolved; unlike `Path.resolve` it does not raise for circular links."""
    return Path(os.path.realpath(path))


def stays_below(path: PurePath) -> bool:
    """Whether a path from a table stays inside the folder that it is joined to.

    On Windows a path with only a drive or only a leading slash leaves the folder, although it is not absolute.
    """
    return not path.anchor and ".." not in path.parts


def copy_folder(source: Path, target: Path, without: str) -> None:
    """Copy a folder's files to the disk, except for hidden ones and those called `without`.

    Unlike `shutil.copytree` it stops at the first error and syncs each file.
    """
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            copy_folder(entry, target / entry.name, without)
        elif entry.name != without and not entry.name.startswith("."):
            try:
                shutil.copyfile(entry, target / entry.name)
                sync_file(target / entry.name)
                # last, because read-only files cannot be synced
                shutil.copystat(entry, target / entry.name)
            except OSError as error:
                error.filename, error.filename2 = str(target / entry.name), None
                raise


def sync_file(file: Path) -> None:
    """Wait until a file is on the disk."""
    # Windows syncs only files that are open for writing
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, so that an old file cannot come back after a power cut.

    Does nothing where folders cannot be opened (Windows, some file systems) or synced (FUSE, SMB).
    """
    try:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _replace(temporary: Path, path: Path) -> None:
    """Replace a file; on Windows retry for a second while another program, such as a virus scanner, has it open."""
    for wait in _WAITS if os.name == "nt" else ():
        with suppress(PermissionError):
            os.replace(temporary, path)
            return
        time.sleep(wait)
    os.replace(temporary, path)


def replace_folder(made: Path, place: Path, aside: Path | None) -> None:
    """Rename a folder to `place`, which must be free or an empty folder, else raises OSError.

    With `aside` another folder at `place` is moved there first, and moved back if the rename fails.
    """
    try:
        if aside is not None and place.exists():
            place.rename(aside)
        if os.name == "nt":
            # Windows does not replace even an empty folder
            with suppress(OSError):
                place.rmdir()
        made.rename(place)
        sync_folder(place.parent)
    except BaseException:
        if aside is not None and aside.exists() and not place.exists():
            aside.rename(place)
        raise


@contextmanager
def fill_folder(folder: Path, *entries: str) -> Iterator[Path]:
    """A temporary folder to write `entries` to, which becomes `folder` (new or empty) if the block succeeds.

    An empty folder stays in place, because it may be a mount point or a working directory; `entries` are moved into it
    in order, so the last should be the one that readers check for.
    """
    is_new = not folder.exists()
    place = next(above for above in folder.absolute().parents if above.exists()) if is_new else folder
    with TemporaryDirectory(prefix=".fastmask-", dir=place, ignore_cleanup_errors=True) as temporary:
        # one inside, because temporary folders are closed to other users
        made = Path(temporary) / "made"
        made.mkdir()
        yield made
        if is_new:
            folder.parent.mkdir(parents=True, exist_ok=True)
            made.rename(folder)
        else:
            for entry in entries:
                (made / entry).rename(folder / entry)


def check_fillable(folder: Path) -> None:
    """Raise UsageError unless a folder is new or empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; choose another folder, or delete it first.")


def check_target(path: Path) -> None:
    """Raise UsageError if a file cannot be written at `path`: it is not a plain file, or its folder cannot be made."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file; name another output file.")
    check_parent(path)


def check_new(path: Path, overwrite: bool, *inputs: Path) -> None:
    """Raise UsageError for an output file that exists, unless `overwrite`, or that cannot be written.

    Inputs, ledgers and files in a run are never replaced.
    """
    if str(path) == "-":
        raise UsageError("An output file is called -, and none is written to stdout; name a file.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; name another file, or replace it with --overwrite.")
    check_target(path)
    if path.exists():
        place = real(path)
        in_run = any((folder / "heads.json").is_file() for folder in list(place.parents)[:2])
        if in_run or path.name == LEDGER or any(place == real(file) for file in inputs):
            raise UsageError(
                f"{path} is an input, or part of a run or its ledger, and is not replaced; name another file."
            )


def check_new_csv(path: Path, overwrite: bool, *inputs: Path) -> None:
    """Raise UsageError for a CSV with the ending of another format, or that `check_new` refuses."""
    if path.suffix.lower() in _NO_CSV:
        raise UsageError(f"{path} would be a CSV; call it {path.with_suffix('.csv')}.")
    check_new(path, overwrite, *inputs)


def check_new_picture(path: Path, overwrite: bool, *inputs: Path) -> None:
    """Raise UsageError for a picture with a name that does not end in .png, or that `check_new` refuses."""
    if path.suffix != ".png":
        raise UsageError(f"The picture is called {path}; expected a name ending in .png.")
    check_new(path, overwrite, *inputs)


def check_parent(path: Path) -> None:
    """Raise UsageError if `path` cannot be created because of the folders above it."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written, {above} is not a writable folder; name another --out.")


def write_text(path: str | Path, text: str, parents: bool = True) -> None:
    """Write a text as UTF-8."""
    with atomic_write(path, parents) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any, parents: bool = True) -> None:
    """Write plain values as JSON; NaN becomes null, which every JSON reader accepts."""
    write_text(path, json.dumps(_without_nan(value), indent=2, ensure_ascii=False) + "\n", parents)


def write_yaml(path: str | Path, value: Any) -> None:
    """Write plain values as YAML, in the order given."""
    write_text(path, to_yaml(value))


def read_json(path: str | Path) -> Any:
    """Read JSON; raises DataError naming the file and the line."""
    try:
        text = _read_text(Path(path), limits.JSON_BYTES)
        value = json.loads(text, parse_int=_parse_int, parse_constant=_refuse_constant)
        if "\\u" in text:
            # an escape may be a lone surrogate, which cannot be written or printed
            json.dumps(value, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {_why(error)}.") from error
    return value


def read_mapping(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; raises DataError for any other."""
    plain = read_json(file)
    if not isinstance(plain, dict):
        raise DataError(f"{file} holds {type(plain).__name__}; expected a mapping.")
    return plain


def _parse_int(digits: str) -> int:
    if len(digits) > limits.DIGITS:
        raise ValueError(f"found a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"found {text}, expected a number or null")


def read_yaml(path: str | Path, texts: Collection[str] = ()) -> Any:
    """Read YAML of plain values only, see `parse_yaml`; raises DataError naming the file and the line."""
    try:
        return parse_yaml(_read_text(Path(path), limits.YAML_BYTES), texts)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as YAML: {_why(error)}.") from error


def _why(error: Exception) -> str:
    # without the file name, which is in the message already
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


def _read_text(path: Path, most: int) -> str:
    """The text of a plain file; raises ValueError if it is not plain (a pipe may never end) or too long."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a plain file")
    if path.stat().st_size > most:
        raise ValueError(f"it is longer than {most >> 20} MB")
    content = path.read_bytes()
    try:
        return content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8; save it as such") from error


def read_strings(file: Path, columns: Sequence[str], strip: bool = True) -> pd.DataFrame:
    """Read a CSV with every cell as text, empty cells as "", indexed by the line on which a row starts.

    See `read_cells` for `strip` and for the separators and encodings. Raises UsageError if there is no such file,
    DataError if it is not a CSV or lacks one of `columns`.
    """
    import pandas as pd

    expected = f"a CSV with the columns {_columns(columns)}" if columns else "a CSV"
    if not file.is_file():
        raise UsageError(f"{file} is not a file; expected {expected}.")
    try:
        lines = read_cells(file, strip)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); expected {expected}.") from error
    except ValueError as error:
        raise DataError(f"{file} cannot be read as a CSV in UTF-8 ({one_line(error)}).") from error
    if not lines:
        raise DataError(f"{file} is empty; expected {expected}.")
    (_, header), *rows = lines
    if len(header) > limits.COLUMNS:
        raise DataError(f"{file} has {len(header)} columns; expected at most {limits.COLUMNS}.")
    require_columns(file, header, columns)
    _check_distinct(file, header)
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{file}, line {line}: found {len(cells)} cells, expected {len(header)}: {_columns(header)}."
            )
    return pd.DataFrame([cells for _, cells in rows], columns=header, index=[line for line, _ in rows], dtype=str)


def read_rows(file: Path, columns: Sequence[str], unit: str = "photo", strip: bool = True) -> pd.DataFrame:
    """Read a CSV with one row or more; see `read_strings`."""
    frame = read_strings(file, columns, strip)
    if frame.empty:
        raise DataError(f"{file} has no rows; expected one per {unit}.")
    return frame


def _check_distinct(file: Path, header: Sequence[str]) -> None:
    places: dict[str, int] = {}
    for place, name in enumerate(header, 1):
        if name in places:
            called = f"called {name!r}" if name else "without a name"
            raise DataError(f"{file} has two columns {called}, {places[name]} and {place}; rename one, or remove it.")
        places[name] = place


def require_columns(file: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raise DataError naming the first of `columns` that the header of a CSV lacks."""
    there = set(header)
    missing = [c for c in columns if c not in there]
    if missing:
        raise DataError(f"{file} has no column {missing[0]!r}; found {_columns(header)}, expected {_columns(columns)}.")


def _columns(names: Sequence[str]) -> str:
    return join_some(names, 30)


def write_csv(path: str | Path, frame: pd.DataFrame, parents: bool = True) -> None:
    """Write a frame as CSV; numbers with nine significant digits, enough to restore a float32 exactly."""
    with atomic_write(path, parents) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
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
