"""Features: the outputs of a frozen body for photos, computed once and kept in the folder of the photo cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastmask.data.augment import build_augmentations
from fastmask.data.cache_files import features_file
from fastmask.data.loaders import batch_stats, photo_loader, pick_device
from fastmask.model.precision import autocast, tf32
from fastmask.run.tensors import save_tensors
from fastmask.system.errors import FastmaskError
from fastmask.system.terminal import Progress, Say
from fastmask.training.guards import is_out_of_memory
from fastmask.training.plan import Plan
from fastmask.training.rehearsal import synchronize

_FORMAT = 1
# the number of photos with features computed again to verify kept ones, and the relative tolerance
_SAMPLED, _OFF = 8, 0.05
# bytes of a file in addition to its features
_HEADER = 2**16


@dataclass(frozen=True)
class Features:
    """(N, features) float32 of photos, the seconds taken to compute them, and whether they were read from a file."""

    values: np.ndarray
    seconds: float
    kept: bool = False


def features_of(
    plan: Plan,
    body: nn.Module,
    say: Say,
    progress: Progress = lambda done, total: None,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Features:
    """Read or compute what a body makes of the photos of some rows, by default all, with the validation transform.

    If the plan caches photos on disk, features are kept there, in a file with a name derived from all their inputs.
    """
    device = pick_device(plan.processes.device or plan.config.device)
    body = body.eval().to(device)
    paths = [str(plan.table.photo(row)) for row in (range(len(plan.table)) if rows is None else rows)]
    file = _file_of(plan, body, rows)
    if file is not None and file.exists():
        sampled = sorted({i * (len(paths) - 1) // (_SAMPLED - 1) for i in range(_SAMPLED)})
        sample = compute_features(plan, body, [paths[i] for i in sampled], device)
        kept = read_features(file, len(paths), sample, sampled)
        if kept is not None:
            return kept
    synchronize(device)
    start = time.perf_counter()
    values = compute_features(plan, body, paths, device, progress)
    computed = Features(values, time.perf_counter() - start)
    if file is not None:
        tensors = {"features": torch.from_numpy(values), "seconds": torch.tensor([computed.seconds])}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(tensors, file, body=plan.config.arch)
        except OSError as error:
            say(f"The features of {plan.config.arch} are not kept: {error.strerror or error}")
    return computed


def compute_features(
    plan: Plan,
    body: Callable[[Tensor], Tensor],
    paths: Sequence[str],
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """(photos, features) float32 that `body`, on `device`, makes of batches by the validation transform.

    Raises FastmaskError if they are NaN or inf, or the memory does not suffice.
    """
    config, augments, found = plan.config, build_augmentations(plan.pipelines), []
    loader = photo_loader(
        # as text, the key of a photo in the cache
        paths,
        augments,
        batch_stats(augments),
        faces=plan.table.faces,
        bs=config.batch,
        maps=plan.maps,
        # a few photos are loaded faster than a process starts
        num_workers=0 if len(paths) <= _SAMPLED else config.workers,
        device=device,
    )
    try:
        with torch.inference_mode(), tf32(device, config.tf32), autocast(device, config.precision):
            for done, (x,) in enumerate(loader, 1):
                found.append(body(x.as_subclass(Tensor)).float())
                progress(done, len(loader))
            values = torch.cat(found).cpu().numpy()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise FastmaskError(f"{config.arch} on {config.batch} photos at once needs more memory; lower --bs.") from error
    if not np.isfinite(values).all():
        raise FastmaskError(
            f"{config.arch} gives features that are NaN or inf for these photos; try --precision fp32, or leave it out."
        )
    return np.asarray(values, dtype=np.float32)


def _file_of(plan: Plan, body: nn.Module, rows: Sequence[int] | np.ndarray | None) -> Path | None:
    """The file of a body's features, named by photos, pipeline, weights, precision and versions, if they are kept."""
    config = plan.config
    if config.cache not in ("auto", "disk"):
        return None
    weights = hashlib.sha256()
    for name, tensor in body.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    packages = ("torch", "timm", "albumentations", "opencv-python-headless")
    what = [
        *(_FORMAT, config.arch, plan.size, weights.hexdigest(), plan.environment["start"]["photos"]),
        *(plan.pipelines["valid"], config.precision, [version(name) for name in packages]),
        *(plan.environment["start"].get("boxes"), config.margin, config.region),
        *([] if rows is None else [list(map(int, rows))]),
    ]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
    return features_file(name, config.cache_dir)


def read_features(file: Path, photos: int, sample: np.ndarray, sampled: Sequence[int]) -> Features | None:
    """Read the features of `photos` photos; None if they are incomplete, or if some rows are not close to `sample`.

    Size and shape are checked before anything is read, since the file is untrusted.
    """
    shape = [photos, sample.shape[1]]
    if not file.is_file() or file.is_symlink() or not 0 <= file.stat().st_size - 4 * photos * shape[1] < _HEADER:
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = [opened.get_slice(name) for name in ("features", "seconds")]
            if [(s.get_shape(), s.get_dtype()) for s in slices] != [(shape, "F32"), ([1], "F32")]:
                return None
            values, seconds = (opened.get_tensor(name) for name in ("features", "seconds"))
    except (OSError, SafetensorError):
        return None
    if not np.isfinite(values).all() or not 0 < float(seconds[0]) < np.inf:
        return None
    near = np.linalg.norm(values[list(sampled)] - sample) <= _OFF * np.linalg.norm(sample)
    return Features(values, float(seconds[0]), kept=True) if near else None
