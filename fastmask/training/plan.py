"""Plan: everything that a cross-validation does, settled and checked before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from torch import nn

from fastmask.config import Config
from fastmask.data.augment import Augment, augmentations, check_fit, effective_pipelines
from fastmask.data.cache import PhotoMap, digest_photos
from fastmask.data.extra import Extra, read_extra
from fastmask.data.halves import ANY, SAME, Halves, joint_class
from fastmask.data.loaders import dataloaders, photo_maps, pick_device, pick_workers, workers_see_memory
from fastmask.data.photo import check_photos, in_threads, read_photo
from fastmask.data.pseudo import read_pseudo
from fastmask.data.table import Table
from fastmask.data.training_set import TrainingSet, class_weights, dropped_rows, training_set
from fastmask.heads import JOINT, Head, Heads
from fastmask.model.network import MultiHeadNet
from fastmask.model.precision import check_compiler, resolve_precision
from fastmask.model.weights import check_weights
from fastmask.run.directory import RunDirectory
from fastmask.run.environment import environment, name_of
from fastmask.run.lineage import check_no_leak, digest_weights, weights_file
from fastmask.system.errors import DataError, UnreadableError, UsageError
from fastmask.system.text import count, join_some
from fastmask.training.build import build, build_loss, check_size, framing, resolve_stats, weighted_heads
from fastmask.training.freeze import freeze_callbacks, frozen_part
from fastmask.training.learner import check_soft, mask_learner
from fastmask.training.mix import mix_callbacks
from fastmask.training.processes import ALONE, Processes
from fastmask.training.progress.trackers import check_trackers
from fastmask.training.settle import check_batches, check_known, check_monitor, deal, effective_config, settle_loss

LossFunc = Callable[[Heads], nn.Module]


class Teacher(Protocol):
    """What a plan asks of the run that its students learn from; `fastmask.inference.teacher` has it."""

    def digest(self) -> str:
        """SHA-256 of its networks and of how they are blended."""

    def mix(self, own: np.ndarray, answers: np.ndarray, heads: Heads) -> np.ndarray:
        """(N, classes of `heads`) soft labels of which the teacher's answers are a share."""

    def answers(self, plan: Plan, say: Callable[[str], None]) -> np.ndarray:
        """(folds + 1, N, classes of its heads) probabilities of the plan's photos: by each fold's models, by all."""

    def answers_kept(self, run: RunDirectory, plan: Plan, say: Callable[[str], None]) -> np.ndarray:
        """`answers` as the run keeps them, made first where it has none."""


# opens the teacher of a configuration and checks it; training comes before inference, so whoever calls passes it
OpenTeacher = Callable[[Config, Table, np.ndarray, Sequence[int] | None], Teacher]


@dataclass(frozen=True)
class Plan:
    """What a cross-validation does, checked: the effective settings, table, folds and pipelines.

    `skipped` are the photos that were left out, because they cannot be read, and why; `extras` those of other
    sources that are trained on besides; `processes` train a fold together. What a `teacher` makes of the labels stands
    in `taught`, (folds + 1, photos, classes of all heads), the last those of the training on all photos; until it is
    asked, the table's stand.
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
    processes: Processes = ALONE
    teacher: Teacher | None = None
    taught: np.ndarray | None = None

    def __str__(self) -> str:
        persons, body = len(set(self.table.persons)), self.environment["body"]
        without = f", without {len(self.skipped)} that cannot be read" if self.skipped else ""
        folds = count(self.config.folds, "fold")
        faces, extra = self.table.faces, _extra_line(self.extras)
        dropped = int(dropped_rows(self.table, self.config.drop).sum())
        precision = "" if self.config.precision == "fp32" else f" in {self.config.precision}"
        several = "" if self.processes == ALONE else f", {self.processes.count} processes together"
        return "; ".join(
            (
                f"{count(len(self.table), 'photo')} of {count(persons, 'person')}{without}",
                *([f"{dropped} of them not trained on"] if dropped else []),
                *([extra] if extra else []),
                *([f"taught by {self.config.teacher}"] if self.teacher else []),
                *([f"cut to the {self.config.region}, {faces.without()} without one left whole"] if faces else []),
                *(_heads_line(head) for head in self.table.heads),
                f"{self.config.arch}, {body['parameters'] / 1e6:.1f} M parameters, weights {body['initial_weights']}",
                f"{folds} of {count(self.config.epochs, 'epoch')} on {self.environment['device']}{precision}{several}",
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
            device=self.processes.device or config.device,
            maps=self.maps,
            substitute=self.size if config.on_bad_photo == "skip" else None,
            train=train,
            halves=halves,
            share=self.processes.share,
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
                *_distributed(self.processes, dls.device, unused=config.freeze is not None),
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
        rows = (whole | (self.folds != fold)) & ~dropped_rows(self.table, config.drop)
        made = training_set(self.table, rows)
        if self.taught is not None:
            made = replace(made, labels=self.taught[-1 if whole else fold][rows])
        for extra in self.extras:
            made = made.joined(extra.training_set(fold), heads)
        return made if config.sampler is None else made.balanced(heads, config.sampler)

    def taught_by(self, answers: np.ndarray) -> Plan:
        """The plan whose labels are mixed with what the teacher answers: see `Teacher.answers`."""
        if self.teacher is None:
            return self
        own = training_set(self.table, np.full(len(self.table), True)).soft(self.table.heads)
        return replace(self, taught=np.stack([self.teacher.mix(own, each, self.table.heads) for each in answers]))

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


def _extra_line(extras: Sequence[Extra]) -> str:
    """How many photos of other sources are trained on; nothing where there are none."""
    if not extras:
        return ""
    taught = sum(int(extra.useful.sum()) for extra in extras)
    idle = sum(map(len, extras)) - taught
    apart = sum(int(extra.excluded.any(axis=1).sum()) for extra in extras)
    without = f" ({idle} that teach nothing left out)" if idle else ""
    return f"{taught} extra photos to train on{without}, {apart} of them not in every fold"


def _distributed(processes: Processes, device: torch.device, unused: bool) -> list[Callback]:
    """The callback of several processes, where there are several."""
    if processes.count == 1:
        return []
    # it needs Accelerate, which the base install does not have
    from fastmask.training.distributed import WholeBatchTrainer

    return [WholeBatchTrainer(processes, device, unused)]


def _silent(*_: Any) -> None:
    pass


def _heads_line(head: Head) -> str:
    return f"{head.name} ({join_some(head.classes)})"


def prepare(
    table: Table,
    config: Config,
    loss_func: LossFunc | None = None,
    say: Callable[[str], None] = lambda _: None,
    chosen: Sequence[int] | None = None,
    processes: Processes = ALONE,
    open_teacher: OpenTeacher | None = None,
) -> Plan:
    """Check everything that can be checked before training, the cheap things first; only the cache is written.

    `say` takes a line where the photos' decoding is worth one; `chosen` are the folds that will be trained, else all.
    """
    check_trackers(config)
    config = settle_loss(effective_config(table, config), own=loss_func is not None)
    device = pick_device(processes.device or config.device)
    workers = pick_workers(config.workers, device)
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    table = _configured(table, config)
    check_monitor(config, table)
    if loss_func is None:
        build_loss(config, table.heads)
    pipelines = effective_pipelines(config, resolve_stats(config))
    first = min(chosen or [0])
    check_weights(config.arch, config.pretrained, weights_file(config.weights, first))
    config, folds = deal(table, config)
    skipped: list[tuple[str, str]] = []
    if config.on_bad_photo == "skip":
        rows, skipped = readable(table)
        table, folds = table.select(rows), folds[rows]
    check_known(config, table, folds)
    check_no_leak(config.weights, table, folds, config.group, chosen)
    if config.compile:
        check_compiler(device)
    extras, gone = read_extras(config, table, folds)
    teacher = _teacher(open_teacher, config, table, folds, chosen)
    table = _with_faces_of(table, extras)
    digests = digest_photos([table.photo(row) for row in range(len(table))])
    own = [extra.digests() for extra in extras]
    extras = [extra.exclude_validated(table, folds, digests, each) for extra, each in zip(extras, own, strict=True)]
    plan = Plan(
        config,
        table,
        folds,
        pipelines,
        {},
        loss_func,
        skipped=[*skipped, *gone],
        extras=extras,
        processes=processes,
        teacher=teacher,
    )
    check_training(plan, chosen)
    maps, size = _decode_all(plan, digests, own, say)
    if any(len(kept) and kept.file is None for kept in maps) and not workers_see_memory(workers):
        say(
            "Loading processes on this system cannot see the photos in memory and decode them again; use --cache disk "
            "or --workers 0"
        )
    network = build(config, table.heads, fold=first, size=size)
    check_size(network, config.arch, size)
    if config.freeze is not None:
        frozen_part(network, config.freeze)
    start = _start(plan, network, digests, own)
    return replace(plan, environment=environment(network, table, device, start, processes.count), size=size, maps=maps)


def _teacher(
    open_teacher: OpenTeacher | None, config: Config, table: Table, folds: np.ndarray, chosen: Sequence[int] | None
) -> Teacher | None:
    """The teacher of a configuration, checked: it must not have seen whom a fold is judged on."""
    if config.teacher is None:
        return None
    if open_teacher is None:
        raise UsageError("The setting teacher needs fastmask.api.cross_validate, or open_teacher passed to prepare.")
    return open_teacher(config, table, folds, chosen)


def _configured(table: Table, config: Config) -> Table:
    """The table as the configuration has it: a number beside its bands, photos cut to faces, shares of the loss."""
    if config.order is not None:
        table = table.with_number(config.order, config.order_spread)
    if config.boxes is not None:
        table = table.cut_to_faces(config.boxes, framing(config))
    return replace(table, heads=weighted_heads(table.heads, config))


def _with_faces_of(table: Table, extras: Sequence[Extra]) -> Table:
    """The table that knows the faces of the extra photos, too, since one loader reads both."""
    for faces in (extra.table.faces for extra in extras):
        table = table if faces is None or table.faces is None else replace(table, faces=table.faces.joined(faces))
    return table


def _start(plan: Plan, network: MultiHeadNet, digests: Sequence[str], own: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What a fold starts from that the configuration only names; `own` are the digests of the extra photos."""
    config, faces = plan.config, plan.table.faces
    start = {
        "tag": network.tag,
        "weights": digest_weights(config.weights),
        "chosen_weights": config.weights is not None and Path(config.weights).is_dir(),
        "loss": name_of(plan.loss_func),
        "photos": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    if plan.extras:
        start["extra"] = "".join(extra.digest(each) for extra, each in zip(plan.extras, own, strict=True))
    if plan.teacher is not None:
        start["teacher"] = plan.teacher.digest()
    if faces is not None:
        start["boxes"] = faces.digest()
    return start


def read_extras(config: Config, table: Table, folds: np.ndarray) -> tuple[list[Extra], list[tuple[str, str]]]:
    """The photos of other sources that a configuration trains on, but for those that it drops.

    And the paths of those that are skipped, because they cannot be read, with what is wrong with them.
    """
    extras, skipped = [], []
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
    extras = [extra.select(~dropped_rows(extra.table, config.drop)) for extra in extras]
    if config.on_bad_photo == "skip":
        for place, extra in enumerate(extras):
            rows, gone = readable(extra.table)
            extras[place] = extra.select(np.isin(np.arange(len(extra)), rows))
            skipped += gone
    return extras, skipped


def check_training(plan: Plan, chosen: Sequence[int] | None) -> None:
    """Raise UsageError where a fold has too little to train on, or a loss of one's own cannot take its labels."""
    config, heads = plan.config, plan.table.heads
    if config.sampler not in (None, JOINT):
        heads.position(config.sampler)
    named = config.half_partner if config.half_cutmix and config.half_partner not in (SAME, ANY) else None
    for extra in plan.extras:
        if not extra.useful.any():
            raise UsageError(f"No photo of those below {extra.table.root} has a label, and a weight, to learn from.")
    for fold in plan.check_folds(chosen):
        train = plan.training_set(fold)
        photos = len(train)
        if named is not None and joint_class(heads, named) not in heads.joint(train.classes(heads)):
            raise UsageError(f"Setting half_partner is {named!r}, of which fold {fold} has no photo to train on.")
        if not photos:
            raise UsageError(f"Setting drop leaves fold {fold} nothing to train on; drop less.")
        check_batches(config, photos)
    if plan.loss_func is not None and any((config.mixup, config.cutmix, config.half_cutmix, plan.extras, plan.teacher)):
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


def _decode_all(
    plan: Plan, digests: Sequence[str], own: Sequence[Sequence[str]], say: Callable[[str], None]
) -> tuple[list[PhotoMap], tuple[int, int]]:
    """As `decode`, the photos of the table and those of other sources; raises DataError where their sizes differ."""
    maps, size = decode(plan.table, plan.pipelines, plan.config, digests, say)
    for extra, each in zip(plan.extras, own, strict=True):
        more, other = decode(extra.table, plan.pipelines, plan.config, each, say)
        if other != size:
            raise DataError(
                f"The photos below {extra.table.root} come out {other[0]} high and {other[1]} wide, the others "
                f"{size[0]} and {size[1]}: the pipelines must end in one size, so add a crop or a resize to both."
            )
        maps = [*maps, *more]
    return maps, size


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
