from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from fastmask.system.annotations import alternatives, expected_inside, expected_of, has_text, is_size, read_as

Count = Annotated[int, Field(ge=1, le=9)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Bands(BaseModel):
    classes: list[str]


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (Annotated[int, Field(ge=1)] | None, [int]),
        (Literal["auto", "off"] | float, ["auto", "off", float]),
        (list[str] | dict[str, int], [list[str], dict[str, int]]),
    ],
)
def test_the_alternatives_of_an_annotation(annotation, found):
    assert alternatives(annotation) == found


@pytest.mark.parametrize(
    ("annotation", "given", "meant"),
    [
        (tuple[Count, Count], 5, [5, 5]),
        (tuple[Count, Count], "5", ["5", "5"]),
        (tuple[Count, Count], "5x6", ["5", "6"]),
        (tuple[Count, Count] | None, "5 × 6", ["5", "6"]),
        (tuple[int, int], "[5, 6]", ["5", "6"]),
        (tuple[int, int], [5, 6], [5, 6]),
        (tuple[int, int], None, None),
        (tuple[float, float], 5, 5),
        (tuple[float, float], "5 6", ["5", "6"]),
        (list[Share], 0.3, [0.3]),
        (list[Share], "0.5 0.75", ["0.5", "0.75"]),
        (list[Share], "0.5,0.75", ["0.5", "0.75"]),
        (list[str] | dict[str, str], "colour", ["colour"]),
        (list[str] | dict[str, str], "colour, shape", ["colour", "shape"]),
        (str, "a, b", "a, b"),
        (Literal["auto"] | Count, "auto", "auto"),
        (Literal["auto"] | Count, "1e1", 10),
        (int, "16.0", 16),
        (int, "1e-1", "1e-1"),
        (int, "five", "five"),
        (int, True, "True"),
        (bool, True, True),
        (float, "1e-3", "1e-3"),
        (Literal["report"] | tuple[float, float, float], "report", "report"),
    ],
)
def test_what_is_meant(annotation, given, meant):
    assert read_as(annotation, given) == meant
    assert type(read_as(annotation, given)) is type(meant)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Count | None, "a whole number from 1 to 9"),
        (Annotated[int, Field(ge=0, lt=2**32)], "a whole number from 0 to 4294967295"),
        (Share, "a number from 0 and below 1"),
        (Annotated[float, Field(gt=0, le=1)], "a number above 0 and up to 1"),
        (Annotated[float, Field(gt=0)], "a number above 0"),
        (Annotated[float, Field(le=0.5)], "a number up to 0.5"),
        (bool, "true or false"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Literal["auto"] | Count, "auto or a whole number from 1 to 9"),
        (Literal["a", "b"] | tuple[float, float] | None, "a, b or two numbers"),
        (tuple[Count, Count], "two whole numbers from 1 to 9"),
        (list[Share], "a list of numbers from 0 and below 1"),
        (str, ""),
        (list[str], ""),
        (dict[str, Count], ""),
        (Literal["a"] | str, ""),
    ],
)
def test_what_is_expected(annotation, words):
    assert expected_of(annotation) == words


def test_what_is_expected_inside_a_mapping():
    assert expected_inside(dict[str, Count] | None) == "whole numbers from 1 to 9"
    assert expected_inside(dict[str, list[Share] | dict[str, Share]]) == "numbers from 0 and below 1"
    assert expected_inside(dict[str, float]) == expected_inside(dict[str, Any]) == ""


def test_which_annotations_hold_text_and_which_are_sizes():
    assert all(map(has_text, (str | None, list[str], dict[str, list[str] | Bands], Bands)))
    assert is_size(tuple[Count, Count] | None)
    assert not any(map(is_size, (tuple[float, float], list[int], tuple[int, ...], int)))
