"""Check: everything that is wrong with a data set: unreadable photos, copies across persons, rare classes, labels."""

from __future__ import annotations

import hashlib
import math
import shutil
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.config import Config
from fastmask.data.augment import Augment, build_augmentations, check_fit
from fastmask.data.contest import PERSON_FOLDER
from fastmask.data.folds import assign_folds, count_units, fixed_folds, unit_of
from fastmask.data.folds_file import read_folds
from fastmask.data.groups import describe_separated, find_trained_copies, join_identical
from fastmask.data.photo import decode_named, has_more_pages, map_in_threads, read_bytes, read_photo
from fastmask.data.pipelines import effective_pipelines, pick_fit
from fastmask.data.readers import read_data
from fastmask.data.table import LEFT_OUT, Table
from fastmask.heads import JOINT
from fastmask.preparation.duplicates import NearPair, exact_groups, shrink, signature
from fastmask.preparation.near_copies import MOST_CANDIDATES, find_near_copies, remember_near_copies
from fastmask.preparation.other_versions import find_version_faults
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, MissingPhotoError, UsageError, one_line
from fastmask.system.terminal import Progress
from fastmask.system.text import count, join_plural

ERROR, WARNING = "error", "warning"
COLUMNS = ("level", "kind", "photo", "person", "other", "detail")
TINY = 32
# the largest factor from the most common height / width, and the share of odd photos above which none is common
_SHAPE_FACTOR, _MIXED = 1.2, 0.2
# grey levels that a photo of one colour may still span once it is shrunk
_BLANK_RANGE = 3
# the brightest pixel of values of 14 bits in a file of 16
_DARK = 64
# a head is an attribute of the person if at most this share of persons, or one of ten or more, have two labels
_DISAGREE, _FEW_PERSONS = 0.05, 10
_LEAK = "the network would be validated on what it was trained on; put them under one person or remove all but one."

Size = tuple[int, int]
# called with the groups, the digests and the near copies of the photos
Remember = Callable[[np.ndarray, Sequence[str], Sequence[tuple[str, str]]], None]


@dataclass(frozen=True)
class Finding:
    """One row of the report: `level` "error" (training would fail) or "warning" (its result suffers).

    `photo` is a path of the table, `other` more of them, separated by "; "; both, and `person`, may be "".

    >>> finding = fm.Finding("warning", "small", "32 x 32 pixels", photo="000001/mask1.jpg")
    >>> finding.level, finding.photo
    ('warning', '000001/mask1.jpg')
    """

    level: str
    kind: str
    detail: str
    photo: str = ""
    person: str = ""
    other: str = ""


def findings_frame(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row per finding, errors first: level, kind, photo, person, other, detail."""
    return pd.DataFrame([vars(f) for f in _sort_findings(findings)], columns=list(COLUMNS))


def format_findings(findings: Iterable[Finding], width: int | None = None, rows: int = 10) -> str:
    """The findings as a table for the terminal, `width` columns wide: how many of each kind, then `rows` of each."""
    kinds = [(key, list(group)) for key, group in groupby(_sort_findings(findings), lambda f: (f.level, f.kind))]
    if not kinds:
        return "Nothing wrong found."
    width = max(40, width or shutil.get_terminal_size((100, 24)).columns)
    counts = [f"{level:8} {kind:24} {len(group):7,}" for (level, kind), group in kinds]
    return "\n".join([*counts, *(line for key, group in kinds for line in _format_section(key, group, width, rows))])


def _format_section(key: tuple[str, str], group: Sequence[Finding], width: int, rows: int) -> Iterator[str]:
    yield from ("", ": ".join(key))
    subjects = [f.photo or f.person for f in group[:rows]]
    left = min(width // 2, max(map(len, subjects)))
    for subject, finding in zip(subjects, group, strict=False):
        texts = ((subject, max(left, 1)), (finding.detail, width - left - 4))
        cells = (textwrap.wrap(text, size, break_on_hyphens=False) for text, size in texts)
        yield from (f"  {a:{left}}  {b}".rstrip() for a, b in zip_longest(*cells, fillvalue=""))
    if len(group) > rows:
        yield f"  ... and {len(group) - rows:,} more; the CSV of --out has all"


def _sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by kind."""
    return sorted(findings, key=lambda f: (f.level != ERROR, f.kind, f.photo, f.person))


def check_data(
    config: Config, progress: Progress | None = None, log: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Everything that is wrong with the data of a configuration, its table included, errors first.

    Raises FastmaskError where the table cannot be read at all.

    >>> findings = fm.check_data(fm.Config(data="data"))
    >>> [finding.detail for finding in findings if finding.level == "error"]
    []
    """
    faults: list[DataError] = []
    table = read_data(config, faults.append, log)
    findings = list(_find_faults(faults))
    assigned = None if "folds" in config.model_fields_set else fixed_folds(table)
    if config.folds_file is not None:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", FastmaskWarning)
            try:
                assigned = read_folds(table, config.folds_file, config.group)
            except FastmaskError as error:
                findings.append(Finding(ERROR, "bad folds", str(error)))
        findings += [Finding(WARNING, "folds", str(each.message)) for each in warned]
    if len(table):
        fitted = config.model_copy(update={"fit": pick_fit(config, table)})
        train, valid = build_augmentations(effective_pipelines(fitted))
        findings += check_table(
            table,
            folds=config.folds if assigned is None else int(assigned.max()) + 1,
            stratify=config.stratify,
            group=config.group,
            has_folds=config.folds_file is not None or assigned is not None,
            assigned=assigned,
            augments={"the training pipeline": train, "the validation pipeline": valid},
            progress=progress,
            remember=partial(_keep_near_copies, config, log) if config.group == "person" else None,
        )
        findings += [
            Finding(ERROR if fault.is_error else WARNING, "other versions", fault.detail, fault.photo)
            for fault in find_version_faults(table, fitted.model_copy(update={"boxes": None}))
        ]
    return _sort_findings(findings)


def _keep_near_copies(
    config: Config,
    log: Callable[[str], None],
    groups: np.ndarray,
    digests: Sequence[str],
    found: Sequence[tuple[str, str]],
) -> None:
    """Keep the near copies for the runs on these photos."""
    try:
        remember_near_copies(groups, digests, found, config.cache_dir)
    except (OSError, UsageError) as error:
        log(f"The near copies are not kept for a run: {one_line(error)}")


def _find_faults(faults: Sequence[DataError]) -> Iterator[Finding]:
    """A finding for each fault of the table, and one for all photos that are missing."""
    yield from (Finding(ERROR, "bad table", str(each)) for each in faults if not isinstance(each, MissingPhotoError))
    missing = [each for each in faults if isinstance(each, MissingPhotoError)]
    if missing:
        photos = [each.photo for each in missing]
        total = count(len(missing), "photo")
        detail = f"Missing: {total}, which fit --on-bad-photo skip leaves out. The first: {missing[0]}"
        yield Finding(ERROR, "missing photos", detail, photos[0], other="; ".join(photos[1:]))


def check_table(
    table: Table,
    *,
    folds: int = 5,
    stratify: str = JOINT,
    group: str = "person",
    has_folds: bool = False,
    assigned: np.ndarray | None = None,
    augments: Mapping[str, Augment] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    remember: Remember | None = None,
) -> list[Finding]:
    """Everything that is wrong with the photos and labels of `table`, errors first; decodes every photo once.

    `has_folds` skips the check whether photos can be split into `folds`; `assigned` (N,) are the folds that a file has.
    `augments` are the pipelines that every photo must fit, by their names in messages. `progress(done, total)` is
    called after each photo. `remember` is called with the near copies, as `remember_near_copies` takes them. Raises
    UsageError where there is no head `stratify`.
    """
    if stratify != JOINT:
        table.heads.position(stratify)
    seen = fingerprint_photos([table.photo(row) for row in range(len(table))], progress, workers)
    fingerprints = {row: each for row, each in enumerate(seen) if isinstance(each, Fingerprint)}
    files = [each.file if isinstance(each, Fingerprint) else None for each in seen]
    joined = join_identical(table, files) if group == "person" else table
    sizes = {row: each.size for row, each in fingerprints.items()}
    unfit = list(_find_unfit(table, sizes, augments)) if augments else []
    findings = [
        *_find_unreadable(table, seen),
        *unfit,
        *_find_tiny(table, sizes, {finding.photo for finding in unfit}),
        *_find_odd_shapes(table, sizes),
        *_find_blank(table, fingerprints),
        *_find_dark(table, fingerprints),
        *_find_pages(table, fingerprints),
        *_find_copies(table, fingerprints, workers, remember),
        *([] if has_folds else _check_fold_count(joined, folds, stratify, group)),
        *([] if assigned is None or group != "person" else _find_separated(table, assigned, files)),
        *_check_classes(table, folds, stratify),
        *_find_contradicting_labels(table),
        *_check_contest_folders(table),
    ]
    return _sort_findings(findings)


@dataclass(frozen=True)
class Fingerprint:
    """The data kept per photo: (height, width), digests of file and pixels, its signature, whether of one colour.

    `brightest` is the highest value of a pixel, of 255; `has_more_pages` that of a TIFF only the first is read.
    """

    size: Size
    file: str
    digest: bytes
    signature: np.ndarray
    blank: bool
    brightest: int
    has_more_pages: bool = False


def fingerprint_photos(
    paths: Sequence[Path], progress: Progress | None = None, workers: int | None = None
) -> list[Fingerprint | DataError]:
    """Decode every photo once, in threads, and keep 5 kB of each, or the error where one cannot be read."""
    seen: list[Fingerprint | DataError] = []
    for each in map_in_threads(_fingerprint, paths, workers):
        seen.append(each)
        if progress:
            progress(len(seen), len(paths))
    return seen


def _fingerprint(path: Path) -> Fingerprint | DataError:
    try:
        data = read_bytes(path)
        photo = decode_named(data, path)
    except DataError as error:
        return error
    size = (photo.shape[0], photo.shape[1])
    digest = hashlib.blake2b(photo.tobytes(), digest_size=16, person=b"%d %d" % size).digest()
    small = shrink(photo)
    blank = bool(np.ptp(small, axis=(0, 1)).max() <= _BLANK_RANGE)
    file = hashlib.sha256(data).hexdigest()
    return Fingerprint(size, file, digest, signature(small), blank, int(photo.max()), has_more_pages(data))


def _photo_finding(table: Table, row: int, level: str, kind: str, detail: str, others: Iterable[int] = ()) -> Finding:
    path, person = table.frame["path"], table.frame["person"]
    return Finding(level, kind, detail, path.iat[row], person.iat[row], "; ".join(path.iat[i] for i in others))


def _find_unreadable(table: Table, seen: Sequence[Fingerprint | DataError]) -> Iterator[Finding]:
    for row, each in enumerate(seen):
        if isinstance(each, DataError):
            yield _photo_finding(table, row, ERROR, "unreadable", _format_error(each, table.photo(row)))


def _format_error(error: DataError, path: Path) -> str:
    return str(error).replace(str(path), "The photo", 1)


def _find_unfit(table: Table, sizes: Mapping[int, Size], augments: Mapping[str, Augment]) -> Iterator[Finding]:
    """Photos that do not fit a pipeline, and those that have another size than the rest after it."""
    fit = {}
    for size, rows in _rows_by(sizes).items():
        path = table.photo(rows[0])
        fault = _find_misfit(augments, [size], [path])
        if fault is None:
            fit[size] = path
            continue
        detail = _format_error(fault, path)
        # a fault of most photos is one of the settings
        if len(rows) > max(10, len(sizes) // 2):
            detail, rows = f"{detail} The same holds for {len(rows):,} of {len(sizes):,} photos.", rows[:1]
        yield from (_photo_finding(table, row, ERROR, "does not fit", detail) for row in rows)
    if fit and (fault := _find_misfit(augments, list(fit), list(fit.values()))):
        yield Finding(ERROR, "sizes differ", str(fault))


def _find_misfit(augments: Mapping[str, Augment], sizes: Sequence[Size], paths: Sequence[Path]) -> DataError | None:
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


def _format_size(size: Size) -> str:
    return f"{size[0]} high and {size[1]} wide"


def _find_tiny(table: Table, sizes: Mapping[int, Size], reported: set[str]) -> Iterator[Finding]:
    for row, size in sizes.items():
        if min(size) < TINY and table.frame["path"].iat[row] not in reported:
            detail = f"The photo is {_format_size(size)}, too small to show much; find the original or remove its row."
            yield _photo_finding(table, row, WARNING, "tiny", detail)


def _find_odd_shapes(table: Table, sizes: Mapping[int, Size]) -> Iterator[Finding]:
    if not sizes:
        return
    slants = {row: math.log(height / width) for row, (height, width) in sizes.items()}
    usual = Counter(round(slant, 2) for slant in slants.values()).most_common(1)[0][0]
    odd = [row for row, slant in slants.items() if abs(slant - usual) > math.log(_SHAPE_FACTOR)]
    if len(odd) > _MIXED * len(sizes):
        return
    most = _format_size(Counter(sizes.values()).most_common(1)[0][0])
    for row in odd:
        detail = (
            f"The photo is {_format_size(sizes[row])}, most are {most}; rotate or crop it, or look at what it shows."
        )
        yield _photo_finding(table, row, WARNING, "odd shape", detail)


def _find_blank(table: Table, fingerprints: Mapping[int, Fingerprint]) -> Iterator[Finding]:
    detail = "The photo is all one colour; replace it or remove its row."
    return (_photo_finding(table, row, WARNING, "blank", detail) for row, each in fingerprints.items() if each.blank)


def _find_dark(table: Table, fingerprints: Mapping[int, Fingerprint]) -> Iterator[Finding]:
    for row, each in fingerprints.items():
        if not each.blank and each.brightest <= _DARK:
            detail = (
                f"Its brightest pixel is {each.brightest} of 255; if its values have fewer bits than its file, such as "
                "14 of 16, scale them."
            )
            yield _photo_finding(table, row, WARNING, "dark", detail)


def _find_pages(table: Table, fingerprints: Mapping[int, Fingerprint]) -> Iterator[Finding]:
    detail = "It has several pages, and only the first is read; save each of the others as a photo."
    rows = (row for row, each in fingerprints.items() if each.has_more_pages)
    return (_photo_finding(table, row, WARNING, "several pages", detail) for row in rows)


def _find_copies(
    table: Table, fingerprints: Mapping[int, Fingerprint], workers: int | None, remember: Remember | None
) -> Iterator[Finding]:
    shown = {row: each for row, each in fingerprints.items() if not each.blank}
    if not shown:
        return
    rows, digests = np.array(list(shown)), [each.digest for each in shown.values()]
    groups = [rows[group].tolist() for group in exact_groups(digests)]
    yield from _find_exact_copies(table, groups)
    yield from _find_contradicting_copies(table, groups)
    signatures = np.stack([each.signature for each in shown.values()])
    photo_of = partial(_read_row, table, rows)
    found = find_near_copies(signatures, table.persons[rows], digests, photo_of, workers)
    if found.candidates > MOST_CANDIDATES:
        detail = (
            f"{found.candidates:,} pairs of persons have similar photos; the first {MOST_CANDIDATES:,} are checked."
        )
        yield Finding(WARNING, "too many alike", detail)
    pairs = [pair._replace(one=int(rows[pair.one]), other=int(rows[pair.other])) for pair in found.pairs]
    yield from (_describe_near_copy(table, pair) for pair in pairs)
    if remember is not None:
        same_pixels = [(group[0], row) for group in groups for row in group[1:]]
        _remember(table, fingerprints, [*same_pixels, *((pair.one, pair.other) for pair in pairs)], remember)


def _remember(
    table: Table, fingerprints: Mapping[int, Fingerprint], pairs: Sequence[tuple[int, int]], remember: Remember
) -> None:
    """Call `remember` with the pairs of rows of two persons whose files are not identical."""
    joined = join_identical(table.select(list(fingerprints)), [each.file for each in fingerprints.values()])
    group_of = dict(zip(fingerprints, joined.groups, strict=True))
    apart = [(fingerprints[i].file, fingerprints[j].file) for i, j in pairs if group_of[i] != group_of[j]]
    remember(joined.groups, [each.file for each in fingerprints.values()], apart)


def _read_row(table: Table, rows: np.ndarray, place: int) -> np.ndarray:
    return read_photo(table.photo(int(rows[place])))


def _describe_near_copy(table: Table, pair: NearPair) -> Finding:
    path, person = table.frame["path"].iat[pair.other], table.persons[pair.other]
    more = f", with {count(pair.pairs - 1, 'more pair')} nearly as similar" if pair.pairs > 1 else ""
    mirrored = " mirrored" if pair.mirrored else ""
    detail = f"The same picture{mirrored}, with other pixels, as {path} of person {person}{more}: {_LEAK}"
    return _photo_finding(table, pair.one, WARNING, "near duplicate", detail, [pair.other])


def _find_exact_copies(table: Table, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """One finding for each set of persons that share photos, naming all of these."""
    shared = defaultdict(list)
    for group in groups:
        shared[tuple(dict.fromkeys(table.persons[group]))].append(group)
    for persons, sets in shared.items():
        if len(persons) > 1:
            what = f"{count(len(sets), 'photo')} with the same pixels as {'one' if len(sets) == 1 else 'those'}"
            detail = f"{what} of {join_plural(persons[1:], 'person')}: if the files differ, {_LEAK}"
            yield _photo_finding(table, sets[0][0], WARNING, "duplicate", detail, [i for s in sets for i in s][1:])


def _find_contradicting_copies(table: Table, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """One finding for each head and set of persons where identical pictures have two labels."""
    at_odds: dict[Any, list[int]] = defaultdict(list)
    for group in groups:
        for head in table.heads.names:
            labels = [str(label) for label in table.frame[head].iloc[group].unique() if label != ""]
            if len(labels) > 1:
                at_odds[head, tuple(labels), frozenset(table.persons[group])].extend(group)
    for (head, labels, _), rows in at_odds.items():
        detail = f"Photos with the same pixels are {head} {' and '.join(labels)}; correct the table or remove the rows."
        yield _photo_finding(table, rows[0], WARNING, "contradicting labels", detail, rows[1:])


def _check_fold_count(table: Table, folds: int, stratify: str, group: str) -> Iterator[Finding]:
    """The error that training would raise if it cannot split the photos into folds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FastmaskWarning)
            assign_folds(table, folds, stratify, group)
    except UsageError as error:
        if folds < 2:
            raise
        yield Finding(ERROR, "too few persons", str(error))


def _find_separated(table: Table, assigned: np.ndarray, files: Sequence[str | None]) -> Iterator[Finding]:
    trained = [None if fold == LEFT_OUT else file for fold, file in zip(assigned, files, strict=True)]
    try:
        copies = find_trained_copies(table, assigned, trained)
    except UsageError as error:
        yield Finding(ERROR, "bad folds", str(error))
        return
    for row in copies:
        trained[row] = None
        detail = "It is identical to a validated photo, or of the same person, and will not be trained on."
        yield _photo_finding(table, row, WARNING, "trained copy", detail)
    separated = describe_separated(table, assigned, trained)
    if separated:
        detail = f"{separated}; give both persons the same fold, or remove one of the photos."
        yield Finding(ERROR, "bad folds", detail[0].upper() + detail[1:])


def _check_classes(table: Table, folds: int, stratify: str) -> Iterator[Finding]:
    """Classes with fewer persons than folds, and heads without two classes."""
    y = table.train_y
    unit = unit_of(table)
    for column, head in enumerate(table.heads):
        persons = count_units(y[:, column], table.persons).to_dict()
        if len(persons) < 2:
            only = f"only the class {head.decode(next(iter(persons)))!r}" if persons else "no label at all"
            yield Finding(WARNING, "nothing to learn", f"Head {head.name!r} has {only}; add labels or leave it out.")
            continue
        for code, name in enumerate(head.classes):
            yield from _find_rare(f"Class {name!r} of {head.name}", persons.get(code, 0), unit, folds)
    if stratify == JOINT and len(table.heads) > 1:
        for code, n in count_units(table.heads.joint(y), table.persons).items():
            yield from _find_rare(f"Joint class {table.heads.joint_name(code)!r}", n, unit, folds)


def _find_rare(name: str, number: int, unit: str, folds: int) -> Iterator[Finding]:
    """A finding for a class with fewer persons (or photos, the `unit`) than folds."""
    if number == 0:
        yield Finding(WARNING, "empty class", f"{name} has no photo; it can be neither learnt nor scored.")
    elif number < folds:
        detail = f"{name} has {count(number, unit)} for {folds} folds, so some cannot validate it; "
        yield Finding(WARNING, "rare class", f"{detail}add {unit}s or take fewer folds.")


def _find_contradicting_labels(table: Table) -> Iterator[Finding]:
    """Persons with different labels of a head that belongs to the person, such as gender."""
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


def _check_contest_folders(table: Table) -> Iterator[Finding]:
    """Persons with a folder name, such as 000001_female_Asian_45, that contradicts the table or another folder."""
    matches = {person: PERSON_FOLDER.fullmatch(str(person)) for person in dict.fromkeys(table.persons)}
    if not all(matches.values()) or not {"gender", "age"} <= set(table.heads.names):
        return
    names = pd.DataFrame([m.groups() for m in matches.values() if m], columns=["id", "gender", "age"], index=[*matches])
    rows = table.frame.drop_duplicates("person").set_index("person")
    for person, name in names.iterrows():
        row = rows.loc[person]
        age = f"{row['age_value']:g}" if pd.notna(row.get("age_value")) else ""
        for what, said, listed_ in (("gender", name["gender"], row["gender"]), ("age", f"{int(name['age'])}", age)):
            if listed_ and listed_ != said:
                detail = f"The folder name says {what} {said}, the table {listed_}; one of them is wrong."
                yield Finding(WARNING, "contradicting labels", detail, "", str(person))
    for number, same in names.groupby("id", sort=False):
        for what in ("gender", "age"):
            if same[what].nunique() > 1:
                both = " and ".join(same[what].unique())
                detail = f"Id {number} is in the names of folders of {what} {both}; are they one person?"
                yield Finding(WARNING, "contradicting ids", detail, "", str(same.index[0]), "; ".join(same.index[1:]))
