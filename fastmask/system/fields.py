"""Fields: descriptions of a model's fields, for the command line and for messages about invalid values."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag
from itertools import islice
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, Field

from fastmask.system.errors import UsageError
from fastmask.system.text import shorten_repr

Model = TypeVar("Model", bound=BaseModel)
# errors that are reported at once
_MOST_SENTENCES = 10


@dataclass(frozen=True)
class Option:
    """How the command line shows a field, in addition to its type, default and description."""

    panel: str | None = None  # of the help; a setting without one has no option
    kind: Flag | None = None  # what the field is about
    needs: str | None = None  # the field without which this one has no effect
    note: str | None = None  # the default in words, if the value does not say it
    common: bool = False  # shown by --help; --help-all shows the others too
    words: str | None = None  # the option, if it does not follow from name and type
    read: Callable[[str], Any] | None = None  # parses the text, if the type is not enough; raises ValueError


def option_field(
    default: Any, description: str, panel: str | None = None, kind: Flag | None = None, **option: Any
) -> Any:
    """A field with its description, from which the options of commands and the lists of settings derive.

    `option` are the attributes of `Option`.
    """
    return Field(default, description=description, json_schema_extra={"option": Option(panel, kind, **option)})  # type: ignore[dict-item]


def describe(model: type[BaseModel], name: str) -> Option:
    """How the command line shows an `option_field`."""
    return model.model_fields[name].json_schema_extra["option"]  # type: ignore[index, return-value]


def option_name(model: type[BaseModel], name: str) -> str:
    """The option of a field, such as --drop-ages, or --tf32/--no-tf32."""
    word = name.replace("_", "-")
    flag = model.model_fields[name].annotation is bool
    return describe(model, name).words or (f"--{word}/--no-{word}" if flag else f"--{word}")


def alternatives(annotation: Any) -> list[Any]:
    """The types and values that an annotation allows, except None: ["auto", int] for `Literal["auto"] | int | None`."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in alternatives(part)]
    return [] if annotation is NoneType else [annotation]


def make_model(model: type[Model], given: Mapping[str, Any]) -> Model:
    """A model with the given values of its fields.

    Raises UsageError with one sentence per mistake: the field, what was found, what was expected, the nearest name.
    """
    try:
        return model(**given)
    except pydantic.ValidationError as error:
        raise UsageError(" ".join(_describe_all(model, error))) from None


def _describe_all(model: type[BaseModel], error: pydantic.ValidationError) -> list[str]:
    by_field: dict[str, list[Any]] = {}
    for one in error.errors():
        by_field.setdefault(str(one["loc"][0]) if one["loc"] else "", []).append(one)
    return [describe_errors(model, name, errors) for name, errors in islice(by_field.items(), _MOST_SENTENCES)]


def describe_errors(model: type[BaseModel], name: str, errors: Sequence[Any]) -> str:
    """What is wrong with the value of a field."""
    what, one = getattr(model, "NOUN", "option"), errors[0]
    message = one["msg"].removeprefix("Value error, ")
    if not name:
        return f"{message}."
    if one["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        return f"There is no {what} {shorten_repr(name)}" + (f"; did you mean {near[0]!r}?" if near else ".")
    if len(errors) > 1 or one["type"] == "string_pattern_mismatch":
        # a field of several types fails once per type
        message = f"expected {_uncapitalized(str(model.model_fields[name].description).removesuffix('.'))};"
        return f"{what.capitalize()} {name}: {message} found {shorten_repr(one['input'])}."
    return f"{what.capitalize()} {name}: {_uncapitalized(message)}, found {shorten_repr(one['input'])}."


def _uncapitalized(text: str) -> str:
    return text[0].lower() + text[1:]
