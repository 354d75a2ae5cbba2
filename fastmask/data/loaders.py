"""Loaders: a fastai DataBlock whose batches are x (B, 3, height, width) and y (B, heads) int64, -1 where unknown."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import fastai.vision.data  # noqa: F401 - teaches show_batch to lay photos out in a grid
import numpy as np
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL, TfmdLists
from fastai.data.transforms import ToTensor

from fastmask.data.augment import REPORT_STATS, Augment, Augmentation, Stats, is_photo, parts, report_pipelines
from fastmask.data.boxes import FaceCut
from fastmask.data.cache import PhotoMap, digest_photos, photo_map
from fastmask.data.folds import assign_folds
from fastmask.data.halves import Half, Halves
from fastmask.data.photo import read_photo
from fastmask.data.table import Table
from fastmask.data.training_set import TrainingSet, training_set
from fastmask.data.transforms import (
    UNREADABLE,
    EncodeHeads,
    Lookup,
    NormalizeBatch,
    ReadPhoto,
    TensorHeads,
    TensorPhotos,
    read,
    targets_of,
)
from fastmask.errors import DataError, FastmaskError, UnreadableError, UsageError
from fastmask.heads import Heads
from fastmask.memory import keep_memory
from fastmask.randomness import Counted, Stream
from fastmask.terminal import say


def photo_block(faces: FaceCut | None = None) -> TransformBlock:
    """The DataBlock's input: a photo read from its path, fetched and augmented by `PhotoDL`."""
    return TransformBlock(type_tfms=[ReadPhoto(faces)], dl_type=PhotoDL)


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
    the training and the validation augmentation; fastai's `split_idx` of the data set says which one applies. `maps`
    keep what their prefixes make of photos, so that those are decoded once and not in every pass. With `faces` photos
    are cut to their faces first, those of the maps as well.

    With `chances` (N,) a shuffled pass draws its photos by them, each as often as it comes. With `halves` a side of a
    photo may be a partner's, and the targets are soft labels.

    With `substitute`, a (height, width), a training photo that cannot be read when its turn comes is a grey one of that
    size, with labels that are UNREADABLE throughout.

    Batches are made whole, where fastai would send each photo through its pipelines; a data set with item transforms
    or getters of one's own goes photo by photo, and gives the same batches.
    """

    def __init__(
        self,
        dataset: Any = None,
        *,
        augments: tuple[Augment, Augment] | None = None,
        maps: Sequence[PhotoMap] = (),
        seed: int = 0,
        fold: int = 0,
        passes: Passes | None = None,
        substitute: tuple[int, int] | None = None,
        chances: np.ndarray | None = None,
        halves: Halves | None = None,
        faces: FaceCut | None = None,
        **kwargs: Any,
    ) -> None:
        self.augments, self.maps, self.seed, self.fold, self.faces = augments, maps, seed, fold, faces
        self.substitute, self.chances, self.halves = substitute, chances, halves
        self.passes = passes or Passes()
        self._columns: tuple[list[Any], list[torch.Tensor]] | None = None
        self.pass_ = self._left_out = self._first = 0
        self._rng = Counted(Stream.AUGMENT, seed, fold)
        self._partners = Counted(Stream.PARTNER, seed, fold)
        kwargs.pop("shuffled", None)  # learn.tta misspells shuffle, and means what is so already
        super().__init__(dataset, **kwargs)

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> PhotoDL:
        """A loader like this one but for `kwargs`; fastai's own `new` would drop what this class adds."""
        # what is of the rows of one data set, and for training, stays with that
        trains = (dataset is None or dataset is self.dataset) and kwargs.get("shuffle", self.shuffle)
        rows = ("chances", "halves") if trains else ()
        names = ("augments", "maps", "seed", "fold", "passes", "substitute", "faces", *rows)
        kept = {name: getattr(self, name) for name in names}
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
        own = [t for t in (*self.after_item.fs, *self.before_batch.fs) if not isinstance(t, ToTensor)]
        self._columns = None if own else columns_of(self.dataset)
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
        """The order of this pass, drawn from (seed, fold, pass): a permutation, or as many draws by `chances`."""
        rng, count = Counted(Stream.ORDER, self.seed, self.fold).at(self.pass_), len(idxs)
        order = rng.permutation(count) if self.chances is None else rng.choice(count, count, p=self.chances)
        return [idxs[i] for i in order]

    def photos_of(self, batch: int) -> list[str]:
        """The photos of a batch of the last pass, counted from 0: their paths, or the numbers of their rows."""
        rows = self.order[batch * self.bs : (batch + 1) * self.bs]
        columns = columns_of(self.dataset)
        return [str(columns[0][row]) if columns else f"row {row}" for row in rows]

    def beginning(self, batch: int) -> PhotoDL:
        """This loader, whose next pass leaves out the batches before `batch`, unread; the others are as ever."""
        self._left_out = batch
        return self

    def get_idxs(self) -> list[int]:
        """The rows in the order of this pass; kept whole as `order`, so that results can be put back in place."""
        self.order = list(super().get_idxs())
        self._first, self._left_out = self._left_out * self.bs, 0
        return self.order[self._first :]

    def sample(self) -> Iterator[tuple[int, int]]:
        """This worker's share of the pass as (position in the pass, row)."""
        for i, row in enumerate(super().sample()):
            block, within = divmod(i, self.bs)
            yield self._first + (block * self.num_workers + self.offs) * self.bs + within, row

    def create_batches(self, samps: Iterable[tuple[int, int]]) -> Iterator[Any]:
        """Batches of (position in the pass, row)."""
        if self._columns is None:
            yield from super().create_batches(samps)
            return
        photos, targets = self._columns
        kept = self._kept()
        for chosen in self.chunkify(samps):
            batch: np.ndarray | None = None
            unreadable = []
            rows = [row for _, row in chosen]
            partners, shares = list(rows), [0.0] * len(rows)
            for i, (position, row) in enumerate(chosen):
                place = None if batch is None else batch[i]
                image = self._readable(photos[row], position, row, kept, place)
                if image is None:
                    image = np.full((*(self.substitute or ()), 3), 128, np.uint8)
                    unreadable.append(i)
                if image is not place:
                    batch = stack(image, i, len(chosen), batch)
                half = self._half(position, row)
                other = None if half is None else self._readable(photos[half.partner], position, half.partner, kept)
                if half is not None and other is not None and batch is not None:
                    partners[i], shares[i] = half.partner, half.paste(batch[i], other)
            labels = [target[rows] for target in targets]
            if self.halves is not None:
                others = [target[partners] for target in targets]
                labels = [self.halves.labels(*pair, shares) for pair in zip(labels, others, strict=True)]
            for target in labels:
                target[unreadable] = UNREADABLE
            yield (channels_first(batch), *map(TensorHeads, labels))

    def create_item(self, s: tuple[int, int] | int | None) -> tuple[Any, ...]:
        """One photo, augmented as (pass, position, row) says, and its target."""
        position, row = s if isinstance(s, tuple) else (0, s or 0)
        image, *targets = self.dataset[row]
        made, half, share = self._augmented(image, position, row), self._half(position, row), 0.0
        if self.halves is not None:
            others = targets
            if half is not None:
                image, *others = self.dataset[half.partner]
                share = half.paste(made, self._augmented(image, position, half.partner))
            targets = [self.halves.labels(a[None], b[None], [share])[0] for a, b in zip(targets, others, strict=True)]
        return (made, *targets)

    def do_batch(self, items: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Items -> the photos and the targets of a batch."""
        images, *targets = zip(*items, strict=True)
        batch: np.ndarray | None = None
        for i, image in enumerate(images):
            batch = stack(image, i, len(images), batch)
        return (channels_first(batch), *(torch.stack(t) for t in targets))

    def _half(self, position: int, row: int) -> Half | None:
        """What becomes of a side of a photo, as (pass, position, row) says; None where it stays."""
        return None if self.halves is None else self.halves.draw(self._partners.at(self.pass_, position, row), row)

    def _which(self) -> int:
        """0 where the photos are to be seen by the training augmentation, 1 by that of validation."""
        return 0 if getattr(self.dataset, "split_idx", 1) == 0 else 1

    def _kept(self) -> list[PhotoMap]:
        """The maps of what the augmentation's own prefix makes of photos."""
        if self.augments is None:
            return []
        prefix, _ = parts(self.augments[self._which()])
        return [kept for kept in self.maps if kept.prefix == prefix.plain]

    def _readable(
        self, photo: Any, position: int, row: int, kept: Sequence[PhotoMap], place: np.ndarray | None = None
    ) -> np.ndarray | None:
        """As `_augmented`; None for a photo of the training that cannot be read, where another may stand for it."""
        try:
            return self._augmented(photo, position, row, kept, place)
        except UnreadableError:
            if self.substitute is None or self._which() != 0:
                raise
            return None

    def _augmented(
        self, photo: Any, position: int, row: int, kept: Sequence[PhotoMap] = (), place: np.ndarray | None = None
    ) -> np.ndarray:
        """One photo, given as its path or what is read, augmented as (pass, position, row) says, at `place` if it can.

        What is kept of it is copied first, since what augments may write to what it is given.
        """
        found = (there.get(photo) for there in kept) if isinstance(photo, str) else ()
        start = next((image for image in found if image is not None), None)
        image = read(photo, self.faces) if start is None else start
        if self.augments is None:
            return image
        prefix, vary = parts(self.augments[self._which()])
        try:
            if start is None:
                start = prefix(image)
            elif place is not None and place.shape == start.shape:
                place[:] = start
                start = place
            else:
                start = start.copy()
            made = vary(start, self._rng.at(self.pass_, position, row))
            if not is_photo(made):
                raise ValueError(f"it gives {made.dtype} {made.shape}, not uint8 (height, width, 3)")
        except Exception as error:
            what = photo if isinstance(photo, str | Path) else getattr(self.dataset, "paths", range(row + 1))[row]
            size = f"{image.shape[0]} high and {image.shape[1]} wide"
            raise DataError(f"Photo {what} is {size}, and the augmentation fails on it: {error}.") from error
        return made

    def __iter__(self) -> Iterator[Any]:
        """One pass; a mistake found in a worker is told as if it had been found here."""
        try:
            yield from super().__iter__()
        except FastmaskError as error:
            # torch puts the worker's traceback into the message, and our sentence last
            told = str(error).strip().splitlines()[-1]
            raise type(error)(told.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None

    def wif(self) -> None:
        """One thread a worker, since opencv's own would fight over the cores; and the main process decides on an end.

        A Ctrl-C, and what a scheduler sends, may reach all processes at once. A worker that obeyed would leave the main
        one without the batch that it wants to finish with; it ends when that one does, or on a second SIGTERM.
        """
        cv2.setNumThreads(0)
        for name in ("SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def stack(image: np.ndarray, i: int, count: int, batch: np.ndarray | None) -> np.ndarray:
    """A batch (count, height, width, 3) with `image` as its `i`-th photo; made when the first comes.

    Raises DataError where the photos differ in size.
    """
    if batch is None:
        batch = np.empty((count, *image.shape), np.uint8)
    if image.shape != batch.shape[1:]:
        raise DataError(
            f"Photos of a batch come out {batch.shape[1]} x {batch.shape[2]} and {image.shape[0]} x "
            f"{image.shape[1]}: the augmentation must end in one size; add a crop or a resize."
        )
    batch[i] = image
    return batch


def channels_first(batch: Any) -> TensorPhotos:
    """(B, height, width, 3) -> (B, 3, height, width), the same memory."""
    return TensorPhotos(torch.from_numpy(batch).permute(0, 3, 1, 2))


def columns_of(dataset: Any) -> tuple[list[Any], list[torch.Tensor]] | None:
    """A data set's photos, as their paths or what is there of them, and each of its targets (N, heads) int64.

    None where photos or targets go through more than `Lookup`, `ReadPhoto` and `EncodeHeads`.
    """
    if isinstance(dataset, PhotoList):
        return list(dataset.paths), []
    columns = [_column(tl) for tl in getattr(dataset, "tls", ())]
    if not columns or any(column is None for column in columns):
        return None
    photos, *targets = columns
    return list(photos or ()), [targets_of(target) for target in targets]


def _column(items: TfmdLists) -> list[Any] | None:
    """What a list of items has before it is read or encoded, None where other transforms come first."""
    transforms = list(items.tfms.fs)
    if not all(isinstance(transform, Lookup | ReadPhoto | EncodeHeads) for transform in transforms):
        return None
    # a file that is named is read as it is now: only the rows of a table are in a map
    values: list[Any] = [Path(item) if isinstance(item, str) else item for item in items.items]
    for lookup in (transform for transform in transforms if isinstance(transform, Lookup)):
        values = [lookup.values[value] if isinstance(value, int) else value for value in values]
    named = any(isinstance(t, EncodeHeads) for t in transforms) and any(isinstance(value[0], str) for value in values)
    return None if named else values


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
    maps: Sequence[PhotoMap] | None = None,
    substitute: tuple[int, int] | None = None,
    train: TrainingSet | None = None,
    halves: Halves | None = None,
) -> DataLoaders:
    """fastai DataLoaders that validate fold `fold` of `folds` and train on the others.

    Args:
        folds: (N,) the fold of each photo; five person-whole folds by default. `fold` None takes 0.
        augments: training and validation augmentation, each a callable (image, rng); the report's by default.
        stats: (mean, std) of three channels; by default those of the augmentation's own Normalize, or the report's.
        num_workers: processes that load; by default none on a CPU, which training keeps busy, else up to 8.
        substitute: (height, width) of what stands for a training photo that cannot be read; by default it is an error.
        maps: photos that are decoded already; by default `photo_maps`, so the first loaders of a table take their time.
        train: what to train on; by default `training_set` of the photos of the other folds.
        halves: half-face CutMix among the photos of `train`.

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
    photos, labels, validates = _rows(table, valid, train)
    block = data_block(table.heads, photos, labels, validates, batch_stats(augments, stats), table.faces)
    device = pick_device(device)
    if device.type == "cpu":
        keep_memory()
    # a batch norm cannot train on one photo, and a table smaller than a batch would train on none
    bs = min(bs, int((~validates).sum()))
    dls = block.dataloaders(
        list(range(len(photos))),
        bs=bs,
        seed=seed,
        fold=fold,
        augments=augments,
        maps=photo_maps(table, augments, say=say) if maps is None else maps,
        faces=table.faces,
        substitute=substitute,
        dl_kwargs=[{"chances": None if train is None else train.chances, "halves": halves}, {"passes": Passes()}],
        num_workers=default_workers(device) if num_workers is None else num_workers,
        device=device,
        pin_memory=device.type == "cuda",
    )
    # metrics need the classes of the whole table, so that a macro mean is the same in every fold
    dls.truth = table.y
    return dls


def _rows(
    table: Table, valid: np.ndarray, train: TrainingSet | None
) -> tuple[list[str], Sequence[np.ndarray], np.ndarray]:
    """The paths, the labels and whether it validates of each row: those of the table, or first those to train on."""
    if train is None:
        photos = [str(table.root / path) for path in table.frame["path"]]
        return photos, list(np.where(valid[:, None], table.y, table.train_y)), valid
    scored = training_set(table, valid, scored=True)
    both = [*train.photos, *scored.photos]
    # the labels of the two may be of either kind
    return both, [*train.labels, *scored.labels], np.arange(len(both)) >= len(train)


def photo_maps(
    table: Table,
    augments: Sequence[Augment],
    cache: str = "auto",
    folder: str | Path | None = None,
    digests: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[PhotoMap]:
    """The photos of a table as the prefix of each augmentation makes them, decoded once: see `cache.photo_map`."""
    if cache == "off":
        return []
    paths = [table.photo(row) for row in range(len(table))]
    digests = digest_photos(paths) if digests is None else digests
    prefixes = {str(prefix.plain): prefix for prefix, _ in map(parts, augments)}
    return [photo_map(paths, digests, prefix, cache, folder, say, table.faces) for prefix in prefixes.values()]


def data_block(
    heads: Heads,
    photos: Sequence[str],
    labels: Sequence[np.ndarray],
    valid: np.ndarray,
    stats: Stats,
    faces: FaceCut | None = None,
) -> DataBlock:
    """The DataBlock over row numbers: the path and the labels of each, of either kind, and (N,) bool who validates."""
    return DataBlock(
        blocks=(photo_block(faces), heads_block(heads)),
        getters=[Lookup(photos), Lookup(labels)],
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

    def __init__(self, paths: Sequence[str | Path], split_idx: int = 1) -> None:
        self.paths, self.split_idx = list(paths), split_idx

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[np.ndarray]:
        return (read_photo(self.paths[row]),)


def photo_loader(
    paths: Sequence[str | Path],
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

    `training` takes the training augmentation instead, as counted by `passes`. What `maps` keep is found by paths that
    are texts.
    """
    device = pick_device(device)
    if device.type == "cpu":
        keep_memory()
    return PhotoDL(
        PhotoList(paths, split_idx=0 if training else 1),
        bs=bs,
        augments=augments,
        faces=faces,
        maps=maps,
        seed=seed,
        passes=passes,
        after_batch=[NormalizeBatch(*stats)],
        num_workers=default_workers(device) if num_workers is None else num_workers,
        device=device,
        pin_memory=device.type == "cuda",
    )
