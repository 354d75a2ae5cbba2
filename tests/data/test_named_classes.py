import numpy as np
import pytest
import torch

from fastmask.data.contest import contest_heads
from fastmask.data.named_classes import check_present, find_class, is_of_any, is_of_class
from fastmask.heads import Head, Heads
from fastmask.system.errors import UsageError

HEADS = contest_heads()


def joint_number(heads, name):
    return int(heads.joint(np.array(find_class(heads, name))))


def test_a_class_of_one_head_or_of_all_is_found_by_its_name():
    assert find_class(HEADS, "age.60+") == (-1, -1, 2)
    assert find_class(HEADS, "mask.wear") == (0, -1, -1)
    assert find_class(HEADS, "incorrect female 60+") == (1, 1, 2)
    for column, name in enumerate(HEADS.columns):
        codes = np.array(find_class(HEADS, name))
        (position,) = np.flatnonzero(codes >= 0)
        assert HEADS.offsets[position] + codes[position] == column
    for name in ("60+", "age.old", "incorrect female", "incorrect  female 60+", ""):
        with pytest.raises(UsageError, match="There is no class .* such as 'mask.wear', .* such as 'wear male <30'"):
            find_class(HEADS, name)


def test_the_class_of_many_heads_is_found_and_of_words_with_blanks():
    heads = Heads([Head("colour", ("red", "red and")), Head("form", ("and blue", "blue"))])
    # the first and the last are called alike
    assert heads.joint_names() == ["red and blue", "red blue", "red and and blue", "red and blue"]
    assert [joint_number(heads, name) for name in heads.joint_names()] == [0, 1, 2, 0]
    years = Head("years", ("1", "2", "3"), spread=1.0)
    beside = Heads([HEADS["mask"], years, HEADS["age"]])
    assert [joint_number(beside, name) for name in beside.joint_names()] == list(range(9))
    many = Heads([Head(f"h{i}", ("no", "yes")) for i in range(60)])
    name = many.joint_name(2**59 + 5)
    assert joint_number(many, name) == 2**59 + 5
    with pytest.raises(UsageError, match="There is no class 'no yes'"):
        find_class(many, "no yes")


def test_photos_of_a_class_are_the_same_in_arrays_and_tensors():
    y = np.array([[0, 0, 2], [1, 1, 2], [1, 1, -1], [-1, -1, 2], [2, 1, 0]])
    for labels in (y, torch.from_numpy(y)):
        assert is_of_class(labels, find_class(HEADS, "age.60+")).tolist() == [True, True, False, True, False]
        assert is_of_class(labels, find_class(HEADS, "incorrect female 60+")).tolist() == [False, True, *[False] * 3]
        both = is_of_any(labels, HEADS, ["mask.wear", "mask.none"])
        assert both.tolist() == [True, False, False, False, True]
        assert not is_of_any(labels, HEADS, []).any()


def test_a_class_that_no_photo_has_is_refused():
    y = np.array([[0, 0, 0], [1, 1, 1]])
    check_present(HEADS, y, {"half_partner": ["mask.wear", "incorrect female 30-59"], "mix_classes": []}, 0)
    with pytest.raises(UsageError, match=r"Setting mix_classes names 'age\.60\+', but fold 3 has no photo of it"):
        check_present(HEADS, y, {"half_partner": [], "mix_classes": ["age.<30", "age.60+"]}, 3)
