"""Space: the settings that a search tries, with the values that each may take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.config import Config, Kind, check_value, read_mapping
from fastmask.system.annotations import alternatives
from fastmask.system.errors import UsageError
from fastmask.system.text import shorten_repr

if TYPE_CHECKING:
    from optuna.trial import Trial

EXAMPLE = "lr: {low: 0.0001, high: 0.01, log: true}"
# choices of a setting
_MOST_CHOICES = 100
_NUMBERS = ("low", "high", "step")
# why settings of a kind are not part of a space; the first reason that applies is reported
_OUTSIDE = {
    Kind.TABLE | Kind.SCORED: "decides what is scored, and the scores of trials must be comparable",
    Kind.FLATTERING: "makes the scores of some trials too good",
    Kind.MACHINE | Kind.NUMERICS | Kind.FAULT: "belongs to the machine, and the result should hold on others",
    Kind.UNSCORED: "trains after the score is computed",
}
# settings that are not part of a space -> why
OUTSIDE = {name: why for kind, why in reversed(_OUTSIDE.items()) for name in Config.of_kind(kind)}


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, inclusive, sampled by its logarithm with `log`, or in steps of `step`."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Trial) -> Any:
        """The value that a trial proposes, an integer if the setting is an integer."""
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def value_of(self, stored: Any) -> Any:
        """Convert a value as stored by a study."""
        return stored

    def to_plain(self) -> dict[str, Any]:
        """As the YAML has it."""
        plain: dict[str, Any] = {"low": self.low, "high": self.high}
        return {**plain, **({"log": True} if self.log else {}), **({"step": self.step} if self.step else {})}


@dataclass(frozen=True)
class Choices:
    """One of several values of any kind."""

    name: str
    values: tuple[Any, ...]

    def suggest(self, trial: Trial) -> Any:
        """The value that a trial proposes."""
        return self.value_of(trial.suggest_categorical(self.name, [_label(value) for value in self.values]))

    def value_of(self, stored: Any) -> Any:
        """Convert a text as stored by a study to the value."""
        return next(value for value in self.values if _label(value) == stored)

    def to_plain(self) -> dict[str, Any]:
        """As the YAML has it."""
        return {"choices": list(self.values)}


def _label(value: Any) -> str:
    """A value as text that distinguishes 1 from true."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Space:
    """The settings that a search tries, with the values that each may take."""

    dimensions: tuple[Range | Choices, ...]

    def __iter__(self) -> Iterator[Range | Choices]:
        return iter(self.dimensions)

    def values_of(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the settings stored by a study, as far as they have been sampled."""
        return {one.name: one.value_of(stored[one.name]) for one in self if one.name in stored}

    def to_plain(self) -> dict[str, Any]:
        """As the YAML has it."""
        return {one.name: one.to_plain() for one in self}


def read_space(file: str | Path) -> Space:
    """Read a space from a YAML file: see `parse_space`."""
    return parse_space(read_mapping(file, "a space of settings", EXAMPLE), str(file))


def parse_space(plain: Mapping[str, Any], where: str = "The space") -> Space:
    """Parse a space: a setting's name -> {low, high, log, step}, {choices: [...]}, or a list of choices.

    Numbers are integers if the setting is an integer. Raises UsageError for an unknown setting, an
    invalid value, or a setting that would make scores incomparable.
    """
    if not plain:
        raise UsageError(f"{where} holds no settings; expected lines such as {EXAMPLE!r}.")
    dimensions = []
    for key, values in plain.items():
        name = str(key).replace("-", "_")
        try:
            dimensions.append(_dimension(name, values))
        except ValueError as error:
            raise UsageError(f"{where}: {name} {error}.") from None
    return Space(tuple(dimensions))


def _dimension(name: str, plain: Any) -> Range | Choices:
    """Parse one setting of a space; raises ValueError with a description of the error."""
    if name not in Config.model_fields:
        # its message suggests the closest name
        check_value(name, None)
    if name in OUTSIDE:
        raise ValueError(f"cannot be searched, because it {OUTSIDE[name]}; leave it out")
    if isinstance(plain, list):
        plain = {"choices": plain}
    if not isinstance(plain, Mapping) or not plain:
        raise ValueError(
            f"is {shorten_repr(plain, 80)}; expected low and high, or choices, such as {EXAMPLE!r} or "
            "'sched: [onecycle, cosine]'"
        )
    other = next((key for key in plain if key not in (*_NUMBERS, "log", "choices")), None)
    if other is not None:
        raise ValueError(f"has {shorten_repr(other, 80)}; expected low, high, log and step, or choices alone")
    if "choices" in plain:
        other = next((key for key in plain if key != "choices"), None)
        if other is not None:
            raise ValueError(f"has choices and {other}; give one of the two")
        return _choices(name, plain["choices"])
    return _range(name, plain)


def _choices(name: str, values: Any) -> Choices:
    if not isinstance(values, list) or not 2 <= len(values) <= _MOST_CHOICES:
        raise ValueError(f"has the choices {shorten_repr(values, 80)}; expected a list of 2 to {_MOST_CHOICES}")
    if float in _types(name):
        values = [_as_number(value) for value in values]
    for value in values:
        check_value(name, value)
    try:
        labels = [_label(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError("has a choice that is not a plain value; expected texts, numbers, lists or mappings") from None
    twice = [value for value, label in zip(values, labels, strict=True) if labels.count(label) > 1]
    if twice:
        raise ValueError(f"has the choice {shorten_repr(twice[0], 80)} twice; name each once")
    return Choices(name, tuple(values))


def _as_number(value: Any) -> Any:
    """Convert a number, or a text such as 1e-4, which YAML does not read as a number, to a float."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _range(name: str, plain: Mapping[str, Any]) -> Range:
    types = _types(name)
    if not {int, float} & types:
        raise ValueError("is not a number, so it has no low and high; name its choices")
    missing = next((end for end in ("low", "high") if end not in plain), None)
    if missing:
        raise ValueError(f"has no {missing}; expected lines such as {EXAMPLE!r}")
    numbers = {key: _number(key, plain[key], float not in types) for key in _NUMBERS if key in plain}
    log, low, high, step = plain.get("log", False), numbers["low"], numbers["high"], numbers.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"has log {shorten_repr(log, 80)}; expected true or false")
    if low >= high:
        raise ValueError(f"goes from low {low:g} to high {high:g}; expected low below high")
    if log and (low <= 0 or step is not None):
        why = "with step" if low > 0 else f"from low {low:g}"
        raise ValueError(f"has log {why}; a logarithmic range starts above 0 and has no steps")
    if step is not None and not (
        0 < step <= high - low and math.isclose(math.remainder(high - low, step), 0, abs_tol=1e-9)
    ):
        raise ValueError(f"goes from {low:g} to {high:g}, which is not a multiple of step {step:g}")
    for end in (low, high):
        check_value(name, end)
    return Range(name, low, high, log, step)


def _number(key: str, value: Any, whole: bool) -> float:
    found = _as_number(value)
    good = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    if not good or (whole and found != int(found)):
        raise ValueError(f"has {key} {shorten_repr(value, 80)}; expected a {'whole ' if whole else ''}number")
    return int(found) if whole else float(found)


def _types(name: str) -> set[type]:
    """The types of the values that a setting takes, such as float, or int and str."""
    found = alternatives(Config.model_fields[name].annotation)
    return {one if isinstance(one, type) else type(one) for one in found}
