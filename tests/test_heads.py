import numpy as np
import pandas as pd
import pytest
import torch

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, UsageError

CONTEST = contest_heads()


def test_a_head_turns_names_into_numbers_and_back():
    head = Head("mask", ("wear", "incorrect", "none"))
    assert [head.encode(n) for n in ("wear", "none", "")] == [0, 2, -1]
    assert [head.decode(c) for c in (0, 2, -1)] == ["wear", "none", ""]
    assert head.decode_all(np.array([0, 2, -1])).tolist() == ["wear", "none", ""]
    with pytest.raises(DataError, match=r"mask 'hat' is not one of wear, incorrect, none"):
        head.encode("hat")


def test_bands_hold_their_lower_bound():
    ages = np.array([29.0, 30, 59, 60, np.nan])
    assert CONTEST["age"].band(ages).tolist() == [0, 1, 1, 2, -1]


def test_training_bounds_move_the_training_label_only():
    age = contest_heads(age_bounds=(30, 58))["age"]
    assert age.band(np.array([57.0, 58, 59, 60])).tolist() == [1, 1, 1, 2]
    assert age.band(np.array([57.0, 58, 59, 60]), training=True).tolist() == [1, 2, 2, 2]


def test_the_joint_class_of_the_contest_is_mask_6_gender_3_age():
    for mask in range(3):
        for gender in range(2):
            for age in range(3):
                assert CONTEST.joint(np.array([mask, gender, age])) == mask * 6 + gender * 3 + age
    assert CONTEST.n_joint == 18
    assert CONTEST.joint_names()[2 * 6 + 1 * 3 + 2] == "none female 60+"


def test_a_joint_class_with_an_unknown_head_is_unknown():
    y = np.array([[0, 1, 2], [0, -1, 2], [-1, -1, -1]])
    assert CONTEST.joint(y).tolist() == [5, -1, -1]
    assert CONTEST.joint(torch.from_numpy(y)).tolist() == [5, -1, -1]
    assert CONTEST.unjoint(np.array([5, -1])).tolist() == [[0, 1, 2], [-1, -1, -1]]


@pytest.mark.parametrize("sizes", [(4,), (2, 3), (2, 2, 3, 2, 4, 2, 3)])
def test_any_number_of_heads(sizes):
    heads = Heads([Head(f"h{i}", tuple(map(str, range(k)))) for i, k in enumerate(sizes)])
    joint = np.arange(heads.n_joint)
    assert heads.joint(heads.unjoint(joint)).tolist() == joint.tolist()
    assert [part.shape for part in heads.split(np.zeros((5, sum(sizes))))] == [(5, k) for k in sizes]
    assert len(heads.columns) == heads.n_logits == sum(sizes)


def test_split_refuses_the_wrong_number_of_columns():
    with pytest.raises(ValueError, match="expected 8 columns"):
        CONTEST.split(np.zeros((2, 9)))


def test_joint_probabilities_are_the_product_and_agree_with_argmax():
    rng = np.random.default_rng(0)
    probabilities = np.concatenate([rng.dirichlet(np.ones(k), 50) for k in CONTEST.sizes], axis=1)
    joint = CONTEST.joint_probabilities(probabilities)
    mask, gender, age = CONTEST.split(probabilities)
    assert joint.shape == (50, 18)
    np.testing.assert_allclose(joint[:, 2 * 6 + 1 * 3 + 0], mask[:, 2] * gender[:, 1] * age[:, 0])
    np.testing.assert_allclose(joint.sum(1), 1)
    assert (joint.argmax(1) == CONTEST.joint(CONTEST.argmax(probabilities))).all()


def test_heads_survive_plain_values():
    heads = contest_heads(age_bounds=(30, 58))
    assert Heads.from_plain(heads.to_plain()) == heads
    assert Heads.from_plain(heads.to_plain()) != CONTEST


@pytest.mark.parametrize(
    "make",
    [
        lambda: Head("", ("a", "b")),
        lambda: Head("one", ("a",)),
        lambda: Head("twice", ("a", "a")),
        lambda: Head("negative", ("a", "b"), weight=-1),
        lambda: Head("falling", ("a", "b", "c"), bounds=(2, 1)),
        lambda: Head("few", ("a", "b", "c"), bounds=(2,)),
        lambda: Heads([]),
        lambda: Heads([Head("same", ("a", "b")), Head("same", ("a", "b"))]),
        lambda: CONTEST["hat"],
        lambda: contest_heads(age_bounds=(30,)),
    ],
)
def test_invalid_heads_are_refused(make):
    with pytest.raises(UsageError):
        make()


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([("colour ", ("red", "green"))], "blank at an end or a line break in 'colour '"),
        ([("colour", ("red", " green"))], "blank at an end or a line break in ' green'"),
        ([("a", ("b.c", "d")), ("a.b", ("c", "e"))], "both called 'a.b.c' in tables"),
        ([(f"h{i}", ("no", "yes")) for i in range(63)], "more joint classes than a 64-bit number counts"),
    ],
)
def test_names_that_are_ambiguous_in_files_are_refused(heads, message):
    with pytest.raises(UsageError, match=message):
        Heads([Head(name, classes) for name, classes in heads])


def test_a_cell_is_a_class_or_a_number():
    colour, age = Head("colour", ("red", "green")), Head("age", ("<30", "30+"), bounds=(30,))
    assert colour.read("green")[0] == "green"
    assert age.read("30") == ("30+", 30.0)
    assert age.read("29.5") == ("<30", 29.5)
    assert colour.read("")[0] == age.read("")[0] == ""
    assert np.isnan(age.read("")[1])
    for head, cell in ((colour, "blue"), (age, "old"), (age, "nan"), (age, "1_000"), (age, "1e3")):
        with pytest.raises(DataError, match=f"found '{cell}', expected"):
            head.read(cell)


def test_forty_heads_have_joint_classes_that_can_be_named():
    heads = Heads([Head(f"h{i}", ("no", "yes")) for i in range(40)])
    y = np.random.default_rng(0).integers(0, 2, (5, 40))
    assert (heads.unjoint(heads.joint(y)) == y).all()
    assert heads.joint_name(heads.joint(y)[0]) == " ".join(heads.decode(y[0]))


@pytest.mark.parametrize(
    "changed",
    [
        {"name": 1},
        {"classes": "abc"},
        {"classes": [1, 2]},
        {"weight": "1"},
        {"weight": True},
        {"weight": float("inf")},
        {"weight": float("nan")},
        {"bounds": ["1"]},
        {"bounds": [float("nan")]},
        {"limits": [1.0]},
        {"limits": [2.0, 1.0]},
        {"hat": 1},
    ],
)
def test_invalid_plain_values_are_refused(changed):
    plain = {"name": "age", "classes": ["young", "old"], "weight": 1.0, "bounds": [40.0], "limits": [0.0, 150.0]}
    assert Heads.from_plain([plain])["age"].limits == (0, 150)
    with pytest.raises(UsageError):
        Heads.from_plain([{**plain, **changed}])


WITH_YEARS = Heads([*CONTEST, Head("age_number", tuple(map(str, range(18, 61))), spread=2.0)])


def test_a_distribution_is_not_part_of_the_joint_class():
    y = np.array([[1, 1, 2, 40], [1, 1, 2, -1], [1, -1, 2, 40]])
    assert WITH_YEARS.joint(y).tolist() == CONTEST.joint(y[:, :3]).tolist() == [11, 11, -1]
    assert WITH_YEARS.unjoint(np.array([11, -1])).tolist() == [[1, 1, 2, -1], [-1, -1, -1, -1]]
    assert WITH_YEARS.joint_name(11) == "incorrect female 60+"
    assert WITH_YEARS.joint_names() == CONTEST.joint_names()
    assert (WITH_YEARS.n_joint, WITH_YEARS.n_logits) == (18, 8 + 43)
    assert WITH_YEARS.classified == CONTEST.names
    p = np.random.default_rng(0).random((5, 51))
    assert (WITH_YEARS.joint_probabilities(p) == CONTEST.joint_probabilities(p[:, :8])).all()
    assert Heads.from_plain(WITH_YEARS.to_plain()) == WITH_YEARS


@pytest.mark.parametrize(
    "make",
    [
        lambda: Head("years", ("1", "3", "2"), spread=1.0),
        lambda: Head("years", ("1", "2.5"), spread=1.0),
        lambda: Head("years", ("young", "old"), spread=1.0),
        lambda: Head("years", ("1", "2"), spread=0.0),
        lambda: Heads([Head("years", ("1", "2"), spread=1.0)]),
    ],
)
def test_a_distribution_is_over_rising_whole_numbers_and_never_alone(make):
    with pytest.raises(UsageError):
        make()


def test_a_spread_may_be_given_as_a_whole_number():
    heads = Heads([*CONTEST, Head("age_number", ("18", "19"), spread=2)])
    assert Heads.from_plain(heads.to_plain()) == heads
    assert Heads.from_plain([{**head, "spread": head["spread"] and 2} for head in heads.to_plain()]) == heads


@pytest.mark.parametrize("classes", [(0, 1, 2), [0.0, 1.0, 2.0], np.arange(3), pd.Series(["0", "1", "2"])])
def test_classes_may_be_numbers(classes):
    assert Head("colour", classes).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colour", "red"), "Head 'colour' has the classes 'red'; expected a list"),
        (("colour", None), "has the classes None; expected a list"),
        (("colour", 3), "has the classes 3; expected a list"),
        ((5, ("a", "b")), "A head has the name 5; expected a text"),
        (("colour", ("a", "b"), "2"), "has weight '2'; expected 0 or more"),
    ],
)
def test_a_head_of_other_things_is_refused_with_what_is_expected(arguments, message):
    with pytest.raises(UsageError, match=message):
        Head(*arguments)
