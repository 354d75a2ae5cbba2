import unicodedata
import warnings

import pandas as pd
import pytest

from fastmask.data.spellings import group_spellings, is_unknown, warn_of_persons, warn_of_spellings
from fastmask.heads import Head
from fastmask.system.errors import FastmaskWarning


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["red", "RED", "green"], [["RED", "red"]]),
        (["red", " red", "red "], [[" red", "red", "red "]]),
        (["sports car", "sports_car", "sports  car"], [["sports  car", "sports car", "sports_car"]]),
        (["빨강", unicodedata.normalize("NFD", "빨강")], [[unicodedata.normalize("NFD", "빨강"), "빨강"]]),
        (["A", "\uff21", "B"], [["A", "\uff21"]]),
        (["1", "1.0", "01", "2"], [["01", "1", "1.0"]]),
        (["-1", "1"], []),
        (["18-24", "18 24"], []),
        (["c", "C++", "c#"], []),
    ],
)
def test_values_that_are_spelled_in_two_ways(values, groups):
    assert group_spellings(values) == groups


@pytest.mark.parametrize("name", ["N/A", "nan", "None", "unknown", "?", "NULL", "-"])
def test_classes_that_look_like_unknown_labels(name):
    assert is_unknown(name)
    assert not is_unknown("none")


def said(head, cells, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_spellings("my.csv", head, pd.Series(cells, dtype=object), **options)
    assert all(each.category is FastmaskWarning for each in caught)
    return [str(each.message) for each in caught]


def test_both_spellings_are_named_with_their_counts():
    head = Head("colour", ("RED", "green", "red"))
    assert said(head, ["red", "RED", "red", "green"]) == [
        "my.csv, column colour: 'RED' (1), 'red' (2) are 2 classes; if they are one, write it the same way in all "
        "rows (with --fixes its photos get the other label, but the class stays)."
    ]
    assert said(head, ["red", "green", ""]) == []


def test_blanks_at_the_ends_are_said_to_be_ignored():
    assert said(Head("colour", ("green", "red")), ["red ", " red", "red", "green"]) == [
        "my.csv, column colour: ' red' (1), 'red' (1), 'red ' (1) are one class; the blanks at the ends are ignored."
    ]


def test_spellings_that_look_the_same_are_shown_apart():
    (message,) = said(Head("size", ("A", "\uff21")), ["A", "\uff21"])
    assert r"'A' (1), '\uff21' (1) are 2 classes" in message


def test_a_class_that_may_be_an_unknown_label_is_named_unless_it_was_chosen():
    head = Head("mask", ("None", "worn"))
    assert said(head, ["worn", "None", " None", ""])[1:] == [
        "my.csv, column mask: 'None' (2) counts as a class; for an unknown label leave the cell empty, or list the "
        "classes with heads in --config."
    ]
    assert said(head, ["worn", "None"], chosen=True) == []


def test_persons_whose_names_look_like_one_are_named():
    persons = pd.Series(["Anna", "anna", "anna", "Bo", "7", "07", ""], dtype=object)
    with pytest.warns(FastmaskWarning) as caught:
        warn_of_persons("my.csv", "owner", persons)
    assert [str(each.message) for each in caught] == [
        "my.csv, column owner: 'Anna' (1) and 'anna' (2), '07' (1) and '7' (1) count as different persons; if they are "
        "one, write the name the same way in all rows, or merge them with --fixes, or the photos of one person leak "
        "across folds."
    ]


def test_persons_with_different_names_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_persons("my.csv", "owner", pd.Series(["p1", "p2", "p10", "p1"], dtype=object))
