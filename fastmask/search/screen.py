"""Screening: bodies ranked by out-of-fold scores of linear heads on their frozen features."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.config import Config, Kind, make_config
from fastmask.data.groups import describe_joined
from fastmask.data.loaders import pick_device
from fastmask.data.pipelines import effective_pipelines
from fastmask.data.seen import Validation
from fastmask.data.table import Table
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.inference.teacher import open_teacher
from fastmask.model.archs import check_arch
from fastmask.model.linear import LEAST_FOLDS, UNCHOSEN, oof_of_features
from fastmask.model.precision import usable_precision
from fastmask.model.weights import check_weights
from fastmask.run.caveats import NEAR_COPIES, describe_near_copies
from fastmask.run.lineage import check_no_leak
from fastmask.scoring import (
    DRAWS,
    LOSS,
    Difference,
    Score,
    Scores,
    absent_classes,
    draw_heads,
    interval_columns,
    plain,
    scored_classes,
)
from fastmask.system.errors import DataError, UsageError
from fastmask.system.fields import shows_fields
from fastmask.system.files import write_csv
from fastmask.system.terminal import Progress, Say
from fastmask.system.text import duration, table_lines
from fastmask.training.build import build_initial_network, check_size, resolve_stats
from fastmask.training.features import features_of
from fastmask.training.near_copies import note_near_copies
from fastmask.training.plan import Plan
from fastmask.training.setup import prepare

# figures of a body that are reported in addition to scores
_COSTS = ("parameters", "features", "seconds", "ms_a_photo", "kept", "initial_weights")


@dataclass(frozen=True, eq=False)
class Screened:
    """One body: the out-of-fold scores of linear heads on its frozen features, and their cost.

    `behind` is the difference from the first body of the ranking (None for the first), `probabilities` (N, classes of
    all heads) are out of fold, in the table's order, `penalties` (folds, heads) the chosen ones. `seconds` is the time
    to compute the features, in an earlier screening if they were `kept`.
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
        """Milliseconds per photo to compute features, including loading."""
        return 1000 * self.seconds / len(self.probabilities)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "arch": self.arch,
            **self.scores.to_plain(),
            "behind": plain(self.behind),
            **{name: getattr(self, name) for name in _COSTS},
            "penalties": self.penalties.tolist(),
        }


@dataclass(frozen=True)
class Screening:
    """Bodies from the best to the worst; `photos` are the table's paths.

    >>> screening = fm.screen(table, ["test_resnet"], pretrained=False, resize=(32, 24), folds=2, draws=100)
    >>> [row.arch for row in screening.rows], screening.rows[0].probabilities.shape
    (['test_resnet'], (84, 8))
    >>> screening.to_csv("screening.csv")
    """

    rows: Sequence[Screened]
    heads: Heads
    photos: Sequence[str]
    folds: int
    device: str
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        scores = [["", "macro-F1", "accuracy", "less 1"]]
        costs = [["", "parameters", "features", "ms per photo", "took", "weights"]]
        for i, row in enumerate(self.rows, 1):
            name, joint = f"{i} {row.arch}", row.scores.joint
            scores.append([name, joint.texts[0], f"{joint.accuracy:.4f}", str(row.behind or "")])
            took = f"{duration(row.seconds)}{' (kept)' if row.kept else ''}"
            figures = [f"{row.parameters / 1e6:.1f} M", str(row.features), f"{row.ms_a_photo:.2f}"]
            costs.append([name, *figures, took, row.initial_weights])
        heads = [[name, *(f"{row.scores.heads[name].macro_f1:.4f}" for row in self.rows)] for name in self.heads.names]
        heads = [["macro-F1", *map(str, range(1, 1 + len(self.rows)))], *heads]
        blocks = [table_lines(scores), table_lines(heads), table_lines(costs), self.notes]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per body, the best first, one column per figure."""
        return pd.DataFrame([_row(i, row) for i, row in enumerate(self.rows, 1)])

    def to_csv(self, out: str | Path) -> None:
        """Write `frame`."""
        write_csv(out, self.frame)

    def write_oof(self, folder: str | Path) -> list[Path]:
        """Write ARCH.csv per body: path and the out-of-fold probability of each class, for `compare`."""
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


@shows_fields(Config)
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
        bs: photos per batch.
        say: is called with lines to log.
        progress: is called with (batches done, batches in all) of each body.
        settings: fields of `Config`, over `config`; those that only affect training are not used.

    Features are computed once, by the validation transform, and kept next to the photos of the cache; then the heads of
    all folds are fitted at once (`fit_linear`). No label of a fold affects a prediction for it: the penalty of its
    heads is chosen by models that have not seen it, on other folds. Fits use labels by the training bounds, scores use
    labels by the score's bounds. Raises UsageError for an invalid arch, weight file or size of photos before any
    features are computed.

    Example:
        >>> small = dict(pretrained=False, resize=(32, 24), folds=2)
        >>> screening = fm.screen(table, ["test_resnet", "test_vit"], draws=100, **small)
        >>> sorted(row.arch for row in screening.rows)
        ['test_resnet', 'test_vit']
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
    bodies = [_fit_body(plan, heads, trained, say, progress) for plan in plans]
    validated = first.folds >= 0
    y, paths = y[validated], first.table.frame["path"][validated].tolist()
    rows = _rank(bodies, heads, y, first.table.groups[validated], draws)
    notes = _notes(first, rows, heads, y)
    return Screening(rows, heads, paths, first.config.folds, first.environment["device"], notes)


def _fit_body(plan: Plan, heads: Heads, y: np.ndarray, say: Say, progress: Progress) -> Screened:
    """Fit the heads of one body, without scores; its network is freed on return."""
    network = build_initial_network(plan.config, heads, fold=0, size=plan.size)
    features = features_of(plan, network.body, say, progress)
    start = time.perf_counter()
    device = pick_device(plan.config.device)
    probabilities, penalties, unfinished = oof_of_features(features.values, y, heads, plan.folds, device)
    probabilities = probabilities[plan.folds >= 0]
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


def _rank(bodies: Sequence[Screened], heads: Heads, y: np.ndarray, persons: np.ndarray, draws: int) -> list[Screened]:
    """Score the bodies on the same draws of persons, and sort them, the best first."""
    predicted = [heads.argmax(body.probabilities) for body in bodies]
    drawn = draw_heads(heads, predicted, y, scored_classes(heads, predicted, y), persons, draws)
    scored = sorted(zip(bodies, drawn, strict=True), key=lambda one: -one[1][JOINT].score().macro_f1)
    best, rows = scored[0][1][JOINT], []
    for body, by_head in scored:
        joint = by_head.pop(JOINT)
        scores = Scores(joint.score(), {name: one.score() for name, one in by_head.items()})
        rows.append(replace(body, scores=scores, behind=None if joint is best else joint.minus(best)))
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
    """Plan each body, on the same photos and folds, and check everything that can be checked."""
    given = make_config(config.model_dump(exclude_unset=True) if config else {}, settings)
    _check_archs(archs, weights, given)
    archs, weights = list(map(check_arch, archs)), {check_arch(arch): file for arch, file in weights.items()}
    configs = [_config_of(given, arch, weights.get(arch), bs) for arch in archs]
    for one in configs:
        check_weights(one.arch, one.pretrained, one.weights)
    first = note_near_copies(prepare(table, configs[0], say=say, open_teacher=open_teacher), say)
    return [first, *(_plan_like(first, one) for one in configs[1:])]


def _check_archs(archs: Sequence[str], weights: Mapping[str, str | Path], given: Config) -> None:
    if not archs or not all(archs) or len(set(archs)) < len(archs):
        raise UsageError(f"--archs {','.join(archs)}: expected different names of timm's models, separated by commas.")
    stray = next((arch for arch in weights if arch not in archs), None)
    if stray is not None:
        raise UsageError(f"--weights {stray}={weights[stray]}: {stray!r} is not in --archs {','.join(archs)}.")
    folder = next((file for file in weights.values() if Path(file).is_dir()), None)
    if folder is not None:
        raise UsageError(f"--weights {folder} is a directory; a screening starts all folds from one file of weights.")
    if given.weights is not None:
        raise UsageError("Setting weights is of one arch; name its file by --weights ARCH=FILE.")


def _config_of(given: Config, arch: str, file: str | Path | None, bs: int) -> Config:
    """The settings of one body."""
    start = {"pretrained": given.pretrained} if file is None else {"weights": str(file), "pretrained": False}
    used = given.model_dump(exclude_unset=True, exclude=set(Config.of_kind(Kind.TRAINING)))
    # a loss can be monitored with any labels
    return make_config(used, {"arch": arch, "bs": bs, "monitor": LOSS, **start})


def _plan_like(first: Plan, config: Config) -> Plan:
    """The plan of another body on the photos and folds of the first."""
    settings = {name: getattr(config, name) for name in ("arch", "weights", "pretrained")}
    config = first.config.model_copy(update=settings)
    pipelines = effective_pipelines(config, resolve_stats(config))
    check_no_leak(config.weights, Validation(first.table, first.folds, first.digests, config.group))
    # weights from the hub always fit, and are fetched later
    network = build_initial_network(
        config.model_copy(update={"pretrained": False}), first.table.heads, fold=0, size=first.size
    )
    size = first.size or (0, 0)
    check_size(network, config.arch, size)
    usable_precision(network, size, pick_device(config.device), config.precision, auto=False, trains=False)
    return replace(first, config=config, pipelines=pipelines)


def _notes(plan: Plan, rows: Sequence[Screened], heads: Heads, y: np.ndarray) -> list[str]:
    """Notes on a ranking."""
    notes = ["Linear heads on frozen features: training the bodies may change the order."]
    if len(rows) > 1:
        notes.append("The first is chosen by these same scores, so its lead is optimistic, more so with more bodies.")
    random = [row.arch for row in rows if row.initial_weights == "random"]
    if random:
        notes.append(f"Random weights, which say nothing about the body when pretrained: {', '.join(random)}.")
    if plan.config.folds < LEAST_FOLDS:
        notes.append(f"With fewer than three folds the penalty is not chosen: it is {UNCHOSEN:g}.")
    joined = describe_joined(plan.table.persons, plan.table.groups)
    near = describe_near_copies(plan.environment.get(NEAR_COPIES), plan.folds_frame)
    notes += [text for text in (joined and f"{joined}.", near) if text]
    if plan.config.group == "none":
        notes.append("Leaky split (--group none): these scores are too high and say nothing about new people.")
    unfinished = [f"{row.arch} ({row.unfinished})" for row in rows if row.unfinished]
    if unfinished:
        notes.append(f"Heads that did not converge: {', '.join(unfinished)}.")
    unknown = int((heads.joint(y) == UNKNOWN).sum())
    if unknown:
        notes.append(f"{unknown} of {len(y)} photos lack a label and are left out of the joint score.")
    predicted = [heads.argmax(row.probabilities) for row in rows]
    return notes + absent_classes(heads, scored_classes(heads, predicted, y), y)


def _row(rank: int, row: Screened) -> dict[str, Any]:
    """A body as a row of a table."""
    made: dict[str, Any] = {"rank": rank, "arch": row.arch}
    for name, score in ((None, row.scores.joint), *row.scores.heads.items()):
        before = "" if name is None else f"{name}_"
        made |= interval_columns(f"{before}macro_f1", score.macro_f1, score.macro_f1_interval)
        made[f"{before}accuracy"] = score.accuracy
    if row.behind is not None:
        made |= interval_columns("difference", row.behind.macro_f1, row.behind.macro_f1_interval)
    return {**made, **{name: getattr(row, name) for name in _COSTS}}
