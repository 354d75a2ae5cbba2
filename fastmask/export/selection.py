"""Selection: the runs and networks that an export puts into one file, and the photos to check it on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmask.data.loaders import batch_stats
from fastmask.export.options import ExportOptions
from fastmask.export.predict_onnx import FORMATS
from fastmask.export.steps import Step, steps_of
from fastmask.heads import Heads
from fastmask.inference.blend import Blend, widen
from fastmask.inference.members import open_members
from fastmask.inference.networks import checkpoints_of, load_members
from fastmask.inference.photos import Photos, augments_of
from fastmask.inference.sources import find_photos
from fastmask.run.directory import RunDirectory
from fastmask.run.source import photos_of
from fastmask.system.errors import DataError, UsageError, one_line
from fastmask.system.files import real
from fastmask.system.text import in_bytes

if TYPE_CHECKING:
    from fastmask.export.graph import Networks

# a protobuf file is limited to 2 GiB, including everything that is not weights
_MOST_BYTES = 2**31 - 2**24
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Selection:
    """The `runs` to export, by name (one, or those of an ensemble with their `blend`), and the `steps` before them."""

    run: RunDirectory
    options: ExportOptions
    runs: Mapping[str, RunDirectory]
    blend: Blend | None
    steps: Sequence[Step]

    def photos(self) -> Photos:
        """The photos to check the file on: those of the option images, or the run's own."""
        images: Any = self.options.images
        if images is None:
            try:
                root = photos_of(self.run, self.options.data).root
            except (UsageError, DataError) as error:
                raise UsageError(
                    f"There are no photos to check the file on ({one_line(error)}); name some by --images DIR."
                ) from error
            images = [root / path for path in self.run.folds["path"]]
        # all runs prepare photos in the same way
        return Photos.find(next(iter(self.runs.values())), spread(find_photos(images)[1], self.options.photos))

    def load(self, size: tuple[int, int]) -> dict[str, Networks]:
        """The networks of each run."""
        from fastmask.export.graph import Networks

        members = self.options.members
        return {
            name: Networks(
                one.heads,
                batch_stats(augments_of(one)),
                size,
                load_members(one, members, self.options, CPU, size),
                one.config.views,
            )
            for name, one in self.runs.items()
        }

    def blended(self, each: Sequence[np.ndarray]) -> np.ndarray:
        """The probabilities of each run -> (N, classes of all heads) probabilities of the file."""
        if self.blend is None:
            return each[0]
        heads, runs = self.run.heads, self.runs.values()
        return self.blend.mix([widen(heads, one.heads, own) for one, own in zip(runs, each, strict=True)])

    def described(self, heads: Heads, size: tuple[int, int]) -> dict[str, str]:
        """The metadata that the script reads from a file, as JSON."""
        plain = {
            "heads": [
                {
                    "name": head.name,
                    "classes": list(head.classes),
                    "spread": head.spread,
                    "joint_share": head.joint_share,
                }
                for head in heads
            ],
            "joint": list(heads.classified),
            "steps": list(self.steps),
            "size": list(size),
        }
        # scripts of earlier versions do not know joint heads, and would answer wrongly
        number = FORMATS[0 if heads.joint_head is None else 1]
        return {"fastmask_format": number, **{name: json.dumps(value) for name, value in plain.items()}}

    def metadata(self, size: tuple[int, int], networks: Mapping[str, Networks]) -> dict[str, str]:
        """All metadata of the file."""
        return {
            **self.described(self.run.heads, size),
            "fastmask_version": version("fastmask"),
            "run": real(self.run.path).name,
            "identity": self.run.identity,
            "precision": self.options.precision,
            "stats": json.dumps({name: one.stats for name, one in networks.items()}),
            "members": json.dumps({name: list(one.members) for name, one in networks.items()}),
            "views": json.dumps({name: list(one.views) for name, one in networks.items()}),
        }


def select(run: RunDirectory, options: ExportOptions) -> Selection:
    """Select the networks of a run; raises UsageError if it cannot be exported, before anything is loaded."""
    if run.is_ensemble and options.fold is not None:
        raise UsageError(f"{run.path} is an ensemble and has no folds of its own; export one of its runs with --fold.")
    blend = Blend.of(run) if run.is_ensemble else None
    runs = {real(run.path).name: run} if blend is None else open_members(run, blend)
    needed, steps = 0, []
    for one in runs.values():
        if one.config.boxes:
            raise UsageError(
                f"{one.path} was trained on faces (--boxes), which the file cannot detect; export a run of "
                "whole photos, or predict with fastmask predict --boxes."
            )
        for files in checkpoints_of(one, options.members, options).values():
            sizes = [file.stat().st_size for file in files]
            needed += max(sizes) if options.soup else sum(sizes)
        steps.append(steps_of(augments_of(one)[1]))
    if any(other != steps[0] for other in steps):
        raise UsageError(
            f"The runs of {run.path} crop or scale photos differently, but a file does it in one way; export each of "
            "them."
        )
    if needed > _MOST_BYTES:
        raise UsageError(
            f"The networks of {run.path} take {in_bytes(needed)}, and an ONNX file holds at most 2 GB; export each "
            "fold with --fold, or fewer networks with --soup."
        )
    return Selection(run, options, runs, blend, steps[0])


def spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most `most` items of a list, evenly spaced."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
