"""Source: the table that a run was trained on, read again, for what the run itself does not keep."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.config import Config, make_config
from fastmask.data.readers import read_data
from fastmask.data.table import Table
from fastmask.errors import DataError, FastmaskWarning, UsageError
from fastmask.run import FOLDS, Run, resumed

# a path that does not stay in the folder that it starts from
_LEAVES = r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)"


def table_of(run: Run, data: str | None = None, fixes: bool = True) -> Table:
    """The photos of a run's `folds`, in their order, as the table that they came from has them.

    The run names its data as it was given when it was trained; `data` says where that lies now. The labels are those
    that the table has today, without `fixes` as they were before any correction. Raises UsageError where the data is
    not there, or lacks a photo of the run.
    """
    given = make_config({} if data is None else {"data": data})
    # an ensemble has the settings of its first run, and is not gone on with
    config = _settings(run, given) if run.is_ensemble else resumed(given, run.path)
    if not fixes:
        config = config.model_copy(update={"fixes": None})
    table = read_data(config)
    rows = pd.Index(table.frame["path"]).get_indexer(pd.Index(run.folds["path"]))
    if (rows < 0).any():
        missing = run.folds["path"].iloc[int(np.argmax(rows < 0))]
        raise UsageError(
            f"{config.data} lacks {(rows < 0).sum()} of the photos of {run.path}, such as {missing}; name where they "
            "lie by --data."
        )
    return table.select(rows)


def _settings(run: Run, given: Config) -> Config:
    return make_config(run.config.model_dump(exclude={"hours"}), given.model_dump(exclude_unset=True))


def photos_of(run: Run, data: str | None = None) -> Table:
    """The photos of a run's `folds` by the labels that it was trained on, as a table of the photos where they lie now.

    That is where `data` says, or else where they lay when it was trained, or else where its settings find them from
    here. Raises UsageError where they are not there, DataError for a path that leads out of their folder.
    """
    paths = run.folds["path"]
    leaving = paths.str.contains(_LEAVES)
    if leaving.any():
        raise DataError(f"{run.path / FOLDS} has the photo {paths[leaving].iloc[0]!r}, which lies outside its data.")
    numbers = {f"{head.name}_value": math.nan for head in run.heads if head.bounds}
    missing = {name: value for name, value in numbers.items() if name not in run.folds}
    frame = run.folds.drop(columns="fold").assign(source="", **missing)
    return Table(frame, run.heads, _root(run, data))


def _root(run: Run, data: str | None) -> Path:
    """The folder that the paths of a run's photos start from."""
    photos = run.environment.get("photos")
    root = photos.get("root") if isinstance(photos, dict) else None
    if data is None and isinstance(root, str) and (Path(root) / run.folds["path"].iloc[0]).is_file():
        return Path(root)
    with warnings.catch_warnings():
        # what is to be said of the data was said when it was trained on
        warnings.simplefilter("ignore", FastmaskWarning)
        return table_of(run, data).root
