import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from fastmask.data.contest import contest_heads
from fastmask.evaluation.bound import bound_curve, sum_bands
from fastmask.evaluation.plots import plot_bound
from fastmask.heads import Head, Heads
from fastmask.model.number import predict_numbers
from fastmask.system.errors import UsageError

YEARS = np.arange(18, 71)
HEADS = Heads([*contest_heads(), Head("age_number", tuple(map(str, YEARS)), spread=2.0)])


def targets(numbers, spread):
    """(K, K): what a network that has learned its targets exactly predicts for each number, by SciPy."""
    density = norm.pdf(numbers, numbers[:, None], spread)
    return density / density.sum(axis=1, keepdims=True)


@pytest.fixture
def aged(run_of):
    """A run whose age distribution is a normal one around a guess that is `late` years too young for the old.

    Its age head answers by the same guess.
    """

    def make(late=0.0, persons=300, folds=5):
        rng = np.random.default_rng(0)
        age = rng.integers(18, 71, persons)
        guess = (age + rng.normal(0, 2, persons) - late * (age > 50)).repeat(7)
        years = np.exp(-(((YEARS - guess[:, None]) / 2) ** 2) / 2)
        own = np.stack([np.arange(persons) % 2, np.digitize(age, (30, 60)), age - 18], axis=1).repeat(7, axis=0)
        y = np.column_stack([np.tile([0, 0, 0, 0, 0, 1, 2], persons), own])
        head = np.eye(3)[np.digitize(guess.round(), (30, 60))]
        parts = [np.eye(3)[y[:, 0]], np.eye(2)[y[:, 1]], head, years / years.sum(1)[:, None]]
        return run_of(np.concatenate(parts, axis=1), y, heads=HEADS, folds=folds)

    return make


@pytest.fixture
def guessed(run_of):
    """A run of one head of bands of `numbers`, and of the numbers as a distribution; a photo per person.

    `shares` (N, K) are its probabilities of the numbers; what it predicts of both heads is exact for them.
    """

    def make(true, numbers, shares, spread, bounds):
        head = Head("age", tuple(f"from {b}" for b in (numbers[0], *bounds)), bounds=bounds)
        number = Head("age_number", tuple(map(str, numbers)), spread=spread)
        band = np.digitize(numbers, bounds)
        own = shares @ np.eye(len(head.classes))[band]
        y = np.column_stack([np.digitize(true, bounds), true - numbers[0]])
        probabilities = np.concatenate([own, shares @ targets(numbers, spread)], axis=1)
        return run_of(probabilities, y, heads=Heads([head, number]), persons=np.arange(len(y)))

    return make


def test_bands_are_sums_of_the_distribution_worked_by_hand():
    numbers = np.array([28, 29, 30, 58, 59, 60])
    distribution = np.array([[0.1, 0.2, 0.3, 0.15, 0.05, 0.2]])
    assert sum_bands(numbers, distribution, (30, 60)) == pytest.approx(np.array([[0.3, 0.5, 0.2]]))
    assert sum_bands(numbers, distribution, (30, 58)) == pytest.approx(np.array([[0.3, 0.3, 0.4]]))


@pytest.mark.parametrize("spread", [0.5, 2, 4, 8])
def test_a_network_that_has_learned_its_targets_has_nothing_to_gain(guessed, spread):
    # the oldest are 60, as in the contest's data
    numbers = np.arange(18, 61)
    true = np.concatenate([numbers.repeat(5), np.full(40, 60)])
    curve = bound_curve(guessed(true, numbers, np.eye(43)[true - 18], spread, (30, 60)), draws=100)
    assert curve.plain.macro_f1 == 1
    rows = {row.bound: row for row in curve.rows}
    assert (rows[60].score.macro_f1, rows[60].gain.macro_f1) == (1, 0)
    for bound in (55, 56, 57, 58, 59):
        expected = f1_score(np.digitize(true, (30, 60)), np.digitize(true, (30, bound)), average="macro")
        assert rows[bound].score.macro_f1 == pytest.approx(expected)
        assert rows[bound].gain.macro_f1 == pytest.approx(expected - 1)
        assert expected < 1
    assert (curve.honest.macro_f1, curve.honest_gain.macro_f1) == (1, 0)
    assert curve.best.bound == 60
    assert "No bound chosen on other persons gains" in curve.verdict


@pytest.mark.parametrize("spread", [0.5, 2, 4, 8])
def test_so_it_has_at_the_lowest_number(guessed, spread):
    numbers = np.arange(1, 12)
    true = np.concatenate([numbers.repeat(5), np.full(40, 1)])
    curve = bound_curve(guessed(true, numbers, np.eye(11)[true - 1], spread, (2,)), bounds=(2, 3), draws=100)
    assert [row.score.macro_f1 == 1 for row in curve.rows] == [True, False]
    assert curve.rows[0].gain.macro_f1 == curve.honest_gain.macro_f1 == 0


@pytest.mark.parametrize("spread", [0.5, 2])
def test_an_error_of_four_years_gives_no_gain_but_that_of_the_numbers_own_probabilities(guessed, spread):
    rng, numbers = np.random.default_rng(0), np.arange(18, 61)
    among = np.where(numbers < 60, 1.0, 8.0)
    true = rng.choice(numbers, 3000, p=among / among.sum())
    seen = true + rng.normal(0, 4, 3000)
    shares = among * norm.pdf(seen[:, None], numbers, 4)
    shares /= shares.sum(axis=1, keepdims=True)
    curve = bound_curve(guessed(true, numbers, shares, spread, (30, 60)), draws=200)
    known = np.digitize(true, (30, 60))
    for row in curve.rows:
        bands = np.eye(3)[np.digitize(numbers, (30, row.bound))]
        expected = f1_score(known, (shares @ bands).argmax(axis=1), average="macro")
        assert row.score.macro_f1 == pytest.approx(expected, abs=0.03)
        assert row.gain.macro_f1 == pytest.approx(row.score.macro_f1 - curve.plain.macro_f1)
    # by the sums of the distribution itself 0.24 less at a spread of 2, so that each lower bound seemed to gain as much
    assert curve.rows[-1].gain.macro_f1 == pytest.approx(0, abs=0.03)


def test_a_lower_bound_scores_better_where_the_old_are_guessed_too_young(aged, tmp_path):
    run = aged(late=4)
    curve = bound_curve(run, bounds=range(55, 61), draws=300)
    assert [row.bound for row in curve.rows] == [55, 56, 57, 58, 59, 60]
    assert curve.best.bound in (55, 56, 57)
    assert curve.rows[0].gain.macro_f1_interval[0] > 0
    assert curve.honest_gain.macro_f1_interval[0] > 0
    assert "A bound chosen on other persons gains beyond noise; the highest score is at" in str(curve)
    # next to the answers of the head itself, and the bounds that other folds choose
    assert curve.plain.macro_f1 == run.score(draws=0).joint.macro_f1
    assert "gain over as trained" in str(curve)
    assert curve.honest.macro_f1 <= curve.best.score.macro_f1
    plain = curve.to_plain()
    assert plain["honest"]["macro_f1"] == curve.honest.macro_f1
    gains = [row["macro_f1"] - plain["plain"]["macro_f1"] for row in (*plain["bounds"], plain["honest"])]
    assert [row["gain"]["macro_f1"] for row in (*plain["bounds"], plain["honest"])] == pytest.approx(gains)
    plot_bound(curve, tmp_path / "bound.png")
    assert (tmp_path / "bound.png").read_bytes().startswith(b"\x89PNG")


def test_no_bound_gains_where_guesses_are_right(aged):
    curve = bound_curve(aged(), draws=300)
    assert [row.bound for row in curve.rows] == [55, 56, 57, 58, 59, 60]
    assert curve.best.bound in (59, 60)
    assert abs(curve.rows[-1].gain.macro_f1) < 0.01
    assert curve.honest_gain.macro_f1_interval[0] <= 0
    assert "No bound chosen on other persons gains" in str(curve)


def test_each_score_is_scikit_learns_by_the_official_classes(aged):
    run = aged(late=2, persons=100)
    numbers = predict_numbers(HEADS["age_number"], run.probabilities[:, 8:]) + 18
    joint = run.true[:, 0] * 6 + run.true[:, 1] * 3 + np.digitize(numbers, (30, 57))
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
    numbers[:] = targets(YEARS, 2.0)[np.where(run.true[:, 2] == 2, 50, 5)]
    run.oof[run.heads.columns[8:]] = numbers
    curve = bound_curve(run, draws=10)
    assert curve.best.bound == 60
    assert len({row.score for row in curve.rows}) == 1
    # one fold is split again
    assert curve.honest.n == 280


def test_the_head_is_the_one_with_a_learned_number(run_of):
    heads = Heads(
        [
            Head("colour", ("red", "green")),
            Head("weight", ("<2", "2+"), bounds=(2.0,)),
            Head("weight_number", ("1", "2", "3"), spread=1.0),
        ]
    )
    true = np.array([1, 2, 3] * 10)
    y = np.column_stack([true % 2, true >= 2, true - 1]).astype(np.int64)
    run = run_of(np.column_stack([np.eye(2)[y[:, 0]], np.eye(2)[y[:, 1]], np.eye(3)[y[:, 2]]]), y, heads=heads)
    curve = bound_curve(run, bounds=[2, 3], draws=100)
    # at 3 the photos with 2 are wrong
    expected = f1_score(true % 2 * 2 + (true >= 2), true % 2 * 2 + (true >= 3), average="macro", zero_division=0)
    assert (curve.head, curve.rows[1].score.macro_f1) == ("weight", pytest.approx(expected))
    plain = run_of(np.eye(2)[y[:, 0]], y[:, :1], "plain", heads=Heads(heads[:1]))
    with pytest.raises(UsageError, match="has no head of a number, only the classes of colour, without bounds"):
        bound_curve(plain)
