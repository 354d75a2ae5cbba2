"""Source: the table that a run was trained on, read again, for what the run itself does not keep."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pandas as pd

from fastmask.config import Config, make_config
from fastmask.data.readers import read_data
from fastmask.data.table import Table
from fastmask.run.directory import RunDirectory, resume_config
from fastmask.run.files import FOLDS
from fastmask.system.errors import DataError, FastmaskWarning, MissingPhotoError, UsageError

# a path that does not stay in the folder that it starts from
_LEAVES = r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)"
# where photos lie in the folder of a data set
_INSIDE = ("images", "train/images")


def table_of(run: RunDirectory, data: str | None = None, fixes: bool = True, images: str | None = None) -> Table:
    """The photos of a run's `folds`, in their order, as the table that they came from has them.

    The run names its data as it was given when it was trained; `data` says where that lies now, or, as `images` does,
    where the photos of a CSV do. The labels are those that the table has today, without `fixes` as they were before any
    correction; a photo that is gone has those of the run. Raises UsageError where the data is not there, lacks a photo
    that is, or has none of the run's.
    """
    config = _config(run, data, images)
    if not fixes:
        config = config.model_copy(update={"fixes": None})
    table = read_data(config, _pass_gone)
    rows = pd.Index(table.frame["path"]).get_indexer(pd.Index(run.folds["path"]))
    lacks = rows < 0
    if lacks.all() or any((table.root / path).exists() for path in run.folds["path"][lacks]):
        raise _lacking(run, config.data, run.folds["path"][lacks])
    if not lacks.any():
        return table.select(rows)
    found = table.select(rows)
    found.frame.loc[lacks] = _own(run).loc[lacks, found.frame.columns]
    return found


def _pass_gone(fault: DataError) -> None:
    """What the run says of a photo that is gone does."""
    if not isinstance(fault, MissingPhotoError):
        raise fault


def _lacking(run: RunDirectory, where: str | Path, lacking: pd.Series) -> UsageError:
    return UsageError(
        f"{where} lacks {len(lacking)} of the photos of {run.path}, such as {lacking.iloc[0]}; name where they lie by "
        "--data or --images."
    )


def _config(run: RunDirectory, data: str | None, images: str | None) -> Config:
    """The settings that find a run's data, where some of it may have moved."""
    if images is not None:
        images = str(folder_of(run, images))
    if data is not None and _is_place(data):
        place = folder_of(run, data)
        # only a CSV keeps its heads and has photos elsewhere
        if run.config.heads is not None:
            data, images = None, images or str(place)
    given = make_config({name: value for name, value in (("data", data), ("images", images)) if value is not None})
    # an ensemble has the settings of its first run, and is not gone on with
    return _settings(run, given) if run.is_ensemble else resume_config(given, run.path)


def folder_of(run: RunDirectory, folder: str | Path) -> Path:
    """Where the paths of a run's photos start from: a folder, or its `images` or `train/images`.

    Raises UsageError where none of them has a photo of the run.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; expected the one in which the photos of {run.path} lie now.")
    for place in (Path(folder), *(Path(folder) / inside for inside in _INSIDE)):
        if _holds(run, place):
            return place
    raise _lacking(run, folder, run.folds["path"])


def _is_place(data: str) -> bool:
    """Whether what is said of moved data names a folder, and neither a CSV nor the sample."""
    return data != "sample" and not Path(data).is_file()


def _holds(run: RunDirectory, folder: Path) -> bool:
    """Whether any photo of a run lies in a folder."""
    return any((folder / path).is_file() for path in run.folds["path"])


def _settings(run: RunDirectory, given: Config) -> Config:
    return make_config(run.config.model_dump(exclude={"hours"}), given.model_dump(exclude_unset=True))


def photos_of(run: RunDirectory, data: str | None = None, images: str | None = None) -> Table:
    """The photos of a run's `folds` by the labels that it was trained on, as a table of the photos where they lie now.

    That is where `images`, or `data`, says, or else where they lay when it was trained, or else where its settings find
    them from here; some may be gone. Raises UsageError where none is there, DataError for a path that leads out of
    their folder.
    """
    frame = _own(run)
    return Table(frame, run.heads, _root(run, data, images))


def _own(run: RunDirectory) -> pd.DataFrame:
    """A run's `folds` as the frame of a table; raises DataError for a path that leads out of their folder."""
    paths = run.folds["path"]
    leaving = paths.str.contains(_LEAVES)
    if leaving.any():
        raise DataError(f"{run.path / FOLDS} has the photo {paths[leaving].iloc[0]!r}, which lies outside its data.")
    numbers = {f"{head.name}_value": math.nan for head in run.heads if head.bounds}
    missing = {name: value for name, value in numbers.items() if name not in run.folds}
    return run.folds.drop(columns="fold").assign(source="", **missing)


def _root(run: RunDirectory, data: str | None, images: str | None) -> Path:
    """The folder that the paths of a run's photos start from."""
    if images is not None or (data is not None and _is_place(data)):
        return folder_of(run, images or data or "")
    photos = run.environment.get("photos")
    root = photos.get("root") if isinstance(photos, dict) else None
    if data is None and isinstance(root, str) and _holds(run, Path(root)):
        return Path(root)
    with warnings.catch_warnings():
        # what is to be said of the data was said when it was trained on
        warnings.simplefilter("ignore", FastmaskWarning)
        return table_of(run, data, fixes=False).root
