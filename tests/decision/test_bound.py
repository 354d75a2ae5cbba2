import numpy as np
import pytest
from sklearn.metrics import f1_score

from fastmask.data.contest import contest_heads
from fastmask.decision.bound import bound_curve, sum_bands
from fastmask.evaluation.plots import plot_bound
from fastmask.heads import Head, Heads
from fastmask.system.errors import UsageError

YEARS = np.arange(18, 71)
HEADS = Heads([*contest_heads(), Head("age_number", tuple(map(str, YEARS)), spread=2.0)])


@pytest.fixture
def aged(run_of):
    """A run whose age distribution is a normal one around a guess that is `late` years too young for the old."""

    def make(late=0.0, persons=300, folds=5):
        rng = np.random.default_rng(0)
        age = rng.integers(18, 71, persons)
        guess = (age + rng.normal(0, 2, persons) - late * (age > 50)).repeat(7)
        years = np.exp(-(((YEARS - guess[:, None]) / 2) ** 2) / 2)
        own = np.stack([np.arange(persons) % 2, np.digitize(age, (30, 60)), age - 18], axis=1).repeat(7, axis=0)
        y = np.column_stack([np.tile([0, 0, 0, 0, 0, 1, 2], persons), own])
        parts = [np.eye(3)[y[:, 0]], np.eye(2)[y[:, 1]], np.full((len(y), 3), 1 / 3), years / years.sum(1)[:, None]]
        return run_of(np.concatenate(parts, axis=1), y, heads=HEADS, folds=folds)

    return make


def test_bands_are_sums_of_the_distribution_worked_by_hand():
    numbers = np.array([28, 29, 30, 58, 59, 60])
    distribution = np.array([[0.1, 0.2, 0.3, 0.15, 0.05, 0.2]])
    assert sum_bands(numbers, distribution, (30, 60)) == pytest.approx(np.array([[0.3, 0.5, 0.2]]))
    assert sum_bands(numbers, distribution, (30, 58)) == pytest.approx(np.array([[0.3, 0.3, 0.4]]))


def test_a_lower_bound_scores_better_where_the_old_are_guessed_too_young(aged, tmp_path):
    run = aged(late=4)
    curve = bound_curve(run, bounds=range(55, 61), draws=300)
    assert [row.bound for row in curve.rows] == [55, 56, 57, 58, 59, 60]
    assert curve.best.bound in (55, 56, 57)
    assert curve.rows[0].gain.macro_f1_interval[0] > 0
    assert not curve.honest_gain.is_noise
    assert "beyond noise" in str(curve)
    # next to the answers of the head itself, and the bounds that other folds choose
    assert curve.plain.macro_f1 == run.score(draws=0).joint.macro_f1
    assert "as trained" in str(curve)
    assert curve.honest.macro_f1 <= curve.best.score.macro_f1
    assert curve.to_plain()["honest"]["macro_f1"] == curve.honest.macro_f1
    plot_bound(curve, tmp_path / "bound.png")
    assert (tmp_path / "bound.png").read_bytes().startswith(b"\x89PNG")


def test_the_official_bound_is_as_good_as_any_where_guesses_are_right(aged):
    curve = bound_curve(aged(), draws=300)
    assert [row.bound for row in curve.rows] == [55, 56, 57, 58, 59, 60]
    assert curve.best.bound in (59, 60)
    assert curve.rows[-1].gain is None
    assert curve.honest_gain.is_noise or curve.honest_gain.macro_f1 < 0


def test_each_score_is_scikit_learns_by_the_official_classes(aged):
    run = aged(late=2, persons=100)
    years = run.probabilities[:, 8:]
    age = np.where(years[:, YEARS < 30].sum(1) > 0.5, 0, np.where(years[:, YEARS >= 57].sum(1) > 0.5, 2, 1))
    joint = run.true[:, 0] * 6 + run.true[:, 1] * 3 + age
    expected = f1_score(run.oof["true"], joint, average="macro")
    row = next(row for row in bound_curve(run, draws=10).rows if row.bound == 57)
    assert row.score.macro_f1 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gender",), "Head gender has no bounds"),
        (("age", [30, 58]), "Bound 30 of age is not above 30"),
        (("age", [58, np.nan]), "expected finite numbers"),
        (("age", [58, np.inf]), "expected finite numbers"),
        (("age", [500]), "expected finite numbers from 0 to 150"),
    ],
)
def test_invalid_heads_and_bounds_are_refused(aged, arguments, message):
    with pytest.raises(UsageError, match=message):
        bound_curve(aged(persons=20), *arguments)


def test_a_run_without_a_distribution_is_refused(run_of, draw_oof):
    with pytest.raises(UsageError, match="has not learned age as a number.*--order age"):
        bound_curve(run_of(*draw_oof(persons=5)))


def test_of_equal_bounds_the_official_one_is_best(aged):
    # no one is between 55 and 60, by label or by answer
    run = aged(persons=40, folds=1)
    numbers = run.heads.split(run.oof[run.heads.columns].to_numpy())[3]
    numbers[:] = np.eye(len(YEARS))[np.where(run.true[:, 2] == 2, 50, 5)]
    run.oof[run.heads.columns[8:]] = numbers
    curve = bound_curve(run, draws=10)
    assert curve.best.bound == 60
    assert curve.honest_gain.macro_f1 == 0
    # one fold is split again
    assert curve.honest.n == 280
