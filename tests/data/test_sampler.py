import numpy as np
import pytest
from torch.utils.data import WeightedRandomSampler

from fastmask.data.contest import contest_heads
from fastmask.data.sampler import make_sampler
from fastmask.system.errors import UsageError

HEADS = contest_heads()
# three persons of the contest, seven photos each, and a photo of unknown mask of a fourth
MASKS = np.array([0, 0, 0, 0, 0, 1, 2] * 3 + [-1])
PERSONS = np.repeat(np.array(["a", "b", "c", "d"], object), [7, 7, 7, 1])
Y = np.stack([MASKS, np.repeat([0, 1, 1, 0], [7, 7, 7, 1]), np.repeat([0, 1, 2, 1], [7, 7, 7, 1])], 1)


def sampler_of(**options):
    return make_sampler(HEADS, Y, PERSONS, **options)


def epochs(sampler, count=3000):
    rng = np.random.default_rng(0)
    return [sampler.order(rng) for _ in range(count)]


def frequencies(found):
    return np.mean([np.bincount(rows, minlength=len(Y)) for rows in found], axis=0)


def test_an_epoch_has_one_photo_of_each_person():
    sampler = sampler_of(per_person=1)
    found = epochs(sampler)
    assert len(sampler) == 4
    assert all(sorted(PERSONS[rows]) == ["a", "b", "c", "d"] for rows in found)
    assert len({tuple(rows) for rows in found}) > 300
    # every photo of a person is as frequent as the others
    assert frequencies(found) == pytest.approx([1 / 7] * 21 + [1], abs=0.03)
    assert sampler.expected() == pytest.approx([1 / 7] * 21 + [1])
    # the order is random, too
    assert np.mean([PERSONS[rows[0]] == "d" for rows in found]) == pytest.approx(0.25, abs=0.03)


def test_an_epoch_has_some_photos_of_a_class_per_person_and_all_others():
    sampler = sampler_of(per_person={"mask.wear": 2})
    assert len(sampler) == 3 * (2 + 2) + 1
    for rows in epochs(sampler, 300):
        assert len(set(rows)) == len(rows) == 13
        assert [np.sum(MASKS[rows][PERSONS[rows] == name] == 0) for name in "abc"] == [2, 2, 2]
        assert {5, 6, 12, 13, 19, 20, 21} <= set(rows)
    expected = [0.4] * 5 + [1, 1]
    assert sampler.expected() == pytest.approx(expected * 3 + [1])
    assert frequencies(epochs(sampler)) == pytest.approx(expected * 3 + [1], abs=0.03)


def test_classes_have_counts_of_their_own_and_none_has_more_than_there_are():
    sampler = sampler_of(per_person={"wear male <30": 1, "wear female 60+": 3, "mask.none": 9})
    assert len(sampler) == (1 + 2) + 7 + (3 + 2) + 1
    for rows in epochs(sampler, 50):
        assert np.bincount(rows[rows < 5], minlength=5).sum() == 1
        assert np.sum((rows >= 14) & (rows < 19)) == 3


def test_classes_that_share_a_photo_are_refused():
    with pytest.raises(UsageError, match=r"per_person names 'mask\.wear' and 'age\.60\+', and photos are of both"):
        sampler_of(per_person={"mask.wear": 1, "age.60+": 1})


def test_it_says_whether_the_counts_leave_a_photo_out():
    assert sampler_of(per_person=6).limits
    assert not sampler_of(per_person=7).limits
    assert not sampler_of(per_person={"mask.none": 1}).limits
    assert not sampler_of(target="gender").limits


def test_balanced_gives_every_class_the_same_share_of_the_draws():
    sampler = sampler_of(target="mask")
    # 21 of 22 photos are of three known classes; the unknown one is drawn as often as without
    expected = [7 / 15] * 5 + [7 / 3] * 2
    assert sampler.expected() == pytest.approx(expected * 3 + [1])
    assert frequencies(epochs(sampler)) == pytest.approx(expected * 3 + [1], abs=0.15)
    assert {len(rows) for rows in epochs(sampler, 9)} == {22}


def test_the_photos_of_an_epoch_are_balanced_among_themselves():
    sampler = sampler_of(target="mask", per_person={"mask.wear": 1})
    # of ten photos nine are of three known classes, three of each
    found = epochs(sampler)
    assert {len(rows) for rows in found} == {10}
    assert sampler.expected() == pytest.approx(([1 / 5] * 5 + [1, 1]) * 3 + [1])
    assert frequencies(found) == pytest.approx(([1 / 5] * 5 + [1, 1]) * 3 + [1], abs=0.06)
    for rows in found[:100]:
        assert all(len(set(rows[(MASKS[rows] == 0) & (PERSONS[rows] == name)])) <= 1 for name in "abc")


def test_weights_are_those_of_torchs_sampler():
    weights = np.linspace(0.5, 4, len(Y))
    sampler = sampler_of(weights=weights)
    assert sampler.expected() == pytest.approx(weights / weights.sum() * len(Y))
    theirs = frequencies([np.array(list(WeightedRandomSampler(weights.tolist(), len(Y)))) for _ in range(3000)])
    assert frequencies(epochs(sampler)) == pytest.approx(theirs, abs=0.15)


def test_weights_of_classes_multiply():
    sampler = sampler_of(weights={"mask.incorrect": 3, "age.60+": 2, "wear male <30": 0.5})
    relative = np.array([0.5] * 5 + [3, 1] + [1] * 5 + [3, 1] + [2] * 5 + [6, 2] + [1])
    assert sampler.expected() == pytest.approx(relative / relative.sum() * 22)
    # next to balanced classes their share of the draws is the mean weight
    both = sampler_of(target="gender", weights={"gender.female": 3})
    male = Y[:, 1] == 0
    assert [both.expected()[male].sum(), both.expected()[~male].sum()] == pytest.approx([22 / 4, 22 * 3 / 4])


def test_there_is_none_where_every_epoch_has_all_photos():
    assert sampler_of() is None


def test_an_epoch_is_a_function_of_the_generator():
    for options in ({"per_person": 2}, {"per_person": 2, "target": "joint", "weights": {"mask.wear": 2}}):
        one, other = (epochs(sampler_of(**options), 3) for _ in range(2))
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
