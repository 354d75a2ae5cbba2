"""Plan: everything that a cross-validation does, settled and checked before it starts."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch

from fastmask.config import Config, make_config
from fastmask.data.augment import REPORT_STATS, Stats, augmentations, check_fit, completed, report_pipelines, to_plain
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import pick_device
from fastmask.data.table import Table, check_photos
from fastmask.errors import UsageError
from fastmask.heads import Heads
from fastmask.model.losses import CrossEntropyLoss, FocalLoss
from fastmask.model.metrics import default_metrics
from fastmask.model.network import MultiHeadNet, build_network
from fastmask.randomness import Counted, Stream

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


@dataclass(frozen=True)
class Plan:
    """What a cross-validation does, checked: the effective settings, the table, the fold of each photo."""

    config: Config
    table: Table
    folds: np.ndarray
    environment: dict[str, Any]

    def __str__(self) -> str:
        persons, body = len(set(self.table.persons)), self.environment["body"]
        return (
            f"{len(self.table)} photos of {persons} persons; {body['tag']}, {body['parameters'] / 1e6:.1f} M parameters"
            f"; {self.config.folds} folds of {self.config.epochs} epochs on {self.environment['device']}"
        )

    @property
    def folds_frame(self) -> pd.DataFrame:
        """What folds.csv holds: one row a photo with its path, person, a column a head, fold."""
        heads = self.table.heads
        numbers = [f"{h.name}_value" for h in heads if h.bounds]
        return self.table.frame[["path", "person", *heads.names, *numbers]].assign(fold=self.folds)


def prepare(table: Table, config: Config) -> Plan:
    """Check everything that can be checked before training, the cheap things first; nothing is written."""
    config = effective_config(table, config)
    pick_device(config.device)
    table = replace(table, heads=weighted_heads(table.heads, config))
    check_monitor(config, table.heads)
    build_loss(config, table.heads)
    folds = assign_folds(table, config.folds, config.stratify, config.group, config.seed)
    about = environment(build(config, table.heads, fold=0), table)
    photos = [table.photo(i) for i in range(len(table))]
    train, valid = augmentations(config)
    check_fit({"the training pipeline": train, "the validation pipeline": valid}, check_photos(photos), photos)
    return Plan(config, table, folds, about)


def effective_config(table: Table, config: Config) -> Config:
    """`config` with every default that depends on table or arch filled in, so that the run keeps what it did."""
    for name, value in table.reading.items():
        if name != "data" and name in config.model_fields_set and getattr(config, name) != value:
            raise UsageError(
                f"Setting {name} is {getattr(config, name)}, but the table was read with {value}: "
                "give it where the table is read."
            )
    return make_config(
        table.reading,
        config.model_dump(exclude_unset=True, exclude={"pretrained"}),
        effective_pipelines(config),
        {"stratify": config.stratify or table.stratify, "pretrained": config.pretrained and config.weights is None},
    )


def effective_pipelines(config: Config) -> dict[str, Any]:
    """The two pipelines that a configuration asks for, with their normalising, as plain values."""
    stats = resolve_stats(config)
    own = to_plain_pair(report_pipelines(config.crop, stats or REPORT_STATS, config.resize))
    if config.train_pipeline is None or config.valid_pipeline is None:
        return own
    given = {"train_pipeline": config.train_pipeline, "valid_pipeline": config.valid_pipeline}
    if given != own and (config.crop, config.resize) != (Config().crop, None):
        raise UsageError("--crop and --resize belong into train_pipeline and valid_pipeline where those are given.")
    return {name: to_plain(completed(plain, stats, name)) for name, plain in given.items()}


def to_plain_pair(pipelines: tuple[Any, Any]) -> dict[str, Any]:
    """The training and the validation pipeline as the settings that hold them."""
    return {"train_pipeline": to_plain(pipelines[0]), "valid_pipeline": to_plain(pipelines[1])}


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


def build(config: Config, heads: Heads, fold: int) -> MultiHeadNet:
    """The network of a fold at its start; what is drawn for it depends on (seed, fold) alone."""
    torch.manual_seed(Counted(Stream.INIT, config.seed, fold).seed_at(0))
    return build_network(
        config.arch,
        heads,
        pretrained=config.pretrained,
        weights=config.weights,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path,
    )


def build_loss(config: Config, heads: Heads) -> FocalLoss:
    """The loss of a configuration."""
    alpha = [(config.alpha or {}).get(name) for name in heads.names]
    if config.loss == "ce":
        return CrossEntropyLoss(heads, alpha)
    return FocalLoss(heads, config.focal_gamma, alpha)


def check_monitor(config: Config, heads: Heads) -> None:
    """Raise UsageError if no metric is called as the one to watch."""
    names = ["valid_loss", *(m.name for m in default_metrics(heads))]
    if config.monitor not in names:
        raise UsageError(f"There is no metric {config.monitor!r} to monitor; expected one of {', '.join(names)}.")


def environment(network: MultiHeadNet, table: Table) -> dict[str, Any]:
    """Versions, device, the body's full timm tag, git commit, where the photos lie."""
    cuda = torch.cuda.is_available()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "body": {
            "tag": network.tag,
            "stats": network.stats,
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "photos": {"root": str(table.root.resolve()), "count": len(table), "persons": len(set(table.persons))},
        "command": sys.argv,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the folder that the run was started in, if it is a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
