import re

import pandas as pd
import pytest

from fastmask.data.columns import (
    Column,
    describe_other,
    find_heads,
    find_image_column,
    find_one_hot,
    find_person_column,
    find_tags,
    join_one_hot,
    suggest_person_column,
)
from fastmask.system.errors import DataError, UsageError


def text(cells, times=1):
    return pd.Series([str(cell) for cell in cells] * times, dtype=object)


@pytest.mark.parametrize(
    ("name", "cells", "what"),
    [
        ("colour", ["red", "green", ""] * 4, ""),
        ("mask", ["yes", "no"] * 4, ""),
        ("rating", [1, 2, 3, 4, 5] * 4, ""),
        ("label", list(range(20)) * 3, ""),
        ("label", list(range(1, 31)) * 3, ""),
        ("ClassId", list(range(43)) * 3, ""),
        ("category_id", list(range(0, 60, 3)) * 3, ""),
        ("fine label", list(range(100)) * 3, ""),
        ("Group", [0, 1] * 4, ""),
        ("group", list("abc") * 4, "persons? --group-column group"),
        ("usage", ["Casual", "Formal", "Sports"] * 4, ""),
        ("Usage", ["Training", "PublicTest", "PrivateTest"] * 4, "a split, see --folds-file"),
        ("is_training_image", [0, 1] * 4, "a split, see --folds-file"),
        ("is_valid", ["True", "False"] * 4, "a split, see --folds-file"),
        ("Pawpularity", list(range(1, 31)) * 3, "30 numbers"),
        ("Patient Age", [20, 21, 22] * 4, "3 numbers"),
        ("OriginalImage[Width", [2000, 2048] * 4, "a size or box"),
        ("age group", [0, 1, 2] * 4, ""),
        ("class_id", [3, 7, 9] * 4, ""),
        ("time of day", ["morning", "night"] * 4, ""),
        ("weight", ["heavy", "light"] * 4, ""),
        ("left", [0, 1] * 4, ""),
        ("code", ["007", "008"] * 4, ""),
        ("breed", [f"breed {i}" for i in range(200)] * 3, ""),
        ("joint", ["a", "b"] * 4, "a reserved name"),
        ("Fold", [0, 1] * 4, "a split, see --folds-file"),
        ("id", list("aabb") * 4, "an id"),
        ("lesion_ID", list("aabb") * 4, "persons? --group-column lesion_ID"),
        ("photoId", list("aabb") * 4, "an id"),
        ("split", list("ab") * 4, "a split, see --folds-file"),
        ("used for", ["train", "train", "val"] * 4, "a split, see --folds-file"),
        ("date", list("ab") * 4, "dates"),
        ("when", ["2021-08-21", "2021-08-22"] * 4, "dates"),
        ("when", ["21.8.2021 10:30", "22.8.2021 09:00"] * 4, "dates"),
        ("note", list("ab") * 4, "text"),
        ("url", list("ab") * 4, "an origin"),
        ("where", ["http://a/1", "http://a/2"] * 4, "an origin"),
        ("mask", ["a.png", "b.png"] * 4, "files"),
        ("bbox", ["[1, 2, 3, 4]", "[2, 2, 3, 4]"] * 4, "lists of numbers"),
        ("weight", [0.5, 1] * 4, "a weight"),
        ("score", [1, 2, 3] * 4, "a score"),
        ("tags", ["['a', 'b']", "['a']"] * 4, "lists or records"),
        ("meta", ['{"a": 1}', '{"a": 2}'] * 4, "lists or records"),
        ("width", [640, 480] * 4, "a size or box"),
        ("age", [20, 30, 40] * 4, "3 numbers"),
        ("how old", [19, 20, 24, 31, 35, 42, 50, 55, 58, 60, 61] * 4, "11 numbers"),
        ("ratio", [0.5, 0.75] * 4, "2 numbers"),
        ("camera", ["one"] * 4, "1 value"),
        ("flag", ["True"] * 4, "1 value"),
        ("nothing", [""] * 4, "empty"),
        ("serial", [f"s{i}" for i in range(8)], "8 different values"),
        ("city", [f"c{i}" for i in range(1500)] * 2, "1500 different values"),
        ("remark on it", ["it is a rather long sentence", "and here is another one too"] * 4, "free text"),
        ("address", ["a\nb", "c\nd"] * 4, "free text"),
        ("labels", ["scab", "rust", "scab rust", "healthy"] * 4, "several tags in a cell, such as 'scab rust'"),
    ],
)
def test_what_a_column_is(name, cells, what):
    assert describe_other(Column(name, text(cells))).startswith(what)
    assert bool(describe_other(Column(name, text(cells)))) == bool(what)


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (["scab", "rust", "scab rust"], "scab rust"),
        (["a|b", "a", "b", "c"], "a|b"),
        (["haze primary", "clear primary water", "clear primary", "haze water", "clear haze water"], "haze primary"),
        (["small red", "small blue", "large red", "large blue", "small green", "large green"], None),
        (["golden retriever", "labrador retriever", "poodle"], None),
        (["dark red", "light red", "red"], None),
        (["Seoul, Korea", "Paris, France"], None),
    ],
)
def test_tags_are_lists_of_other_values(values, tags):
    assert find_tags(values) == tags


ONE_HOT = pd.DataFrame(
    {
        "path": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        "indoor": ["1", "1", "0", "1"],
        "healthy": ["1", "0", "0", "1"],
        "rust": ["0", "1", "0", "0"],
        "scab": ["0", "0", "1", "0"],
        "hat": ["yes", "no", "yes", "no"],
    }
)


def test_one_hot_columns_are_one_head():
    columns = [Column(name, ONE_HOT[name]) for name in ONE_HOT]
    assert find_one_hot(columns) == [["healthy", "rust", "scab"]]
    found, sentence = find_heads("my.csv", ONE_HOT, {"path"})
    assert found == {"indoor": None, "class": ["healthy", "rust", "scab"], "hat": None}
    assert sentence == (
        "The heads of my.csv are indoor, class (the one-hot columns healthy, rust, scab), hat; heads: {NAME: [healthy, "
        "rust, scab]} in --config gives another name."
    )
    assert join_one_hot(ONE_HOT, ["healthy", "rust", "scab"]).tolist() == ["healthy", "rust", "scab", "healthy"]


def test_one_hot_columns_of_floats_with_an_unknown_row():
    frame = ONE_HOT.replace({"1": "1.0", "0": "0.0"})
    frame.loc[3, ["healthy", "rust", "scab"]] = ""
    assert find_heads("my.csv", frame, {"path", "indoor"})[0] == {"class": ["healthy", "rust", "scab"], "hat": None}
    assert join_one_hot(frame, ["healthy", "rust", "scab"]).tolist() == ["healthy", "rust", "scab", ""]


def test_columns_that_are_not_one_hot_are_heads_of_their_own():
    frame = ONE_HOT.assign(rust=["1", "1", "0", "0"])
    assert list(find_heads("my.csv", frame, {"path"})[0]) == ["indoor", "healthy", "rust", "scab", "hat"]
    fault = join_one_hot(frame, ["healthy", "rust", "scab"])[0]
    assert isinstance(fault, DataError)
    assert str(fault) == "found 1, 1, 0, expected one 1 and otherwise 0 in the columns healthy, rust, scab."


def test_nothing_is_said_where_every_column_is_a_head():
    assert find_heads("my.csv", ONE_HOT[["path", "indoor", "hat"]], {"path"}) == ({"indoor": None, "hat": None}, "")


def test_a_number_is_named_with_the_bands_that_it_needs():
    frame = pd.DataFrame({"path": list("abcd"), "age": ["20", "30", "50", "60"], "hat": list("xyxy")})
    assert (
        "not age (4 numbers); numbers are classes by bounds, such as heads: {age: {classes: [<40, 40+], bounds: "
        in (find_heads("my.csv", frame, {"path"})[1])
    )
    with pytest.raises(
        UsageError, match=r"no column .*found age \(4 numbers\)\); numbers .* name columns with --heads"
    ):
        find_heads("my.csv", frame.drop(columns="hat"), {"path"})


def test_a_table_without_a_header_or_with_other_separators_is_refused():
    with pytest.raises(UsageError, match="my.csv has no header: its first line holds the photo 'a.JPG'; add a line"):
        find_image_column("my.csv", pd.DataFrame({"a.JPG": ["b.jpg"], "cat": ["dog"]}))
    with pytest.raises(UsageError, match="my.csv has one column, 'path colour'; expected more, separated by commas"):
        find_image_column("my.csv", pd.DataFrame({"path colour": ["a.jpg cat"]}))


def test_a_list_of_numbers_is_no_number_with_bands():
    frame = pd.DataFrame({"path": list("abcd"), "at": ["1,5", "2,5"] * 2, "hat": list("xyxy")})
    assert find_heads("my.csv", frame, {"path"})[1] == (
        "The heads of my.csv are hat; not at (lists of numbers); --heads names the columns to take."
    )


@pytest.mark.parametrize("name", ["path", "Path", "PATH", "filename", "file_name", "image", "img", "Image_ID", "Photo"])
def test_the_column_of_photos_is_found_by_its_name(name):
    frame = pd.DataFrame({"colour": ["red", "green"], name: ["a", "b"], "id": ["1", "2"]})
    assert find_image_column("my.csv", frame) == name


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"": ["0", "1"], "which": ["a.jpg", "B.JPG"]}, "which"),
        # one cell without an ending is an error in its line, not of the table
        ({"which": ["a.jpg", "b.jpg", ""], "hat": ["x", "y", "x"]}, "which"),
        ({"image": ["a.jpg", "b.jpg"], "segmentation": ["a.png", "b.png"]}, "image"),
        ({"path": ["x", "y"], "Path": ["a.jpg", "b.jpg"]}, "path"),
        ({"id": ["x", "y"], "breed": ["a", "b"]}, "id"),
        ({"one": ["a.jpg"], "two": ["a.png"]}, None),
        ({"one": ["a"], "two": ["b"]}, None),
        ({"Path": ["a"], "PATH": ["b"]}, None),
    ],
)
def test_the_column_of_photos_is_found_where_there_is_one_candidate(columns, found):
    frame = pd.DataFrame(columns)
    if found is None:
        with pytest.raises(UsageError, match=re.escape("name the one to use with --image-column")):
            find_image_column("my.csv", frame)
    else:
        assert find_image_column("my.csv", frame) == found


def test_the_column_of_persons():
    frame = pd.DataFrame({"path": list("abc"), "Person": list("xxy"), "patient_id": list("112")})
    assert find_person_column(frame) == "Person"
    assert find_person_column(frame.drop(columns="Person")) is None
    assert suggest_person_column(frame, {"path", "Person"}) == "patient_id"
    assert suggest_person_column(frame.assign(patient_id=list("123")), {"path", "Person"}) is None


@pytest.mark.parametrize(
    ("name", "cells", "found"),
    [
        ("individual_id", [f"w{i}" for i in range(6)] * 2, "individual_id"),
        ("machine_id", ["48", "49"] * 6, None),
        ("category_id", [str(i) for i in range(6)] * 2, None),
        ("Group", ["0", "1"] * 6, None),
    ],
)
def test_ids_that_repeat_may_name_the_persons(name, cells, found):
    frame = pd.DataFrame({"path": [f"{i}.jpg" for i in range(12)], name: cells, "seq_id": [str(i) for i in range(12)]})
    assert suggest_person_column(frame, {"path"}) == found


def test_the_bound_of_an_example_divides_the_numbers():
    frame = pd.DataFrame({"path": list("abcd"), "year": ["2011", "2012", "2015", "2016"], "hat": list("xyxy")})
    assert "{classes: [<2013.5, 2013.5+], bounds: [2013.5]}" in find_heads("my.csv", frame, {"path"})[1]
