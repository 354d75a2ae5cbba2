"""What is wrong with the labels of a table: rare classes, persons and folders that contradict themselves."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pandas as pd

from fastmask.data.folds import assign_folds, units_of_classes
from fastmask.data.table import Table
from fastmask.heads import JOINT
from fastmask.preparation.findings import ERROR, WARNING, Finding
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.terminal import count

# a head is a person's own where at most this share of the persons, or one of ten and more, disagree with themselves
_DISAGREE, _FEW_PERSONS = 0.05, 10
_CONTEST_FOLDER = re.compile(r"([^_]+)_(male|female)_[^_]+_(\d+)")


def check_labels(table: Table, folds: int, strata: str, group: str, dealt: bool) -> Iterator[Finding]:
    """All that is wrong with the labels: see `fastmask.preparation.check.check_table`."""
    if not dealt:
        yield from _too_few(table, folds, strata, group)
    yield from _classes(table, folds, strata)
    yield from _own_labels(table)
    yield from _contest_folders(table)


def _too_few(table: Table, folds: int, strata: str, group: str) -> Iterator[Finding]:
    """What training would say where it cannot deal the photos into folds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FastmaskWarning)
            assign_folds(table, folds, strata, group)
    except UsageError as error:
        if folds < 2:
            raise
        yield Finding(ERROR, "too few persons", str(error))


def _classes(table: Table, folds: int, strata: str) -> Iterator[Finding]:
    """Classes that the folds cannot share out, and heads without two classes."""
    y = table.train_y
    for column, head in enumerate(table.heads):
        persons = units_of_classes(y[:, column], table.persons).to_dict()
        if len(persons) < 2:
            only = f"only the class {head.decode(next(iter(persons)))!r}" if persons else "no label at all"
            yield Finding(WARNING, "nothing to learn", f"Head {head.name!r} has {only}; add labels or leave it out.")
            continue
        for code, name in enumerate(head.classes):
            yield from _rare(f"{head.name} {name!r}", persons.get(code, 0), folds)
    if strata == JOINT and len(table.heads) > 1:
        for code, n in units_of_classes(table.heads.joint(y), table.persons).items():
            yield from _rare(f"joint {table.heads.joint_name(code)!r}", n, folds)


def _rare(name: str, persons: int, folds: int) -> Iterator[Finding]:
    if persons == 0:
        yield Finding(WARNING, "empty class", f"Class {name} has no photo; it can be neither learnt nor scored.")
    elif persons < folds:
        detail = f"Class {name} has {count(persons, 'person')} for {folds} folds, so some validate none of it; "
        yield Finding(WARNING, "rare class", f"{detail}add persons or take fewer folds.")


def _own_labels(table: Table) -> Iterator[Finding]:
    """Persons whose photos disagree on what is a person's own, such as gender."""
    for head in table.heads.names:
        labelled = table.frame[table.frame[head] != ""]
        labels = labelled.groupby("person", sort=False)[head]
        several = int((labels.size() > 1).sum())
        torn = labels.nunique().loc[lambda n: n > 1].index
        if len(torn) > max(several >= _FEW_PERSONS, _DISAGREE * several):
            continue
        for person in torn:
            own = labelled[labelled["person"] == person]
            usual = own[head].value_counts().index[0]
            rest = own[own[head] != usual]
            paths = rest["path"].tolist()
            detail = (
                f"{head} is {' or '.join(rest[head].unique())} in {count(len(rest), 'photo')} of person {person} and "
                f"{usual} in {len(own) - len(rest):,}; correct the table."
            )
            yield Finding(WARNING, "contradicting labels", detail, paths[0], person, "; ".join(paths[1:]))


def _contest_folders(table: Table) -> Iterator[Finding]:
    """Persons whose folder's name, such as 000001_female_Asian_45, contradicts the table or another folder."""
    matches = {person: _CONTEST_FOLDER.fullmatch(str(person)) for person in dict.fromkeys(table.persons)}
    if not all(matches.values()) or not {"gender", "age"} <= set(table.heads.names):
        return
    names = pd.DataFrame([m.groups() for m in matches.values() if m], columns=["id", "gender", "age"], index=[*matches])
    rows = table.frame.drop_duplicates("person").set_index("person")
    for person, name in names.iterrows():
        row = rows.loc[person]
        age = f"{row['age_value']:g}" if pd.notna(row.get("age_value")) else ""
        for what, said, listed in (("gender", name["gender"], row["gender"]), ("age", f"{int(name['age'])}", age)):
            if listed and listed != said:
                detail = f"The folder's name says {what} {said}, the table {listed}; one of them is wrong."
                yield Finding(WARNING, "contradicting labels", detail, "", str(person))
    for number, same in names.groupby("id", sort=False):
        for what in ("gender", "age"):
            if same[what].nunique() > 1:
                both = " and ".join(same[what].unique())
                detail = f"Id {number} stands for folders of {what} {both}; are they one person?"
                yield Finding(WARNING, "contradicting ids", detail, "", str(same.index[0]), "; ".join(same.index[1:]))
