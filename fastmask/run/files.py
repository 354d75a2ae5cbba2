"""Files: the names of a run's files, and the checks that a folder holds those and nothing else."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path

from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_parent, real

CONFIG, PIPELINES, HEADS, ENVIRONMENT, FOLDS, SKIPPED, OOF, SCORES = (
    "config.yaml",
    "pipelines.yaml",
    "heads.json",
    "environment.json",
    "folds.csv",
    "skipped.csv",
    "oof.csv",
    "scores.json",
)
# the members of an ensemble, which has no pipelines and no folders of folds
ENSEMBLE = "ensemble.json"
# photos of other sources that the run was trained on
EXTRA = "extra.csv"
# the teacher's probabilities for its photos
TEACHER = "teacher.safetensors"
# the report, the model card, and the folder of their pictures
PAGE, CARD, PICTURES = "report.html", "README.md", "report"
FILES = {CONFIG, PIPELINES, HEADS, ENVIRONMENT, FOLDS, SKIPPED, OOF, SCORES, ENSEMBLE, EXTRA, TEACHER, PAGE, CARD}
# of a fold: the file that is written last, and the state that it resumes from until then
DONE, STATE = "done.json", "state.safetensors"
# a fold's network after its last epochs on all photos
REFIT = "refit.safetensors"


def check_inside(path: Path) -> None:
    """Raise DataError if a file of a run is a link out of its directory, or neither a file nor a folder.

    A run may come from an unknown source: nothing outside of it is read, copied or written.
    """
    named = [*path.glob("fold*"), path / PICTURES]
    within = [e for folder in named if folder.is_dir() and not folder.is_symlink() for e in folder.rglob("*")]
    place = os.path.realpath(path)
    for entry in (*(path / name for name in sorted(FILES)), *named, *within):
        if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(place):
            raise DataError(f"{entry} is a link out of the run; replace it by a copy of its target.")
        special = entry.exists() and not entry.is_file() and not entry.is_dir()
        # only folders have no suffix
        if special or (entry.suffix and entry.is_dir()) or (entry.is_symlink() and not entry.exists()):
            raise DataError(f"{entry} is not a plain file; restore it.")


def check_free(path: Path, overwrite: bool = False) -> None:
    """Raise UsageError if a run cannot be written at `path`."""
    place = real(path)
    check_parent(place)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{path} is a file; name another folder with --out.")
    if not place.exists() or not any(place.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{path} exists; name another folder with --out, or replace it with --overwrite.")
    names = {entry.name for entry in place.iterdir() if not fnmatch(entry.name, ".*.part")}
    foreign = sorted(n for n in names - FILES - {PICTURES} if not re.fullmatch(r"fold[0-9]+", n))
    pictures = (e for e in (place / PICTURES).glob("*") if e.suffix != ".png" and not fnmatch(e.name, ".*.part"))
    foreign += sorted(f"{PICTURES}/{e.name}" for e in pictures)
    if foreign or not {CONFIG, HEADS, FOLDS} <= names:
        why = f"it holds {foreign[0]}" if foreign else "it lacks a run's files"
        raise UsageError(f"{path} is not a run ({why}), so --overwrite does not replace it; name another --out.")
