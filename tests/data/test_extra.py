import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fastmask.data.contest import read_contest
from fastmask.data.extra import read_extra
from fastmask.data.folds import assign_folds
from fastmask.data.table import TRAIN_ONLY
from fastmask.labels import soft_labels
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


@pytest.fixture
def table(contest):
    return read_contest(contest, age_bounds=(30, 58))


@pytest.fixture
def make(tmp_path):
    """A CSV of extra photos with the given columns; each photo has another colour."""

    def make(**columns):
        count = len(next(iter(columns.values())))
        paths = [f"{i}.png" for i in range(count)]
        for i, path in enumerate(paths):
            Image.new("RGB", (6, 8), (i * 9, 80, 200)).save(tmp_path / path)
        frame = pd.DataFrame({"path": paths, "person": paths, **columns})
        frame.to_csv(tmp_path / "extra.csv", index=False)
        return tmp_path / "extra.csv"

    return make


def test_heads_without_a_column_are_unknown(table, make):
    extra = read_extra(make(age=["72", "", "59"], gender=["female", "male", ""]), table.heads)
    names = extra.table.frame[["mask", "gender", "age"]].to_numpy().tolist()
    assert names == [["", "female", "60+"], ["", "male", ""], ["", "", "30-59"]]
    made = extra.training_set(0)
    # by the training's bounds 59 is old
    y = torch.tensor([[-1, 1, 2], [-1, 0, -1], [-1, -1, 2]])
    assert made.labels.tolist() == soft_labels(y, table.heads).tolist()
    assert made.photos == [str(make(age=[1]).parent / f"{i}.png") for i in range(3)]


def test_weights_are_a_setting_times_a_column_and_photos_without_label_or_weight_are_left_out(table, make):
    extra = read_extra(make(age=["20", "40", "70"], weight=["0.5", "", "2"]), table.heads, weight=0.5)
    assert extra.training_set(0).labels.sum(1).tolist() == [0.25, 0.5, 1.0]
    extra = read_extra(make(age=["20", "", "70", "40"], weight=["1", "1", "0", "0.1"]), table.heads)
    made = extra.training_set(0)
    assert [photo.rsplit("/")[-1] for photo in made.photos] == ["0.png", "3.png"]
    assert made.labels.sum(1).tolist() == pytest.approx([1, 0.1])


def test_the_number_of_a_head_is_a_label_where_the_data_has_it(table, make):
    heads = table.with_number("age", 2.0).heads
    ages = sorted({int(n) for n in table.frame["age_value"]})
    extra = read_extra(make(age=[str(ages[0]), "99"]), heads)
    assert extra.table.frame["age_number"].tolist() == [str(ages[0]), ""]
    assert extra.table.frame["age"].tolist()[1] == "60+"


def exclude(extra, table, folds):
    digests = [hashlib.sha256(table.photo(row).read_bytes()).hexdigest() for row in range(len(table))]
    return extra.exclude_validated(table, folds, digests, extra.digests())


def test_a_photo_or_a_person_of_a_fold_is_kept_out_of_that_fold(table, make):
    folds = assign_folds(table, 3, "gender")
    file = make(age=["20"] * 4, person=[table.persons[0], "somebody", "else", table.persons[40]])
    # the second photo is, byte by byte, one of the data
    (file.parent / "1.png").write_bytes(table.photo(17).read_bytes())
    extra = read_extra(file, table.heads)
    apart = exclude(extra, table, folds)
    assert [np.flatnonzero(row).tolist() for row in apart.excluded] == [[folds[0]], [folds[17]], [], [folds[40]]]
    assert apart.frame()["without"].tolist() == [str(folds[0]), str(folds[17]), "", str(folds[40])]
    for fold in range(3):
        kept = apart.training_set(fold).photos
        assert len(kept) == 4 - apart.excluded[:, fold].sum()
        assert str(file.parent / "2.png") in kept
    # a person whom no fold validates is kept out of none
    folds[table.persons == table.persons[0]] = TRAIN_ONLY
    assert [np.flatnonzero(row).tolist() for row in exclude(extra, table, folds).excluded[:1]] == [[]]


def test_a_photo_of_one_fold_under_a_person_of_another_is_kept_out_of_both(table, make):
    folds = assign_folds(table, 3, "gender")
    one, other = 0, int(np.flatnonzero(folds != folds[0])[0])
    file = make(age=["20"], person=[table.persons[other]])
    (file.parent / "0.png").write_bytes(table.photo(one).read_bytes())
    extra = read_extra(file, table.heads)
    apart = exclude(extra, table, folds)
    assert set(np.flatnonzero(apart.excluded[0])) == {folds[one], folds[other]}


def test_whoever_shares_a_photo_with_a_person_of_the_data_is_that_person(table, make):
    folds = assign_folds(table, 3, "gender")
    file = make(age=["20"] * 3, person=["copy", "copy", "else"])
    (file.parent / "1.png").write_bytes(table.photo(17).read_bytes())
    apart = exclude(read_extra(file, table.heads), table, folds)
    # the first photo is none of the data, but shows whom the second shows
    assert [np.flatnonzero(row).tolist() for row in apart.excluded] == [[folds[17]], [folds[17]], []]


def test_without_a_column_of_persons_there_is_a_warning(table, make):
    file = make(age=["20"], owner=["somebody"])
    frame = pd.read_csv(file, dtype=str).drop(columns="person")
    frame.to_csv(file, index=False)
    with pytest.warns(FastmaskWarning, match="no column 'person'"):
        read_extra(file, table.heads)
    assert read_extra(file, table.heads, group="owner").table.persons.tolist() == ["somebody"]


def test_the_digest_depends_on_labels_weights_and_photos(table, make):
    extra = read_extra(make(age=["20", "40"]), table.heads)
    digests = extra.digests()
    same = extra.digest(digests)
    assert read_extra(make(age=["20", "41"]), table.heads).digest(digests) == same
    assert read_extra(make(age=["20", "61"]), table.heads).digest(digests) != same
    assert read_extra(make(age=["20", "40"]), table.heads, weight=2).digest(digests) != same
    assert extra.digest(digests[::-1]) != same


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"hat": ["a"]}, UsageError, "no column of mask, gender, age, so there is nothing to learn"),
        ({"age": ["old"]}, DataError, "line 2, column age: found 'old', expected a number"),
        ({"age": ["20"], "gender": ["x"]}, DataError, "line 2, column gender: found 'x', expected one of male, female"),
        (
            {"age": ["20"], "weight": ["-1"]},
            DataError,
            "line 2, column weight: found '-1', expected a number from 0 to",
        ),
        (
            {"age": ["20"], "weight": ["1e300"]},
            DataError,
            "line 2, column weight: found '1e300', expected .* to 1000000",
        ),
        ({"age": ["20"], "weight": ["much"]}, DataError, "line 2, column weight: found 'much'"),
    ],
)
def test_an_invalid_file_is_refused(table, make, columns, error, message):
    with pytest.raises(error, match=message):
        read_extra(make(**columns), table.heads)


def test_photos_outside_their_folder_are_refused_with_the_option_that_names_it(table, make, tmp_path):
    file = make(age=["20"])
    file.write_text("path,person,age\n/etc/passwd,a,20\n")
    with pytest.raises(DataError, match=r"line 2, column path: found '/etc/passwd', .* --extra-images /etc finds it\."):
        read_extra(file, table.heads)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.png").symlink_to(tmp_path / "0.png")
    (tmp_path / "inside" / "extra.csv").write_text("path,person,age\na.png,a,20\n")
    with pytest.raises(
        DataError, match=r"is a link out of .*inside; name the folder with --extra-images to allow that\."
    ):
        read_extra(tmp_path / "inside" / "extra.csv", table.heads)
    assert len(read_extra(tmp_path / "inside" / "extra.csv", table.heads, tmp_path / "inside")) == 1
