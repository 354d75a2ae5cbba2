import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.scoring import score, score_heads, score_together


def answers(n=400, k=18, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.choice(k, n, p=rng.dirichlet(np.ones(k)))
    return np.where(rng.random(n) < 0.6, true, rng.integers(0, k, n)), true


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_scikit_learn(seed):
    predicted, true = answers(seed=seed)
    classes = np.unique(true)
    expected = f1_score(true, predicted, labels=classes, average="macro", zero_division=0)
    assert score(predicted, true).macro_f1 == pytest.approx(expected)
    assert score(predicted, true).accuracy == pytest.approx(accuracy_score(true, predicted))


def test_the_classes_can_be_those_of_a_larger_truth():
    predicted, true = answers()
    part = true < 3
    expected = f1_score(true[part], predicted[part], labels=range(18), average="macro", zero_division=0)
    assert score(predicted[part], true[part], classes=range(18)).macro_f1 == pytest.approx(expected)


def test_photos_without_a_label_are_left_out():
    predicted, true = answers()
    unknown = np.arange(len(true)) % 3 == 0
    assert score(predicted, np.where(unknown, -1, true)) == score(predicted[~unknown], true[~unknown])


def test_the_bootstrap_draws_whole_persons():
    # one draw of a plain loop over persons has the same spread as ours
    predicted, true = answers(n=700, k=6)
    persons = np.repeat(np.arange(100), 7)
    rng, classes = np.random.default_rng(1), np.unique(true)
    draws = []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(persons == p) for p in rng.integers(0, 100, 100)])
        draws.append(f1_score(true[rows], predicted[rows], labels=classes, average="macro", zero_division=0))
    low, high = np.percentile(draws, (2.5, 97.5))
    ours = score(predicted, true, groups=persons)
    assert ours.macro_f1_interval == pytest.approx((low, high), abs=0.006)
    assert ours.macro_f1_interval[0] < ours.macro_f1 < ours.macro_f1_interval[1]


def test_seven_copies_of_a_photo_are_no_more_certain_than_one():
    predicted, true = answers(n=200, k=3)
    persons = np.arange(200)
    one = score(predicted, true, groups=persons)
    seven = score(np.repeat(predicted, 7), np.repeat(true, 7), groups=np.repeat(persons, 7))
    assert seven.macro_f1_interval == pytest.approx(one.macro_f1_interval)


def test_intervals_of_the_whole_contest_take_seconds():
    predicted, true = answers(n=18900)
    start = time.perf_counter()
    score(predicted, true, groups=np.repeat(np.arange(2700), 7), draws=2000)
    assert time.perf_counter() - start < 10


def test_heads_are_scored_by_the_labels_they_know():
    heads = contest_heads()
    true = np.array([[0, 1, 2], [1, -1, 0], [2, 0, -1], [0, 0, 1]])
    predicted = np.array([[0, 1, 2], [1, 0, 0], [2, 1, 1], [0, 0, 2]])
    scores = score_heads(heads, predicted, true)
    assert scores.joint.n == 2
    assert scores.joint.accuracy == 0.5
    assert (scores.heads["mask"].n, scores.heads["mask"].accuracy) == (4, 1.0)
    assert (scores.heads["gender"].n, scores.heads["gender"].accuracy) == (3, pytest.approx(2 / 3))
    assert "2 of 4 photos lack a label" in str(scores)
    assert scores.to_plain()["heads"]["age"]["n"] == 3


def test_no_known_label_is_no_score():
    nothing = score(np.array([1]), np.array([-1]))
    assert nothing.n == 0
    assert np.isnan(nothing.macro_f1)


def test_a_class_that_a_draw_lacks_keeps_its_f1():
    # two persons of the rare class among ten: a draw without them must not make perfect answers imperfect
    true = np.repeat([0, 0, 0, 0, 1, 1, 1, 1, 2, 2], 7)
    perfect = score(true, true, groups=np.repeat(np.arange(10), 7))
    assert perfect.macro_f1_interval == (1.0, 1.0)


def test_a_class_that_a_draw_lacks_keeps_its_f1_even_where_others_are_taken_for_it():
    true, persons = np.array([0] * 20 + [1]), np.arange(21)
    guess = np.where(np.arange(21) % 5 == 0, 1, true)  # 4 of class 0 taken for 1; class 1 right
    rng, whole, draws = np.random.default_rng(0), 2 * 1 / (5 + 1), []
    for _ in range(4000):
        rows = rng.integers(0, 21, 21)
        each = f1_score(true[rows], guess[rows], labels=[0, 1], average=None, zero_division=0)
        draws.append((each[0] + (each[1] if (true[rows] == 1).any() else whole)) / 2)
    ours = score(guess, true, groups=persons).macro_f1_interval
    assert ours == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=0.02)


def test_an_interval_holds_the_figure_and_is_said_to_be_too_narrow_where_classes_are_thin():
    heads = Heads([Head("name", tuple(map(str, range(100))))])
    true = np.arange(100)[:, None]
    predicted = np.where(np.random.default_rng(0).random((100, 1)) < 0.44, true, (true + 1) % 100)
    scores = score_heads(heads, predicted, true, groups=np.arange(100))
    low, high = scores.joint.macro_f1_interval
    assert low <= scores.joint.macro_f1 <= high
    assert scores.notes == [
        "Half of the joint classes have under 5 persons: the interval of their macro-F1 is too narrow."
    ]
    many = np.repeat(np.arange(4), 50)[:, None]
    heads = Heads([Head("name", tuple(map(str, range(4))))])
    assert score_heads(heads, many, many, groups=np.arange(200)).notes == []


def test_scores_together_are_scores_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    targets = [(rng.integers(0, k, 200), rng.integers(0, k, 200), None) for k in (2, 3, 18)]
    assert score_together(targets, groups) == [score(*target, groups) for target in targets]
