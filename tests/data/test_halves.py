import numpy as np
import pytest
import torch

from fastmask.data.contest import contest_heads
from fastmask.data.halves import Half, Halves
from fastmask.system.errors import UsageError

HEADS = contest_heads()
# of the joint classes 0, 0, 0, 5, 5, unknown, 11
Y = HEADS.unjoint(np.array([0, 0, 0, 5, 5, -1, 11]))


def draws(halves, row, count=400):
    rng = np.random.default_rng(0)
    return [halves.draw(rng, row) for _ in range(count)]


def test_a_side_of_a_photo_becomes_the_partners():
    photo, other = np.zeros((4, 10, 3), np.uint8), np.full((4, 10, 3), 7, np.uint8)
    assert Half(0, 0.34, left=True).paste(photo, other) == 0.3
    assert photo[0, :, 0].tolist() == [7] * 3 + [0] * 7
    photo[:] = 0
    assert Half(0, 0.5, left=False).paste(photo, other) == 0.5
    assert photo[3, :, 2].tolist() == [0] * 5 + [7] * 5


def test_partners_are_of_the_same_joint_class():
    halves = Halves(Y, HEADS, 1.0)
    assert {h.partner for h in draws(halves, 0) if h} == {1, 2}
    assert {h.partner for h in draws(halves, 3) if h} == {4}
    # the only one of its class, and one of no class
    assert set(draws(halves, 6)) == set(draws(halves, 5)) == {None}


def test_partners_are_of_any_class():
    assert {h.partner for h in draws(Halves(Y, HEADS, 1.0, partner="any"), 0) if h} == {1, 2, 3, 4, 5, 6}


def test_partners_are_of_the_class_that_is_named():
    rare = HEADS.joint_name(11)
    assert rare == "incorrect female 60+"
    assert {h.partner for h in draws(Halves(Y, HEADS, 1.0, partner=rare), 0) if h} == {6}
    absent = HEADS.joint_name(17)
    assert set(draws(Halves(Y, HEADS, 1.0, partner=absent), 0)) == {None}
    with pytest.raises(UsageError, match="There is no class 'masked'; .* such as 'wear male <30'"):
        Halves(Y, HEADS, 1.0, partner="masked")


def test_partners_are_of_the_class_of_a_head_that_is_named():
    assert {h.partner for h in draws(Halves(Y, HEADS, 1.0, partner="age.60+"), 0) if h} == {3, 4, 6}


def test_only_photos_of_the_named_classes_are_changed():
    halves = Halves(Y, HEADS, 1.0, partner="any", classes=["age.60+", "wear female <30"])
    assert [any(draws(halves, row)) for row in range(7)] == [False, False, False, True, True, False, True]
    same = Halves(Y, HEADS, 1.0, classes=["age.60+"], partner="age.60+")
    assert {h.partner for h in draws(same, 3) if h} == {4, 6}
    assert not any(draws(same, 0))


def test_probability_shares_and_sides_are_as_asked():
    found = draws(Halves(Y, HEADS, 0.7, (0.3, 0.6), "any"), 0, 4000)
    cut = [h for h in found if h]
    # one draw in seven is the photo itself
    assert len(cut) / len(found) == pytest.approx(0.7 * 6 / 7, abs=0.03)
    shares = np.array([h.share for h in cut])
    assert (shares.min(), shares.mean(), shares.max()) == pytest.approx((0.3, 0.45, 0.6), abs=0.01)
    assert np.mean([h.left for h in cut]) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(UsageError, match=r"shares of half-face CutMix are 0 to 0\.5"):
        Halves(Y, HEADS, 0.7, (0, 0.5))


def test_labels_are_mixed_by_the_share():
    halves = Halves(Y, HEADS, 1.0, partner="any")
    own, other = torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.tensor([[0, 0, -1], [2, 1, 1]])
    labels = halves.labels(own, other, [0.25, 0.0])
    assert labels.tolist() == [[1, 0, 0, 0.25, 0.75, 0, 0, 0], [1, 0, 0, 1, 0, 1, 0, 0]]
