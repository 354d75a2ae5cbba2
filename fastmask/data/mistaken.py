"""Mistaken data: errors for a part of a contest folder, or a file that is not a CSV, with what to give instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastmask.data.contest import CONTEST_COLUMNS, MASK_OF_STEM, PERSON_FOLDER, is_contest, read_header
from fastmask.data.formats import SUFFIXES, is_hidden, is_run, photo_names
from fastmask.system.errors import UsageError
from fastmask.system.files import read_strings
from fastmask.system.terminal import quote

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
# tables that are read as a CSV, and those that are not
TABLES = (".csv", ".tsv", ".tab", ".txt")
_SHEETS = (".xls", ".xlsx", ".ods", ".json", ".jsonl", ".parquet", ".feather", ".arrow", ".pkl")
# files that are not a CSV, by their endings, and what to give in their place
_KINDS = (
    ((".dvc",), "is a pointer of DVC; run dvc pull, and give the data in its place"),
    (ARCHIVES, "is an archive; unpack it, and give the folder in its place"),
    (_SHEETS, "is not a CSV; save it as one, with commas, a row per photo and a column per head"),
    (SUFFIXES, "is one photo; expected a folder per class, a CSV or a contest folder"),
)
_OTHER = "is not a CSV (NAME.csv); expected one, a folder per class, or a contest folder"
# the folders of photos in a contest folder, relative to the folder with train.csv or with train/train.csv
_TRAIN_PART, _EVAL_PARTS = re.compile("(train/)?images(/[^/]+)?"), ("eval", "eval/images")
# levels of folders that are searched for a contest folder, and the most folders in one of them
_LEVELS, _MOST_FOLDERS = 3, 30
# the most folders whose photos are listed to recognize persons
_LOOKED_AT = 20


def class_folders(folder: Path) -> list[str]:
    """The folders inside `folder`, sorted, without hidden ones and results; none where it is not a folder."""
    return [name for name in _shown_folders(folder) if not _holds_results(folder / name)]


def result_folders(folder: Path) -> list[str]:
    """The folders inside `folder` that hold results of fastmask and nothing else, sorted."""
    return [name for name in _shown_folders(folder) if _holds_results(folder / name)]


def _shown_folders(folder: Path) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if not is_hidden(name) and os.path.isdir(folder / name))


def _holds_results(folder: Path) -> bool:
    """Whether a folder is a run, or holds runs and no photos."""
    if is_run(folder):
        return True
    folders = [folder / name for name in _shown_folders(folder) if not (folder / name).is_symlink()]
    return bool(folders) and not photo_names(folder) and all(map(_holds_results, folders))


def check_kind(data: str) -> None:
    """Raise UsageError for an address, an archive, or a file that is not a CSV, naming what to give in its place."""
    path, suffix = Path(data), Path(data).suffix.lower()
    if _ADDRESS.match(data) and not path.exists():
        raise UsageError(f"--data is the address {data}; download it first, and name the folder or the CSV.")
    if not path.exists() and path.with_name(f"{path.name}.dvc").is_file():
        raise UsageError(f"{path} does not exist, but {path}.dvc does: get the data with dvc pull.")
    if path.is_file() and suffix not in TABLES:
        raise UsageError(f"{path} {next((what for endings, what in _KINDS if suffix in endings), _OTHER)}.")


def check_csv_name(file: Path) -> None:
    """Raise UsageError for the contest's train.csv under another name."""
    if _is_misnamed(file):
        raise UsageError(f"{file} {_rename(file)}")


def check_no_contest(folder: Path) -> None:
    """Raise UsageError naming the folder to give where `folder` is a part of a contest folder, or holds one."""
    _check_above(folder)
    persons = are_persons(folder, class_folders(folder))
    csv = _misnamed_csv(folder)
    if csv is not None:
        raise UsageError(f"{folder} {'holds persons' if persons else 'is not a contest folder'}: {csv} {_rename(csv)}")
    if persons:
        raise UsageError(
            f"{folder} holds a folder per person, such as {class_folders(folder)[0]}, not one per class; expected the "
            f"contest's folder, with the persons' labels in {folder.parent / 'train.csv'}, which does not exist."
        )
    below = _contest_below(folder)
    if below is not None:
        raise UsageError(f"{folder} is not a contest folder, but holds one: give {quote(str(below))} in its place.")


def are_persons(folder: Path, names: list[str]) -> bool:
    """Whether most of the folders `names` are the contest's persons, by their names or by their seven photos."""
    looked_at = names[:: max(1, len(names) // _LOOKED_AT)]
    persons = [bool(PERSON_FOLDER.fullmatch(name)) or _holds_seven(folder / name) for name in looked_at]
    return sum(persons) > len(persons) / 2


def _holds_seven(folder: Path) -> bool:
    return set(MASK_OF_STEM) <= {Path(name).stem for name in photo_names(folder)}


def _check_above(folder: Path) -> None:
    """Raise UsageError for the photos of a contest folder, naming the highest folder to give."""
    place = Path(os.path.abspath(folder))
    for above in reversed(place.parents[:3]):
        part = place.relative_to(above).as_posix()
        predicted = part in _EVAL_PARTS
        if not (predicted or _TRAIN_PART.fullmatch(part)) or not is_contest(above):
            continue
        whole = quote(str(above if folder.is_absolute() else Path(os.path.relpath(above))))
        if predicted:
            raise UsageError(f"{folder} has no labels to train on; give {whole} in its place, and predict {folder}.")
        raise UsageError(
            f"{folder} is a part of a contest folder, with its labels in train.csv; give {whole} in its place."
        )


def _contest_below(folder: Path) -> Path | None:
    """The first contest folder inside `folder`, nearest first."""
    level = [folder]
    for _ in range(_LEVELS):
        inside = ((above, class_folders(above)) for above in level)
        level = [above / name for above, names in inside if len(names) <= _MOST_FOLDERS for name in names]
        found = next(filter(is_contest, level), None)
        if found is not None:
            return found
    return None


def _misnamed_csv(folder: Path) -> Path | None:
    """The contest's train.csv under another name, where train.csv is expected."""
    places = (folder, folder / "train", *([folder.parent] if folder.name == "images" else []))
    files = (file for place in places if place.is_dir() for file in sorted(place.iterdir()))
    return next((file for file in files if file.suffix.lower() == ".csv" and _is_misnamed(file)), None)


def _is_misnamed(file: Path) -> bool:
    """Whether a CSV is the contest's train.csv under another name: it names persons, with their folders next to it."""
    is_other = file.name != "train.csv" and file.is_file() and (file.parent / "images").is_dir()
    if not is_other or not set(CONTEST_COLUMNS) <= set(read_header(file)):
        return False
    return not read_strings(file, ("path",))["path"].str.lower().str.endswith(SUFFIXES).any()


def _rename(file: Path) -> str:
    whole = quote(str(file.parent))
    return f"has the columns of the contest's train.csv; rename it to train.csv, and give {whole} as the data."
