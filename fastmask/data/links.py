"""Links: the targets of photos and folders that are links, which are trusted, and links to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastmask.system.errors import DataError, MissingPhotoError
from fastmask.system.files import real
from fastmask.system.terminal import quote

# where tools keep the files that they link to, and the command that gets those that are missing
_STORES = {
    ".git/annex/objects": "git annex get",
    ".dvc/cache": "dvc pull",
    "files/md5": "dvc pull",
    "blobs": "download the data set again",
}


def leads_outside(path: Path, folder: Path, trusted: str | Path | None = None) -> bool:
    """Whether `path`, which starts with `folder`, is or passes a link out of it, and not into a `trusted` folder."""
    return next(_links_outside(path, folder, trusted), None) is not None


def link_fault(path: Path, folder: Path, trusted: str | Path | None = None) -> DataError:
    """The error for a path that `leads_outside`: the link, its target, and the option that allows it."""
    link = next(_links_outside(path, folder, trusted))
    target = real(link)
    if not link.exists():
        return MissingPhotoError(describe_broken(link), link.relative_to(folder).as_posix())
    place = quote(str(_store_of(target)[0]))
    return DataError(
        f"{link} is a link out of {folder}, to {target} (see fastmask guide data); copy that there, or allow "
        f"links into its folder with --trust-links {place}."
    )


def describe_broken(path: Path) -> str:
    """A sentence on a path that is or passes a link to nothing, and how to mend it; "" for any other path."""
    if path.exists():
        return ""
    link = next((each for each in (path, *path.parents) if each.is_symlink() and not each.exists()), None)
    if link is None:
        return ""
    target = Path(os.path.normpath(link.parent / os.readlink(link)))
    command = _store_of(target)[1]
    return f"{link} is a link to {target}, which does not exist; {command or 'restore that, or remove the link'}."


def _links_outside(path: Path, folder: Path, trusted: str | Path | None) -> Iterator[Path]:
    """The first link on the way from `folder` to `path` that leads out of it, if the whole path does."""
    between = [*path.parents[: len(path.parts) - len(folder.parts) - 1][::-1], path]
    if any(map(Path.is_symlink, between)):
        allowed = [real(each) for each in (folder, trusted) if each is not None]
        if not _is_in(real(path), allowed):
            yield next(each for each in between if not _is_in(real(each), allowed))


def _is_in(place: Path, folders: list[Path]) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)


def _store_of(target: Path) -> tuple[Path, str]:
    """The folder of a tool that holds the target of a link, or the target's own; and the command that fills it."""
    text = target.as_posix()
    for store, command in _STORES.items():
        if f"/{store}/" in text:
            return Path(text.partition(f"/{store}/")[0]) / store, command
    return (target if target.is_dir() else target.parent), ""
