"""Digests: the SHA-256 of photos, remembered until the file system says that a file has changed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from fastmask.data.cache_files import digests_file
from fastmask.data.photo import map_in_threads, read_bytes
from fastmask.system.errors import UsageError
from fastmask.system.terminal import progress_bar

# fewer photos are read sooner than remembered
_FEWEST = 64
# the number of remembered photos that are read again, as a sample
_PROBED = 16
# a file that was changed so many seconds ago could change again without a sign, since clocks of file systems are coarse
_SETTLED = 3.0
# SQLite allows at least 999 values in a query
_CHUNK = 900
_SHA256 = re.compile("[0-9a-f]{64}")
_TABLE = "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID"


def digest_photos(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file's bytes; raises DataError naming one that cannot be read.

    The digest of a file is remembered in the user's cache, by its path, size, times and inode, so that many photos are
    read once. A few of these are read again; if one is not what was remembered, all are.
    """
    if len(paths) < _FEWEST:
        return _read(paths)
    states = {path: _state(path) for path in dict.fromkeys(paths)}
    known = _recall(states)
    step = max(1, -(-len(known) // _PROBED))
    probed = list(known)[secrets.randbelow(step) :: step]
    if [known[path] for path in probed] != _read(probed):
        known = {}
    unknown = [path for path in states if path not in known]
    found = dict(zip(unknown, _read(unknown), strict=True))
    _remember({path: (state, found[path]) for path, state in _settled(states, found)})
    known |= found
    return [known[path] for path in paths]


def _read(paths: Sequence[Path]) -> list[str]:
    made: list[str] = []
    with progress_bar("reading photos") as progress:
        for digest in map_in_threads(lambda path: hashlib.sha256(read_bytes(path)).hexdigest(), paths):
            made.append(digest)
            progress(len(made), len(paths))
    return made


def _state(path: Path) -> str | None:
    """What the file system says of a file; None if it says nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _settled(states: Mapping[Path, str | None], found: Mapping[Path, str]) -> Iterator[tuple[Path, str]]:
    """The files of `found` with their states, without those that were changed lately or since."""
    before = (time.time() - _SETTLED) * 1e9
    for path in found:
        state = states[path]
        if state is not None and state == _state(path) and max(map(int, state.split()[3:])) < before:
            yield path, state


def _key(path: Path) -> bytes:
    # names that are not UTF-8 are no text
    return os.fsencode(os.path.abspath(path))


def _recall(states: Mapping[Path, str | None]) -> dict[Path, str]:
    """The digests of files whose states are those that were remembered; none if the cache cannot be read."""
    kept: dict[bytes, tuple[str, str]] = {}
    with suppress(OSError, UsageError, sqlite3.Error):
        file = digests_file()
        if not file.is_file() or file.is_symlink():
            return {}
        with closing(sqlite3.connect(file)) as opened:
            every = [_key(path) for path in states]
            for at in range(0, len(every), _CHUNK):
                keys = every[at : at + _CHUNK]
                marks = ",".join("?" * len(keys))
                rows = opened.execute(f"SELECT path, state, sha256 FROM digests WHERE path IN ({marks})", keys)
                kept.update({key: (str(state), str(digest)) for key, state, digest in rows})
    found = {path: kept.get(_key(path), ("", "")) for path in states}
    return {p: digest for p, (state, digest) in found.items() if state == states[p] and _SHA256.fullmatch(digest)}


def _remember(found: Mapping[Path, tuple[str, str]]) -> None:
    """Keep digests and states; a cache that cannot be written is left as it is, one that is broken is made anew."""
    if not found:
        return
    with suppress(OSError, UsageError):
        file = digests_file()
        if file.is_symlink():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [(_key(path), *each) for path, each in found.items()]
        try:
            _write(file, rows)
        except sqlite3.OperationalError:
            # another process writes, or the disk is full
            return
        except sqlite3.DatabaseError:
            file.unlink()
            with suppress(sqlite3.Error):
                _write(file, rows)


def _write(file: Path, rows: Sequence[tuple[bytes, str, str]]) -> None:
    with closing(sqlite3.connect(file)) as opened, opened:
        opened.execute(_TABLE)
        opened.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
