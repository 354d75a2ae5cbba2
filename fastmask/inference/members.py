"""Members: the runs of an ensemble, whether they are compatible, and how the ensemble finds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.heads import Heads
from fastmask.inference.blend import Blend
from fastmask.run.directory import RunDirectory
from fastmask.run.files import ENSEMBLE, OOF
from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import real


def learned_heads(run: RunDirectory) -> tuple[str, ...]:
    """The heads that a run has learned: not those of weight 0, which are not part of the loss."""
    return tuple(head.name for head in run.heads if head.weight > 0)


def all_heads(runs: Sequence[RunDirectory]) -> Heads:
    """The heads that any of the runs has learned, in the order of the run with the most heads, then of the others."""
    found = {name: run.heads[name] for run in reversed(runs) for name in learned_heads(run)}
    most = max(runs, key=lambda run: len(run.heads))
    order = dict.fromkeys(name for run in (most, *runs) for name in run.heads.names if name in found)
    return Heads([found[name] for name in order])


def check_members(runs: Sequence[RunDirectory], out: Path) -> None:
    """Raise UsageError unless the runs can form an ensemble at `out`: two or more different runs, no ensembles.

    They have the same photos, persons and labels, in any order, and the same classes and bounds of each shared head.
    """
    if not 2 <= len(runs) <= limits.MEMBERS:
        raise UsageError(f"An ensemble is made of 2 to {limits.MEMBERS} runs; found {len(runs)}.")
    places = [real(run.path) for run in runs]
    for i, run in enumerate(runs):
        run.check_trained()
        if places[i] in places[:i]:
            raise UsageError(f"{run.path} is named twice; name each run once.")
        if places[i] == real(out):
            raise UsageError(f"{out} is one of the runs; name another --out.")
    for run in runs[1:]:
        difference = _difference(runs[0], run)
        if difference:
            raise _misfit(runs[0], run, difference)
    first: dict[str, RunDirectory] = {}
    for run in runs:
        for name in learned_heads(run):
            one = first.setdefault(name, run)
            difference = _head_difference(one, run, name)
            if difference:
                raise _misfit(one, run, difference)


def _misfit(one: RunDirectory, other: RunDirectory, difference: str) -> UsageError:
    return UsageError(f"{one.path} and {other.path} do not belong together: {difference}.")


def _difference(one: RunDirectory, other: RunDirectory) -> str | None:
    """Describe the first difference between two runs' photos or persons, or return None."""
    for what, a, b in (("photos", one.folds, other.folds), ("OOF predictions", one.oof, other.oof)):
        for run, there, missing in ((other, a, b), (one, b, a)):
            lacking = pd.Index(there["path"]).difference(pd.Index(missing["path"]), sort=False)
            if len(lacking):
                return f"{run.path} lacks {len(lacking)} of the {len(there)} {what}, such as that of {lacking[0]}"
    differing = np.flatnonzero(align_column(one, other, "person") != one.folds["person"])
    if len(differing):
        path, person = one.folds[["path", "person"]].iloc[int(differing[0])]
        found = other.folds.loc[other.folds["path"] == path, "person"].iloc[0]
        return f"photo {path} is of person {person} in the first, of {found} in the second"
    return None


def align_column(one: RunDirectory, other: RunDirectory, column: str) -> np.ndarray:
    """A column of `other`'s photos, in the order of the photos of `one`."""
    rows = pd.Index(other.folds["path"]).get_indexer(pd.Index(one.folds["path"]))
    return other.folds[column].to_numpy(dtype=object)[rows]


def _head_difference(one: RunDirectory, other: RunDirectory, name: str) -> str | None:
    """Describe the first difference between two runs' classes or labels of a head, or return None."""
    a, b = one.heads[name], other.heads[name]
    for what, here, there in (
        ("classes", ", ".join(a.classes), ", ".join(b.classes)),
        ("bounds", _words(a.bounds), _words(b.bounds)),
        ("form", *("a distribution" if head.spread else "classes" for head in (a, b))),
    ):
        if here != there:
            return f"the {what} of head {name} are {here} in the first, {there} in the second"
    ours, theirs = one.folds[name].to_numpy(dtype=object), align_column(one, other, name)
    differing = np.flatnonzero(ours != theirs)
    if not len(differing):
        return None
    row = int(differing[0])
    return (
        f"{len(differing)} labels differ, such as {name} of {one.folds['path'].iloc[row]}, {ours[row]!r} in the first, "
        f"{theirs[row]!r} in the second; take runs with the same fixes"
    )


def _words(bounds: Sequence[float] | None) -> str:
    return ", ".join(map(str, bounds or ())) or "none"


def member_names(runs: Sequence[RunDirectory]) -> list[str]:
    """The name of each run in tables: its folder's, with a number if another run has the same name."""
    names: list[str] = []
    for run in runs:
        name = real(run.path).name
        names.append(next(n for n in (name, *(f"{name}-{i}" for i in range(2, 1000))) if n not in names))
    return names


def describe(run: RunDirectory, name: str, out: Path) -> dict[str, str]:
    """The entry of a run in an ensemble at `out`: its path relative to `out`, and the digests that identify it."""
    try:
        path = os.path.relpath(real(run.path), real(out))
    except ValueError:
        # on another drive
        path = str(real(run.path))
    return {"name": name, "path": Path(path).as_posix(), "identity": run.identity, "oof": _digest(run.path / OOF)}


def _digest(file: Path) -> str:
    # in chunks, since a file may have been replaced by one that exceeds the memory
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def open_members(ensemble: RunDirectory, blend: Blend) -> dict[str, RunDirectory]:
    """Open the runs of an ensemble, by name; raises DataError if one is missing or has changed."""
    opened: dict[str, RunDirectory] = {}
    places: list[Path] = []
    for number, member in enumerate(ensemble.ensemble["members"]):
        place = Path(os.path.normpath(real(ensemble.path) / member["path"]))
        if not (place / OOF).is_file():
            raise DataError(
                f"{ensemble.path} is made of {place}, which does not exist; restore it, or make the ensemble again."
            )
        run = RunDirectory.load(place)
        asked = [name for name, weights in blend.weights.items() if weights[number] > 0]
        same = (run.identity, _digest(run.path / OOF)) == (member["identity"], member["oof"])
        alike = all(
            name in learned_heads(run) and run.heads[name].classes == blend.heads[name].classes for name in asked
        )
        # the last condition: the OOF predictions may exist without the checkpoints of their folds
        if not same or not alike or not set(run.oof["fold"]) <= set(run.trained_folds):
            raise DataError(
                f"{place} has changed since {ensemble.path} was made of it; make the ensemble again with --overwrite."
            )
        if member["name"] in opened or real(place) in places:
            raise DataError(f"{ensemble.path / ENSEMBLE} names {member['name']} twice; restore it.")
        opened[member["name"]] = run
        places.append(real(place))
    return opened
