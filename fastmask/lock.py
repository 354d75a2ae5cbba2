"""Lock: one writer of a run directory at a time, and what one that was killed has left of it."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fastmask.errors import UsageError
from fastmask.files import real

# the end of the name of a folder beside a run, in which it is made, and what a run that it replaces is called there
ASIDE, REPLACED = ".new", "old"


@contextmanager
def held(out: Path) -> Iterator[None]:
    """A block in which no other process may write to the run at `out`; raises UsageError where one does."""
    place = real(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = holder_of(Path(lock.lock_file))
        raise UsageError(f"{out} is being written by {holder}; wait for it, or name another --out.") from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        Path(lock.lock_file).write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        clear_left(out)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def holder_of(lock: Path) -> str:
    """Who holds a lock, in words."""
    try:
        # it may be gone by now, and anybody may have written it
        return lock.read_text(encoding="utf-8")[:200] or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def clear_left(path: str | Path) -> None:
    """Clear away what a process that was killed has left of a run, and give back the run that it was replacing.

    Nobody else may be writing to the run.
    """
    place = real(path)
    for aside in place.parent.glob(f".{glob.escape(place.name)}.????????{ASIDE}"):
        if (aside / REPLACED).exists() and not place.exists():
            (aside / REPLACED).rename(place)
        shutil.rmtree(aside)
    for left in (*place.glob(".*.part"), *place.glob("fold*/.*")):
        # ours, and those in which safetensors writes
        if left.is_file():
            left.unlink()
