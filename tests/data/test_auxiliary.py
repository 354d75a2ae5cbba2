"""Heads next to those of the joint class: their classes, their labels, and what they are refused for."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import read_contest
from fastmask.data.extra import read_extra
from fastmask.data.table import Table
from fastmask.heads import JOINT, Head, Heads
from fastmask.system.errors import UsageError


@pytest.fixture(scope="module")
def table(contest) -> Table:
    return read_contest(contest)


def test_a_joint_head_has_the_joint_classes_of_the_contest_in_their_order(table):
    joint = table.with_joint()
    mask, gender, age = table.y.T
    assert (joint.y[:, 3] == mask * 6 + gender * 3 + age).all()
    assert joint.heads[JOINT].classes[16] == "none female 30-59"
    assert joint.heads.n_joint == 18
    assert joint.heads.classified == ("mask", "gender", "age")


def test_finer_bands_are_those_of_numpy_and_sum_to_the_classes(table):
    banded = table.with_bands("age", [20, 30, 40, 50, 60])
    ages = table.frame["age_value"].to_numpy(float)
    assert (banded.y[:, 3] == np.digitize(ages, [20, 30, 40, 50, 60])).all()
    assert banded.heads["age_bands"].classes == ("<20", "20-30", "30-40", "40-50", "50-60", "60+")
    source, target = banded.heads.merges(2)
    assert source == 3
    assert target.tolist() == [0, 0, 1, 1, 1, 2]
    assert (target[banded.y[:, 3]] == banded.y[:, 2]).all()


def test_training_bounds_decide_the_labels_of_bands_and_of_the_joint_head(table):
    heads = Heads([replace(head, train_bounds=(30, 58)) if head.name == "age" else head for head in table.heads])
    moved = Table(table.frame, heads, table.root).with_bands("age", [30, 45, 58]).with_joint(0.5)
    mask, gender, age = moved.train_y[:, :3].T
    ages = table.frame["age_value"].to_numpy(float)
    assert (age == np.digitize(ages, [30, 58])).all()
    assert (moved.train_y[:, 4] == mask * 6 + gender * 3 + age).all()
    assert moved.heads.merges(2)[1].tolist() == [0, 1, 1, 2]
    with pytest.raises(UsageError, match="finer bounds of age are 30, 45, 60; .* 30, 58 among them"):
        Table(table.frame, heads, table.root).with_bands("age", [30, 45, 60])


@pytest.mark.parametrize("bounds", [[30, 60], [20, 40, 60], [30, 20, 60], [20, 30, 30, 60], []])
def test_bands_that_are_not_finer_are_refused(table, bounds):
    with pytest.raises(UsageError, match="Setting bands: the finer bounds of age"):
        table.with_bands("age", bounds)


def test_heads_without_a_joint_class_or_with_too_many_are_refused(tmp_path):
    frame = pd.DataFrame({"path": ["a.png"], "person": ["a"], "size": ["1"]})
    many = Head("size", tuple(str(i) for i in range(50)))
    with pytest.raises(UsageError, match="two or more heads, and here is only size"):
        Table(frame, Heads([many]), tmp_path).with_joint()
    wide = Heads([replace(many, name=name) for name in ("size", "width", "height")])
    with pytest.raises(UsageError, match="make 125,000 joint classes, and one head learns at most 2,000"):
        Table(frame.assign(width="1", height="1"), wide, tmp_path).with_joint()
    with pytest.raises(UsageError, match="head size is not made of bands"):
        Table(frame, Heads([many]), tmp_path).with_bands("size", [1, 2])


def test_a_photo_without_the_label_of_a_head_has_no_joint_label(table):
    frame = table.frame.copy()
    frame.loc[0, "gender"] = ""
    assert Table(frame, table.heads, table.root).with_joint().y[0].tolist() == [*table.y[0, :1], -1, table.y[0, 2], -1]


def test_extra_photos_get_the_labels_of_bands_and_of_the_joint_class(table, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(table.photo(0).read_bytes())
    file = tmp_path / "extra.csv"
    file.write_text("path,person,mask,gender,age\na.jpg,x,wear,female,35\nb.jpg,y,wear,female,\n")
    extra = read_extra(file, table.with_bands("age", [30, 45, 60]).with_joint(0.5).heads)
    assert extra.table.frame["age_bands"].tolist() == ["30-45", ""]
    assert extra.table.frame["joint"].tolist() == ["wear female 30-59", ""]
