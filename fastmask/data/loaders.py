"""Loaders: a fastai DataBlock with batches x (B, 3, height, width) and y (B, heads) int64, -1 where unknown."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import fastai.vision.data  # noqa: F401 - registers the grid of photos of show_batch
import numpy as np
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders

from fastmask.config import CONTEST
from fastmask.data.augment import REPORT_STATS, Augment, Augmentation, Stats, split_prefix
from fastmask.data.boxes import FaceCut
from fastmask.data.cache import PhotoMap, photo_map
from fastmask.data.digests import digest_photos
from fastmask.data.folds import assign_folds, fixed_folds
from fastmask.data.groups import describe_joined, describe_separated, join_identical
from fastmask.data.halves import Halves
from fastmask.data.photo_dl import ALONE, Passes, PhotoDL, PhotoList, Share
from fastmask.data.pipelines import fit_pipelines, report_pipelines
from fastmask.data.table import Table
from fastmask.data.training_set import TrainingSet, training_set
from fastmask.data.transforms import EncodeHeads, Lookup, NormalizeBatch, ReadPhoto
from fastmask.heads import Heads
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.memory import keep_memory
from fastmask.system.script import unguarded_line
from fastmask.system.terminal import say


def photo_block(faces: FaceCut | None = None) -> TransformBlock:
    """The DataBlock's input: a photo read from its path, fetched and augmented by `PhotoDL`: (3, H, W) float32.

    >>> from fastai.data.block import DataBlock
    >>> block = DataBlock(blocks=[fm.photo_block(), fm.heads_block(table.heads)],
    ...                   getters=[lambda row: table.photo(row), lambda row: table.y[row]])
    >>> dls = block.dataloaders(range(len(table)), bs=4, num_workers=0, device="cpu")
    >>> type(dls.train).__name__
    'PhotoDL'
    """
    return TransformBlock(type_tfms=[ReadPhoto(faces)], dl_type=PhotoDL)


def heads_block(heads: Heads) -> TransformBlock:
    """The DataBlock's multi-category target: one class number per head, in one (heads,) int64 tensor; -1 is unknown.

    >>> from fastai.data.block import DataBlock
    >>> block = DataBlock(blocks=[fm.heads_block(table.heads)], getters=[lambda row: table.y[row]])
    >>> (y,) = block.datasets(range(len(table))).train[0]
    >>> y.shape, y.dtype
    (torch.Size([3]), torch.int64)
    """
    return TransformBlock(type_tfms=[EncodeHeads(heads)])


def dataloaders(
    table: Table,
    fold: int | None = None,
    folds: np.ndarray | None = None,
    *,
    augments: tuple[Augment, Augment] | None = None,
    stats: Stats | None = None,
    bs: int = 32,
    seed: int = 0,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
    maps: Sequence[PhotoMap] | None = None,
    substitute: tuple[int, int] | None = None,
    train: TrainingSet | None = None,
    halves: Halves | None = None,
    share: Share = ALONE,
) -> DataLoaders:
    """fastai DataLoaders that validate fold `fold` of `folds` and train on the others.

    Args:
        folds: (N,) the fold of each photo; by default a fixed split's, or five, see `join_identical`. `fold` None: 0.
        augments: training and validation, each a callable (image, rng); by default those of `default_augments`.
        stats: (mean, std) of three channels; by default those of the augmentation's own Normalize, or the report's.
        num_workers: loading processes, see `default_workers`; `share`: the part of each batch that this process loads.
        substitute: (height, width) of a grey photo for a training photo that cannot be read; by default an error.
        maps: decoded photos; by default `photo_maps`, so the first loaders of a table are slow.
        train: what to train on; by default the photos of the other folds; `halves`: half-face CutMix among these.

    A batch is (B, 3, H, W) float32 and (B, heads) int64 labels: by the training bounds, in validation by the score's.
    Training is shuffled without the last incomplete batch, validation is in order. Warns if folds share a photo.

    >>> [part.shape for part in fm.dataloaders(table, bs=8, num_workers=0, device="cpu").one_batch()]
    [torch.Size([8, 3, 400, 200]), torch.Size([8, 3])]
    """
    # before the photos are read
    loading = _loading_options(device, num_workers)
    digests = None if maps is not None and folds is not None else digest_photos(_paths(table))
    fold, folds = fold or 0, _check_folds(table, folds, digests, seed)
    stats = None if stats is None else (tuple(stats[0]), tuple(stats[1]))
    augments = augments or default_augments(table, stats or REPORT_STATS)
    photos, labels, validates = _loader_rows(table, _validation_rows(table, fold, folds), train)
    block = data_block(table.heads, photos, labels, validates, batch_stats(augments, stats), table.faces)
    # a batch norm cannot train on one photo, and an epoch smaller than a batch would have none
    bs = min(bs, int((~validates).sum()) if train is None else train.photos_per_epoch)
    dls = block.dataloaders(
        list(range(len(photos))),
        bs=bs,
        seed=seed,
        fold=fold,
        augments=augments,
        maps=photo_maps(table, augments, digests=digests, say=say) if maps is None else maps,
        faces=table.faces,
        substitute=substitute,
        share=share,
        dl_kwargs=[{"sampler": None if train is None else train.sampler, "halves": halves}, {"passes": Passes()}],
        **loading,
    )
    # metrics need the classes of the whole table, so that a macro mean is the same in every fold
    dls.truth = table.y
    return dls


def _check_folds(table: Table, folds: np.ndarray | None, digests: Sequence[str] | None, seed: int) -> np.ndarray:
    """`folds`, with a warning if they separate identical photos of two persons, or those of the default."""
    if folds is not None:
        separated = describe_separated(table, folds, digests or ())
        if separated:
            message = f"In these folds {separated}; assign_folds(join_identical(table), ...) keeps both in one."
            warnings.warn(message, FastmaskWarning, stacklevel=3)
        return folds
    joined = join_identical(table, digests)
    shared = describe_joined(joined.persons, joined.groups)
    if shared:
        warnings.warn(f"{shared}.", FastmaskWarning, stacklevel=3)
    split = fixed_folds(table)
    return assign_folds(joined, 5, seed=seed) if split is None else split


def _paths(table: Table) -> list[Path]:
    return [table.photo(row) for row in range(len(table))]


def enlarge_batches(dls: DataLoaders, times: int) -> tuple[DataLoaders, int]:
    """The loaders with `times` as many photos in a training batch, at most all, and how many batches of `dls` it is."""
    if times < 1 or times != int(times):
        raise UsageError(f"A step takes a whole number of batches, 1 or more; found accumulate {times}.")
    if times == 1:
        return dls, 1
    train, *others = dls.loaders
    bs, made = min(times * train.bs, train.n), copy(dls)
    made.loaders = [train.new(bs=bs), *others]
    return made, -(-bs // train.bs)


def _validation_rows(table: Table, fold: int, folds: np.ndarray) -> np.ndarray:
    """(N,) whether a photo is in a fold; raises UsageError unless some are and some are not."""
    valid = np.asarray(folds) == fold
    if not valid.any() or valid.all():
        raise UsageError(f"Fold {fold} does not split the {len(table)} photos; the folds are {sorted(set(folds))}.")
    return valid


def _loader_rows(
    table: Table, valid: np.ndarray, train: TrainingSet | None
) -> tuple[list[str], Sequence[np.ndarray], np.ndarray]:
    """The path and the labels of each row, and whether it is for validation.

    The rows are those of the table, or those of `train` and then those of the fold."""
    if train is None:
        photos = [str(table.root / path) for path in table.frame["path"]]
        return photos, list(np.where(valid[:, None], table.y, table.train_y)), valid
    scored = training_set(table, valid, scored=True)
    both = [*train.photos, *scored.photos]
    # either may be class numbers or soft labels
    return both, [*train.labels, *scored.labels], np.arange(len(both)) >= len(train)


def photo_maps(
    table: Table,
    augments: Sequence[Augment],
    cache: str = "auto",
    folder: str | Path | None = None,
    digests: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[PhotoMap]:
    """A map of a table's photos for the prefix of each augmentation, decoded once: see `cache.photo_map`.

    A photo in it is (height, width, 3) uint8.

    >>> train, valid = map(fm.Augmentation, fm.report_pipelines(resize=(32, 24)))
    >>> maps = fm.photo_maps(table, [train, valid])
    >>> len(maps), maps[0].get(str(table.photo(0))).shape
    (1, (32, 24, 3))
    """
    if cache == "off":
        return []
    paths = _paths(table)
    digests = digest_photos(paths) if digests is None else digests
    prefixes = {str(prefix.plain): prefix for prefix, _ in map(split_prefix, augments)}
    return [photo_map(paths, digests, prefix, cache, folder, say, table.faces) for prefix in prefixes.values()]


def data_block(
    heads: Heads,
    photos: Sequence[str],
    labels: Sequence[np.ndarray],
    valid: np.ndarray,
    stats: Stats,
    faces: FaceCut | None = None,
) -> DataBlock:
    """The DataBlock over row numbers: the path and the labels of each, and (N,) bool whether it validates."""
    return DataBlock(
        blocks=(photo_block(faces), heads_block(heads)),
        getters=[Lookup(photos), Lookup(labels)],
        splitter=lambda rows: (np.flatnonzero(~valid).tolist(), np.flatnonzero(valid).tolist()),
        batch_tfms=[NormalizeBatch(*stats)],
    )


def default_augments(table: Table, stats: Stats = REPORT_STATS) -> tuple[Augmentation, Augmentation]:
    """Training and validation augmentation of a table: the report's for the contest's photos, else `fit_pipelines`."""
    pipelines = report_pipelines(stats=stats) if table.fit == CONTEST else fit_pipelines(table.fit, stats=stats)
    return Augmentation(pipelines[0]), Augmentation(pipelines[1])


def batch_stats(augments: Sequence[Callable[..., Any]], stats: Stats | None = None) -> Stats:
    """`stats`, or those of the pipelines' own Normalize, or the report's; raises UsageError where two differ."""
    own = {a.stats for a in augments if isinstance(a, Augmentation) and a.stats is not None}
    if len(own) > 1 or (own and stats is not None and own != {stats}):
        raise UsageError(f"The pipelines normalize by {own}, the setting is {stats}; give the statistics once.")
    return stats or (own.pop() if own else REPORT_STATS)


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """`device`, or the GPU where there is one; raises UsageError if torch does not know it or cannot use it."""
    try:
        picked = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if torch.empty(1, device=picked).is_meta:
            raise RuntimeError("it stores no data")
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"Device {str(device)!r} cannot be used ({why}); expected cpu or, with a GPU, cuda:0."
        ) from error
    return picked


def default_workers(device: torch.device) -> int:
    """The default number of loading processes: one per core, at most 8.

    0 on a CPU, because training keeps it busy; 0 without semaphores; and 0 where processes are spawned (Windows),
    because each would import all modules in every epoch, which takes longer than loading in this process.
    """
    none = device.type == "cpu" or start_method() == "spawn" or not has_semaphores()
    return 0 if none else min(8, os.cpu_count() or 1)


def pick_workers(workers: int | None, device: torch.device) -> int:
    """The given number of loading processes, or the default; raises UsageError where they cannot be started."""
    if workers and not has_semaphores():
        raise UsageError(
            f"Loading processes (--workers {workers}) need semaphores, which this system does not provide; on Linux "
            "they are files in /dev/shm, which may be missing or read-only. Use --workers 0."
        )
    picked = default_workers(device) if workers is None else workers
    again = unguarded_line() if picked and processes_import() else None
    if again is not None:
        raise UsageError(
            f"{again}: the {picked} loading processes (workers) import this script and would run it again; put its "
            'code below a line if __name__ == "__main__": or set workers=0.'
        )
    return picked


def start_method() -> str:
    """How this system, or the user, starts processes: fork, forkserver or spawn."""
    # multiprocessing's own getter would fix the default
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def processes_import() -> bool:
    """Whether a loading process starts empty and imports the script and its modules; on macOS fastai starts none."""
    return start_method() != "fork" and sys.platform != "darwin"


def workers_see_memory(workers: int) -> bool:
    """Whether loading processes can read this process's memory; on macOS fastai starts none."""
    return not workers or not processes_import()


def has_semaphores() -> bool:
    """Whether the system has semaphores, which loading processes need."""
    try:
        multiprocessing.get_context(start_method()).Lock()
    except (ImportError, OSError):
        return False
    return True


def _loading_options(device: torch.device | str | None, num_workers: int | None) -> dict[str, Any]:
    """A loader's arguments for a device; on a CPU the process keeps freed memory."""
    picked = pick_device(device)
    if picked.type == "cpu":
        keep_memory()
    workers = pick_workers(num_workers, picked)
    if workers and start_method() == "forkserver":
        # the server imports these modules once, and forks the processes
        multiprocessing.set_forkserver_preload(["__main__", __name__])
    return {"device": picked, "num_workers": workers, "pin_memory": picked.type == "cuda"}


def photo_loader(
    paths: Sequence[str | Path | bytes | np.ndarray],
    augments: tuple[Augment, Augment],
    stats: Stats,
    *,
    training: bool = False,
    faces: FaceCut | None = None,
    maps: Sequence[PhotoMap] = (),
    bs: int = 64,
    seed: int = 0,
    passes: Passes | None = None,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
) -> PhotoDL:
    """A loader of photos to predict: batches (x,), in the order given, by the validation augmentation.

    `training` takes the training augmentation instead, as counted by `passes`. `maps` apply to paths given as str.
    """
    return PhotoDL(
        PhotoList(paths, split_idx=0 if training else 1),
        bs=bs,
        augments=augments,
        faces=faces,
        maps=maps,
        seed=seed,
        passes=passes,
        after_batch=[NormalizeBatch(*stats)],
        **_loading_options(device, num_workers),
    )
