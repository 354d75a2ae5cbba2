"""Ensemble: the fold models' probabilities, averaged over checkpoints, views and folds, and those of several runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fastmask.data.augment import Augmentation, augmentations, check_fit
from fastmask.data.boxes import FaceCut, read_boxes
from fastmask.data.loaders import batch_stats, photo_loader, pick_device
from fastmask.data.photo import SUFFIXES, check_photos, photos_in
from fastmask.data.photo_dl import Passes, PhotoDL
from fastmask.heads import Heads
from fastmask.inference.blend import Blend, widen
from fastmask.inference.members import learned, open_members
from fastmask.inference.networks import Load, checkpoints_of, load_members
from fastmask.inference.views import View, flip, make_views, plain
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet
from fastmask.model.precision import autocast, resolve_precision
from fastmask.run.directory import RunDirectory
from fastmask.run.files import PIPELINES
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_csv
from fastmask.system.terminal import Progress
from fastmask.training.build import framing

if TYPE_CHECKING:
    from fastmask.decision.rule import Rule

# views, photos a batch or processes: more is a slip of the keyboard
MOST = 65536
# through the photos: the pass of the training augmentation, None where it is validation's, and the views that it takes
Walk = tuple[int | None, Sequence[View]]


@dataclass(frozen=True)
class Predictions:
    """Probabilities of photos, in the order asked for.

    `names` are the photos (relative to the folder where one was given), `probabilities` (N, classes of all heads) the
    mean of `members`, which holds each fold's own, `decided` (N, heads) the classes that a rule has chosen.

    Those of an ensemble have the runs that it is made of as members, NaN in the heads that one lacks, and in `blend`
    how these became one.
    """

    names: list[str]
    heads: Heads
    probabilities: np.ndarray
    members: dict[str, np.ndarray]
    decided: np.ndarray | None = None
    blend: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def decide(self, rule: Rule, persons: np.ndarray | None = None) -> Predictions:
        """The same photos, answered by a rule.

        Each member is calibrated by itself, as the rule was fitted on single models' probabilities; of an ensemble, its
        blend, as the rule was fitted on blends. `persons` (N,) say whose photos they are, where the rule averages over
        persons.
        """
        if self.decided is not None:
            raise UsageError("These predictions are decided already; take those of predict.")
        if rule.heads != self.heads:
            raise UsageError("The rule is fitted on a run with other heads than these predictions have.")
        if persons is not None and (not rule.shared or len(persons) != len(self)):
            raise UsageError(
                f"Found {len(persons)} persons for {len(self)} photos and a rule that averages over "
                f"{', '.join(rule.shared) or 'none'}; expected one a photo, and a rule of fit_run(same_person=True)."
            )
        if self.blend is None:
            members = {member: rule.calibrated(each) for member, each in self.members.items()}
            calibrated = np.mean(list(members.values()), axis=0)
        else:
            members, calibrated = self.members, rule.calibrated(self.probabilities)
        probabilities = rule.averaged(calibrated, persons)
        return replace(self, probabilities=probabilities, members=members, decided=rule.choose(probabilities))

    @property
    def y(self) -> np.ndarray:
        """(N, heads) class numbers: the most probable of each head, or what the rule of `decide` says."""
        return self.heads.argmax(self.probabilities) if self.decided is None else self.decided

    @property
    def joint(self) -> np.ndarray:
        """(N,) joint class."""
        return np.asarray(self.heads.joint(self.y))

    @property
    def frame(self) -> pd.DataFrame:
        """One row a photo: path, the predicted joint class and each head's, a probability a class, also by member.

        A member has no columns of the heads that it lacks.
        """
        columns = {"path": self.names, "predicted": self.joint}
        for head, codes in zip(self.heads, self.y.T, strict=True):
            columns[head.name] = head.decode_all(codes)
        columns.update(zip(self.heads.columns, self.probabilities.T, strict=True))
        for member, probabilities in self.members.items():
            named = zip(self.heads.columns, probabilities.T, strict=True)
            columns.update({f"{member}:{column}": each for column, each in named if not np.isnan(each).any()})
        return pd.DataFrame(columns)

    def to_csv(self, out: str | Path) -> Path:
        """Write `frame` as CSV."""
        write_csv(Path(out), self.frame)
        return Path(out)

    def to_submission(self, info: str | Path, out: str | Path) -> Path:
        """Write `info` (ImageID, ans) with `ans` filled in: the same rows, in the same order."""
        from fastmask.inference.submission import check_heads, write_submission

        check_heads(self.heads)
        return write_submission(dict(zip(self.names, self.joint.tolist(), strict=True)), Path(info), Path(out))


def predict(
    run: RunDirectory | str | Path,
    images: str | Path | Sequence[str | Path],
    tta: int = 1,
    members: Sequence[str] | None = None,
    *,
    views: Sequence[str] = (),
    soup: bool = False,
    boxes: str | Path | None = None,
    refit: bool = True,
    root: str | Path | None = None,
    bs: int = 64,
    workers: int | None = None,
    device: str | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    load: Load | None = None,
) -> Predictions:
    """The mean of the fold models' probabilities for a folder or a list of photos; of an ensemble, its runs' blend.

    Args:
        tta: views that are averaged: the photo, its mirror image, then passes of the training augmentation, every
            second one mirrored.
        members: the folds to use, such as ["fold0", "fold2"]; all by default.
        views: instead of `tta`, what is seen beside the photo: "flip" its mirror image, "shift" four that are moved by
            4 %, "scale" one closer and one farther by 8 %. Nothing is drawn, and the views of several names add up.
        soup: predict by the mean of the weights of a fold's checkpoints, not of their probabilities.
        boxes: the CSV of these photos' faces, which a run that was trained with boxes needs.
        refit: a run with refit predicts by the networks that were trained on all photos at last; without, by the
            checkpoints that its score is of, as a soup does.
        root: of a list of photos, the folder that their names, and those in `boxes`, start from.
        precision: "auto" is that of the run, on a CPU fp32.
        progress: is called with (batches done, batches in all).
        load: loads each checkpoint, by default `load_network`; one that keeps what it has loaded spares the next call
            the time.

    The inference transform is the run's validation transform, one object. Memory grows with the photos by their
    probabilities only.
    """
    run = RunDirectory.of(run)
    if run.is_ensemble:
        options = {
            "tta": tta,
            "views": views,
            "soup": soup,
            "boxes": boxes,
            "refit": refit,
            "root": root,
            "bs": bs,
            "workers": workers,
            "device": device,
            "precision": precision,
            "load": load,
        }
        return _predict_runs(run, images, members, progress, options)
    for option, value, least in (("tta", tta, 1), ("bs", bs, 1), ("workers", workers or 0, 0)):
        if not least <= value <= MOST:
            raise UsageError(f"--{option} is {value}; expected {least} to {MOST}.")
    walks = _walks(tta, views)
    names, paths = find_photos(images, root)
    picked = pick_device(device)
    computing = autocast(picked, _precision(run, precision, picked))
    augments = augments_of(run)
    stats = batch_stats(augments)
    # a broken photo at the end would cost the work on all before it
    faces = face_cut(run, boxes, dict(zip(map(str, paths), names, strict=True)))
    size = check_fit({"the validation pipeline": (augments[1], check_photos(paths, faces))}, paths)
    networks = load_members(run, members, picked, size, soup, refit, load)
    loader = partial(photo_loader, paths, augments, stats, faces=faces, bs=bs, seed=run.config.seed)
    batches = _batches(walks, partial(loader, num_workers=workers, device=picked))
    sums = {member: np.zeros((len(paths), run.heads.n_logits)) for member in networks}
    loss, count = FocalLoss(run.heads), len(walks) * -(-len(paths) // bs)
    for done, (rows, x, seen) in enumerate(batches, 1):
        for member, nets in networks.items():
            with computing:
                answers = _view_sum(nets, x, seen, loss)
            odd = np.flatnonzero(~np.isfinite(answers).all(axis=1))
            if len(odd):
                raise DataError(
                    f"{run.path / member} answers {names[rows.start + odd[0]]} with what is no number: its weights are "
                    f"damaged, or too large for {precision}; restore the fold, or take another --precision."
                )
            sums[member][rows] += answers
        if progress is not None:
            progress(done, count)
    each = {member: (s / sum(len(seen) for _, seen in walks)).astype(np.float32) for member, s in sums.items()}
    return Predictions(names, run.heads, np.mean(list(each.values()), axis=0), each)


def _precision(run: RunDirectory, asked: str, device: torch.device) -> str:
    if asked == "auto":
        asked = "fp32" if device.type == "cpu" else run.config.precision
    return resolve_precision(asked, device)


def augments_of(run: RunDirectory) -> tuple[Augmentation, Augmentation]:
    """A run's training and validation augmentation; raises DataError where what it keeps of them is broken."""
    try:
        return augmentations(run.pipelines)
    except UsageError as error:
        raise DataError(f"{run.path / PIPELINES}: {error}") from error


def _batches(walks: Sequence[Walk], load: Callable[..., PhotoDL]) -> Iterator[tuple[slice, Tensor, Sequence[View]]]:
    """The batches of all walks: the rows of the photos, the photos, and how they are to be seen."""
    for training, seen in walks:
        start = 0
        for (x,) in load(training=training is not None, passes=Passes(training or 0)):
            yield slice(start, start + len(x)), x, seen
            start += len(x)


def _walks(tta: int, views: Sequence[str]) -> list[Walk]:
    """The walks through the photos that see them as often as is asked."""
    if views and tta > 1:
        raise UsageError("--tta and --views exclude each other: both say what is averaged.")
    both: list[View] = [plain, flip]
    walks: list[Walk] = [(None, make_views(views) if views else both[:tta])]
    walks.extend((number, [both[number % 2]]) for number in range(tta - 2))
    return walks


@torch.inference_mode()
def _view_sum(networks: Sequence[MultiHeadNet], x: Tensor, seen: Sequence[View], loss: FocalLoss) -> np.ndarray:
    """(B, classes of all heads): the sum over views of the mean over checkpoints of the probabilities."""
    x = x.as_subclass(Tensor)
    total = sum(loss.activation(net(photos)) for photos in (view(x) for view in seen) for net in networks)
    return (total / len(networks)).double().cpu().numpy()  # type: ignore[union-attr]


def face_cut(run: RunDirectory, boxes: str | Path | None, names: Mapping[str, str]) -> FaceCut | None:
    """What the photos of a run are cut by, None where it was trained on whole ones; `names` are theirs by their paths.

    Raises UsageError where the boxes do not go with the run.
    """
    trained = run.config.boxes
    if trained is None and boxes is None:
        return None
    if trained is None:
        raise UsageError(f"--boxes goes with a run that was trained with boxes, and {run.path} was not.")
    if boxes is None:
        raise UsageError(
            f"{run.path} was trained on faces (boxes {trained}), so it needs those of these photos: --boxes FILE, as "
            "fastmask faces writes it."
        )
    return FaceCut(read_boxes(boxes), framing(run.config), names)


def find_photos(
    images: str | Path | Sequence[str | Path], root: str | Path | None = None
) -> tuple[list[str], list[Path]]:
    """Names and paths of the photos of a folder (sorted, hidden files left out) or of a list.

    Those of a list are named as they are given, or from the folder `root` on.
    """
    if not isinstance(images, str | Path):
        paths = [Path(p) for p in images]
        outside = next((p for p in paths if root is not None and not p.is_relative_to(root)), None)
        if outside is not None:
            raise UsageError(f"{outside} does not lie in {root}, which the names of the photos start from.")
        names = [str(p) if root is None else p.relative_to(root).as_posix() for p in paths]
    else:
        folder = Path(images)
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; expected one of photos.")
        paths = photos_in(folder)
        names = [p.relative_to(folder).as_posix() for p in paths]
    if not paths:
        raise UsageError(f"{images} holds no photos (any of {', '.join(SUFFIXES)}).")
    missing = next((p for p in paths if not p.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} does not exist; expected a photo there.")
    return names, paths


def _predict_runs(
    ensemble: RunDirectory,
    images: str | Path | Sequence[str | Path],
    members: Sequence[str] | None,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> Predictions:
    """The blend of what each run of an ensemble predicts, each by its own transform."""
    if members:
        raise UsageError(
            f"{ensemble.path} is an ensemble and predicts with all its runs; make another of those that you want."
        )
    blend = Blend.of(ensemble)
    runs = open_members(ensemble, blend)
    for run in runs.values():
        # what the last one lacks would cost the work of all before it
        checkpoints_of(run, None, bool(options["soup"]), bool(options["refit"]))
    boxes = options["boxes"]
    if boxes is not None and not any(run.config.boxes for run in runs.values()):
        raise UsageError(f"--boxes goes with a run that was trained with boxes, and none of {ensemble.path} was.")
    made, names = {}, []
    for place, (name, run) in enumerate(runs.items()):
        own = {**options, "boxes": boxes if run.config.boxes else None}
        each = predict(run, images, progress=_part(progress, place, len(runs)), **own)
        there = [head for head in learned(run) if head in ensemble.heads.names]
        made[name], names = widen(ensemble.heads, each.heads, each.probabilities, there), each.names
    mixed = blend.mix(list(made.values())).astype(np.float32)
    return Predictions(names, ensemble.heads, mixed, made, blend=blend.how)


def _part(progress: Progress | None, place: int, parts: int) -> Progress | None:
    """What to call in one of several parts of the work that have as many batches each."""
    if progress is None:
        return None
    return lambda done, batches: progress(place * batches + done, parts * batches)
