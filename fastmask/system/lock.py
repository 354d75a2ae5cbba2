"""Lock: one writer of a run directory at a time, and the leftovers of one that was killed."""

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

from fastmask.system import limits
from fastmask.system.errors import UsageError
from fastmask.system.files import check_target, real
from fastmask.system.text import shorten

# suffix of the folder next to a run in which the run is built, and the name in it of the run that is replaced
ASIDE, REPLACED = ".new", "old"
# seconds until a worker notices that its driver is gone, or that its node was cut off
_DRIVER_GONE, _CUT_OFF = 60.0, 300.0


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """A context in which no other process writes to the run at `out`; raises UsageError if one does."""
    place = real(out)
    made = [parent for parent in place.parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(place)
    try:
        lock.acquire()
    except Timeout:
        raise _locked_error(out, lock) from None
    try:
        with _release_after(lock):
            clear_leftovers(out)
            _clear_locks_of_folds(out, place)
            yield
    finally:
        # removes only the folders of a run that was not written: others are not empty
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


@contextmanager
def lock_fold(out: Path, fold: int, say: Callable[[str], None], wait: float = _CUT_OFF) -> Iterator[None]:
    """A context in which no other worker writes to a fold of the run at `out`; half-written files are removed.

    Waits, with a message, for another worker, which may be on a node that was cut off; raises UsageError after `wait`
    seconds.
    """
    place = real(out)
    lock = _lock_of(place, f".fold{fold}")
    try:
        lock.acquire()
    except Timeout:
        say(f"fold{fold} waits for {holder_of(Path(lock.lock_file))}, which still writes to it")
        _wait_for(lock, out, wait)
    with _release_after(lock):
        clear_files(place.glob(f"fold{fold}/.*"))
        yield


@contextmanager
def lock_file(file: str | Path, wait: float) -> Iterator[Path]:
    """A context in which no other process changes a file; yields its path with links resolved.

    Raises UsageError if it cannot be written, or if another process holds it for more than `wait` seconds.
    """
    # a link to a shared file is kept
    place = real(file)
    check_target(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(place)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise UsageError(f"{file} has been written by another process for {wait:.0f} s; end it, or wait.") from None
    with _release_after(lock):
        # left by a killed process, because only the holder of the lock writes
        clear_files(place.parent.glob(f".{glob.escape(place.name)}.*.part"))
        yield place


def _lock_of(place: Path, fold: str = "") -> FileLock:
    # next to the run, which contains only results
    return FileLock(place.with_name(f".{place.name}{fold}.lock"), timeout=0)


@contextmanager
def _release_after(lock: FileLock) -> Iterator[None]:
    """A context that describes the holder of an acquired lock in its file, and releases and removes it at the end."""
    file = Path(lock.lock_file)
    try:
        # the lock works without the description
        with suppress(OSError):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            _write_holder(file, f"process {os.getpid()} on {platform.node()} since {since}")
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        lock.release()


def _wait_for(lock: FileLock, out: Path, wait: float) -> None:
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        holder = holder_of(Path(lock.lock_file))
        raise UsageError(f"A fold of {out} is still being written by {holder}; end it, or wait for it.") from None


def _clear_locks_of_folds(out: Path, place: Path) -> None:
    """Wait for workers of a driver that was killed, and remove their locks."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.fold*.lock"):
        lock = FileLock(left)
        _wait_for(lock, out, _DRIVER_GONE)
        with _release_after(lock):
            pass


def check_unlocked(out: Path) -> None:
    """Raise UsageError if another process writes to the run at `out`."""
    lock = _lock_of(real(out))
    if Path(lock.lock_file).exists():
        try:
            with lock:
                return
        except Timeout:
            raise _locked_error(out, lock) from None


def _locked_error(out: Path, lock: FileLock) -> UsageError:
    file = Path(lock.lock_file)
    if not file.exists():
        return UsageError(f"{out} cannot be written, no file can be made next to it; name another --out.")
    return UsageError(f"{out} is being written by {holder_of(file)}; wait for it, or name another --out.")


def read_token(out: Path) -> str:
    """The description of the holder of the run at `out`, readable only on its disk; "" if it is not held."""
    try:
        return _read_holder(Path(_lock_of(real(out)).lock_file))
    except (OSError, UnicodeDecodeError):
        return ""


def holder_of(lock: Path) -> str:
    """The description of a lock's holder."""
    try:
        # it may be missing or invalid
        return shorten(_read_holder(lock)) or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def _write_holder(lock: Path, words: str) -> None:
    # Windows locks the first byte, which no other process can read or write
    with lock.open("r+b", buffering=0) as file:
        file.seek(1)
        file.write(words.encode())
        file.truncate()


def _read_holder(lock: Path) -> str:
    with lock.open("rb", buffering=0) as file:
        file.seek(1)
        return file.read(limits.LOCK_BYTES).decode()


def clear_leftovers(path: Path) -> None:
    """Remove the leftovers of a killed process from a run, and restore the run that it was replacing.

    No other process may be writing to the run.
    """
    place = real(path)
    for aside in place.parent.glob(f".{glob.escape(place.name)}.????????{ASIDE}"):
        if (aside / REPLACED).exists() and not place.exists():
            (aside / REPLACED).rename(place)
        shutil.rmtree(aside)
    # temporary files of fastmask and of safetensors
    clear_files((*place.glob(".*.part"), *place.glob("fold*/.*")))


def clear_files(left: Iterable[Path]) -> None:
    """Remove the plain files of `left`."""
    for file in left:
        if file.is_file():
            file.unlink()
