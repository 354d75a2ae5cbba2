"""Members: the runs of an ensemble, whether they are compatible, and how the ensemble finds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastmask.heads import JOINT, Heads
from fastmask.inference.blend import Blend
from fastmask.run.directory import RunDirectory
from fastmask.run.files import ENSEMBLE, OOF
from fastmask.run.overlap import have_same_persons, rows_of
from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import real
from fastmask.system.text import join_some


def learned_heads(run: RunDirectory) -> tuple[str, ...]:
    """The heads that a run has learned: not those of weight 0, which are not part of the loss, nor finer bands."""
    return tuple(head.name for head in run.heads if head.weight > 0 and head.bands_of is None)


def judge_of(runs: Sequence[RunDirectory], head: str) -> RunDirectory:
    """The run whose labels and bounds of a head an ensemble is scored by: the first that has the head."""
    return next(run for run in runs if head in run.heads.names)


def all_heads(runs: Sequence[RunDirectory]) -> Heads:
    """The heads that any of the runs has learned, in the order of the run with the most heads, then of the others.

    If a run has a joint head, its joint probabilities are what is blended.
    """
    found = {name: run.heads[name] for run in reversed(runs) for name in learned_heads(run)}
    if JOINT in found:
        found[JOINT] = replace(found[JOINT], weight=1.0, joint_share=1.0)
    most = max(runs, key=lambda run: len(run.heads))
    order = dict.fromkeys(name for run in (most, *runs) for name in run.heads.names if name in found)
    return Heads([replace(found[name], bounds=judge_of(runs, name).heads[name].bounds) for name in order])


def check_members(runs: Sequence[RunDirectory], out: Path) -> None:
    """Raise UsageError unless the runs can form an ensemble at `out`: two or more different runs, no ensembles.

    The photos that they share are of the same persons, and heads that they share have the same classes.
    """
    check_runs_differ(runs, out, "An ensemble", 2)
    for run in runs[1:]:
        if not have_same_persons(runs[0], run):
            raise _misfit(runs[0], run, _describe_persons(runs[0], run))
    for run in runs:
        for name in learned_heads(run):
            judge = judge_of(runs, name)
            difference = _head_difference(judge, run, name)
            if difference:
                raise _misfit(judge, run, difference)
    _check_joint(runs)


def check_runs_differ(runs: Sequence[RunDirectory], out: Path, what: str, least: int) -> None:
    """Raise UsageError unless the runs that `what` is made of at `out` are `least` or more, different, no ensembles."""
    if not least <= len(runs) <= limits.MEMBERS:
        raise UsageError(f"{what} is made of {least} to {limits.MEMBERS} runs; found {len(runs)}.")
    places = [real(run.path) for run in runs]
    for i, run in enumerate(runs):
        run.check_trained()
        if places[i] in places[:i]:
            raise UsageError(f"{run.path} is named twice; name each run once.")
        if places[i] == real(out):
            raise UsageError(f"{out} is one of the runs; name another --out.")


def _check_joint(runs: Sequence[RunDirectory]) -> None:
    """Raise UsageError if a run of the joint class meets one that has not all of its heads."""
    joint = next((run for run in runs if run.heads.joint_head is not None), None)
    for run in runs:
        if joint is not None and (run.heads.classified != joint.heads.classified or run.heads.unlearned):
            raise UsageError(
                f"{joint.path} has learned the joint class of {join_some(joint.heads.classified)}, and {run.path} has "
                f"learned {join_some([name for name in run.heads.classified if name not in run.heads.unlearned])}; "
                "take runs of the same heads, in the same order."
            )
        for other in runs:
            (name, *more), size = run.heads.classified, other.heads.n_joint
            if not more and name not in other.heads.names and len(run.heads[name].classes) == size:
                raise UsageError(
                    f"{run.path} has one head, {name}, of {size} classes, which are not known to be the joint classes "
                    f"of {join_some(other.heads.classified)}, as {other.path} has them; train it on the same data with "
                    "--one-head."
                )


def _misfit(one: RunDirectory, other: RunDirectory, difference: str) -> UsageError:
    return UsageError(f"{one.path} and {other.path} do not belong together: {difference}.")


def _describe_persons(one: RunDirectory, other: RunDirectory) -> str:
    """How many photos have another person in the second of two runs, with the first of them."""
    both = one.folds[["path", "person"]].merge(other.folds[["path", "person"]], on="path", suffixes=("", "_there"))
    differing = both[both["person"] != both["person_there"]]
    path, person, found = differing.iloc[0]
    return (
        f"{len(differing)} of {len(both)} photos have other persons, such as {path}, of person {person} in the first, "
        f"of {found} in the second; take runs of the same photos"
    )


def align_column(one: RunDirectory, other: RunDirectory, column: str) -> np.ndarray:
    """A column of `other`'s photos, in the order of the photos of `one`; "" for a photo that `other` lacks."""
    rows = rows_of(other.folds["path"], one.folds["path"])
    return np.where(rows >= 0, other.folds[column].to_numpy(dtype=object)[rows], "")


def _head_difference(one: RunDirectory, other: RunDirectory, name: str) -> str | None:
    """Describe the first difference between two runs' classes of a head, or return None."""
    a, b = one.heads[name], other.heads[name]
    for what, here, there in (
        ("classes", ", ".join(a.classes), ", ".join(b.classes)),
        ("form", *("a distribution" if head.spread else "classes" for head in (a, b))),
    ):
        if here != there:
            return f"the {what} of head {name} are {here} in the first, {there} in the second"
    return None


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
        asked = [name for name, mixture in blend.mixtures.items() if number in mixture.members]
        asked += blend.heads.classified if JOINT in asked else ()
        same = (run.identity, _digest(run.path / OOF)) == (member["identity"], member["oof"])
        alike = all(
            name in learned_heads(run) and run.heads[name].classes == blend.heads[name].classes
            for name in asked
            # also runs without a joint head have a joint class
            if name != JOINT or run.heads.joint_head is not None
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
