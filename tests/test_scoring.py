import time

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.data.contest import contest_heads
from fastmask.scoring import draw_scores, score, score_differences, score_heads, score_together


def answers(n=400, k=18, seed=0, rare=True):
    rng = np.random.default_rng(seed)
    true = rng.choice(k, n, p=rng.dirichlet(np.ones(k)) if rare else None)
    return np.where(rng.random(n) < 0.6, true, rng.integers(0, k, n)), true


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_scikit_learn(seed):
    predicted, true = answers(n=60, seed=seed)
    assert set(predicted) - set(true), "no class is only predicted"
    found = score(predicted, true)
    assert found.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))
    assert found.accuracy == pytest.approx(accuracy_score(true, predicted))


def test_a_class_that_is_only_predicted_counts_as_0_as_in_scikit_learn():
    predicted, true = np.array([0, 2, 1, 1]), np.array([0, 0, 1, 1])
    assert score(predicted, true).macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))
    assert score(predicted, true).macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_heads_with_absent_classes_equal_scikit_learn(seed):
    heads, rng = contest_heads(), np.random.default_rng(seed)
    sizes = [len(head.classes) for head in heads]
    true = np.stack([rng.integers(-1, max(1, k - 1), 40) for k in sizes], axis=1)
    predicted = np.stack([rng.integers(0, k, 40) for k in sizes], axis=1)
    scores = score_heads(heads, predicted, true)
    for place, (name, found) in enumerate(scores.heads.items()):
        known = true[:, place] >= 0
        expected = f1_score(true[known, place], predicted[known, place], average="macro")
        assert found.macro_f1 == pytest.approx(expected), name
    known = (true >= 0).all(1)
    names = [[str(row) for row in y[known]] for y in (true, predicted)]
    assert scores.joint.macro_f1 == pytest.approx(f1_score(*names, average="macro", zero_division=0))
    assert "Macro-F1 of age is the mean over 3 classes, of which 1 counts as 0 because no photo has it: 60+." in str(
        scores
    )


def test_the_classes_can_be_those_of_the_whole_table():
    predicted, true = answers()
    part = true < 3
    expected = f1_score(true[part], predicted[part], labels=range(18), average="macro", zero_division=0)
    assert score(predicted[part], true[part], classes=range(18)).macro_f1 == pytest.approx(expected)


def test_photos_without_a_label_are_left_out():
    predicted, true = answers()
    unknown = np.arange(len(true)) % 3 == 0
    assert score(predicted, np.where(unknown, -1, true)) == score(predicted[~unknown], true[~unknown])


def macro(predicted, true, classes):
    """Macro-F1 over classes by a confusion matrix of numpy, which is fast enough for draws."""
    k = 18
    counts = np.bincount(true * k + predicted, minlength=k * k).reshape(k, k)
    return np.mean([2 * counts[c, c] / max(counts[c].sum() + counts[:, c].sum(), 1) for c in classes])


def draws_of(value, groups, seed=1):
    """`value` of the rows of 1,000 draws of whole groups, by a plain loop."""
    rows_of, rng = [np.flatnonzero(groups == g) for g in np.unique(groups)], np.random.default_rng(seed)
    return [
        value(np.concatenate([rows_of[g] for g in rng.integers(0, len(rows_of), len(rows_of))])) for _ in range(1000)
    ]


def test_with_many_persons_it_is_the_interval_of_a_plain_bootstrap_over_whole_persons():
    predicted, true = answers(n=7000, k=6, rare=False)
    persons, classes = np.repeat(np.arange(1000), 7), np.unique(true)
    # all photos of a person are right or wrong together
    alike = np.repeat(np.arange(1000) % 2 == 0, 7)
    predicted = np.where(alike, true, predicted)
    assert macro(predicted, true, classes) == pytest.approx(f1_score(true, predicted, average="macro"))
    expected = np.percentile(draws_of(lambda rows: macro(predicted[rows], true[rows], classes), persons), (2.5, 97.5))
    ours = score(predicted, true, groups=persons)
    assert ours.macro_f1_interval == pytest.approx(expected, abs=0.004)
    hit = predicted == true
    expected = np.percentile(draws_of(lambda rows: hit[rows].mean(), persons), (2.5, 97.5))
    assert ours.accuracy_interval == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("photos", [1, 7])
@pytest.mark.parametrize(("right", "of"), [(20, 20), (10, 10), (19, 20), (30, 40), (1, 40), (0, 20), (300, 600)])
def test_the_interval_of_accuracy_is_that_of_clopper_and_pearson(right, of, photos):
    true = np.zeros(of * photos, int)
    predicted = np.repeat(np.arange(of) >= right, photos).astype(int)
    found = score(predicted, true, groups=np.repeat(np.arange(of), photos), draws=4000).accuracy_interval
    expected = binomtest(right, of).proportion_ci(method="exact")
    assert found == pytest.approx((expected.low, expected.high), abs=0.012)


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


def simulate(rng, n, photos, right):
    """(N,) truth, the answers of two models, and persons: most mistakes are a person's, and the same of both models."""
    sizes = np.ceil(photos ** rng.random(n)).astype(int) if photos > 1 else np.ones(n, int)
    owner = np.repeat(np.arange(n), sizes)
    true = rng.choice(4, n, p=[0.5, 0.3, 0.14, 0.06])
    rate = np.array([1, 1, 0.9, 0.7]) * right
    own, luck = rng.choice(4, n), rng.random(n)
    other = np.where(rng.random(n) < 0.8, luck, rng.random(n))
    odd = rng.random(len(owner)) < 0.1
    said = [np.where(one < rate[true], true, own)[owner] for one in (luck, other)]
    said[0] = np.where(odd, rng.integers(0, 4, len(owner)), said[0])
    return true[owner], said, owner


@pytest.mark.parametrize("photos", [1, 12])
@pytest.mark.parametrize(("n", "right"), [(12, 0.95), (25, 0.6), (60, 0.9)])
def test_intervals_cover_the_truth_in_93_percent_or_more(n, right, photos):
    rng = np.random.default_rng(0)
    true, said, _ = simulate(rng, 100_000, photos, right)
    each = np.array([f1_score(true, one, average=None) for one in said])
    accuracy = [accuracy_score(true, one) for one in said]
    held = []
    for seed in range(150):
        true, said, owner = simulate(rng, n, photos, right)
        classes = np.unique(true)
        first, second = draw_scores([(one, true, classes) for one in said], owner, 250, seed)
        found, gain = first.score(), second.minus(first)
        macro_f1 = each[:, classes].mean(1)
        wanted = (macro_f1[0], accuracy[0], macro_f1[1] - macro_f1[0], accuracy[1] - accuracy[0])
        ends = (found.macro_f1_interval, found.accuracy_interval, gain.macro_f1_interval, gain.accuracy_interval)
        held.append([low <= value <= high for value, (low, high) in zip(wanted, ends, strict=True)])
    assert (np.mean(held, axis=0) >= 0.93).all()


def test_the_interval_of_a_weak_model_with_few_persons_is_not_much_wider_than_a_plain_bootstraps():
    rng = np.random.default_rng(0)
    group, owner = np.resize(np.arange(6), 60), np.repeat(np.arange(60), 7)
    true = np.tile([0, 0, 0, 0, 0, 1, 2], 60) * 6 + group[owner]
    predicted = np.where(rng.random(420) < 0.3, true, rng.integers(0, 18, 420))
    plain = np.ptp(
        np.percentile(draws_of(lambda rows: macro(predicted[rows], true[rows], range(18)), owner), (2.5, 97.5))
    )
    low, high = score(predicted, true, groups=owner).macro_f1_interval
    assert high - low < 1.6 * plain


def test_scores_together_equal_scores_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    targets = [(rng.integers(0, k, 200), rng.integers(0, k, 200), None) for k in (2, 3, 18)]
    assert score_together(targets, groups) == [score(*target, groups) for target in targets]


def paired(n=700, seed=0):
    predicted, true = answers(n, k=6, seed=seed, rare=False)
    rng = np.random.default_rng(seed + 1)
    better = np.where(rng.random(n) < 0.15, true, predicted)
    return predicted, better, true, np.repeat(np.arange(n // 7), 7)


def test_a_difference_is_of_the_scores_on_the_same_draws_of_persons():
    one, other, true, persons = paired(n=7000)
    classes = np.unique(true)

    def gain(rows):
        return macro(other[rows], true[rows], classes) - macro(one[rows], true[rows], classes)

    difference = score_differences([(one, true, None), (other, true, None)], persons)[0]
    scores = [f1_score(true, predicted, average="macro") for predicted in (one, other)]
    assert difference.macro_f1 == pytest.approx(scores[1] - scores[0])
    assert difference.accuracy == pytest.approx(accuracy_score(true, other) - accuracy_score(true, one))
    interval = np.percentile(draws_of(gain, persons), (2.5, 97.5))
    assert difference.macro_f1_interval == pytest.approx(interval, abs=0.004)


def test_a_paired_difference_is_clear_where_intervals_overlap():
    one, other, true, persons = paired()
    first, second = (score(p, true, groups=persons) for p in (one, other))
    assert first.macro_f1_interval[1] > second.macro_f1_interval[0]
    difference = score_differences([(one, true, None), (other, true, None)], persons)[0]
    assert difference.macro_f1_interval[0] > 0
    assert not difference.is_noise


def test_equal_predictions_have_a_difference_of_0_and_new_persons_may_still_differ():
    one, _, true, persons = paired()
    same = score_differences([(one, true, None), (one, true, None)], persons)[0]
    assert (same.macro_f1, same.accuracy) == (0, 0)
    assert same.is_noise
    # a discordant pair is added to both sides of none, as by Bonett and Price (2012): 1.96 * sqrt(2) / (n + 2)
    n = len(np.unique(persons))
    assert same.accuracy_interval == pytest.approx((-1.96 * 2**0.5 / (n + 2), 1.96 * 2**0.5 / (n + 2)), rel=0.15)


def test_differences_are_over_the_classes_of_all_predictions():
    true, one, other = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    (difference,) = score_differences([(one, true, None), (other, true, None)], np.arange(4))
    assert difference.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3 - (1 + 1 + 0) / 3)


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
