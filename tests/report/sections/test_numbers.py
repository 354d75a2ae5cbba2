"""Numbers: errors by age against pandas, and a learned number by hand and on learned targets."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.material import Material
from fastmask.report.sections.numbers import by_number, near_bounds, number_errors, plot_numbers, section
from fastmask.system.errors import UsageError


@pytest.fixture
def run_at(make_run, labels):
    """A function that makes a run of photos at some ages."""

    def make(*ages):
        y, numbers = labels.copy(), np.resize(ages, len(labels))
        y[:, 2] = np.digitize(numbers, (30, 60))
        return make_run(y, numbers={"age_value": numbers})

    return make


@pytest.fixture
def run_of_numbers(make_run, labels):
    """A function that makes a run of a head with two classes of a fractional number up to `high`."""

    def make(high):
        numbers = np.random.default_rng(0).uniform(0, high, len(labels))
        heads = Heads([Head("size", ("low", "high"), bounds=(high / 2,))])
        return make_run((numbers >= high / 2).astype(int)[:, None], heads, numbers={"size_value": numbers})

    return make


@pytest.fixture
def learned(make_run, labels, ages):
    """A run that has learned the age itself."""
    heads = Heads([*contest_heads(), Head("age_number", ("20", "40", "60"), spread=2.0)])
    return make_run(np.column_stack([labels, labels[:, 2]]), heads, numbers={"age_value": ages}, order="age")


def test_wrong_predictions_by_age_are_pandas(finished_run):
    found = by_number(number_errors(finished_run, "age")).set_index("number")
    folds = pd.read_csv(finished_run.path / "folds.csv").set_index("path").loc[finished_run.oof["path"]]
    true, said = finished_run.true[:, 2], finished_run.predicted[:, 2]
    frame = pd.DataFrame({"age": folds["age_value"].to_numpy(), "lower": said < true, "higher": said > true})
    expected = frame.groupby("age").agg(lower=("lower", "mean"), higher=("higher", "mean"), n=("lower", "size"))
    pd.testing.assert_frame_equal(
        found[["lower", "higher", "n"]], expected, check_names=False, check_dtype=False, check_index_type=False
    )
    assert (found["width"] == 1).all()


def test_ages_are_read_from_the_data_if_the_run_has_none(finished_run, run_copy):
    folds = pd.read_csv(run_copy / "folds.csv", dtype=str).drop(columns="age_value")
    folds.to_csv(run_copy / "folds.csv", index=False)
    found = number_errors(Run.load(run_copy), "age")
    np.testing.assert_array_equal(found.numbers, number_errors(finished_run, "age").numbers)


def test_a_learned_number_is_the_median_of_its_probabilities(learned, ages):
    errors = number_errors(learned, "age")
    weights = learned.oof[["age_number.20", "age_number.40", "age_number.60"]].to_numpy()
    # targets this narrow beside the distance of the numbers are one number each
    expected = np.array([20, 40, 60])[(weights.cumsum(axis=1) < 0.5).sum(axis=1)]
    np.testing.assert_array_equal(errors.learned, expected)
    found = by_number(errors).set_index("number")
    at = ages == 45
    assert found["bias"][45.0] == pytest.approx((expected[at] - 45).mean())
    assert found["off"][45.0] == pytest.approx(np.abs(expected[at] - 45).mean())
    assert len(plot_numbers(errors).axes) == 3
    baseline, median = np.abs(ages - np.median(ages)).mean(), np.median(ages)
    said = section(Material(learned))[0].text
    assert f"always predicting the median, {median:g}, has a mean absolute error of {baseline:.2f}." in said


def test_a_network_that_has_learned_its_targets_has_no_error_at_the_ends(run_of):
    years = np.arange(18, 61)
    heads = Heads([*contest_heads(), Head("age_number", tuple(map(str, years)), spread=2.0)])
    ages = years.repeat(7)
    target = norm.pdf(years, ages[:, None], 2)
    known = np.column_stack([np.zeros((len(ages), 2), int), np.digitize(ages, (30, 60)), ages - 18])
    probabilities = [np.full((len(ages), 8), 0.5), target / target.sum(axis=1, keepdims=True)]
    run = run_of(np.concatenate(probabilities, axis=1), known, heads=heads)
    run.folds["age_value"] = ages
    found = by_number(number_errors(run, "age"))
    assert (found["off"] == 0).all()
    assert (found["bias"] == 0).all()


def test_fractions_are_put_into_ranges(run_of_numbers):
    errors = number_errors(run_of_numbers(1000), "size")
    found = by_number(errors)
    assert len(found) <= 50
    counts, _ = np.histogram(errors.numbers, bins=50)
    assert sorted(found["n"]) == sorted(counts[counts > 0])
    assert found["lower"] @ found["n"] == pytest.approx(errors.lower.sum())


def test_predictions_near_a_bound_are_counted_apart(run_at):
    errors = number_errors(run_at(28, 33, 34, 61), "age")
    near, far, share = near_bounds(errors)
    assert share == pytest.approx(0.75)
    assert far == pytest.approx(errors.wrong[errors.numbers == 34].mean())
    assert near == pytest.approx(errors.wrong[errors.numbers != 34].mean())


def test_a_bound_is_between_two_years(finished_run):
    axes = plot_numbers(number_errors(finished_run, "age")).axes[-1]
    assert [line.get_xdata()[0] for line in axes.lines] == [29.5, 59.5]


def test_a_row_of_the_table_is_within_a_class(run_at, run_of_numbers):
    # the highest age is a bound itself, as in the contest's data
    run = run_at(18, 29, 30, 44, 59, 60)
    rows = {row[0]: int(row[1]) for row in section(Material(run))[1].table.rows}
    thirds = ["18 to under 22", "26 to under 30", "30 to under 40", "40 to under 50", "50 to under 60", "60 and more"]
    assert list(rows) == thirds
    assert rows["60 and more"] == (run.folds["age_value"] == 60).sum()
    assert sum(rows.values()) == len(run.folds)


def test_the_table_has_all_fractions(run_of_numbers):
    run = run_of_numbers(1)
    rows = section(Material(run))[1].table.rows
    assert len(rows) == 6
    assert sum(int(row[1]) for row in rows) == len(run.folds)


def test_a_head_without_a_number_is_refused(finished_run, run_at):
    with pytest.raises(UsageError, match="Head mask has no bounds"):
        number_errors(finished_run, "mask")
    with pytest.raises(UsageError, match="No photo has a number for age"):
        number_errors(run_at(np.nan), "age")
