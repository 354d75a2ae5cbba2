import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastmask as fm
from fastmask.data.frames import cell_text, common_folder, frame_to_text
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, UsageError

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).touch()
    return tmp_path


def frame(**columns):
    return pd.DataFrame({"path": NAMES, "person": [1, 1, 2, 2], **columns})


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("007", "007"),
        (7, "7"),
        (7.0, "7"),
        (7.5, "7.5"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (True, "True"),
        (np.bool_(False), "False"),
        (Path("img") / "a.jpg", "img/a.jpg"),
        *((missing, "") for missing in (None, np.nan, pd.NA, pd.NaT, float("nan"))),
    ],
)
def test_a_cell_as_text(cell, text):
    assert cell_text(cell) == text


@pytest.mark.parametrize(
    ("column", "classes", "labels"),
    [
        ([0, 1, np.nan, 1], ("0", "1"), ["0", "1", "", "1"]),
        (pd.array([2, 10, None, 10], dtype="Int64"), ("2", "10"), ["2", "10", "", "10"]),
        ([True, False, None, True], ("False", "True"), ["True", "False", "", "True"]),
        (["red", None, "green", "red"], ("green", "red"), ["red", "", "green", "red"]),
        (["007", "010", "007", "010"], ("007", "010"), ["007", "010", "007", "010"]),
        ([1, 1.0, "1", "2"], ("1", "2"), ["1", "1", "1", "2"]),
        (
            pd.Categorical(["small", "large", None, "large"], ["small", "medium", "large"]),
            ("small", "medium", "large"),
            ["small", "large", "", "large"],
        ),
        (pd.Categorical([3, 1, 3, 1], [3, 1], ordered=True), ("3", "1"), ["3", "1", "3", "1"]),
    ],
)
def test_columns_of_any_type_are_heads(column, classes, labels, folder):
    for read in (fm.read_frame, fm.read_csv):
        table = read(frame(hat=column), "hat", folder)
        assert table.heads == Heads([Head("hat", classes)])
        assert table.frame["hat"].tolist() == labels
        assert table.persons.tolist() == ["1", "1", "2", "2"]
        assert table.photo(1) == folder / "b.jpg"


def test_a_frame_reads_as_its_csv_does(folder):
    given = frame(hat=["x", "y", "x", "y"], size=[1, 2, np.nan, 1], note=["n", "m", "n", "m"])
    given.to_csv(folder / "my.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # pandas writes the column with a missing cell as 1.0
        text = (folder / "my.csv").read_text().replace(".0", "")
        (folder / "my.csv").write_text(text)
        from_csv, from_frame = fm.read_csv(folder / "my.csv"), fm.read_frame(given, images=folder)
    assert from_frame.heads == from_csv.heads
    columns = ["path", "person", "hat", "size"]
    assert from_frame.frame[columns].equals(from_csv.frame[columns])


def test_an_index_with_a_name_is_a_column_and_absolute_paths_say_the_folder(folder):
    given = frame(hat=["x", "y", "x", "y"])
    given["path"] = [folder / name for name in NAMES]
    table = fm.read_frame(given.set_index("path"))
    assert table.root == folder
    assert table.frame["path"].tolist() == NAMES


def test_the_folder_of_paths():
    assert common_folder(["a/b.jpg", "a/c.jpg"]) == Path()
    assert common_folder(["/nowhere/at/all/b.jpg"]) == Path()
    assert common_folder([f"{Path.cwd()}/a/b.jpg", f"{Path.cwd()}/c.jpg"]) == Path.cwd()


@pytest.mark.parametrize(
    ("given", "heads", "error", "message"),
    [
        (frame()[:0], "hat", UsageError, "The DataFrame has no rows"),
        ("my.csv", "hat", UsageError, "Found 'my.csv'; read_frame takes a pandas DataFrame"),
        (frame(hat=list("xyxz")), "coat", UsageError, "the DataFrame has no column 'coat' for a head; .* some of hat"),
        (frame(hat=list("xyxz")), {"hat": "xyz"}, UsageError, "Head 'hat' has the classes 'xyz'; expected a list"),
        (frame(hat=list("xyxz")), {"hat": ["x", "y"]}, DataError, "the DataFrame, row 3, column hat: found 'z'"),
        (frame(hat=list("xyxz")), 5, UsageError, "heads is 5; expected names of columns, or Heads"),
        (frame(hat=list("xyxz")), [0], UsageError, r"heads is \[0\]; expected names of columns"),
        (frame(hat=list("xyxz")), [], UsageError, r"heads is \[\]; expected names of columns"),
        (frame(hat=["x"] * 4), "hat", DataError, r"column hat: found 1 class \(x\), expected two or more"),
        (frame(hat=list("xyxz")).drop(columns="path"), "hat", UsageError, "the DataFrame has no column of photos"),
        (
            pd.concat([frame(hat=list("xyxz"))] * 2, axis=1),
            "hat",
            UsageError,
            "The DataFrame has two columns called 'path'",
        ),
        (frame(hat=list("xyxz")).T.set_index([[0] * 3, list("abc")]).T, "hat", UsageError, "columns of several levels"),
    ],
)
def test_a_frame_that_cannot_be_read_is_one_sentence(given, heads, error, message, folder):
    with pytest.raises(error, match=message):
        fm.read_frame(given, heads, folder)


def test_columns_with_names_that_are_not_texts():
    assert list(frame_to_text(pd.DataFrame({0: [1], "a": [None]})).columns) == ["0", "a"]
