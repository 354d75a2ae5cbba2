import pytest

from fastmask.system.text import (
    in_bytes,
    join_plural,
    join_some,
    percent,
    shorten,
    shorten_middle,
    shorten_start,
    table_lines,
)


def test_long_texts_are_shortened_to_their_beginning_their_end_or_both():
    assert shorten("abcdefgh", 8) == shorten_start("abcdefgh", 8) == shorten_middle("abcdefgh", 8) == "abcdefgh"
    assert shorten("abcdefghi", 8) == "abcdefg…"
    assert shorten_start("abcdefghi", 8) == "…cdefghi"
    assert shorten_middle("abcdefghi", 8) == "abcde…hi"


def test_many_names_are_counted():
    assert join_some(["a", "b"], 2) == "a, b"
    assert join_some("abcd", 2) == "a, b and 2 more"
    assert join_plural([3], "fold") == "fold 3"
    assert join_plural(range(7), "fold") == "folds 0, 1, 2, 3, 4 and 2 more"


@pytest.mark.parametrize(
    ("share", "digits", "words"),
    [
        (0, 1, "0.0"),
        (1, 1, "100.0"),
        (0.99996, 1, ">99.9"),
        (0.9994, 1, "99.9"),
        (1e-9, 1, "<0.1"),
        (0.3456, 1, "34.6"),
        (0, 0, "0"),
        (1, 0, "100"),
        (0.004, 0, "<1"),
        (0.995, 0, ">99"),
        (0.994, 0, "99"),
    ],
)
def test_what_is_nearly_certain_is_not_shown_as_certain(share, digits, words):
    assert percent(share, digits) == f"{words}\N{NO-BREAK SPACE}%"


def test_a_share_that_is_missing_is_a_dash():
    assert percent(float("nan")) == "–"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        # which used to be 1e+03 kB
        (999_900, "1 MB"),
        (1_234_567, "1.23 MB"),
        (999.7e9, "1 TB"),
        (2.5e15, "2,500 TB"),
    ],
)
def test_bytes_are_printed_without_an_exponent(count, words):
    assert in_bytes(count) == words


def test_columns_are_aligned_and_empty_ones_are_left_out():
    rows = [["", "score", "", "note"], ["first", "0.5", "", ""], ["a", "0.25", "", "good"]]
    assert table_lines(rows) == ["       score  note", "first  0.5", "a      0.25   good"]
    assert table_lines([["score"]]) == []
