"""Teacher: a run, or an ensemble, that a student learns from beside its labels (Hinton, Vinyals, Dean 2015).

The student of a fold learns, on the photos that it trains on, from the teacher's models of the same fold alone, which
have not seen whom that fold is judged on. They have seen the photos that they speak of, as the student will. The
teacher's out-of-fold answers to these come from models that have seen the judged fold, and are never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fastmask.config import Config
from fastmask.data.table import Table
from fastmask.heads import Heads
from fastmask.inference.blend import OOF_WEIGHTS, Blend, fit_blend, widen
from fastmask.inference.ensemble import oof_of
from fastmask.inference.members import learned, open_members
from fastmask.inference.predictions import predict
from fastmask.run.directory import RunDirectory
from fastmask.run.files import FOLDS, TEACHER
from fastmask.run.lineage import digest_weights, first_seen
from fastmask.run.tensors import save_tensors
from fastmask.system.errors import DataError, UsageError
from fastmask.training.plan import Plan

Say = Callable[[str], None]


@dataclass(frozen=True)
class Teacher:
    """A run or an ensemble, the `runs` whose networks speak, how much that counts, and at what temperature."""

    run: RunDirectory
    runs: Mapping[str, RunDirectory]
    weight: float
    temperature: float

    def digest(self) -> str:
        """SHA-256 of its networks and of how they are blended."""
        parts = [self.run.identity, *(f"{digest_weights(str(run.path))}" for run in self.runs.values())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that it has learned, but for distributions over a number."""
        return tuple(name for name in learned(self.run) if self.run.heads[name].spread is None)

    def mix(self, own: np.ndarray, answers: np.ndarray, heads: Heads) -> np.ndarray:
        """(N, classes of `heads`) soft labels of which the teacher's answers, (N, classes of its own), are a share.

        A head that it has not learned keeps its label; where a label is unknown, its answer is the whole of it.
        """
        made = own.astype(np.float32)
        theirs, parts = self.run.heads.split(answers), heads.split(made)
        for head, part in zip(heads, parts, strict=True):
            if head.name in self.heads:
                softened = tempered(theirs[self.run.heads.position(head.name)], self.temperature)
                known = part.any(axis=1, keepdims=True)
                part[:] = np.where(known, (1 - self.weight) * part + self.weight * softened, softened)
        return made

    def answers(self, plan: Plan, say: Say) -> np.ndarray:
        """(folds + 1, N, classes of its heads) probabilities of the plan's photos: by each fold's models, by all.

        Those of the photos that a fold validates are there, too, and used by nobody in that fold.
        """
        config, table = plan.config, plan.table
        photos = [table.photo(row) for row in range(len(table))]
        say(f"Asking {self.run.path} about {len(photos)} photos")
        each: dict[str, list[np.ndarray]] = {}
        for name, run in self.runs.items():
            # what it was cut to, where the student is not
            boxes = (config.boxes or run.config.boxes) if run.config.boxes else None
            options: dict[str, Any] = {"boxes": boxes, "device": config.device, "workers": config.workers}
            found = predict(run, photos, refit=False, root=table.root, **options)
            by_fold = [found.members[f"fold{fold}"] for fold in range(config.folds)]
            each[name] = [*by_fold, found.probabilities]
        return np.stack([self._blended(fold, [of[fold] for of in each.values()]) for fold in range(config.folds + 1)])

    def _blended(self, fold: int, members: Sequence[np.ndarray]) -> np.ndarray:
        """What runs answer by their models of a fold, as one; the last fold stands for all."""
        if not self.run.is_ensemble:
            return np.asarray(members[0], np.float32)
        heads, runs = self.run.heads, list(self.runs.values())
        wide = [widen(heads, run.heads, p, _shared(run, heads)) for run, p in zip(runs, members, strict=True)]
        blend = Blend.of(self.run)
        if blend.how == OOF_WEIGHTS and fold < self.run.config.folds:
            # the weights that predict were fitted on the labels of all folds, the judged one's included
            other = self.run.oof["fold"].to_numpy() != fold
            oofs = [oof_of(heads, self.run, run)[other] for run in runs]
            blend = fit_blend(OOF_WEIGHTS, heads, oofs, self.run.true[other])
        return blend.mix(wide).astype(np.float32)

    def answers_kept(self, run: RunDirectory, plan: Plan, say: Say) -> np.ndarray:
        """`answers`, as the run keeps them, or made now and kept: a run that is gone on with learns from the same."""
        file = run.path / TEACHER
        shape = (plan.config.folds + 1, len(plan.table), self.run.heads.n_logits)
        if not file.exists():
            save_tensors({"answers": torch.from_numpy(self.answers(plan, say))}, file)
        return read_answers(file, shape)


def _shared(run: RunDirectory, heads: Heads) -> list[str]:
    return [name for name in learned(run) if name in heads.names]


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(N, classes) probabilities at a temperature: those of the logits divided by it."""
    if temperature == 1:
        return probabilities
    raised = np.power(probabilities.astype(np.float64), 1 / temperature)
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)


def read_answers(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The answers that a run keeps; raises DataError where the file does not hold them."""
    wrong = DataError(
        f"{file} does not hold a teacher's answers to the run's photos; remove it to have them made anew."
    )
    try:
        with safe_open(file, framework="numpy") as opened:
            kept = opened.get_slice("answers")
            if tuple(kept.get_shape()) != shape or kept.get_dtype() != "F32":
                raise wrong
            answers: np.ndarray = opened.get_tensor("answers")
    except (OSError, MemoryError, SafetensorError) as error:
        raise wrong from error
    if not (np.isfinite(answers) & (answers >= 0)).all():
        raise wrong
    return answers


def open_teacher(config: Config, table: Table, folds: np.ndarray, chosen: Sequence[int] | None = None) -> Teacher:
    """The teacher of a configuration; raises UsageError where a fold would be judged on whom it has seen.

    Also where it lacks a fold, and where it has none of the heads, or one of other classes. `chosen` are the folds to
    train, else all.
    """
    run = RunDirectory.load(str(config.teacher))
    runs = open_members(run, Blend.of(run)) if run.is_ensemble else {"": run}
    for each in runs.values():
        _check_folds(each, table, folds, config.group, chosen)
    teacher = Teacher(run, runs, config.teacher_weight, config.teacher_temperature)
    known = [head for head in table.heads if head.name in teacher.heads]
    other = next((head for head in known if run.heads[head.name].classes != head.classes), None)
    if not known or other is not None:
        what = f"other classes of {other.name}" if other else f"learned none of {', '.join(table.heads.names)}"
        raise UsageError(f"The teacher {run.path} has {what}; take one that was trained on the same heads.")
    return teacher


def _check_folds(run: RunDirectory, table: Table, folds: np.ndarray, group: str, chosen: Sequence[int] | None) -> None:
    """Raise UsageError where models of a run's fold are not there, or have seen whom the same fold is judged on."""
    deal = f"deal the folds as the teacher did: --folds-file {run.path / FOLDS}"
    count = int(folds.max()) + 1
    if run.config.folds != count:
        raise UsageError(f"The teacher {run.path} has {run.config.folds} folds, here are {count}; {deal}.")
    missing = sorted(set(range(count)) - set(run.trained_folds))
    if missing:
        raise UsageError(f"The teacher {run.path} lacks fold {missing[0]}, from which fold {missing[0]} is to learn.")
    found = first_seen(str(run.path), table, folds, group, chosen)
    if found is not None:
        fold, name, seer, trained = found
        raise UsageError(
            f"Fold {fold} would be judged on {name}, which its teacher {seer.fold_path(trained)} was trained on: its "
            f"score would flatter; {deal}."
        )
