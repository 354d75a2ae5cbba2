import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import DisjointSet

from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.groups import (
    connect,
    describe_conflicts,
    describe_joined,
    describe_separated,
    find_trained_copies,
    join_identical,
    name_groups,
)
from fastmask.data.loaders import dataloaders
from fastmask.system.errors import FastmaskWarning, UsageError


def test_rows_with_a_label_in_common_are_connected_also_through_others():
    persons = ["a", "a", "b", "b", "c", "d", "d"]
    photos = ["1", "2", "2", "3", "3", "4", None]
    groups = connect(persons, photos)
    assert name_groups(groups, np.array(persons, dtype=object)).tolist() == ["a"] * 5 + ["d"] * 2


def test_the_groups_are_those_of_scipy_s_disjoint_set():
    rng = np.random.default_rng(0)
    for _ in range(20):
        persons, photos = (rng.integers(0, n, 60).astype(str) for n in (40, 50))
        known = np.where(rng.random(60) < 0.3, None, photos)
        expected = DisjointSet(range(60))
        for i, j in zip(*np.triu_indices(60, 1), strict=True):
            if persons[i] == persons[j] or (known[i] is not None and known[i] == known[j]):
                expected.merge(int(i), int(j))
        groups = connect(persons, known)
        assert {frozenset(np.flatnonzero(groups == g).tolist()) for g in groups} == set(
            map(frozenset, expected.subsets())
        )


@pytest.fixture
def copied(contest_copy):
    """The contest with a copy of the first photo of persons 0 and 1, and of a folder, under others."""
    table = read_contest(contest_copy)
    for source, target in ((0, 20), (7, 34), *zip(range(49, 56), range(70, 77), strict=True)):
        table.photo(target).unlink()
        shutil.copy(table.photo(source), table.photo(target))
    return table


def same_files(table):
    """The pairs of rows of equal bytes under two persons, without the code that is tested."""
    digests = [hashlib.md5(table.photo(row).read_bytes()).hexdigest() for row in range(len(table))]
    frame = pd.DataFrame({"row": range(len(table)), "digest": digests, "person": table.persons})
    both = frame.merge(frame, on="digest")
    return both[both["person_x"] != both["person_y"]][["row_x", "row_y"]].to_numpy()


def test_persons_who_share_photos_are_never_in_two_folds(copied):
    pairs = same_files(copied)
    assert len(pairs) == 2 * 9
    joined = join_identical(copied)
    apart = 0
    for seed in range(20):
        folds = assign_folds(joined, 3, "gender", seed=seed)
        assert (folds[pairs[:, 0]] == folds[pairs[:, 1]]).all()
        assert pd.Series(folds).groupby(joined.persons).nunique().max() == 1
        plain = assign_folds(copied, 3, "gender", seed=seed)
        apart += int((plain[pairs[:, 0]] != plain[pairs[:, 1]]).any())
    assert apart > 15
    assert joined.persons.tolist() == copied.persons.tolist()
    shared = describe_joined(joined.persons, joined.groups)
    assert shared.startswith("6 persons share identical photos with others, such as ")
    assert f"{joined.persons[20]} with {joined.persons[0]}, and are in one fold" in shared
    assert describe_joined(joined.persons, joined.groups, folds) == shared
    folds[0] = 1 - folds[0]
    assert "fold" not in describe_joined(joined.persons, joined.groups, folds)


def test_more_folds_than_persons_who_share_no_photos_are_refused(copied):
    with pytest.raises(UsageError, match="there are only 9 persons, counting those who share identical photos as one"):
        assign_folds(join_identical(copied), 10, "gender")


def test_copies_within_a_person_and_other_names_join_nobody(contest_copy):
    table = read_contest(contest_copy)
    shutil.copy(table.photo(0), table.photo(1))
    assert join_identical(table) is table
    assert describe_joined(table.persons, table.groups) == ""


def test_identical_photos_with_other_labels_are_counted(contest):
    table = read_contest(contest)
    digests = [f"{row}" for row in range(len(table))]
    digests[5] = digests[9] = digests[2]
    digests[8] = digests[7]
    masks = table.frame["mask"].tolist()
    # the two photos agree, of the three one is unknown and two differ
    masks[2], masks[5], masks[9], masks[7], masks[8] = "", "wear", "none", "wear", "wear"
    frame, paths = table.frame.assign(mask=masks, gender="male", age="<30"), table.frame["path"]
    assert describe_conflicts(replace(table, frame=frame), digests) == (
        f"2 photos are identical to others with another label, such as {paths[5]} (mask wear) and {paths[9]} "
        "(mask none) (fastmask check lists them)"
    )
    assert describe_conflicts(table, [None] * len(table)) == ""


def test_the_photos_that_folds_separate_are_named(copied):
    digests = [hashlib.sha256(copied.photo(row).read_bytes()).hexdigest() for row in range(len(copied))]
    folds = assign_folds(join_identical(copied, digests), 2, "gender")
    assert describe_separated(copied, folds, digests) == ""
    other = np.where(copied.persons == copied.persons[20], 1 - folds, folds)
    paths = copied.frame["path"]
    assert describe_separated(copied, other, digests) == (
        f"person {copied.persons[0]} is in fold {folds[0]} and person {copied.persons[20]} in fold {1 - folds[0]}, but "
        f"their photos {paths[0]} and {paths[20]} are identical, so the score would be too good"
    )
    assert describe_separated(copied, other, [None] * len(copied)) == ""


def test_persons_with_a_photo_of_a_validated_one_are_not_trained_on_in_a_fixed_split(copied):
    digests = [hashlib.sha256(copied.photo(row).read_bytes()).hexdigest() for row in range(len(copied))]
    folds = np.where(copied.persons == copied.persons[0], 0, -1)
    # photo 20 is photo 0, of person 2
    assert find_trained_copies(copied, folds, digests) == list(range(14, 21))
    assert find_trained_copies(copied, np.where(folds == 0, 0, 1), digests) == []
    some = copied.select([*range(7), *range(14, 21)])
    with pytest.raises(UsageError, match="All photos to train on, such as .*, are identical to validated ones"):
        find_trained_copies(some, np.repeat([0, -1], 7), [*digests[:7], *digests[14:21]])


def test_loaders_keep_identical_photos_in_one_fold_or_warn(copied):
    pairs = same_files(copied)
    with pytest.warns(FastmaskWarning) as warned:
        dls = dataloaders(copied, 0, bs=4, num_workers=0, device="cpu")
    assert any(str(each.message).startswith("6 persons share identical photos") for each in warned)
    validated = np.isin([str(copied.photo(row)) for row in range(len(copied))], _photos(dls.valid))
    assert 0 < validated.sum() < len(copied)
    assert (validated[pairs[:, 0]] == validated[pairs[:, 1]]).all()
    folds = np.where(copied.persons == copied.persons[20], 1, 0)
    with pytest.warns(FastmaskWarning, match=r"are identical, .*join_identical\(table\)"):
        dataloaders(copied, 0, folds, bs=4, num_workers=0, device="cpu")


def _photos(loader):
    return [str(loader.dataset.tls[0].tfms[0](row)) for row in loader.dataset.items]


def test_a_table_that_is_joined_already_stays_so(copied):
    joined = join_identical(copied)
    assert join_identical(joined) is joined
    part = replace(joined, frame=joined.frame.iloc[14:].reset_index(drop=True))
    assert part.groups[6] == joined.persons[0]
