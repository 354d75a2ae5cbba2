"""Columns: which columns of a table name the photos and the persons, and which are heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fastmask.data.formats import SUFFIXES
from fastmask.data.table import SPLITS
from fastmask.heads import RESERVED
from fastmask.system.errors import DataError, UsageError
from fastmask.system.text import join_some, shorten

# a column with more different values than this, or with more than one per two photos, is a head only if it is named
MOST_CLASSES = 1000
# whole numbers are classes if they are this few, or are all from 0 or 1 to the largest
_FEW_NUMBERS = 10
# and at most this many, unless the column is called class or label
MANY_NUMBERS = 20
# a column of ids with fewer different values than this does not name persons
_FEW_IDS = 5
# words of a class on average, above which a column is free text
_FEW_WORDS = 5

# names of columns as `plain` writes them; of the columns of photos the surest first
PHOTO_COLUMNS = (
    *("path", "filepath", "imagepath", "imgpath", "photopath", "image", "img", "photo", "picture"),
    *("imagefile", "imagefilename", "imagename", "imgname", "photoname", "filename", "file"),
    *("imageid", "imgid", "photoid", "idcode", "id"),
)
_PERSON = {
    *("person", "personid", "subject", "subjectid", "patient", "patientid", "participant", "participantid"),
    *("identity", "individual", "owner", "user", "userid", "group", "groupid", "lesionid", "animalid", "petid"),
}
_SPLIT = re.compile(
    r"split|folds?|kfold|subset|partition|set|dataset|is(train|valid|val|test)(ing|ation)?(image|photo|set)?"
)
_A_SPLIT = "a split, see --folds-file"
# values of a column of splits, among them those of Kaggle's competitions
_SPLIT_VALUES = {*SPLITS, "public", "private", "publictest", "privatetest"}
# columns that are not heads, by what they are
_OTHERS = {
    "dates": {"date", "datetime", "timestamp", "createdat", "updatedat"},
    "text": {"note", "notes", "comment", "comments", "caption", "description", "remark", "remarks", "text", "title"},
    "an origin": {"url", "uri", "link", "license", "licence", "author", "credit", "photographer", "copyright"},
}
# and those of numbers, also by the last word of the name
_OTHER_NUMBERS = {
    "a weight": {"weight", "weights", "sampleweight", "sampleweights"},
    "a score": {"score", "confidence", "conf", "prob", "probability", "logit", "loss"},
    "a size or box": {
        *("x", "y", "w", "h", "x0", "y0", "x1", "y1", "x2", "y2", "xmin", "ymin", "xmax", "ymax", "cx", "cy"),
        *("width", "height", "left", "top", "right", "bottom", "imagewidth", "imageheight"),
    },
}
_ID = {"id", "ids", "uuid", "guid", "index", "idx", "key", "hash", "md5", "sha1", "sha256"}
_CLASS = {"class", "label", "labels", "category", "target", "species", "breed"}
_MEASURED = {
    *("age", "ages", "year", "years", "month", "price", "count", "temperature", "area", "distance", "duration"),
    *("lat", "latitude", "lon", "lng", "longitude", "altitude"),
}
_DATES = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([ T].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2})?"
)
_LIST = re.compile(r"[\[({]?\s*-?\d+(\.\d+)?([\s,;]+-?\d+(\.\d+)?)+\s*[\])}]?")
_BRACKETS = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
_TRUE, _FALSE = {"1", "1.0", "true"}, {"0", "0.0", "false"}
_BANDS = "numbers are classes by bounds, such as heads: {{{name}: {{classes: [<{b:g}, {b:g}+], bounds: [{b:g}]}}}}"


def plain(name: str) -> str:
    """The name of a column in lower case, without blanks and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def find_image_column(table: str, frame: pd.DataFrame) -> str:
    """The column that names the photos: called path, or the only one with names of photos, or with such a header.

    Raises UsageError where there is none or no single one; `table` is the name of the table in its message.
    """
    _check_header(table, list(frame.columns))
    found = [column for column in frame.columns if column == "path"] or _called(frame, "path")
    if len(found) != 1:
        found = [column for column in frame.columns if _holds_photos(frame[column])]
        named = [column for column in found if plain(column) in PHOTO_COLUMNS]
        found = named if len(named) == 1 else found
    if not found:
        found = next((called for name in PHOTO_COLUMNS if (called := _called(frame, name))), [])
    if len(found) != 1:
        what = f"several columns of photos ({', '.join(found)})" if found else "no column of photos"
        raise UsageError(
            f"{table} has {what} among {join_some(list(frame.columns), 30)}; name the one to use with --image-column."
        )
    return found[0]


def find_listed_photos(table: str, frame: pd.DataFrame) -> pd.Series:
    """The cells of the column that names the photos, or of the only one, also where that has no header.

    Raises UsageError as `find_image_column` does.
    """
    name = str(frame.columns[0])
    if len(frame.columns) > 1:
        return frame[find_image_column(table, frame)]
    if not name.lower().endswith(SUFFIXES):
        return frame[name]
    return pd.concat([pd.Series([name], index=[1]), frame[name]]).rename("1")


def _check_header(table: str, columns: Sequence[str]) -> None:
    """Raise UsageError if a table has no header, or no separators that are known."""
    photo = next((column for column in columns if any(ending in column.lower() for ending in SUFFIXES)), None)
    if photo is not None:
        raise UsageError(
            f"{table} has no header: its first line holds the photo {photo!r}; add a line above it, like path,colour."
        )
    if len(columns) == 1:
        raise UsageError(f"{table} has one column, {columns[0]!r}; expected more, separated by commas.")


def _called(frame: pd.DataFrame, name: str) -> list[str]:
    return [column for column in frame.columns if plain(column) == name]


def _holds_photos(cells: pd.Series) -> bool:
    known = cells[cells != ""]
    return len(known) > 0 and known.str.lower().str.endswith(SUFFIXES).mean() > 0.5


def find_person_column(frame: pd.DataFrame) -> str | None:
    """The column that names the persons: person, also in another case; None without one."""
    found = [column for column in frame.columns if column == "person"] or _called(frame, "person")
    return found[0] if len(found) == 1 else None


def suggest_person_column(frame: pd.DataFrame, taken: Collection[str | None]) -> str | None:
    """A column that may name the persons, by its header and because its values repeat; else the ids that do."""
    for column in frame.columns:
        if _names_persons(Column(str(column), frame[column])) and column not in taken and _repeats(frame[column]):
            return str(column)
    ids = [column for column in frame.columns if _is_id(Column(str(column), frame[column])) and column not in taken]
    ids = [column for column in ids if _repeats(frame[column]) and frame[column].nunique() >= _FEW_IDS]
    return str(max(ids, key=lambda column: frame[column].nunique())) if ids else None


def _repeats(cells: pd.Series) -> bool:
    return 1 < cells.nunique() < len(cells)


def _names_persons(column: Column) -> bool:
    # a group of 0 and 1 says whether a photo shows one
    return plain(column.name) in _PERSON and not column.is_binary


def _is_id(column: Column) -> bool:
    return column.words[-1:] != () and column.words[-1] in _ID and not _CLASS & set(column.words)


def find_heads(
    table: str, frame: pd.DataFrame, taken: Collection[str | None]
) -> tuple[dict[str, list[str] | None], str]:
    """The columns to learn, with their classes where these are one-hot columns, and a sentence on the others.

    The sentence is "" where all columns are heads. Raises UsageError where none is.
    """
    columns = [Column(str(name), frame[name]) for name in frame.columns if name and name not in taken]
    against = {column.name: describe_other(column) for column in columns}
    groups = find_one_hot([column for column in columns if not against[column.name]])
    found: dict[str, list[str] | None] = {}
    for column in columns:
        group = next((names for names in groups if column.name in names), None)
        if group is not None:
            found[_name_one_hot(frame, groups.index(group))] = group
        elif not against[column.name]:
            found[column.name] = None
    left = [f"{shorten(name, 40)} ({why})" for name, why in against.items() if why]
    number = next((column for column in columns if against[column.name] == _numbers(column)), None)
    bands = "" if number is None else f"; {_BANDS.format(name=number.name, b=_middle(number))} in --config"
    if not found:
        others = f" (found {join_some(left, 20)}){bands}" if left else ""
        raise UsageError(
            f"{table} has no column that repeats a few values, as a head does{others}; name columns with --heads."
        )
    return found, _describe(table, found, left, bands)


def _describe(table: str, found: dict[str, list[str] | None], left: Sequence[str], bands: str) -> str:
    joined = {name: classes for name, classes in found.items() if classes}
    if not left and not joined:
        return ""
    heads = [f"{name} (the one-hot columns {join_some(of)})" if of else name for name, of in found.items()]
    renamed = "".join(f"; heads: {{NAME: [{', '.join(c)}]}} in --config gives another name" for c in joined.values())
    others = f"; not {join_some(left, 20)}{bands}; --heads names the columns to take" if left else ""
    return f"The heads of {table} are {join_some(heads, 20)}{renamed}{others}."


def _middle(column: Column) -> float:
    """A bound between the smaller and the larger half of a column's numbers, rounded if it still is."""
    numbers = np.asarray(column.numbers)
    rounded = float(f"{np.median(numbers):.2g}")
    return rounded if numbers.min() < rounded <= numbers.max() else float(np.median(numbers))


@dataclass(frozen=True)
class Column:
    """A column of text that may be a head."""

    name: str
    cells: pd.Series

    @cached_property
    def known(self) -> pd.Series:
        """The cells that are not empty."""
        return self.cells[self.cells != ""]

    @cached_property
    def values(self) -> list[str]:
        """The different values."""
        return list(self.known.unique())

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the name, in lower case."""
        return tuple(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.name).casefold()))

    @cached_property
    def numbers(self) -> np.ndarray | None:
        """The different values as numbers; None unless all are finite numbers."""
        numbers = pd.to_numeric(pd.Series(self.values, dtype=object), errors="coerce").to_numpy(np.float64)
        return numbers if len(numbers) and np.isfinite(numbers).all() else None

    @property
    def is_binary(self) -> bool:
        """Whether the values are 0 and 1, or false and true."""
        return {value.lower() for value in self.values} <= _TRUE | _FALSE

    def all_match(self, pattern: re.Pattern[str]) -> bool:
        """Whether all values match a pattern."""
        return all(pattern.fullmatch(value) for value in self.values)


def describe_other(column: Column) -> str:
    """What a column is if it is not a head; "" for a head."""
    return next((what for rule in _RULES if (what := rule(column))), "")


def _by_name(column: Column) -> str:
    name = plain(column.name)
    if _SPLIT.fullmatch(name):
        return _A_SPLIT
    if name in (plain(reserved) for reserved in RESERVED):
        return "a reserved name"
    if _names_persons(column):
        return f"persons? --group-column {column.name}"
    if _is_id(column):
        return "an id"
    if column.words[-1:] == ("date",):
        return "dates"
    return next((kind for kind, names in _OTHERS.items() if name in names), "")


def _by_count(column: Column) -> str:
    if len(column.values) < 2:
        return "1 value" if column.values else "empty"
    return ""


def _by_content(column: Column) -> str:
    values = column.values
    if {value.casefold() for value in values} <= _SPLIT_VALUES:
        return _A_SPLIT
    if column.all_match(_DATES):
        return "dates"
    if all("://" in value for value in values):
        return "an origin"
    if _holds_photos(column.known):
        return "files"
    if column.all_match(_LIST):
        return "lists of numbers"
    return "lists or records" if column.all_match(_BRACKETS) else ""


def _by_number(column: Column) -> str:
    numbers = column.numbers
    if numbers is None or column.is_binary:
        return ""
    names = {plain(column.name), *column.words[-1:]}
    kind = next((kind for kind, known in _OTHER_NUMBERS.items() if names & known), "")
    return kind or ("" if are_codes(column) else _numbers(column))


def _numbers(column: Column) -> str:
    return f"{len(column.values)} numbers"


def are_codes(column: Column) -> bool:
    """Whether a column's numbers stand for classes: a few whole ones, all up to the largest, or the ids of classes."""
    ordered = np.unique(np.asarray(column.numbers))
    named = _CLASS & set(column.words)
    if {plain(column.name), *column.words[-1:]} & _MEASURED or (ordered != ordered.round()).any():
        return False
    if len(ordered) <= _FEW_NUMBERS or (named and column.words[-1] in _ID):
        return True
    without_gap = ordered[0] in (0, 1) and bool((np.diff(ordered) == 1).all())
    return without_gap and (len(ordered) <= MANY_NUMBERS or bool(named))


def _by_text(column: Column) -> str:
    words = [len(value.split()) for value in column.values]
    if sum(words) > _FEW_WORDS * len(words) or any("\n" in value for value in column.values):
        return "free text"
    if len(column.values) > min(MOST_CLASSES, (len(column.known) + 1) // 2):
        return f"{len(column.values)} different values"
    several = find_tags(column.values)
    return f"several tags in a cell, such as {several!r}: make a column of 0 and 1 per tag" if several else ""


_RULES: tuple[Callable[[Column], str], ...] = (_by_name, _by_count, _by_content, _by_number, _by_text)


def find_tags(values: Sequence[str]) -> str | None:
    """A value that is a list of others, such as "scab rust" next to "scab" and "rust"; None without one."""
    for mark in ("|", ";", ",", " "):
        lists = {value: [tag.strip() for tag in value.split(mark) if tag.strip()] for value in values}
        several = [value for value, tags in lists.items() if len(tags) > 1]
        tags = {tag for each in lists.values() for tag in each}
        alone = {tag for value in several for tag in lists[value]} <= set(values)
        recombined = len(tags) < len(values) and len({len(each) for each in lists.values()}) > 1
        if several and (alone or recombined):
            return several[0]
    return None


def find_one_hot(columns: Sequence[Column]) -> list[list[str]]:
    """The names of adjacent columns of 0 and 1 where each row has exactly one 1, or is empty in all of them."""
    found: list[list[str]] = []
    start = 0
    while start < len(columns):
        end = _one_hot_end(columns, start)
        if end > start + 1:
            found.append([column.name for column in columns[start:end]])
        start = max(end, start + 1)
    return found


def _one_hot_end(columns: Sequence[Column], start: int) -> int:
    """The end of the longest run of one-hot columns from `start`; `start` where there is none."""
    end, total, unknown = start, 0, columns[start].cells == ""
    for place, column in enumerate(columns[start:], start + 1):
        if not column.is_binary or not (unknown == (column.cells == "")).all():
            break
        total = total + column.cells.str.lower().isin(_TRUE).astype(int)
        if (total > 1).any():
            break
        if (total[~unknown] == 1).all():
            end = place
    return end


def _name_one_hot(frame: pd.DataFrame, place: int) -> str:
    free = [name for name in ("class", "label", "kind") if name not in frame.columns]
    return free[place] if place < len(free) else f"class{place + 1}"


def join_one_hot(frame: pd.DataFrame, classes: Sequence[str]) -> pd.Series:
    """The class that each row has a 1 for, "" where all are empty; a DataError for other rows."""
    cells = frame[list(classes)]
    lower = cells.apply(lambda column: column.str.lower())
    ones, zeros = lower.isin(_TRUE), lower.isin(_FALSE)
    right = ((ones | zeros).all(axis=1)) & (ones.sum(axis=1) == 1)
    names: dict[Hashable, str | DataError] = dict(ones.idxmax(axis=1).where(right, "").items())
    wrong = ~right & (cells != "").any(axis=1)
    expected = f"expected one 1 and otherwise 0 in the columns {join_some(classes)}"
    for line in frame.index[wrong]:
        names[line] = DataError(f"found {', '.join(cells.loc[line])}, {expected}.")
    return pd.Series(names, dtype=object)
