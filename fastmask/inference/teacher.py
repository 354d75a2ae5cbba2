"""Teacher: a run that a student learns from, by pseudo-labels of new photos, or soft labels of its own (distillation).

Each fold of the student learns only from the teacher's models of the same fold, which were not trained on the photos
and persons that this fold validates. The teacher's out-of-fold predictions are never used, because they come from
models that were. Distillation: Hinton, Vinyals, Dean 2015.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from fastmask.config import Config
from fastmask.data.pseudo import MARK, SEEN, Pseudo
from fastmask.data.seen import Validation
from fastmask.heads import JOINT, Head, Heads
from fastmask.inference.alignment import oof_of
from fastmask.inference.blend import Blend, fit_blend, widen
from fastmask.inference.failures import FAILED, write_failed
from fastmask.inference.members import open_members
from fastmask.inference.options import PhotoOptions
from fastmask.inference.predictions import Predictions, predict
from fastmask.run.directory import RunDirectory
from fastmask.run.files import FOLDS, TEACHER
from fastmask.run.lineage import Lineage, digest_weights, find_leak, lineage_of
from fastmask.run.tensors import save_tensors
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import check_parent
from fastmask.system.terminal import Progress, Say
from fastmask.training.plan import Plan


def make_pseudo(
    run: RunDirectory | str | Path,
    images: str | Path,
    out: str | Path,
    options: PhotoOptions | None = None,
    *,
    progress: Progress | None = None,
    **given: Any,
) -> Pseudo:
    """Label the photos of a folder with each fold's checkpoints, and write the labels to `out`, a new or empty folder.

    Photos that cannot be predicted are left out, and listed in failed.csv there. Raises UsageError for a run that lacks
    folds, or has a leaky split, since a student's score would be too high.

    >>> pseudo = fm.make_pseudo(run, "data/eval/images", "labels")
    >>> len(pseudo), pseudo.probabilities.shape
    (28, (2, 28, 8))
    """
    run, folder, options = RunDirectory.of(run), Path(out), PhotoOptions.of(options, given)
    run.check_trained()
    _check_complete(run)
    if run.config.group == "none":
        raise UsageError(f"{run.path} was split by photos (--group none), so its models have seen all persons.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; name a new or an empty folder.")
    check_parent(folder / MARK)
    if not Path(images).is_dir():
        raise UsageError(f"{images} is not a folder; expected a folder of photos.")
    found = predict(run, images, refit=False, progress=progress, **options.model_dump())
    seen = [_lineage(run, fold).seen for fold in range(run.config.folds)]
    labels = np.stack(_split_by_fold(run, found))
    made = Pseudo(Path(images), found.names, run.heads, labels, _unseen_folds(run), seen, found.failed, found.notes)
    write_failed(folder / FAILED, found.failed)
    made.write(folder, {"run": str(run.path), "identity": run.identity})
    return made


def _lineage(run: RunDirectory, fold: int) -> Lineage:
    """The lineage of a fold's models, the same for all of its checkpoints."""
    return lineage_of(str(run.checkpoints(fold)[0]), fold)


def _check_complete(run: RunDirectory) -> None:
    missing = sorted(set(range(run.config.folds)) - set(run.trained_folds))
    if missing:
        raise UsageError(f"The teacher {run.path} lacks fold {missing[0]}, which the same fold of the student needs.")


def _split_by_fold(run: RunDirectory, found: Predictions) -> list[np.ndarray]:
    return [found.members[f"fold{fold}"] for fold in range(run.config.folds)]


def _unseen_folds(run: RunDirectory) -> pd.DataFrame:
    """Path, person, and the fold with models not trained on them; SEEN if several folds were (extra photos)."""
    folds = run.folds[["path", "person", "fold"]]
    if run.extra is None:
        return folds
    fold = [int(left) if left.isdecimal() else SEEN for left in run.extra["without"]]
    return pd.concat([folds, run.extra[["person"]].assign(path="", fold=fold)], ignore_index=True)


@dataclass(frozen=True)
class Teacher:
    """A run or an ensemble, the `runs` that it consists of, its weight in a label, and the temperature of the loss."""

    run: RunDirectory
    runs: Mapping[str, RunDirectory]
    weight: float
    temperature: float

    def digest(self) -> str:
        """SHA-256 of its networks and its blend."""
        parts = [self.run.identity, *(f"{digest_weights(str(run.path))}" for run in self.runs.values())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def lineage(self, fold: int) -> Lineage:
        """What its models of a fold have seen."""
        return reduce(Lineage.join, (_lineage(run, fold) for run in self.runs.values()))

    def probabilities_for(self, head: Head, predicted: np.ndarray) -> np.ndarray | None:
        """As `Heads.probabilities_for` of a student's head; None also if the teacher has not learned it."""
        lacking = self.run.heads.unlearned
        return None if lacking and head.name in (JOINT, *lacking) else self.run.heads.probabilities_for(head, predicted)

    def mix(self, own: np.ndarray, predicted: np.ndarray, heads: Heads) -> np.ndarray:
        """Mix (N, classes of `heads`) labels with the teacher's (N, classes of its heads) probabilities.

        A head that the teacher has not learned keeps its label; an unknown label becomes the teacher's probabilities.
        With a temperature the shares of both are kept apart, (N, 2, classes of `heads`), because the loss compares the
        teacher's with the student's at the temperature; see `fastmask.labels`.
        """
        shares = np.stack([own, np.zeros_like(own)], axis=1).astype(np.float32)
        for head, (label, soft) in zip(heads, (np.moveaxis(part, 1, 0) for part in heads.split(shares)), strict=True):
            theirs = self.probabilities_for(head, predicted)
            if theirs is not None:
                soft[:] = np.where(label.any(axis=1, keepdims=True), self.weight * theirs, theirs)
                label *= 1 - self.weight
        return shares if self.temperature != 1 else shares.sum(axis=1)

    def predict(self, plan: Plan, say: Say) -> np.ndarray:
        """(folds + 1, N, classes of its heads) probabilities of the plan's photos: by each fold's models, then by all.

        They include the photos that a fold validates, which that fold does not use.
        """
        config, table = plan.config, plan.table
        photos = [table.photo(row) for row in range(len(table))]
        say(f"Predicting {len(photos)} photos with the teacher {self.run.path}")
        each: dict[str, list[np.ndarray]] = {}
        for name, run in self.runs.items():
            # the student may be trained on uncropped photos
            boxes = (config.boxes or run.config.boxes) if run.config.boxes else None
            loading: dict[str, Any] = {
                "root": table.root,
                "boxes": boxes,
                "device": config.device,
                "workers": config.workers,
                # the run's own, since their number changes the last bits
                "threads": torch.get_num_threads(),
            }
            found = predict(run, photos, refit=False, on_bad_photo="error", **loading)
            each[name] = [*_split_by_fold(run, found), found.probabilities]
        return np.stack(
            [self._blend_fold(fold, [of[fold] for of in each.values()]) for fold in range(config.folds + 1)]
        )

    def _blend_fold(self, fold: int, members: Sequence[np.ndarray]) -> np.ndarray:
        """Blend the predictions of the runs' models of a fold; the number after the last fold means all folds."""
        if not self.run.is_ensemble:
            return np.asarray(members[0], np.float32)
        heads, runs = self.run.heads, list(self.runs.values())
        wide = [widen(heads, run.heads, own) for run, own in zip(runs, members, strict=True)]
        blend = Blend.of(self.run)
        if blend.is_fitted and fold < self.run.config.folds:
            # that of `predict` is fitted on the labels of all folds, including the validated one
            other = self.run.oof["fold"].to_numpy() != fold
            oofs = [oof_of(heads, self.run.oof["path"], run)[other] for run in runs]
            blend = fit_blend(blend.how, heads, oofs, self.run.true[other], self.run.groups[other])
        return blend.mix(wide).astype(np.float32)

    def load_predictions(self, run: RunDirectory, plan: Plan, say: Say) -> np.ndarray:
        """The result of `predict`, from the run's file if it exists, so that a resumed run has the same."""
        file = run.path / TEACHER
        shape = (plan.config.folds + 1, len(plan.table), self.run.heads.n_logits)
        if not file.exists():
            save_tensors({"answers": torch.from_numpy(self.predict(plan, say))}, file)
        return read_predictions(file, shape)


def read_predictions(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read the teacher's probabilities from a run's file; raises DataError if it does not hold them."""
    wrong = DataError(f"{file} does not hold the teacher's probabilities of the run's photos; remove it to redo them.")
    try:
        with safe_open(file, framework="numpy") as opened:
            saved = opened.get_slice("answers")
            if tuple(saved.get_shape()) != shape or saved.get_dtype() != "F32":
                raise wrong
            predicted: np.ndarray = opened.get_tensor("answers")
    except (OSError, MemoryError, SafetensorError) as error:
        raise wrong from error
    if not (np.isfinite(predicted) & (predicted >= 0)).all():
        raise wrong
    return predicted


def open_teacher(config: Config, validation: Validation) -> Teacher:
    """Open the teacher of a configuration.

    Raises UsageError if it was trained on photos or persons that the same fold validates, if it lacks a fold, and if
    it has none of the heads, or other classes of a head.
    """
    run = RunDirectory.load(str(config.teacher))
    runs = open_members(run, Blend.of(run)) if run.is_ensemble else {"": run}
    for each in runs.values():
        _check_folds(each, validation)
    teacher = Teacher(run, runs, config.teacher_weight, config.teacher_temperature)
    heads, none = validation.table.heads, np.empty((0, run.heads.n_logits))
    shared = [head for head in heads if teacher.probabilities_for(head, none) is not None]
    named = [head for head in shared if head.name in run.heads.names]
    other = next((head for head in named if run.heads[head.name].classes != head.classes), None)
    if not shared or other is not None:
        what = f"other classes of {other.name}" if other else f"learned none of {', '.join(heads.names)}"
        raise UsageError(f"The teacher {run.path} has {what}; use one that was trained on the same heads.")
    lost = next((name for name, source in heads.merged.items() if heads[source] not in shared), None)
    if lost is not None:
        raise UsageError(
            f"The teacher {run.path} has not learned {heads.merged[lost]}, whose classes {lost} merges, so the student "
            f"would learn nothing of {lost} from it; use one that has."
        )
    return teacher


def _check_folds(run: RunDirectory, validation: Validation) -> None:
    """Raise UsageError if a fold's models are missing, or were trained on photos or persons that it validates."""
    # folds that split persons are refused here
    split = run.is_leaky and validation.group == "person"
    own = f"use the teacher's folds: --folds-file {run.path / FOLDS}"
    mend = "it was split by photos (--group none), use a teacher with whole persons in each fold" if split else own
    count = int(validation.folds.max()) + 1
    if run.config.folds != count:
        raise UsageError(f"The teacher {run.path} has {run.config.folds} folds, here are {count}; {mend}.")
    _check_complete(run)
    found = find_leak(str(run.path), validation)
    if found is not None:
        raise UsageError(
            f"Fold {found.fold} validates {found.name}, which {found} of its teacher have been trained on, so its "
            f"score would be too good; {mend}."
        )
