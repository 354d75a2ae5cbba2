"""Mirror: a folder kept the same on two machines that share no disk, by the files that have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastmask.run.files import DONE, STATE
from fastmask.system.files import replacing

# what tells a file that was replaced: when it was written, its bytes
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Change:
    """Files that are new in a folder, by name, in the order in which to write them; and the names of all it holds."""

    files: Mapping[str, bytes]
    names: frozenset[str]


@dataclass
class Mirrored:
    """A fold's folder of which somebody else keeps a copy: what has changed since he was last told.

    Files come before those that name them: the state to go on from, and the last of a fold that is done.
    """

    folder: Path
    _told: Mapping[str, Stamp | None] = field(default_factory=dict)

    def change(self) -> Change | None:
        """What has changed; None where the fold went on meanwhile, so that the files may not belong together."""
        before = _stamp(self.folder / STATE)
        try:
            stamps = {name: _stamp(self.folder / name) for name in sorted(names_in(self.folder), key=_place)}
            new = [name for name, stamp in stamps.items() if stamp != self._told.get(name)]
            files = {name: (self.folder / name).read_bytes() for name in new}
        except FileNotFoundError:
            return None
        if None in stamps.values() or _stamp(self.folder / STATE) != before:
            return None
        self._told = stamps
        return Change(files, frozenset(stamps))

    @property
    def is_told_of_its_state(self) -> bool:
        """Whether the other one has the state that is there now."""
        return self._told.get(STATE) == _stamp(self.folder / STATE)


def whole(folder: Path) -> Change:
    """All that a fold's folder holds; nothing where it has neither a state to go on from nor is done."""
    if not any((folder / name).is_file() for name in (STATE, DONE)):
        return Change({}, frozenset())
    names = sorted(names_in(folder), key=_place)
    return Change({name: (folder / name).read_bytes() for name in names}, frozenset(names))


def take_over(folder: Path, change: Change) -> None:
    """Make a folder hold what another one does."""
    for name, content in change.files.items():
        with replacing(folder / name) as beside:
            beside.write_bytes(content)
    for name in names_in(folder) - change.names:
        (folder / name).unlink(missing_ok=True)


def names_in(folder: Path) -> set[str]:
    """The names of a folder's files and those of the folders in it, but for files that are still being written."""
    return set(_names(folder, folder.rglob("*")))


def _names(folder: Path, paths: Iterable[Path]) -> Iterable[str]:
    for path in paths:
        # of safetensors and ours
        if not path.name.startswith(".") and path.is_file():
            yield path.relative_to(folder).as_posix()


def _place(name: str) -> tuple[int, str]:
    return (STATE, DONE).index(name) + 1 if name in (STATE, DONE) else 0, name


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


class Mailbox:
    """The letters of workers in the order of their arrival, until the driver takes them; an actor of Ray.

    Each is the bytes of a `Letter`, so that the actor imports neither torch nor fastai.
    """

    def __init__(self) -> None:
        self._letters: list[bytes] = []

    def put(self, letter: bytes) -> None:
        """Keep a letter: once this returns it is safe, even if its sender is lost."""
        self._letters.append(letter)

    def take(self) -> list[bytes]:
        """All letters since the last call."""
        letters, self._letters = self._letters, []
        return letters
