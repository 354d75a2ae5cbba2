"""Numbers: errors by age against pandas, and a learned number against its mean by hand."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.material import Material
from fastmask.report.sections.numbers import by_number, near_bounds, number_errors, plot_numbers, section
from fastmask.system.errors import UsageError


def test_wrong_answers_by_age_are_pandas(finished_run: Run) -> None:
    found = by_number(number_errors(finished_run, "age")).set_index("number")
    folds = pd.read_csv(finished_run.path / "folds.csv").set_index("path").loc[finished_run.oof["path"]]
    true, said = finished_run.true[:, 2], finished_run.predicted[:, 2]
    frame = pd.DataFrame({"age": folds["age_value"].to_numpy(), "lower": said < true, "higher": said > true})
    expected = frame.groupby("age").agg(lower=("lower", "mean"), higher=("higher", "mean"), n=("lower", "size"))
    pd.testing.assert_frame_equal(
        found[["lower", "higher", "n"]], expected, check_names=False, check_dtype=False, check_index_type=False
    )
    assert (found["width"] == 1).all()


def test_ages_are_read_from_the_data_where_the_run_has_none(finished_run: Run, run_copy) -> None:
    expected = number_errors(finished_run, "age")
    folds = pd.read_csv(run_copy / "folds.csv", dtype=str).drop(columns="age_value")
    folds.to_csv(run_copy / "folds.csv", index=False)
    found = number_errors(Run.load(run_copy), "age")
    np.testing.assert_array_equal(found.numbers, expected.numbers)


def test_a_learned_number_is_the_mean_of_its_distribution(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    ages = np.array([25.0, 45.0, 66.0])[labels[:, 2]]
    heads = Heads([*contest_heads(), Head("age_number", ("20", "40", "60"), spread=2.0)])
    y = np.column_stack([labels, labels[:, 2]])
    run = make_run(y, heads, numbers={"age_value": ages}, order="age")
    errors = number_errors(run, "age")
    weights = run.oof[["age_number.20", "age_number.40", "age_number.60"]].to_numpy()
    np.testing.assert_allclose(errors.learned, np.average(np.tile([20, 40, 60], (len(y), 1)), axis=1, weights=weights))
    found = by_number(errors).set_index("number")
    at = ages == 45
    assert found["bias"][45.0] == pytest.approx((errors.learned[at] - 45).mean())
    assert found["off"][45.0] == pytest.approx(np.abs(errors.learned[at] - 45).mean())
    assert len(plot_numbers(errors).axes) == 3


def test_numbers_that_are_not_whole_are_put_into_ranges(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    numbers = np.random.default_rng(0).uniform(0, 1000, len(labels))
    heads = Heads([Head("weight", ("light", "heavy"), bounds=(500.0,))])
    run = make_run((numbers >= 500).astype(int)[:, None], heads, numbers={"weight_value": numbers})
    errors = number_errors(run, "weight")
    found = by_number(errors)
    assert found["n"].sum() == len(numbers)
    assert len(found) <= 50
    counts, _ = np.histogram(numbers, bins=50)
    assert sorted(found["n"]) == sorted(counts[counts > 0])
    assert found["lower"] @ found["n"] == pytest.approx(errors.lower.sum())


def test_near_a_bound_is_told_apart(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    ages = np.resize([28.0, 33.0, 34.0, 61.0], len(labels))
    y = labels.copy()
    y[:, 2] = np.digitize(ages, (30, 60))
    errors = number_errors(make_run(y, numbers={"age_value": ages}), "age")
    near, far, share = near_bounds(errors)
    assert share == pytest.approx(0.75)
    assert far == pytest.approx(errors.wrong[ages == 34].mean())
    assert near == pytest.approx(errors.wrong[ages != 34].mean())


def test_a_bound_lies_between_the_years_that_it_parts(finished_run: Run) -> None:
    axes = plot_numbers(number_errors(finished_run, "age")).axes[-1]
    assert [line.get_xdata()[0] for line in axes.lines] == [29.5, 59.5]


def test_a_row_of_the_table_lies_within_a_class(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    ages = np.resize([18.0, 29.0, 30.0, 44.0, 59.0, 60.0], len(labels))
    y = labels.copy()
    # the highest age is the bound itself, as in the contest's data
    y[:, 2] = np.digitize(ages, (30, 60))
    material = Material(make_run(y, numbers={"age_value": ages}))
    rows = {row[0]: row for row in section(material)[1].table.rows}
    assert list(rows) == ["18 to under 22", "26 to under 30", "30 to under 40", "40 to under 50", *list(rows)[4:]]
    assert list(rows)[4:] == ["50 to under 60", "60 and more"]
    assert rows["60 and more"][1] == str((ages == 60).sum())
    assert sum(int(row[1]) for row in rows.values()) == len(ages)


def test_the_table_of_numbers_that_are_not_whole_has_all_of_them(make_run: Callable[..., Run], labels) -> None:
    numbers = np.random.default_rng(0).uniform(0, 1, len(labels))
    heads = Heads([Head("share", ("low", "high"), bounds=(0.5,))])
    run = make_run((numbers >= 0.5).astype(int)[:, None], heads, numbers={"share_value": numbers})
    rows = section(Material(run))[1].table.rows
    assert len(rows) == 6
    assert sum(int(row[1]) for row in rows) == len(numbers)


def test_a_learned_number_has_the_median_beside_it(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    ages = np.array([25.0, 45.0, 66.0])[labels[:, 2]]
    heads = Heads([*contest_heads(), Head("age_number", ("20", "40", "60"), spread=2.0)])
    run = make_run(np.column_stack([labels, labels[:, 2]]), heads, numbers={"age_value": ages}, order="age")
    always = np.abs(ages - np.median(ages)).mean()
    said = section(Material(run))[0].text
    assert f"always predicting the median, {np.median(ages):g}, has a mean absolute error of {always:.2f}." in said


def test_a_head_without_a_number_says_so(finished_run: Run, make_run: Callable[..., Run], labels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="Head mask has no bounds"):
        number_errors(finished_run, "mask")
    unknown = make_run(labels, numbers={"age_value": np.full(len(labels), np.nan)})
    with pytest.raises(UsageError, match="No photo has a number for age"):
        number_errors(unknown, "age")
