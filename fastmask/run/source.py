"""Source: the table that a run was trained on, read again for what the run does not store."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pandas as pd

from fastmask.config import TIME_LIMITS, Config, make_config
from fastmask.data.readers import read_data
from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory, resume_config
from fastmask.run.files import FOLDS
from fastmask.system.errors import DataError, FastmaskWarning, MissingPhotoError, UsageError

# a path that leads out of the folder that it is relative to
_OUTSIDE = r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)"
# folders of photos in the folder of a data set
_INSIDE = ("images", "train/images")


def table_of(run: RunDirectory, data: str | None = None, fixes: bool = True, images: str | None = None) -> Table:
    """The photos of a run's `folds`, in their order, as rows of the table that they came from.

    `data` is the current path of the run's data if it has moved, or, like `images`, that of the photos of a CSV. The
    labels are the table's current ones, without `fixes` those before any correction; a missing photo has the run's.
    Raises UsageError if the data does not exist, lacks a photo that exists, or has none of the run's.

    >>> table = fm.table_of(run)
    >>> len(table), table.photo(0).is_file()
    (84, True)
    """
    config = _config(run, data, images)
    if not fixes:
        config = config.model_copy(update={"fixes": None})
    table = read_data(config, _ignore_missing)
    rows = pd.Index(table.frame["path"]).get_indexer(pd.Index(run.folds["path"]))
    lacks = rows < 0
    if lacks.all() or any((table.root / path).exists() for path in run.folds["path"][lacks]):
        raise _missing_error(run, config.data, run.folds["path"][lacks])
    if not lacks.any():
        return table.select(rows)
    found = table.select(rows)
    found.frame.loc[lacks] = _run_frame(run).reindex(columns=found.frame.columns)[lacks]
    return found


def _ignore_missing(fault: DataError) -> None:
    # missing photos have the run's labels
    if not isinstance(fault, MissingPhotoError):
        raise fault


def _missing_error(run: RunDirectory, where: str | Path, lacking: pd.Series) -> UsageError:
    return UsageError(
        f"{where} lacks {len(lacking)} of the photos of {run.path}, such as {lacking.iloc[0]}; name their folder with "
        "--data or --images."
    )


def _config(run: RunDirectory, data: str | None, images: str | None) -> Config:
    """A run's settings with the current paths of its data."""
    if images is not None:
        images = str(folder_of(run, images))
    if data is not None and _is_folder(data):
        place = folder_of(run, data)
        # only for a CSV are heads saved, and photos in another folder
        if run.config.heads is not None:
            data, images = None, images or str(place)
    given = make_config({name: value for name, value in (("data", data), ("images", images)) if value is not None})
    # an ensemble has the settings of its first run, and is not resumed
    return _settings(run, given) if run.is_ensemble else resume_config(given, run.path)


def folder_of(run: RunDirectory, folder: str | Path) -> Path:
    """The folder that the paths of a run's photos are relative to: `folder`, or its `images` or `train/images`.

    Raises UsageError if none of them has a photo of the run.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; expected the current one of the photos of {run.path}.")
    for place in (Path(folder), *(Path(folder) / inside for inside in _INSIDE)):
        if _has_photo(run, place):
            return place
    raise _missing_error(run, folder, run.folds["path"])


def _is_folder(data: str) -> bool:
    """Whether `data` names a folder, and neither a CSV nor the sample."""
    return data != "sample" and not Path(data).is_file()


def _has_photo(run: RunDirectory, folder: Path) -> bool:
    """Whether any photo of a run is in a folder."""
    return any((folder / path).is_file() for path in run.folds["path"])


def _settings(run: RunDirectory, given: Config) -> Config:
    return make_config(run.config.model_dump(exclude=set(TIME_LIMITS)), given.model_dump(exclude_unset=True))


def photos_of(run: RunDirectory, data: str | None = None, images: str | None = None) -> Table:
    """The photos of a run's `folds` with the labels that it was trained on, as a table at their current folder.

    That is `images` or `data`, or else the folder at training time, or else where the run's settings find them; some
    photos may be missing. Raises UsageError if all are, DataError for a path that leads out of the folder.
    """
    frame = _run_frame(run)
    return Table(frame, run.heads, _root(run, data, images))


def _run_frame(run: RunDirectory) -> pd.DataFrame:
    """A run's `folds` as the frame of a table; raises DataError for a path that leads out of the folder."""
    paths = run.folds["path"]
    leaving = paths.str.contains(_OUTSIDE)
    if leaving.any():
        raise DataError(f"{run.path / FOLDS} has the photo {paths[leaving].iloc[0]!r}, which is outside its data.")
    numbers = {f"{head.name}_value": math.nan for head in run.heads if head.bounds}
    missing = {name: value for name, value in numbers.items() if name not in run.folds}
    return run.folds.drop(columns="fold").assign(source="", **missing)


def _root(run: RunDirectory, data: str | None, images: str | None) -> Path:
    """The folder that the paths of a run's photos are relative to."""
    if images is not None or (data is not None and _is_folder(data)):
        return folder_of(run, images or data or "")
    photos = run.environment.get("photos")
    root = photos.get("root") if isinstance(photos, dict) else None
    if data is None and isinstance(root, str) and _has_photo(run, Path(root)):
        return Path(root)
    with warnings.catch_warnings():
        # warnings about the data were shown at training time
        warnings.simplefilter("ignore", FastmaskWarning)
        return table_of(run, data, fixes=False).root
