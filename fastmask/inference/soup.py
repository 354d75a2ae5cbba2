"""Soup: the mean of the weights of checkpoints of several runs, chosen greedily by out-of-fold (OOF) predictions.

The greedy soup of Wortsman et al. 2022, one per fold: the checkpoints of a fold are averaged over runs with the same
folds, so no photo that judges a soup has trained a member of it. Which checkpoints are in the soup of a fold is chosen
on the other folds, so the fold's own photos give an honest score.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fastmask.data.digests import digest_photos
from fastmask.data.loaders import pick_device
from fastmask.data.seen import Validation
from fastmask.heads import JOINT, Heads
from fastmask.inference.candidates import Candidate, check_runs, find_candidates
from fastmask.inference.networks import load_soup
from fastmask.inference.options import PredictOptions, SoupOptions
from fastmask.inference.photos import KEPT, Photos
from fastmask.inference.predictions import predict_networks
from fastmask.inference.sources import Found
from fastmask.model.network import MultiHeadNet
from fastmask.run.caveats import training_caveats
from fastmask.run.directory import RunDirectory
from fastmask.run.files import DONE, FOLDS, check_free
from fastmask.run.lineage import Lineage, lineage_of
from fastmask.run.oof import decide_oof, write_scores
from fastmask.run.source import photos_of
from fastmask.run.tensors import checkpoint_file, oof_file, save_network, save_tensors
from fastmask.scoring import CELLS, DRAWS, Difference, Plain, Score, draw_scores, make_target, score_heads
from fastmask.system.errors import UsageError
from fastmask.system.files import write_csv, write_json
from fastmask.system.lock import lock_run
from fastmask.system.terminal import Say
from fastmask.system.text import table_lines

_CAVEAT = (
    "The epochs of checkpoints in this soup were chosen by their own folds' photos: this score flatters a little; a "
    "larger --top-k keeps the epochs that the other folds choose."
)


@dataclass(frozen=True)
class Step(Plain):
    """A candidate for the soup of a fold: the macro-F1 of the soup with it on the other folds, whether it is kept."""

    fold: int
    candidate: str
    macro_f1: float
    kept: bool


@dataclass(frozen=True)
class Single(Plain):
    """The score of a single candidate, and the gain of the soup over it."""

    name: str
    score: Score
    gain: Difference


@dataclass(frozen=True)
class Soup:
    """A soup of checkpoints: its `run`, its `members` per fold, the `steps` that chose them, and its `score`."""

    run: RunDirectory
    target: str
    members: dict[int, list[str]]
    steps: list[Step]
    score: Score
    singles: list[Single]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("checkpoint", CELLS, "soup minus checkpoint")]
        rows += [(one.name, one.score.cells, str(one.gain)) for one in self.singles]
        kept = [f"fold {fold}: {', '.join(names)}" for fold, names in self.members.items()]
        return "\n".join([*table_lines([*rows, ("soup", self.score.cells, "")]), "", *kept, "", *self.notes])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "target": self.target,
            **self.score.to_plain(),
            "members": self.members,
            "steps": [step.to_plain() for step in self.steps],
            "checkpoints": [one.to_plain() for one in self.singles],
            "notes": self.notes,
        }


def choose_greedily(
    singles: Sequence[float], score: Callable[[tuple[int, ...]], float]
) -> Iterator[tuple[int, float, bool]]:
    """Each candidate, from the highest score alone: the score of the soup with it, and whether it is kept.

    It is if the score does not fall. `score` is called with the numbers of the candidates in a soup, in order.
    """
    first, *others = sorted(range(len(singles)), key=lambda i: -singles[i])
    kept: tuple[int, ...] = (first,)
    best = singles[first]
    yield first, best, True
    for candidate in others:
        tried = tuple(sorted((*kept, candidate)))
        value = score(tried)
        keeps = value >= best
        if keeps:
            kept, best = tried, value
        yield candidate, value, keeps


def soup_runs(
    runs: Sequence[str | Path | RunDirectory],
    *,
    out: str | Path,
    overwrite: bool = False,
    options: SoupOptions | None = None,
    say: Say = lambda _: None,
    draws: int = DRAWS,
    **given: Any,
) -> Soup:
    """Make a run at `out` whose fold models are greedy soups of the checkpoints of `runs`, and score it.

    The runs have one body, the same heads, input and folds. The candidates for a fold are the runs' checkpoints of the
    epochs that the other folds choose, as far as all folds have kept them; see `choose_greedily`. Batch norm's
    statistics are averaged like weights. `options` are `SoupOptions`, or `given` by name; `say` gets a line per step.
    Raises UsageError if the runs do not belong together, or if a checkpoint has seen a photo that its fold validates.
    """
    options, out = SoupOptions.of(options, given), Path(out)
    check_free(out, overwrite)
    loaded = [RunDirectory.of(run) for run in runs]
    check_runs(loaded, out)
    first = loaded[0]
    judge = _Judge(first, find_candidates(loaded), options)
    judge.check_unseen()
    steps = [step for fold in first.trained_folds for step in judge.choose(fold, say)]
    number = {one.name: i for i, one in enumerate(judge.candidates)}
    chosen = {
        fold: tuple(sorted(number[step.candidate] for step in steps if step.fold == fold and step.kept))
        for fold in first.trained_folds
    }
    members = {fold: [judge.candidates[i].name for i in kept] for fold, kept in chosen.items()}
    with lock_run(out):
        made = _create(out, loaded, judge, chosen, overwrite)
        write_scores(made)
    made = RunDirectory.load(out)
    score, singles = judge.compare(made, draws)
    best = max(singles, key=lambda one: one.score.macro_f1).name
    note = f"{best} is the best single checkpoint by these same photos, so the true gain over it is probably larger."
    return Soup(made, judge.target, members, steps, score, singles, [note, *made.caveats])


class _Judge:
    """Predicts the validation photos of folds by soups of candidates, each soup once, and scores them."""

    def __init__(self, first: RunDirectory, candidates: Sequence[Candidate], options: SoupOptions) -> None:
        self.first, self.candidates, self.heads = first, candidates, first.heads
        self.table = photos_of(first, options.data)
        self.options = PredictOptions(bs=options.bs, workers=options.workers)
        self.device = pick_device(options.device)
        self.fold_of = first.oof["fold"].to_numpy()
        head = first.config.monitor.removesuffix("_macro_f1")
        # a run of one attribute is judged by that
        self.target = head if head in first.heads.classified else JOINT
        self.photos, self.predict = cache(self._photos), cache(self._predict)

    def check_unseen(self) -> None:
        """Raise UsageError if a candidate has seen a photo, or a person, that its fold validates."""
        frame = self.first.folds
        digests = digest_photos([self.table.root / path for path in frame["path"]])
        validation = Validation(self.table, frame["fold"].to_numpy(), digests, self.first.config.group)
        for one in self.candidates:
            for fold in self.first.trained_folds:
                file = one.files[fold]
                name = validation.find(lineage_of(str(file), fold).seen, fold)
                if name is not None:
                    raise UsageError(
                        f"{file} has been trained on {name}, which fold {fold} validates, so the score of a soup with "
                        f"it would be too good; take runs of the same folds (--folds-file {self.first.path / FOLDS})."
                    )

    def choose(self, fold: int, say: Say) -> Iterator[Step]:
        """The steps to the soup of a fold, judged on the other folds."""
        others = tuple(other for other in self.first.trained_folds if other != fold)
        singles = [self.score((i,), others) for i in range(len(self.candidates))]
        for number, value, kept in choose_greedily(singles, lambda chosen: self.score(chosen, others)):
            step = Step(fold, self.candidates[number].name, value, kept)
            name = "macro-F1" if self.target == JOINT else f"macro-F1 of {self.target}"
            say(
                f"fold {fold}: {step.candidate}, OOF {name} of the other folds with it {value:.4f}, "
                f"{'kept' if kept else 'left out'}"
            )
            yield step

    def score(self, chosen: tuple[int, ...], folds: Sequence[int]) -> float:
        """The macro-F1 of a soup on the validation photos of folds."""
        here = [self.fold_of == fold for fold in folds]
        y = np.concatenate([self.heads.argmax(self.predict(fold, chosen)) for fold in folds])
        true = np.concatenate([self.first.true[rows] for rows in here])
        scores = score_heads(self.heads, y, true, None, 0, self.first.classes)
        return (scores.joint if self.target == JOINT else scores.heads[self.target]).macro_f1

    def compare(self, run: RunDirectory, draws: int) -> tuple[Score, list[Single]]:
        """The score of the soup, and those of the candidates alone."""
        alone = []
        for i in range(len(self.candidates)):
            probabilities = np.empty_like(run.probabilities)
            for fold in self.first.trained_folds:
                probabilities[self.fold_of == fold] = self.predict(fold, (i,))
            alone.append(decide_oof(run, probabilities, run.true, self.fold_of, run.groups))
        each = [make_target(self.heads, y, run.true, self.target, run.classes) for y in (run.predicted, *alone)]
        soup, *others = draw_scores(each, run.groups, draws)
        named = zip(self.candidates, others, strict=True)
        return soup.score(), [Single(one.name, other.score(), soup.minus(other)) for one, other in named]

    def average(self, fold: int, chosen: Sequence[int]) -> MultiHeadNet:
        """The network of a soup."""
        files = [self.candidates[i].files[fold] for i in chosen]
        return load_soup(self.first, files, self.device, self.photos(fold).size)

    def _predict(self, fold: int, chosen: tuple[int, ...]) -> np.ndarray:
        """(photos of the fold, classes of all heads): the probabilities of a soup."""
        if len(chosen) == 1:
            return self.candidates[chosen[0]].read_oof(self.first, fold)
        networks = {f"fold{fold}": [self.average(fold, chosen)]}
        (found,) = predict_networks(self.first, self.photos(fold), networks, self.options, self.device).values()
        return found

    def _photos(self, fold: int) -> Photos:
        """The validation photos of a fold, in the table's order."""
        names = self.first.folds["path"][self.first.folds["fold"] == fold].tolist()
        found = Found(names, [self.table.root / name for name in names])
        # they are predicted by many soups
        photos = Photos.survey(self.first, found, self.first.config.boxes, kept=KEPT // self.first.config.folds)
        if photos.errors:
            raise photos.errors[min(photos.errors)]
        return photos


def _create(
    out: Path, runs: Sequence[RunDirectory], judge: _Judge, chosen: Mapping[int, tuple[int, ...]], overwrite: bool
) -> RunDirectory:
    """Write the run of a soup, with the settings of the first run."""
    first = runs[0]
    leaky = {"group": "none"} if any(run.config.group == "none" for run in runs) else {}
    made = RunDirectory.create(
        out,
        first.config.model_copy(update={"top_k": 1, "refit": 0, **leaky}),
        first.heads,
        pipelines=first.pipelines,
        folds=first.folds,
        environment=_environment(runs, judge.candidates, chosen),
        extra=first.extra,
        overwrite=overwrite,
    )
    for fold, kept in chosen.items():
        _write_fold(made, judge, fold, kept)
    return made


def _environment(
    runs: Sequence[RunDirectory], candidates: Sequence[Candidate], chosen: Mapping[int, tuple[int, ...]]
) -> dict[str, Any]:
    """The content of environment.json: the first run's, and the members of the soup, by which it is identified."""
    first = runs[0]
    members = {
        str(fold): [[candidates[i].run.identity, candidates[i].files[fold].stem] for i in kept]
        for fold, kept in chosen.items()
    }
    named = {str(fold): [candidates[i].name for i in kept] for fold, kept in chosen.items()}
    caveats = [_CAVEAT] if any(candidates[i].flatters for kept in chosen.values() for i in kept) else []
    caveats += [f"{run.path}: {caveat}" for run in runs for caveat in training_caveats(run)]
    return {
        **first.environment,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "start": {**first.start, "soup": members},
        "soup": {"runs": [str(run.path) for run in runs], "members": named, "caveats": caveats},
    }


def _write_fold(run: RunDirectory, judge: _Judge, fold: int, chosen: tuple[int, ...]) -> None:
    """Write a fold like one that was trained for one epoch: its checkpoint, its OOF probabilities, its history."""
    folder, probabilities = run.fold_path(fold), judge.predict(fold, chosen)
    folder.mkdir()
    lineage = reduce(Lineage.join, (lineage_of(str(judge.candidates[i].files[fold]), fold) for i in chosen))
    joined = replace(lineage, run=run.identity, fold=fold, epoch=0)
    save_network(judge.average(fold, chosen).cpu(), checkpoint_file(folder, 0), joined.to_text())
    save_tensors({"probabilities": torch.from_numpy(np.ascontiguousarray(probabilities))}, oof_file(folder, 0))
    write_csv(
        folder / "history.csv", _history(run, judge.heads, probabilities, judge.first.true[judge.fold_of == fold])
    )
    done = {"fold": fold, "photos": run.photos_digest(fold), "epochs": 1, "checkpoints": [0]}
    write_json(folder / DONE, done, parents=False)


def _history(run: RunDirectory, heads: Heads, probabilities: np.ndarray, true: np.ndarray) -> pd.DataFrame:
    scores = score_heads(heads, heads.argmax(probabilities), true, None, 0)
    each = {"": scores.joint, **{f"{name}_": score for name, score in scores.heads.items()}}
    row: dict[str, float] = {"epoch": 0}
    for name, score in each.items():
        row |= {f"{name}macro_f1": score.macro_f1, f"{name}accuracy": score.accuracy}
    # the loss of a soup is not computed
    row.setdefault(run.config.monitor, float("nan"))
    return pd.DataFrame([row])
