"""Folders: a folder per class, or folders of splits that hold the classes, as a Table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fastmask.data.formats import describe_empty, describe_left_out, describe_runs, photo_names
from fastmask.data.layout import Layout, find_layout
from fastmask.data.links import leads_outside, link_fault
from fastmask.data.mistaken import class_folders, result_folders
from fastmask.data.photo import split_files
from fastmask.data.spellings import group_spellings, is_unknown
from fastmask.data.table import FOLD, NO_PERSONS, TRAIN_ONLY, VALIDATED, OnFault, Table, raise_fault
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, MissingPhotoError
from fastmask.system.text import count, join_some

# with so many folders, so few photos in each are those of a person or an object
_MANY_FOLDERS, _FEW_PHOTOS = 20, 10
# the photos, or the other files, of each folder of a class
Photos = Mapping[Path, Sequence[Path]]


def read_folders(
    folder: str | Path, head: str = "class", on_fault: OnFault = raise_fault, trust_links: str | Path | None = None
) -> Table:
    """Read a folder per class: FOLDER/CLASS/…/photo; the one head is called `head`.

    FOLDER/train/CLASS and FOLDER/val/CLASS, and other names of these, are a fixed split: the photos of val are fold 0,
    those of train are only trained on. FOLDER/test is left out. Every photo counts as a different person. Hidden files
    and folders are left out; a class without photos is a fault. Raises UsageError naming what to give in place of a
    folder that does not hold classes. Links out of FOLDER may lead into `trust_links`.

    >>> import shutil
    >>> for name in ("cats", "dogs"):
    ...     Path("pets", name).mkdir(parents=True)
    ...     copy = shutil.copy(photos[0], Path("pets", name))
    >>> table = fm.read_folders("pets", head="animal")
    >>> table.heads["animal"].classes, len(table)
    (('cats', 'dogs'), 2)
    """
    folder = Path(folder)
    layout = find_layout(folder)
    files = {place: split_files(place) for place in layout.places}
    photos, others = ({place: each[i] for place, each in files.items()} for i in (0, 1))
    _check_photos(photos, others, on_fault)
    _check_links(folder, photos, on_fault, trust_links)
    for sentence in _describe(folder, layout, photos, others):
        warnings.warn(sentence, FastmaskWarning, stacklevel=2)
    frame = _make_frame(folder, layout, photos, head)
    reading = {"data": str(folder), "trust_links": trust_links and str(trust_links)}
    # without those that have no photos, if that is no error
    classes = [name for name in layout.classes() if name in set(frame[head])]
    return Table(frame, Heads([Head(head, tuple(classes if len(classes) > 1 else layout.classes()))]), folder, reading)


def _make_frame(folder: Path, layout: Layout, photos: Photos, head: str) -> pd.DataFrame:
    """The frame of a table, with the column FOLD where there is a validation split."""
    rows = [
        (photo.relative_to(folder).as_posix(), place.name, layout.places[place])
        for place, each in photos.items()
        for photo in each
    ]
    frame = pd.DataFrame(rows, columns=["path", head, FOLD])
    frame = frame.assign(person=frame["path"], source=folder.name)
    return frame if layout.classes(VALIDATED) else frame.drop(columns=FOLD)


def _check_photos(photos: Photos, others: Photos, on_fault: OnFault) -> None:
    """Report loose photos and classes without photos."""
    for part in dict.fromkeys(place.parent for place in photos):
        for name in photo_names(part)[:1]:
            on_fault(DataError(f"{part / name} is not in the folder of a class; move it into one, or away."))
    filled = {place.name for place, each in photos.items() if each}
    for place in photos:
        if place.name not in filled:
            message = f"{describe_empty(place, others[place])} Add photos or remove the folder."
            on_fault(MissingPhotoError(message, place.name))


def _check_links(folder: Path, photos: Photos, on_fault: OnFault, trust_links: str | Path | None) -> None:
    """Report links out of the folder, the first of each class."""
    for each in photos.values():
        linked = next((photo for photo in each if leads_outside(photo, folder, trust_links)), None)
        if linked is not None:
            on_fault(link_fault(linked, folder, trust_links))


def _describe(folder: Path, layout: Layout, photos: Photos, others: Photos) -> Iterator[str]:
    """Sentences on how a folder is read."""
    yield from _describe_splits(folder, layout)
    yield from _describe_alike(folder, layout.classes())
    yield from _describe_nested(layout.classes(), photos)
    yield from _describe_many(folder, photos)
    results = [folder / name for name in result_folders(folder)]
    if results:
        yield describe_runs(results)
    left_out = sorted(path for each in others.values() for path in each)
    if left_out:
        yield describe_left_out(left_out)
    yield f"Nothing in {folder} {NO_PERSONS} Use a CSV with the columns path, person and a head instead."


def _describe_splits(folder: Path, layout: Layout) -> Iterator[str]:
    """The use of the splits, and the classes that only one of them has."""
    if layout.left_out:
        yield f"Left out of {folder}, neither trained on nor validated: {join_some(layout.left_out)}."
    trained, validated = layout.classes(TRAIN_ONLY), layout.classes(VALIDATED)
    if not validated:
        return
    unseen, unscored = sorted({*validated} - {*trained}), sorted({*trained} - {*validated})
    if unseen:
        yield f"Only val has photos of {join_some(unseen)}: they are not trained on, so all are misclassified."
    if unscored:
        yield f"Only train has photos of {join_some(unscored)}: they are not scored."


def _describe_alike(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Classes that may be the same, such as cat and Cat, and those that look like unknown labels."""
    for each in group_spellings(names):
        yield f"The classes {' and '.join(each)} of {folder} look like one; if they are, merge the folders."
    unknown = [name for name in names if is_unknown(name)]
    if unknown:
        yield f"{join_some(unknown)} in {folder} counts as a class; move photos without a label out of {folder}."


def _describe_nested(names: Sequence[str], photos: Photos) -> Iterator[str]:
    """Folders inside each class that may be the classes."""
    inner = {place: class_folders(place) for place in photos}
    if all(len(inside) > 1 and not photo_names(place) for place, inside in inner.items()):
        place, inside = next(iter(inner.items()))
        yield (
            f"The classes are the upper folders, {join_some(names)}, not those inside, such as {inside[0]} in "
            f"{place.name}; to learn both, use a CSV with a column per head."
        )


def _describe_many(folder: Path, photos: Photos) -> Iterator[str]:
    """Signs that folders are persons or objects: many, with few photos that have the same names in each."""
    if len(photos) < _MANY_FOLDERS:
        return
    hint = "If each is a person or an object, use a CSV with the columns path, person and one per head."
    stems = [frozenset(photo.stem for photo in each) for each in photos.values()]
    usual, total = max(set(stems), key=stems.count), sum(map(len, photos.values()))
    if len(usual) <= _FEW_PHOTOS and stems.count(usual) > 0.9 * len(stems):
        same = f"the same {count(len(usual), 'photo')} ({join_some(sorted(usual))})"
        yield f"Each of the {len(photos)} folders of {folder}, which are taken as classes, holds {same}. {hint}"
    elif total < 2 * len(photos):
        yield f"{folder} holds {len(photos)} folders, which are taken as classes, for {total} photos. {hint}"
