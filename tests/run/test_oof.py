import numpy as np
import pytest

from fastmask.run.oof import best_epochs, choose_epochs


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
