"""Layout: which folders inside a folder of photos are classes, and which are splits that hold the classes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from fastmask.data.formats import is_hidden, is_photo, photo_names
from fastmask.data.links import describe_broken
from fastmask.data.mistaken import ARCHIVES, check_no_contest, class_folders
from fastmask.data.table import LEFT_OUT, SPLITS, TRAIN_ONLY
from fastmask.system.errors import DataError, UsageError
from fastmask.system.terminal import quote
from fastmask.system.text import join_some

# words that the name of a split may have in addition, as in training_set, seg_train, train-images, train2017
_ADDED = {"", "set", "split", "data", "dataset", "seg", "images", "imgs", "photos"}
# folders that hold the photos of all classes, or what belongs to them
_NO_CLASSES = {"images", "image", "imgs", "img", "photos", "jpegimages", "labels", "annotations", "masks"}


@dataclass(frozen=True)
class Layout:
    """The folders of the classes, each with its fold VALIDATED or TRAIN_ONLY, and the names of other folders."""

    places: Mapping[Path, int]
    left_out: Sequence[str] = ()

    def classes(self, fold: int | None = None) -> list[str]:
        """The names of the classes, of all folds or of one, sorted."""
        return sorted({place.name for place, own in self.places.items() if fold in (None, own)})


def find_layout(folder: Path) -> Layout:
    """The layout of a folder; raises UsageError naming what to give in its place if it has no folder per class.

    Raises DataError for a link to a folder that does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected one that holds a folder per class.")
    check_no_contest(folder)
    _check_links(folder)
    names = class_folders(folder)
    splits = {name: fold for name in names if (fold := fold_of(name)) is not None}
    if splits and _are_splits(folder, names, splits):
        return _find_splits(folder, names, splits)
    _check_classes(folder, names)
    return Layout({folder / name: TRAIN_ONLY for name in names})


def fold_of(name: str) -> int | None:
    """The fold of a folder with the name of a split; None for any other name."""
    words = set(re.split("[^a-z]+", name.lower())) - _ADDED
    return SPLITS.get(words.pop()) if len(words) == 1 else None


def _are_splits(folder: Path, names: Sequence[str], splits: Collection[str]) -> bool:
    """Whether the folders `splits` of `names` are splits, and not classes called train or test."""
    if len(splits) == len(names):
        return True
    inside = {name: set(class_folders(_enter(folder / name))) for name in names}
    others = [name for name in names if name not in splits and _holds_photos(folder / name)]
    if not others:
        return len(splits) > 1 or any(inside[name] for name in splits)
    are_alike = any(len(inside[one] & inside[two]) > 1 for one, two in combinations(splits, 2))
    return are_alike and not any(len(inside[one] & inside[two]) > 1 for one in splits for two in others)


def _enter(split: Path) -> Path:
    """The folder that holds the classes of a split, which may be inside another one: train/train/cat."""
    names = class_folders(split)
    while len(names) == 1 and names[0].lower() in (split.name.lower(), *_NO_CLASSES):
        split = split / names[0]
        names = class_folders(split)
    return split


def _find_splits(folder: Path, names: Sequence[str], splits: Mapping[str, int]) -> Layout:
    """The classes in the folders of `splits`, name -> fold; a test split and all other `names` are left out."""
    inside = {name: _enter(folder / name) for name, fold in splits.items() if fold != LEFT_OUT}
    used = {name: place for name, place in inside.items() if class_folders(place) and _holds_photos(place)}
    if TRAIN_ONLY not in [splits[name] for name in used]:
        raise UsageError(_describe_no_train(folder, [*splits], [*used]))
    for name, place in used.items():
        check_no_contest(place)
        _check_links(place)
        if splits[name] == TRAIN_ONLY:
            _check_classes(place, class_folders(place))
    places = {place / inner: splits[name] for name, place in used.items() for inner in class_folders(place)}
    return Layout(places, [name for name in names if name not in used])


def _describe_no_train(folder: Path, splits: Sequence[str], used: Sequence[str]) -> str:
    """What is wrong with splits without one to train on, and what to give in their place."""
    instead = f" To train on {used[0]}, give {quote(str(folder / used[0]))} in its place." if used else ""
    return (
        f"{folder} holds {join_some(splits)}, which are not classes; expected a folder per class there or in "
        f"{folder / 'train'}, a CSV, or a contest folder with train.csv.{instead}{_name_csv(folder)}"
    )


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageError if the folders `names` inside `folder` cannot be the classes."""
    if not names:
        raise UsageError(_describe_no_folders(folder))
    wrapper = _find_wrapper(folder, names)
    if wrapper is not None:
        # what is wrong there is named at once
        find_layout(wrapper)
        raise UsageError(f"{folder} holds photos only in {wrapper.name}; give {quote(str(wrapper))} in its place.")
    if len(names) == 1:
        expected = "expected two or more, one per class, with photos inside"
        raise UsageError(f"{folder} holds 1 folder; {expected}.{_name_csv(folder)}")
    if {name.lower() for name in names} <= _NO_CLASSES:
        raise UsageError(
            f"{folder} holds {join_some(names)}, which are not classes; expected a folder per class, or a CSV with a "
            f"row per photo. Boxes and masks, as of YOLO and COCO, are not read.{_name_csv(folder)}"
        )
    inside = [set(map(fold_of, class_folders(folder / name))) for name in names]
    if all(TRAIN_ONLY in folds and None not in folds for folds in inside):
        raise UsageError(
            f"{folder / names[0]} holds {join_some(class_folders(folder / names[0]))}, which are splits; expected the "
            f"splits above the classes, as in {folder / 'train' / names[0]}."
        )


def _find_wrapper(folder: Path, names: Sequence[str]) -> Path | None:
    """The only folder with photos inside `folder`, if it holds folders and no loose photos."""
    full = [folder / name for name in names if _holds_photos(folder / name)]
    return full[0] if len(full) == 1 and class_folders(full[0]) and not photo_names(full[0]) else None


def _name_csv(folder: Path) -> str:
    """A CSV in a folder as what to give in its place, as a sentence; "" without one."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(".csv") and not is_hidden(name)]
    # of a Kaggle competition, train.csv or labels.csv and not sample_submission.csv
    best = min(names, key=lambda name: (not re.match("(train|label)", name.lower()), name), default=None)
    return "" if best is None else f" If {best} has the labels, give {quote(str(folder / best))} in its place."


def _describe_no_folders(folder: Path) -> str:
    """What is wrong with a folder without folders inside, and what to give in its place."""
    archive = min((name for name in os.listdir(folder) if name.lower().endswith(ARCHIVES)), default=None)
    if archive is not None and not _name_csv(folder):
        return f"{folder} holds no folder per class; unpack {quote(str(folder / archive))} first."
    return (
        f"{folder} holds no folder per class; expected {folder / 'CLASS'} with photos inside, a CSV, or a contest "
        f"folder with train.csv.{_name_csv(folder)}"
    )


def _check_links(folder: Path) -> None:
    """Raise DataError for a link to nothing, which may have been the folder of a class."""
    for entry in os.scandir(folder):
        broken = describe_broken(Path(entry.path)) if entry.is_symlink() else ""
        if broken:
            raise DataError(broken)


def _holds_photos(folder: Path) -> bool:
    """Whether there is a photo in a folder, or in one inside it."""
    return any(is_photo(name) for _, _, names in os.walk(folder) for name in names)
