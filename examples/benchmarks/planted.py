"""How many of the labels that were made wrong on purpose stand first among a run's suspicious ones.

python examples/benchmarks/planted.py --plant DATA FILE    writes a table of wrong labels, always the same
fastmask fit --data DATA --fixes FILE --out RUN            trains on them
python examples/benchmarks/planted.py RUN FILE [FIRST]     counts them among the FIRST (50) of the ranking

Planted in a contest's photos are two in a hundred persons' gender, and two in a hundred photos' mask: two photos of one
person change their labels. A person's error counts if the person was planted, a photo's if the photo was. A label that
was wrong already counts as a miss.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.api import Run
from fastmask.data.contest import read_contest
from fastmask.evaluation.label_errors import LabelError, find_label_errors
from fastmask.system.files import read_strings, write_csv

SHARE, SEED = 0.02, 7
OTHER = {"male": "female", "female": "male"}
Row = tuple[str, str, str, str]


def swapped_genders(frame: pd.DataFrame, rng: np.random.Generator) -> Iterator[Row]:
    gender = frame.groupby("person", sort=False)["gender"].first()
    for person in rng.choice(gender.index, round(SHARE * len(gender)), replace=False):
        yield person, "", "gender", OTHER[gender[person]]


def swapped_masks(frame: pd.DataFrame, rng: np.random.Generator) -> Iterator[Row]:
    """Two photos of a person whose labels differ get each other's."""
    photos_of = dict(list(frame.groupby("person", sort=False)))
    for person in rng.choice([*photos_of], round(SHARE * len(frame) / 2), replace=False):
        photos = photos_of[person]
        one, other = rng.choice(photos["mask"].unique(), 2, replace=False)
        for old, new in ((one, other), (other, one)):
            yield "", rng.choice(photos["path"][photos["mask"] == old]), "mask", new


def plant(data: str, file: str) -> None:
    frame, rng = read_contest(data).frame, np.random.default_rng(SEED)
    rows = [*swapped_genders(frame, rng), *swapped_masks(frame, rng)]
    write_csv(file, pd.DataFrame(rows, columns=["person", "path", "column", "value"]))
    print(f"{file}: {len(rows)} wrong labels")


def is_planted(error: LabelError, planted: set[tuple[str, str]]) -> bool:
    names = [error.person] if error.whole else error.paths
    return any((error.head, name) in planted for name in names)


def line(name: str, errors: Sequence[LabelError], planted: set[tuple[str, str]], first: int) -> str:
    hits = [is_planted(error, planted) for error in errors]
    n = len(hits[:first])
    share = f"{sum(hits[:first]) / n:6.0%} of the first {n:3}" if n else f"{'':23}"
    return f"{name:10} {len(planted):7} {len(hits):10} {sum(hits):7}   {share}"


def find(run: str, file: str, first: str = "50") -> None:
    fixes, opened = read_strings(Path(file), ("person", "path", "column")), Run.load(run)
    # a run may have finished some of its folds only
    judged = {*opened.oof["path"], *opened.oof["person"]}
    planted = {(fix["column"], fix["path"] or fix["person"]) for _, fix in fixes.iterrows()}
    planted = {(head, name) for head, name in planted if name in judged}
    errors = find_label_errors(opened)
    print(f"{'':10} {'planted':>7} {'suspicious':>10} {'found':>7}   planted among the first")
    for name in opened.heads.names:
        mine = {row for row in planted if row[0] == name}
        print(line(name, [e for e in errors if e.head == name], mine, int(first)))
    print(line("all heads", errors, planted, int(first)))


if __name__ == "__main__":
    plant(*sys.argv[2:]) if sys.argv[1] == "--plant" else find(*sys.argv[1:])
