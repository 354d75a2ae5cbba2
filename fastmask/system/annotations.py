"""Annotations: the types and values that the annotation of a field allows, in words, and the values of texts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_NUMBERS = (int, float)
_COUNTS = {2: "two", 3: "three", 4: "four", 6: "six"}
# 224x224, 0.5 0.75, [0.5, 0.75]
_BETWEEN = re.compile(r"\s*[\s,x×]\s*")


def alternatives(annotation: Any) -> list[Any]:
    """The types and values that an annotation allows, except None: ["auto", int] for `Literal["auto"] | int | None`."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in alternatives(part)]
    return [] if annotation is NoneType else [annotation]


def is_size(annotation: Any) -> bool:
    """Whether an annotation is of two whole numbers, a height and a width."""
    pairs = [kind for kind in alternatives(annotation) if get_origin(kind) is tuple]
    return [alternatives(part) for pair in pairs for part in get_args(pair)] == [[int], [int]]


def has_text(annotation: Any) -> bool:
    """Whether some of the values that an annotation allows are, or hold, any text."""
    inside = [part for kind in alternatives(annotation) for part in get_args(kind)[get_origin(kind) is dict :]]
    fields = [
        field.annotation for kind in alternatives(annotation) for field in getattr(kind, "model_fields", {}).values()
    ]
    if Any in inside:
        return False
    return str in alternatives(annotation) or any(has_text(part) for part in (*inside, *fields))


def read_as(annotation: Any, given: Any) -> Any:
    """A value of a field in the form that pydantic takes: lists and sizes from text, a list or a square from a number.

    True and False are on and off where these are among the choices. Other values are returned unchanged.
    """
    kinds = alternatives(annotation)
    is_number = isinstance(given, _NUMBERS) and not isinstance(given, bool)
    if isinstance(given, bool) and bool not in kinds:
        # as YAML reads the words on and off; pydantic would take it for a number
        word = "on" if given else "off"
        return word if word in kinds else str(given)
    if is_size(annotation):
        numbers = _split(given) if isinstance(given, str) else [given] if is_number else given
        return numbers * 2 if isinstance(numbers, list) and len(numbers) == 1 else numbers
    if not isinstance(given, str) or given in kinds or str in kinds:
        is_list = any(get_origin(kind) is list for kind in kinds)
        return [given] if is_number and is_list and not set(kinds) & set(_NUMBERS) else given
    if int in kinds:
        return _read_whole(given)
    elements = [alternatives(get_args(kind)[0]) for kind in kinds if get_origin(kind) in (list, tuple)]
    if elements:
        return [word.strip() for word in given.split(",")] if elements[0] == [str] else _split(given)
    return given


def _split(text: str) -> list[str]:
    """The numbers of a text, as texts."""
    return _BETWEEN.split(text.strip().strip("[]()").strip())


def _read_whole(text: str) -> int | str:
    """A whole number such as 1e1; any other text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and "_" not in text else text


def expected_of(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """What an annotation allows, in words, such as "auto or a whole number from 1"; "" for text and mappings.

    `bounds` are pydantic's of the annotation as a whole.
    """
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected_of(inside[0], [bound for field in inside[1:] for bound in getattr(field, "metadata", [])])
    if origin in (Union, UnionType, Literal):
        parts = list(_words_of(annotation, bounds))
        return _join_or(parts) if all(parts) else ""
    if origin is list or origin is tuple:
        element = _plural(expected_of(inside[0]))
        number = "a list of" if origin is list or ... in inside else _COUNTS.get(len(inside), str(len(inside)))
        return f"{number} {element}" if element else ""
    words = {bool: "true or false", int: "a whole number", float: "a number"}.get(annotation, "")
    return words + _describe_bounds(bounds, whole=annotation is int) if words else ""


def _words_of(annotation: Any, bounds: Iterable[Any]) -> Iterator[str]:
    """The words of the parts of a union or a literal."""
    for part in get_args(annotation):
        if get_origin(part) is Literal:
            yield from map(str, get_args(part))
        elif part is not NoneType:
            yield expected_of(part, bounds) if get_origin(annotation) is not Literal else str(part)


def expected_inside(annotation: Any) -> str:
    """The bounds of the numbers inside a mapping, in words, such as "numbers from 0 to 1"; "" without bounds."""
    if isinstance(annotation, type) or annotation in (Any, NoneType):
        return ""
    if get_origin(annotation) is Annotated:
        return _plural(expected_of(annotation))
    values = get_args(annotation)[1:] if get_origin(annotation) is dict else get_args(annotation)
    return next((found for value in values if get_origin(value) and (found := expected_inside(value))), "")


def _join_or(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _plural(expected: str) -> str:
    """`a whole number from 1` -> `whole numbers from 1`; "" for what has no plural."""
    return re.sub("^a (whole )?number", r"\1numbers", expected) if expected.startswith("a ") else ""


def _describe_bounds(bounds: Iterable[Any], whole: bool) -> str:
    """` from 1 to 9` for pydantic's bounds of a number."""
    names = ("ge", "gt", "le", "lt")
    found = {name: getattr(bound, name) for bound in bounds for name in names if hasattr(bound, name)}
    if whole and "lt" in found:
        found["le"] = found.pop("lt") - 1
    low = f" from {_number(found['ge'])}" if "ge" in found else ""
    low = f" above {_number(found['gt'])}" if "gt" in found else low
    if "le" in found:
        return f"{low}{' to' if 'ge' in found else ' and up to' if low else ' up to'} {_number(found['le'])}"
    if "lt" in found:
        return f"{low}{' and' if low else ''} below {_number(found['lt'])}"
    return low


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}" if math.isfinite(value) else str(value)
