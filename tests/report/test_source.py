"""Source: the table of a run, found again by its own settings or where it lies now."""

from pathlib import Path

import numpy as np
import pytest

from fastmask.errors import UsageError
from fastmask.report.source import table_of
from fastmask.run import Run


def test_the_table_has_the_rows_of_the_run_and_what_the_run_does_not_keep(finished_run: Run) -> None:
    table = table_of(finished_run)
    assert table.frame["path"].tolist() == finished_run.folds["path"].tolist()
    assert table.photo(3).is_file()
    np.testing.assert_array_equal(table.y, finished_run.y)
    assert table.frame["age_value"].between(0, 150).all()


def test_data_that_moved_is_named(finished_run: Run, contest_copy: Path) -> None:
    assert table_of(finished_run, str(contest_copy)).root == contest_copy / "train" / "images"


def test_other_data_is_refused(finished_run: Run, tmp_path: Path) -> None:
    from fastmask.data.sample import write_sample

    other = write_sample(tmp_path / "other", persons=6, seed=5)
    with pytest.raises(UsageError, match=r"lacks \d+ of the photos of .*; name where they lie by --data"):
        table_of(finished_run, str(other))
