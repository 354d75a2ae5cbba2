"""Groups: photos that must be in one fold, because they are of one person or of persons who share identical photos.

A copied folder, or one face under two ids, is two persons with the same photos. In two folds, the network would be
scored on photos that it was trained on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fastmask.data.table import SAME_AS, TRAIN_ONLY, Table
from fastmask.system.errors import UsageError
from fastmask.system.text import count


def connect(*labels: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """(N,) the number of each row's group, by one or more labels of the N rows; None is unknown.

    Rows with a label in common are in one group, and so are rows that others connect.
    """
    rows, nodes, used = [], [], len(labels[0])
    for each in labels:
        codes, names = pd.factorize(np.asarray(each, dtype=object))
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        nodes.append(used + codes[known])
        used += len(names)
    ends = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(used, used))
    return np.asarray(connected_components(graph, directed=False)[1][: len(labels[0])])


def connect_tables(tables: Sequence[Table], digests: Sequence[str]) -> np.ndarray:
    """(N,) the number of each photo's group, of several tables: by their persons, groups and identical photos.

    `digests` (N,) are those of `digest_photos`. So a person who shares a photo with one of another table is the same
    person, under any name.
    """
    persons, groups = (np.concatenate(each) for each in zip(*((t.persons, t.groups) for t in tables), strict=True))
    return connect(persons, groups, digests)


def name_groups(groups: np.ndarray, names: np.ndarray) -> np.ndarray:
    """(N,) groups and names -> (N,) the name of the first row of each group."""
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(names[first][place])


def join_identical(table: Table, digests: Sequence[str | None] | None = None) -> Table:
    """The table with persons who share byte-identical photos in one group, which folds do not separate.

    `digests` (N,) are those of `digest_photos`, None where a photo is unknown; by default the photos are read. The
    column same_as names the first person of each group. Without such persons the table is returned as it is.

    >>> fm.join_identical(table) is table
    True
    >>> pair = table.select([0, 7])
    >>> joined = fm.join_identical(pair, digests=["same", "same"])
    >>> len(set(joined.persons)), len(set(joined.groups))
    (2, 1)
    """
    if digests is None:
        # which imports albumentations, and a run's directory describes groups without it
        from fastmask.data.digests import digest_photos

        digests = digest_photos([table.photo(row) for row in range(len(table))])
    named = name_groups(connect(table.groups, digests), table.groups)
    return table if (named == table.groups).all() else replace(table, frame=table.frame.assign(**{SAME_AS: named}))


def find_trained_copies(table: Table, folds: np.ndarray, digests: Sequence[str | None]) -> list[int]:
    """The rows of a fixed split that are trained on, but belong to the group of a photo that is validated.

    Without them the score is honest. `folds` (N,) and `digests` are as in `describe_separated`. Raises UsageError if
    they are all that a fold could be trained on.
    """
    trained = folds == TRAIN_ONLY
    if not trained.any():
        return []
    groups = pd.Series(join_identical(table, digests).groups)
    rows = np.flatnonzero(trained & groups.isin(groups[folds >= 0]))
    if len(rows) == trained.sum() and folds.max() == 0:
        raise UsageError(
            f"All photos to train on, such as {table.frame['path'].iat[rows[0]]}, are identical to validated ones, or "
            "of the same persons; validate others, or cross-validate all (--folds)."
        )
    return rows.tolist()


def describe_separated(table: Table, folds: np.ndarray, digests: Sequence[str | None]) -> str:
    """The first two identical photos of two persons that (N,) folds separate, for a sentence; "" if there are none."""
    first: dict[str, int] = {}
    for row, digest in enumerate(digests):
        other = row if digest is None else first.setdefault(digest, row)
        if folds[row] != folds[other] and table.persons[row] != table.persons[other]:
            (one, a), (two, b) = ((table.frame["path"].iat[i], table.persons[i]) for i in (other, row))
            return (
                f"person {a} is in fold {folds[other]} and person {b} in fold {folds[row]}, but their photos {one} and "
                f"{two} are identical, so the score would be too good"
            )
    return ""


def describe_conflicts(table: Table, digests: Sequence[str | None]) -> str:
    """How many of the identical photos have different labels, with the first two, for a sentence; "" if there are none.

    `digests` (N,) are as in `join_identical`.
    """
    known = [digest is not None for digest in digests]
    shared = table.frame.assign(digest=pd.Series(digests, dtype=object).to_numpy())[known]
    rows: set[Hashable] = set()
    examples = []
    for head in table.heads.classified:
        labelled = shared[shared[head] != ""]
        torn = labelled[labelled.groupby("digest")[head].transform("nunique") > 1]
        rows |= set(torn.index)
        first = torn[torn["digest"] == torn["digest"].iat[0]].drop_duplicates(head) if len(torn) else torn
        examples += [f"{path} ({head} {label})" for path, label in zip(first["path"], first[head], strict=True)]
    if not rows:
        return ""
    return (
        f"{len(rows):,} photos are identical to others with another label, such as {' and '.join(examples[:2])} "
        "(fastmask check lists them)"
    )


def describe_joined(persons: np.ndarray, groups: np.ndarray, folds: np.ndarray | None = None) -> str:
    """How many persons share identical photos with others, for a sentence; "" if there are none.

    It says that they are in one fold, unless (N,) folds separate some.
    """
    pairs = pd.DataFrame({"person": persons, "group": groups}).drop_duplicates()
    joined = pairs[pairs["group"].duplicated(keep=False)]
    if joined.empty:
        return ""
    one = joined[joined["person"] != joined["group"]].iloc[0]
    together = "" if folds is not None and are_separated(groups, folds) else ", and are in one fold with them"
    return (
        f"{count(len(joined), 'person')} share identical photos with others, such as {one['person']} with "
        f"{one['group']}{together}"
    )


def are_separated(groups: np.ndarray, folds: np.ndarray) -> bool:
    """Whether (N,) folds separate photos of one of the (N,) groups."""
    return bool(pd.Series(folds).groupby(groups).nunique().max() > 1)
