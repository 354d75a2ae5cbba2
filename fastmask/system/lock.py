"""Lock: one writer of a run directory at a time, and what one that was killed has left of it."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fastmask.system.errors import UsageError
from fastmask.system.files import check_target, real

# the end of the name of a folder beside a run, in which it is made, and what a run that it replaces is called there
ASIDE, REPLACED = ".new", "old"
# seconds that a worker may still write until it has noticed that its driver is gone, or that its node was cut off
_DRIVER_GONE, _CUT_OFF = 60.0, 300.0
# bytes read of a holder's description
_MOST_BYTES = 1000


@contextmanager
def held(out: Path) -> Iterator[None]:
    """A block in which no other process may write to the run at `out`; raises UsageError where one does."""
    place = real(out)
    made = [parent for parent in place.parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(place)
    try:
        lock.acquire()
    except Timeout:
        raise taken(out, Path(lock.lock_file)) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        # the lock holds without the words, and whatever the disk does at its end is no news
        with suppress(OSError):
            _write_holder(Path(lock.lock_file), f"process {os.getpid()} on {platform.node()} since {since}")
        clear_left(out)
        _clear_locks_of_folds(out, place)
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        # what was made for a run that came to nothing; one that holds something stays
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


@contextmanager
def fold_held(out: Path, fold: int, say: Callable[[str], None], wait: float = _CUT_OFF) -> Iterator[None]:
    """A block in which no other worker may write to a fold of the run at `out`; what one half wrote is cleared away.

    Another may live on a node that was cut off: says so, and raises UsageError where that writes for `wait` seconds
    more.
    """
    place = real(out)
    lock = _lock_of_fold(place, fold)
    try:
        lock.acquire()
    except Timeout:
        say(f"fold{fold} waits for {holder_of(Path(lock.lock_file))}, which still writes to it")
        _wait_for(lock, out, wait)
    try:
        with suppress(OSError):
            _write_holder(Path(lock.lock_file), f"process {os.getpid()} on {platform.node()}")
        clear_files(place.glob(f"fold{fold}/.*"))
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _lock_of_fold(place: Path, fold: int) -> FileLock:
    # beside the run, which holds results alone
    return FileLock(place.with_name(f".{place.name}.fold{fold}.lock"), timeout=0)


def _wait_for(lock: FileLock, out: Path, wait: float) -> None:
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        holder = holder_of(Path(lock.lock_file))
        raise UsageError(f"A fold of {out} is still being written by {holder}; end it, or wait for it.") from None


def _clear_locks_of_folds(out: Path, place: Path) -> None:
    """Wait for workers whose driver was killed, and clear away what they have left."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.fold*.lock"):
        lock = FileLock(left)
        _wait_for(lock, out, _DRIVER_GONE)
        with suppress(OSError):
            left.unlink(missing_ok=True)
        lock.release()


@contextmanager
def changing(file: str | Path, wait: float) -> Iterator[Path]:
    """A block in which no other process changes a file; yields where it really lies, links followed.

    Raises UsageError where nothing can be written there, or another process takes more than `wait` seconds.
    """
    # a link to a file that several share stays one
    place = real(file)
    check_target(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(place)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise UsageError(f"{file} has been written by another process for {wait:.0f} s; end it, or wait.") from None
    try:
        for left in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
            # of a process that was killed: whoever holds the lock is the only one that writes
            left.unlink()
        yield place
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_not_held(out: Path) -> None:
    """Raise UsageError if another process writes to the run at `out`."""
    lock = _lock_of(real(out))
    if Path(lock.lock_file).exists():
        try:
            with lock:
                return
        except Timeout:
            raise taken(out, Path(lock.lock_file)) from None


def token(out: Path) -> str:
    """What is read only where the disk of the holder of the run at `out` is seen; nothing where nobody holds it."""
    try:
        return _read_holder(Path(_lock_of(real(out)).lock_file))
    except (OSError, UnicodeDecodeError):
        return ""


def _lock_of(place: Path) -> FileLock:
    return FileLock(place.with_name(f".{place.name}.lock"), timeout=0)


def taken(out: Path, lock: Path) -> UsageError:
    """The error of a run that cannot be held, because another process holds it or nothing can be written there."""
    if not lock.exists():
        return UsageError(f"{out} cannot be written, no file can be made beside it; name another --out.")
    return UsageError(f"{out} is being written by {holder_of(lock)}; wait for it, or name another --out.")


def holder_of(lock: Path) -> str:
    """Who holds a lock, in words."""
    try:
        # it may be gone by now, and anybody may have written it
        return _read_holder(lock)[:200] or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def _write_holder(lock: Path, words: str) -> None:
    # Windows locks the first byte: no other process can read or write it
    with lock.open("r+b", buffering=0) as file:
        file.seek(1)
        file.write(words.encode())
        file.truncate()


def _read_holder(lock: Path) -> str:
    with lock.open("rb", buffering=0) as file:
        file.seek(1)
        return file.read(_MOST_BYTES).decode()


def clear_left(path: Path) -> None:
    """Clear away what a process that was killed has left of a run, and give back the run that it was replacing.

    Nobody else may be writing to the run.
    """
    place = real(path)
    for aside in place.parent.glob(f".{glob.escape(place.name)}.????????{ASIDE}"):
        if (aside / REPLACED).exists() and not place.exists():
            (aside / REPLACED).rename(place)
        shutil.rmtree(aside)
    # ours, and those in which safetensors writes
    clear_files((*place.glob(".*.part"), *place.glob("fold*/.*")))


def clear_files(left: Iterable[Path]) -> None:
    """Remove those that are plain files."""
    for file in left:
        if file.is_file():
            file.unlink()
