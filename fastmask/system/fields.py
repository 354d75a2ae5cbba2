"""Fields: descriptions of a model's fields, for the command line and for messages about invalid values."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag
from itertools import islice
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, Field

from fastmask.system.annotations import expected_inside, expected_of, read_as
from fastmask.system.errors import UsageError
from fastmask.system.text import shorten_repr

Model = TypeVar("Model", bound=BaseModel)
Function = TypeVar("Function", bound=Callable[..., Any])
# errors that are reported at once
_MOST_SENTENCES = 10


@dataclass(frozen=True)
class Option:
    """How the command line shows a field, in addition to its type, default and description."""

    panel: str | None = None  # of the help; a setting without one has no option
    kind: Flag | None = None  # what the field is about
    needs: tuple[str, ...] = ()  # the fields without any of which this one has no effect
    note: str | None = None  # the default in words, if the value does not say it
    common: bool = False  # shown by --help; --help-all shows the others too
    words: str | None = None  # the option, if it does not follow from name and type
    read: Callable[[str], Any] | None = None  # parses the text, if the type is not enough; raises ValueError
    repeats: bool = False  # the option may be repeated: its texts are joined by commas


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


def spell_default(value: Any) -> str | None:
    """A default as the help shows it; None if there is nothing to show."""
    if value in (None, "", (), [], inspect.Parameter.empty):
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ",".join(value) if isinstance(value[0], str) else " ".join(f"{one:g}" for one in value)
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def shows_fields(model: type[BaseModel]) -> Callable[[Function], Function]:
    """A decorator for a function with `**settings`: help() and notebooks show a model's fields in place of it."""

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
            for name, field in model.model_fields.items()
            if name not in signature.parameters
        ]
        function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
        return function

    return show


def make_model(model: type[Model], given: Mapping[str, Any]) -> Model:
    """A model with the given values of its fields, see `read_value`.

    Raises UsageError with one sentence per mistake: the field, what was found, what was expected, the nearest name.
    """
    try:
        return model(**{name: read_value(model, name, value) for name, value in given.items()})
    except pydantic.ValidationError as error:
        raise UsageError(" ".join(_describe_all(model, error, given))) from None


def read_value(model: type[BaseModel], name: str, given: Any) -> Any:
    """The value of a field, from text if needed, see `read_as`; raises UsageError for an invalid text."""
    if name not in model.model_fields:
        return given
    field = model.model_fields[name]
    option = (field.json_schema_extra or {}).get("option") if isinstance(field.json_schema_extra, dict) else None
    if not isinstance(given, str) or not isinstance(option, Option) or option.read is None:
        return read_as(field.annotation, given)
    try:
        return option.read(given)
    except ValueError as error:
        raise UsageError(f"{_noun(model).capitalize()} {name}: found {shorten_repr(given)}, {error}.") from None


def _describe_all(model: type[BaseModel], error: pydantic.ValidationError, given: Mapping[str, Any]) -> list[str]:
    by_field: dict[str, list[Any]] = {}
    for one in error.errors():
        by_field.setdefault(str(one["loc"][0]) if one["loc"] else "", []).append(one)
    found = islice(by_field.items(), _MOST_SENTENCES)
    return [describe_errors(model, name, errors, given.get(name)) for name, errors in found]


def describe_errors(model: type[BaseModel], name: str, errors: Sequence[Any], given: Any) -> str:
    """What is wrong with the value given for a field."""
    what, one = _noun(model), errors[0]
    if not name:
        return f"{one['msg'].removeprefix('Value error, ')}."
    if name not in model.model_fields:
        return f"There is no {what} {shorten_repr(name)}{_describe_near(model, name, given)}"
    found = "nothing" if given is None else shorten_repr(given)
    field = model.model_fields[name]
    expected = expected_of(field.annotation, field.metadata)
    if not expected:
        inside = expected_inside(field.annotation)
        expected = _uncapitalized(str(field.description).removesuffix(".")) + (f": {inside}" if inside else "")
    return f"{what.capitalize()} {name}: found {found}, expected {expected}."


def _describe_near(model: type[BaseModel], name: str, given: Any) -> str:
    """The end of a sentence on an unknown name: the nearest field."""
    inside = [key for key in given if key in model.model_fields] if isinstance(given, Mapping) else []
    if inside:
        return f"; give {inside[0]} by itself, not inside {name}."
    plain = name.lower().replace("-", "_")
    other = getattr(model, "OTHER_NAMES", {}).get(plain)
    near = [other] if other else difflib.get_close_matches(plain, model.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _noun(model: type[BaseModel]) -> str:
    return getattr(model, "NOUN", "option")


def _uncapitalized(text: str) -> str:
    return text[0].lower() + text[1:]
