"""Overlap: photos in common, persons who are one, labels that differ."""

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.run.overlap import (
    describe_photos,
    describe_relabelled,
    have_same_persons,
    join_groups,
    rows_of,
    shared_photos,
)
from fastmask.system.errors import DataError


def test_shared_photos_are_in_the_order_of_the_first():
    first, others = pd.Index(["c", "a", "b"]), [("x", pd.Index(["a", "c", "d"])), ("y", pd.Index(["d", "c", "a"]))]
    assert shared_photos(first, others).tolist() == ["c", "a"]
    with pytest.raises(DataError, match="z shares no photo with the results before it, such as 'c'; it has 'd'"):
        shared_photos(first, [*others, ("z", pd.Index(["d", "b"]))])
    assert rows_of(pd.Series(["a", "b"]), pd.Index(["b", "x", "a"])).tolist() == [1, -1, 0]


def test_persons_are_the_same_if_some_are_merged_into_others(run_of, guess, labels):
    def of(name, persons):
        return run_of(guess(labels[:6], 1), labels[:6], name, persons=np.array(persons))

    one = of("one", [0, 0, 1, 1, 2, 2])
    merged, shifted, split = of("m", [0, 0, 1, 1, 1, 1]), of("s", [1, 1, 2, 2, 3, 3]), of("x", [0, 0, 0, 1, 2, 2])
    assert have_same_persons(one, one)
    assert have_same_persons(one, merged)
    assert have_same_persons(merged, one)
    assert not have_same_persons(one, shifted)
    assert not have_same_persons(one, split)
    photos = pd.Index(["00005.jpg", "00002.jpg", "00000.jpg"])
    assert join_groups([one, merged], photos).tolist() == ["p0002", "p0002", "p0000"]
    assert join_groups([merged, one], photos).tolist() == ["p0001", "p0001", "p0000"]
    # what does not fit is left out
    assert join_groups([one, shifted], photos).tolist() == ["p0002", "p0001", "p0000"]


def test_groups_are_joined_through_several_runs(run_of, guess, labels):
    runs = [run_of(guess(labels[:28], 1), labels[:28], name) for name in ("a", "b", "c")]
    for run, (one, other) in zip(runs[1:], (("p0000", "p0001"), ("p0001", "p0003")), strict=True):
        frame = pd.read_csv(run.path / "folds.csv", dtype=str)
        frame.assign(same_as=frame["person"].replace(other, one)).to_csv(run.path / "folds.csv", index=False)
    groups = join_groups([Run.load(run.path) for run in runs], pd.Index(runs[0].oof["path"]))
    assert groups.tolist() == ["p0000"] * 14 + ["p0002"] * 7 + ["p0000"] * 7


def test_differences_are_one_sentence_each():
    assert describe_photos({"a": 3, "b": 3}, 3) == ""
    expected = "Scored on the 3 photos that all runs have; runs with more photos: b 4."
    assert describe_photos({"a": 3, "b": 4}, 3, "runs") == expected
    ours, theirs = (np.array(rows, dtype=object) for rows in ([["x", "m"], ["y", ""]], [["y", "m"], ["y", "f"]]))
    assert describe_relabelled("b", "a", ["one", "two"], ours, ours) == ""
    expected = "b has other labels than a for 2 photos (one 1, two 1); all are scored by the labels of a."
    assert describe_relabelled("b", "a", ["one", "two"], theirs, ours) == expected
