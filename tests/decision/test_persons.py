import numpy as np
import pytest

from fastmask.data.contest import contest_heads
from fastmask.decision.persons import average_persons, shared_heads
from fastmask.heads import Head, Heads

HEADS = contest_heads()
PERSONS = np.repeat(["a", "b", "c"], 7).astype(object)
Y = np.stack([np.tile([0, 0, 0, 0, 0, 1, 2], 3), np.repeat([0, 1, 1], 7), np.repeat([2, 0, 1], 7)], axis=1)


def test_gender_and_age_belong_to_a_person_and_the_mask_to_a_photo():
    assert shared_heads(HEADS, Y, PERSONS) == ("gender", "age")


def test_unknown_labels_contradict_none():
    y = Y.copy()
    y[::3, 1] = -1
    y[:, 2] = -1
    assert shared_heads(HEADS, y, PERSONS) == ("gender",)


def test_a_contradiction_in_a_hundred_persons_is_a_mistake_and_two_are_not():
    persons, y = np.repeat(np.arange(100), 2), np.repeat(np.arange(100) % 2, 2)[:, None]
    heads = Heads([Head("gender", ("male", "female"))])
    y[0] = 1 - y[1]
    assert shared_heads(heads, y, persons) == ("gender",)
    y[2] = 1 - y[3]
    assert shared_heads(heads, y, persons) == ()


def test_persons_of_one_photo_share_nothing():
    assert shared_heads(HEADS, Y, np.arange(21)) == ()


def test_the_mean_is_over_a_persons_photos_in_the_heads_named():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.dirichlet(np.ones(k), 21) for k in HEADS.sizes], axis=1)
    order = rng.permutation(21)
    averaged = average_persons(HEADS, p[order], PERSONS[order], ["age"])
    assert (averaged[:, :5] == p[order, :5]).all()
    for person in "abc":
        rows = PERSONS[order] == person
        assert averaged[rows, 5:] == pytest.approx(np.tile(p[person == PERSONS, 5:].mean(0), (7, 1)))


def test_a_joint_head_is_averaged_in_what_belongs_to_the_person():
    heads = contest_heads()
    heads = Heads([*heads, Head("joint", tuple(heads.joint_names()), joint_share=1.0)])
    rng, persons = np.random.default_rng(0), np.array(["a", "b", "a", "a"])
    p = np.concatenate([rng.dirichlet(np.ones(size), 4) for size in heads.sizes], axis=1)
    averaged = average_persons(heads, p, persons, ("gender", "age"))
    before, after = (each[:, 8:].reshape(4, 3, 2, 3) for each in (p, averaged))
    mean = before[persons == "a"].sum(1).mean(0)
    for row in (0, 2, 3):
        np.testing.assert_allclose(after[row].sum(0), mean)
        # the mask, given gender and age, is the photo's own
        np.testing.assert_allclose(after[row] / after[row].sum(0), before[row] / before[row].sum(0))
    np.testing.assert_allclose(averaged[1], p[1])
