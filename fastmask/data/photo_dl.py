"""PhotoDL: a fastai loader that makes whole batches of photos, with counted order and augmentation."""

from __future__ import annotations

import pickle
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from fastai.data.core import TfmdDL, TfmdLists
from fastai.data.transforms import ToTensor

from fastmask.data.augment import Augment, is_photo, split_prefix
from fastmask.data.boxes import FaceCut
from fastmask.data.cache import PhotoMap
from fastmask.data.halves import Half, Halves
from fastmask.data.sampler import Sampler
from fastmask.data.transforms import (
    UNREADABLE,
    EncodeHeads,
    Lookup,
    NormalizeBatch,
    ReadPhoto,
    TensorHeads,
    TensorPhotos,
    read_or_copy,
    targets_of,
)
from fastmask.system.errors import DataError, FastmaskError, UnreadableError, UsageError, one_line
from fastmask.system.randomness import Counted, Stream
from fastmask.system.text import shorten

Row = TypeVar("Row")
# position in the pass, row
Item = tuple[int, int]


@dataclass
class Passes:
    """The number of the next pass, shared by a loader and those made from it."""

    next: int = 0


@dataclass(frozen=True)
class Share:
    """The part of each batch that a process loads: its `number`, counted from 0, out of `of` parts."""

    number: int = 0
    of: int = 1

    def part(self, batch: Sequence[Row]) -> Sequence[Row]:
        """The part of a batch, of the same size for all processes: a batch that is too short is repeated at the end.

        All parts together, concatenated, start with the batch.
        """
        size = -(-len(batch) // self.of)
        return [batch[i % len(batch)] for i in range(self.number * size, (self.number + 1) * size)]


ALONE = Share()


class PhotoDL(TfmdDL):
    """A fastai loader with counted order and augmentation, so that it has no random state.

    The order of a pass is a function of (seed, fold, pass); the augmentation of a photo of (seed, fold, pass, position,
    row). So batches do not depend on the number of workers. A pass is one iteration over this loader or one made from
    it by `new`, counted in the main process; `one_batch` and `show_batch` count none. A dataset with item transforms
    or custom getters goes photo by photo, and others in whole batches, with the same results.

    Args:
        augments: the training and the validation augmentation; fastai's `split_idx` of the dataset selects one.
        maps: decoded photos of the augmentations' prefixes, so that those are applied once.
        substitute: (height, width) of a grey photo, with UNREADABLE labels, in place of an unreadable training photo.
        sampler: which photos a shuffled pass has; without one each of them once.
        halves: half-face CutMix; targets are then soft labels.
        faces: the faces that photos are cut to first, also in `maps`.
        share: the part of each batch to load; `bs`, the order and the positions are those of whole batches.

    Example:
        >>> type(dls.train).__name__
        'PhotoDL'
        >>> x, y = dls.train.one_batch()
        >>> x.shape, y.shape
        (torch.Size([16, 3, 32, 16]), torch.Size([16, 3]))
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
        sampler: Sampler | None = None,
        halves: Halves | None = None,
        faces: FaceCut | None = None,
        share: Share = ALONE,
        **kwargs: Any,
    ) -> None:
        self.share = share
        self.augments, self.maps, self.seed, self.fold, self.faces = augments, maps, seed, fold, faces
        self.substitute, self.sampler, self.halves = substitute, sampler, halves
        self.passes = passes or Passes()
        self._columns: tuple[list[Any], list[torch.Tensor]] | None = None
        self.pass_ = self._left_out = self._first = 0
        self._rng = Counted(Stream.AUGMENT, seed, fold)
        self._partners = Counted(Stream.PARTNER, seed, fold)
        kwargs.pop("shuffled", None)  # learn.tta misspells shuffle=False, which is the default
        if sampler is not None and kwargs.get("shuffle"):
            kwargs["n"] = len(sampler)
        super().__init__(dataset, **kwargs)
        # a process without a batch only takes time to start; `new` may have more batches
        self._workers = self.fake_l.num_workers
        self.fake_l.num_workers = min(self._workers, len(self) if self.n else 0)

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> PhotoDL:
        """A loader like this one except for `kwargs`; fastai's `new` would drop the arguments of this class."""
        # these are for the rows of one dataset, and only for training
        trains = (dataset is None or dataset is self.dataset) and kwargs.get("shuffle", self.shuffle)
        rows = ("sampler", "halves") if trains else ()
        names = ("augments", "maps", "seed", "fold", "passes", "substitute", "faces", "share", *rows)
        kept = {**{name: getattr(self, name) for name in names}, "num_workers": self._workers}
        made: PhotoDL = super().new(dataset, cls, **{**kept, **kwargs})
        if _normalizes(self) and not _normalizes(made):
            raise UsageError(
                "Without NormalizeBatch the network would get raw bytes; keep it in after_batch. learn.tta uses the "
                "training augmentation, so pass dataloaders(augments=...) in place of item_tfms and batch_tfms."
            )
        return made

    def before_iter(self) -> None:
        """Count the pass, in the main process, before the order is drawn and workers start."""
        if self.n == 0:
            raise UsageError("This loader has no photos; give it one or more.")
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
            raise UsageError("Photos without labels have no results to show; use learn.predict(photo) for classes.")
        return super().show_results(b, out, **kwargs)

    def shuffle_fn(self, idxs: list[int]) -> list[int]:
        """The order of this pass, drawn from (seed, fold, pass): a permutation, or the rows of the sampler."""
        rng = Counted(Stream.ORDER, self.seed, self.fold).at(self.pass_)
        if self.sampler is not None:
            rows: list[int] = self.sampler.order(rng).tolist()
            return rows
        return [idxs[i] for i in rng.permutation(len(idxs))]

    def photos_in(self, batch: int) -> int:
        """The number of photos in a batch of the last pass, by its number from 0, with those of all processes."""
        return len(self.order[batch * self.bs : (batch + 1) * self.bs])

    def photos_of(self, batch: int) -> list[str]:
        """The photos of a batch of the last pass, by its number from 0: their paths, or their row numbers."""
        rows = self.order[batch * self.bs : (batch + 1) * self.bs]
        columns = columns_of(self.dataset)
        return [str(columns[0][row]) if columns else f"row {row}" for row in rows]

    def start_at(self, batch: int) -> PhotoDL:
        """Start the next pass at `batch`, without reading the batches before it; returns this loader."""
        self._left_out = batch
        return self

    def get_idxs(self) -> list[int]:
        """The rows in the order of this pass, which is kept whole as `order`."""
        self.order = list(super().get_idxs())
        self._first, self._left_out = self._left_out * self.bs, 0
        return self.order[self._first :]

    def sample(self) -> Iterator[Item]:
        """This worker's share of the pass."""
        for i, row in enumerate(super().sample()):
            block, within = divmod(i, self.bs)
            yield self._first + (block * self.num_workers + self.offs) * self.bs + within, row

    def create_batches(self, samps: Iterable[Item]) -> Iterator[Any]:
        if self._columns is None and self.share == ALONE:
            yield from super().create_batches(samps)
            return
        kept = self._prefix_maps()
        for batch in self.chunkify(samps):
            chosen = self.share.part(batch)
            if self._columns is None:
                yield self.do_batch([self.do_item(each) for each in chosen])
            else:
                yield self._make_batch(chosen, *self._columns, kept)

    def _make_batch(
        self, chosen: Sequence[Item], photos: Sequence[Any], targets: Sequence[torch.Tensor], kept: Sequence[PhotoMap]
    ) -> tuple[torch.Tensor, ...]:
        """One batch, from the columns of a dataset."""
        batch: np.ndarray | None = None
        unreadable = []
        rows = [row for _, row in chosen]
        partners, shares = list(rows), [0.0] * len(rows)
        for i, (position, row) in enumerate(chosen):
            place = None if batch is None else batch[i]
            image = self._augment_or_none(photos[row], position, row, kept, place)
            if image is None:
                image = np.full((*(self.substitute or ()), 3), 128, np.uint8)
                unreadable.append(i)
            if image is not place:
                batch = stack_photo(image, i, len(chosen), batch)
            half = self._draw_half(position, row)
            other = None if half is None else self._augment_or_none(photos[half.partner], position, half.partner, kept)
            if half is not None and other is not None and batch is not None:
                partners[i], shares[i] = half.partner, half.paste(batch[i], other)
        labels = [target[rows] for target in targets]
        if self.halves is not None:
            others = [target[partners] for target in targets]
            labels = [self.halves.labels(*pair, shares) for pair in zip(labels, others, strict=True)]
        for target in labels:
            target[unreadable] = UNREADABLE
        return channels_first(batch), *map(TensorHeads, labels)

    def create_item(self, s: Item | int | None) -> tuple[Any, ...]:
        """One photo, augmented by (pass, position, row), and its targets."""
        position, row = s if isinstance(s, tuple) else (0, s or 0)
        image, *targets = self.dataset[row]
        made, half, share = self._augment(image, position, row), self._draw_half(position, row), 0.0
        if self.halves is not None:
            others = targets
            if half is not None:
                image, *others = self.dataset[half.partner]
                share = half.paste(made, self._augment(image, position, half.partner))
            targets = [self.halves.labels(a[None], b[None], [share])[0] for a, b in zip(targets, others, strict=True)]
        return (made, *targets)

    def do_batch(self, items: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Items -> the photos and the targets of a batch."""
        images, *targets = zip(*items, strict=True)
        batch: np.ndarray | None = None
        for i, image in enumerate(images):
            batch = stack_photo(image, i, len(images), batch)
        return (channels_first(batch), *(torch.stack(t) for t in targets))

    def _draw_half(self, position: int, row: int) -> Half | None:
        """The change of a side of a photo, by (pass, position, row)."""
        return None if self.halves is None else self.halves.draw(self._partners.at(self.pass_, position, row), row)

    def _split_index(self) -> int:
        """0 for the training augmentation, 1 for that of validation."""
        return 0 if getattr(self.dataset, "split_idx", 1) == 0 else 1

    def _prefix_maps(self) -> list[PhotoMap]:
        """The maps of the augmentation's prefix."""
        if self.augments is None:
            return []
        prefix, _ = split_prefix(self.augments[self._split_index()])
        return [kept for kept in self.maps if kept.prefix == prefix.plain]

    def _augment_or_none(
        self, photo: Any, position: int, row: int, kept: Sequence[PhotoMap], place: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Like `_augment`; None for an unreadable training photo that is substituted."""
        try:
            return self._augment(photo, position, row, kept, place)
        except UnreadableError:
            if self.substitute is None or self._split_index() != 0:
                raise
            return None

    def _augment(
        self, photo: Any, position: int, row: int, kept: Sequence[PhotoMap] = (), place: np.ndarray | None = None
    ) -> np.ndarray:
        """One photo, given by its path or its pixels, augmented by (pass, position, row), at `place` if possible.

        Cached pixels are copied, because an augmentation may write to its input.
        """
        found = (there.get(photo) for there in kept) if isinstance(photo, str) else ()
        start = next((image for image in found if image is not None), None)
        image = read_or_copy(photo, self.faces) if start is None else start
        if self.augments is None:
            return image
        prefix, vary = split_prefix(self.augments[self._split_index()])
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
            what = what if isinstance(what, str | Path | int) else row
            size = f"{image.shape[0]} high and {image.shape[1]} wide"
            raise DataError(f"Photo {what} is {size}, and the augmentation fails on it: {error}.") from error
        return made

    def __iter__(self) -> Iterator[Any]:
        """One pass; an error in a worker is raised as if it were from this process."""
        try:
            yield from super().__iter__()
        except FastmaskError as error:
            # torch puts the worker's traceback into the message, with our sentence last
            sentence = str(error).strip().splitlines()[-1]
            raise type(error)(sentence.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None
        except (RuntimeError, AttributeError, TypeError, pickle.PicklingError) as error:
            why = _describe_worker(error)
            if why is None:
                raise
            raise FastmaskError(f"{why}. --workers 0 (in Python workers=0) loads without such processes.") from error

    def wif(self) -> None:
        """Use one OpenCV thread per worker, to share the cores, and leave signals to the main process.

        A Ctrl-C, or the signal of a scheduler, may reach all processes, but the main one needs the workers to finish
        its batch. A worker ends with the main process, or on a second SIGTERM.
        """
        cv2.setNumThreads(0)
        for name in ("SIGINT", "SIGHUP", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def _describe_worker(error: Exception) -> str | None:
    """Why a loading process did not start, or ended, in the words of torch and of pickle; None for other errors."""
    ended = re.match(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.*)", str(error), re.DOTALL)
    if ended is not None:
        why = shorten(" ".join(ended[1].split()).rstrip("."), 100)
        return (
            f"A loading process ended on its own ({why}): memory, or /dev/shm of a container, may be too small (docker "
            "run --shm-size), or a notebook defines a class that it cannot import"
        )
    if re.search("can(not|'t) pickle", str(error), re.IGNORECASE):
        return f"Loading processes can only get objects that a module defines ({one_line(error)})"
    return None


class PhotoList:
    """Photos without labels, in the order given, as the dataset of a `PhotoDL`; `split_idx` 1 is validation.

    A photo is a path, the bytes of a file, or an array (height, width, 3).
    """

    n_inp = 1

    def __init__(self, paths: Sequence[str | Path | bytes | np.ndarray], split_idx: int = 1) -> None:
        self.paths, self.split_idx = list(paths), split_idx

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[np.ndarray]:
        return (read_or_copy(self.paths[row]),)


def stack_photo(image: np.ndarray, i: int, count: int, batch: np.ndarray | None) -> np.ndarray:
    """A batch (count, height, width, 3) with `image` as photo `i`, new if None; raises DataError for another size."""
    if batch is None:
        batch = np.empty((count, *image.shape), np.uint8)
    if image.shape != batch.shape[1:]:
        raise DataError(
            f"Photos of a batch are {batch.shape[1]} x {batch.shape[2]} and {image.shape[0]} x {image.shape[1]}: "
            "the augmentation must end in one size, so add a crop or a resize."
        )
    batch[i] = image
    return batch


def channels_first(batch: Any) -> TensorPhotos:
    """(B, height, width, 3) -> (B, 3, height, width), the same memory."""
    return TensorPhotos(torch.from_numpy(batch).permute(0, 3, 1, 2))


def columns_of(dataset: Any) -> tuple[list[Any], list[torch.Tensor]] | None:
    """A dataset's photos, as paths or pixels, and each of its targets (N, heads) int64.

    None where there are other transforms than `Lookup`, `ReadPhoto` and `EncodeHeads`.
    """
    if isinstance(dataset, PhotoList):
        return list(dataset.paths), []
    columns = [_column(tl) for tl in getattr(dataset, "tls", ())]
    if not columns or any(column is None for column in columns):
        return None
    photos, *targets = columns
    return list(photos or ()), [targets_of(target) for target in targets]


def _column(items: TfmdLists) -> list[Any] | None:
    """The items of a list before they are read or encoded; None where there are other transforms."""
    transforms = list(items.tfms.fs)
    if not all(isinstance(transform, Lookup | ReadPhoto | EncodeHeads) for transform in transforms):
        return None
    # a path given as str becomes a Path, so that it is read, and not found in a map
    values: list[Any] = [Path(item) if isinstance(item, str) else item for item in items.items]
    for lookup in (transform for transform in transforms if isinstance(transform, Lookup)):
        values = [lookup.values[value] if isinstance(value, int) else value for value in values]
    named = any(isinstance(t, EncodeHeads) for t in transforms) and any(isinstance(value[0], str) for value in values)
    return None if named else values


def _normalizes(dl: TfmdDL) -> bool:
    return any(isinstance(transform, NormalizeBatch) for transform in dl.after_batch.fs)
