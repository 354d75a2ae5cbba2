from fastmask.system.tables import table_lines


def test_cells_stand_below_each_other_and_empty_columns_are_left_out():
    rows = [["", "score", "", "note"], ["first", "0.5", "", ""], ["a", "0.25", "", "good"]]
    assert table_lines(rows) == ["       score  note", "first  0.5", "a      0.25   good"]


def test_a_header_alone_is_no_table():
    assert table_lines([["score"]]) == []
