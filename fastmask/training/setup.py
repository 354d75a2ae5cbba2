"""Setup: the plan of a cross-validation, resolved and checked before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmask.config import Config, recipe_of
from fastmask.data.augment import build_augmentations
from fastmask.data.boxes import BOX
from fastmask.data.halves import ANY, SAME
from fastmask.data.loaders import pick_device, pick_workers, workers_see_memory
from fastmask.data.named_classes import check_present
from fastmask.data.pipelines import measure_shares
from fastmask.data.seen import Validation
from fastmask.data.table import Table
from fastmask.data.training_set import check_limits, check_weights_differ
from fastmask.decision.rule import F1, PLAIN, check_f1
from fastmask.heads import JOINT
from fastmask.model.network import MultiHeadNet
from fastmask.model.precision import check_compiler, resolve_precision, usable_precision
from fastmask.model.probe import StageFeatures
from fastmask.model.views import make_views
from fastmask.model.weights import check_weights
from fastmask.run.environment import describe_environment, qualified_name
from fastmask.run.lineage import check_no_leak, digest_weights, is_chosen, weights_file
from fastmask.run.oof import parts_by
from fastmask.system.errors import UsageError
from fastmask.system.terminal import quote
from fastmask.training.additional import (
    OpenTeacher,
    add_sources,
    add_versions,
    count_versions,
    digest_extras,
    validation_of,
)
from fastmask.training.budget import shrink_photos
from fastmask.training.build import (
    apply_head_weights,
    build_initial_network,
    build_loss,
    check_size,
    make_framing,
)
from fastmask.training.decoding import decode_tables
from fastmask.training.effective_config import (
    check_monitor,
    check_monitored_labels,
    effective_config,
    resolve_loss,
    resolve_opt,
)
from fastmask.training.features import features_of
from fastmask.training.flip import resolve_flip
from fastmask.training.freeze import frozen_part
from fastmask.training.learner import check_soft
from fastmask.training.optimizer_state import check_optimizer
from fastmask.training.parts import check_parts
from fastmask.training.plan import LossFunc, OptFunc, Plan
from fastmask.training.processes import ALONE, Processes
from fastmask.training.progress.trackers import check_trackers
from fastmask.training.progressive import check_progressive
from fastmask.training.split import split_plan


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
    device = pick_device(processes.device or config.device)
    workers = pick_workers(config.workers, device)
    given = Plan(effective_config(table, config), table, np.empty(0), {}, {}, loss_func, opt_func, processes=processes)
    plan = _resolve(given, device)
    check_weights(plan.config.arch, plan.config.pretrained, weights_file(plan.config.weights, _first(chosen)))
    plan = split_plan(plan)
    check_monitored_labels(plan.config, plan.table, plan.folds)
    if plan.config.compile == "on":
        check_compiler(device)
    plan = add_versions(plan, say)
    validation = validation_of(plan, chosen)
    check_no_leak(plan.config.weights, validation)
    plan = add_sources(plan, validation, open_teacher)
    _check_training(plan, chosen)
    plan = shrink_photos(plan, say) if config.auto_resize else plan
    plan = _decode(plan, workers, say)
    return _try_network(plan, device, chosen, validation, config.precision == "auto", say)


def _first(chosen: Sequence[int] | None) -> int:
    """The first fold to train."""
    return min(chosen or [0])


def _resolve(plan: Plan, device: torch.device) -> Plan:
    """The plan with its configuration, table and pipelines as they are used, if the settings fit each other."""
    config = resolve_loss(plan.config, custom=plan.loss_func is not None)
    config = resolve_opt(config, custom=plan.opt_func is not None)
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    plan = replace(plan, config=config, table=_configure_table(plan.table, config))
    check_monitor(config, plan.table)
    make_views(config.views)
    if plan.loss_func is None:
        build_loss(config, plan.table.heads)
    check_optimizer(plan.opt_func_of_groups(), device)
    return plan.with_config(config)


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


def _decode(plan: Plan, workers: int, say: Callable[[str], None]) -> Plan:
    """The plan with its decoded photos and their size after augmentation."""
    digests = [plan.digests, *plan.extra_digests]
    maps, size = decode_tables(plan.table, plan.extras, plan.pipelines, plan.config, digests, say)
    if any(len(kept) and kept.file is None for kept in maps) and not workers_see_memory(workers):
        say(
            "Loading processes on this system cannot see the photos in memory and decode them again; use --cache disk "
            "or --workers 0"
        )
    return replace(plan, maps=maps, size=size)


def _try_network(
    plan: Plan,
    device: torch.device,
    chosen: Sequence[int] | None,
    validation: Validation,
    auto: bool,
    say: Callable[[str], None],
) -> Plan:
    """The plan with its environment, mirrored or not, and the precision that works, which `auto` may change.

    Raises UsageError for a network that cannot take, or train on, the photos.
    """
    config, size = plan.config, plan.size
    assert size is not None
    network = build_initial_network(config, plan.table.heads, fold=_first(chosen), size=size)
    check_size(network, config.arch, size)
    if config.freeze is not None:
        frozen_part(network, config.freeze)
    if config.progressive < 1:
        check_progressive(network, config.arch, size, config.progressive)
    check_parts(config, plan.table.heads, size, plan.count_trained(chosen), plan.processes.count)
    precision = usable_precision(network, size, device, config.precision, auto)
    plan = replace(plan, config=config.model_copy(update={"precision": precision}))
    plan = resolve_flip(plan, network, say) if config.flip else plan
    start = _describe_start(plan, network, validation)
    environment = describe_environment(network, plan.table, device, start, plan.processes.count)
    shares = measure_shares(plan.table, build_augmentations(plan.pipelines)[1])
    environment["photos"] |= {"seen": shares, **count_versions(config, plan.extras)}
    plan = replace(plan, environment=environment)
    if config.linear_probe and not config.has_probe:
        say("There is no linear probe: the features of random weights show nothing to it")
    return replace(plan, features=_features_by_fold(plan, chosen, say)) if config.has_probe else plan


def _features_by_fold(plan: Plan, chosen: Sequence[int] | None, say: Callable[[str], None]) -> dict[int, np.ndarray]:
    """What the body of each of the chosen folds sees in the photos of `Plan.probed_rows`."""
    config, found = plan.config, {}
    features: np.ndarray | None = None
    for fold in plan.check_folds(chosen):
        # only the weights of a run differ by fold
        if features is None or (config.weights is not None and Path(config.weights).is_dir()):
            network = build_initial_network(config, plan.table.heads, fold, plan.size)
            features = features_of(plan, StageFeatures(network.body), say, rows=plan.probed_rows).values
        found[fold] = features
    return found


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


def _check_training(plan: Plan, chosen: Sequence[int] | None) -> None:
    """Raise UsageError if a fold has too little to train on, or a custom loss cannot take its labels."""
    config, heads = plan.config, plan.table.heads
    for target in (config.sampler, config.feature_head):
        if target not in (None, JOINT):
            heads.position(target)
    _check_extras(plan)
    _check_folds(plan, plan.check_folds(chosen))
    if plan.loss_func is not None and any((config.mixup, config.cutmix, config.half_cutmix, plan.extras, plan.teacher)):
        check_soft(plan.loss(), heads)


def _check_extras(plan: Plan) -> None:
    """Raise UsageError for another source of photos that no fold can learn from."""
    for extra in plan.extras:
        if not extra.useful.any():
            raise UsageError(f"No photo of those below {extra.table.root} has a label, and a weight, to learn from.")
        if extra.origins is not None and extra.excluded.all():
            raise UsageError(
                f"No fold can train on the versions in {extra.table.root}: each is of a person, or shares a photo with "
                "one, whom every fold validates (--group none, or identical photos); leave --images-also out."
            )


def _check_folds(plan: Plan, folds: Sequence[int]) -> None:
    """Raise UsageError for a fold without photos, or without a class that a setting names."""
    config, heads = plan.config, plan.table.heads
    named, trains = _named_classes(config), []
    for fold in folds:
        train = plan.training_set(fold)
        if not len(train):
            raise UsageError(f"Setting drop leaves fold {fold} nothing to train on; drop less.")
        check_present(heads, train.classes(heads), named, fold)
        trains.append(train)
    check_limits(trains, heads, config.per_person)
    _check_decision(plan, folds)
    if config.draw_weights is not None:
        check_weights_differ(trains)


def _check_decision(plan: Plan, folds: Sequence[int]) -> None:
    """Raise UsageError if the rule of the decision cannot be fitted on other persons than those it will decide."""
    config, table, here = plan.config, plan.table, np.isin(plan.folds, folds)
    if config.decision == PLAIN:
        return
    y, parts = table.y[here], parts_by("The validation", plan.folds[here], table.groups[here])
    for part in np.unique(parts) if config.decision == F1 else ():
        check_f1(table.heads, y[parts != part])


def _named_classes(config: Config) -> dict[str, list[str]]:
    """The classes that settings name, by setting."""
    by_class = {name: getattr(config, name) for name in ("per_person", "draw_weights")}
    numbers = {name: list(value) for name, value in by_class.items() if isinstance(value, dict)}
    partners = {name: getattr(config, name) for name in ("half_partner", "mix_partner")}
    named = {name: [partner] for name, partner in partners.items() if partner not in (SAME, ANY)}
    return {**named, **numbers, "mix_classes": config.mix_classes or []}
