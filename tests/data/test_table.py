from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.table import Table
from fastmask.heads import Head, Heads
from fastmask.system.errors import UsageError


def test_training_bounds_change_training_labels_and_nothing_else(contest):
    official, moved = read_contest(contest), read_contest(contest, age_bounds=(20, 40))
    assert (moved.y == official.y).all()
    age = official.frame["age_value"].to_numpy()
    assert moved.train_y[:, 2].tolist() == np.digitize(age, (20, 40)).tolist()
    assert (moved.train_y[:, :2] == official.y[:, :2]).all()
    assert (official.train_y == official.y).all()


def test_a_removed_label_is_unknown(contest):
    for bounds in ((30, 60), (20, 40)):
        table = read_contest(contest, age_bounds=bounds)
        table.frame.loc[3, "age"] = ""
        assert table.y[3].tolist()[2] == table.train_y[3].tolist()[2] == -1


def test_some_rows_of_a_table_are_a_table(contest):
    table = read_contest(contest)
    part = table.select([3, 6])
    assert part.y.tolist() == table.y[[3, 6]].tolist()
    assert part.photo(1) == table.photo(6)


def test_a_table_has_a_column_a_head_and_the_numbers_of_its_bands():
    frame = pd.DataFrame({"path": ["a.jpg"], "person": ["a"], "mask": ["wear"], "gender": ["male"], "age": ["<30"]})
    with pytest.raises(UsageError, match="needs the column 'age_value'"):
        Table(frame, contest_heads(), root=Path())
    assert len(Table(frame.assign(age_value=20.0), contest_heads(), root=Path())) == 1


def test_the_number_of_a_head_becomes_another_head(contest):
    table = read_contest(contest)
    wide = table.with_number("age", spread=2.0)
    years = wide.frame["age_value"]
    head = wide.heads["age_number"]
    assert (head.classes[0], head.classes[-1], head.spread) == (f"{years.min():g}", f"{years.max():g}", 2.0)
    assert (head.numbers[wide.y[:, -1]] == years).all()
    assert (wide.y[:, :3] == table.y).all()
    assert (wide.heads.joint(wide.y) == table.heads.joint(table.y)).all()


def test_an_unknown_number_is_an_unknown_label(contest):
    table = read_contest(contest)
    frame = table.frame.copy()
    frame.loc[:6, ["age", "age_value"]] = "", np.nan
    assert (replace(table, frame=frame).with_number("age", 2.0).train_y[:7, -1] == -1).all()


def test_a_head_without_numbers_or_with_too_many_is_refused(contest):
    table = read_contest(contest)
    with pytest.raises(UsageError, match="gender is not made of bands of a number"):
        table.with_number("gender", 2.0)
    with pytest.raises(UsageError, match="no head 'shape'"):
        table.with_number("shape", 2.0)
    wide = replace(table, frame=table.frame.assign(age_value=np.arange(len(table)) * 100.0))
    with pytest.raises(UsageError, match="are 0 to 8300; expected 2 to 300 whole numbers"):
        wide.with_number("age", 2.0)


HAT = Head("hat", (0, 1))
FRAME = pd.DataFrame({"path": [Path("a") / "b.jpg", "c.jpg"], "person": [7, 8], "hat": [1, None]}, index=[5, 9])


def test_a_table_made_by_hand_takes_numbers_missing_cells_paths_and_a_list_of_heads(tmp_path):
    for heads in (Heads([HAT]), [HAT], (HAT,), HAT):
        table = Table(FRAME, heads, str(tmp_path))
        assert table.heads == Heads([Head("hat", ("0", "1"))])
        assert table.y.tolist() == [[1], [-1]]
        assert table.persons.tolist() == ["7", "8"]
        assert table.photo(0) == tmp_path / "a" / "b.jpg"
        assert table.frame.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("frame", "heads", "root", "message"),
    [
        ("my.csv", HAT, ".", "made of a pandas DataFrame, found 'my.csv'; see fm.read_frame"),
        (FRAME, "hat", ".", "has the heads 'hat'; expected fm.Heads"),
        (FRAME, {"hat": [0, 1]}, ".", "has the heads {'hat': .*; expected fm.Heads"),
        (FRAME, HAT, None, "has the root None; expected the folder of its photos"),
        (FRAME, Head("coat", (0, 1)), ".", "needs the column 'coat'; fm.read_frame makes a table of any DataFrame"),
        (FRAME.assign(hat=[1, 2]), HAT, ".", "has the label '2' of hat in row 1; expected one of 0, 1, or nothing"),
    ],
)
def test_a_table_of_other_things_is_refused_with_what_is_expected(frame, heads, root, message):
    with pytest.raises(UsageError, match=message):
        Table(frame, heads, root)
