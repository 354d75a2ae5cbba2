import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.model.linear import PENALTIES, fit_linear, oof_of_features

HEADS = Heads([Head("shape", ("round", "square", "star")), Head("size", ("small", "large"))])


@pytest.fixture
def drawn():
    """Features that correlate and are far from standardised, and noisy labels, some of them unknown."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, 12)) @ rng.normal(size=(12, 12)) * 5 + 30
    scores = (features - features.mean(0)) @ rng.normal(size=(12, 5)) / 20 + rng.gumbel(size=(240, 5))
    y = np.stack([scores[:, :3].argmax(1), scores[:, 3:].argmax(1)], axis=1)
    y[::11, 0] = y[::7, 1] = -1
    return features, y, np.arange(240) % 4


def by_scikit_learn(features, y, rows, penalty):
    """A model of one head fitted on `rows` alone, its probabilities of all, and the deviations of the features."""
    fitted_on = rows & (y >= 0)
    mean, scale = features[rows].mean(0), features[rows].std(0)
    # its two classes share one row of weights, whose square is twice that of the two halves
    c = (2 if y.max() == 1 else 1) / (penalty * fitted_on.sum())
    x = (features - mean) / scale
    model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x[fitted_on], y[fitted_on])
    return model, model.predict_proba(x), scale


@pytest.mark.parametrize("penalty", [0.001, 10.0])
def test_all_folds_and_heads_at_once_are_scikit_learns_fitted_one_by_one(drawn, penalty):
    features, y, folds = drawn
    rows = np.stack([folds != fold for fold in range(4)])
    fitted = fit_linear(features, y, HEADS, rows, np.full((4, 2), penalty), tolerance=1e-8)
    assert fitted.unfinished == 0
    for fold in range(4):
        for head, found in enumerate(HEADS.split(fitted.probabilities(fold, features))):
            expected = by_scikit_learn(features, y[:, head], rows[fold], penalty)[1]
            assert found == pytest.approx(expected, abs=1e-5)


def test_coefficients_and_the_usual_tolerance_are_near_scikit_learns(drawn):
    features, y, folds = drawn
    rows = np.stack([folds != 0])
    fitted = fit_linear(features, y, HEADS, rows, np.full((1, 2), 0.01), tolerance=1e-8)
    model, _, scale = by_scikit_learn(features, y[:, 0], rows[0], 0.01)
    assert fitted.weight[0, :, :3].numpy() * scale[:, None] == pytest.approx(model.coef_.T, abs=1e-3)
    rough = fit_linear(features, y, HEADS, rows, np.full((1, 2), 0.1))
    expected = by_scikit_learn(features, y[:, 0], rows[0], 0.1)[1]
    assert HEADS.split(rough.probabilities(0, features))[0] == pytest.approx(expected, abs=1e-3)


def test_each_model_has_its_own_penalty_and_chunks_change_nothing(drawn):
    features, y, folds = drawn
    rows = np.stack([folds != 1] * 3)
    penalties = np.array([[0.01, 1.0], [1.0, 0.01], [0.1, 0.1]])
    whole, one_by_one = (fit_linear(features, y, HEADS, rows, penalties, tolerance=1e-8, together=n) for n in (None, 1))
    for model in range(3):
        a, b = (fitted.probabilities(model, features) for fitted in (whole, one_by_one))
        assert a == pytest.approx(b, abs=1e-6)
        expected = by_scikit_learn(features, y[:, 1], rows[0], penalties[model, 1])[1]
        assert HEADS.split(a)[1] == pytest.approx(expected, abs=1e-5)


def test_a_class_that_is_not_among_a_models_photos_has_probability_0(drawn):
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
    assert shape == pytest.approx(by_scikit_learn(varied, y[:, 0], folds != 0, 0.1)[1], abs=1e-5)


@pytest.fixture
def persons():
    """Features, labels, heads and folds of 90 persons of four photos."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(360, 10))
    scores = features @ rng.normal(size=(10, 8)) + rng.gumbel(size=(360, 8)) * 2
    y = np.stack([part.argmax(1) for part in contest_heads().split(scores)], axis=1)
    return features, y, contest_heads(), np.arange(360) // 4 % 5


@pytest.mark.parametrize("folds", [5, 2])
def test_oof_is_scikit_learns_fold_by_fold_and_two_folds_have_one_penalty(persons, folds):
    features, y, heads, fold_of = persons
    fold_of = fold_of % folds
    probabilities, penalties, unfinished = oof_of_features(features, y, heads, fold_of)
    assert unfinished == 0
    assert folds > 2 or set(penalties.ravel()) == {0.1}
    for fold in range(folds):
        here = fold_of == fold
        for head, part in enumerate(heads.split(probabilities[here])):
            expected = by_scikit_learn(features, y[:, head], ~here, penalties[fold, head])[1]
            assert part == pytest.approx(expected[here], abs=1e-3)


def test_photos_of_no_fold_are_fitted_on_and_not_predicted(persons):
    features, y, heads, fold_of = persons
    train_only = np.where(fold_of == 0, 0, -1)
    probabilities, penalties, _ = oof_of_features(features, y, heads, train_only)
    assert penalties.tolist() == [[0.1] * 3]
    assert np.isnan(probabilities[train_only == -1]).all()
    two = oof_of_features(features, y, heads, np.where(fold_of == 0, 0, 1))[0]
    assert probabilities[fold_of == 0] == pytest.approx(two[fold_of == 0], abs=1e-6)


def test_the_penalty_is_the_best_on_the_neighbours_by_models_without_the_fold(persons):
    features, y, _, folds = persons
    penalties = oof_of_features(*persons)[1]
    for fold, head in ((0, 2), (3, 1)):
        losses = np.zeros(len(PENALTIES))
        for i, penalty in enumerate(PENALTIES):
            for neighbour in ((fold + 1) % 5, (fold - 1) % 5):
                here = folds == neighbour
                p = by_scikit_learn(features, y[:, head], ~here & (folds != fold), penalty)[1]
                losses[i] -= np.log(p[here, y[here, head]]).sum()
        assert penalties[fold, head] == PENALTIES[int(np.argmin(losses))]


@pytest.mark.parametrize("fold", [0, 2])
def test_no_label_of_a_fold_affects_its_own_predictions(persons, fold):
    features, y, heads, folds = persons
    here = folds == fold
    others = y.copy()
    others[here] = (y[here] + 1) % [3, 2, 3]
    before, after = (oof_of_features(features, labels, heads, folds) for labels in (y, others))
    assert (before[1][fold] == after[1][fold]).all()
    # torch may sum them in another order
    assert after[0][here] == pytest.approx(before[0][here], abs=1e-9)
    assert np.abs(after[0][~here] - before[0][~here]).max() > 0.01
