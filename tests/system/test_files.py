import json
import math
import os
from pathlib import Path

import pytest

from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import (
    atomic_write,
    check_new_csv,
    check_new_picture,
    read_json,
    read_strings,
    read_yaml,
    write_json,
    write_text,
    write_yaml,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "scores.json"
    write_text(file, "old")
    with pytest.raises(RuntimeError), atomic_write(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_json_and_yaml_come_back(tmp_path):
    value = {"name": "Zürich", "list": [1, 2.5, None], "nested": {"yes": True}}
    write_json(tmp_path / "a.json", value)
    write_yaml(tmp_path / "deep" / "a.yaml", value)
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "deep" / "a.yaml") == value


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"f1": math.nan, "each": (1.0, math.nan)})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "f1": None,
        "each": [1.0, None],
    }


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "a: [", "\x00"])
def test_yaml_that_builds_objects_or_is_invalid_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=r"a\.yaml cannot be read as YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_invalid_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def laughs(levels):
    """YAML with a last list that expands to 9 ** levels words."""
    lines = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, levels + 1)]
    return "\n".join(["l0: &l0 [ha]", *lines])


def test_an_alias_of_yaml_is_expanded(tmp_path):
    (tmp_path / "a.yaml").write_text(laughs(2))
    assert read_yaml(tmp_path / "a.yaml")["l2"] == [[["ha"]] * 9] * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(12), "more than 5000 values"),
        (laughs(12).replace("[*", "{<<: [*").replace("]", "]}").replace("[ha]}", "{ha: 1}"), "more than 5000 values"),
        ("a: [" + "1," * 6_000 + "1]", "more than 5000 values"),
        ("a: &b [*b]", r"\*b refers to nothing, or to a value that contains it"),
        ("a: *b", r"\*b refers to nothing"),
        ("[" * 100_000, "nested more than 40 deep"),
        ("a: " + "9" * 5000, "a number of 5000 digits in line 1"),
        ("a: 0x" + "f" * 5000, "a number of 5002 digits"),
        ('a: "\\0"', r"the character \\0 in line 1"),
        ('a: "\\ud800"', "surrogates not allowed"),
        ("a: " + "x" * 5_000_000, "longer than 4 MB"),
    ],
)
def test_yaml_that_would_fill_the_memory_or_cannot_be_printed_is_refused(tmp_path, text, message, monkeypatch):
    monkeypatch.setattr(limits, "YAML_VALUES", 5000)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=f"a.yaml cannot be read as YAML: .*{message}"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9" * 5000, "a number of 5000 digits"),
        ("[NaN]", "found NaN, expected a number or null"),
        ("[-Infinity]", "found -Infinity"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("[" * 100_000, "recursion"),
        (" " * 150_000_000, "longer than 128 MB"),
    ],
)
def test_json_that_would_fill_the_memory_or_cannot_be_printed_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json cannot be read as JSON: .*{message}"):
        read_json(tmp_path / "a.json")


def test_an_escaped_surrogate_pair_is_read(tmp_path):
    (tmp_path / "a.json").write_text('["\\ud83d\\ude37"]')
    assert read_json(tmp_path / "a.json") == ["😷"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_pipes_links_and_folders_are_not_opened(tmp_path, make):
    make(tmp_path / "a")
    for read in (read_json, read_yaml):
        with pytest.raises(DataError, match="is not a plain file"):
            read(tmp_path / "a")
    with pytest.raises(UsageError, match="is not a file"):
        read_strings(tmp_path / "a", ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\0\n", r"line 2 holds the character \\0"),
        ("a,b\n" + "1," * 2_200_000, "line 2 is longer than 4194304 characters"),
        ("a,b\n1," + "x" * 5000, "line 2 has a cell of more than 4096 characters"),
        (",".join(map(str, range(100_001))), "has 100001 columns"),
        ('a,b\n"1,2\n', "line 2: the quotes of a cell do not match, unexpected end of data"),
        ("a,b,a\n1,2,3\n", "has two columns called 'a', 1 and 3; rename one"),
        (",b,\n1,2,3\n", "has two columns without a name, 1 and 3"),
    ],
)
def test_an_invalid_csv_is_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=f"a.csv .*{message}"):
        read_strings(tmp_path / "a.csv", ())


def test_missing_files_cells_and_columns_are_named(tmp_path):
    for read in (read_json, read_yaml):
        with pytest.raises(DataError, match=r"a cannot be read as (JSON|YAML): No such file or directory\.$"):
            read(tmp_path / "a")
    (tmp_path / "a.csv").write_text(",".join(f"c{i}" for i in range(90_000)) + "\n1\n")
    with pytest.raises(DataError, match=r"found 1 cells, expected 90000: c0, .*, c29 and 89,970 more\.$"):
        read_strings(tmp_path / "a.csv", ())
    with pytest.raises(
        DataError, match=r"no column 'd0'; found c0, .* and 89,970 more, expected d0, .* and 9,970 more\.$"
    ):
        read_strings(tmp_path / "a.csv", [f"d{i}" for i in range(10_000)])


def test_a_file_of_100_gb_does_not_fill_the_memory(tmp_path):
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(DataError, match="line 1 is longer than"):
        read_strings(tmp_path / "a.csv", ())
    with pytest.raises(DataError, match="longer than 128 MB"):
        read_json(tmp_path / "a.csv")


def test_a_picture_has_a_new_name_that_ends_in_png(tmp_path):
    there = tmp_path / "there.png"
    there.touch()
    check_new_picture(tmp_path / "new.png", overwrite=False)
    check_new_picture(there, overwrite=True)
    for file, overwrite, inputs, message in (
        (tmp_path / "new.jpg", False, [], r"new\.jpg; expected a name ending in \.png"),
        (there, False, [], r"there\.png exists"),
        (there, True, [there], r"there\.png is an input"),
    ):
        with pytest.raises(UsageError, match=message):
            check_new_picture(file, overwrite, *inputs)


def test_a_csv_does_not_get_the_ending_of_another_format(tmp_path):
    for name in ("p.csv", "p.txt", "p", "p.v2"):
        check_new_csv(tmp_path / name, False)
    for name in ("p.xlsx", "p.json", "p.PARQUET"):
        with pytest.raises(UsageError, match=rf"{name} would be a CSV; call it .*p\.csv\."):
            check_new_csv(tmp_path / name, False)
