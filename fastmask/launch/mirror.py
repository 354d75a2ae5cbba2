"""Mirror: a folder kept the same on two machines without a shared disk, and the queue for its changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastmask.run.files import DONE, STATE
from fastmask.system.files import atomic_write

# (time of writing, bytes), which change when a file is replaced
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Change:
    """The new files of a folder, by name, in the order in which to write them; and the names of all its files."""

    files: Mapping[str, bytes]
    names: frozenset[str]


@dataclass
class MirroredFolder:
    """A fold's folder with a copy elsewhere, and its changes since the copy was last updated.

    Files come before those that refer to them: the state, and the last file of a fold that is done.
    """

    folder: Path
    _sent: Mapping[str, Stamp | None] = field(default_factory=dict)

    def collect_change(self) -> Change | None:
        """What has changed; None if files changed while they were read, so that they may not belong together."""
        before = _stamp(self.folder / STATE)
        try:
            stamps = {name: _stamp(self.folder / name) for name in sorted(list_names(self.folder), key=_place)}
            new = [name for name, stamp in stamps.items() if stamp != self._sent.get(name)]
            files = {name: (self.folder / name).read_bytes() for name in new}
        except FileNotFoundError:
            return None
        if None in stamps.values() or _stamp(self.folder / STATE) != before:
            return None
        self._sent = stamps
        return Change(files, frozenset(stamps))

    @property
    def is_up_to_date(self) -> bool:
        """Whether the copy has the current state."""
        return self._sent.get(STATE) == _stamp(self.folder / STATE)


def all_files(folder: Path) -> Change:
    """All files of a fold's folder; none if it has no state to resume from and is not done."""
    if not any((folder / name).is_file() for name in (STATE, DONE)):
        return Change({}, frozenset())
    names = sorted(list_names(folder), key=_place)
    return Change({name: (folder / name).read_bytes() for name in names}, frozenset(names))


def apply_change(folder: Path, change: Change) -> None:
    """Apply a change to a copy of the folder."""
    for name, content in change.files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    for name in list_names(folder) - change.names:
        (folder / name).unlink(missing_ok=True)


def list_names(folder: Path) -> set[str]:
    """The names of all files below a folder, except for files that are still being written."""
    files = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    return {file.relative_to(folder).as_posix() for file in files}


def _place(name: str) -> tuple[int, str]:
    return (STATE, DONE).index(name) + 1 if name in (STATE, DONE) else 0, name


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


class MessageQueue:
    """The messages of workers in the order of their arrival, until the driver takes them; an actor of Ray.

    Each is the bytes of a `Message`, so that the actor imports neither torch nor fastai.
    """

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def put(self, message: bytes) -> None:
        """Store a message: after this call it is kept, even if its sender is lost."""
        self._messages.append(message)

    def take(self) -> list[bytes]:
        """All messages since the last call."""
        messages, self._messages = self._messages, []
        return messages
