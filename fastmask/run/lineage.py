"""Lineage: the run, fold and epoch that weights come from, and the photos and persons that they have seen.

A checkpoint carries it in its metadata, so that a copy of the file is checked as well. Checkpoints of earlier versions
have none: for these it follows from their folder and the runs before it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open

from fastmask.data.seen import Hashes, Validation, hash_names, hashes_to_text, text_to_hashes
from fastmask.run.directory import RunDirectory
from fastmask.run.files import CONFIG, FOLDS, REFIT
from fastmask.run.tensors import LINEAGE
from fastmask.system.errors import DataError, UsageError, one_line
from fastmask.system.files import real


@dataclass(frozen=True)
class Lineage:
    """What weights have been through, together with the weights that they started from.

    `seen` are hashes of the photos and persons that they were trained on, `chosen_by` of those whose score chose their
    epoch. `run` is the identity of their run, `epoch` is None for a refit; all are None if unknown.
    """

    seen: Hashes = frozenset()
    chosen_by: Hashes = frozenset()
    run: str | None = None
    fold: int | None = None
    epoch: int | None = None

    def join(self, other: Lineage) -> Lineage:
        """The same weights, which have seen what `other` has seen as well."""
        return Lineage(self.seen | other.seen, self.chosen_by | other.chosen_by, self.run, self.fold, self.epoch)

    def to_text(self) -> str:
        """The text in the metadata of a checkpoint."""
        plain = {"run": self.run, "fold": self.fold, "epoch": self.epoch}
        hashes = {"seen": hashes_to_text(self.seen), "chosen": hashes_to_text(self.chosen_by)}
        return json.dumps({**plain, **hashes})

    @classmethod
    def of_text(cls, text: str) -> Self:
        """The inverse of `to_text`; raises ValueError for other text."""
        try:
            plain = json.loads(text)
            seen, chosen = text_to_hashes(plain["seen"]), text_to_hashes(plain["chosen"])
            run, fold, epoch = plain["run"], plain["fold"], plain["epoch"]
        except (KeyError, RecursionError, TypeError) as error:
            raise ValueError(f"invalid fields: {one_line(error)}") from error
        if not isinstance(run, str | None) or any(type(number) not in (int, type(None)) for number in (fold, epoch)):
            raise ValueError("its run, fold or epoch is of another type")
        return cls(seen, chosen, run, fold, epoch)


def read_lineage(file: Path) -> Lineage | None:
    """The lineage in the metadata of a weights file; None if it has none, as those of other tools."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(LINEAGE)
        return None if text is None else Lineage.of_text(text)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} is not a weights file that can be read safely: {one_line(error)}.") from error
    except ValueError as error:
        raise DataError(
            f"{file} has invalid metadata ({LINEAGE}: {one_line(error)}), so the photos that it has seen are unknown "
            "and a score from it may be too good; copy the file from its run again, or start from other weights."
        ) from error


def lineage_of(weights: str | None, fold: int) -> Lineage:
    """The lineage of the weights that a fold starts from; empty for those of other tools."""
    file = weights_file(weights, fold)
    if file is None:
        return Lineage()
    saved = read_lineage(Path(file)) if Path(file).is_file() else None
    if saved is None:
        return _lineage_by_folders(weights, fold)
    place = _place_of(Path(file))
    if place is None:
        return saved
    run, trained = place
    # photos of the run that were encoded anew are still the same
    return saved.join(Lineage(hash_names(paths=run.seen_by(trained)["path"])))


def _lineage_by_folders(weights: str | None, fold: int) -> Lineage:
    """The lineage of weights without metadata, by the names in the tables of their runs."""
    found = Lineage()
    for run, trained in ancestors(weights, fold):
        seen, own = run.seen_by(trained), run.folds[run.folds["fold"] == trained]
        found = found.join(
            Lineage(
                hash_names(persons=seen["person"], paths=seen["path"]),
                hash_names(persons=own["person"], paths=own["path"]),
            )
        )
    return found


def weights_file(weights: str | None, fold: int) -> str | None:
    """The file that a fold starts from: `weights`, or the fold's best checkpoint if that is a run directory."""
    if weights is None or not Path(weights).is_dir():
        return weights
    folder = Path(weights)
    if not (folder / CONFIG).is_file():
        near = _suggest_weights(folder)
        raise UsageError(f"{weights} is not a run directory; expected a weights file, or the --out of a fit{near}.")
    return str(best_checkpoint(RunDirectory.load(folder), fold))


def _suggest_weights(folder: Path) -> str:
    """The run around a folder, or the first weights file in it, as the end of a sentence."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"))
    near = [folder.parent] if (folder.parent / CONFIG).is_file() else files
    return f", such as --weights {near[0]}" if near else ""


def best_checkpoint(run: RunDirectory, fold: int) -> Path:
    """The best checkpoint of a fold by its own history; raises UsageError if the fold has not finished."""
    return ranked_checkpoints(run, fold)[0]


def ranked_checkpoints(run: RunDirectory, fold: int) -> list[Path]:
    """The checkpoints of a fold, the best by its own history first; raises UsageError if it has not finished."""
    named = ((re.fullmatch("epoch([0-9]+)", file.stem), file) for file in run.checkpoints(fold))
    files = {int(match[1]): file for match, file in named if match}
    if not files or not run.is_done(fold):
        raise UsageError(f"{run.path} has not finished a fold {fold}, so fold {fold} has no weights to start from.")
    values = run.curve(fold)
    return [files[epoch] for epoch in sorted(files, key=lambda epoch: (-values[epoch], epoch))]


def check_no_leak(weights: str | None, validation: Validation) -> None:
    """Raise UsageError if weights have seen a photo, or a person, that their fold validates here.

    This includes the weights that these started from, back to the first.
    """
    found = find_leak(weights, validation)
    if found is None:
        return
    place = _place_of(found.file)
    run = Path("RUN") if place is None else place[0].path
    raise UsageError(
        f"Fold {found.fold} would be validated on {found.name}, which {found} have been trained on: its score would be "
        "too good (see fastmask guide resume). Start each fold from the same fold of their run "
        f"(--weights {run} --folds-file {run / FOLDS}), or from weights that have not seen it."
    )


@dataclass(frozen=True)
class Leak:
    """A fold, the name of a photo or person that it validates, and the file of weights that have seen it."""

    fold: int
    name: str
    file: Path
    lineage: Lineage

    def __str__(self) -> str:
        made = self.lineage
        if made.run is None:
            return f"the weights {self.file}"
        epoch = "the refit" if made.epoch is None else f"epoch{made.epoch:03d}"
        return f"the weights {self.file} ({epoch} of fold {made.fold} of the run {made.run[:8]})"


def find_leak(weights: str | None, validation: Validation) -> Leak | None:
    """The first fold with a photo or person that its weights have seen."""
    for fold in validation.chosen_folds:
        lineage = lineage_of(weights, fold)
        name = validation.find(lineage.seen, fold)
        if name is not None:
            return Leak(fold, name, Path(str(weights_file(weights, fold))), lineage)
    return None


def is_chosen(weights: str | None, validation: Validation) -> bool:
    """Whether the epoch of the weights to start from was chosen by photos that are validated here."""
    return any(validation.find(lineage_of(weights, fold).chosen_by) is not None for fold in validation.chosen_folds)


def ancestors(weights: str | None, fold: int) -> Iterator[tuple[RunDirectory, int]]:
    """The runs and their folds that have trained the weights that a fold starts from, the last one first."""
    seen: list[Path] = []
    while weights is not None:
        if not Path(weights).exists():
            raise UsageError(
                f"{weights} does not exist, so the photos that it has seen are unknown; restore it, or name "
                "other weights."
            )
        file = Path(str(weights_file(weights, fold)))
        place = None if file.parent in seen else _place_of(file)
        if place is None:
            return
        run, fold = place
        if file.name == REFIT:
            raise UsageError(
                f"{file} was refitted on all photos, so it has seen its validation photos; start from the "
                f"run, {run.path}, or from a checkpoint."
            )
        yield run, fold
        seen.append(file.parent)
        weights = run.config.weights


def _place_of(file: Path) -> tuple[RunDirectory, int] | None:
    """The run and the fold with a file in their directory; None if there is none."""
    for place in (file, real(file)):
        named = re.fullmatch(r"fold([0-9]+)", place.parent.name)
        if named is not None and (place.parent.parent / FOLDS).is_file():
            return RunDirectory.load(place.parent.parent), int(named[1])
    return None


def digest_weights(weights: str | None) -> str | None:
    """SHA-256 of the weights to start from, which may differ between machines, or later, under the same name."""
    if weights is None:
        return None
    path = Path(weights)
    files = sorted(path.glob("fold*/epoch*.safetensors")) if path.is_dir() else [path]
    made = hashlib.sha256()
    for file in files:
        made.update(file.read_bytes())
    return made.hexdigest()
