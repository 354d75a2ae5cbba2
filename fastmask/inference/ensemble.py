"""Ensemble: the fold models' probabilities, averaged over checkpoints, views and folds, and those of several runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmask.data.augment import augmentations, check_fit
from fastmask.data.boxes import FaceCut, Framing, read_boxes
from fastmask.data.loaders import Passes, batch_stats, photo_loader, pick_device
from fastmask.data.photo import SUFFIXES, check_photos, photos_in
from fastmask.errors import DataError, FastmaskWarning, UsageError, one_line
from fastmask.files import write_csv
from fastmask.heads import Heads
from fastmask.inference.members import learned, open_members
from fastmask.inference.mixture import Mixture, widen
from fastmask.inference.soup import average_states
from fastmask.inference.views import View, flip, make_views, plain
from fastmask.model.archs import check_arch, describe
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet, build_network
from fastmask.run import PIPELINES, Run
from fastmask.training.step import autocast, resolve_precision

if TYPE_CHECKING:
    from fastmask.decision.rule import Rule

# views, photos a batch or processes: more is a slip of the keyboard
MOST = 65536
# what loads a checkpoint of a run to predict photos of a size, as `load_network`
Load = Callable[[Run, Path, torch.device, "tuple[int, int] | None"], MultiHeadNet]
# characters of another library's error
_MOST_SHOWN = 200


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
            columns[head.name] = np.array(head.classes, dtype=object)[codes]
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
    run: Run | str | Path,
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
    progress: Callable[[int, int], None] | None = None,
    load: Load | None = None,
) -> Predictions:
    """The mean of the fold models' probabilities for a folder or a list of photos; of an ensemble, its runs' blend.

    The inference transform is the run's validation transform, one object. `tta` views are averaged: the photo, its
    mirror image, then passes of the training augmentation, every second one mirrored. Or `views`, beside the photo:
    "flip" its mirror image, "shift" four that are moved by 4 %, "scale" one closer and one farther by 8 %; nothing is
    drawn, and the views of several names add up. `members` are the folds to use, such as ["fold0", "fold2"]; all by
    default. `soup` predicts by the mean of the weights of a fold's checkpoints, not of their probabilities. `boxes` is
    the CSV of these photos' faces, which a run that was trained with boxes needs; of a list of photos `root` is the
    folder that their names, and those in `boxes`, start from. A run with refit
    predicts by the networks that were trained on all photos at last; without `refit` by the checkpoints that its score
    is of, as a soup does. `precision` "auto" is that of the run, on a CPU fp32. Memory grows with the photos by their
    probabilities only. `progress` is called with (batches done, batches in all). `load` loads each checkpoint, by
    default `load_network`; one that keeps what it has loaded spares the next call the time.
    """
    run = Run.of(run)
    if run.is_ensemble:
        options = {
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
        return _predict_runs(run, images, members, progress, {"tta": tta, **options})
    for option, value, least in (("tta", tta, 1), ("bs", bs, 1), ("workers", workers or 0, 0)):
        if not least <= value <= MOST:
            raise UsageError(f"--{option} is {value}; expected {least} to {MOST}.")
    walks = _walks(tta, views)
    names, paths = find_photos(images, root)
    picked = pick_device(device)
    if precision == "auto":
        precision = "fp32" if picked.type == "cpu" else run.config.precision
    computing = autocast(picked, resolve_precision(precision, picked))
    try:
        augments = augmentations(run.pipelines)
    except UsageError as error:
        raise DataError(f"{run.path / PIPELINES}: {error}") from error
    stats = batch_stats(augments)
    # a broken photo at the end would cost the work on all before it
    faces = face_cut(run, boxes, dict(zip(map(str, paths), names, strict=True)))
    size = check_fit({"the validation pipeline": (augments[1], check_photos(paths, faces))}, paths)
    networks = load_members(run, members, picked, size, soup, refit, load)
    sums = {member: np.zeros((len(paths), run.heads.n_logits)) for member in networks}
    loss = FocalLoss(run.heads)
    batches, done = len(walks) * -(-len(paths) // bs), count(1)
    for training, seen in walks:
        start = 0
        for (x,) in photo_loader(
            paths,
            augments,
            stats,
            training=training is not None,
            faces=faces,
            bs=bs,
            seed=run.config.seed,
            passes=Passes(training or 0),
            num_workers=workers,
            device=picked,
        ):
            for member, nets in networks.items():
                with computing:
                    sums[member][start : start + len(x)] += _view_sum(nets, x, seen, loss)
            start += len(x)
            if progress is not None:
                progress(next(done), batches)
    each = {member: (s / sum(len(seen) for _, seen in walks)).astype(np.float32) for member, s in sums.items()}
    return Predictions(names, run.heads, np.mean(list(each.values()), axis=0), each)


def face_cut(run: Run, boxes: str | Path | None, names: Mapping[str, str]) -> FaceCut | None:
    """What the photos of a run are cut by, None where it was trained on whole ones; `names` are theirs by their paths.

    Raises UsageError where the boxes do not go with the run.
    """
    config = run.config
    if config.boxes is None and boxes is not None:
        raise UsageError(f"--boxes goes with a run that was trained with boxes, and {run.path} was not.")
    if config.boxes is None or boxes is not None:
        framing = Framing(config.crop, config.margin, config.region)
        return None if boxes is None else FaceCut(read_boxes(boxes), framing, names)
    raise UsageError(
        f"{run.path} was trained on faces (boxes {config.boxes}), so it needs those of these photos: --boxes FILE, as "
        "fastmask faces writes it."
    )


def _predict_runs(
    ensemble: Run,
    images: str | Path | Sequence[str | Path],
    members: Sequence[str] | None,
    progress: Callable[[int, int], None] | None,
    options: Mapping[str, Any],
) -> Predictions:
    """The blend of what each run of an ensemble predicts, each by its own transform."""
    if members:
        raise UsageError(
            f"{ensemble.path} is an ensemble and predicts with all its runs; make another of those that you want."
        )
    mixture = Mixture.of(ensemble)
    runs = open_members(ensemble, mixture)
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
    mixed = mixture.mix(list(made.values())).astype(np.float32)
    return Predictions(names, ensemble.heads, mixed, made, blend=mixture.how)


def _part(progress: Callable[[int, int], None] | None, place: int, parts: int) -> Callable[[int, int], None] | None:
    """What to call in one of several parts of the work that have as many batches each."""
    if progress is None:
        return None
    return lambda done, batches: progress(place * batches + done, parts * batches)


def _walks(tta: int, views: Sequence[str]) -> list[tuple[int | None, list[View]]]:
    """For each walk through the photos: (pass of the training augmentation or None, the views that it takes)."""
    if views and tta > 1:
        raise UsageError("--tta and --views exclude each other: both say what is averaged.")
    both: list[View] = [plain, flip]
    walks: list[tuple[int | None, list[View]]] = [(None, make_views(views) if views else both[:tta])]
    walks.extend((number, [both[number % 2]]) for number in range(tta - 2))
    return walks


@torch.inference_mode()
def _view_sum(networks: Sequence[MultiHeadNet], x: Tensor, seen: Sequence[View], loss: FocalLoss) -> np.ndarray:
    """(B, classes of all heads): the sum over views of the mean over checkpoints of the probabilities."""
    x = x.as_subclass(Tensor)
    total = sum(loss.activation(net(photos)) for photos in (view(x) for view in seen) for net in networks)
    return (total / len(networks)).double().cpu().numpy()  # type: ignore[union-attr]


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


def load_members(
    run: Run,
    members: Sequence[str] | None,
    device: torch.device,
    size: tuple[int, int] | None = None,
    soup: bool = False,
    refit: bool = True,
    load: Load | None = None,
) -> dict[str, list[MultiHeadNet]]:
    """The networks of each member ("fold0", ...), one a checkpoint or a `soup` of them, to predict photos of `size`.

    Warns where folds are missing.
    """
    found, load = checkpoints_of(run, members, soup, refit), load or load_network
    if len(found) < run.config.folds and not members:
        warnings.warn(
            f"{run.path} has finished {len(found)} of {run.config.folds} folds; the mean is over those.",
            FastmaskWarning,
            stacklevel=3,
        )
    return {
        member: [load_soup(run, files, device, size)] if soup else [load(run, f, device, size) for f in files]
        for member, files in found.items()
    }


def checkpoints_of(
    run: Run, members: Sequence[str] | None, soup: bool = False, refit: bool = True
) -> dict[str, list[Path]]:
    """The checkpoints of each member; raises UsageError or DataError where there is nothing to predict with.

    Or, for a `soup`, nothing to average.
    """
    there = {f"fold{fold}": run.models(fold, refit and not soup) for fold in run.trained_folds}
    if not there:
        raise UsageError(f"{run.path} has not finished a fold yet, so there is nothing to predict with.")
    empty = next((m for m in members or there if m in there and not there[m]), None)
    if empty is not None:
        raise DataError(
            f"{run.path / empty} has no checkpoint (epoch*.safetensors); train the fold again, or restore it."
        )
    unknown = [m for m in members or [] if m not in there]
    if unknown:
        raise UsageError(f"{run.path} has no member {unknown[0]!r}; expected some of {', '.join(there)}.")
    found = {m: there[m] for m in members or there}
    if soup and all(len(files) == 1 for files in found.values()):
        raise UsageError(
            f"Each fold of {run.path} keeps one checkpoint, so --soup has nothing to average; train with --top-k 3, or "
            "leave it out."
        )
    return found


def load_network(run: Run, file: Path, device: torch.device, size: tuple[int, int] | None = None) -> MultiHeadNet:
    """The network of a checkpoint, ready to predict photos of `size`; raises DataError where it does not fit the run.

    Bodies that are made for one size of photos, such as Swin, need `size`; it is that of the validation pipeline.
    """
    _check_long(run, file)
    network = build_network(run.config.arch, run.heads, size=size)
    _load(run, network, file)
    return network.to(device).eval()


def load_soup(
    run: Run, files: Sequence[Path], device: torch.device, size: tuple[int, int] | None = None
) -> MultiHeadNet:
    """The one network whose weights are the mean of those of checkpoints, as `load_network` makes each."""
    for file in files:
        _check_long(run, file)
    network = build_network(run.config.arch, run.heads, size=size)

    def states() -> Iterator[dict[str, Tensor]]:
        for file in files:
            # what comes out of the network is in its form, whatever form the file has
            _load(run, network, file)
            yield {name: tensor.clone() for name, tensor in network.state_dict().items()}

    network.load_state_dict(average_states(states()))
    return network.to(device).eval()


def _check_long(run: Run, file: Path) -> None:
    arch = run.config.arch
    if file.stat().st_size < _least_bytes(arch):
        # before the network takes the memory that only its name asks for
        raise DataError(f"{file} is too short for the weights of {arch}; train the fold again, or restore it.")


def _load(run: Run, network: MultiHeadNet, file: Path) -> None:
    try:
        network.load_state_dict(load_file(file))
    except Exception as error:
        raise DataError(
            f"{file} does not hold the weights of {run.config.arch}: {one_line(error)[:_MOST_SHOWN]}."
        ) from error


@cache
def _least_bytes(arch: str) -> int:
    """What the weights of a body take at least, at two bytes a parameter."""
    check_arch(arch)
    return 2 * (describe(arch).parameters or 0)
