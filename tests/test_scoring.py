import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.scoring import few_groups_caveat, score, score_differences, score_heads, score_together


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


def test_the_classes_can_be_those_of_the_whole_table():
    predicted, true = answers()
    part = true < 3
    expected = f1_score(true[part], predicted[part], labels=range(18), average="macro", zero_division=0)
    assert score(predicted[part], true[part], classes=range(18)).macro_f1 == pytest.approx(expected)


def test_photos_without_a_label_are_left_out():
    predicted, true = answers()
    unknown = np.arange(len(true)) % 3 == 0
    assert score(predicted, np.where(unknown, -1, true)) == score(predicted[~unknown], true[~unknown])


def draws_of(value, persons, seed):
    """`value` of the rows of 1,500 draws of whole persons, by a plain loop."""
    rows_of, rng = [np.flatnonzero(persons == p) for p in np.unique(persons)], np.random.default_rng(seed)
    return [value(np.concatenate([rows_of[p] for p in rng.integers(0, 100, 100)])) for _ in range(1500)]


def macro(predicted, true, classes):
    """Macro-F1 over classes by a confusion matrix of numpy, which is fast enough for draws."""
    k = 18
    counts = np.bincount(true * k + predicted, minlength=k * k).reshape(k, k)
    return np.mean([2 * counts[c, c] / max(counts[c].sum() + counts[:, c].sum(), 1) for c in classes])


def test_the_bootstrap_draws_whole_persons():
    predicted, true = answers(n=700, k=6)
    persons, classes = np.repeat(np.arange(100), 7), np.unique(true)
    expected = f1_score(true, predicted, labels=classes, average="macro")
    assert macro(predicted, true, classes) == pytest.approx(expected)
    draws = draws_of(lambda rows: macro(predicted[rows], true[rows], classes), persons, seed=1)
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


def test_ten_correct_persons_do_not_make_the_next_certain():
    true = np.repeat([0, 0, 0, 0, 1, 1, 1, 1, 2, 2], 7)
    perfect = score(true, true, groups=np.repeat(np.arange(10), 7))
    assert perfect.macro_f1 == perfect.macro_f1_interval[1] == 1
    assert perfect.macro_f1_interval[0] < 0.99
    many = np.tile(true, 100)
    assert score(many, many, groups=np.repeat(np.arange(1000), 7)).macro_f1_interval[0] > 0.99


def test_an_interval_covers_the_truth_in_95_percent_with_rare_classes_too():
    # persons of seven photos that are mostly mistaken alike; a class in thirty persons is rare
    rng = np.random.default_rng(0)
    shares, right = np.array([0.5, 0.3, 0.17, 0.03]), np.array([0.9, 0.8, 0.7, 0.5])

    def persons(n):
        true = rng.choice(4, n, p=shares)
        said = np.where(rng.random(n) < right[true], true, rng.choice(4, n, p=shares))
        odd = rng.random((n, 7)) < 0.1
        return np.repeat(true, 7), np.where(odd, rng.integers(0, 4, (n, 7)), said[:, None]).ravel()

    truth = f1_score(*persons(100_000), average=None)
    held = []
    for _ in range(150):
        true, said = persons(60)
        low, high = score(said, true, groups=np.repeat(np.arange(60), 7), draws=200).macro_f1_interval
        held.append(low <= truth[np.unique(true)].mean() <= high)
    assert np.mean(held) >= 0.9


def test_an_interval_contains_the_score():
    heads = Heads([Head("name", tuple(map(str, range(100))))])
    true = np.arange(100)[:, None]
    predicted = np.where(np.random.default_rng(0).random((100, 1)) < 0.44, true, (true + 1) % 100)
    low, high = score_heads(heads, predicted, true, groups=np.arange(100)).joint.macro_f1_interval
    assert low <= 0.44 <= high


def test_few_persons_per_class_are_a_caveat_of_differences():
    few, many = np.repeat(np.arange(4), 29), np.repeat(np.arange(4), 30)
    assert few_groups_caveat(few, np.arange(116)) == [
        "Half of the joint classes have under 30 persons: the intervals of differences are too narrow."
    ]
    assert few_groups_caveat(many, np.arange(120)) == []
    assert few_groups_caveat(np.array([-1, -1]), np.arange(2)) == []


def test_scores_together_equal_scores_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    targets = [(rng.integers(0, k, 200), rng.integers(0, k, 200), None) for k in (2, 3, 18)]
    assert score_together(targets, groups) == [score(*target, groups) for target in targets]


def paired(n=700, seed=0):
    predicted, true = answers(n, k=6, seed=seed)
    rng = np.random.default_rng(seed + 1)
    better = np.where(rng.random(n) < 0.15, true, predicted)
    return predicted, better, true, np.repeat(np.arange(n // 7), 7)


def test_a_difference_is_of_the_scores_on_the_same_draws_of_persons():
    one, other, true, persons = paired()
    classes = np.unique(true)

    def gain(rows):
        return macro(other[rows], true[rows], classes) - macro(one[rows], true[rows], classes)

    difference = score_differences([(one, true, None), (other, true, None)], persons)[0]
    scores = [f1_score(true, predicted, labels=classes, average="macro") for predicted in (one, other)]
    assert difference.macro_f1 == pytest.approx(scores[1] - scores[0])
    assert difference.accuracy == pytest.approx(accuracy_score(true, other) - accuracy_score(true, one))
    interval = np.percentile(draws_of(gain, persons, seed=3), (2.5, 97.5))
    assert difference.macro_f1_interval == pytest.approx(interval, abs=0.006)


def test_a_paired_difference_is_clear_where_intervals_overlap():
    one, other, true, persons = paired()
    first, second = (score(p, true, groups=persons) for p in (one, other))
    assert first.macro_f1_interval[1] > second.macro_f1_interval[0]
    difference = score_differences([(one, true, None), (other, true, None)], persons)[0]
    assert difference.macro_f1_interval[0] > 0
    assert not difference.is_noise


def test_equal_predictions_have_no_difference_and_that_is_noise():
    one, _, true, persons = paired()
    same = score_differences([(one, true, None), (one, true, None)], persons)[0]
    assert (same.macro_f1, same.macro_f1_interval) == (0, (0, 0))
    assert same.is_noise
    assert str(same) == "+0.0000 (+0.0000 … +0.0000), within noise"


def test_several_predictions_are_each_compared_with_the_first():
    one, other, true, persons = paired()
    there, back = score_differences([(one, true, None), (other, true, None), (one, true, None)], persons)
    assert there == score_differences([(one, true, None), (other, true, None)], persons)[0]
    assert back.macro_f1 == 0


def test_intervals_of_the_contests_size_take_under_ten_seconds():
    one, other, true, persons = paired(n=18_900)
    # CPU time of this process, since other processes may be busy
    start = time.process_time()
    score(one, true, groups=persons, draws=2000)
    score_differences([(one, true, None), (other, true, None)], persons, draws=2000)
    assert time.process_time() - start < 10
