"""Effective configuration: the settings that a run uses on a table, and checks that they fit it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmask.config import CONTEST, LOSS_OPTIONS, OWN, REPORT_CROP, Config, Kind, make_config, recipe_of
from fastmask.data.folds import assign_folds, fixed_folds
from fastmask.data.folds_file import read_folds
from fastmask.data.pipelines import pick_fit
from fastmask.data.table import Table
from fastmask.heads import JOINT, UNKNOWN
from fastmask.model.archs import arch_size, check_arch
from fastmask.model.metrics import default_metrics
from fastmask.model.optim import check_arguments, has_weight_decay
from fastmask.scoring import LOSS, target_of
from fastmask.system.errors import UsageError
from fastmask.training.photo_size import size_of_photos

# settings by which a table is read; data may have moved
READING = [name for name in Config.of_kind(Kind.TABLE) if name != "data"]


def effective_config(table: Table, config: Config) -> Config:
    """`config` with timm's name of the arch and the settings that the table was read with, so that the run has them."""
    default = Config().to_plain()
    given, read = config.to_plain(), make_config(table.reading).to_plain()
    for name in READING:
        if given[name] not in (default[name], read[name]) and not _same_names(given[name], read[name]):
            raise UsageError(
                f"Setting {name} is {given[name]}, but the table was read with {read[name]}: "
                "give it where the table is read."
            )
    settings = config.model_dump(exclude_unset=True)
    if "arch" in settings:
        settings["arch"] = check_arch(config.arch)
    made = make_config(settings, {**table.reading, "data": settings.get("data", table.reading.get("data", "data"))})
    return _resolve_fit(table, made)


def _resolve_fit(table: Table, config: Config) -> Config:
    """`config` with how photos are scaled and cut: the report's crop, or the size that suits the body."""
    fit = pick_fit(config, table)
    if fit == CONTEST:
        return config.model_copy(update={"fit": fit, "crop": config.crop or REPORT_CROP})
    if config.auto_resize:
        update = {"fit": fit, "resize": size_of_photos(table, config.arch), "auto_resize": False}
        return config.model_copy(update=update)
    size = config.resize or (arch_size(config.arch) if fit else None)
    return config.model_copy(update={"fit": fit, "resize": size})


def _same_names(given: Any, read: Any) -> bool:
    """Whether names of heads are those that were read."""
    return isinstance(given, list) and isinstance(read, dict) and given == list(read)


def resolve_loss(config: Config, custom: bool) -> Config:
    """`config` with the loss "own" for a custom one; raises UsageError for settings that conflict with it."""
    if not custom and config.loss == "own":
        raise UsageError("Setting loss is own, which needs the loss_func of cross_validate; expected focal or ce.")
    if custom:
        for name in Config.of_kind(Kind.FOCAL):
            if config.is_set(name):
                raise UsageError(f"Setting {name} belongs to the focal loss, and has no effect with a custom loss.")
        for head, options in (config.per_head or {}).items():
            for name in LOSS_OPTIONS:
                if getattr(options, name) is not None:
                    raise UsageError(f"Setting per_head {head}.{name} has no effect with a custom loss.")
    return config.model_copy(update={"loss": "own"}) if custom else config


def resolve_opt(config: Config, custom: bool) -> Config:
    """`config` with the optimizer "own" for a custom one; raises UsageError for settings that conflict with it."""
    if custom:
        for name in ("opt", "opt_args"):
            if config.is_set(name) and getattr(config, name) != OWN:
                raise UsageError(f"Setting {name} has no effect with a custom optimizer: leave it or opt_func out.")
        return config.model_copy(update={"opt": OWN})
    if config.opt == OWN:
        raise UsageError("Setting opt is own, which needs the opt_func of cross_validate; such as torch.optim.AdamW.")
    check_arguments(config.opt, config.opt_args or {})
    if config.is_set("wd") and not has_weight_decay(config.opt):
        raise UsageError(f"Setting wd has no effect with opt {config.opt}, which has no weight decay: leave it out.")
    return config


def resolve_folds(table: Table, config: Config) -> tuple[Config, np.ndarray]:
    """The fold of every photo, and `config` with the number of folds, which a file or the data's split may decide."""
    if config.folds_file is not None:
        folds = read_folds(table, config.folds_file, config.group)
        count = int(folds.max()) + 1
        if "folds" in config.model_fields_set and config.folds != count:
            raise UsageError(f"Setting folds is {config.folds}, but {config.folds_file} has {count}; leave it out.")
        return config.model_copy(update={"folds": count}), folds
    split = split_of_data(table, config)
    if split is None:
        if config.stratify not in (JOINT, *table.heads.names):
            raise UsageError(
                f"Setting stratify{recipe_of(config, 'stratify')} names the head {config.stratify}, and the heads are "
                f"{', '.join(table.heads.names)}; set it to one of these, or to joint for all of them."
            )
        return config, assign_folds(table, config.folds, config.stratify, config.group, config.seed)
    return config.model_copy(update={"folds": int(split.max()) + 1}), split


def split_of_data(table: Table, config: Config) -> np.ndarray | None:
    """The (N,) folds of the data's own split; None if there is none, or another number of folds replaces it."""
    split = fixed_folds(table)
    is_replaced = split is not None and "folds" in config.model_fields_set and config.folds != split.max() + 1
    return None if is_replaced else split


def describe_split(table: Table, config: Config) -> str:
    """What an effective configuration does with the fixed split that the data itself has; "" without one."""
    if fixed_folds(table) is None or config.folds_file is not None:
        return ""
    if split_of_data(table, config) is not None:
        return "train is trained on and val is validated (--folds 5 cross-validates both)"
    return "train and val are cross-validated together (without --folds, val is validated)"


def check_monitor(config: Config, table: Table) -> None:
    """Raise UsageError if the metric to monitor does not exist."""
    names = [LOSS, *(m.name for m in default_metrics(table.heads, table.y))]
    if config.monitor not in names:
        raise UsageError(f"There is no metric {config.monitor!r} to monitor; expected one of {', '.join(names)}.")


def check_monitored_labels(config: Config, table: Table, folds: np.ndarray) -> None:
    """Raise UsageError if a fold has no photo with a label for the metric to monitor."""
    for metric in default_metrics(table.heads, table.y):
        if metric.name == config.monitor:
            known = target_of(table.heads, table.y, metric.target) != UNKNOWN
            without = sorted(set(folds[folds >= 0].tolist()) - set(folds[known].tolist()))
            if without:
                what = "all heads" if metric.target == JOINT else metric.target
                raise UsageError(
                    f"Setting monitor is {config.monitor}, but no photo of fold {without[0]} has a label of {what}; "
                    f"monitor another metric, such as {LOSS}, or change the folds."
                )
