import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.readers import read_csv, read_data, read_frame, read_table
from fastmask.data.training_set import draw_weights
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

ROWS = """file,colour,shape,person
a.jpg,red,round,ann
b.png,green,square,ann
c.jpg,,round,bob
d.jpg,red,square,bob
"""


@pytest.fixture
def photos(tmp_path):
    """A folder with four photos, which readers do not open, and my.csv, which names them."""
    for name in ("a.jpg", "b.png", "c.jpg", "d.jpg"):
        (tmp_path / name).touch()
    return write(tmp_path / "my.csv", ROWS)


def write(file, text):
    file.write_text(text, encoding="utf-8")
    return file


def test_columns_are_heads_and_an_empty_cell_is_unknown(photos):
    table = read_csv(photos)
    assert table.heads == Heads([Head("colour", ("green", "red")), Head("shape", ("round", "square"))])
    assert table.y.tolist() == [[1, 0], [0, 1], [-1, 0], [1, 1]]
    assert table.persons.tolist() == ["ann", "ann", "bob", "bob"]
    assert [table.photo(i).name for i in range(4)] == ["a.jpg", "b.png", "c.jpg", "d.jpg"]
    assert table.reading["heads"] == {"colour": ["green", "red"], "shape": ["round", "square"]}


SHAPE, COLOUR = Head("shape", ("round", "square")), Head("colour", ("red", "green"), weight=2)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (["shape"], [SHAPE]),
        (["shape", "colour"], [SHAPE, Head("colour", ("green", "red"))]),
        ({"colour": ["red", "green", "blue"]}, [Head("colour", ("red", "green", "blue"))]),
        ([COLOUR, "shape"], [COLOUR, SHAPE]),
        (Heads([COLOUR]), [COLOUR]),
    ],
)
def test_heads_may_be_named_ordered_or_made(heads, expected, photos):
    table = read_csv(photos, heads)
    assert list(table.heads) == expected
    assert table.y.shape == (4, len(expected))


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path, photos):
    write(photos, "path,size\na.jpg,10\nb.png,9\nc.jpg,10\nd.jpg,9\n")
    with pytest.warns(FastmaskWarning, match="every photo counts as a different person"):
        table = read_csv(photos)
    assert table.heads["size"].classes == ("9", "10")
    assert table.persons.tolist() == ["a.jpg", "b.png", "c.jpg", "d.jpg"]


def test_a_head_with_bounds_reads_numbers(tmp_path, photos):
    write(photos, "path,person,age\na.jpg,1,20\nb.png,1,30\nc.jpg,2,\nd.jpg,2,59.5\n")
    age = Head("age", ("<30", "30+"), bounds=(30,), train_bounds=(40,))
    table = read_csv(photos, [age])
    assert table.frame["age"].tolist() == ["<30", "30+", "", "30+"]
    assert table.y[:, 0].tolist() == [0, 1, -1, 1]
    assert table.train_y[:, 0].tolist() == [0, 0, -1, 1]
    write(photos, "path,person,age\na.jpg,1,old\nb.png,1,30\n")
    with pytest.raises(DataError, match="line 2, column age: found 'old', expected a number"):
        read_csv(photos, [age])


@pytest.mark.parametrize("code", ["-1", "999", "9999.0", "-99"])
def test_a_code_for_an_unknown_number_is_not_a_band(code, tmp_path, photos):
    write(photos, f"path,person,age\na.jpg,1,20\nb.png,1,{code}\nc.jpg,2,99\n")
    bands = {"classes": ["<30", "30-59", "60+"], "bounds": [30, 60]}
    with pytest.raises(DataError, match=f"line 3, column age: found '{code}', which looks like a code for unknown; em"):
        read_csv(photos, {"age": bands})
    wide = {**bands, "limits": (-100, 10000)}
    table = read_data(make_config({"data": str(photos), "heads": {"age": wide}}))
    assert table.frame["age"].tolist() == ["<30", "<30" if code[0] == "-" else "60+", "60+"]
    assert make_config(table.reading).heads["age"].limits == (-100, 10000)
    with pytest.raises(DataError, match=f"line 3, column age: found '{code}', expected a number from 0 to 120"):
        read_csv(photos, {"age": {**bands, "limits": (0, 120)}})


def test_numbers_that_are_negative_or_999_are_bands_where_the_bounds_are(tmp_path, photos):
    write(photos, "path,person,price,cold\na.jpg,1,999,-9\nb.png,1,20,-1\nc.jpg,2,30,4\n")
    price = {"classes": ["low", "high"], "bounds": [500]}
    cold = {"classes": ["frost", "mild"], "bounds": [-5]}
    assert read_csv(photos, {"price": price, "cold": cold}).y.tolist() == [[1, 0], [0, 1], [0, 1]]


def test_photos_are_in_images_with_any_ending(tmp_path, photos):
    (tmp_path / "elsewhere").mkdir()
    text = f"file,hat,person\na,yes,1\nb,no,1\n{tmp_path}/c.jpg,no,2\nd.jpg,yes,2\n"
    rows = write(tmp_path / "elsewhere" / "rows.csv", text)
    table = read_csv(rows, ["hat"], images=tmp_path, image_column="file")
    assert table.frame["path"].tolist() == ["a.jpg", "b.png", "c.jpg", "d.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a.jpg,", "z.jpg,", r"line 2, column file: .*z.jpg does not exist"),
        ("b.png,", "../b.png,", r"line 3, column file: found '../b.png', expected a photo inside .* --images"),
        ("b.png,", "/etc/b.png,", r"line 3, column file: found '/etc/b.png', expected a photo inside"),
        (",ann\nb", ",\nb", r"line 2, column person: found an empty cell, expected the person of the photo"),
        ("shape,person", "shape,shape", "two columns called 'shape', 3 and 4"),
    ],
)
def test_a_bad_cell_is_named_by_line_and_column(old, new, message, photos):
    assert old in ROWS
    write(photos, ROWS.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_csv(photos, image_column="file")


def test_a_class_that_is_not_among_those_given_is_named(photos):
    with pytest.raises(DataError, match=r"line 3, column colour: found 'green', expected one of red, blue, or nothing"):
        read_csv(photos, {"colour": ["red", "blue"]})


def test_faults_can_be_collected_and_their_rows_are_left_out(photos):
    write(photos, ROWS.replace("a.jpg", "z.jpg").replace("round,bob", "round,"))
    faults = []
    table = read_csv(photos, image_column="file", on_fault=faults.append)
    assert [str(t).split(", ", 1)[1][:30] for t in faults] == [
        "line 2, column file: " + str(photos.parent)[:9],
        "line 4, column person: found a",
    ]
    assert table.frame["path"].tolist() == ["b.png", "d.jpg"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heads": ["hat"]}, UsageError, "no column 'hat' for a head; expected some of colour, shape"),
        ({"heads": ["person"]}, UsageError, "no column 'person' for a head"),
        ({"group": "owner"}, DataError, "no column 'owner'"),
        ({"image_column": "photo"}, DataError, "no column 'photo'"),
        ({"images": "nowhere"}, UsageError, "nowhere is not a folder.*--images"),
    ],
)
def test_invalid_arguments_are_refused(arguments, error, message, photos):
    with pytest.raises(error, match=message):
        read_csv(photos, **arguments)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,colour\na.jpg,red\nb.png,green\n", UsageError, "no column that repeats a few values.*--heads"),
        ("path,colour\n", DataError, "has no rows"),
        ("", DataError, "is empty"),
    ],
)
def test_a_csv_that_says_too_little(text, error, message, photos):
    with pytest.raises(error, match=message):
        read_csv(write(photos, text))


def read(**settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastmaskWarning)
        return read_data(make_config(settings))


def test_data_of_any_kind(folders, photos, contest, tmp_path, monkeypatch):
    assert read(data=str(folders)).heads.names == ("class",)
    assert read(data=str(photos), heads=["shape"]).heads.names == ("shape",)
    own = photos.rename(photos.with_name("train.csv"))
    assert read(data=str(own), heads=["shape"]).heads.names == ("shape",)
    assert len(read(data=str(contest))) == len(read(data=str(contest / "train" / "train.csv"))) == 84
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "fastmask").mkdir()
    (tmp_path / "fastmask" / "sample1-160-0").symlink_to(contest)
    assert len(read(data="sample")) == 84


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data": "my.csv", "age_bounds": [30, 57]},
            "age_bounds goes with the contest's folder, not with a CSV; leave it out, or set it to 30 60",
        ),
        (
            {"data": "my.csv", "age_bounds": [30, 58]},
            "age_bounds of recipe report goes with .*; leave the recipe out, or set it to 30 60",
        ),
        ({"data": "contest", "heads": ["age"]}, "heads goes with a CSV, and --data is contest"),
        ({"data": "contest", "group_column": "id"}, "group_column goes with a CSV"),
        ({"data": "nowhere"}, "nowhere is not a contest folder"),
        ({"data": "nowhere.csv"}, "nowhere.csv is not a file"),
    ],
)
def test_settings_that_do_not_belong_to_the_data(settings, message, contest, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    Path("contest").symlink_to(contest)
    with pytest.raises(UsageError, match=message):
        read(**settings)


def test_fixes_are_applied_to_what_is_read(contest, tmp_path):
    person = read_contest(contest).persons[0]
    fixes = write(tmp_path / "fixes.csv", f"person,column,value\n{person},age,59\n")
    table = read(data=str(contest), fixes=str(fixes))
    assert (table.frame["age_value"][:7] == 59).all()
    assert table.reading["fixes"] == str(fixes)


def test_a_csv_reads_like_the_contest_s_folder(contest, tmp_path):
    table = read_contest(contest)
    table.frame.drop(columns=["source", "age_value"]).to_csv(tmp_path / "same.csv", index=False)
    same = read_csv(tmp_path / "same.csv", {h.name: list(h.classes) for h in table.heads}, images=table.root)
    np.testing.assert_array_equal(same.y, table.y)
    assert same.heads.sizes == table.heads.sizes
    np.testing.assert_array_equal(assign_folds(same, 2, "age"), assign_folds(table, 2, "age"))


@pytest.mark.parametrize(
    "heads",
    [
        None,
        ["shape"],
        {"shape": ["square", "round"]},
        [Head("shape", ("square", "round"))],
        [Head("size", ("small", "large"), bounds=(5,), train_bounds=(6,))],
    ],
)
def test_a_table_is_read_again_from_the_settings_that_it_was_read_with(heads, photos):
    if heads is not None:
        pd.read_csv(photos).assign(size=[1, 5, 9, 5]).to_csv(photos, index=False)
    table = read_csv(photos, heads)
    again = read(**table.reading)
    assert again.heads == table.heads
    assert again.frame.equals(table.frame)


def test_the_column_of_photos_may_be_the_column_of_persons(photos):
    write(photos, ROWS.replace("a.jpg", "z.jpg"))
    faults = []
    table = read_csv(photos, ["shape"], image_column="file", group="file", on_fault=faults.append)
    assert len(faults) == 1
    assert table.persons.tolist() == ["b.png", "c.jpg", "d.jpg"]


def test_a_photo_that_is_a_link_out_of_the_folder_needs_the_folder_s_name(tmp_path, photos):
    (tmp_path / "a.jpg").rename(tmp_path.parent / "private.jpg")
    (tmp_path / "a.jpg").symlink_to("../private.jpg")
    with pytest.raises(DataError, match=r"line 2, column file: .*a.jpg is a link out of .*--images"):
        read_csv(photos, ["colour"], image_column="file")
    assert len(read_csv(photos, ["colour"], image_column="file", images=tmp_path)) == 4


def test_one_hot_columns_are_read_as_one_head_also_under_another_name(photos):
    text = "path,person,healthy,rust,scab\na.jpg,1,1,0,0\nb.png,1,0,1,0\nc.jpg,2,,,\nd.jpg,2,0,0,1\n"
    write(photos, text)
    with pytest.warns(FastmaskWarning, match=r"heads of .* are class \(the one-hot columns healthy, rust, scab\)"):
        table = read_csv(photos)
    assert table.frame["class"].tolist() == ["healthy", "rust", "", "scab"]
    assert read(**table.reading).frame.equals(table.frame)
    named = read(data=str(photos), heads={"disease": ["scab", "rust", "healthy"]})
    assert named.y[:, 0].tolist() == [2, 1, -1, 0]
    write(photos, text.replace("d.jpg,2,0,0,1", "d.jpg,2,0,1,1"))
    with pytest.raises(DataError, match="line 5, column disease: found 1, 1, 0, expected one 1 .* scab, rust, healthy"):
        read(data=str(photos), heads={"disease": ["scab", "rust", "healthy"]})


def test_numbers_that_are_named_without_bounds_are_classes_with_a_warning(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.jpg").touch()
    rows = "".join(f"{i}.jpg,{i},{18 + i % 30}\n" for i in range(60))
    file = write(tmp_path / "my.csv", f"path,person,age\n{rows}")
    with pytest.warns(FastmaskWarning, match="column age: each of the 30 numbers is a class; for bands .* bounds"):
        assert len(read_csv(file, "age").heads["age"].classes) == 30
    with pytest.raises(UsageError, match=r"found age \(30 numbers\)\); numbers are classes by bounds, such as heads:"):
        read_csv(file)
    bands = {"age": {"classes": ["<30", "30-39", "40+"], "bounds": [30, 40]}}
    counts = read(data=str(file), heads=bands).frame["age"].value_counts().to_dict()
    assert counts == {"<30": 24, "30-39": 20, "40+": 16}


def test_two_spellings_stay_two_classes_and_blanks_are_ignored_with_a_warning(photos):
    write(photos, ROWS.replace("d.jpg,red", "d.jpg,RED").replace("square,ann", " square,ann"))
    with pytest.warns(FastmaskWarning) as warned:
        table = read_csv(photos, ["colour", "shape"])
    assert table.heads["colour"].classes == ("RED", "green", "red")
    assert table.frame["shape"].tolist() == ["round", "square", "round", "square"]
    said = " ".join(str(each.message) for each in warned)
    assert "column colour: 'RED' (1), 'red' (1) are 2 classes; if they are one" in said
    assert "column shape: ' square' (1), 'square' (1) are one class; the blanks" in said


def test_two_spellings_of_a_person_are_warned_of(photos):
    write(photos, "path,owner,colour\na.jpg,Ann,red\nb.png,ann,green\nc.jpg,bob,red\nd.jpg,bob,green\n")
    with pytest.warns(FastmaskWarning, match=r"column owner: 'Ann' \(1\) and 'ann' \(1\) count as different persons"):
        assert read_csv(photos, "colour", group="owner").persons.tolist() == ["Ann", "ann", "bob", "bob"]


@pytest.mark.parametrize("given", [{"path": ["a.jpg"]}, pd.Series(["a.jpg"]), None, [1]])
def test_what_is_neither_a_file_nor_a_frame_is_refused(given):
    with pytest.raises(UsageError, match="read_frame takes a pandas DataFrame, and read_csv also a file"):
        read_csv(given)


def test_a_photo_in_two_rows_is_named_with_both_labels(photos):
    write(photos, ROWS.replace("d.jpg,red", "a.jpg,green"))
    with pytest.raises(
        DataError,
        match=r"line 5, column file: found 'a.jpg' a second time, after line 2 \(colour red there and green here, "
        r"shape round there and square here\); keep one row per photo",
    ):
        read_csv(photos, ["colour", "shape"])


def test_a_column_that_may_be_the_persons_is_suggested(photos):
    write(photos, ROWS.replace("person", "patient_id"))
    with pytest.warns(FastmaskWarning) as warned:
        assert read_csv(photos).persons.tolist() == ["a.jpg", "b.png", "c.jpg", "d.jpg"]
    said = " ".join(str(each.message) for each in warned)
    assert "Is it patient_id? Name the column of persons with --group-column" in said
    assert "not patient_id (persons? --group-column patient_id)" in said


def test_names_of_any_script_and_sign(photos):
    scientist = "👩\u200d🔬"
    rows = 'path,person,"a.b, c",얼굴\na.jpg,1,007,"x ""y"""\nb.png,1,007,z\nc.jpg,2,ZWJ,z\nd.jpg,2,7.5.1,z\n'
    write(photos, rows.replace("ZWJ", scientist))
    table = read_csv(photos, ["a.b, c", "얼굴"])
    assert table.heads["a.b, c"].classes == ("007", "7.5.1", scientist)
    assert table.frame["얼굴"].tolist() == ['x "y"', "z", "z", "z"]
    with pytest.raises(UsageError, match=r"column '얼굴': Head '얼굴' has .* a line break in 'z\\ny'"):
        read_csv(write(photos, photos.read_text(encoding="utf-8").replace(",z", ',"z\ny"')), ["얼굴"])


@pytest.mark.parametrize("name", ["true", "fold", "path"])
def test_a_head_with_a_reserved_name_is_refused(name, photos):
    write(photos, ROWS.replace("shape", name))
    with pytest.raises(UsageError, match=rf"A head cannot be called '{name}'; .* reserved. Rename it"):
        read_csv(photos, [name], image_column="file")


def test_data_given_in_python_is_a_table_a_frame_or_a_path(photos, contest):
    frame, settings = pd.read_csv(photos), make_config({"heads": "shape", "images": str(photos.parent)})
    from_csv = read_table(str(photos), settings)
    assert from_csv.heads.names == ("shape",)
    assert read_table(photos, settings).frame.equals(from_csv.frame)
    assert read_table(frame, settings).frame.drop(columns="source").equals(from_csv.frame.drop(columns="source"))
    assert read_table(from_csv, make_config({})) is from_csv
    assert len(read_table(contest, make_config({}))) == 84
    for data in (None, 5, [str(photos)]):
        with pytest.raises(UsageError, match="expected a Table, a DataFrame, or the path of the data"):
            read_table(data, settings)


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.TXT", ";"), ("a.txt", ",")])
def test_a_table_of_another_ending_is_read_as_a_csv(tmp_path, name, mark):
    rows = [
        ("path", "person", "colour"),
        ("0.jpg", "a", "red"),
        ("1.jpg", "b", "blue"),
        ("2.jpg", "a", "red"),
        ("3.jpg", "b", "blue"),
    ]
    (tmp_path / name).write_text("\n".join(mark.join(row) for row in rows))
    for path, *_ in rows[1:]:
        (tmp_path / path).touch()
    table = read_data(make_config({"data": str(tmp_path / name)}))
    assert table.heads["colour"].classes == ("blue", "red")
    assert list(table.frame["colour"]) == ["red", "blue", "red", "blue"]


@pytest.mark.parametrize(
    ("read", "named"),
    [
        (lambda: read_csv(None), "Found None; read_frame takes a pandas DataFrame"),
        (lambda: read_csv("a.csv", images=5), "images is 5; expected the path of a folder"),
        (lambda: read_frame(pd.DataFrame({"path": ["a.jpg"]}), images=5), "images is 5; expected the path of a folder"),
        (lambda: read_data("a.csv"), "read_data takes a Config, found 'a.csv'; read_csv takes a path"),
    ],
)
def test_an_argument_of_another_type_is_named(read, named):
    with pytest.raises(UsageError, match=named):
        read()


def with_weights(cells):
    lines = zip(ROWS.splitlines(), ["often", *cells], strict=True)
    return "".join(f"{line},{cell}\n" for line, cell in lines)


def test_a_column_of_draw_weights_is_kept_and_no_head(photos):
    write(photos, with_weights(["1", "0.5", "1e3", "1"]))
    table = read_csv(photos, draw_weights="often")
    assert table.heads.names == ("colour", "shape")
    assert draw_weights(table, "often").tolist() == [1, 0.5, 1000, 1]
    assert draw_weights(table.select([2, 1]), "often").tolist() == [1000, 0.5]
    again = read_data(make_config({"data": str(photos), "draw_weights": "often"}))
    frame = read_frame(pd.read_csv(photos), images=photos.parent, draw_weights="often")
    for other in (again, frame):
        assert draw_weights(other, "often").tolist() == [1, 0.5, 1000, 1]
    with pytest.raises(UsageError, match=r"names the column 'often', which the table does not have.*draw_weights="):
        draw_weights(read_csv(photos, ["shape"]), "often")
    wrong = replace(table, frame=table.frame.assign(often=[1, 0, None, 2]))
    with pytest.raises(
        UsageError, match=r"Column 'often' of draw weights has .*0.* for b\.png; expected a number above"
    ):
        draw_weights(wrong, "often")


@pytest.mark.parametrize("cell", ["", "0", "-1", "nan", "inf", "often", "1e9"])
def test_a_draw_weight_is_a_number_above_0(cell, photos):
    write(photos, with_weights(["1", cell, "1", "1"]))
    message = rf"my\.csv, line 3, column often: found '{cell}', expected a number above 0, up to 1000000"
    with pytest.raises(DataError, match=message):
        read_csv(photos, ["colour", "shape"], draw_weights="often")


def test_draw_weights_have_a_column_of_their_own(photos):
    with pytest.raises(DataError, match="has no column 'rarely'"):
        read_csv(photos, draw_weights="rarely")
    with pytest.raises(UsageError, match="has no column 'rarely'"):
        read_frame(pd.read_csv(photos), images=photos.parent, draw_weights="rarely")
    for name in ("file", "person"):
        with pytest.raises(UsageError, match=f"column '{name}' cannot hold draw weights"):
            read_csv(photos, draw_weights=name)
    with pytest.raises(UsageError, match="no column 'shape' for a head"):
        read_csv(photos, ["shape"], draw_weights="shape")
