"""Search: what a search for settings is of, kept in its folder, so that whoever goes on with it searches the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from fastmask.config import Config, make_config
from fastmask.data.table import Table
from fastmask.run.directory import differing_settings
from fastmask.search.space import Space, parse_space
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_parent, frame_to_csv, read_yaml, real, write_yaml
from fastmask.system.terminal import quote

# what a search is of, its study, and the folder of its runs
MARK, STUDY, TRIALS = "tune.yaml", "study.db", "trials"
PRUNERS = ("median", "none")
MOST_TRIALS = 10_000
# settings that a search cannot have, with why
_NO_BASE = {
    "hours": "it would make a trial's epochs depend on the clock; --hours of tune limits the search as a whole",
    "launcher": "a trial's folds are trained in turn, so that a poor one ends early; several processes share a search",
    "refit": "no score tells what it is worth; refit what is best: fastmask fit --config best.yaml --refit N",
}
# what tune.yaml holds, and of what kind
_KINDS = {"trials": int, "pruner": str, "keep": int, "data": str, "space": dict, "settings": dict}


@dataclass(frozen=True)
class Search:
    """What a search is of: the space, the `settings` that all trials have, how many trials, what is kept of them.

    `data` is a digest of the photos' names, persons and labels, `loss` the name of a loss of one's own.
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
        """The settings of all trials but for what the space proposes."""
        return make_config(self.settings)

    @property
    def go_on(self) -> str:
        """The line to type to go on with it."""
        if self.loss is not None:
            return f"tune(..., out={str(self.out)!r}, resume=True)"
        return f"fastmask tune --resume --out {quote(str(self.out))}"

    def path(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.out / TRIALS / f"{number:04d}"

    def config_of(self, params: Mapping[str, Any]) -> Config:
        """The configuration of a trial; raises UsageError where its settings do not go together."""
        return make_config(self.settings, params)

    def write(self) -> None:
        """Write what it is of."""
        told = {name: getattr(self, name) for name in ("trials", "pruner", "keep", "data", "loss")}
        settings = self.config.model_dump(mode="json", exclude_unset=True)
        write_yaml(self.out / MARK, {**told, "space": self.space.to_plain(), "settings": settings})

    def check(self) -> None:
        """Raise UsageError where it cannot be."""
        if not 1 <= self.trials <= MOST_TRIALS:
            raise UsageError(f"--trials is {self.trials}; expected 1 to {MOST_TRIALS}.")
        if not 1 <= self.keep <= MOST_TRIALS:
            raise UsageError(f"--keep is {self.keep}; expected 1 or more, since the best trial stays.")
        if self.pruner not in PRUNERS:
            raise UsageError(f"There is no pruner {self.pruner!r}; expected one of {', '.join(PRUNERS)}.")
        if "?" in str(self.out):
            raise UsageError(f"{self.out} has a question mark, which SQLite takes for an end of the name.")
        config = self.config
        for name, why in _NO_BASE.items():
            if getattr(config, name) != config.default(name):
                raise UsageError(f"A search cannot have the setting {name}: {why}.")


def read_search(out: Path) -> Search:
    """What the search in a folder is of; raises UsageError where there is none, DataError where it is broken."""
    file = out / MARK
    if not file.is_file():
        raise UsageError(f"{out} is not a search: it has no {MARK}; name the --out of a tune.")
    plain = read_yaml(file)
    if not isinstance(plain, dict):
        raise DataError(f"{file} holds {type(plain).__name__}; restore it.")
    wrong = [name for name, kind in _KINDS.items() if type(plain.get(name)) is not kind]
    wrong += [] if isinstance(plain.get("loss"), str | None) else ["loss"]
    if wrong:
        raise DataError(f"{file} does not say what the search has for {wrong[0]}; restore it.")
    told = {name: plain[name] for name in ("trials", "pruner", "keep", "data")}
    try:
        settings = {str(name): value for name, value in plain["settings"].items()}
        search = Search(out, parse_space(plain["space"]), settings, **told, loss=plain.get("loss"))
        search.check()
    except UsageError as error:
        raise DataError(f"{file}: {error}") from error
    return search


def check_new_search(out: Path) -> None:
    """Raise UsageError where no search can be begun in a folder."""
    place = real(out)
    check_parent(place)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"{out} exists; name another folder with --out, or go on with a search by --resume.")


def searched(config: Config, out: str | Path) -> Config:
    """The settings of the search in a folder, under those that are given now; raises UsageError where they differ.

    Settings of the machine may differ, and where the photos lie.
    """
    saved = read_search(Path(out)).config
    now = make_config(saved.model_dump(exclude_unset=True), config.model_dump(exclude_unset=True))
    differing = differing_settings(saved, now)
    if differing:
        name = differing[0]
        raise UsageError(
            f"{out} was started with {name} {saved.to_plain()[name]}, now it is {now.to_plain()[name]}; --resume needs "
            f"the same settings (differing: {', '.join(differing)})."
        )
    return now


def gone_on_with(
    out: Path, now: Search, config: Config, trials: int | None, keep: int | None, pruner: str | None
) -> Search:
    """The search in a folder, to go on with by the settings of the machine in `config`, with more trials if you like.

    Raises UsageError where `now` is of another space, data or loss: scores of trials must be comparable. An empty
    space is that of the folder.
    """
    saved = read_search(out)
    differing = [
        *(["space"] if now.space.dimensions and now.space != saved.space else []),
        *(["photos, persons or labels"] if now.data != saved.data else []),
        *(["loss"] if now.loss != saved.loss else []),
        *(["pruner"] if pruner not in (None, saved.pruner) else []),
    ]
    if differing:
        raise UsageError(
            f"{out} was started with other {differing[0]} than now, and the scores of trials must be comparable; go on "
            "with the same, or start anew with another --out."
        )
    more: dict[str, Any] = {name: n for name, n in (("trials", trials), ("keep", keep)) if n is not None}
    made = replace(saved, **more)
    made.check()
    if made != saved:
        made.write()
    return replace(made, settings=searched(config, out).model_dump(exclude_unset=True))


def digest_of(table: Table) -> str:
    """SHA-256 of the names of a table's photos, their persons and labels."""
    text = StringIO()
    numbers = [f"{head.name}_value" for head in table.heads if head.bounds]
    frame_to_csv(table.frame[["path", "person", *table.heads.names, *numbers]], text)
    return hashlib.sha256(text.getvalue().encode()).hexdigest()
