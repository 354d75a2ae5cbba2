"""Environment: the machine, versions and weights with which a run was made."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from fastmask.data.table import Table
from fastmask.model.network import MultiHeadNet

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


def describe_environment(
    network: MultiHeadNet, table: Table, device: torch.device, start: Mapping[str, Any], processes: int = 1
) -> dict[str, Any]:
    """Versions, device, the body's full timm tag and initial weights, git commit, folder of the photos.

    `start` is what a fold starts from, see `RunDirectory.start`; `processes` is the number that train a fold together.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
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


def qualified_name(made_by: Any) -> str | None:
    """The dotted name of a custom loss or optimizer, with the arguments of a `functools.partial`."""
    if made_by is None:
        return None
    if isinstance(made_by, partial):
        given = [*map(_spell, made_by.args), *(f"{name}={_spell(value)}" for name, value in made_by.keywords.items())]
        return f"{qualified_name(made_by.func)}({', '.join(given)})"
    return f"{made_by.__module__}.{getattr(made_by, '__qualname__', type(made_by).__name__)}"


def _spell(value: Any) -> str:
    """A value without its address, which differs between processes."""
    return str(qualified_name(value)) if callable(value) else repr(value)


def git_commit() -> str | None:
    """The commit of the current folder, if it is a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # bytes, because git's messages may have any encoding
    return done.stdout.decode("ascii", "replace").strip() or None
