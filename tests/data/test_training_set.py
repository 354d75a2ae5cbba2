import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.training_set import TrainingSet, check_limits, class_weights, dropped_rows, training_set
from fastmask.heads import Head, Heads
from fastmask.labels import soft_labels
from fastmask.system.errors import UsageError

HEADS = contest_heads()
Y = np.array([[0, 0, 0]] * 6 + [[1, 0, 0]] * 3 + [[2, 1, 2]] + [[0, 1, -1]] * 2)
SET = TrainingSet([f"{i}.jpg" for i in range(12)], Y)


def test_it_is_some_rows_of_a_table_by_the_training_labels(contest):
    table = read_contest(contest, age_bounds=(20, 25))
    rows = np.arange(len(table)) % 3 == 1
    made = training_set(table, rows)
    assert made.photos == [str(table.photo(row)) for row in np.flatnonzero(rows)]
    assert made.labels.tolist() == table.train_y[rows].tolist()
    assert training_set(table, rows, scored=True).labels.tolist() == table.y[rows].tolist()


def test_soft_labels_are_those_of_torch():
    assert SET.soft(HEADS).tolist() == soft_labels(torch.from_numpy(Y), HEADS).tolist()
    # the last row of eye is the unknown's
    one_hot = [np.eye(size + 1)[column, :size] for column, size in zip(Y.T, HEADS.sizes, strict=True)]
    assert SET.soft(HEADS).tolist() == np.concatenate(one_hot, axis=1).tolist()
    assert SET.soft(HEADS).dtype == np.float32


def test_two_sets_are_joined_by_soft_labels():
    other = TrainingSet(["x.jpg"], np.full((1, HEADS.n_logits), 0.25, np.float32))
    both = SET.join(other, HEADS)
    assert both.photos[-1] == "x.jpg"
    assert both.labels[:12].tolist() == soft_labels(torch.from_numpy(Y), HEADS).tolist()
    assert both.labels[12:].tolist() == other.labels.tolist()
    assert both.classes(HEADS)[:12].tolist() == Y.tolist()


def test_labels_in_two_parts_count_by_their_sum():
    own = SET.soft(HEADS)
    taught = np.roll(own, 1, 0)
    parts = TrainingSet(SET.photos, np.stack([0.25 * own, 0.75 * taught], 1))
    assert parts.soft(HEADS).tolist() == (0.25 * own + 0.75 * taught).tolist()
    assert parts.classes(HEADS)[1:].tolist() == Y[:-1].tolist()
    # labels of another set without parts are its own
    for one, other in ((parts, SET), (SET, parts)):
        both = one.join(other, HEADS).labels
        assert both.shape == (24, 2, HEADS.n_logits)
        hard = both[12:] if one is parts else both[:12]
        assert hard[:, 0].tolist() == own.tolist()
        assert not hard[:, 1].any()


def test_a_sampler_says_which_photos_an_epoch_has():
    persons = np.repeat(np.array(["a", "b", "c"], object), 4)
    made = TrainingSet(SET.photos, Y, persons)
    assert (made.sampler, made.photos_per_epoch) == (None, 12)
    sampled = made.sample(HEADS, per_person=1)
    assert sampled.photos_per_epoch == 3
    assert sorted(persons[sampled.sampler.order(np.random.default_rng(0))]) == ["a", "b", "c"]
    # by the class of most weight, where labels are soft
    soft = TrainingSet(SET.photos, made.soft(HEADS), persons)
    limited = [one.sample(HEADS, per_person={"mask.wear": 1}).photos_per_epoch for one in (made, soft)]
    # of the six, two and two that a, b and c have of mask.wear, one each; and the four others
    assert limited == [7, 7]
    # without persons, each photo is of another one, also after a join
    assert SET.sample(HEADS, per_person=1).photos_per_epoch == 12
    both = made.join(TrainingSet(["x.jpg", "y.jpg"], Y[:2], np.array(["a", "z"], object)), HEADS)
    assert both.sample(HEADS, per_person=1).photos_per_epoch == 4
    assert SET.join(SET, HEADS).sample(HEADS, per_person=1).photos_per_epoch == 12


def test_balanced_leaves_unknown_classes_as_they_were():
    # ten photos of three known classes; the two of unknown age are drawn as before, once per epoch
    often = SET.sample(HEADS, "joint").sampler.expected()
    for rows in (slice(0, 6), slice(6, 9), slice(9, 10)):
        assert often[rows].sum() == pytest.approx(10 / 3)
    assert often[10:].tolist() == pytest.approx([1, 1])


def test_a_count_per_person_that_leaves_out_no_photo_is_refused():
    made = TrainingSet(SET.photos, Y, np.repeat(np.array(["a", "b", "c"], object), 4))
    check_limits([made], HEADS, None)
    check_limits([made], HEADS, 3)
    check_limits([SET, made], HEADS, {"mask.wear": 3})
    with pytest.raises(UsageError, match="per_person is 4, but no person has more photos to train on"):
        check_limits([made], HEADS, 4)
    with pytest.raises(UsageError, match=r"per_person is 2 of mask\.none, but no person has more photos of mask\.none"):
        check_limits([made], HEADS, {"mask.wear": 3, "mask.none": 2})


def test_class_weights_are_scikit_learns_balanced():
    found = class_weights(SET.soft(HEADS), HEADS)
    for i, row in enumerate(found[:2]):
        expected = compute_class_weight("balanced", classes=np.unique(Y[:, i]), y=Y[:, i])
        assert row == pytest.approx(expected)
    known = Y[:, 2][Y[:, 2] >= 0]
    # age class 1 has no photo
    assert found[2] == pytest.approx([*compute_class_weight("balanced", classes=np.array([0, 2]), y=known)[:1], 1, 5])


def test_class_weights_count_by_the_labels_weights_and_leave_distributions_out():
    heads = Heads([Head("a", ("x", "y")), Head("n", ("1", "2", "3"), spread=1.0)])
    labels = np.array([[0.5, 0, 1, 0, 0], [0, 1.5, 0, 1, 0]], np.float32)
    assert class_weights(labels, heads) == [[2.0, pytest.approx(2 / 3)], None]


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(UsageError, match="a row of labels"):
        TrainingSet(["a.jpg"], Y)
    with pytest.raises(UsageError, match="a person per photo"):
        TrainingSet(SET.photos, Y, np.ones(3))
    with pytest.raises(UsageError, match="a row of labels per photo"):
        TrainingSet(SET.photos[:1], Y[:1], sampler=SET.sample(HEADS, "joint").sampler)


def test_ranges_are_dropped_of_the_number_behind_a_head(contest):
    table = read_contest(contest)
    ages = table.frame["age_value"]
    low, high = sorted(ages.unique())[:2]
    assert dropped_rows(table, {"age": [(low, high)]}).tolist() == ages.isin([low, high]).tolist()
    with pytest.raises(
        UsageError, match="names the head years, and the heads are mask, gender, age; --drop-ages is of"
    ):
        dropped_rows(table, {"years": [(1, 2)]})
    with pytest.raises(UsageError, match="head mask is not made of bands of a number"):
        dropped_rows(table, {"mask": [(1, 2)]})
