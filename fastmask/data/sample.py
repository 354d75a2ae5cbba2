"""Sample: drawn people in the contest's folder format, to try fastmask without licensed photos."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.data.contest import CONTEST_COLUMNS
from fastmask.data.drawing import STEMS, Person, take_photo
from fastmask.system.errors import UsageError
from fastmask.system.files import cache_home, check_fillable, fill_folder, real, write_csv

GENDERS = ("male", "female")
RACE = "Asian"
# persons of the contest by (gender, age band): the sample keeps their proportions
CONTEST_PERSONS = {(0, 0): 549, (0, 1): 410, (0, 2): 83, (1, 0): 732, (1, 1): 817, (1, 2): 109}
FEWEST_PERSONS, MOST_PERSONS = 6, 999_999  # their names have six digits
SPLITS = {"train": 0, "eval": 1}
# errors of a folder that cannot be written to, however much space is free
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
# increased whenever the drawing changes, so that a cached sample is never an older drawing
VERSION = 1


def write_sample(folder: str | Path, persons: int = 160, seed: int = 0, eval_persons: int | None = None) -> Path:
    """Write `persons` drawn people for training, and others for evaluation, into `folder` in the contest's format.

    The same seed and numbers of persons give the same bytes. `folder` must be new or empty, and is filled only when
    all is drawn. `eval_persons` is a third of `persons` by default. `eval/answers.csv` holds the true classes, which a
    contest keeps secret.

    >>> folder = fm.write_sample("sample", persons=6)
    >>> len(fm.read_contest(folder)), len(pd.read_csv(folder / "eval" / "answers.csv"))
    (42, 14)
    """
    folder = real(folder)
    eval_persons = max(2, persons // 3) if eval_persons is None else eval_persons
    _check(folder, persons, seed, eval_persons)
    with fill_folder(folder, "eval", "train") as drawn:
        _write_train(drawn / "train", people(seed, "train", persons))
        _write_eval(drawn / "eval", people(seed, "eval", eval_persons), seed)
    return folder


def cached_sample(persons: int = 160, seed: int = 0, log: Callable[[str], None] = lambda _: None) -> Path:
    """The sample of `persons` and `seed` in the user's cache folder, drawn at the first call."""
    folder = cache_home() / f"sample{VERSION}-{persons}-{seed}"
    if not (folder / "train").exists():
        log(f"Drawing {persons} persons into {folder}")
        try:
            write_sample(folder, persons, seed)
        except (OSError, UsageError) as error:
            # another process that drew the same sample may have been first
            if (folder / "train").exists():
                return folder
            if isinstance(error, OSError) and error.errno in _UNWRITABLE:
                raise UsageError(
                    f"The sample cannot be written to {folder} ({error.strerror}); set XDG_CACHE_HOME to a folder that "
                    "can be written to."
                ) from error
            raise
    return folder


def people(seed: int, split: str, count: int) -> Iterator[Person]:
    """Deal `count` people for "train" or "eval", in an order that says nothing about them."""
    groups = [group for group, share in shares(count).items() for _ in range(share)]
    order = np.random.default_rng([seed, SPLITS[split], count]).permutation(count)
    for index, place in enumerate(order):
        yield Person((seed, SPLITS[split], index), *groups[place])


def shares(count: int) -> dict[tuple[int, int], int]:
    """Divide `count` persons over gender and age band like the contest, by largest remainder with a floor.

    Rare groups get two persons, if there are enough to go round, so that each can be trained on and validated.
    """
    total = sum(CONTEST_PERSONS.values())
    dealt = {group: count * size // total for group, size in CONTEST_PERSONS.items()}
    by_remainder = sorted(CONTEST_PERSONS, key=lambda group: -(count * CONTEST_PERSONS[group] % total))
    for group in by_remainder[: count - sum(dealt.values())]:
        dealt[group] += 1
    floor = min(2, count // len(dealt))
    while min(dealt.values()) < floor:
        dealt[max(dealt, key=dealt.__getitem__)] -= 1
        dealt[min(dealt, key=dealt.__getitem__)] += 1
    return dealt


def class_of(person: Person, stem: str) -> int:
    """The contest's class, 0 to 17, of the photo of a person that goes by the name of `stem`."""
    mask = {"incorrect_mask": 1, "normal": 2}.get(stem, 0)
    return mask * 6 + person.gender * 3 + person.band


def _check(folder: Path, persons: int, seed: int, eval_persons: int) -> None:
    if persons < FEWEST_PERSONS:
        raise UsageError(f"A sample needs at least {FEWEST_PERSONS} persons, found {persons}.")
    if max(persons, eval_persons) > MOST_PERSONS:
        raise UsageError(f"A sample has at most {MOST_PERSONS} persons, found {max(persons, eval_persons)}.")
    if eval_persons < 1:
        raise UsageError(f"A sample needs at least 1 person for evaluation, found {eval_persons}.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}; expected 0 or more.")
    check_fillable(folder)


def _write_train(folder: Path, persons: Iterable[Person]) -> None:
    rows = []
    for number, person in enumerate(persons, start=1):
        gender = GENDERS[person.gender]
        path = f"{number:06d}_{gender}_{RACE}_{person.age}"
        rows.append((f"{number:06d}", gender, RACE, person.age, path))
        (folder / "images" / path).mkdir(parents=True)
        for stem in STEMS:
            (folder / "images" / path / f"{stem}{person.extension}").write_bytes(take_photo(person, stem))
    write_csv(folder / "train.csv", pd.DataFrame(rows, columns=list(CONTEST_COLUMNS)))


def _write_eval(folder: Path, persons: Iterable[Person], seed: int) -> None:
    answers = []
    (folder / "images").mkdir(parents=True)
    for person in persons:
        for stem in STEMS:
            name = hashlib.sha1(f"{person.key}/{stem}".encode(), usedforsecurity=False).hexdigest() + person.extension
            (folder / "images" / name).write_bytes(take_photo(person, stem))
            answers.append((name, class_of(person, stem)))
    np.random.default_rng([seed, SPLITS["eval"]]).shuffle(answers)
    table = pd.DataFrame(answers, columns=["ImageID", "ans"])
    write_csv(folder / "info.csv", table.assign(ans=0))
    write_csv(folder / "answers.csv", table)
