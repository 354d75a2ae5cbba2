"""Identity: the settings and starting points that decide the result of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmask.config import Config, Kind

# settings that do not change the result; files are compared by their content, in folds.csv and environment.json
NOT_COMPARED = Config.of_kind(Kind.MACHINE | Kind.FAULT | Kind.PATH)


def differing_settings(one: Config, other: Config) -> list[str]:
    """The names of the settings that differ between two configurations and change the result."""
    a, b = one.to_plain(), other.to_plain()
    return [name for name in a if a[name] != b[name] and name not in NOT_COMPARED]


def differing_start(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of the starting points in which two runs differ."""
    words = {
        "tag": "body",
        "weights": "weights",
        "loss": "loss",
        "optimizer": "optimizer",
        "photos": "content of the photos",
        "extra": "extra photos or labels",
        "teacher": "teacher",
        "boxes": "boxes of faces",
        "soup": "checkpoints of a soup",
    }
    return [what for name, what in words.items() if one.get(name) != other.get(name)]
