"""Plan: everything that a cross-validation does, settled and checked before it starts."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from torch import nn

from fastmask.config import Config, make_config
from fastmask.data.augment import REPORT_STATS, Augment, Stats, augmentations, check_fit, effective_pipelines
from fastmask.data.boxes import Framing
from fastmask.data.cache import PhotoMap, digest_photos
from fastmask.data.extra import Extra, read_extra
from fastmask.data.folds import assign_folds, read_folds
from fastmask.data.halves import ANY, SAME, Halves, joint_class
from fastmask.data.loaders import dataloaders, photo_maps, pick_device
from fastmask.data.photo import check_photos, in_threads, read_photo
from fastmask.data.pseudo import read_pseudo
from fastmask.data.table import Table
from fastmask.data.training_set import TrainingSet, class_weights, left_out, training_set
from fastmask.errors import DataError, UnreadableError, UsageError
from fastmask.heads import JOINT, UNKNOWN, Head, Heads
from fastmask.model.archs import nearest_size, size_flaw
from fastmask.model.losses import FocalLoss
from fastmask.model.metrics import default_metrics
from fastmask.model.network import MultiHeadNet, build_network, check_start
from fastmask.scoring import LOSS, target_of
from fastmask.training.freeze import freeze_callbacks, frozen_part
from fastmask.training.learner import check_soft, mask_learner, seeded
from fastmask.training.mix import mix_callbacks
from fastmask.training.start import check_no_leak, digest, file_of, load_heads
from fastmask.training.step import check_compiler, resolve_precision
from fastmask.training.trackers import check_trackers

LossFunc = Callable[[Heads], nn.Module]
PACKAGES = (
    "fastmask",
    "torch",
    "fastai",
    "fastcore",
    "timm",
    "albumentations",
    "scikit-learn",
    "numpy",
    "pandas",
    "adamp",
)
# settings by which a table is read
READING = ("heads", "images", "image_column", "group_column", "fixes", "age_bounds", "score_age_bounds")
# classes of a head in the line that says what a run does
_MOST_SHOWN = 8


@dataclass(frozen=True)
class Plan:
    """What a cross-validation does, checked: the effective settings, table, folds and pipelines.

    `skipped` are the photos that were left out, because they cannot be read, and why; `extras` those of other
    sources that are trained on besides.
    """

    config: Config
    table: Table
    folds: np.ndarray
    pipelines: dict[str, Any]
    environment: dict[str, Any]
    loss_func: LossFunc | None = None
    size: tuple[int, int] | None = None
    maps: Sequence[PhotoMap] = ()
    skipped: Sequence[tuple[str, str]] = ()
    extras: Sequence[Extra] = ()

    def __str__(self) -> str:
        persons, body = len(set(self.table.persons)), self.environment["body"]
        without = f", without {len(self.skipped)} that cannot be read" if self.skipped else ""
        faces, any_ = self.table.faces, bool(self.extras)
        apart = sum(int(extra.without.any(axis=1).sum()) for extra in self.extras)
        dropped = int(left_out(self.table, self.config.drop).sum())
        precision = "" if self.config.precision == "fp32" else f" in {self.config.precision}"
        return "; ".join(
            (
                f"{len(self.table)} photos of {persons} persons{without}",
                *([f"{dropped} of them not trained on"] if dropped else []),
                *([f"{sum(map(len, self.extras))} extra photos to train on, {apart} of them not in every fold"] * any_),
                *([f"cut to the {self.config.region}, {faces.without()} without one left whole"] if faces else []),
                *(_heads_line(head) for head in self.table.heads),
                f"{self.config.arch}, {body['parameters'] / 1e6:.1f} M parameters, weights {body['initial_weights']}",
                f"{self.config.folds} folds of {self.config.epochs} epochs on {self.environment['device']}{precision}",
            )
        )

    @property
    def folds_frame(self) -> pd.DataFrame:
        """What folds.csv holds: one row a photo with its path, person, a column a head, fold."""
        heads = self.table.heads
        numbers = [f"{h.name}_value" for h in heads if h.bounds]
        return self.table.frame[["path", "person", *heads.names, *numbers]].assign(fold=self.folds)

    def check_folds(self, chosen: Sequence[int] | None) -> list[int]:
        """The folds to train, all where none are chosen; raises UsageError for one that there is not."""
        every = range(self.config.folds)
        wrong = ["to train"] if chosen is not None and not len(chosen) else [f for f in chosen or [] if f not in every]
        if wrong:
            raise UsageError(f"There is no fold {wrong[0]}; expected some of {', '.join(map(str, every))}.")
        return sorted(set(every if chosen is None else chosen))

    def learner(self, fold: int, cbs: Sequence[Any] = (), whole: bool = False) -> Learner:
        """The learner that trains on all folds but `fold`, or on the `whole` of the photos, at its start.

        It prints nothing.
        """
        self.check_folds([fold])
        config, heads, train = self.config, self.table.heads, self.training_set(fold, whole)
        # what was frozen for the first epochs is not frozen again for the last
        unfreeze = 1 if whole and config.unfreeze else config.unfreeze
        halves = None
        if config.half_cutmix:
            classes = heads.joint(train.classes(heads))
            halves = Halves(classes, heads, config.half_cutmix, config.half_shares, config.half_partner)
        dls = dataloaders(
            self.table,
            fold,
            self.folds,
            augments=augmentations(self.pipelines),
            bs=config.batch,
            seed=config.seed,
            num_workers=config.workers,
            device=config.device,
            maps=self.maps,
            substitute=self.size if config.on_bad_photo == "skip" else None,
            train=train,
            halves=halves,
        )
        learn = mask_learner(
            dls,
            build(config, heads, fold, self.size),
            loss_func=self.loss(fold),
            lr=config.lr,
            wd=config.wd,
            precision=config.precision,
            accumulate=config.accumulate,
            ema=config.ema,
            swa=config.swa,
            layer_decay=config.layer_decay,
            cbs=[
                *mix_callbacks(heads, config.mixup, config.cutmix, config.mix_prob),
                *freeze_callbacks(config.freeze, unfreeze),
                *cbs,
            ],
        )
        if config.compile:
            # in place: the names of the tensors stay
            learn.model.compile()
        # fastai's progress and its logger print to stdout, which is for results
        learn.remove_cbs(ProgressCallback)
        learn.logger = _silent
        return learn

    def training_set(self, fold: int, whole: bool = False) -> TrainingSet:
        """What the training of a fold sees; or its last epochs on the `whole` of the photos."""
        heads, config = self.table.heads, self.config
        made = training_set(self.table, (whole | (self.folds != fold)) & ~left_out(self.table, config.drop))
        for extra in self.extras:
            made = made.joined(extra.training_set(fold), heads)
        return made if config.sampler is None else made.balanced(heads, config.sampler)

    def loss(self, fold: int = 0) -> nn.Module:
        """The loss of a fold, of one's own or of the configuration."""
        heads = self.table.heads
        if self.loss_func is not None:
            return self.loss_func(heads)
        if self.config.class_weight != "auto":
            return build_loss(self.config, heads)
        train = self.training_set(fold)
        often = 1.0 if train.chances is None else train.chances[:, None] * len(train)
        return build_loss(self.config, heads, class_weights(train.soft(heads) * often, heads))


def _silent(*_: Any) -> None:
    pass


def _heads_line(head: Head) -> str:
    shown = ", ".join(head.classes[:_MOST_SHOWN])
    return f"{head.name} ({shown}{', …' if len(head.classes) > _MOST_SHOWN else ''})"


def prepare(
    table: Table,
    config: Config,
    loss_func: LossFunc | None = None,
    say: Callable[[str], None] = lambda _: None,
    chosen: Sequence[int] | None = None,
) -> Plan:
    """Check everything that can be checked before training, the cheap things first; only the cache is written.

    `say` takes a line where the photos' decoding is worth one; `chosen` are the folds that will be trained, else all.
    """
    check_trackers(config)
    config = effective_config(table, config)
    config = settle_loss(config, loss_func)
    device = pick_device(config.device)
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    if config.order is not None:
        table = table.with_number(config.order, config.order_spread)
    if config.boxes is not None:
        table = table.cut_to_faces(config.boxes, framing(config))
    table = replace(table, heads=weighted_heads(table.heads, config))
    check_monitor(config, table)
    if loss_func is None:
        build_loss(config, table.heads)
    pipelines = effective_pipelines(config, resolve_stats(config))
    first = min(chosen or [0])
    check_start(config.arch, config.pretrained, file_of(config.weights, first))
    config, folds = deal(table, config)
    skipped: list[tuple[str, str]] = []
    if config.on_bad_photo == "skip":
        rows, skipped = readable(table)
        table, folds = table.select(rows), folds[rows]
    check_known(config, table, folds)
    check_no_leak(config.weights, table, folds, config.group, chosen)
    if config.compile:
        check_compiler(device)
    extras = read_extras(config, table, folds)
    if config.on_bad_photo == "skip":
        for place, extra in enumerate(extras):
            rows, gone = readable(extra.table)
            extras[place] = extra.select(np.isin(np.arange(len(extra)), rows))
            skipped += gone
    for faces in (extra.table.faces for extra in extras):
        table = table if faces is None or table.faces is None else replace(table, faces=table.faces.joined(faces))
    digests = digest_photos([table.photo(row) for row in range(len(table))])
    own = [extra.digests() for extra in extras]
    extras = [extra.kept_apart(table, folds, digests, each) for extra, each in zip(extras, own, strict=True)]
    plan = Plan(config, table, folds, pipelines, {}, loss_func, skipped=skipped, extras=extras)
    check_training(plan, chosen)
    maps, size = decode(table, pipelines, config, digests, say)
    for extra, each in zip(extras, own, strict=True):
        more, other = decode(extra.table, pipelines, config, each, say)
        if other != size:
            raise DataError(
                f"The photos below {extra.table.root} come out {other[0]} high and {other[1]} wide, the others "
                f"{size[0]} and {size[1]}: the pipelines must end in one size, so add a crop or a resize to both."
            )
        maps = [*maps, *more]
    network = build(config, table.heads, fold=first, size=size)
    check_size(network, config.arch, size)
    if config.freeze is not None:
        frozen_part(network, config.freeze)
    start = {
        "tag": network.tag,
        "weights": digest(config.weights),
        "chosen_weights": config.weights is not None and Path(config.weights).is_dir(),
        "loss": name_of(loss_func),
        "photos": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    if extras:
        start["extra"] = "".join(extra.digest(each) for extra, each in zip(extras, own, strict=True))
    if table.faces is not None:
        start["boxes"] = table.faces.digest()
    return replace(plan, environment=environment(network, table, device, start), size=size, maps=maps)


def framing(config: Config) -> Framing:
    """How a configuration cuts photos to their faces."""
    return Framing(config.crop, config.margin, config.region)


def read_extras(config: Config, table: Table, folds: np.ndarray) -> list[Extra]:
    """The photos of other sources that a configuration trains on, but for those that it drops."""
    extras = []
    if config.extra is not None:
        extras.append(
            read_extra(config.extra, table.heads, config.extra_images, config.extra_weight, config.group_column)
        )
    if config.pseudo is not None:
        pseudo = read_pseudo(config.pseudo)
        pseudo.check_unseen(table, folds, config.group)
        extras.append(pseudo.extra(table.heads, config.pseudo_weight, config.pseudo_least))
    if config.boxes is not None:
        cuts = [extra.table.cut_to_faces(config.boxes, framing(config)) for extra in extras]
        extras = [replace(extra, table=cut) for extra, cut in zip(extras, cuts, strict=True)]
    return [extra.select(~left_out(extra.table, config.drop)) for extra in extras]


def check_training(plan: Plan, chosen: Sequence[int] | None) -> None:
    """Raise UsageError where a fold has too little to train on, or a loss of one's own cannot take its labels."""
    config, heads = plan.config, plan.table.heads
    if config.sampler not in (None, JOINT):
        heads.position(config.sampler)
    if config.half_cutmix and config.half_partner not in (SAME, ANY):
        joint_class(heads, config.half_partner)
    for fold in plan.check_folds(chosen):
        photos = len(plan.training_set(fold))
        if not photos:
            raise UsageError(f"Setting drop leaves fold {fold} nothing to train on; drop less.")
        check_batches(config, photos)
    if plan.loss_func is not None and any((config.mixup, config.cutmix, config.half_cutmix, plan.extras)):
        check_soft(plan.loss(), heads)


def readable(table: Table) -> tuple[list[int], list[tuple[str, str]]]:
    """The rows of the photos that can be read, and the path of each other with what is wrong with it."""
    faults = list(in_threads(_fault, [table.photo(row) for row in range(len(table))]))
    rows = [row for row, fault in enumerate(faults) if fault is None]
    if not rows:
        raise DataError(f"No photo can be read; the first: {faults[0]}")
    skipped = [(path, fault) for path, fault in zip(table.frame["path"], faults, strict=True) if fault is not None]
    return rows, skipped


def _fault(photo: Path) -> str | None:
    try:
        read_photo(photo)
    except UnreadableError as error:
        return str(error)
    return None


def decode(
    table: Table, pipelines: Mapping[str, Any], config: Config, digests: Sequence[str], say: Callable[[str], None]
) -> tuple[list[PhotoMap], tuple[int, int]]:
    """Every photo decoded once, into a cache where there is one; and the (height, width) that all have in the end.

    Raises DataError naming a photo that cannot be read or that a pipeline does not fit.
    """
    named = dict(zip(("the training pipeline", "the validation pipeline"), augmentations(pipelines), strict=True))
    maps = photo_maps(table, list(named.values()), config.cache, config.cache_dir, digests, say)
    photos = [table.photo(row) for row in range(len(table))]
    whole = None
    fits: dict[str, tuple[Augment, Sequence[tuple[int, int]]]] = {}
    for what, augment in named.items():
        kept = next((m for m in maps if len(m) and m.prefix == augment.prefix.plain), None)
        if kept is None:
            whole = whole or check_photos(photos, table.faces)
        fits[what] = (augment, whole or ()) if kept is None else (augment.vary, kept.sizes(map(str, photos)))
    return maps, check_fit(fits, photos)


def effective_config(table: Table, config: Config) -> Config:
    """`config` with every default that depends on the table filled in, so that the run keeps what it did."""
    default = Config().to_plain()
    given, read = config.to_plain(), make_config(table.reading).to_plain()
    for name in READING:
        if given[name] not in (default[name], read[name]) and not _names(given[name], read[name]):
            raise UsageError(
                f"Setting {name} is {given[name]}, but the table was read with {read[name]}: "
                "give it where the table is read."
            )
    settings = config.model_dump(exclude_unset=True)
    return make_config(
        settings,
        {**table.reading, "data": settings.get("data", table.reading.get("data", "data"))},
        {"stratify": config.stratify or table.stratify},
    )


def _names(given: Any, read: Any) -> bool:
    """Whether heads that are given by their names are those that were read."""
    return isinstance(given, list) and isinstance(read, dict) and given == list(read)


def settle_loss(config: Config, loss_func: LossFunc | None) -> Config:
    """`config` with the loss called "own" where it is; raises UsageError where it is called so and is not there."""
    if loss_func is None and config.loss == "own":
        raise UsageError("Setting loss is own, which needs the loss_func of cross_validate; expected focal or ce.")
    if loss_func is not None:
        for name in ("class_weight", "label_smoothing", "f1_share"):
            if getattr(config, name) != config.default(name):
                raise UsageError(f"Setting {name} is of the focal loss, and does nothing with a loss of your own.")
    return config if loss_func is None else config.model_copy(update={"loss": "own"})


def deal(table: Table, config: Config) -> tuple[Config, np.ndarray]:
    """The fold of every photo, and `config` with the number of folds that a file of them has."""
    if config.folds_file is None:
        return config, assign_folds(table, config.folds, config.stratify, config.group, config.seed)
    folds = read_folds(table, config.folds_file, config.group)
    count = int(folds.max()) + 1
    if "folds" in config.model_fields_set and config.folds != count:
        raise UsageError(f"Setting folds is {config.folds}, but {config.folds_file} has {count}; leave it out.")
    return config.model_copy(update={"folds": count}), folds


def check_size(network: MultiHeadNet, arch: str, size: tuple[int, int]) -> None:
    """Raise UsageError, naming a size that works, if the network cannot take, or cuts, photos of `size`."""
    flaw = size_flaw(network, size)
    if flaw is not None:
        sides = nearest_size(arch, size) or ("HEIGHT", "WIDTH")
        raise UsageError(f"{arch} {flaw}; give it a size that it takes whole: --resize {sides[0]} {sides[1]}.")


def resolve_stats(config: Config) -> Stats | None:
    """The channel statistics that a configuration names; None where it leaves them to the pipelines."""
    if isinstance(config.stats, tuple):
        return config.stats[:3], config.stats[3:]
    if config.stats == "pretrained":
        cfg = timm.get_pretrained_cfg(config.arch)
        if cfg is None:
            raise UsageError(f"timm keeps no statistics for {config.arch!r}; give --stats six numbers.")
        return tuple(cfg.mean), tuple(cfg.std)
    return REPORT_STATS if config.stats == "report" else None


def weighted_heads(heads: Heads, config: Config) -> Heads:
    """The heads with the configuration's shares of the loss."""
    weights = config.head_weights or {}
    for name in (*weights, *(config.alpha or {})):
        heads.position(name)
    return Heads([replace(h, weight=weights.get(h.name, h.weight)) for h in heads])


def build(config: Config, heads: Heads, fold: int, size: tuple[int, int] | None = None) -> MultiHeadNet:
    """The network of a fold at its start, for photos of `size`; what is drawn for it depends on (seed, fold) alone."""
    with seeded(config.seed, fold):
        network = build_network(
            config.arch,
            heads,
            pretrained=config.pretrained,
            weights=file_of(config.weights, fold),
            drop_rate=config.drop_rate,
            drop_path_rate=config.drop_path,
            size=size,
        )
    load_heads(network, heads, config.weights, fold)
    return network


def build_loss(config: Config, heads: Heads, weights: Sequence[Sequence[float] | None] | None = None) -> FocalLoss:
    """The loss of a configuration; `weights` of the classes of each head go over its own."""
    alpha = weights or [class_row(head, (config.alpha or {}).get(head.name)) for head in heads]
    gamma = 0.0 if config.loss == "ce" else config.focal_gamma
    return FocalLoss(heads, gamma, alpha, label_smoothing=config.label_smoothing, f1_share=config.f1_share)


def class_row(head: Head, given: Sequence[float] | Mapping[str, float] | None) -> list[float] | None:
    """A weight a class: of those that are named; the others have 1. Raises UsageError for a name that is no class."""
    if not isinstance(given, Mapping):
        return None if given is None else list(given)
    unknown = next((name for name in given if name not in head.classes), None)
    if unknown is not None:
        raise UsageError(
            f"alpha of head {head.name} has the class {unknown!r}; expected some of {', '.join(head.classes)}."
        )
    return [given.get(name, 1.0) for name in head.classes]


def check_monitor(config: Config, table: Table) -> None:
    """Raise UsageError if no metric is called as the one to watch."""
    names = [LOSS, *(m.name for m in default_metrics(table.heads, table.y))]
    if config.monitor not in names:
        raise UsageError(f"There is no metric {config.monitor!r} to monitor; expected one of {', '.join(names)}.")


def check_known(config: Config, table: Table, folds: np.ndarray) -> None:
    """Raise UsageError if some fold has no photo with the labels that the metric to watch is of."""
    for metric in default_metrics(table.heads, table.y):
        if metric.name == config.monitor:
            known = target_of(table.heads, table.y, metric.target) != UNKNOWN
            without = sorted(set(folds.tolist()) - set(folds[known].tolist()))
            if without:
                what = "all heads" if metric.target == JOINT else metric.target
                raise UsageError(
                    f"Setting monitor is {config.monitor}, but no photo of fold {without[0]} has a label of {what}; "
                    f"watch another metric, such as {LOSS}, or deal the folds otherwise."
                )


def check_batches(config: Config, photos: int) -> None:
    """Raise UsageError if an epoch of so many photos has fewer batches than make one optimizer step."""
    batches = photos // min(config.batch, photos)
    if config.accumulate > batches:
        raise UsageError(
            f"Setting accumulate is {config.accumulate}, but an epoch has {batches} batches of {config.batch}, so it "
            "has no step; take fewer, or a smaller --bs."
        )


def environment(network: MultiHeadNet, table: Table, device: torch.device, start: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, device, the body's full timm tag and the weights it starts from, git commit, where the photos lie.

    `start` is what a fold starts from that the configuration only names.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "body": {
            "tag": network.tag,
            "initial_weights": network.initial_weights,
            "stats": network.stats,
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "start": dict(start),
        "photos": {"root": str(table.root.resolve()), "count": len(table), "persons": len(set(table.persons))},
        "proposed_fixes": table.proposed,
        "command": sys.argv,
        "git_commit": git_commit(),
    }


def name_of(made_by: Any) -> str | None:
    """Where a loss of one's own is defined."""
    if made_by is None:
        return None
    return f"{made_by.__module__}.{getattr(made_by, '__qualname__', type(made_by).__name__)}"


def git_commit() -> str | None:
    """The commit of the folder that the run was started in, if it is a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
