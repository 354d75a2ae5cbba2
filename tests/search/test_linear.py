import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fastmask.heads import Head, Heads
from fastmask.search.linear import fit_linear

HEADS = Heads([Head("shape", ("round", "square", "star")), Head("size", ("small", "large"))])


@pytest.fixture
def drawn():
    """Features that go together and are far from standardised, and noisy labels, some of them unknown."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, 12)) @ rng.normal(size=(12, 12)) * 5 + 30
    scores = (features - features.mean(0)) @ rng.normal(size=(12, 5)) / 20 + rng.gumbel(size=(240, 5))
    y = np.stack([scores[:, :3].argmax(1), scores[:, 3:].argmax(1)], axis=1)
    y[::11, 0] = y[::7, 1] = -1
    return features, y, np.arange(240) % 4


def by_scikit_learn(features, y, rows, penalty, head):
    """Probabilities of one head fitted on `rows` alone."""
    fitted_on = rows & (y[:, head] >= 0)
    mean, scale = features[rows].mean(0), features[rows].std(0)
    # its two classes share one row of weights, whose square is twice that of the two halves
    c = (2 if HEADS.sizes[head] == 2 else 1) / (penalty * fitted_on.sum())
    x = (features - mean) / scale
    model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x[fitted_on], y[fitted_on, head])
    return model, model.predict_proba(x), scale


@pytest.mark.parametrize("penalty", [0.001, 0.1, 10.0])
def test_all_folds_and_heads_at_once_are_scikit_learns_fitted_one_by_one(drawn, penalty):
    features, y, folds = drawn
    rows = np.stack([folds != fold for fold in range(4)])
    fitted = fit_linear(features, y, HEADS, rows, np.full((4, 2), penalty), tolerance=1e-8)
    assert fitted.unfinished == 0
    for fold in range(4):
        for head, found in enumerate(HEADS.split(fitted.probabilities(fold, features))):
            expected = by_scikit_learn(features, y, rows[fold], penalty, head)[1]
            assert found == pytest.approx(expected, abs=1e-5)


def test_coefficients_are_scikit_learns(drawn):
    features, y, folds = drawn
    rows = np.stack([folds != 0])
    fitted = fit_linear(features, y, HEADS, rows, np.full((1, 2), 0.01), tolerance=1e-8)
    model, _, scale = by_scikit_learn(features, y, rows[0], 0.01, 0)
    found = fitted.weight[0, :, :3].numpy() * scale[:, None]
    assert found == pytest.approx(model.coef_.T, abs=1e-3)


def test_the_usual_tolerance_is_near_enough(drawn):
    features, y, folds = drawn
    rows = np.stack([folds != 0])
    rough = fit_linear(features, y, HEADS, rows, np.full((1, 2), 0.1))
    expected = by_scikit_learn(features, y, rows[0], 0.1, 0)[1]
    assert HEADS.split(rough.probabilities(0, features))[0] == pytest.approx(expected, abs=1e-3)


def test_each_model_has_its_own_penalty_and_chunks_change_nothing(drawn):
    features, y, folds = drawn
    rows = np.stack([folds != 1] * 3)
    penalties = np.array([[0.01, 1.0], [1.0, 0.01], [0.1, 0.1]])
    whole, one_by_one = (fit_linear(features, y, HEADS, rows, penalties, tolerance=1e-8, together=n) for n in (None, 1))
    for model in range(3):
        a, b = (fitted.probabilities(model, features) for fitted in (whole, one_by_one))
        assert a == pytest.approx(b, abs=1e-6)
        expected = by_scikit_learn(features, y, rows[0], penalties[model, 1], 1)[1]
        assert HEADS.split(a)[1] == pytest.approx(expected, abs=1e-5)


def test_what_is_not_among_a_models_photos_changes_nothing_of_it(drawn):
    features, y, folds = drawn
    rows, penalties = np.stack([folds != 0]), np.full((1, 2), 0.1)
    other, others = features.copy(), y.copy()
    other[folds == 0] = -7 * other[folds == 0][::-1]
    others[folds == 0] = 0
    found, same = (
        fit_linear(x, labels, HEADS, rows, penalties, tolerance=1e-9) for x, labels in ((features, y), (other, others))
    )
    assert same.weight.numpy() == pytest.approx(found.weight.numpy(), abs=1e-6)


def test_a_class_that_a_model_has_not_been_shown_is_never_answered(drawn):
    features, y, folds = drawn
    y = np.where((folds == 1)[:, None] | (y != [2, 9]), y, 0)
    rows = np.stack([folds == 0])
    found = HEADS.split(fit_linear(features, y, HEADS, rows, np.full((1, 2), 0.1)).probabilities(0, features))[0]
    assert (y[:, 0] == 2).any()
    assert (found[:, 2] == 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(240))


def test_a_head_without_labels_and_a_feature_without_variance_do_no_harm(drawn):
    features, y, folds = drawn
    features[:, 3] = 5.0
    y[:, 1] = -1
    fitted = fit_linear(features, y, HEADS, np.stack([folds != 0]), np.full((1, 2), 0.1), tolerance=1e-8)
    shape, size = HEADS.split(fitted.probabilities(0, features))
    assert size == pytest.approx(np.full((240, 2), 0.5))
    varied = np.delete(features, 3, axis=1)
    assert shape == pytest.approx(by_scikit_learn(varied, y, folds != 0, 0.1, 0)[1], abs=1e-5)
