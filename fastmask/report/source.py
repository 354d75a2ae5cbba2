"""Source: the table that a run was trained on, read again, for what the run itself does not keep."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastmask.config import Config, make_config
from fastmask.data.readers import read_data
from fastmask.data.table import Table
from fastmask.errors import UsageError
from fastmask.run import Run, resumed


def table_of(run: Run, data: str | None = None, fixes: bool = True) -> Table:
    """The photos of a run's `folds`, in their order, as the table that they came from has them.

    The run names its data as it was given when it was trained; `data` says where that lies now. The labels are those
    that the table has today, without `fixes` as they were before any correction. Raises UsageError where the data is
    not there, or lacks a photo of the run.
    """
    config = _config(run, data)
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


def _config(run: Run, data: str | None) -> Config:
    given = {} if data is None else {"data": data}
    if run.is_ensemble:
        # its first run's settings, which say where the photos of all lie
        return make_config(run.config.model_dump(exclude_unset=True), given)
    return resumed(make_config(given), run.path)
