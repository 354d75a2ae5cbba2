"""What is wrong with a data set, all of it at once: photos, copies across persons, classes, labels."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.config import Config
from fastmask.data.augment import Augment, augmentations, check_fit, effective_pipelines
from fastmask.data.folds import read_folds
from fastmask.data.photo import in_threads, read_photo
from fastmask.data.readers import read_data
from fastmask.data.table import Table
from fastmask.heads import JOINT
from fastmask.preparation.check_labels import check_labels
from fastmask.preparation.duplicates import SAME, NearPair, exact_groups, likeness, near_pairs, shrink, signature
from fastmask.preparation.findings import ERROR, WARNING, Finding, order
from fastmask.system.errors import DataError, FastmaskError
from fastmask.system.terminal import count, listed

TINY = 32
# what a photo's width over height may differ from the commonest by, and from how many odd ones on there is no commonest
_SHAPE_FACTOR, _MIXED = 1.2, 0.2
# as many pairs of persons, the most alike, are compared in full
_MOST_CANDIDATES = 2_000
# grey levels that a photo of one colour may still span when it is made small
_BLANK_RANGE = 3
_LEAK = "the network would be validated on what it was trained on; put them under one person or remove all but one."

Size = tuple[int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Look:
    """What is kept of a photo: its (height, width), a digest of its pixels, its signature, whether it is one colour."""

    size: Size
    digest: bytes
    signature: np.ndarray
    blank: bool


def check_data(
    config: Config, progress: Progress | None = None, log: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """All that is wrong with the data that a configuration names, its table included, errors first.

    Raises FastmaskError where there is no table to look at.
    """
    faults: list[DataError] = []
    table = read_data(config, faults.append, log)
    findings = [Finding(ERROR, "bad table", str(fault)) for fault in faults]
    folds = config.folds
    if config.folds_file is not None:
        try:
            folds = int(read_folds(table, config.folds_file, config.group).max()) + 1
        except FastmaskError as error:
            findings.append(Finding(ERROR, "bad folds", str(error)))
    if len(table):
        train, valid = augmentations(effective_pipelines(config))
        findings += check_table(
            table,
            folds=folds,
            stratify=config.stratify,
            group=config.group,
            dealt=config.folds_file is not None,
            augments={"the training pipeline": train, "the validation pipeline": valid},
            progress=progress,
        )
    return sorted(findings, key=order)


def check_table(
    table: Table,
    *,
    folds: int = 5,
    stratify: str | None = None,
    group: str = "person",
    dealt: bool = False,
    augments: Mapping[str, Augment] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[Finding]:
    """All that is wrong with the photos and labels of `table`, errors first.

    Decodes every photo once. `dealt` says that the folds are given, so that whether photos can be dealt into them is no
    question. `augments` are the pipelines that every photo must fit, by the words for them, such as
    {"the training pipeline": ...}; `progress(done, total)` is called after each photo. Raises UsageError where there is
    no head `stratify`.
    """
    strata = stratify or table.stratify
    if strata != JOINT:
        table.heads.position(strata)
    seen = look_at_photos([table.photo(row) for row in range(len(table))], progress, workers)
    looks = {row: look for row, look in enumerate(seen) if isinstance(look, Look)}
    sizes = {row: look.size for row, look in looks.items()}
    unfit = list(_unfit(table, sizes, augments)) if augments else []
    findings = [
        *_unreadable(table, seen),
        *unfit,
        *_tiny(table, sizes, {finding.photo for finding in unfit}),
        *_odd_shapes(table, sizes),
        *_blank(table, looks),
        *_copies(table, {row: look for row, look in looks.items() if not look.blank}, workers),
        *check_labels(table, folds, strata, group, dealt),
    ]
    return sorted(findings, key=order)


def look_at_photos(
    paths: Sequence[Path], progress: Progress | None = None, workers: int | None = None
) -> list[Look | DataError]:
    """Decode every photo once, in threads, and keep 5 kB of each, or the error where one cannot be read."""
    seen: list[Look | DataError] = []
    for look in in_threads(_look, paths, workers):
        seen.append(look)
        if progress:
            progress(len(seen), len(paths))
    return seen


def _look(path: Path) -> Look | DataError:
    try:
        photo = read_photo(path)
    except DataError as error:
        return error
    size = (photo.shape[0], photo.shape[1])
    digest = hashlib.blake2b(photo.tobytes(), digest_size=16, person=b"%d %d" % size).digest()
    small = shrink(photo)
    return Look(size, digest, signature(small), bool(np.ptp(small, axis=(0, 1)).max() <= _BLANK_RANGE))


def _of_photo(table: Table, row: int, level: str, kind: str, detail: str, others: Iterable[int] = ()) -> Finding:
    path, person = table.frame["path"], table.frame["person"]
    return Finding(level, kind, detail, path.iat[row], person.iat[row], "; ".join(path.iat[i] for i in others))


def _unreadable(table: Table, seen: Sequence[Look | DataError]) -> Iterator[Finding]:
    for row, look in enumerate(seen):
        if isinstance(look, DataError):
            yield _of_photo(table, row, ERROR, "unreadable", _sentence(look, table.photo(row)))


def _sentence(error: DataError, path: Path) -> str:
    return str(error).replace(str(path), "The photo", 1)


def _unfit(table: Table, sizes: Mapping[int, Size], augments: Mapping[str, Augment]) -> Iterator[Finding]:
    """Photos that a pipeline cannot take, and those that come out in another size than the rest."""
    fit = {}
    for size, rows in _rows_by(sizes).items():
        path = table.photo(rows[0])
        fault = _misfit(augments, [size], [path])
        if fault is None:
            fit[size] = path
            continue
        detail = _sentence(fault, path)
        # what most photos share is one fault, of the settings
        if len(rows) > max(10, len(sizes) // 2):
            detail, rows = f"{detail} So it is with {len(rows):,} of {len(sizes):,} photos.", rows[:1]
        yield from (_of_photo(table, row, ERROR, "does not fit", detail) for row in rows)
    if fit and (fault := _misfit(augments, list(fit), list(fit.values()))):
        yield Finding(ERROR, "sizes differ", str(fault))


def _misfit(augments: Mapping[str, Augment], sizes: Sequence[Size], paths: Sequence[Path]) -> DataError | None:
    try:
        check_fit({what: (augment, sizes) for what, augment in augments.items()}, paths)
    except DataError as error:
        return error
    return None


def _rows_by(keys: Mapping[int, Hashable]) -> dict[Any, list[int]]:
    rows = defaultdict(list)
    for row, key in keys.items():
        rows[key].append(row)
    return rows


def _words(size: Size) -> str:
    return f"{size[0]} high and {size[1]} wide"


def _tiny(table: Table, sizes: Mapping[int, Size], told: set[str]) -> Iterator[Finding]:
    for row, size in sizes.items():
        if min(size) < TINY and table.frame["path"].iat[row] not in told:
            detail = f"The photo is {_words(size)}, too small to show a face; find the original or remove its row."
            yield _of_photo(table, row, WARNING, "tiny", detail)


def _odd_shapes(table: Table, sizes: Mapping[int, Size]) -> Iterator[Finding]:
    if not sizes:
        return
    slants = {row: math.log(height / width) for row, (height, width) in sizes.items()}
    usual = Counter(round(slant, 2) for slant in slants.values()).most_common(1)[0][0]
    odd = [row for row, slant in slants.items() if abs(slant - usual) > math.log(_SHAPE_FACTOR)]
    if len(odd) > _MIXED * len(sizes):
        return
    most = _words(Counter(sizes.values()).most_common(1)[0][0])
    for row in odd:
        detail = f"The photo is {_words(sizes[row])}, most are {most}: turn it, crop it, or see what it shows."
        yield _of_photo(table, row, WARNING, "odd shape", detail)


def _blank(table: Table, looks: Mapping[int, Look]) -> Iterator[Finding]:
    for row, look in looks.items():
        if look.blank:
            detail = "The photo is all one colour; replace it or remove its row."
            yield _of_photo(table, row, WARNING, "blank", detail)


def _copies(table: Table, looks: Mapping[int, Look], workers: int | None) -> Iterator[Finding]:
    if not looks:
        return
    rows, digests = np.array(list(looks)), [look.digest for look in looks.values()]
    groups = [rows[group].tolist() for group in exact_groups(digests)]
    yield from _exact_copies(table, groups)
    yield from _copies_at_odds(table, groups)
    signatures = np.stack([look.signature for look in looks.values()])
    pairs = near_pairs(signatures, table.persons[rows], digests)
    if len(pairs) > _MOST_CANDIDATES:
        detail = f"{len(pairs):,} pairs of persons have photos alike; only the {_MOST_CANDIDATES:,} most are compared."
        yield Finding(WARNING, "too many alike", detail)
    pairs = pairs[:_MOST_CANDIDATES]
    pairs = [pair._replace(one=int(rows[pair.one]), other=int(rows[pair.other])) for pair in pairs]
    likenesses = in_threads(partial(_likeness, table), pairs, workers)
    yield from (_near_copy(table, pair) for pair, share in zip(pairs, likenesses, strict=True) if share >= SAME)


def _likeness(table: Table, pair: NearPair) -> float:
    one, other = read_photo(table.photo(pair.one)), read_photo(table.photo(pair.other))
    return likeness(one, np.ascontiguousarray(other[:, ::-1]) if pair.mirrored else other)


def _near_copy(table: Table, pair: NearPair) -> Finding:
    path, person = table.frame["path"].iat[pair.other], table.persons[pair.other]
    more = f", with {count(pair.pairs - 1, 'more pair')} nearly as alike" if pair.pairs > 1 else ""
    mirrored = " mirrored" if pair.mirrored else ""
    detail = f"The same picture{mirrored}, in other pixels, as {path} of person {person}{more}: {_LEAK}"
    return _of_photo(table, pair.one, WARNING, "near duplicate", detail, [pair.other])


def _exact_copies(table: Table, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """One finding for each set of persons that share photos, naming all of these."""
    shared = defaultdict(list)
    for group in groups:
        shared[tuple(dict.fromkeys(table.persons[group]))].append(group)
    for persons, sets in shared.items():
        if len(persons) > 1:
            what = f"{count(len(sets), 'photo')} the same to the pixel as {'one' if len(sets) == 1 else 'those'}"
            detail = f"{what} of {listed(persons[1:], 'person')}: {_LEAK}"
            yield _of_photo(table, sets[0][0], WARNING, "duplicate", detail, [i for s in sets for i in s][1:])


def _copies_at_odds(table: Table, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """One finding for each head and set of persons where one picture stands under two labels."""
    at_odds: dict[Any, list[int]] = defaultdict(list)
    for group in groups:
        for head in table.heads.names:
            labels = _known(table.frame[head].iloc[group])
            if len(labels) > 1:
                at_odds[head, tuple(labels), frozenset(table.persons[group])].extend(group)
    for (head, labels, _), rows in at_odds.items():
        detail = f"One picture, to the pixel, is {head} {' and '.join(labels)}; correct the table or remove its rows."
        yield _of_photo(table, rows[0], WARNING, "contradicting labels", detail, rows[1:])


def _known(labels: pd.Series) -> list[str]:
    return [str(label) for label in labels.unique() if label != ""]
