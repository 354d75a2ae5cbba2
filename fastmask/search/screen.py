"""Screen: rank bodies by linear heads on their frozen features, out of fold, without training them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.config import Config, Kind, make_config
from fastmask.data.augment import effective_pipelines
from fastmask.data.loaders import pick_device
from fastmask.data.table import Table
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.inference.teacher import open_teacher
from fastmask.model.weights import check_weights
from fastmask.run.lineage import check_no_leak
from fastmask.scoring import (
    DRAWS,
    LOSS,
    Difference,
    Score,
    Scores,
    draw_scores,
    make_target,
    thin,
    with_ends,
    with_interval,
)
from fastmask.search.features import features_of
from fastmask.search.linear import LEAST_FOLDS, UNCHOSEN, oof_of_features
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_csv
from fastmask.system.terminal import Progress
from fastmask.system.text import duration, table_lines
from fastmask.training.build import build, check_size, resolve_stats
from fastmask.training.plan import Plan, prepare

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Screened:
    """One body: the out-of-fold scores of linear heads on its frozen features, and what computing these took.

    `behind` is how much better it is than the first of the ranking (None of that itself), `probabilities` (N, classes
    of all heads) are out of fold, in the table's order, `penalties` (folds, heads) those that were chosen. `seconds`
    are of the features alone, from when they were computed; `kept` says that it was earlier.
    """

    arch: str
    scores: Scores
    behind: Difference | None
    parameters: int
    features: int
    seconds: float
    kept: bool
    initial_weights: str
    probabilities: np.ndarray
    penalties: np.ndarray
    unfinished: int = 0

    @property
    def ms_a_photo(self) -> float:
        """Milliseconds of features a photo, its loading included."""
        return 1000 * self.seconds / len(self.probabilities)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "arch": self.arch,
            **self.scores.to_plain(),
            "behind": self.behind and self.behind.to_plain(),
            "parameters": self.parameters,
            "features": self.features,
            "seconds": self.seconds,
            "ms_a_photo": self.ms_a_photo,
            "kept": self.kept,
            "initial_weights": self.initial_weights,
            "penalties": self.penalties.tolist(),
        }


@dataclass(frozen=True)
class Screening:
    """Bodies from the best to the worst, and what to read the ranking with; `photos` are the table's paths."""

    rows: Sequence[Screened]
    heads: Heads
    photos: Sequence[str]
    folds: int
    device: str
    notes: Sequence[str] = field(default=())

    def __str__(self) -> str:
        names = [f"{i} {row.arch}" for i, row in enumerate(self.rows, 1)]
        scores = [
            [
                name,
                with_interval(row.scores.joint.macro_f1, row.scores.joint.macro_f1_interval),
                f"{row.scores.joint.accuracy:.4f}",
                str(row.behind or ""),
            ]
            for name, row in zip(names, self.rows, strict=True)
        ]
        heads = [[name, *(f"{row.scores.heads[name].macro_f1:.4f}" for row in self.rows)] for name in self.heads.names]
        costs = [
            [
                name,
                f"{row.parameters / 1e6:.1f} M",
                str(row.features),
                f"{row.ms_a_photo:.2f}",
                f"{duration(row.seconds)}{' (kept)' if row.kept else ''}",
                row.initial_weights,
            ]
            for name, row in zip(names, self.rows, strict=True)
        ]
        blocks = [
            table_lines([["", "macro-F1", "accuracy", "less 1"], *scores]),
            table_lines([["macro-F1", *map(str, range(1, 1 + len(self.rows)))], *heads]),
            table_lines([["", "parameters", "features", "ms a photo", "took", "weights"], *costs]),
            self.notes,
        ]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a body, the best first, every figure a column."""
        return pd.DataFrame([_row(i, row) for i, row in enumerate(self.rows, 1)])

    def to_csv(self, out: str | Path) -> None:
        """Write `frame`."""
        write_csv(out, self.frame)

    def write_oof(self, folder: str | Path) -> list[Path]:
        """Write ARCH.csv a body: path and the out-of-fold probability of each class, as `compare` reads them."""
        files = [Path(folder) / f"{row.arch}.csv" for row in self.rows]
        for row, file in zip(self.rows, files, strict=True):
            columns = dict(zip(self.heads.columns, row.probabilities.T, strict=True))
            write_csv(file, pd.DataFrame({"path": list(self.photos), **columns}))
        return files

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "photos": len(self.photos),
            "folds": self.folds,
            "device": self.device,
            "ranking": [row.to_plain() for row in self.rows],
            "notes": list(self.notes),
        }


def screen(
    table: Table,
    archs: Sequence[str],
    config: Config | None = None,
    *,
    weights: Mapping[str, str | Path] | None = None,
    bs: int = 64,
    draws: int = DRAWS,
    say: Say = lambda _: None,
    progress: Progress = lambda done, total: None,
    **settings: Any,
) -> Screening:
    """Rank timm's bodies `archs` on `table` by linear heads on their frozen features, out of fold.

    Args:
        weights: files of weights by arch; the others start from timm's hub, or at random with `pretrained=False`.
        bs: photos a batch.
        say: takes a line where something is worth one.
        progress: is called with (batches done, batches in all) of each body.
        settings: those of `Config`, over `config`; what belongs to training alone is not used.

    Each photo's features are computed once, by the validation transform, and kept beside the photos of the cache; then
    the heads of all folds are fitted at once (`fit_linear`). No label of a fold reaches a prediction for it: the
    penalty of its heads is chosen by models that have not seen it, either, on other folds. Labels are those of the
    training bounds to fit on, of the score's to be judged by. Raises UsageError for an arch, a weight file or a size of
    photos that cannot be, before any features are computed.
    """
    plans = plan_bodies(table, archs, config, weights or {}, bs, say, settings)
    first = plans[0]
    heads = Heads([first.table.heads[i] for i in first.table.heads.joined])
    trained, y = (labels[:, first.table.heads.joined] for labels in (first.table.train_y, first.table.y))
    if (heads.joint(y) == UNKNOWN).all():
        raise DataError(
            f"No photo has a label of all of {', '.join(heads.names)}, so there is no joint score to rank by; name "
            "fewer by --heads."
        )
    bodies = [_screened(plan, heads, trained, say, progress) for plan in plans]
    rows = _ranked(bodies, heads, y, first.table.persons, draws)
    paths = first.table.frame["path"].tolist()
    notes = _notes(first, rows, heads.joint(y))
    return Screening(rows, heads, paths, first.config.folds, first.environment["device"], notes)


def _screened(plan: Plan, heads: Heads, y: np.ndarray, say: Say, progress: Progress) -> Screened:
    """One body, not yet scored; its network is let go."""
    network = build(plan.config, heads, fold=0, size=plan.size)
    features = features_of(plan, network, say, progress)
    start = time.perf_counter()
    device = pick_device(plan.config.device)
    probabilities, penalties, unfinished = oof_of_features(features.values, y, heads, plan.folds, device)
    took = "kept features" if features.kept else f"features in {duration(features.seconds)}"
    fitted = duration(time.perf_counter() - start)
    say(f"{plan.config.arch}: {took}, heads of {plan.config.folds} folds in {fitted}")
    unscored = Score(float("nan"), float("nan"), 0)
    return Screened(
        plan.config.arch,
        Scores(unscored, {}),
        None,
        sum(p.numel() for p in network.body.parameters()),
        features.values.shape[1],
        features.seconds,
        features.kept,
        network.initial_weights,
        probabilities,
        penalties,
        unfinished,
    )


def _ranked(bodies: Sequence[Screened], heads: Heads, y: np.ndarray, persons: np.ndarray, draws: int) -> list[Screened]:
    """The bodies with their scores, the best first, all in the same draws of persons."""
    names = (JOINT, *heads.names)
    targets = [make_target(heads, heads.argmax(body.probabilities), y, name, y) for body in bodies for name in names]
    drawn = iter(draw_scores(targets, persons, draws))
    judged = [(body, {name: next(drawn) for name in names}) for body in bodies]
    judged.sort(key=lambda one: -one[1][JOINT].score().macro_f1)
    best = judged[0][1][JOINT]
    rows = []
    for body, each in judged:
        joint, *by_head = (one.score() for one in each.values())
        scores = Scores(joint, dict(zip(heads.names, by_head, strict=True)))
        behind = None if each[JOINT] is best else each[JOINT].less(best)
        rows.append(replace(body, scores=scores, behind=behind))
    return rows


def plan_bodies(
    table: Table,
    archs: Sequence[str],
    config: Config | None,
    weights: Mapping[str, str | Path],
    bs: int,
    say: Say,
    settings: Mapping[str, Any],
) -> list[Plan]:
    """The plan of each body, all on the same photos and folds, everything that can be checked checked."""
    wanted = make_config(config.model_dump(exclude_unset=True) if config else {}, settings)
    _check_asked(archs, weights, wanted)
    configs = [_config_of(wanted, arch, weights.get(arch), bs) for arch in archs]
    for one in configs:
        check_weights(one.arch, one.pretrained, one.weights)
    first = prepare(table, configs[0], say=say, open_teacher=open_teacher)
    return [first, *(_beside(first, one) for one in configs[1:])]


def _check_asked(archs: Sequence[str], weights: Mapping[str, str | Path], wanted: Config) -> None:
    if not archs or not all(archs) or len(set(archs)) < len(archs):
        raise UsageError(f"--archs {','.join(archs)}: expected different names of timm's models, separated by commas.")
    stray = next((arch for arch in weights if arch not in archs), None)
    if stray is not None:
        raise UsageError(f"--weights {stray}={weights[stray]}: {stray!r} is none of --archs {','.join(archs)}.")
    folder = next((file for file in weights.values() if Path(file).is_dir()), None)
    if folder is not None:
        raise UsageError(f"--weights {folder} is a directory; a screening starts all folds from one file of weights.")
    if wanted.weights is not None:
        raise UsageError("Setting weights is of one arch; name its file by --weights ARCH=FILE.")


def _config_of(wanted: Config, arch: str, file: str | Path | None, bs: int) -> Config:
    """The settings of one body."""
    start = {"pretrained": wanted.pretrained} if file is None else {"weights": str(file), "pretrained": False}
    used = wanted.model_dump(exclude_unset=True, exclude=set(Config.of_kind(Kind.TRAINING)))
    # a loss asks nothing of the labels
    return make_config(used, {"arch": arch, "bs": bs, "monitor": LOSS, **start})


def _beside(first: Plan, config: Config) -> Plan:
    """The plan of another body on the photos and folds of the first."""
    settings = {name: getattr(config, name) for name in ("arch", "weights", "pretrained")}
    config = first.config.model_copy(update=settings)
    pipelines = effective_pipelines(config, resolve_stats(config))
    check_no_leak(config.weights, first.table, first.folds, config.group)
    # what comes from the hub fits, and is fetched when its turn comes
    network = build(config.model_copy(update={"pretrained": False}), first.table.heads, fold=0, size=first.size)
    check_size(network, config.arch, first.size or (0, 0))
    return replace(first, config=config, pipelines=pipelines)


def _notes(plan: Plan, rows: Sequence[Screened], true: np.ndarray) -> list[str]:
    """What to read a ranking with."""
    notes = ["Linear heads on frozen features: training the bodies may turn the order round."]
    if len(rows) > 1:
        notes.append("The first is the best by these very numbers, so its lead flatters, the more bodies the more.")
    random = [row.arch for row in rows if row.initial_weights == "random"]
    if random:
        notes.append(f"Random weights, which say nothing of the body when pretrained: {', '.join(random)}.")
    if plan.config.folds < LEAST_FOLDS:
        notes.append(f"With two folds the penalty is not chosen but {UNCHOSEN:g}.")
    if plan.config.group == "none":
        notes.append("Leaky split (--group none): these scores flatter and say nothing about new people.")
    unfinished = [f"{row.arch} ({row.unfinished})" for row in rows if row.unfinished]
    if unfinished:
        notes.append(f"Heads that were not fitted to the end: {', '.join(unfinished)}.")
    unknown = int((true == UNKNOWN).sum())
    if unknown:
        notes.append(f"{unknown} of {len(true)} photos lack a label and are left out of the joint score.")
    return [*notes, *thin(true, plan.table.persons)]


def _row(rank: int, row: Screened) -> dict[str, Any]:
    """A body as a row of a table."""
    made: dict[str, Any] = {"rank": rank, "arch": row.arch}
    for name, score in ((None, row.scores.joint), *row.scores.heads.items()):
        before = "" if name is None else f"{name}_"
        made |= with_ends(f"{before}macro_f1", score.macro_f1, score.macro_f1_interval)
        made[f"{before}accuracy"] = score.accuracy
    if row.behind is not None:
        made |= with_ends("difference", row.behind.macro_f1, row.behind.macro_f1_interval)
    kept = ("parameters", "features", "seconds", "ms_a_photo", "kept", "initial_weights")
    return {**made, **{name: getattr(row, name) for name in kept}}
