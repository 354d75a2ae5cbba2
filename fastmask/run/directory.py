"""Run: the run directory, the one thing that training hands to everything after it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd

from fastmask.config import Config, make_config
from fastmask.heads import Heads
from fastmask.scoring import DRAWS, Scores, score_heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import (
    check_parent,
    copy_folder,
    move_folder,
    read_json,
    read_strings,
    read_yaml,
    real,
    sync_folder,
    write_csv,
    write_json,
    write_yaml,
)
from fastmask.system.lock import ASIDE, REPLACED
from fastmask.system.terminal import quote
from fastmask.system.text import listed

CONFIG, PIPELINES, HEADS, ENVIRONMENT, FOLDS, SKIPPED, OOF, SCORES = (
    "config.yaml",
    "pipelines.yaml",
    "heads.json",
    "environment.json",
    "folds.csv",
    "skipped.csv",
    "oof.csv",
    "scores.json",
)
# what a run that was made of other runs has instead of pipelines and folds of its own
ENSEMBLE = "ensemble.json"
# photos of other sources that it was trained on
EXTRA = "extra.csv"
# what its teacher says of its photos
TEACHER = "teacher.safetensors"
# what is written about it: the page, the model card, and the folder of their pictures
PAGE, CARD, PICTURES = "report.html", "README.md", "report"
FILES = {CONFIG, PIPELINES, HEADS, ENVIRONMENT, FOLDS, SKIPPED, OOF, SCORES, ENSEMBLE, EXTRA, TEACHER, PAGE, CARD}
# the last file of a fold, and what it goes on from until then
DONE, STATE = "done.json", "state.safetensors"
# a fold's network after its last epochs on all photos
REFIT = "refit.safetensors"
# runs of an ensemble
MOST_MEMBERS = 100
# settings that say where to work, to read and to report, and what to do where that fails, not what to do: folds.csv and
# what environment.json says of a fold's start tell whether what was read is the same
MACHINE_SETTINGS = (
    "workers",
    "device",
    "cache",
    "cache_dir",
    "hours",
    "save_every",
    "tensorboard",
    "wandb",
    "mlflow",
    "launcher",
    "address",
    "per_fold",
    "fetch",
    "on_nan",
    "on_bad_photo",
    "data",
    "images",
    "fixes",
    "boxes",
    "extra",
    "extra_images",
    "pseudo",
    "teacher",
    "folds_file",
    "weights",
)
# those of them that a run is not gone on with unless they are given again
GIVEN_ANEW = ("hours", "launcher", "address", "per_fold", "fetch")


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
        """Make a run directory, whole or not at all; `overwrite` replaces a run, and nothing but a run.

        `skipped` are photos that were left out and why, `trained` directories of folds to copy. What is made of other
        runs says in `ensemble` how, and has no pipelines.
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
            old = Path(aside) / REPLACED
            try:
                if overwrite and place.exists():
                    place.rename(old)
                # replaces an empty folder, and fails where another run has appeared in the meantime
                move_folder(made, place)
                sync_folder(place.parent)
            except BaseException:
                # what is left in `aside` goes with it, and the old run must not
                if old.exists() and not place.exists():
                    old.rename(place)
                raise
        return cls(path, config, heads)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a run directory; raises UsageError if there is none, DataError if a file of it is broken."""
        path = Path(path)
        _check_inside(path)
        missing = next((name for name in (CONFIG, HEADS) if not (path / name).is_file()), None)
        if missing is not None:
            raise UsageError(f"{path} is not a run directory: it has no {missing}; name the --out of a fit.")
        plain = read_yaml(path / CONFIG)
        if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
            raise DataError(f"{path / CONFIG} holds {type(plain).__name__}; expected the settings of a run.")
        try:
            return cls(path, make_config(plain), Heads.from_plain(read_json(path / HEADS)))
        except UsageError as error:
            raise DataError(f"{path} was not written by this version of fastmask: {error}") from error

    @classmethod
    def of(cls, run: RunDirectory | str | Path) -> Self:
        """A run, or the one at a path."""
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
        """One row a photo: path, person, a column a head, fold."""
        frame = self._read(FOLDS, ["path", "person", *self.heads.names, "fold"])
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
        """One row a photo, in the table's order: path, person, fold, a probability a class, true, predicted.

        `true` and `predicted` are joint classes; -1 where a label is unknown.
        """
        oof = self._read(OOF, ["path", "person", "fold", *self.heads.columns, "true", "predicted"])
        columns = ["path", "person", "fold"]
        expected = self.folds[self.folds["fold"].isin(oof["fold"])][columns].reset_index(drop=True)
        if not oof[columns].equals(expected):
            raise DataError(
                f"{self.path / OOF} has {len(oof)} rows that are not the {len(expected)} photos of {self.path / FOLDS} "
                "in their order and folds; restore both."
            )
        return oof

    def _read(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """A CSV of the run: text in the columns that name things, numbers in all others."""
        if not (self.path / name).is_file():
            raise UsageError(f"{self.path} has no {name}: the run has not finished.")
        file = self.path / name
        frame = read_strings(file, columns)
        if frame.empty:
            raise DataError(f"{file} has no rows, which no run leaves behind; restore it.")
        if "path" in columns and frame["path"].duplicated().any():
            raise DataError(
                f"{file} has two rows of {frame['path'][frame['path'].duplicated()].iloc[0]!r}; restore it."
            )
        text = {"path", "person", *self.heads.names}
        made = {c: frame[c] if c in text else self._numbers(file, frame[c]) for c in frame.columns}
        return pd.DataFrame(made).reset_index(drop=True)

    def _numbers(self, file: Path, cells: pd.Series) -> pd.Series:
        """A column of a CSV of the run as numbers; raises DataError naming a cell that cannot be one of it."""
        joint = (-1, self.heads.n_joint - 1)
        whole = {"fold": (0, self.config.folds - 1), "true": joint, "predicted": joint}.get(str(cells.name))
        numbers = pd.to_numeric(cells, errors="coerce")
        if whole is not None:
            good, expected = (
                numbers.between(*whole) & (numbers % 1 == 0),
                f"a whole number from {whole[0]} to {whole[1]}",
            )
        elif cells.name in self.heads.columns:
            # half precision and means round
            good, expected = numbers.between(0, 1 + 1e-3), "a probability from 0 to 1"
        else:
            good, expected = numbers.notna() | cells.isin(["", "nan"]), "a number"
        if not good.all():
            line = good.index[~good][0]
            raise DataError(f"{file}, line {line}, column {cells.name}: found {cells[line]!r}, expected {expected}.")
        return numbers if whole is None else numbers.astype(np.int64)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What environment.json holds."""
        environment: dict[str, Any] = _mapping(self.path / ENVIRONMENT)
        for name in ("start", "packages"):
            if not isinstance(environment.get(name, {}), dict):
                raise DataError(f"{self.path / ENVIRONMENT} holds no mapping under {name}; restore it.")
        if type(environment.get("proposed_fixes", 0)) is not int:
            raise DataError(f"{self.path / ENVIRONMENT} holds no whole number under proposed_fixes; restore it.")
        return environment

    @property
    def start(self) -> dict[str, Any]:
        """What its folds start from that the configuration only names: the body's tag, digests of weights, photos."""
        start: dict[str, Any] = self.environment.get("start", {})
        return start

    def history(self, fold: int) -> pd.DataFrame:
        """One row an epoch of a fold: losses, metrics, learning rate."""
        self.check_trained()
        return self._read(f"fold{fold}/history.csv", ["epoch", self.config.monitor])

    def times(self, fold: int) -> pd.DataFrame:
        """One row an epoch of a fold: its seconds."""
        self.check_trained()
        return self._read(f"fold{fold}/times.csv", ["epoch", "seconds"])

    @property
    def trained_folds(self) -> list[int]:
        """The folds that are trained to their end; an ensemble has none of its own."""
        # of the folders that there are: how many folds there should be is only what a file says
        named = (re.fullmatch("fold([0-9]{1,4})", folder.name) for folder in self.path.glob("fold*"))
        return sorted(f for f in {int(m[1]) for m in named if m} if f < self.config.folds and self.is_done(f))

    def checkpoints(self, fold: int) -> list[Path]:
        """The best checkpoints of a fold, by epoch."""
        self.check_trained()
        return sorted(self.fold_path(fold).glob("epoch*.safetensors"))

    @property
    def refitted(self) -> list[int]:
        """The folds that have a network that was trained on all photos at last."""
        return [fold for fold in self.trained_folds if (self.fold_path(fold) / REFIT).is_file()]

    def models(self, fold: int, refit: bool = True) -> list[Path]:
        """What a fold predicts with: its network that was trained on all photos at last, or its best checkpoints.

        Raises UsageError where only some of the folds have such a network.
        """
        if not refit or not self.refitted:
            return self.checkpoints(fold)
        if self.refitted != self.trained_folds:
            raise UsageError(
                f"{self.path} has fold {self.refitted[0]} refitted, and not all others: finish it "
                f"({go_on(self.path)}), or predict by the checkpoints (--no-refit)."
            )
        return [self.fold_path(fold) / REFIT]

    def seen_by(self, fold: int) -> pd.DataFrame:
        """Path and person of each photo that the models of a fold were trained on, extra ones included."""
        own = self.folds.loc[self.folds["fold"] != fold, ["path", "person"]]
        if self.extra is None:
            return own
        kept = [str(fold) not in left.split() for left in self.extra["without"]]
        # their paths start from another folder
        return pd.concat([own, self.extra.loc[kept, ["person"]].assign(path="")], ignore_index=True)

    @cached_property
    def extra(self) -> pd.DataFrame | None:
        """Path, person and `without` (the folds that left it out) of each photo of other sources; None without any."""
        if not (self.path / EXTRA).is_file():
            return None
        return read_strings(self.path / EXTRA, ("path", "person", "without"))

    def photos_digest(self, fold: int) -> str:
        """SHA-256 of the paths of the photos that a fold validates, in their order."""
        paths = self.folds["path"][self.folds["fold"] == fold]
        return hashlib.sha256("\n".join(paths).encode()).hexdigest()

    def is_done(self, fold: int) -> bool:
        """Whether a fold is trained to its end; then it is never touched again."""
        return (self.fold_path(fold) / DONE).is_file()

    @property
    def is_ensemble(self) -> bool:
        """Whether it was made of other runs, and has no models of its own."""
        return (self.path / ENSEMBLE).is_file()

    @cached_property
    def ensemble(self) -> dict[str, Any]:
        """What ensemble.json holds: the `blend`, its `weights`, the `members`, the `caveats` of their scores."""
        plain = _mapping(self.path / ENSEMBLE)
        members, texts = plain.get("members"), ("name", "path", "identity", "oof")
        whole = (
            isinstance(members, list)
            and all(isinstance(m, dict) and all(isinstance(m.get(text), str) for text in texts) for m in members)
            and isinstance(plain.get("blend"), str)
            and isinstance(plain.get("weights"), dict)
            and isinstance(plain.get("caveats"), list)
            and all(isinstance(caveat, str) for caveat in plain["caveats"])
        )
        if not whole:
            raise DataError(
                f"{self.path / ENSEMBLE} does not hold a blend, its weights, members and caveats; restore it."
            )
        if not 2 <= len(plain["members"]) <= MOST_MEMBERS:
            raise DataError(
                f"An ensemble is made of 2 to {MOST_MEMBERS} runs; {self.path / ENSEMBLE} names "
                f"{len(plain['members'])}: restore it."
            )
        return plain

    def check_trained(self) -> None:
        """Raise UsageError for an ensemble, which has no models of its own."""
        if self.is_ensemble:
            raise UsageError(
                f"{self.path} is an ensemble, which was not trained and has no models of its own; name one of its "
                f"runs, as {ENSEMBLE} lists them."
            )

    @property
    def is_scored(self) -> bool:
        """Whether there are out-of-fold predictions of it yet."""
        return (self.path / OOF).is_file()

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides what it comes to: settings, pipelines, heads, what it starts from."""
        settings = {name: value for name, value in self.config.to_plain().items() if name not in MACHINE_SETTINGS}
        made = self._made_of if self.is_ensemble else self.pipelines
        what = [settings, made, self.heads.to_plain(), self.start]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def _made_of(self) -> list[Any]:
        """The blend of an ensemble and its members, wherever they lie."""
        members = [(member["identity"], member["oof"]) for member in self.ensemble["members"]]
        return [self.ensemble["blend"], self.ensemble["weights"], members]

    @property
    def scores(self) -> dict[str, Any]:
        """What scores.json holds."""
        return _mapping(self.path / SCORES)

    def score(self, draws: int = DRAWS) -> Scores:
        """Macro-F1 and accuracy of the OOF predictions, with 95 % intervals by bootstrap over persons.

        By the score's age bounds, whatever training used; a fold's epoch is the one that the other folds chose.
        """
        scores = score_heads(self.heads, self.predicted, self.true, self.persons, draws, self.y)
        scores.notes.extend(self.caveats)
        return scores

    @property
    def is_leaky(self) -> bool:
        """Whether it, or a run that it was made of, was split by photos: models have seen persons that they judge."""
        return self.config.group == "none"

    @property
    def caveats(self) -> list[str]:
        """What makes its score another than that of an honest, whole cross-validation; mostly nothing.

        Those of an ensemble are its members', but for heads that one has not learned and another has.
        """
        unlearned = self.heads.unlearned
        if not unlearned:
            return self.doubts
        what = f"{', '.join(unlearned)} (weight 0) was never learned: its score and the joint one mean nothing."
        return [what, *self.doubts]

    @property
    def doubts(self) -> list[str]:
        """Its caveats but for those of the heads."""
        if self.is_ensemble:
            return list(self.ensemble["caveats"])
        trained = sorted(set(self.oof["fold"].astype(int)))
        caveats = []
        if len(trained) < self.config.folds:
            only = f"{listed(trained, 'fold')} {'is' if len(trained) == 1 else 'are'}"
            caveats.append(f"Of {self.config.folds} folds only {only} trained: a part of the photos.")
        if self.start.get("chosen_weights"):
            caveats.append(
                "Each fold started from an epoch that its own photos had chosen (--weights RUN): this score flatters a "
                "little; compare it only with runs that started there, too."
            )
        taught = [name for name in ("pseudo", "teacher") if getattr(self.config, name)]
        if taught:
            caveats.append(
                f"Each fold learned from a teacher's epoch that its own photos had chosen (--{', --'.join(taught)}): "
                "this score flatters a little; compare it only with runs that did so, too."
            )
        if self.environment.get("proposed_fixes"):
            caveats.append(
                f"{self.environment['proposed_fixes']} corrections of labels are a model's own and nobody has looked "
                "at them: this score flatters."
            )
        if self.is_leaky:
            caveats.append("Leaky split (--group none): this score flatters and says nothing about new people.")
        return caveats

    @property
    def persons(self) -> np.ndarray:
        """(N,) whose photo each of `oof` is."""
        return self.oof["person"].to_numpy(dtype=object)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, classes of all heads) OOF probabilities."""
        return self.oof[self.heads.columns].to_numpy(np.float64)

    @property
    def predicted(self) -> np.ndarray:
        """(N, heads) OOF class numbers."""
        return self.heads.argmax(self.probabilities)

    @cached_property
    def y(self) -> np.ndarray:
        """(N, heads) class numbers of every photo in `folds` by the score's bounds; -1 is unknown."""
        return self.heads.encode_frame(self.folds)

    @property
    def true(self) -> np.ndarray:
        """(N, heads) class numbers of every photo in `oof` by the score's bounds; -1 is unknown."""
        rows = pd.Index(self.folds["path"]).get_indexer(pd.Index(self.oof["path"]))
        if (rows < 0).any():
            raise DataError(f"{self.path / OOF} names photos that {self.path / FOLDS} does not.")
        return self.y[rows]


def _mapping(file: Path) -> dict[str, Any]:
    plain = read_json(file)
    if not isinstance(plain, dict):
        raise DataError(f"{file} holds {type(plain).__name__}; expected a mapping.")
    return plain


def _check_inside(path: Path) -> None:
    """Raise DataError where something of a run is a link out of its directory, or neither a file nor a folder.

    A run may be somebody else's: what is read of it, copied or written into it, is its own.
    """
    named = [*path.glob("fold*"), path / PICTURES]
    within = [e for folder in named if folder.is_dir() and not folder.is_symlink() for e in folder.rglob("*")]
    place = os.path.realpath(path)
    for entry in (*(path / name for name in sorted(FILES)), *named, *within):
        if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(place):
            raise DataError(f"{entry} is a link out of the run; put what it points to in its place.")
        special = entry.exists() and not entry.is_file() and not entry.is_dir()
        # only folders have no ending
        if special or (entry.suffix and entry.is_dir()) or (entry.is_symlink() and not entry.exists()):
            raise DataError(f"{entry} is not a plain file; restore it.")


def differing_settings(one: Config, other: Config) -> list[str]:
    """The names of the settings in which two configurations ask for different results."""
    a, b = one.to_plain(), other.to_plain()
    return [name for name in a if a[name] != b[name] and name not in MACHINE_SETTINGS]


def differing_start(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In words, what two runs start from that differs."""
    words = {
        "tag": "body",
        "weights": "weights",
        "loss": "loss",
        "photos": "content of the photos",
        "extra": "extra photos or labels",
        "teacher": "teacher",
        "boxes": "boxes of faces",
    }
    return [what for name, what in words.items() if one.get(name) != other.get(name)]


def check_free(path: Path, overwrite: bool = False) -> None:
    """Raise UsageError if a run cannot be written at `path`."""
    place = real(path)
    check_parent(place)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{path} is a file; name another folder with --out.")
    if not place.exists() or not any(place.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{path} exists; name another folder with --out, or replace it with --overwrite.")
    names = {entry.name for entry in place.iterdir() if not fnmatch(entry.name, ".*.part")}
    foreign = sorted(n for n in names - FILES - {PICTURES} if not re.fullmatch(r"fold[0-9]+", n))
    foreign += sorted(f"{PICTURES}/{e.name}" for e in (place / PICTURES).glob("*") if not _is_picture(e))
    if foreign or not {CONFIG, HEADS, FOLDS} <= names:
        why = f"it holds {foreign[0]}" if foreign else "it lacks a run's files"
        raise UsageError(f"{path} is not a run ({why}), so --overwrite leaves it alone; name another --out.")


def _is_picture(entry: Path) -> bool:
    return entry.suffix == ".png" or fnmatch(entry.name, ".*.part")


def resumed(config: Config, out: str | Path) -> Config:
    """The settings to go on with: those that the run at `out` was started with, under those that are given now.

    Hours and a launcher are not taken over; what hours gave up, or what bs auto found, stays as it was.
    """
    run = RunDirectory.load(out)
    run.check_trained()
    saved, given = run.config, config.model_dump(exclude_unset=True)
    if "data" not in given and saved.data != "sample" and not Path(saved.data).exists():
        raise UsageError(f"{out} was trained on {saved.data}, which is not there any more, or from here; give --data.")
    fixed = {"epochs", "folds"} if config.hours is not None else set()
    fixed |= {"bs", "accumulate"} if config.bs == "auto" else set()
    # a file of folds says how many there are
    without = {*GIVEN_ANEW, *(["folds"] if saved.folds_file is not None else [])}
    return make_config(saved.model_dump(exclude=without), {n: v for n, v in given.items() if n not in fixed})


def go_on(out: Path, *options: str) -> str:
    """The line to type to go on with a run, with what its own settings do not tell."""
    return " ".join(map(quote, ["fastmask", "fit", "--resume", "--out", str(out), *options]))
