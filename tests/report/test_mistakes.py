"""Mistakes: against a count by pandas of the rows of oof.csv whose answers are not the labels."""

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.report.mistakes import mistakes
from fastmask.system.errors import UsageError


def read(run: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(run.path / name, dtype={"age": str, "path": str, "person": str})


def test_mistakes_of_the_joint_class_are_the_rows_that_differ(finished_run: Run) -> None:
    oof, found = read(finished_run, "oof.csv"), mistakes(finished_run)
    wrong = oof[oof["true"] != oof["predicted"]]
    assert sorted(found["path"]) == sorted(wrong["path"])
    assert found["probability"].is_monotonic_decreasing
    assert (oof["path"][found["row"]].to_numpy() == found["path"].to_numpy()).all()
    row = oof.iloc[found["row"][0]]
    product = np.prod([max(row[c] for c in oof if c.startswith(f"{head}.")) for head in ("mask", "gender", "age")])
    assert found["probability"][0] == pytest.approx(product)


def test_mistakes_of_a_head_have_its_names_and_probabilities(finished_run: Run) -> None:
    oof, labels = read(finished_run, "oof.csv"), read(finished_run, "folds.csv").set_index("path")
    found = mistakes(finished_run, "age")
    classes = finished_run.heads["age"].classes
    said = oof[[f"age.{c}" for c in classes]].set_axis(list(classes), axis=1).idxmax(axis=1)
    true = labels["age"].loc[oof["path"]].to_numpy()
    assert sorted(found["path"]) == sorted(oof["path"][said.to_numpy() != true])
    for mistake in found.head(5).itertuples():
        assert mistake.true == labels["age"][mistake.path]
        assert mistake.probability == pytest.approx(oof[f"age.{mistake.predicted}"][mistake.row])
        assert mistake.probability_true == pytest.approx(oof[f"age.{mistake.true}"][mistake.row])
        assert mistake.fold == oof["fold"][mistake.row]


def test_a_head_that_there_is_not_is_refused(finished_run: Run) -> None:
    with pytest.raises(UsageError, match="There is no head 'hat'; the heads are mask, gender, age"):
        mistakes(finished_run, "hat")
