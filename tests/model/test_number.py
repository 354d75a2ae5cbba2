import numpy as np
import pytest
from scipy.stats import norm

from fastmask.export.predict_onnx import answer
from fastmask.heads import Head, Heads
from fastmask.model.number import answer_numbers, number_probabilities, predict_numbers, quantile

YEARS = np.arange(18, 61)


def head_of(numbers, spread):
    return Head("age_number", tuple(map(str, numbers)), spread=spread)


def learned(numbers, spread):
    """(K, K): what a network that has learned its targets exactly predicts for each number, by SciPy."""
    density = norm.pdf(numbers, loc=numbers[:, None], scale=spread)
    return density / density.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("spread", [0.3, 0.5, 1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    ("numbers", "kind"),
    [(YEARS, np.float64), (YEARS, np.float16), (np.arange(-3, 120), np.float16), (np.arange(5), np.float64)],
)
def test_of_learned_targets_it_is_the_number_itself_at_both_ends_too(numbers, spread, kind):
    head, exact = head_of(numbers, spread), learned(numbers, spread).astype(kind)
    assert head.numbers[predict_numbers(head, exact)].tolist() == numbers.tolist()
    # so is the band, for any bound
    found = number_probabilities(head, exact)
    for bound in numbers[1:]:
        assert ((found[:, numbers >= bound].sum(axis=1) > 0.5) == (numbers >= bound)).all()


def test_the_mass_of_the_distribution_itself_is_cut_off_at_an_end():
    exact = learned(YEARS, 2.0)[-1]
    assert exact[-1] == pytest.approx(norm.pdf(0) / norm.pdf(np.arange(43) / 2).sum())
    assert exact[-1] < 1 / 3
    assert number_probabilities(head_of(YEARS, 2.0), exact[None])[0, -1] == pytest.approx(1)


@pytest.mark.parametrize(("spread", "near"), [(0.5, 0.01), (1, 0.02), (2, 0.1)])
def test_the_shares_of_bands_are_those_of_the_numbers_that_are_mixed(spread, near):
    # six in ten are 60, the others about 53: by the distribution itself a third or less
    years = norm.pdf(YEARS, 53, 3)
    mixed = 0.4 * years / years.sum() + 0.6 * (YEARS == 60)
    found = number_probabilities(head_of(YEARS, spread), (mixed @ learned(YEARS, spread))[None])[0]
    for bound in (50, 55, 59, 60):
        above = bound <= YEARS
        assert found[above].sum() == pytest.approx(mixed[above].sum(), abs=near)
    assert found @ YEARS == pytest.approx(mixed @ YEARS, abs=0.1)


def test_quantiles_worked_by_hand():
    probabilities = np.array([[0.25, 0.25, 0.5], [0.0, 0.3, 0.7], [1 / 3, 1 / 3, 1 / 3]])
    assert quantile(probabilities, 0.5).tolist() == [1, 2, 1]
    assert quantile(probabilities, 0.1).tolist() == [0, 1, 0]
    assert quantile(probabilities, 1.0).tolist() == [2, 2, 2]


def test_only_distributions_are_answered_by_their_number():
    heads = Heads([Head("age", ("young", "old")), head_of(YEARS, 2.0)])
    probabilities = np.column_stack([np.full((43, 2), 0.5), learned(YEARS, 2.0)])
    y = np.full((43, 2), 1)
    assert answer_numbers(heads, probabilities, y).tolist() == [[1, i] for i in range(43)]


@pytest.mark.parametrize("spread", [0.5, 2, 8])
def test_the_script_of_an_export_answers_the_same(spread):
    rng = np.random.default_rng(0)
    head = head_of(YEARS, spread)
    given = rng.dirichlet(np.full(43, 0.3), 200) @ learned(YEARS, spread) * rng.lognormal(0, 0.2, (200, 43))
    given = np.concatenate([given / given.sum(1, keepdims=True), learned(YEARS, spread)]).astype(np.float32)
    described = {"name": head.name, "classes": list(head.classes), "spread": head.spread}
    assert answer(described, given).tolist() == predict_numbers(head, given).tolist()
    # a head of classes, or one of an earlier version, is answered by its most probable class
    assert answer({"name": "a", "classes": list(head.classes)}, given).tolist() == given.argmax(1).tolist()
