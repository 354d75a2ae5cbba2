"""A file of folds; what -1 means is scikit-learn's PredefinedSplit's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import PredefinedSplit

from fastmask.data.folds import assign_folds
from fastmask.data.folds_file import read_folds
from fastmask.data.table import LEFT_OUT, Table
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


def table_of(persons, photos=7, **reading):
    """Some photos of each person, img/p0_0.jpg and so on."""
    rows = [(f"img/p{i}_{n}.jpg", f"p{i}", "red" if n % 2 else "blue") for i in range(persons) for n in range(photos)]
    frame = pd.DataFrame(rows, columns=["path", "person", "colour"])
    return Table(frame, Heads([Head("colour", ("blue", "red"))]), root=Path("/photos"), reading=reading)


MANY, SMALL = table_of(30), table_of(3)


@pytest.fixture
def read(tmp_path):
    """A function that reads the text of a file of folds."""

    def function(text, table=SMALL, **options):
        (tmp_path / "folds.csv").write_text(text)
        return read_folds(table, tmp_path / "folds.csv", **options).tolist()

    return function


def test_folds_by_path_or_by_person(read):
    folds = assign_folds(MANY, 3)
    by_path = MANY.frame[["path", "person"]].assign(fold=folds)
    assert read(by_path.sample(frac=1, random_state=0).to_csv(index=False), MANY) == folds.tolist()
    by_person = by_path[["person", "fold"]].drop_duplicates()
    assert read(by_person.to_csv(index=False), MANY) == folds.tolist()
    # a contest's train.csv with a column of folds, whose paths are persons
    assert read(by_person.rename(columns={"person": "path"}).to_csv(index=False), MANY) == folds.tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("0 1 0", [0, 1, 0]),
        ("0.0 1.0 0.0", [0, 1, 0]),
        ("-1 0 1", [-1, 0, 1]),
        ("-1.0 0.0 0.0", [-1, 0, 0]),
        ("train val train", [-1, 0, -1]),
        ("Train Valid Test", [-1, 0, -2]),
        ("training validation testing", [-1, 0, -2]),
        ("train 0 1", [-1, 0, 1]),
    ],
)
def test_the_spellings_of_folds(cells, expected, read):
    rows = "".join(f"p{i},{cell}\n" for i, cell in enumerate(cells.split()))
    assert read(f"person,fold\n{rows}") == [fold for fold in expected for _ in range(7)]


def test_minus_one_is_never_validated_and_always_trained_on_as_in_scikit_learn(read):
    folds = np.array(read("person,fold\np0,0\np1,-1\np2,1\n"))
    for fold, (train, valid) in enumerate(PredefinedSplit(folds).split()):
        assert np.flatnonzero(folds == fold).tolist() == valid.tolist()
        assert np.flatnonzero(folds != fold).tolist() == train.tolist()


def test_folds_from_1_are_counted_from_0_with_a_warning(read):
    with pytest.warns(FastmaskWarning, match="The folds 1 … 3 of .* are counted from 1: here, .* they are 0 … 2"):
        assert read("person,fold\np0,3\np1,1\np2,2\n")[::7] == [2, 0, 1]
    with pytest.warns(FastmaskWarning, match="counted from 1"):
        assert read("person,fold\np0,2\np1,-1\np2,1\n")[::7] == [1, -1, 0]


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [("split", "train val val", [-1, 0, 0]), ("kfold", "1 0 1", [1, 0, 1]), ("Fold", "1 0 1", [1, 0, 1])]
    + [("is_valid", cells, [-1, 0, -1]) for cells in ("False True False", "0 1 0", "0.0 1.0 0.0")],
)
def test_the_names_of_the_column_of_folds(header, cells, expected, read):
    rows = "".join(f"p{i},{cell}\n" for i, cell in enumerate(cells.split()))
    assert read(f"person,{header}\n{rows}")[::7] == expected


@pytest.mark.parametrize("header", ["path", "Image ID", "file_name", "shot"])
@pytest.mark.parametrize(
    "name", ["img/p{}_{}.jpg", "img/p{}_{}", "p{}_{}.jpg", "p{}_{}", "./img/p{}_{}.jpg", r"img\p{}_{}.jpg"]
)
def test_the_names_of_photos(header, name, read):
    rows = "".join(f"{name.format(i, n)},{i % 2}\n" for i in range(3) for n in range(7))
    assert read(f"{header},fold\n{rows}", table_of(3, image_column="shot"))[::7] == [0, 1, 0]


def test_a_name_that_two_photos_share_names_none_of_them(read):
    frame = pd.DataFrame({"path": ["a/1.jpg", "b/1.jpg", "b/2.jpg"], "person": list("xyz"), "colour": "red"})
    table = Table(frame, Heads([Head("colour", ("blue", "red"))]), root=Path("/photos"))
    with pytest.raises(DataError, match=r"no fold for 2 photos, such as 'a/1.jpg' \(found '1.jpg', which is not in"):
        read("path,fold\n1.jpg,0\n2.jpg,1\n", table)
    assert read("path,fold\na/1.jpg,0\nb/1.jpg,1\nb/2.jpg,1\n", table) == [0, 1, 1]


def test_rows_of_other_photos_are_ignored_with_a_warning(read):
    with pytest.warns(FastmaskWarning, match="1 row of .* name nothing in the data, such as person 'p9'; they are ig"):
        assert read("person,fold\np0,0\np1,1\np9,0\np2,1\n")[::7] == [0, 1, 1]


def test_photos_that_a_run_has_skipped_are_left_out_by_its_folds(read, tmp_path):
    rows = "".join(f"{path},{n % 2}\n" for n, path in enumerate(SMALL.frame["path"][1:]))
    (tmp_path / "skipped.csv").write_text("path,why\nimg/p0_0.jpg,It cannot be read.\n")
    assert read(f"path,fold\n{rows}", group="none") == [LEFT_OUT, *(n % 2 for n in range(20))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,fold\np0,0\np1,1\n", "has no fold for 7 photos, such as 'img/p2_0.jpg'; add them, with fold -1 to"),
        ("person,fold\np0,0\np1,1\np2,one\n", "line 4, column fold: found 'one', expected a whole number from 0, -1"),
        ("person,fold\np0,0\np1,1\np2,-2\n", "line 4, column fold: found '-2'"),
        ("person,fold\np0,0\np1,1\np2,\n", "line 4, column fold: found ''"),
        ("person,fold\np0,0\np1,1\np2,0.5\n", "line 4, column fold: found '0.5'"),
        ("person,is_valid\np0,0\np1,1\np2,2\n", "line 4, column is_valid: found '2', expected True or False"),
        ("person,fold\np0,0\np1,1\np2,val\n", "has both numbers and words of a validation split"),
        ("person,fold\np0,0\np1,1\np2,3\n", r"has the folds \[0, 1, 3\]; expected 0, 1, … without a gap"),
        ("person,fold\np0,0\np1,0\np2,0\n", "has the one fold 0, which leaves nothing to train on; give the photos"),
        ("person,fold\np0,-1\np1,-1\np2,-1\n", "has no photo to validate; expected the folds 0, 1"),
        ("person,fold\np0,0\np1,1\np2,1\np0,1\n", "line 5, column fold: 'p0' has fold 0 in line 2 and 1"),
        ("person,fold\np0,train\np1,train\np2,test\n", r"or the words train and val \(test is left out\)"),
        ("subject,fold\np0,0\n", "has no column 'person'; found subject, fold"),
        ("person\np0\n", "has no column 'fold', nor folds or kfold or split or isvalid; found person"),
    ],
)
def test_a_file_of_folds_that_does_not_fit(text, message, read):
    with pytest.raises(DataError, match=message):
        read(text)


def test_a_file_that_splits_a_person_is_refused_unless_asked_for(read):
    text = SMALL.frame[["path"]].assign(fold=np.arange(21) % 2).to_csv(index=False)
    with pytest.raises(UsageError, match="Person p0 is in fold 0 and fold 1"):
        read(text)
    assert read(text, group="none") == [i % 2 for i in range(21)]
    words = text.replace(",0", ",train").replace(",1", ",val")
    with pytest.raises(UsageError, match=r"Person p0 is in the photos to train on only \(fold -1\) and fold 0"):
        read(words)
    # a photo that is left out does not leak
    splits = ["test", *["val"] * 6, *["train"] * 14]
    assert read(SMALL.frame[["path"]].assign(fold=splits).to_csv(index=False)) == [-2, *[0] * 6, *[-1] * 14]
