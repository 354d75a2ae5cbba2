"""Predictions: probabilities for photos, averaged over views, checkpoints and folds, or blended over several runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fastmask.data.digests import digest_photos
from fastmask.data.loaders import pick_device
from fastmask.data.photo_dl import Passes, PhotoDL
from fastmask.data.seen import Hashes, hash_names
from fastmask.heads import Heads
from fastmask.inference.blend import Blend, widen
from fastmask.inference.failures import reason_of
from fastmask.inference.members import open_members
from fastmask.inference.networks import Load, checkpoints_of, load_members
from fastmask.inference.options import PredictOptions, Walk
from fastmask.inference.photo_versions import PhotoVersions
from fastmask.inference.photos import KEPT, Photos
from fastmask.inference.sources import Images, find_photos
from fastmask.model.folding import fold_batch_norms
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet
from fastmask.model.number import answer_numbers
from fastmask.model.precision import autocast, resolve_precision, usable_precision
from fastmask.model.probe import StageFeatures
from fastmask.model.views import View
from fastmask.run.directory import RunDirectory
from fastmask.run.lineage import read_lineage
from fastmask.system.errors import DataError, UnreadableError, UsageError
from fastmask.system.files import write_csv
from fastmask.system.terminal import Progress
from fastmask.system.threads import free_threads

if TYPE_CHECKING:
    from fastmask.decision.rule import Rule

# of a prediction while files are changed
_ATTEMPTS = 3
# the photos from which on it pays to choose threads
_MANY = 256
# the photos that a network predicts at once on a CPU
_AT_ONCE = 16


@dataclass(frozen=True)
class Predictions:
    """Probabilities for photos, in the given order.

    `names` are the photos (relative to the folder if there is one), `probabilities` (N, classes of all heads) the mean
    of `members`, the probabilities of each fold, and `decided` (N, heads) the classes that a rule chose.

    For an ensemble, the members are its runs, with NaN in the heads that a run lacks, and `blend` names the method.

    Photos that could not be predicted are not among them, but in `failed`, with the reason of each; a submission has
    `usual` for them, the joint class that the run's labels have most often. `notes` are sentences about the photos.

    >>> predictions = fm.predict(run, photos)
    >>> len(predictions), predictions.probabilities.shape, predictions.y.shape
    (3, (3, 8), (3, 3))
    >>> file = predictions.to_csv("predictions.csv")
    """

    names: list[str]
    heads: Heads
    probabilities: np.ndarray
    members: dict[str, np.ndarray]
    decided: np.ndarray | None = None
    blend: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    usual: int | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def decide(self, rule: Rule, persons: np.ndarray | None = None) -> Predictions:
        """The same photos, with the classes that a rule chooses.

        A rule that was fitted on a run calibrates each member, a rule fitted on an ensemble the blend. `persons` (N,)
        are the persons of the photos, for a rule that averages over persons.
        """
        if self.decided is not None:
            raise UsageError("These predictions are decided already; take those of predict.")
        if rule.heads != self.heads:
            raise UsageError("The rule is fitted on a run with other heads than these predictions have.")
        if persons is not None and (not rule.shared or len(persons) != len(self)):
            raise UsageError(
                f"Found {len(persons)} persons for {len(self)} photos and a rule that averages over "
                f"{', '.join(rule.shared) or 'none'}; expected one per photo, and a rule of fit_run(same_person=True)."
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
        """(N, heads) class numbers: the most probable of each head, or those that `decide` chose.

        Of a distribution over a number it is the one of `predict_numbers`.
        """
        chosen = self.heads.argmax(self.probabilities) if self.decided is None else self.decided
        return answer_numbers(self.heads, self.probabilities, chosen)

    @property
    def joint(self) -> np.ndarray:
        """(N,) joint class."""
        return np.asarray(self.heads.joint(self.y))

    @property
    def frame(self) -> pd.DataFrame:
        """One row per photo: path, joint class, class per head, probability per class, overall and of each member.

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

    def to_submission(self, info: str | Path, out: str | Path, kept: Sequence[str] = ()) -> Path:
        """Write a CSV of photos filled in, except for the columns `kept`: the same rows, in the same order.

        The contest's info.csv (ImageID, ans) gets joint classes, others what their columns name: see `read_form`.
        Photos that could not be predicted get the classes `usual`.
        """
        from fastmask.inference.submission import read_form

        form = read_form(info, self.heads, [*self.names, *self.failed], kept)
        if self.usual is None or not self.failed:
            return form.fill(self.heads, self.names, self.y, self.probabilities, out)
        usual = self.heads.unjoint(np.full(len(self.failed), self.usual))
        certain = [usual[:, [i]] == np.arange(size) for i, size in enumerate(self.heads.sizes)]
        y, probabilities = np.vstack([self.y, usual]), np.vstack([self.probabilities, np.hstack(certain)])
        return form.fill(self.heads, [*self.names, *self.failed], y, probabilities, out)


def predict(
    run: RunDirectory | str | Path,
    images: Images,
    options: PredictOptions | int | None = None,
    *,
    progress: Progress | None = None,
    load: Load | None = None,
    **given: Any,
) -> Predictions:
    """Predict photos by the mean of the fold models, or for an ensemble by the blend of its runs.

    Photos are prepared by the run's own validation transform, after they are enlarged if they are smaller than its
    crop, and averaged over the run's own views. Only their probabilities are kept in memory.

    Args:
        images: a photo or several: paths, folders, PIL images, uint8 arrays (height, width, 3) of RGB, bytes of files.
        options: see `PredictOptions`; they may also be `given` by name, such as `tta=2`. A number is `tta`.
        progress: is called with the number of batches done and the number in all.
        load: loads a checkpoint, by default `load_network`; a function that caches networks makes the next call faster.
            Their batch norms are folded, see `fastmask.model.folding`.

    Raises UsageError for what is not a photo, DataError if no photo can be predicted, or, with `on_bad_photo="error"`,
    if one cannot.

    Example:
        >>> predictions = fm.predict(run, photos, tta=2)
        >>> predictions.probabilities.shape, list(predictions.members)
        ((3, 8), ['fold0', 'fold1'])
        >>> names = predictions.frame["gender"].tolist()
    """
    run, options = RunDirectory.of(run), PredictOptions.of(options, given)
    blend = Blend.of(run) if run.is_ensemble else None
    runs = {"": run} if blend is None else open_members(run, blend)
    _check_runs(run, runs, options)
    versions = PhotoVersions.find(find_photos(images, options.root), options.images_also)
    many = len(versions.rows.names) >= _MANY and pick_device(options.device).type == "cpu"
    with free_threads(options.threads) if many or options.threads is not None else nullcontext():
        return _predict(run, runs, blend, versions, options, progress, load)


def _predict(
    run: RunDirectory,
    runs: Mapping[str, RunDirectory],
    blend: Blend | None,
    versions: PhotoVersions,
    options: PredictOptions,
    progress: Progress | None,
    load: Load | None,
) -> Predictions:
    """Survey the photos and predict them, again if a file has changed in the meantime."""
    for _ in range(_ATTEMPTS):
        each = _survey(runs, versions, options)
        failed = _failures(each.values(), options)
        part, photos = versions.without(failed), [one.without(failed) for one in each.values()]
        try:
            found = _predict_runs(run, runs, blend, photos, part, options, progress, load)
        except UnreadableError as error:
            # a file that was changed after it was read: which, the next survey finds out
            changed = error
            continue
        notes = dict.fromkeys([*(one.note for one in each.values() if one.note), *part.notes])
        reasons = {versions.rows.names[row]: reason_of(failed[row]) for row in part.unanswered}
        return replace(found, failed=reasons, usual=_usual_class(run) if reasons else None, notes=list(notes))
    raise changed


def count_seen(run: RunDirectory, photos: Sequence[Path], options: PredictOptions) -> int:
    """How many of the photos the networks were trained on, by their content.

    Checkpoints of earlier versions do not say what they were trained on, and count none.
    """
    runs = open_members(run, Blend.of(run)).values() if run.is_ensemble else [run]
    used = [checkpoints_of(each, options.members, options) for each in runs]
    lineages = [read_lineage(file) for files in used for each in files.values() for file in each]
    seen = Hashes().union(*(lineage.seen for lineage in lineages if lineage is not None))
    digests = digest_photos(photos) if seen else []
    return sum(bool(seen & hash_names(photos=[digest])) for digest in digests)


def _check_runs(run: RunDirectory, runs: Mapping[str, RunDirectory], options: PredictOptions) -> None:
    """Raise UsageError or DataError for options that an ensemble does not have, and for missing checkpoints."""
    if run.is_ensemble and options.members:
        raise UsageError(
            f"{run.path} is an ensemble and predicts with all its runs; make another of the runs that you want."
        )
    for one in runs.values():
        # otherwise a checkpoint missing in the last run would waste the predictions before it
        checkpoints_of(one, options.members, options)
    if run.is_ensemble and options.boxes is not None and not any(one.config.boxes for one in runs.values()):
        raise UsageError(f"--boxes needs a run that was trained with boxes, and none of {run.path} was.")


def _survey(runs: Mapping[str, RunDirectory], versions: PhotoVersions, options: PredictOptions) -> dict[str, Photos]:
    """The photos and their versions for each run, each read once."""
    trains = any(training is not None for training, _ in options.walks)
    framed = {name: bool(run.config.boxes) or len(runs) == 1 for name, run in runs.items()}
    return {
        name: Photos.survey(
            run, versions.rows, options.boxes if framed[name] else None, trains, versions.photo_of, KEPT // len(runs)
        )
        for name, run in runs.items()
    }


def _failures(each: Iterable[Photos], options: PredictOptions) -> dict[int, DataError]:
    """The errors of photos by their row; raises DataError if they are all, or if there may be none."""
    photos = list(each)
    failed = dict(sorted({row: error for one in reversed(photos) for row, error in one.errors.items()}.items()))
    if not failed or (options.on_bad_photo == "skip" and len(failed) < len(photos[0])):
        return failed
    first, count = next(iter(failed.values())), len(failed)
    more = f", and {count - 1} more of {len(photos[0])} photos cannot be predicted" if count > 1 else ""
    skip = "leave it out" if count == 1 else "leave them out"
    raise type(first)(f"{reason_of(first)}{more}; {skip}, or predict the others with --on-bad-photo skip.")


def _usual_class(run: RunDirectory) -> int | None:
    """The joint class that the run's labels have most often; None where no photo has the labels of all heads."""
    joint, counts = np.unique(run.heads.joint(run.y), return_counts=True)
    known = joint >= 0
    return int(joint[known][counts[known].argmax()]) if known.any() else None


def _predict_runs(
    run: RunDirectory,
    runs: Mapping[str, RunDirectory],
    blend: Blend | None,
    photos: Sequence[Photos],
    versions: PhotoVersions,
    options: PredictOptions,
    progress: Progress | None,
    load: Load | None,
) -> Predictions:
    """The mean over the folds of a run, or the blend of the predictions of several."""
    shown = progress or (lambda done, count: None)
    each = {
        name: _predict_run(one, own, versions, options, partial(_part, shown, number, len(runs)), load)
        for number, ((name, one), own) in enumerate(zip(runs.items(), photos, strict=True))
    }
    if blend is None:
        return each[""]
    members = {name: widen(run.heads, one.heads, one.probabilities) for name, one in each.items()}
    mixed = blend.mix(list(members.values())).astype(np.float32)
    return Predictions(versions.names, run.heads, mixed, members, blend=blend.how)


def _part(progress: Progress, number: int, parts: int, done: int, count: int) -> None:
    """Report the progress of one of several parts with the same number of batches."""
    progress(number * count + done, parts * count)


def _predict_run(
    run: RunDirectory,
    photos: Photos,
    versions: PhotoVersions,
    options: PredictOptions,
    progress: Progress,
    load: Load | None,
) -> Predictions:
    """The mean over folds, for each fold over its checkpoints, all views and all versions of a photo."""
    device = pick_device(options.device)
    networks = load_members(run, options.members, options, device, photos.size, load)
    for network in (one for several in networks.values() for one in several):
        fold_batch_norms(network, photos.size)
    each = predict_networks(run, photos, networks, options, device, progress)
    members = {member: versions.mean(one).astype(np.float32) for member, one in each.items()}
    return Predictions(versions.names, run.heads, np.mean(list(members.values()), axis=0), members)


def predict_networks(
    run: RunDirectory,
    photos: Photos,
    networks: Mapping[str, Sequence[MultiHeadNet]],
    options: PredictOptions,
    device: torch.device,
    progress: Progress = lambda done, count: None,
) -> dict[str, np.ndarray]:
    """(N, classes of all heads) probabilities of each member of a run: the mean over its `networks` and all views.

    The views are those of the run, unless the options name others.
    """
    options = options.of_run(run.config)
    auto, asked = options.precision == "auto", options.precision
    if auto:
        asked = "fp32" if device.type == "cpu" else run.config.precision
    precision = resolve_precision(asked, device)
    first = next(iter(networks.values()))[0]
    computing = autocast(device, usable_precision(first, photos.size, device, precision, auto, trains=False))
    walks = options.walks
    sums = {member: np.zeros((len(photos), run.heads.n_logits)) for member in networks}
    loss, count = FocalLoss(run.heads), len(walks) * -(-len(photos) // options.bs)
    loader = partial(photos.loader, bs=options.bs, seed=run.config.seed, num_workers=options.workers, device=device)
    # features of a few photos stay in a CPU's cache
    at_once = _AT_ONCE if device.type == "cpu" else options.bs
    for done, (rows, x, views) in enumerate(_batches(walks, loader), 1):
        with computing:
            parts = [_sum_views(networks, part, views, loss) for part in x.split(at_once)]
        for member in networks:
            total = np.concatenate([part[member] for part in parts])
            damaged = np.flatnonzero(~np.isfinite(total).all(axis=1))
            if len(damaged):
                raise DataError(
                    f"{run.path / member} predicts NaN or inf for {photos.names[rows.start + damaged[0]]}: its weights "
                    f"are damaged, or too large for {options.precision}; restore the fold, or use another --precision."
                )
            sums[member][rows] += total
        progress(done, count)
    return {member: (total / options.n_views).astype(np.float32) for member, total in sums.items()}


def _batches(walks: Sequence[Walk], load: Callable[..., PhotoDL]) -> Iterator[tuple[slice, Tensor, Sequence[View]]]:
    """The batches of all walks: the rows of the photos, the photos, and the views to take of them."""
    for training, views in walks:
        start = 0
        for (x,) in load(training=training is not None, passes=Passes(training or 0)):
            yield slice(start, start + len(x)), x.as_subclass(Tensor), views
            start += len(x)


@torch.inference_mode()
def _sum_views(
    networks: Mapping[str, Sequence[MultiHeadNet]], x: Tensor, views: Sequence[View], loss: FocalLoss
) -> dict[str, np.ndarray]:
    """(B, classes of all heads) of each member: the sum over views of the mean over checkpoints of probabilities."""
    sums: dict[str, Any] = dict.fromkeys(networks, 0)
    for photos in (view(x) for view in views):
        # what the frozen bodies of probes see, each once for all networks that share it
        seen: dict[StageFeatures, Tensor] = {}
        for member, nets in networks.items():
            for network in nets:
                sums[member] += loss.activation(_logits(network, photos, seen))
    return {member: (total / len(networks[member])).double().cpu().numpy() for member, total in sums.items()}


def _logits(network: MultiHeadNet, photos: Tensor, seen: dict[StageFeatures, Tensor]) -> Tensor:
    """The logits of a network; what its probe's body sees is taken from `seen`, or added to it."""
    if network.probe is None:
        return cast(Tensor, network(photos))
    body = network.probe.features
    if body not in seen:
        seen[body] = body(photos)
    return cast(Tensor, network(photos, seen[body]))
