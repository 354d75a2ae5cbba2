import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fastmask.data.contest import contest_heads
from fastmask.search.linear_oof import PENALTIES, oof_of_features


@pytest.fixture
def drawn():
    """Features and labels of 90 persons of four photos in five folds."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(360, 10))
    scores = features @ rng.normal(size=(10, 8)) + rng.gumbel(size=(360, 8)) * 2
    heads = contest_heads()
    y = np.stack([part.argmax(1) for part in heads.split(scores)], axis=1)
    return features, y, heads, np.arange(360) // 4 % 5


def by_scikit_learn(features, y, head, rows, penalty, judged):
    mean, scale = features[rows].mean(0), features[rows].std(0)
    c = (2 if y[:, head].max() == 1 else 1) / (penalty * rows.sum())
    model = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit((features[rows] - mean) / scale, y[rows, head])
    return model.predict_proba((features[judged] - mean) / scale)


def test_oof_is_scikit_learns_fold_by_fold(drawn):
    features, y, heads, folds = drawn
    probabilities, penalties, unfinished = oof_of_features(*drawn)
    assert unfinished == 0
    for fold in range(5):
        here = folds == fold
        for head, part in enumerate(heads.split(probabilities[here])):
            expected = by_scikit_learn(features, y, head, ~here, penalties[fold, head], here)
            assert part == pytest.approx(expected, abs=1e-3)


def test_the_penalty_is_the_best_on_the_neighbours_by_models_without_the_fold(drawn):
    features, y, _, folds = drawn
    penalties = oof_of_features(*drawn)[1]
    for fold, head in ((0, 2), (3, 1)):
        losses = []
        for penalty in PENALTIES:
            loss = 0.0
            for neighbour in ((fold + 1) % 5, (fold - 1) % 5):
                here = folds == neighbour
                p = by_scikit_learn(features, y, head, ~here & (folds != fold), penalty, here)
                loss -= np.log(p[np.arange(here.sum()), y[here, head]]).sum()
            losses.append(loss)
        assert penalties[fold, head] == PENALTIES[int(np.argmin(losses))]


@pytest.mark.parametrize("fold", [0, 2])
def test_no_label_of_a_fold_reaches_its_own_predictions(drawn, fold):
    features, y, heads, folds = drawn
    here = folds == fold
    others = y.copy()
    others[here] = (y[here] + 1) % [3, 2, 3]
    before, after = (oof_of_features(features, labels, heads, folds) for labels in (y, others))
    assert (before[1][fold] == after[1][fold]).all()
    # torch sums them in another order, no more
    assert after[0][here] == pytest.approx(before[0][here], abs=1e-9)
    assert np.abs(after[0][~here] - before[0][~here]).max() > 0.01


def test_a_penalty_of_two_folds_is_not_chosen(drawn):
    features, y, heads, folds = drawn
    probabilities, penalties, _ = oof_of_features(features, y, heads, folds % 2)
    assert set(penalties.ravel()) == {0.1}
    here = folds % 2 == 0
    expected = by_scikit_learn(features, y, 0, ~here, 0.1, here)
    assert heads.split(probabilities[here])[0] == pytest.approx(expected, abs=1e-3)
