"""Space: which settings a search tries and which values each may take, checked before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastmask.config import Config, Kind, alternatives, check_value, read_mapping
from fastmask.system.errors import UsageError
from fastmask.system.text import shorten_repr

EXAMPLE = "lr: {low: 0.0001, high: 0.01, log: true}"
# choices of a setting
_MOST_CHOICES = 100
_RANGE, _FLAG = ("low", "high", "step"), "log"
# why settings of a kind are not part of a space; the first that applies is named
_OUTSIDE = {
    Kind.TABLE | Kind.SCORED: "decides what is scored, and the scores of trials must be comparable",
    Kind.FLATTERING: "makes the scores of some trials too good",
    Kind.MACHINE | Kind.NUMERICS | Kind.FAULT: "belongs to the machine, and the result should hold on others",
    Kind.UNSCORED: "trains after the score is computed",
}
# settings that are not part of a space -> why
OUTSIDE = {name: why for kind, why in reversed(_OUTSIDE.items()) for name in Config.of_kind(kind)}


class Suggests(Protocol):
    """What proposes values, such as a trial of Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: list[str]) -> str: ...


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, ends included; `log` draws its logarithm, `step` parts the values."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Suggests) -> float:
        """The value that a trial proposes: a whole number where the setting is one."""
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def value_of(self, kept: Any) -> Any:
        """The value that a study keeps as `kept`."""
        return kept

    def to_plain(self) -> dict[str, Any]:
        """As the YAML has it."""
        plain: dict[str, Any] = {"low": self.low, "high": self.high}
        return {**plain, **({"log": True} if self.log else {}), **({"step": self.step} if self.step else {})}


@dataclass(frozen=True)
class Choices:
    """One of several values, of whatever kind."""

    name: str
    values: tuple[Any, ...]

    def suggest(self, trial: Suggests) -> Any:
        """The value that a trial proposes."""
        return self.value_of(trial.suggest_categorical(self.name, self._labels))

    def value_of(self, kept: Any) -> Any:
        """The value that a study keeps as `kept`, which knows only plain texts."""
        return self.values[self._labels.index(kept)]

    @property
    def _labels(self) -> list[str]:
        return [_label(value) for value in self.values]

    def to_plain(self) -> dict[str, Any]:
        """As the YAML has it."""
        return {"choices": list(self.values)}


def _label(value: Any) -> str:
    """What a value is called, so that 1 and true are two."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Space:
    """The settings that a search tries, with the values that each may take."""

    dimensions: tuple[Range | Choices, ...]

    def __iter__(self) -> Iterator[Range | Choices]:
        return iter(self.dimensions)

    @property
    def names(self) -> list[str]:
        """The settings' names."""
        return [one.name for one in self]

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """The settings that a trial proposes."""
        return {one.name: one.suggest(trial) for one in self}

    def values_of(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that a study keeps as `kept`, those that are drawn so far."""
        return {one.name: one.value_of(kept[one.name]) for one in self if one.name in kept}

    def to_plain(self) -> dict[str, Any]:
        """As the YAML has it."""
        return {one.name: one.to_plain() for one in self}


def read_space(file: str | Path) -> Space:
    """The space of a YAML file: see `parse_space`."""
    return parse_space(read_mapping(file, "a space of settings", EXAMPLE), str(file))


def parse_space(plain: Mapping[str, Any], where: str = "The space") -> Space:
    """A space of plain values: a setting's name -> {low, high, log, step}, {choices: [...]}, or a list of choices.

    Whether numbers are whole is the setting's own affair. Raises UsageError with one sentence for what a space cannot
    have: a name that is no setting, a value that the setting does not take, a setting that makes scores incomparable.
    """
    if not plain:
        raise UsageError(f"{where} holds no settings; expected lines such as {EXAMPLE!r}.")
    return Space(tuple(_dimension(str(name).replace("-", "_"), told, where) for name, told in plain.items()))


def _dimension(name: str, told: Any, where: str) -> Range | Choices:
    if name not in Config.model_fields:
        # its own sentence has the nearest name
        check_value(name, None)
    if name in OUTSIDE:
        raise UsageError(f"{where}: {name} is no part of a search, because it {OUTSIDE[name]}; leave it out.")
    if isinstance(told, list):
        told = {"choices": told}
    if not isinstance(told, Mapping) or not told:
        raise UsageError(
            f"{where}: {name} is {shorten_repr(told)}; expected low and high, or choices, such as {EXAMPLE!r} or "
            "'sched: [onecycle, cosine]'."
        )
    unknown = [key for key in told if key not in (*_RANGE, _FLAG, "choices")]
    if unknown:
        raise UsageError(
            f"{where}: {name} has {shorten_repr(unknown[0])}; expected low, high, log and step, or choices alone."
        )
    if "choices" in told:
        if len(told) > 1:
            raise UsageError(f"{where}: {name} has choices beside {_other(told)}; give one of the two.")
        return _choices(name, told["choices"], where)
    return _range(name, told, where)


def _other(told: Mapping[str, Any]) -> str:
    return next(key for key in told if key != "choices")


def _choices(name: str, values: Any, where: str) -> Choices:
    if not isinstance(values, list) or not 2 <= len(values) <= _MOST_CHOICES:
        raise UsageError(
            f"{where}: {name} has the choices {shorten_repr(values)}; expected a list of 2 to {_MOST_CHOICES}."
        )
    if float in _kinds(name):
        values = [_as_number(value) for value in values]
    for value in values:
        check_value(name, value)
    try:
        labels = [_label(value) for value in values]
    except (TypeError, ValueError):
        raise UsageError(
            f"{where}: {name} has a choice that is no plain value; expected texts, numbers, lists or mappings."
        ) from None
    twice = next((value for value, label in zip(values, labels, strict=True) if labels.count(label) > 1), None)
    if twice is not None or labels.count("null") > 1:
        raise UsageError(f"{where}: {name} has the choice {shorten_repr(twice)} twice; name each once.")
    return Choices(name, tuple(values))


def _as_number(value: Any) -> Any:
    """A number as a float, and a text that is one, too: YAML takes 1e-4, without a point, for a text."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _range(name: str, told: Mapping[str, Any], where: str) -> Range:
    kinds = _kinds(name)
    if not {int, float} & kinds:
        raise UsageError(f"{where}: {name} is no number, so it has no low and high; name its choices.")
    missing = [end for end in ("low", "high") if end not in told]
    if missing:
        raise UsageError(f"{where}: {name} has no {missing[0]}; expected lines such as {EXAMPLE!r}.")
    numbers = {key: _number(name, key, told[key], float not in kinds, where) for key in _RANGE if key in told}
    log, low, high, step = told.get(_FLAG, False), numbers["low"], numbers["high"], numbers.get("step")
    if not isinstance(log, bool):
        raise UsageError(f"{where}: {name} has log {shorten_repr(log)}; expected true or false.")
    if low >= high:
        raise UsageError(f"{where}: {name} goes from low {low:g} to high {high:g}, which must rise.")
    if log and (low <= 0 or step is not None):
        why = "with step" if low > 0 else f"from low {low:g}"
        raise UsageError(f"{where}: {name} has log {why}; a logarithm is drawn from above 0, and without steps.")
    if step is not None and not (
        0 < step <= high - low and math.isclose(math.remainder(high - low, step), 0, abs_tol=1e-9)
    ):
        raise UsageError(
            f"{where}: {name} goes from {low:g} to {high:g}, which is no whole number of steps of {step:g}."
        )
    for end in (low, high):
        check_value(name, end)
    return Range(name, low, high, log, step)


def _number(name: str, key: str, value: Any, whole: bool, where: str) -> float:
    found = _as_number(value)
    good = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    if not good or (whole and found != int(found)):
        raise UsageError(
            f"{where}: {name} has {key} {shorten_repr(value)}; expected a {'whole ' if whole else ''}number."
        )
    return int(found) if whole else float(found)


def _kinds(name: str) -> set[type]:
    """The types of the values that a setting takes, such as float, or int and str."""
    found = alternatives(Config.model_fields[name].annotation)
    return {one if isinstance(one, type) else type(one) for one in found}
