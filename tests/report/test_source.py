"""Source: the table of a run, found again by its own settings or where it lies now."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastmask.errors import DataError, UsageError
from fastmask.report.source import photos_of, table_of
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


def test_photos_are_those_of_the_run_by_its_own_labels(finished_run: Run, contest: Path) -> None:
    table = photos_of(finished_run)
    assert table.root == (contest / "train" / "images").resolve()
    assert table.heads == finished_run.heads
    pd.testing.assert_frame_equal(
        table.frame[["path", "person", *table.heads.names, "age_value"]],
        finished_run.folds[["path", "person", *table.heads.names, "age_value"]],
    )
    assert all(table.photo(row).is_file() for row in range(len(table)))


def test_photos_lie_where_somebody_says(finished_run: Run, contest_copy: Path) -> None:
    assert photos_of(finished_run, str(contest_copy)).root == contest_copy / "train" / "images"


def test_a_run_that_kept_no_ages_has_photos_without(run_copy: Path) -> None:
    folds = pd.read_csv(run_copy / "folds.csv", dtype=str).drop(columns="age_value")
    folds.to_csv(run_copy / "folds.csv", index=False)
    assert photos_of(Run.load(run_copy)).frame["age_value"].isna().all()


@pytest.mark.parametrize("path", ["../a.jpg", "/etc/a.jpg", "a/../../b.jpg", "C:/a.jpg", "a\\..\\b.jpg", ".."])
def test_a_path_that_leads_out_is_refused(run_copy: Path, path: str) -> None:
    for name in ("folds.csv", "oof.csv"):
        text = (run_copy / name).read_text()
        first = text.splitlines()[1].split(",")[0]
        (run_copy / name).write_text(text.replace(f"{first},", f"{path},", 1))
    with pytest.raises(DataError, match="lies outside its data"):
        photos_of(Run.load(run_copy))
