"""Plan: everything that a cross-validation does, resolved and checked before it starts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastcore.basics import noop
from torch import nn

from fastmask.config import Config, HeadOptions, recipe_of
from fastmask.data.augment import build_augmentations
from fastmask.data.boxes import BOX
from fastmask.data.cache import PhotoMap, digest_photos
from fastmask.data.extra import Extra
from fastmask.data.groups import (
    describe_conflicts,
    describe_joined,
    describe_separated,
    find_trained_copies,
    join_identical,
)
from fastmask.data.halves import ANY, SAME, Halves
from fastmask.data.loaders import dataloaders, pick_device, pick_workers, workers_see_memory
from fastmask.data.named_classes import check_present
from fastmask.data.pipelines import describe_view, effective_pipelines, measure_shares
from fastmask.data.seen import Hashes, Validation, hash_names
from fastmask.data.table import LEFT_OUT, SAME_AS, TRAIN_ONLY, Table
from fastmask.data.training_set import (
    TrainingSet,
    check_limits,
    check_weights_differ,
    class_weights,
    draw_weights,
    dropped_rows,
    training_set,
)
from fastmask.data.versions import join_cuts
from fastmask.heads import JOINT, Head, Heads
from fastmask.model.network import MultiHeadNet
from fastmask.model.optim import live_opt, named_opt
from fastmask.model.precision import check_compiler, resolve_precision, usable_precision
from fastmask.model.weights import check_weights
from fastmask.run.directory import RunDirectory
from fastmask.run.environment import describe_environment, qualified_name
from fastmask.run.lineage import Lineage, check_no_leak, digest_weights, is_chosen, lineage_of, weights_file
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.terminal import quote
from fastmask.system.text import count, join_some
from fastmask.training.additional import count_versions, describe_extras, find_other_versions, read_extras
from fastmask.training.build import (
    apply_head_weights,
    build_initial_network,
    build_loss,
    check_size,
    make_framing,
    resolve_stats,
)
from fastmask.training.decoding import decode_tables, describe_emptied, find_readable
from fastmask.training.effective_config import (
    check_monitor,
    check_monitored_labels,
    describe_split,
    effective_config,
    resolve_folds,
    resolve_loss,
    resolve_opt,
    split_of_data,
)
from fastmask.training.feature_loss import AddFeatureLoss
from fastmask.training.freeze import Freeze, frozen_part
from fastmask.training.learner import check_soft, mask_learner
from fastmask.training.mix import mix_callbacks
from fastmask.training.optimizer_state import check_optimizer
from fastmask.training.parts import check_parts
from fastmask.training.processes import ALONE, Processes
from fastmask.training.progress.trackers import check_trackers
from fastmask.training.sam import sam_callbacks

LossFunc = Callable[[Heads], nn.Module]
# makes the optimizer: see `fastmask.model.optim.live_opt`
OptFunc = Callable[..., Any]


class Teacher(Protocol):
    """The run that the students of a plan learn from; implemented by `fastmask.inference.teacher`."""

    def digest(self) -> str:
        """SHA-256 of its networks and of their blend."""

    def mix(self, own: np.ndarray, predicted: np.ndarray, heads: Heads) -> np.ndarray:
        """Soft labels of (N, classes of `heads`) labels and the teacher's probabilities; see `fastmask.labels`."""

    def lineage(self, fold: int) -> Lineage:
        """What its models of a fold have seen."""

    def predict(self, plan: Plan, say: Callable[[str], None]) -> np.ndarray:
        """(folds + 1, N, classes of its heads) probabilities of the plan's photos: of each fold's models, of all."""

    def load_predictions(self, run: RunDirectory, plan: Plan, say: Callable[[str], None]) -> np.ndarray:
        """The probabilities of `predict`, saved in the run; computed first if missing."""


# opens the teacher of a configuration and checks it; passed by the caller, since training cannot import inference
OpenTeacher = Callable[[Config, Validation], Teacher]


@dataclass(frozen=True)
class Plan:
    """What a cross-validation does, checked: the effective configuration, table, folds and pipelines.

    `skipped` are the photos that are left out, and why; `extras` are photos of other sources to train on as well;
    `digests` are the SHA-256 of the table's photos, `extra_digests` of those of each source; `processes` train a fold
    together. `soft_labels` are (folds + 1, photos, ...), those of each fold and of the refit on all photos; None means
    the labels of the table, also with a `teacher` that has not predicted yet.
    """

    config: Config
    table: Table
    folds: np.ndarray
    pipelines: dict[str, Any]
    environment: dict[str, Any]
    loss_func: LossFunc | None = None
    opt_func: OptFunc | None = None
    size: tuple[int, int] | None = None
    maps: Sequence[PhotoMap] = ()
    digests: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    extras: Sequence[Extra] = ()
    extra_digests: Sequence[Sequence[str]] = ()
    processes: Processes = ALONE
    teacher: Teacher | None = None
    soft_labels: np.ndarray | None = None

    def __str__(self) -> str:
        persons, body = len(set(self.table.persons)), self.environment["body"]
        without = f", {len(self.skipped):,} left out" if self.skipped else ""
        never = int((self.folds == TRAIN_ONLY).sum())
        folds = count(self.config.folds, "fold") + (
            f" ({count(never, 'photo')} in none, to train on only)" if never else ""
        )
        faces = self.table.faces
        dropped = int(dropped_rows(self.table, self.config.drop).sum())
        precision = "" if self.config.precision == "fp32" else f" in {self.config.precision}"
        several = "" if self.processes == ALONE else f", {self.processes.count} processes together"
        joined = describe_joined(self.table.persons, self.table.groups)
        conflicts = describe_conflicts(self.table, self.digests) if self.digests else ""
        return "; ".join(
            (
                f"{count(len(self.table), 'photo')} of {count(persons, 'person')}{without}",
                *([f"{dropped} of them not trained on"] if dropped else []),
                *([f"{self._describe_epochs()} per epoch"] if self.config.per_person else []),
                *filter(None, (describe_split(self.table, self.config), joined, conflicts)),
                *describe_extras(self.extras),
                *([f"soft labels of {self.config.teacher}"] if self.teacher else []),
                f"cut to the {self.config.region}, {faces.describe_faceless()}"
                if faces
                else describe_view(self.config, self.environment["photos"].get("seen")),
                *(_describe_head(head, self.config.per_head) for head in self.table.heads),
                f"{self.config.arch}, {body['parameters'] / 1e6:.1f} M parameters, weights {body['initial_weights']}",
                f"{folds} of {count(self.config.epochs, 'epoch')} on {self.environment['device']}{precision}{several}",
            )
        )

    def _describe_epochs(self) -> str:
        """How many photos the epochs of the folds have."""
        counts = sorted({self.training_set(fold).photos_per_epoch for fold in range(self.config.folds)})
        return f"{counts[0]:,} to {count(counts[-1], 'photo')}" if counts[1:] else count(counts[0], "photo")

    @property
    def folds_frame(self) -> pd.DataFrame:
        """The content of folds.csv: one row per photo with its path, person, a column per head, fold.

        Where persons share identical photos, same_as is the first of them; a column of draw weights keeps its name.
        """
        heads = self.table.heads
        numbers = [f"{h.name}_value" for h in heads if h.bounds]
        frame = self.table.frame
        joined = [SAME_AS] if SAME_AS in frame else []
        weights = [self.config.draw_weights] if isinstance(self.config.draw_weights, str) else []
        return frame[["path", "person", *joined, *heads.names, *numbers, *weights]].assign(fold=self.folds)

    @property
    def extra_frame(self) -> pd.DataFrame | None:
        """The content of extra.csv; None without photos of other sources."""
        return pd.concat([extra.frame() for extra in self.extras]) if self.extras else None

    def check_folds(self, chosen: Sequence[int] | None) -> list[int]:
        """The folds to train, by default all; raises UsageError for an unknown one."""
        every = range(self.config.folds)
        wrong = ["to train"] if chosen is not None and not len(chosen) else [f for f in chosen or [] if f not in every]
        if wrong:
            raise UsageError(f"There is no fold {wrong[0]}; expected some of {', '.join(map(str, every))}.")
        return sorted(set(every if chosen is None else chosen))

    def loaders(self, fold: int, whole: bool = False) -> DataLoaders:
        """The loaders that train on all folds but `fold`, or with `whole` on all photos, and validate `fold`."""
        config, heads, train = self.config, self.table.heads, self.training_set(fold, whole)
        halves = None
        if config.half_cutmix:
            classes = train.classes(heads)
            options = config.half_shares, config.half_partner, config.mix_classes or ()
            halves = Halves(classes, heads, config.half_cutmix, *options)
        versions = [extra.table.faces for extra in self.extras if extra.origins is not None]
        return dataloaders(
            replace(self.table, faces=join_cuts(self.table.faces, versions)),
            fold,
            self.folds,
            augments=build_augmentations(self.pipelines),
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

    def learner(self, fold: int, cbs: Sequence[Any] = (), whole: bool = False) -> Learner:
        """A new learner for all folds but `fold`, or with `whole` for all photos; it prints nothing."""
        self.check_folds([fold])
        config, heads, dls = self.config, self.table.heads, self.loaders(fold, whole)
        # a part that was frozen for the first epochs is not frozen in a refit
        unfreeze = 1 if whole and config.unfreeze else config.unfreeze
        learn = mask_learner(
            dls,
            build_initial_network(config, heads, fold, self.size),
            loss_func=self.loss(fold),
            opt_func=self.opt_func or named_opt(config.opt, **(config.opt_args or {})),
            lr=config.lr,
            wd=config.wd,
            precision=config.precision,
            accumulate=config.accumulate,
            ema=config.ema,
            swa=config.swa,
            layer_decay=config.layer_decay,
            cbs=[
                *mix_callbacks(
                    heads, config.mixup, config.cutmix, config.mix_prob, config.mix_classes, config.mix_partner
                ),
                *_feature_callbacks(config, heads, self.processes.count),
                *([Freeze(config.freeze, unfreeze)] if config.freeze is not None else []),
                *sam_callbacks(config),
                *([GradientClip(config.clip)] if config.clip else []),
                *_distributed_callbacks(self.processes, dls.device, unused=config.freeze is not None),
                *cbs,
            ],
        )
        if config.compile:
            # in place, so that the names of the tensors stay; the body alone, which may compute a batch in parts
            learn.model.body.compile()
        # fastai's progress bar and its logger print to stdout, which is for results
        learn.remove_cbs(ProgressCallback)
        learn.logger = noop
        return learn

    def opt_func_of_groups(self) -> OptFunc:
        """fastai's `opt_func`: the custom one, or that of the configuration."""
        return live_opt(self.opt_func or named_opt(self.config.opt, **(self.config.opt_args or {})))

    def optimizer(self, network: nn.Module) -> Any:
        """The optimizer of all weights of a network, in one group."""
        made = self.opt_func_of_groups()([list(network.parameters())], lr=self.config.lr)
        made.set_hyper("wd", self.config.wd)
        return made

    def training_set(self, fold: int, whole: bool = False) -> TrainingSet:
        """The photos that a fold trains on, or with `whole` all photos, for its refit."""
        heads, config = self.table.heads, self.config
        rows = self.trained_rows(fold, whole)
        made = training_set(self.table, rows)
        if self.soft_labels is not None:
            made = replace(made, labels=self.soft_labels[-1 if whole else fold][rows])
        for extra in self.extras:
            more = extra.training_set(fold, whole)
            if self.soft_labels is not None and extra.origins is not None:
                # a version has the labels of its photo
                origins = extra.origin_rows[extra.trained_rows(fold, whole)]
                more = replace(more, labels=self.soft_labels[-1 if whole else fold][origins])
            made = made.join(more, heads)
        weights: Any = config.draw_weights
        if isinstance(weights, str):
            others = [extra.draw_weights(fold, weights, whole) for extra in self.extras]
            weights = np.concatenate([draw_weights(self.table, weights)[rows], *others])
        return made.sample(heads, config.sampler, config.per_person, weights)

    def trained_rows(self, fold: int, whole: bool = False) -> np.ndarray:
        """(N,) whether a fold, or with `whole` its refit, trains on a photo of the table."""
        rows: np.ndarray = (whole | (self.folds != fold)) & ~dropped_rows(self.table, self.config.drop)
        return rows

    def count_trained(self, chosen: Sequence[int] | None = None) -> list[int]:
        """The photos per epoch of each of the chosen folds, and of each of their refits."""
        fits = (False, True) if self.config.refit else (False,)
        return [self.training_set(fold, whole).photos_per_epoch for whole in fits for fold in self.check_folds(chosen)]

    def lineage(self, fold: int, whole: bool = False) -> Lineage:
        """The photos and persons that a fold, or with `whole` its refit, is trained on and its epoch is chosen by.

        They include those of the weights that it starts from, and of the models that it learns from.
        """
        seen = _hash_rows(self.table, self.digests, self.trained_rows(fold, whole))
        for extra, digests in zip(self.extras, self.extra_digests, strict=True):
            rows = extra.trained_rows(fold, whole)
            seen = seen.union(_hash_rows(extra.table, digests, rows), *extra.seen[fold : fold + 1])
        chosen = _hash_rows(self.table, self.digests, self.folds == fold)
        made = Lineage(seen, chosen).join(lineage_of(self.config.weights, fold))
        if self.teacher is not None:
            # a refit learns from all of them
            for number in range(self.config.folds) if whole else [fold]:
                made = made.join(self.teacher.lineage(number))
        return made

    def soften_labels(self, predicted: np.ndarray) -> Plan:
        """The plan with labels mixed with the teacher's probabilities, see `Teacher.load_predictions`."""
        if self.teacher is None:
            return self
        own = training_set(self.table, np.full(len(self.table), True)).soft(self.table.heads)
        return replace(
            self, soft_labels=np.stack([self.teacher.mix(own, each, self.table.heads) for each in predicted])
        )

    def loss(self, fold: int = 0) -> nn.Module:
        """The loss of a fold: the custom one, or that of the configuration."""
        heads = self.table.heads
        if self.loss_func is not None:
            return self.loss_func(heads)
        if self.config.class_weight != "auto":
            return build_loss(self.config, heads)
        train = self.training_set(fold)
        often = 1.0 if train.sampler is None else train.sampler.expected()[:, None]
        return build_loss(self.config, heads, class_weights(train.soft(heads) * often, heads))


def _describe_head(head: Head, per_head: Mapping[str, HeadOptions] | None) -> str:
    own = (per_head or {}).get(head.name)
    return f"{head.name} ({join_some(head.classes)}{f'; {own}' if own else ''})"


def _hash_rows(table: Table, digests: Sequence[str], rows: np.ndarray) -> Hashes:
    """Hashes of the photos and the persons of some rows, (N,) bool."""
    return hash_names(photos=np.array(digests, object)[rows], persons=table.persons[rows])


def _feature_callbacks(config: Config, heads: Heads, processes: int) -> list[Callback]:
    """The callback for a loss on features, if there is one."""
    loss = AddFeatureLoss(heads, config.feature_weight, config.feature_head, processes)
    return [loss] if config.feature_loss else []


def _distributed_callbacks(processes: Processes, device: torch.device, unused: bool) -> list[Callback]:
    """The callback for several processes, if there are."""
    if processes.count == 1:
        return []
    # it needs Accelerate, which the base install does not have
    from fastmask.training.distributed import WholeBatchTrainer

    return [WholeBatchTrainer(processes, device, unused)]


def prepare(
    table: Table,
    config: Config,
    loss_func: LossFunc | None = None,
    say: Callable[[str], None] = lambda _: None,
    chosen: Sequence[int] | None = None,
    processes: Processes = ALONE,
    open_teacher: OpenTeacher | None = None,
    opt_func: OptFunc | None = None,
) -> Plan:
    """Check everything that can be checked before training, cheap things first; only the cache is written.

    `say` prints a line about the decoding of the photos if it takes long; `chosen` are the folds to train, by default
    all.
    """
    check_trackers(config)
    config = resolve_loss(effective_config(table, config), custom=loss_func is not None)
    config = resolve_opt(config, custom=opt_func is not None)
    device = pick_device(processes.device or config.device)
    workers = pick_workers(config.workers, device)
    auto = config.precision == "auto"
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    table = _configure_table(table, config)
    check_monitor(config, table)
    if loss_func is None:
        build_loss(config, table.heads)
    whole = Plan(config, table, np.empty(0), {}, {}, loss_func, opt_func, processes=processes)
    check_optimizer(whole.opt_func_of_groups(), device)
    pipelines = effective_pipelines(config, resolve_stats(config))
    first = min(chosen or [0])
    check_weights(config.arch, config.pretrained, weights_file(config.weights, first))
    plan = _split(replace(whole, pipelines=pipelines))
    config = plan.config
    check_monitored_labels(config, plan.table, plan.folds)
    if config.compile:
        check_compiler(device)
    plan = _add_versions(plan, say)
    validation = _validation_of(plan, chosen)
    check_no_leak(config.weights, validation)
    plan = _add_sources(plan, validation, open_teacher)
    check_training(plan, chosen)
    maps, size = decode_tables(plan.table, plan.extras, pipelines, config, [plan.digests, *plan.extra_digests], say)
    if any(len(kept) and kept.file is None for kept in maps) and not workers_see_memory(workers):
        say(
            "Loading processes on this system cannot see the photos in memory and decode them again; use --cache disk "
            "or --workers 0"
        )
    network = build_initial_network(config, plan.table.heads, fold=first, size=size)
    check_size(network, config.arch, size)
    if config.freeze is not None:
        frozen_part(network, config.freeze)
    check_parts(config, plan.table.heads, size, plan.count_trained(chosen), processes.count)
    precision = usable_precision(network, size, device, config.precision, auto)
    plan = replace(plan, config=config.model_copy(update={"precision": precision}))
    start = _describe_start(plan, network, validation)
    made = describe_environment(network, plan.table, device, start, processes.count)
    shares = measure_shares(plan.table, build_augmentations(pipelines)[1])
    made["photos"] |= {"seen": shares, **count_versions(config, plan.extras)}
    return replace(plan, environment=made, size=size, maps=maps)


def _split(plan: Plan) -> Plan:
    """The plan with its folds, without the photos that are to be skipped, and with the digests of the others.

    Persons who share identical photos are in one fold, except in a leaky split; a file of folds that separates them is
    refused. Photos to train on only are left out if they are those of a validated person, or the same.
    """
    config, table = plan.config, plan.table
    # invalid folds are refused before all photos are read
    with warnings.catch_warnings(record=True) as warned:
        config, folds = resolve_folds(table, config)
    table, folds, left = _leave_out(table, folds, config)
    rows, skipped = find_readable(table) if config.on_bad_photo == "skip" else (list(range(len(table))), [])
    digests = _digest_rows(table, rows)
    if config.group == "person":
        copies = find_trained_copies(table, folds, digests)
        left = [*left, *_describe_copies(table, copies)]
        rows = sorted({*rows} - {*copies})
        for row in copies:
            digests[row] = None
        fixed = bool(config.folds_file) or split_of_data(table, config) is not None
        if fixed:
            _check_separated(table, folds, digests, config)
        joined = join_identical(table, digests)
        if joined is not table and not fixed:
            warned = []
            config, folds = resolve_folds(joined, config)
        table = joined
    for each in warned:
        warnings.warn(each.message, stacklevel=2)
    kept = table.select(rows) if len(rows) < len(table) else table
    emptied = describe_emptied(table, folds, [path for path, _ in skipped])
    if emptied:
        warnings.warn(emptied, FastmaskWarning, stacklevel=2)
    skipped, known = [*table.missing, *left, *skipped], [digest for digest in digests if digest is not None]
    return replace(plan, config=config, table=kept, folds=folds[rows], digests=known, skipped=skipped)


def _digest_rows(table: Table, rows: Sequence[int]) -> list[str | None]:
    """The digest of the photo of each row of a table, None for those that are not in `rows`."""
    digests: list[str | None] = [None] * len(table)
    for row, digest in zip(rows, digest_photos([table.photo(row) for row in rows]), strict=True):
        digests[row] = digest
    return digests


def _check_separated(table: Table, folds: np.ndarray, digests: Sequence[str | None], config: Config) -> None:
    """Raise UsageError if fixed folds separate persons who share identical photos."""
    separated = describe_separated(table, folds, digests)
    if separated:
        raise UsageError(
            f"{config.folds_file or config.data}: {separated}; give both persons the same fold, or remove one of the "
            "photos."
        )


def _leave_out(table: Table, folds: np.ndarray, config: Config) -> tuple[Table, np.ndarray, list[tuple[str, str]]]:
    """The table and its (N,) folds without the photos of a test split; also their paths, with the reason."""
    left = table.frame["path"][folds == LEFT_OUT].tolist()
    if not left:
        return table, folds, []
    source = config.folds_file or config.data
    warnings.warn(
        f"{source} leaves out {count(len(left), 'photo')}, such as {left[0]}: neither trained on nor validated.",
        FastmaskWarning,
        stacklevel=2,
    )
    kept = np.flatnonzero(folds != LEFT_OUT)
    return table.select(kept), folds[kept], [(path, f"{source} leaves it out.") for path in left]


def _describe_copies(table: Table, copies: Sequence[int]) -> list[tuple[str, str]]:
    """The paths of the rows of `find_trained_copies`, with the reason to leave them out; warns of them."""
    if not copies:
        return []
    paths, why = table.frame["path"].iloc[copies].tolist(), "identical to a validated photo, or of the same person"
    warnings.warn(
        f"{count(len(paths), 'photo')} to train on will be left out, such as {paths[0]}: {why}.",
        FastmaskWarning,
        stacklevel=3,
    )
    return [(path, f"It is {why}.") for path in paths]


def _add_versions(plan: Plan, say: Callable[[str], None]) -> Plan:
    """The plan with the other versions of all its photos."""
    versions, own, skipped = find_other_versions(plan.table, plan.config, plan.digests, say)
    return replace(plan, extras=versions, extra_digests=own, skipped=[*plan.skipped, *skipped])


def _validation_of(plan: Plan, chosen: Sequence[int] | None) -> Validation:
    """What the folds of a plan with versions validate."""
    pairs = [(each.origin_rows, own) for each, own in zip(plan.extras, plan.extra_digests, strict=True)]
    return Validation(plan.table, plan.folds, plan.digests, plan.config.group, chosen, pairs)


def _add_sources(plan: Plan, validation: Validation, open_teacher: OpenTeacher | None) -> Plan:
    """The plan with photos of other sources, its teacher and the digests of all photos.

    The teacher must not have seen a photo that a fold validates.
    """
    config, table = plan.config, plan.table
    versions, of_versions = [], []
    for version, digests in zip(plan.extras, plan.extra_digests, strict=True):
        kept = ~dropped_rows(version.table, config.drop)
        versions.append(version.select(kept))
        of_versions.append([digest for digest, keep in zip(digests, kept, strict=True) if keep])
    extras, skipped = read_extras(config, table, validation)
    if config.teacher is not None and open_teacher is None:
        raise UsageError("The setting teacher needs fastmask.api.cross_validate, or open_teacher passed to prepare.")
    teacher = open_teacher(config, validation) if open_teacher and config.teacher is not None else None
    for faces in (extra.table.faces for extra in extras):
        # one loader reads the photos of all sources
        table = table if faces is None or table.faces is None else replace(table, faces=table.faces.join(faces))
    own = [*of_versions, *(extra.digests() for extra in extras)]
    skipped = [*plan.skipped, *skipped]
    plan = replace(plan, table=table, extras=[*versions, *extras], extra_digests=own, skipped=skipped, teacher=teacher)
    return exclude_validated(plan)


def exclude_validated(plan: Plan) -> Plan:
    """The plan with each photo of another source excluded from the folds that validate the same photo or person."""
    pairs = list(zip(plan.extras, plan.extra_digests, strict=True))
    versions = [(extra.table, own) for extra, own in pairs if extra.origins is not None]
    extras = [extra.exclude_validated(plan.table, plan.folds, plan.digests, own, versions) for extra, own in pairs]
    return replace(plan, extras=extras)


def _configure_table(table: Table, config: Config) -> Table:
    """The table with what the configuration adds: a head for a number, photos cut to faces, weights of the heads."""
    if config.order is not None:
        table = table.with_number(config.order, config.order_spread)
    for name, bounds in (config.bands or {}).items():
        table = table.with_bands(name, bounds)
    if config.one_head or config.joint_head:
        table = table.with_joint(config.joint_head or 1.0)
    if config.boxes is not None:
        _check_boxes(config, config.boxes)
        table = table.cut_to_faces(config.boxes, make_framing(config))
    return replace(table, heads=apply_head_weights(table.heads, config))


def _check_boxes(config: Config, boxes: str) -> None:
    if not Path(boxes).is_file():
        raise UsageError(
            f"Setting boxes{recipe_of(config, 'boxes')}: {boxes} is not a file; expected a CSV with the columns "
            f"path, {', '.join(BOX)}, as fastmask faces {quote(config.data)} --out {quote(boxes)} writes it. Whole "
            "photos are trained on with --set boxes=null."
        )


def _describe_start(plan: Plan, network: MultiHeadNet, validation: Validation) -> dict[str, Any]:
    """The starting point that the configuration only names, as digests: weights, loss, photos, teacher, boxes."""
    config, faces = plan.config, plan.table.faces
    start = {
        "tag": network.tag,
        "weights": digest_weights(config.weights),
        "chosen_weights": is_chosen(config.weights, validation),
        "loss": qualified_name(plan.loss_func),
        "optimizer": qualified_name(plan.opt_func),
        "photos": hashlib.sha256("".join(plan.digests).encode()).hexdigest(),
    }
    if plan.extras:
        start["extra"] = digest_extras(plan)
    if plan.teacher is not None:
        start["teacher"] = plan.teacher.digest()
    if faces is not None:
        start["boxes"] = faces.digest()
    return start


def digest_extras(plan: Plan) -> str:
    """SHA-256 of the photos of each other source, and of the folds that they are excluded from."""
    return "".join(extra.digest(each) for extra, each in zip(plan.extras, plan.extra_digests, strict=True))


def _named_classes(config: Config) -> dict[str, list[str]]:
    """The classes that settings name, by setting."""
    by_class = {name: getattr(config, name) for name in ("per_person", "draw_weights")}
    numbers = {name: list(value) for name, value in by_class.items() if isinstance(value, dict)}
    partners = {name: getattr(config, name) for name in ("half_partner", "mix_partner")}
    named = {name: [partner] for name, partner in partners.items() if partner not in (SAME, ANY)}
    return {**named, **numbers, "mix_classes": config.mix_classes or []}


def check_training(plan: Plan, chosen: Sequence[int] | None) -> None:
    """Raise UsageError if a fold has too little to train on, or a custom loss cannot take its labels."""
    config, heads = plan.config, plan.table.heads
    for target in (config.sampler, config.feature_head):
        if target not in (None, JOINT):
            heads.position(target)
    named, trains = _named_classes(config), []
    for extra in plan.extras:
        if not extra.useful.any():
            raise UsageError(f"No photo of those below {extra.table.root} has a label, and a weight, to learn from.")
        if extra.origins is not None and extra.excluded.all():
            raise UsageError(
                f"No fold can train on the versions in {extra.table.root}: each is of a person, or shares a photo with "
                "one, whom every fold validates (--group none, or identical photos); leave --images-also out."
            )
    for fold in plan.check_folds(chosen):
        train = plan.training_set(fold)
        if not len(train):
            raise UsageError(f"Setting drop leaves fold {fold} nothing to train on; drop less.")
        check_present(heads, train.classes(heads), named, fold)
        trains.append(train)
    check_limits(trains, heads, config.per_person)
    if config.draw_weights is not None:
        check_weights_differ(trains)
    if plan.loss_func is not None and any((config.mixup, config.cutmix, config.half_cutmix, plan.extras, plan.teacher)):
        check_soft(plan.loss(), heads)
