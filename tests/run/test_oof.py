import numpy as np
import pytest

from fastmask.run.oof import best_epochs, choose_epochs

NAN = float("nan")


@pytest.mark.parametrize(
    ("curves", "k", "chosen"),
    [
        # by hand: the mean of the other two is highest at epoch 1 for fold 0, at 0 for fold 1, at 0 for fold 2
        ([[0.9, 0.1, 0.2], [0.1, 0.8, 0.2], [0.1, 0.3, 0.5]], 1, [[1], [0], [0]]),
        # two folds choose for each other
        ([[0.1, 0.2, 0.9], [0.5, 0.2, 0.1]], 1, [[0], [2]]),
        ([[0.1, 0.2, 0.9], [0.5, 0.2, 0.1]], 2, [[0, 1], [1, 2]]),
        # a fold that stopped early keeps its last value, and takes no epoch that it did not reach
        ([[0.1, 0.2], [0.1, 0.2, 0.3, 0.9]], 1, [[1], [1]]),
        ([[0.1], [0.1, 0.2, 0.3, 0.9]], 3, [[0], [0, 1, 2]]),
        # epochs that were not validated have the value before, and are not chosen
        ([[NAN, 0.1, NAN, 0.2], [NAN, 0.3, 0.1]], 1, [[1], [1]]),
        ([[NAN, 0.1, NAN, 0.2, 0.3], [NAN, 0.3, NAN, 0.2, 0.4], [0.1]], 2, [[1, 4], [3, 4], [0]]),
        ([[NAN, 0.2, NAN, 0.1]], 3, [[1, 3]]),
        # a single fold: the last epochs
        ([[0.9, 0.1, 0.2]], 1, [[2]]),
        ([[0.9, 0.1, 0.2]], 2, [[1, 2]]),
    ],
)
def test_the_other_folds_choose_the_epochs(curves, k, chosen):
    assert choose_epochs([np.array(c) for c in curves], k) == chosen


def test_equal_values_give_the_earlier_epoch():
    assert best_epochs(np.array([0.1, 0.5, 0.5, 0.5])) == [1]
    assert best_epochs(np.array([0.1, 0.5, 0.5, 0.5]), 2) == [1, 2]
    assert best_epochs(np.array([NAN, -np.inf, NAN]), 2) == [1]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("patience", [0, 2, 5])
def test_scores_of_chosen_epochs_do_not_flatter_folds_that_stop_by_their_own(k, patience):
    """Epochs that differ by chance alone, with a mean of 0: the chosen ones score 0, a fold's own best far above."""
    rng, honest, own = np.random.default_rng(0), [], []
    for _ in range(1000):
        curves = [stop_early(rng.normal(size=20), patience) for _ in range(5)]
        honest += [curve[each].mean() for curve, each in zip(curves, choose_epochs(curves, k), strict=True)]
        own += [curve[best_epochs(curve, k)].mean() for curve in curves]
    assert np.mean(own) > 0.3
    assert abs(np.mean(honest)) < 0.06


def stop_early(curve, patience):
    best = 0
    for epoch, value in enumerate(curve):
        best = epoch if value > curve[best] else best
        if patience and epoch - best >= patience:
            return curve[: epoch + 1]
    return curve
