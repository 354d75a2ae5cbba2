"""Identity: the settings and starting points that decide what a run comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmask.config import Config

# settings of where to run, read and report, and of what to do on failures, which do not change the result: whether the
# data is the same is checked by folds.csv and the start in environment.json
MACHINE_SETTINGS = (
    "workers",
    "device",
    "cache",
    "cache_dir",
    "hours",
    "save_every",
    "tensorboard",
    "wandb",
    "mlflow",
    "launcher",
    "address",
    "per_fold",
    "fetch",
    "on_nan",
    "on_bad_photo",
    "data",
    "images",
    "fixes",
    "boxes",
    "extra",
    "extra_images",
    "pseudo",
    "teacher",
    "folds_file",
    "weights",
)
# those of them that a resumed run does not take over
GIVEN_ANEW = ("hours", "launcher", "address", "per_fold", "fetch")


def differing_settings(one: Config, other: Config) -> list[str]:
    """The names of the settings in which two configurations ask for different results."""
    a, b = one.to_plain(), other.to_plain()
    return [name for name in a if a[name] != b[name] and name not in MACHINE_SETTINGS]


def differing_start(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of the starting points in which two runs differ."""
    words = {
        "tag": "body",
        "weights": "weights",
        "loss": "loss",
        "photos": "content of the photos",
        "extra": "extra photos or labels",
        "teacher": "teacher",
        "boxes": "boxes of faces",
    }
    return [what for name, what in words.items() if one.get(name) != other.get(name)]
