"""Paths: the photos that the cells of a table name, also where these were written on another machine."""

from __future__ import annotations

import bisect
import os
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path

import pandas as pd

from fastmask.data.formats import SUFFIXES, list_files
from fastmask.data.links import describe_broken, leads_outside
from fastmask.system.errors import DataError, FastmaskWarning, MissingPhotoError
from fastmask.system.files import stays_below
from fastmask.system.text import shorten_middle

# a path from the root of a disk, or out of the folder
_OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|\.\.(?:[/\\]|$)")
# the most characters of a path in a message
_SHOWN = 300


def path_in(root: Path, cell: str) -> str:
    """A photo's path relative to `root`; one that leads out of it stays as it is."""
    # text, because a table has thousands of paths
    base = os.path.join(os.path.abspath(root), "")
    whole = os.path.normpath(os.path.join(base, cell))
    inside = cell and os.path.normcase(whole).startswith(os.path.normcase(base))
    return whole[len(base) :].replace(os.sep, "/") if inside else cell


def match_paths(
    cells: Iterable[str], paths: Collection[str], root: Path, anywhere: bool = True
) -> dict[str, list[str]]:
    """The `paths`, relative to `root`, that each cell may name: one where it is clear.

    Case, the Unicode normal form, the direction of slashes and a missing ending are ignored where the exact path is
    not among `paths`. With `anywhere`, if no cell is found that way, a cell names the paths with the same end: all of
    a relative one, and of absolute ones at least what is not the same in all cells.
    """
    inside = {cell: path_in(root, cell) for cell in cells}
    parts = {cell: _parts(path) for cell, path in inside.items()}
    known, tails = set(paths), _Tails(paths, root, {own[-1] for own in parts.values() if own})
    found = {cell: [path] if path in known else tails.whole(path, parts[cell]) for cell, path in inside.items()}
    if not anywhere or any(found.values()):
        return found
    shared = _count_shared(parts)
    return {cell: tails.longest(own, max(1, len(own) - shared)) for cell, own in parts.items()}


def photo_key(path: str) -> str:
    """A path without the ending of a photo, its case and its Unicode normal form."""
    *folders, name = _parts(path) or ("",)
    return "/".join((*folders, _without_ending(name)))


def match_photos(cells: Collection[str], photos: Collection[str]) -> dict[str, list[str]]:
    """The `photos` that each cell may name: see `match_paths`; if none is found, by file name."""
    found = match_paths(cells, photos, Path())
    if not any(found.values()):
        # the photos may be those without an ending, or with shorter paths
        found = _invert(match_paths(photos, cells, Path()), cells)
    if not any(found.values()):
        names = _invert({photo: [Path(photo).name] for photo in photos}, {Path(cell).name for cell in cells})
        found = {cell: names[Path(cell).name] for cell in cells}
    return found


def find_named(cells: pd.Series, photos: Collection[str]) -> list[str]:
    """The different cells of a column that name one of `photos`, or several: see `match_photos`."""
    return [cell for cell, named in match_photos(list(cells.unique()), photos).items() if named]


def _invert(found: Mapping[str, Sequence[str]], cells: Collection[str]) -> dict[str, list[str]]:
    """photo -> cells, turned into cell -> photos."""
    inverted: dict[str, list[str]] = {cell: [] for cell in cells}
    for photo, each in found.items():
        for cell in each:
            inverted.get(cell, []).append(photo)
    return inverted


def name_paths(cells: Iterable[str], paths: Collection[str], root: Path) -> dict[str, str]:
    """The one of `paths` that each cell names, see `match_paths`; cells that name none, or several, stay."""
    cells = set(cells)
    if cells <= set(paths):
        return {cell: cell for cell in cells}
    matches = match_paths(cells - {""}, paths, root)
    named = {cell: each[0] if len(each) == 1 else path_in(root, cell) for cell, each in matches.items()}
    return {"": "", **named}


def locate_photos(
    cells: Sequence[str],
    folder: Path,
    where: str,
    linked: bool = True,
    option: str = "--images",
    trust_links: str | Path | None = None,
) -> dict[str, str | DataError]:
    """The photo in `folder` that each cell names, relative to it, or a DataError for the cell.

    `where` is the table and its column, for a warning if the photos are found by the ends of their paths. `linked`
    allows links out of the folder, `trust_links` only those into another one; `option` names the folder in messages.
    """
    found: dict[str, str | DataError] = {}
    for cell in cells:
        exact = _find_exact(cell, folder, option)
        if exact is not None:
            found[cell] = exact
    rest = [cell for cell in cells if cell not in found]
    if rest:
        anywhere = not any(isinstance(path, str) for path in found.values())
        found |= _find_otherwise(rest, len(cells), folder, where, option, anywhere)
    return {cell: found[cell] if linked else _check_link(found[cell], folder, option, trust_links) for cell in cells}


def _find_exact(cell: str, folder: Path, option: str) -> str | DataError | None:
    path = path_in(folder, cell)
    try:
        if stays_below(Path(path)):
            is_there = bool(cell) and (folder / path).is_file()
            broken = "" if is_there else describe_broken(folder / path)
            return MissingPhotoError(broken, cell) if broken else path if is_there else None
        place = (folder / cell).parent
        is_elsewhere = (folder / cell).is_file()
    except OSError as error:
        return DataError(f"found {cell!r}, which cannot be the name of a photo ({error.strerror}).")
    hint = f"it exists, so {option} {os.path.normpath(place)} finds it"
    return DataError(f"found {cell!r}, expected a photo inside {folder}; {hint}.") if is_elsewhere else None


def _find_otherwise(
    cells: Sequence[str], total: int, folder: Path, where: str, option: str, anywhere: bool
) -> dict[str, str | DataError]:
    photos, others = list_files(folder)
    paths = [path.relative_to(folder).as_posix() for path in (*photos, *others)]
    matches = match_paths(cells, paths, folder, anywhere)
    lost = sum(not each for each in matches.values())
    nearest = _Nearest(paths)
    found: dict[str, str | DataError] = {}
    for cell, each in matches.items():
        if len(each) == 1:
            found[cell] = each[0]
        elif each:
            several = f"{each[0]} and {each[1]}{' and others' * (len(each) > 2)}"
            found[cell] = DataError(f"found {cell!r}, which matches {several}; write the full path.")
        else:
            found[cell] = _missing(cell, folder, f"{lost} of {total} are missing", nearest.find(cell), option)
    _warn_of_moved(where, {cell: path for cell, path in found.items() if isinstance(path, str)}, folder)
    return found


def _missing(cell: str, folder: Path, counted: str, near: str | None, option: str) -> DataError:
    path = path_in(folder, cell)
    if not path or not stays_below(Path(path)):
        hint = f"; the nearest photo there is {near!r}" if near else ""
        return DataError(f"found {cell!r}, expected a photo inside {folder}{hint}; name another folder with {option}.")
    hint = f"the nearest photo is {near!r}" if near else "there are no photos"
    return MissingPhotoError(
        f"{folder / shorten_middle(path, _SHOWN)} does not exist ({counted}; {hint}); correct the path, or name the "
        f"folder that the paths start from with {option}.",
        cell,
    )


def _warn_of_moved(where: str, found: dict[str, str], folder: Path) -> None:
    moved = [(cell, path) for cell, path in found.items() if len(_parts(path_in(folder, cell))) != path.count("/") + 1]
    if moved:
        cell, path = moved[0]
        warnings.warn(
            f"{where}: {len(moved)} photos are found in {folder} by the ends of their paths, such as {cell!r} as "
            f"{path!r}.",
            FastmaskWarning,
            stacklevel=5,
        )


def _check_link(path: str | DataError, folder: Path, option: str, trust_links: str | Path | None) -> str | DataError:
    if not isinstance(path, str) or not leads_outside(folder / path, folder, trust_links):
        return path
    return DataError(f"{folder / path} is a link out of {folder}; name the folder with {option} to allow that.")


def _key(text: str) -> str:
    """A text without its case and its Unicode normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _parts(path: str) -> tuple[str, ...]:
    """The keys of the folders and of the name in a path, without those that only lead to another folder."""
    return tuple(_key(part) for part in re.split(r"[/\\]", path) if part not in ("", ".", ".."))


def _count_shared(parts: dict[str, tuple[str, ...]]) -> int:
    """How many folders at the start are the same in all cells, if each of these leads out of its folder."""
    if not all(_OUTSIDE.match(cell) for cell in parts):
        return 0
    levels = zip(*(own[:-1] for own in parts.values()), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))


class _Tails:
    """Paths by their ends: `a/b/c.jpg` is also named b/c.jpg, c.jpg, and each of these without .jpg.

    Only those that end in one of `names` are kept.
    """

    def __init__(self, paths: Iterable[str], root: Path, names: set[str]) -> None:
        self._paths: dict[str, list[str]] = defaultdict(list)
        above = _parts(os.path.abspath(root))
        for path in paths:
            parts = (*above, *_parts(path))
            for name in {parts[-1], _without_ending(parts[-1])} & names:
                for start in range(len(parts)):
                    self._paths["/".join((*parts[start:-1], name))].append(path)

    def whole(self, path: str, parts: tuple[str, ...]) -> list[str]:
        """The paths that have all of these parts and no others; none for a path that leads out of its folder."""
        if _OUTSIDE.match(path):
            return []
        return [path for path in self._paths.get("/".join(parts), ()) if path.count("/") + 1 == len(parts)]

    def longest(self, parts: tuple[str, ...], least: int) -> list[str]:
        """The paths that share the most parts at the end, at least `least`.

        A name alone does not identify a path in another folder, unless the cell is a name alone.
        """
        for length in range(len(parts), least - 1, -1):
            enough = length >= min(2, len(parts))
            sharing = self._paths.get("/".join(parts[-length:]), ())
            found = [path for path in sharing if enough or length > path.count("/")]
            if found:
                return found
        return []


def _without_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending in SUFFIXES and not stem.endswith(SUFFIXES) else name


class _Nearest:
    """Finds the photo with the most similar path."""

    def __init__(self, paths: Iterable[str]) -> None:
        photos = [path for path in paths if path.lower().endswith(SUFFIXES)]
        self._by_name = {_without_ending(_key(path.rpartition("/")[2])): path for path in reversed(photos)}
        self._ordered = sorted((_key(path), path) for path in photos)

    def find(self, cell: str) -> str | None:
        """The photo of the same name in another folder or with another ending, else of the most similar path."""
        name = _without_ending("".join(_parts(cell)[-1:]))
        if name in self._by_name or not self._ordered:
            return self._by_name.get(name)
        key = "/".join(_parts(cell))
        at = bisect.bisect(self._ordered, (key, ""))
        around = self._ordered[max(0, at - 1) : at + 1]
        return max(around, key=lambda each: SequenceMatcher(None, each[0], key).ratio())[1]
