"""Loaders: a fastai DataBlock whose batches are x (B, 3, height, width) and y (B, heads) int64, -1 where unknown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import fastai.vision.data  # noqa: F401 - teaches show_batch to lay photos out in a grid
import numpy as np
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.torch_core import TensorBase, TensorImage, show_title
from fasttransform import DisplayedTransform, Transform
from PIL import Image

from fastmask.data.augment import REPORT_STATS, Augment, Augmentation, Stats, report_pipelines
from fastmask.data.folds import assign_folds
from fastmask.data.photo import read_photo
from fastmask.data.table import Table
from fastmask.errors import DataError, FastmaskError, UsageError
from fastmask.heads import Heads
from fastmask.randomness import Counted, Stream


class TensorHeads(TensorBase):
    """A class number a head: (heads,) or (B, heads) int64, -1 where unknown."""


class HeadNames(list[str]):
    """A class name a head, shown as the title of its photo."""

    def show(self, ctx: Any = None, **kwargs: Any) -> Any:
        """Set the title of a matplotlib axis, or print."""
        return show_title(str(self), ctx=ctx, **kwargs)

    def __str__(self) -> str:
        return " ".join(name or "?" for name in self)


class EncodeHeads(DisplayedTransform):
    """Class numbers or names, one a head -> TensorHeads, and back to names."""

    def __init__(self, heads: Heads) -> None:
        self.heads = heads

    def encodes(self, y: np.ndarray | list) -> TensorHeads:  # type: ignore[type-arg] # plum dispatches on it
        codes: Any = self.heads.encode(list(y)) if isinstance(y[0], str) else y
        return TensorHeads(torch.as_tensor(codes, dtype=torch.int64))

    def decodes(self, y: TensorHeads) -> HeadNames:
        return HeadNames(self.heads.decode(y.tolist()))

    @property
    def vocab(self) -> Any:
        """Refused: fastai would take it for that of one target, and count class 0 of two heads as the same class."""
        raise UsageError(
            f"A photo here has a class of each of {', '.join(self.heads.names)}, so there is no one vocabulary: "
            "take fm.interpretation(learn, head) for what fastai would interpret, or heads_of(dls) for the classes."
        )


class ReadPhoto(Transform):
    """A path or an opened image -> (height, width, 3) uint8 RGB; an array is taken as one already."""

    input_types = (str, Path, Image.Image)

    def encodes(self, photo: str | Path | Image.Image) -> np.ndarray:
        if isinstance(photo, Image.Image):
            return np.asarray(photo.convert("RGB"))
        return read_photo(photo)


class Lookup(Transform):
    """A row number -> what `values` has there: its path, its labels."""

    input_types = int

    def __init__(self, values: Sequence[Any] | np.ndarray) -> None:
        super().__init__()
        self.values = values

    def encodes(self, row: int) -> object:
        return self.values[row]


class NormalizeBatch(DisplayedTransform):
    """(B, 3, H, W) uint8 -> float32 (x / 255 - mean) / std, as albumentations' Normalize and ToTensorV2 a photo."""

    order = 99

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def encodes(self, x: TensorImage) -> TensorImage:
        if x.dtype != torch.uint8:
            return x
        mean, std = self._per_channel(x)
        return x.float().sub_(mean * 255).div_(std * 255)

    def decodes(self, x: TensorImage) -> TensorImage:
        mean, std = self._per_channel(x)
        return (x * std + mean).clamp(0, 1)

    def _per_channel(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return mean, std


def photo_block() -> TransformBlock:
    """The DataBlock's input: a photo read from its path, fetched and augmented by `PhotoDL`."""
    return TransformBlock(type_tfms=[ReadPhoto()], dl_type=PhotoDL)


def heads_block(heads: Heads) -> TransformBlock:
    """The DataBlock's multi-category target: one class a head, in one tensor."""
    return TransformBlock(type_tfms=[EncodeHeads(heads)])


@dataclass
class Passes:
    """The number of the next pass, shared by a loader and those made from it."""

    next: int = 0


class PhotoDL(TfmdDL):
    """A fastai loader whose order and augmentation are counted, not carried.

    The order of a pass is a function of (seed, fold, pass); what happens to a photo of (seed, fold, pass, position,
    row). So the number of workers changes no batch. A pass is one walk through this loader or one made from it by
    `new`, counted on the main process; looking at one batch (`one_batch`, `show_batch`) counts as none. `augments` are
    the training and the validation augmentation; fastai's `split_idx` of the data set says which one applies.
    """

    def __init__(
        self,
        dataset: Any = None,
        *,
        augments: tuple[Augment, Augment] | None = None,
        seed: int = 0,
        fold: int = 0,
        passes: Passes | None = None,
        **kwargs: Any,
    ) -> None:
        self.augments, self.seed, self.fold = augments, seed, fold
        self.passes = passes or Passes()
        self.pass_ = 0
        self._rng = Counted(Stream.AUGMENT, seed, fold)
        kwargs.pop("shuffled", None)  # learn.tta misspells shuffle, and means what is so already
        super().__init__(dataset, **kwargs)

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> PhotoDL:
        """A loader like this one but for `kwargs`; fastai's own `new` would drop what this class adds."""
        kept = {"augments": self.augments, "seed": self.seed, "fold": self.fold, "passes": self.passes}
        made: PhotoDL = super().new(dataset, cls, **{**kept, **kwargs})
        if _normalizes(self) and not _normalizes(made):
            raise UsageError(
                "Without NormalizeBatch the network would see raw bytes: keep it in after_batch; what learn.tta draws "
                "is the training augmentation, so give item_tfms and batch_tfms to dataloaders(augments=...) instead."
            )
        return made

    def before_iter(self) -> None:
        """Count the pass, on the main process, before the order is drawn and workers start."""
        if self.n == 0:
            raise UsageError("There is no photo in this loader; give it one or more.")
        super().before_iter()
        self.pass_, self.passes.next = self.passes.next, self.passes.next + 1

    def one_batch(self) -> Any:
        """The first batch of the next pass, without counting one."""
        kept = self.passes.next
        batch = super().one_batch()
        self.passes.next = kept
        return batch

    def show_results(self, b: Any, out: Any, **kwargs: Any) -> Any:
        """Show photos with their true and their predicted classes, as fastai's loader does."""
        if len(b) <= self.n_inp:
            raise UsageError(
                "Photos without labels have no results to show; take learn.predict(photo) for their classes."
            )
        return super().show_results(b, out, **kwargs)

    def shuffle_fn(self, idxs: list[int]) -> list[int]:
        """The order of this pass: a permutation drawn from (seed, fold, pass)."""
        order = Counted(Stream.ORDER, self.seed, self.fold).at(self.pass_).permutation(len(idxs))
        return [idxs[i] for i in order]

    def get_idxs(self) -> list[int]:
        """The rows in the order of this pass; kept as `order`, so that results can be put back in place."""
        self.order = list(super().get_idxs())
        return self.order

    def sample(self) -> Iterator[tuple[int, int]]:
        """This worker's share of the pass as (position in the pass, row)."""
        for i, row in enumerate(super().sample()):
            block, within = divmod(i, self.bs)
            yield (block * self.num_workers + self.offs) * self.bs + within, row

    def create_item(self, s: tuple[int, int] | int | None) -> tuple[Any, ...]:
        """One photo, augmented as (pass, position, row) says, and its target."""
        position, row = s if isinstance(s, tuple) else (0, s or 0)
        image, *target = self.dataset[row]
        if self.augments is not None:
            what = getattr(self.dataset, "paths", range(row + 1))[row]
            if not _is_photo(image):
                raise DataError(f"Photo {what} is {image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB.")
            augment = self.augments[0 if getattr(self.dataset, "split_idx", 1) == 0 else 1]
            size = f"{image.shape[0]} high and {image.shape[1]} wide"
            try:
                image = augment(image, self._rng.at(self.pass_, position, row))
                if not _is_photo(image):
                    raise ValueError(f"it gives {image.dtype} {image.shape}, not uint8 (height, width, 3)")
            except Exception as error:
                raise DataError(f"Photo {what} is {size}, and the augmentation fails on it: {error}.") from error
        return (image, *target)

    def __iter__(self) -> Iterator[Any]:
        """One pass; a mistake found in a worker is told as if it had been found here."""
        try:
            yield from super().__iter__()
        except FastmaskError as error:
            # torch puts the worker's traceback into the message, and our sentence last
            told = str(error).strip().splitlines()[-1]
            raise type(error)(told.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None

    def do_batch(self, items: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Items -> one uint8 tensor in channels-last memory (a view of the stacked photos, no copy) and the targets."""
        images, *targets = zip(*items, strict=True)
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return (TensorImage(x), *(torch.stack(t) for t in targets))

    def wif(self) -> None:
        """One thread a worker: opencv's own would fight over the cores."""
        cv2.setNumThreads(0)


def _is_photo(image: np.ndarray) -> bool:
    return bool(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3)


def _normalizes(dl: TfmdDL) -> bool:
    return any(isinstance(transform, NormalizeBatch) for transform in dl.after_batch.fs)


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
) -> DataLoaders:
    """fastai DataLoaders that validate fold `fold` of `folds` and train on the others.

    Args:
        folds: (N,) the fold of each photo; five person-whole folds by default. `fold` None takes 0.
        augments: training and validation augmentation, each a callable (image, rng); the report's by default.
        stats: (mean, std) of three channels; by default those of the augmentation's own Normalize, or the report's.
        num_workers: processes that load; by default none on a CPU, which training keeps busy, else up to 8.

    Training labels follow the training bounds, validation labels the score's. Training is shuffled and drops the last
    incomplete batch, validation is in the table's order.
    """
    fold = fold or 0
    if folds is None:
        folds = assign_folds(table, 5, seed=seed)
    valid = np.asarray(folds) == fold
    if not valid.any() or valid.all():
        raise UsageError(f"Fold {fold} does not split the {len(table)} photos; the folds are {sorted(set(folds))}.")
    stats = None if stats is None else (tuple(stats[0]), tuple(stats[1]))
    augments = augments or default_augments(stats or REPORT_STATS)
    block = data_block(table, np.where(valid[:, None], table.y, table.train_y), valid, batch_stats(augments, stats))
    device = pick_device(device)
    # a batch norm cannot train on one photo, and a table smaller than a batch would train on none
    bs = min(bs, int((~valid).sum()))
    dls = block.dataloaders(
        list(range(len(table))),
        bs=bs,
        seed=seed,
        fold=fold,
        augments=augments,
        dl_kwargs=[{}, {"passes": Passes()}],
        num_workers=default_workers(device) if num_workers is None else num_workers,
        device=device,
        pin_memory=device.type == "cuda",
    )
    # metrics need the classes of the whole table, so that a macro mean is the same in every fold
    dls.truth = table.y
    return dls


def data_block(table: Table, y: np.ndarray, valid: np.ndarray, stats: Stats) -> DataBlock:
    """The DataBlock over row numbers of `table`: `y` (N, heads) are the labels to use, `valid` (N,) who validates."""
    photos = [str(table.root / path) for path in table.frame["path"]]
    return DataBlock(
        blocks=(photo_block(), heads_block(table.heads)),
        getters=[Lookup(photos), Lookup(y)],
        splitter=lambda rows: (np.flatnonzero(~valid).tolist(), np.flatnonzero(valid).tolist()),
        batch_tfms=[NormalizeBatch(*stats)],
    )


def default_augments(stats: Stats = REPORT_STATS) -> tuple[Augmentation, Augmentation]:
    """The report's training and validation augmentation."""
    train, valid = report_pipelines(stats=stats)
    return Augmentation(train), Augmentation(valid)


def batch_stats(augments: Sequence[Callable[..., Any]], stats: Stats | None = None) -> Stats:
    """`stats`, or those of the pipelines' own Normalize, or the report's; raises UsageError where two differ."""
    own = {a.stats for a in augments if isinstance(a, Augmentation) and a.stats is not None}
    if len(own) > 1 or (own and stats is not None and own != {stats}):
        raise UsageError(f"The pipelines normalise by {own}, the setting is {stats}: give the statistics once.")
    return stats or (own.pop() if own else REPORT_STATS)


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """`device`, or the GPU where there is one; raises UsageError if torch does not know it or cannot use it."""
    try:
        picked = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if torch.empty(1, device=picked).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"Device {str(device)!r} cannot be used ({why}); expected cpu or, with a GPU, cuda:0."
        ) from error
    return picked


def default_workers(device: torch.device) -> int:
    """Loading processes: none beside a CPU that trains, else one a core up to 8."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


class PhotoList:
    """Photos without labels, in the order given, as the data set of a `PhotoDL`; `split_idx` 1 is validation."""

    n_inp = 1

    def __init__(self, paths: Sequence[Path], split_idx: int = 1) -> None:
        self.paths, self.split_idx = list(paths), split_idx

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[np.ndarray]:
        return (read_photo(self.paths[row]),)


def photo_loader(
    paths: Sequence[Path],
    augments: tuple[Augment, Augment],
    stats: Stats,
    *,
    training: bool = False,
    bs: int = 64,
    seed: int = 0,
    passes: Passes | None = None,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
) -> PhotoDL:
    """A loader of photos to predict: batches (x,), in the order given, by the validation augmentation.

    `training` takes the training augmentation instead, as counted by `passes`.
    """
    device = pick_device(device)
    return PhotoDL(
        PhotoList(paths, split_idx=0 if training else 1),
        bs=bs,
        augments=augments,
        seed=seed,
        passes=passes,
        after_batch=[NormalizeBatch(*stats)],
        num_workers=default_workers(device) if num_workers is None else num_workers,
        device=device,
        pin_memory=device.type == "cuda",
    )
