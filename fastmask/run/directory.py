"""Directory: a run on disk, which training writes and all later steps read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd

from fastmask.config import CONTEST, Config, Kind, make_config
from fastmask.data.groups import describe_joined
from fastmask.data.table import groups_of
from fastmask.decision.rule import PLAIN
from fastmask.heads import UNKNOWN, Heads
from fastmask.run.caveats import all_caveats
from fastmask.run.composition import read_ensemble, read_soup
from fastmask.run.files import (
    CONFIG,
    DONE,
    ENSEMBLE,
    ENVIRONMENT,
    EXTRA,
    FOLDS,
    HEADS,
    OOF,
    PIPELINES,
    REFIT,
    SCORES,
    SKIPPED,
    STATE,
    check_free,
    check_inside,
)
from fastmask.run.identity import NOT_COMPARED
from fastmask.run.tables import read_table
from fastmask.scoring import DRAWS, Scores, goodness, score_heads, scored_classes
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import (
    copy_folder,
    read_json,
    read_mapping,
    read_strings,
    read_yaml,
    real,
    replace_folder,
    write_csv,
    write_json,
    write_yaml,
)
from fastmask.system.lock import ASIDE, REPLACED
from fastmask.system.terminal import quote

_DECIDED = "The run's own score is of classes by the decision {}, whose rule is fitted on other persons."


@dataclass(frozen=True)
class RunDirectory:
    """A run directory: configuration, folds, checkpoints, histories, out-of-fold (OOF) predictions, scores."""

    path: Path
    config: Config
    heads: Heads

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Config,
        heads: Heads,
        *,
        pipelines: Mapping[str, Any] | None,
        folds: pd.DataFrame,
        environment: Any,
        skipped: Sequence[tuple[str, str]] = (),
        trained: Mapping[int, Path] | None = None,
        ensemble: Mapping[str, Any] | None = None,
        extra: pd.DataFrame | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Make a run directory, completely or not at all; `overwrite` replaces a run, and only a run.

        `skipped` are photos that were left out and why, `trained` directories of folds to copy, `ensemble` the content
        of ensemble.json for a run that is made of others and has no pipelines.
        """
        path = Path(path)
        check_free(path, overwrite)
        place = real(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            prefix=f".{place.name}.", suffix=ASIDE, dir=place.parent, ignore_cleanup_errors=True
        ) as aside:
            made = Path(aside) / "new"
            made.mkdir()
            write_yaml(made / CONFIG, config.to_plain())
            if pipelines is not None:
                write_yaml(made / PIPELINES, dict(pipelines))
            if ensemble is not None:
                write_json(made / ENSEMBLE, dict(ensemble))
            write_json(made / HEADS, heads.to_plain())
            write_json(made / ENVIRONMENT, environment)
            write_csv(made / FOLDS, folds)
            if extra is not None:
                write_csv(made / EXTRA, extra)
            if skipped:
                write_csv(made / SKIPPED, pd.DataFrame(skipped, columns=["path", "why"]))
            for fold, source in (trained or {}).items():
                copy_folder(source, made / f"fold{fold}", without=STATE)
            replace_folder(made, place, Path(aside) / REPLACED if overwrite else None)
        return cls(path, config, heads)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a run directory; raises UsageError if there is none, DataError if one of its files is invalid."""
        path = Path(os.path.expanduser(path))
        check_inside(path)
        missing = next((name for name in (CONFIG, HEADS) if not (path / name).is_file()), None)
        if missing is not None:
            raise UsageError(f"{path} is not a run directory: it has no {missing}; name the --out of a fit.")
        plain = read_yaml(path / CONFIG, Config.texts())
        if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
            raise DataError(f"{path / CONFIG} holds {type(plain).__name__}; expected the settings of a run.")
        try:
            return cls(path, make_config(_complete(plain)), Heads.from_plain(read_json(path / HEADS)))
        except UsageError as error:
            raise DataError(f"{path} was not written by this version of fastmask: {error}") from error

    @classmethod
    def of(cls, run: RunDirectory | str | Path) -> Self:
        """A run, or the run at a path."""
        if isinstance(run, cls):
            return run
        return cls(run.path, run.config, run.heads) if isinstance(run, RunDirectory) else cls.load(run)

    def fold_path(self, fold: int) -> Path:
        """The directory of one fold."""
        return self.path / f"fold{fold}"

    @cached_property
    def pipelines(self) -> dict[str, Any]:
        """The augmentation as albumentations' own serialisation: {"train": ..., "valid": ...}."""
        self.check_trained()
        plain = read_yaml(self.path / PIPELINES)
        if not isinstance(plain, dict) or not {"train", "valid"} <= set(plain):
            raise DataError(f"{self.path / PIPELINES} does not hold the pipelines train and valid.")
        return plain

    @cached_property
    def folds(self) -> pd.DataFrame:
        """One row per photo: path, person, a column per head, fold; same_as where persons share identical photos."""
        frame = self._table(FOLDS, ["path", "person", *self.heads.names, "fold"])
        for head in self.heads:
            unknown = sorted(set(frame[head.name]) - {"", *head.classes})
            if unknown:
                raise DataError(
                    f"{self.path / FOLDS}, column {head.name}: found {unknown[0]!r}, expected one of "
                    f"{', '.join(head.classes)}, or nothing if unknown."
                )
        return frame

    @cached_property
    def oof(self) -> pd.DataFrame:
        """One row per photo, in the table's order: path, person, fold, a probability per class, true, predicted.

        `true` and `predicted` are joint classes, -1 if a label is unknown.
        """
        oof = self._table(OOF, ["path", "person", "fold", *self.heads.columns, "true", "predicted"])
        columns = ["path", "person", "fold"]
        expected = self.folds[self.folds["fold"].isin(oof["fold"])][columns].reset_index(drop=True)
        if not oof[columns].equals(expected):
            raise DataError(
                f"{self.path / OOF} has {len(oof)} rows that are not the {len(expected)} photos of {self.path / FOLDS} "
                "in their order and folds; restore both."
            )
        return oof

    def _table(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        return read_table(self.path / name, columns, self.heads, self.config.folds)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of environment.json."""
        environment: dict[str, Any] = read_mapping(self.path / ENVIRONMENT)
        for name in ("start", "packages"):
            if not isinstance(environment.get(name, {}), dict):
                raise DataError(f"{self.path / ENVIRONMENT} holds no mapping under {name}; restore it.")
        if type(environment.get("proposed_fixes", 0)) is not int:
            raise DataError(f"{self.path / ENVIRONMENT} holds no whole number under proposed_fixes; restore it.")
        return environment

    @property
    def start(self) -> dict[str, Any]:
        """The starting point of its folds, which the configuration only names: the body's tag, digests of files."""
        start: dict[str, Any] = self.environment.get("start", {})
        return start

    def history(self, fold: int) -> pd.DataFrame:
        """One row per epoch of a fold: losses, metrics, learning rate."""
        self.check_trained()
        return self._table(f"fold{fold}/history.csv", ["epoch", self.config.monitor])

    def curve(self, fold: int) -> np.ndarray:
        """(epochs,) the goodness of each epoch of a fold by the monitored metric; NaN where it was not validated."""
        history = self.history(fold)
        values = goodness(history[self.config.monitor], self.config.monitor)
        if self.config.validate_every == 1:
            return values
        scores = history.drop(columns=["epoch", "train_loss", "lr"], errors="ignore")
        return np.where(scores.notna().any(axis=1), values, np.nan)

    def times(self, fold: int) -> pd.DataFrame:
        """One row per epoch of a fold: its seconds."""
        self.check_trained()
        return self._table(f"fold{fold}/times.csv", ["epoch", "seconds"])

    @property
    def trained_folds(self) -> list[int]:
        """The folds that have finished; none for an ensemble."""
        # of existing folders, because the number of folds in a file may be forged
        named = (re.fullmatch("fold([0-9]{1,4})", folder.name) for folder in self.path.glob("fold*"))
        return sorted(f for f in {int(m[1]) for m in named if m} if f < self.config.folds and self.is_done(f))

    def checkpoints(self, fold: int) -> list[Path]:
        """The best checkpoints of a fold, by epoch."""
        self.check_trained()
        return sorted(self.fold_path(fold).glob("epoch*.safetensors"))

    @property
    def refitted(self) -> list[int]:
        """The folds with a network that was refitted on all photos."""
        return [fold for fold in self.trained_folds if (self.fold_path(fold) / REFIT).is_file()]

    def models(self, fold: int, refit: bool = True) -> list[Path]:
        """The files that a fold predicts with: its network that was refitted on all photos, or its best checkpoints.

        Raises UsageError if only some folds were refitted.
        """
        if not refit or not self.refitted:
            return self.checkpoints(fold)
        if self.refitted != self.trained_folds:
            raise UsageError(
                f"{self.path} has fold {self.refitted[0]} refitted, and not all others: finish it "
                f"({resume_command(self.path)}), or predict by the checkpoints (--no-refit)."
            )
        return [self.fold_path(fold) / REFIT]

    def seen_by(self, fold: int) -> pd.DataFrame:
        """Path and person of each photo that the models of a fold were trained on, including extra photos."""
        own = self.folds.loc[self.folds["fold"] != fold, ["path", "person"]]
        if self.extra is None:
            return own
        kept = [str(fold) not in left.split() for left in self.extra["without"]]
        # their paths are relative to another folder
        return pd.concat([own, self.extra.loc[kept, ["person"]].assign(path="")], ignore_index=True)

    @cached_property
    def extra(self) -> pd.DataFrame | None:
        """Path, person and `without` (the folds that left it out) of each extra photo; None if there are none."""
        if not (self.path / EXTRA).is_file():
            return None
        return read_strings(self.path / EXTRA, ("path", "person", "without"))

    def photos_digest(self, fold: int) -> str:
        """SHA-256 of the paths of a fold's validation photos, in order."""
        paths = self.folds["path"][self.folds["fold"] == fold]
        return hashlib.sha256("\n".join(paths).encode()).hexdigest()

    def is_done(self, fold: int) -> bool:
        """Whether a fold has finished; then it is never changed again."""
        return (self.fold_path(fold) / DONE).is_file()

    @property
    def is_ensemble(self) -> bool:
        """Whether it was made of other runs and has no models."""
        return (self.path / ENSEMBLE).is_file()

    @cached_property
    def ensemble(self) -> dict[str, Any]:
        """The content of ensemble.json: the `blend`, its `weights`, the `members`, the `caveats` of their scores."""
        return read_ensemble(self.path / ENSEMBLE)

    @property
    def soup(self) -> dict[str, Any] | None:
        """Of a soup of checkpoints: its `runs`, its `members` per fold, the `caveats` of its score; else None."""
        return read_soup(self.environment, self.path / ENVIRONMENT)

    def check_trained(self) -> None:
        """Raise UsageError for an ensemble, which has no models."""
        if self.is_ensemble:
            raise UsageError(
                f"{self.path} is an ensemble, which has no models; name one of its runs, as {ENSEMBLE} lists them."
            )

    @property
    def is_scored(self) -> bool:
        """Whether it has out-of-fold predictions."""
        return (self.path / OOF).is_file()

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides its result: settings, pipelines, heads, starting point.

        Without defaults, so that a setting that a later version adds does not change it.
        """
        config = self.config
        settings = {n: value for n, value in config.to_plain().items() if n not in NOT_COMPARED and config.is_set(n)}
        heads = [{n: value for n, value in head.items() if value is not None} for head in self.heads.to_plain()]
        made = self._made_of if self.is_ensemble else self.pipelines
        what = [settings, made, heads, self.start]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def _made_of(self) -> list[Any]:
        """The blend of an ensemble and its members, without their paths."""
        members = [(member["identity"], member["oof"]) for member in self.ensemble["members"]]
        return [self.ensemble["blend"], self.ensemble["weights"], members]

    @property
    def scores(self) -> dict[str, Any]:
        """The content of scores.json."""
        return read_mapping(self.path / SCORES)

    @cached_property
    def classes(self) -> dict[str, list[int]]:
        """The classes that its macro-F1 counts: those of the labels of all its photos, and of its OOF predictions."""
        return scored_classes(self.heads, [self.predicted], self.true, self.y)

    def score(self, draws: int = DRAWS, classes: Mapping[str, Sequence[int]] | None = None) -> Scores:
        """Macro-F1 and accuracy of the OOF predictions, with 95 % intervals over persons as `fastmask.scoring.score`.

        With the age bounds of the score, whatever training used; each fold's epoch is chosen by the other folds. The
        means are over `classes`, by default its own.
        """
        chosen = self.classes if classes is None else classes
        scores = score_heads(self.heads, self.predicted, self.true, self.groups, draws, chosen)
        persons, folds = (self.folds[name].to_numpy(dtype=object) for name in ("person", "fold"))
        joined = describe_joined(persons, groups_of(self.folds), folds)
        decided = [] if self.config.decision == PLAIN else [_DECIDED.format(self.config.decision)]
        scores.notes.extend([*([f"{joined}."] if joined else []), *decided, *self.caveats])
        return scores

    @property
    def is_leaky(self) -> bool:
        """Whether it, or one of its members, was split by photos, so that models have seen persons they predict."""
        return self.config.group == "none"

    @property
    def caveats(self) -> list[str]:
        """Why its score differs from that of an honest and complete cross-validation; usually nothing."""
        return all_caveats(self)

    @property
    def persons(self) -> np.ndarray:
        """(N,) the person of each photo in `oof`."""
        return self.oof["person"].to_numpy(dtype=object)

    @property
    def groups(self) -> np.ndarray:
        """(N,) the group of each photo in `oof`: its person, or persons who share identical photos."""
        return groups_of(self.folds)[self._oof_rows]

    @property
    def probabilities(self) -> np.ndarray:
        """(N, classes of all heads) OOF probabilities."""
        return self.oof[self.heads.columns].to_numpy(np.float64)

    @property
    def predicted(self) -> np.ndarray:
        """(N, heads) OOF class numbers by the run's decision."""
        return decided_classes(self.heads, self.oof, self.config.decision)

    @cached_property
    def y(self) -> np.ndarray:
        """(N, heads) class numbers of every photo in `folds` by the score's bounds; -1 is unknown."""
        return self.heads.encode_frame(self.folds)

    @property
    def true(self) -> np.ndarray:
        """(N, heads) class numbers of every photo in `oof` by the score's bounds; -1 is unknown."""
        return self.y[self._oof_rows]

    @property
    def _oof_rows(self) -> np.ndarray:
        """(N,) the row in `folds` of each photo in `oof`."""
        rows = pd.Index(self.folds["path"]).get_indexer(pd.Index(self.oof["path"]))
        if (rows < 0).any():
            raise DataError(f"{self.path / OOF} names photos that {self.path / FOLDS} does not.")
        return rows


def decided_classes(heads: Heads, oof: pd.DataFrame, decision: str) -> np.ndarray:
    """(N, heads) class numbers of an OOF table, whose joint classes are by `decision`; the others are most probable."""
    y = heads.argmax(oof[heads.columns].to_numpy(np.float64))
    if decision == PLAIN:
        return y
    chosen = heads.unjoint(oof["predicted"].to_numpy(np.int64))
    return np.where(chosen == UNKNOWN, y, chosen)


def _complete(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, also of an earlier version, which cut all photos as those of the contest."""
    if "fit" in plain:
        return plain
    return {**plain, "crop": None} if plain.get("train_pipeline") else {**plain, "fit": CONTEST}


def resume_config(config: Config, out: str | Path, has_table: bool = False) -> Config:
    """The settings with which the run at `out` is resumed: the saved ones, overridden by those given now.

    Raises UsageError where its data is not there, unless the caller `has_table`, which may be made in memory.
    A time limit and a launcher are not taken over; epochs and folds that a limit dropped, a batch size that bs auto
    found, a size that auto_resize found, whether flip mirrors and whether compile auto compiles, stay.
    """
    run = RunDirectory.load(out)
    run.check_trained()
    saved, given = run.config, config.model_dump(exclude_unset=True)
    if not has_table and "data" not in given and saved.data != "sample" and not Path(saved.data).exists():
        raise UsageError(f"{out} was trained on {saved.data}, which does not exist from here; give --data.")
    fixed = {"epochs", "folds"} if config.time_limit is not None else set()
    fixed |= {"bs", "accumulate"} if config.bs == "auto" else set()
    fixed |= {"compile"} if config.compile == "auto" else set()
    fixed |= {"flip", "augment", "views"} if config.flip else set()
    fixed |= {"resize", "auto_resize"} if config.auto_resize else set()
    # a folds file defines how many there are
    without = {*Config.of_kind(Kind.RESTATED), *(["folds"] if saved.folds_file is not None else [])}
    return make_config(saved.model_dump(exclude=without), {n: v for n, v in given.items() if n not in fixed})


def resume_command(out: Path, *options: str) -> str:
    """The command line that resumes a run, with `options` that are not among its settings."""
    return " ".join(map(quote, ["fastmask", "fit", "--resume", "--out", str(out), *options]))
