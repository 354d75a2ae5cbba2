"""Layout: which folders inside a folder of photos are classes, and which are splits that hold the classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from fastmask.data.contest import contest_folder
from fastmask.data.formats import SUFFIXES
from fastmask.data.links import describe_broken
from fastmask.data.mistaken import ARCHIVES, check_no_contest, class_folders
from fastmask.system.errors import DataError, UsageError
from fastmask.system.terminal import quote
from fastmask.system.text import join_some

TRAIN, VALIDATION, TEST = "train", "val", "test"
# the names of splits in other tools
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), VALIDATION),
    **dict.fromkeys(("test", "testing", "pred", "prediction"), TEST),
}
# words that these names may have in addition, as in training_set, seg_train, train-images, train2017
_ADDED = {"", "set", "split", "data", "dataset", "seg", "images", "imgs", "photos"}
# folders that hold the photos of all classes, or what belongs to them
_NO_CLASSES = {"images", "image", "imgs", "img", "photos", "jpegimages", "labels", "annotations", "masks"}


@dataclass(frozen=True)
class Layout:
    """The folders of the classes, each with its split TRAIN or VALIDATION, and the names of those that are left out."""

    places: Mapping[Path, str]
    left_out: Sequence[str] = ()

    def classes(self, split: str | None = None) -> list[str]:
        """The names of the classes, of all splits or of one, sorted."""
        return sorted({place.name for place, own in self.places.items() if split in (None, own)})


def find_layout(folder: Path) -> Layout:
    """The layout of a folder; raises UsageError naming what to give in its place if it has no folder per class.

    Raises DataError for a link to a folder that does not exist.
    """
    check_no_contest(folder)
    _check_links(folder)
    names = class_folders(folder)
    splits = [name for name in names if split_of(name)]
    if splits and _are_splits(folder, names, splits):
        return _find_splits(folder, names, splits)
    _check_classes(folder, names)
    return Layout({folder / name: TRAIN for name in names})


def split_of(name: str) -> str | None:
    """TRAIN, VALIDATION or TEST, if a folder has the name of a split."""
    words = set(re.split("[^a-z]+", name.lower())) - _ADDED
    return _SPLITS.get(words.pop()) if len(words) == 1 else None


def _are_splits(folder: Path, names: Sequence[str], splits: Sequence[str]) -> bool:
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


def _find_splits(folder: Path, names: Sequence[str], splits: Sequence[str]) -> Layout:
    """The classes in the folders `splits` of `names`; a test split and all other folders are left out."""
    inside = {name: _enter(folder / name) for name in splits if split_of(name) != TEST}
    used = {name: place for name, place in inside.items() if class_folders(place) and _holds_photos(place)}
    if TRAIN not in map(split_of, used):
        raise UsageError(_describe_no_train(folder, splits, [*used]))
    for name, place in used.items():
        check_no_contest(place)
        _check_links(place)
        if split_of(name) == TRAIN:
            _check_classes(place, class_folders(place))
    places = {place / inner: str(split_of(name)) for name, place in used.items() for inner in class_folders(place)}
    return Layout(places, [name for name in names if name not in used])


def _describe_no_train(folder: Path, splits: Sequence[str], used: Sequence[str]) -> str:
    """What is wrong with splits without one to train on, and what to give in their place."""
    instead = f" To train on {used[0]}, give {quote(str(folder / used[0]))} in its place." if used else ""
    return (
        f"{folder} holds {join_some(splits)}, which are not classes; expected a folder per class there or in "
        f"{folder / TRAIN}, a CSV, or a contest folder with train.csv.{instead}{_name_csv(folder)}"
    )


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageError if the folders `names` inside `folder` cannot be the classes."""
    if not names:
        raise UsageError(_describe_no_folders(folder))
    wrapper = next(_find_wrappers(folder, names), None)
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
    split = [name for name in names if class_folders(folder / name)]
    inside = {name: {split_of(inner) for inner in class_folders(folder / name)} for name in split}
    if len(split) == len(names) and all(None not in kinds and TRAIN in kinds for kinds in inside.values()):
        raise UsageError(
            f"{folder / names[0]} holds {join_some(class_folders(folder / names[0]))}, which are splits; expected the "
            f"splits above the classes, as in {folder / 'train' / names[0]}."
        )


def _find_wrappers(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The only folder with photos inside `folder`, if it holds folders and no loose photos."""
    full = [folder / name for name in names if _holds_photos(folder / name)]
    if len(full) == 1 and class_folders(full[0]) and not loose_photos(full[0]):
        yield full[0]


def _name_csv(folder: Path) -> str:
    """A CSV in a folder as what to give in its place, as a sentence; "" without one."""
    names = [e.name for e in os.scandir(folder) if e.name.lower().endswith(".csv") and e.name[0] != "."]
    # of a Kaggle competition, train.csv or labels.csv and not sample_submission.csv
    best = min(names, key=lambda name: (not re.match("(train|label)", name.lower()), name), default=None)
    return "" if best is None else f" If {best} has the labels, give {quote(str(folder / best))} in its place."


def _describe_no_folders(folder: Path) -> str:
    """What is wrong with a folder without folders inside, and what to give in its place."""
    files = sorted(e.name for e in os.scandir(folder) if not os.path.isdir(e.path) and e.name[0] != ".")
    archives = [name for name in files if name.lower().endswith(ARCHIVES)]
    if _name_csv(folder):
        return f"{folder} holds no folder per class.{_name_csv(folder)}"
    if archives:
        return f"{folder} holds no folder per class; unpack {quote(str(folder / archives[0]))} first."
    if loose_photos(folder):
        return (
            f"{folder} holds photos, but no folder per class; expected {folder / 'CLASS'} with photos inside, or a CSV."
        )
    try:
        contest_folder(folder)
    except UsageError as error:
        return str(error)
    return f"{folder} holds no folder per class."


def _check_links(folder: Path) -> None:
    """Raise DataError for a link to nothing, which may have been the folder of a class."""
    for entry in os.scandir(folder):
        broken = describe_broken(Path(entry.path)) if entry.is_symlink() else ""
        if broken:
            raise DataError(broken)


def loose_photos(folder: Path) -> list[str]:
    """The names of the photos in `folder` that are in no folder inside it, sorted."""
    return sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(SUFFIXES) and e.name[0] != ".")


def _holds_photos(folder: Path) -> bool:
    """Whether there is a photo in a folder, or in one inside it."""
    return any(name.lower().endswith(SUFFIXES) for _, _, names in os.walk(folder) for name in names if name[0] != ".")
