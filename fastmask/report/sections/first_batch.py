"""First batch: the first photos of a run's training, as its network got them."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import torch
from fastai.torch_core import TensorImage

from fastmask.data.augment import Augment, build_augmentations, check_fit
from fastmask.data.loaders import enlarge_batches
from fastmask.data.photo import check_photos
from fastmask.data.table import Table
from fastmask.data.transforms import UNREADABLE
from fastmask.heads import UNKNOWN, Heads
from fastmask.labels import soft_labels
from fastmask.report.blocks import Album, Block, Shown, Text
from fastmask.report.material import Material
from fastmask.report.thumbnails import thumbnail
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UnreadableError, UsageError
from fastmask.system.randomness import Counted, Stream
from fastmask.system.text import shorten
from fastmask.training.build import make_framing
from fastmask.training.mix import mix_callbacks
from fastmask.training.plan import Plan

_MOST, _LINES, _NAME = 12, 4, 28


def first_batch(run: RunDirectory, table: Table, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """The first batch of a fold's training: (B, height, width, 3) uint8 photos, (B, classes of all heads) labels.

    Cut, augmented and mixed as in training, because randomness is a function of the run's seed, fold and pass. Photos
    that can no longer be read are left out. Photos of other sources (`extra`, `pseudo`) are not included, so with them
    it is not the actual first batch.
    """
    config = run.config.model_copy(update={"workers": 0, "device": "cpu", "on_bad_photo": "skip"})
    if config.boxes is not None:
        table = table.cut_to_faces(config.boxes, make_framing(config))
    folds, size = run.folds["fold"].to_numpy(), _size(table, build_augmentations(run.pipelines)[0])
    plan = Plan(config, table, folds, run.pipelines, run.environment, size=size)
    # a loader uses the global generator of torch
    with torch.random.fork_rng(devices=[]):
        train = enlarge_batches(plan.loaders(fold), config.accumulate)[0].train
        x, y = train.one_batch()
        unreadable = (y == UNREADABLE).all(1).numpy()
        # as in training
        y[unreadable] = 0 if y.is_floating_point() else UNKNOWN
        x, y = _mixed(run, fold, x, y)
    pixels = train.after_batch.decode(TensorImage(x)) * 255
    photos = pixels.round().byte().permute(0, 2, 3, 1).numpy()
    return photos[~unreadable], soft_labels(y.as_subclass(torch.Tensor), run.heads).numpy()[~unreadable]


def _size(table: Table, augment: Augment) -> tuple[int, int]:
    """Height and width of the network's photos, from the first photo that can be read."""
    for row in range(len(table)):
        with suppress(UnreadableError):
            path = table.photo(row)
            return check_fit({"the training pipeline": (augment, check_photos([path], table.faces))}, [path])
    raise UsageError(f"No photo in {table.root} can be read.")


def _mixed(run: RunDirectory, fold: int, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch after mix-up or CutMix of the first step."""
    learn = SimpleNamespace(xb=(x,), yb=(y,))
    torch.manual_seed(Counted(Stream.STEP, run.config.seed, fold).seed_at(0, 0))
    for mix in mix_callbacks(run.heads, run.config):
        mix.learn = learn
        mix.before_batch()
    return learn.xb[0], learn.yb[0]


def label_lines(heads: Heads, labels: np.ndarray) -> list[tuple[str, str]]:
    """(classes of all heads,) soft labels -> the class with the largest weight per head, and its weight if below 1."""
    lines = []
    for i in heads.joined[:_LINES]:
        part = heads.split(labels)[i]
        best = int(part.argmax())
        share = "" if part[best] > 0.995 else f" {part[best]:.2f}"
        lines.append(
            (shorten(f"{heads[i].classes[best]}{share}" if part.any() else f"{heads[i].name} unknown", _NAME), "")
        )
    return lines


def section(material: Material) -> list[Block]:
    """Photos of the first batch of the first fold."""
    run = material.run
    run.check_trained()
    fold = (run.trained_folds or [0])[0]
    photos, labels = first_batch(run, material.table, fold)
    shown = []
    for photo, label in zip(photos[:_MOST], labels, strict=False):
        lines = label_lines(run.heads, label)
        names = ", ".join(text for text, _ in lines)
        shown.append(Shown(thumbnail(photo), f"Training photo, augmented: {names}", lines))
    height, width = photos.shape[1:3]
    said = f"Photos of the training of fold {fold} as its network gets them, {width} × {height} pixels: "
    if run.config.extra or run.config.pseudo or run.config.images_also:
        said += "of its own data, without those of other sources. "
    else:
        said += "the start of its first batch. "
    said += "Each has its label below, with the weight if mixing gives it less than 1"
    said += ", without the labels of the teacher." if run.config.teacher else "."
    return [Text(said), Album("augmented", shown)]
