import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from fastmask.data import folds as folds_module
from fastmask.data.contest import contest_heads
from fastmask.data.folds import MOST_COMBINATIONS, assign_folds, check_persons_whole
from fastmask.data.sample import CONTEST_PERSONS
from fastmask.data.table import Table
from fastmask.heads import Head, Heads
from fastmask.system.errors import FastmaskWarning, UsageError


def table_of(ages, genders=None):
    """Seven photos of a person of each age."""
    heads, ages = contest_heads(), np.asarray(ages, float)
    genders = genders or ["male", "female"] * len(ages)
    rows = [
        (f"p{i}/{m}", f"p{i}", mask, genders[i], heads["age"].decode(heads["age"].band(ages[i : i + 1])[0]), ages[i])
        for i in range(len(ages))
        for m, mask in enumerate([*["wear"] * 5, "incorrect", "none"])
    ]
    frame = pd.DataFrame(rows, columns=["path", "person", "mask", "gender", "age", "age_value"])
    return Table(frame.assign(source="test"), heads, root=Path())


CONTEST = table_of(np.random.default_rng(0).choice([22, 25, 45, 50, 60], 300, p=[0.3, 0.2, 0.2, 0.2, 0.1]))


def test_persons_are_whole_and_folds_alike():
    folds = assign_folds(CONTEST, 5)
    assert pd.Series(folds).groupby(CONTEST.persons).nunique().max() == 1
    ages = pd.crosstab(folds, CONTEST.frame["age"])
    assert (ages.max() - ages.min()).max() <= 14  # two persons
    assert set(folds) == set(range(5))


def test_the_seed_decides():
    one, again, other = (assign_folds(CONTEST, 5, seed=seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_every_fold_has_its_share_of_the_contest_s_persons_of_each_gender_and_age():
    cells = [cell for cell, persons in CONTEST_PERSONS.items() for _ in range(persons)]
    table = table_of([(25, 45, 60)[age] for _, age in cells], [("male", "female")[gender] for gender, _ in cells])
    persons = table.frame.assign(fold=assign_folds(table, 5, seed=1)).drop_duplicates("person")
    counts = pd.crosstab(persons["fold"], [persons["gender"], persons["age"]])
    # 83 men of 60 and older are 16 or 17 in each fold; by age alone they are 13 to 25
    assert (counts.max() - counts.min()).max() <= 1
    by_age = table.frame.assign(fold=assign_folds(table, 5, "age", seed=1)).drop_duplicates("person")
    old = by_age[(by_age["age"] == "60+") & (by_age["gender"] == "male")].groupby("fold").size()
    assert (old.min(), old.max()) == (13, 25)


def test_a_head_is_stratified_by_scikit_learn_alone():
    for seed in (0, 7):
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        folds = assign_folds(CONTEST, 5, stratify="age", seed=seed)
        for fold, (_, valid) in enumerate(splitter.split(CONTEST.y, CONTEST.y[:, 2], CONTEST.persons)):
            assert np.flatnonzero(folds == fold).tolist() == sorted(valid)


def test_partly_labelled_heads_are_stratified():
    """Of some persons only the masks are known, of others only gender and age, as of photos of other sources."""
    rng = np.random.default_rng(1)
    table = table_of(rng.choice([25, 45, 60], 400, p=[0.4, 0.4, 0.2]), rng.choice(["male", "female"], 400).tolist())
    source = rng.choice(3, 400).repeat(7)
    frame = table.frame.copy()
    frame.loc[source == 1, ["gender", "age", "age_value"]] = ["", "", np.nan]
    frame.loc[source == 2, "mask"] = ""
    partly = replace(table, frame=frame)
    folds = assign_folds(partly, 5)
    assert (folds >= 0).all()
    for head, most in (("mask", 0.05), ("gender", 0.05), ("age", 0.1)):
        known = frame[head] != ""
        counts = pd.crosstab(folds[known], frame[head][known])
        assert (counts.std(ddof=0) / counts.mean()).max() < most
    whole = pd.crosstab(folds[source == 0], partly.heads.joint(partly.y)[source == 0])
    # two persons
    assert (whole[list(range(6))].max() - whole[list(range(6))].min()).max() <= 10


def test_photos_without_any_label_are_spread_too():
    table = table_of([25] * 30)
    frame = table.frame.assign(mask="", gender="", age="", age_value=np.nan)
    assert np.bincount(assign_folds(replace(table, frame=frame), 5)).tolist() == [42] * 5


def test_the_label_as_trained_is_stratified():
    # by the official bounds all are of one class, so that only the training bounds can spread the oldest
    table = table_of([31] * 20 + [59] * 10)
    heads = contest_heads(age_bounds=(30, 58))
    folds = assign_folds(replace(table, heads=heads), 5)
    oldest = pd.crosstab(folds, table.frame["age_value"])[59.0]
    assert oldest.tolist() == [14] * 5


def test_the_leaky_split_warns():
    with pytest.warns(FastmaskWarning, match="the score is too good"):
        folds = assign_folds(CONTEST, 5, group="none")
    assert pd.Series(folds).groupby(CONTEST.persons).nunique().max() > 1


def test_a_class_rarer_than_the_folds_is_a_warning():
    table = table_of([25] * 20 + [45] * 20 + [60] * 2)
    with pytest.warns(FastmaskWarning, match=r"Classes with fewer persons than the 5 folds: '60\+' \(2\)"):
        assert set(assign_folds(table, 5, "age")) == set(range(5))
    with pytest.warns(FastmaskWarning, match=r"the 5 folds: 'wear male 60\+' \(1\), 'wear female 60\+' \(1\)"):
        assign_folds(table, 5)
    rarer = table_of([25, 45, 60, 26], genders=["male"] * 4)
    with pytest.warns(FastmaskWarning):
        folds = assign_folds(rarer, 4)
    assert pd.Series(folds).groupby(rarer.persons).nunique().max() == 1
    assert sorted(set(folds)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (1, {}, "--folds is 1; expected 2 or more"),
        (301, {}, "only 300 persons; take at most 300"),
        (5, {"stratify": "hat"}, "There is no head 'hat'"),
        (5, {"group": "family"}, "group is 'person' or 'none'"),
    ],
)
def test_invalid_arguments_are_refused(k, options, message):
    with pytest.raises(UsageError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assign_folds(CONTEST, k, **options)


def test_a_fold_without_photos_is_refused(monkeypatch):
    # scikit-learn leaves a fold empty for some tables of few persons
    monkeypatch.setattr(folds_module, "_split", lambda labels, *_: np.zeros(len(labels), np.int64))
    with pytest.raises(UsageError, match="Fold 1 of 2 would be empty; take fewer folds"):
        assign_folds(CONTEST, 2)


def test_a_person_in_two_folds_is_named():
    with pytest.raises(UsageError, match="Person b is in fold 0 and fold 1"):
        check_persons_whole(np.array(["a", "b", "b"], dtype=object), np.array([0, 0, 1]))


def test_with_too_many_combinations_each_head_is_stratified():
    heads = Heads([Head(f"h{i}", ("no", "yes")) for i in range(12)])
    bits = (np.random.default_rng(0).random((1200, 12)) < np.linspace(0.1, 0.5, 12)).astype(int)
    names = {f"h{i}": np.array(["no", "yes"])[bits[:, i]] for i in range(12)}
    frame = pd.DataFrame({"path": [f"{i}.jpg" for i in range(1200)], "person": [f"p{i}" for i in range(1200)], **names})
    table = Table(frame, heads, root=Path())
    _, counts = np.unique(bits, axis=0, return_counts=True)
    assert (counts > 1).sum() > MOST_COMBINATIONS
    with pytest.warns(FastmaskWarning, match="Classes with fewer persons"):
        folds = assign_folds(table, 5)
    yes = np.stack([bits[folds == fold].sum(0) for fold in range(5)])
    assert np.ptp(yes, axis=0).max() <= 5


def test_many_heads_are_dealt_by_their_joint_class():
    heads = Heads([Head(f"h{i}", ("no", "yes")) for i in range(44)])
    bits = np.random.default_rng(0).integers(0, 2, (20, 44))
    names = {f"h{i}": np.array(["no", "yes"])[bits[:, i]] for i in range(44)}
    frame = pd.DataFrame({"path": [f"{i}.jpg" for i in range(20)], "person": [str(i) for i in range(20)], **names})
    with pytest.warns(FastmaskWarning, match="and 12 more") as warned:
        folds = assign_folds(Table(frame, heads, root=Path()), 2, "joint")
    assert len(warned) == 1
    assert set(folds) == {0, 1}
