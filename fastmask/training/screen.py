"""Screen: rank bodies by linear heads on their frozen features, out of fold, without training them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastmask.config import TRAINING_ALONE, Config, make_config
from fastmask.data.augment import Augmentation, augmentations, effective_pipelines
from fastmask.data.cache import features_file
from fastmask.data.loaders import PhotoDL, PhotoList, batch_stats, default_workers, pick_device
from fastmask.data.table import Table
from fastmask.data.transforms import NormalizeBatch
from fastmask.errors import DataError, FastmaskError, UsageError
from fastmask.files import write_csv
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.memory import keep_memory
from fastmask.model.network import MultiHeadNet, check_start
from fastmask.scoring import DRAWS, LOSS, Difference, Score, Scores, draw_scores, make_target, thin, with_interval
from fastmask.tables import table_lines
from fastmask.terminal import Progress, duration
from fastmask.training.callbacks import save_tensors
from fastmask.training.guards import is_out_of_memory
from fastmask.training.linear import fit_linear
from fastmask.training.plan import Plan, build, check_size, prepare, resolve_stats
from fastmask.training.rehearsal import synchronize
from fastmask.training.start import check_no_leak
from fastmask.training.step import autocast, tf32

# on the weights of standardised features; where nothing is left to choose by, the second; how well heads are fitted
# that only choose
PENALTIES = (0.01, 0.1, 1.0, 10.0)
_UNCHOSEN, _ROUGH = 1, 1e-4
# the fewest folds of which two can be left out
_LEAST_FOLDS = 3
_FORMAT = 1
# photos whose features are computed again to see whether kept ones are theirs, and how far they may be off
_PROBED, _OFF = 8, 0.05
# bytes of a file besides its features
_HEADER = 2**16
# what a probability of 0 counts as where a logarithm is taken
_LEAST = 1e-7

Say = Callable[[str], None]


@dataclass(frozen=True)
class Features:
    """(N, features) float32 of photos, the seconds that they took when they were computed, whether they were kept."""

    values: np.ndarray
    seconds: float
    kept: bool = False


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
    names = (JOINT, *heads.names)
    targets = [make_target(heads, heads.argmax(body.probabilities), y, name, y) for body in bodies for name in names]
    drawn = iter(draw_scores(targets, first.table.persons, draws))
    judged = [(body, {name: next(drawn) for name in names}) for body in bodies]
    judged.sort(key=lambda one: -one[1][JOINT].score().macro_f1)
    best = judged[0][1][JOINT]
    rows = []
    for body, each in judged:
        joint, *by_head = (one.score() for one in each.values())
        scores = Scores(joint, dict(zip(heads.names, by_head, strict=True)))
        behind = None if each[JOINT] is best else each[JOINT].less(best)
        rows.append(replace(body, scores=scores, behind=behind))
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
        check_start(one.arch, one.pretrained, one.weights)
    first = prepare(table, configs[0], say=say)
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
    used = {name: value for name, value in wanted.model_dump(exclude_unset=True).items() if name not in TRAINING_ALONE}
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


def features_of(plan: Plan, network: MultiHeadNet, say: Say, progress: Progress = lambda done, total: None) -> Features:
    """The body's pooled features of all photos by the validation transform, as kept or computed now.

    They are kept where the plan keeps photos on the disk, in a file named by all that they depend on.
    """
    device = pick_device(plan.config.device)
    body = network.body.eval().to(device)
    file = _file_of(plan, network.body)
    paths = [str(plan.table.photo(row)) for row in range(len(plan.table))]
    probed = sorted({i * (len(paths) - 1) // max(1, _PROBED - 1) for i in range(_PROBED)})
    kept = None
    if file is not None and file.exists():
        probe = _computed(plan, body, [paths[i] for i in probed], device)
        kept = read_features(file, len(paths), probe, probed)
    if kept is not None:
        return kept
    synchronize(device)
    start = time.perf_counter()
    values = _computed(plan, body, paths, device, progress)
    computed = Features(values, time.perf_counter() - start)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"features": torch.from_numpy(values), "seconds": torch.tensor([computed.seconds])}
            save_tensors(tensors, file, body=plan.config.arch)
        except OSError as error:
            say(f"The features of {plan.config.arch} are not kept: {error.strerror or error}")
    return computed


def _computed(
    plan: Plan,
    body: nn.Module,
    paths: Sequence[str],
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """(photos, features) float32; raises FastmaskError where they are no numbers, or the memory does not suffice."""
    config = plan.config
    loader, found = photos_of(plan, paths, device), []
    try:
        with torch.inference_mode(), tf32(device, config.tf32), autocast(device, config.precision):
            for done, (x,) in enumerate(loader, 1):
                found.append(body(x.as_subclass(Tensor)).float())
                progress(done, len(loader))
            values = torch.cat(found).cpu().numpy()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise FastmaskError(f"{config.arch} on {config.batch} photos at once needs more memory; --bs less.") from error
    if not np.isfinite(values).all():
        raise FastmaskError(
            f"{config.arch} makes features of these photos that are no numbers; try --precision fp32, or leave it out."
        )
    return np.asarray(values, dtype=np.float32)


def photos_of(plan: Plan, paths: Sequence[str], device: torch.device) -> PhotoDL:
    """Batches (x,) of the photos at `paths`, in their order, by the plan's validation transform and from its cache."""
    if device.type == "cpu":
        keep_memory()
    augments: tuple[Augmentation, Augmentation] = augmentations(plan.pipelines)
    # as text: a photo of the cache is found by it
    photos: Any = list(paths)
    workers = default_workers(device) if plan.config.workers is None else plan.config.workers
    return PhotoDL(
        PhotoList(photos),
        faces=plan.table.faces,
        bs=plan.config.batch,
        augments=augments,
        maps=plan.maps,
        after_batch=[NormalizeBatch(*batch_stats(augments))],
        # a few are loaded before another process has started
        num_workers=0 if len(photos) <= _PROBED else workers,
        device=device,
        pin_memory=device.type == "cuda",
    )


def _file_of(plan: Plan, body: nn.Module) -> Path | None:
    """Where the features of a body are kept: named by photos, pipeline, weights, precision and versions; or nowhere."""
    config = plan.config
    if config.cache not in ("auto", "disk"):
        return None
    weights = hashlib.sha256()
    for name, tensor in body.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    packages = ("torch", "timm", "albumentations", "opencv-python-headless")
    what = [
        *(_FORMAT, config.arch, plan.size, weights.hexdigest(), plan.environment["start"]["photos"]),
        *(plan.pipelines["valid"], config.precision, [version(name) for name in packages]),
        *(plan.environment["start"].get("boxes"), config.margin, config.region),
    ]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
    return features_file(name, config.cache_dir)


def read_features(file: Path, photos: int, probe: np.ndarray, probed: Sequence[int]) -> Features | None:
    """Kept features of `photos` photos; None where they are not whole, or not near `probe`, those of some rows.

    Anybody may have written the file, so nothing is read of it before its size and shape are as expected.
    """
    shape = [photos, probe.shape[1]]
    if not file.is_file() or file.is_symlink() or not 0 <= file.stat().st_size - 4 * photos * shape[1] < _HEADER:
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = [opened.get_slice(name) for name in ("features", "seconds")]
            if [(s.get_shape(), s.get_dtype()) for s in slices] != [(shape, "F32"), ([1], "F32")]:
                return None
            values, seconds = (opened.get_tensor(name) for name in ("features", "seconds"))
    except (OSError, SafetensorError):
        return None
    if not np.isfinite(values).all() or not 0 < float(seconds[0]) < np.inf:
        return None
    near = np.linalg.norm(values[list(probed)] - probe) <= _OFF * np.linalg.norm(probe)
    return Features(values, float(seconds[0]), kept=True) if near else None


def oof_of_features(
    features: np.ndarray, y: np.ndarray, heads: Heads, folds: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray, int]:
    """(N, classes of all heads) out-of-fold probabilities of linear heads, (folds, heads) penalties, unfinished fits.

    A fold's heads are fitted on the photos of the others; their penalty is the one of `PENALTIES` whose cross-entropy
    is least on the fold's two neighbours, by models that were fitted without the neighbour and without the fold: no
    label of a fold reaches its predictions. With two folds there is nothing to choose by.
    """
    count = int(folds.max()) + 1
    penalties = np.full((count, len(heads)), PENALTIES[_UNCHOSEN])
    unfinished = 0
    if count >= _LEAST_FOLDS:
        penalties, unfinished = choose_penalties(features, y, heads, folds, device)
    rows = np.stack([folds != fold for fold in range(count)])
    fitted = fit_linear(features, y, heads, rows, penalties, device)
    probabilities = np.empty((len(y), heads.n_logits))
    for fold in range(count):
        probabilities[folds == fold] = fitted.probabilities(fold, features[folds == fold])
    return probabilities, penalties, unfinished + fitted.unfinished


def choose_penalties(
    features: np.ndarray, y: np.ndarray, heads: Heads, folds: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, int]:
    """(folds, heads) penalties: see `oof_of_features`. The folds stand in a ring, a model leaves out two neighbours."""
    count = int(folds.max()) + 1
    edges = [(fold, (fold + 1) % count) for fold in range(count)]
    rows = np.tile([~np.isin(folds, edge) for edge in edges], (len(PENALTIES), 1))
    grid = np.tile(np.repeat(PENALTIES, count)[:, None], len(heads))
    # the weaker a penalty, the slower
    fitted = fit_linear(features, y, heads, rows, grid, device, _ROUGH, together=count)
    losses = np.zeros((count, len(PENALTIES), len(heads)))
    for model, (tried, (one, other)) in enumerate(product(range(len(PENALTIES)), edges)):
        for judged, chooser in ((one, other), (other, one)):
            here = folds == judged
            losses[chooser, tried] += _cross_entropies(heads, fitted.probabilities(model, features[here]), y[here])
    return np.array(PENALTIES)[losses.argmin(axis=1)], fitted.unfinished


def _cross_entropies(heads: Heads, probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(heads,) sums over the photos whose label is known."""
    sums = []
    for part, labels in zip(heads.split(probabilities), y.T, strict=True):
        known = labels != UNKNOWN
        sums.append(-np.log(part[known, labels[known]].clip(_LEAST)).sum())
    return np.array(sums)


def _notes(plan: Plan, rows: Sequence[Screened], true: np.ndarray) -> list[str]:
    """What to read a ranking with."""
    notes = ["Linear heads on frozen features: training the bodies may turn the order round."]
    if len(rows) > 1:
        notes.append("The first is the best by these very numbers, so its lead flatters, the more bodies the more.")
    random = [row.arch for row in rows if row.initial_weights == "random"]
    if random:
        notes.append(f"Random weights, which say nothing of the body when pretrained: {', '.join(random)}.")
    if plan.config.folds < _LEAST_FOLDS:
        notes.append(f"With two folds the penalty is not chosen but {PENALTIES[_UNCHOSEN]:g}.")
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
        made |= _figures("" if name is None else f"{name}_", score)
    if row.behind is not None:
        low, high = row.behind.macro_f1_interval
        made |= {"difference": row.behind.macro_f1, "difference_low": low, "difference_high": high}
    kept = ("parameters", "features", "seconds", "ms_a_photo", "kept", "initial_weights")
    return {**made, **{name: getattr(row, name) for name in kept}}


def _figures(before: str, score: Score) -> dict[str, float | None]:
    low, high = score.macro_f1_interval or (None, None)
    return {
        f"{before}macro_f1": score.macro_f1,
        f"{before}macro_f1_low": low,
        f"{before}macro_f1_high": high,
        f"{before}accuracy": score.accuracy,
    }
