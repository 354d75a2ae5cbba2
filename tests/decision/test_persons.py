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
