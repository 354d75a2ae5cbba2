"""Spec: the specification of a search for settings, kept in its folder to resume it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from fastmask.config import TIME_LIMITS, Config, make_config
from fastmask.data.table import Table
from fastmask.run.identity import differing_settings
from fastmask.search.space import Space, parse_space
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_parent, frame_to_csv, read_yaml, real, write_yaml
from fastmask.system.terminal import quote

# the specification of a search, its study, and the folder of its runs
SPEC, STUDY, TRIALS = "tune.yaml", "study.db", "trials"
PRUNERS = ("median", "none")
MOST_TRIALS = 10_000
# settings that a search cannot have, and why
_BY_CLOCK = "it would make a trial's epochs depend on the clock; --hours of tune limits the search as a whole"
_NO_BASE = {
    **dict.fromkeys(TIME_LIMITS, _BY_CLOCK),
    "launcher": "a trial's folds are trained in turn, so that a poor one ends early; several processes share a search",
    "refit": "its effect is not scored; refit with the best settings: fastmask fit --config best.yaml --refit N",
}
# the other fields of tune.yaml, next to space and settings, with their types
_PLAIN = {"trials": (int,), "pruner": (str,), "keep": (int,), "data": (str,), "loss": (str, type(None))}
_TYPES = {**_PLAIN, "space": (dict,), "settings": (dict,)}


@dataclass(frozen=True)
class SearchSpec:
    """The specification of a search: its space, the `settings` and number of trials, the checkpoints to keep.

    `data` is a digest of the photos' names, persons and labels, `loss` the name of a custom loss.
    """

    out: Path
    space: Space
    settings: Mapping[str, Any]
    trials: int = 30
    pruner: str = "median"
    keep: int = 1
    data: str = ""
    loss: str | None = None

    @property
    def config(self) -> Config:
        """The settings shared by all trials, without those of the space."""
        return make_config(self.settings)

    @property
    def resume_line(self) -> str:
        """The command or call that resumes the search."""
        if self.loss is not None:
            return f"tune(..., out={str(self.out)!r}, resume=True)"
        return f"fastmask tune --resume --out {quote(str(self.out))}"

    def path(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.out / TRIALS / f"{number:04d}"

    def config_of(self, params: Mapping[str, Any]) -> Config:
        """The configuration of a trial; raises UsageError if its settings are incompatible."""
        return make_config(self.settings, params, {"tuned": True})

    def updated(self, **values: Any) -> SearchSpec:
        """The same search, updated by the values that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def write(self) -> None:
        """Write it to its folder."""
        values = {name: getattr(self, name) for name in _PLAIN}
        settings = self.config.model_dump(mode="json", exclude_unset=True)
        write_yaml(self.out / SPEC, {**values, "space": self.space.to_plain(), "settings": settings})

    def check(self) -> None:
        """Raise UsageError if a value is invalid."""
        if not 1 <= self.trials <= MOST_TRIALS:
            raise UsageError(f"--trials is {self.trials}; expected 1 to {MOST_TRIALS}.")
        if not 1 <= self.keep <= MOST_TRIALS:
            raise UsageError(f"--keep is {self.keep}; expected 1 or more, since the best trial is kept.")
        if self.pruner not in PRUNERS:
            raise UsageError(f"There is no pruner {self.pruner!r}; expected one of {', '.join(PRUNERS)}.")
        if "?" in str(self.out):
            raise UsageError(f"{self.out} has a question mark, which ends a file name in SQLite.")
        config = self.config
        for name, why in _NO_BASE.items():
            if config.is_set(name):
                raise UsageError(f"A search cannot have the setting {name}: {why}.")


def read_spec(out: Path) -> SearchSpec:
    """Read the specification of a search from its folder; raises UsageError if it is missing, DataError if broken."""
    file = out / SPEC
    if not file.is_file():
        raise UsageError(f"{out} is not a search: it has no {SPEC}; name the --out of fastmask tune.")
    plain = read_yaml(file)
    if not isinstance(plain, dict):
        raise DataError(f"{file} holds {type(plain).__name__}; restore it.")
    wrong = [name for name, types in _TYPES.items() if type(plain.get(name)) not in types]
    if wrong:
        raise DataError(f"{file} has an invalid {wrong[0]}; restore it.")
    values = {name: plain.get(name) for name in _PLAIN}
    try:
        settings = {str(name): value for name, value in plain["settings"].items()}
        spec = SearchSpec(out, parse_space(plain["space"]), settings, **values)  # type: ignore[arg-type]
        spec.check()
    except UsageError as error:
        raise DataError(f"{file}: {error}") from error
    return spec


def check_new_search(out: Path) -> None:
    """Raise UsageError if no search can be started in a folder."""
    place = real(out)
    check_parent(place)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"{out} exists; name another folder with --out, or resume its search with --resume.")


def resume_config(config: Config, out: str | Path) -> Config:
    """Update the settings of the search in a folder by those given now; raises UsageError if they differ.

    Only settings of the machine and the location of the photos may differ.
    """
    saved = read_spec(Path(out)).config
    now = make_config(saved.model_dump(exclude_unset=True), config.model_dump(exclude_unset=True))
    differing = differing_settings(saved, now)
    if differing:
        name = differing[0]
        raise UsageError(
            f"{out} was started with {name} {saved.to_plain()[name]}, now it is {now.to_plain()[name]}; --resume needs "
            f"the same settings (differing: {', '.join(differing)})."
        )
    return now


def resume_spec(now: SearchSpec, trials: int | None, keep: int | None, pruner: str | None) -> SearchSpec:
    """Update the search in the folder of `now` by its machine settings, and by the other arguments if given.

    Raises UsageError if `now` has another space, data or loss, since scores of trials must be comparable. An empty
    space means that of the folder.
    """
    saved = read_spec(now.out)
    differing = [
        *(["space"] if now.space.dimensions and now.space != saved.space else []),
        *(["photos, persons or labels"] if now.data != saved.data else []),
        *(["loss"] if now.loss != saved.loss else []),
        *(["pruner"] if pruner not in (None, saved.pruner) else []),
    ]
    if differing:
        raise UsageError(
            f"{now.out} was started with other {differing[0]} than now, and the scores of trials must be comparable; "
            "resume with the same, or start a new search with another --out."
        )
    spec = saved.updated(trials=trials, keep=keep)
    spec.check()
    if spec != saved:
        spec.write()
    return replace(spec, settings=resume_config(now.config, now.out).model_dump(exclude_unset=True))


def digest_table(table: Table) -> str:
    """SHA-256 of the names of a table's photos, their persons and labels."""
    text = StringIO()
    numbers = [f"{head.name}_value" for head in table.heads if head.bounds]
    frame_to_csv(table.frame[["path", "person", *table.heads.names, *numbers]], text)
    return hashlib.sha256(text.getvalue().encode()).hexdigest()
