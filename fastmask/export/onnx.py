"""Export: the networks of a run as one ONNX file, checked against PyTorch before it is written."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmask.data.augment import check_fit
from fastmask.data.loaders import batch_stats
from fastmask.data.photo import check_photos
from fastmask.data.photo_dl import channels_first
from fastmask.data.transforms import NormalizeBatch
from fastmask.export import predict_onnx as script
from fastmask.export.result import (
    SCRIPT,
    TOLERANCES,
    Exported,
    Rates,
    Rounded,
    check_asked,
    script_text,
)
from fastmask.export.steps import Step, steps_of
from fastmask.heads import Heads
from fastmask.inference.blend import Blend, widen
from fastmask.inference.members import learned, open_members
from fastmask.inference.networks import checkpoints_of, load_members
from fastmask.inference.predictions import MOST, augments_of, find_photos, predict
from fastmask.model.losses import FocalLoss
from fastmask.run.directory import RunDirectory
from fastmask.run.source import photos_of
from fastmask.scoring import score_heads
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, UsageError, one_line
from fastmask.system.files import real, replacing, write_text
from fastmask.system.memory import keep_memory
from fastmask.system.text import in_bytes

if TYPE_CHECKING:
    from fastmask.export.graph import Networks

Say = Callable[[str], None]
# a file of protobuf holds less than 2 GiB; what is no weight takes some of it
_MOST_BYTES = 2**31 - 2**24
# turns of ONNX Runtime and PyTorch on one batch: at least, at most, seconds, and how many at first do not count
_TURNS, _MOST_TURNS, _SECONDS, _WARM = 3, 30, 3.0, 1
_CPU = torch.device("cpu")


def export_onnx(
    run: RunDirectory | str | Path,
    out: str | Path | None = None,
    *,
    fold: int | None = None,
    precision: str = "fp32",
    soup: bool = False,
    refit: bool = True,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | None = None,
    photos: int = 200,
    oof_photos: int | None = None,
    bs: int = 16,
    tolerance: float | None = None,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> Exported:
    """Write the networks that a run predicts with as one ONNX file, and a script that predicts by it without torch.

    Args:
        out: the file, called .onnx, or a folder; by default RUN-onnx beside the run. The script lies beside the file.
        fold: only this fold's networks; by default all that `predict` averages, of an ensemble its runs' blend.
        precision: "fp32", or "fp16": weights and sums in half precision, half the size.
        soup, refit: as in `predict`.
        images: a folder or a list of photos to check the file on; by default the run's own.
        data: where the run's photos lie now, if not where it was trained.
        photos: on how many the file is checked, evenly dealt over those that there are.
        oof_photos: of fp16, how many OOF photos answer what it changes; by default all.
        bs: photos a batch of the check and of what is timed.
        tolerance: how far the file's probabilities may be from PyTorch's; by default 1e-4, of fp16 2e-2.

    The file takes (batch, height, width, 3) uint8 RGB photos that are cropped and scaled as its metadata says, and has
    an output a head: (batch, classes) float32 probabilities. Nothing is written where they differ by more than the
    tolerance (FastmaskError). Raises UsageError for what cannot be exported: a run with boxes, a validation pipeline
    that the script cannot do, runs of an ensemble that crop differently, more than 2 GB.
    """
    run = RunDirectory.of(run)
    model = check_asked(run.path, None if out is None else Path(out), fold, precision, overwrite=overwrite)
    for option, value in (("--photos", photos), ("--bs", bs), ("--oof-photos", oof_photos)):
        if value is not None and not 1 <= value <= MOST:
            raise UsageError(f"{option} is {value}; expected 1 to {MOST}.")
    if oof_photos is not None and precision == "fp32":
        raise UsageError("--oof-photos does nothing in fp32: what fp16 changes is told by them; leave it out.")
    chosen = _choose(run, fold, soup, refit)
    paths = _spread(_photos(run, images, data), photos)
    size = chosen.size(paths)
    keep_memory()
    networks = chosen.load(size)
    say(f"Tracing {', '.join(sorted({one.config.arch for one in chosen.runs.values()}))} in {precision}")
    from fastmask.export.graph import build

    built = build(
        run.heads,
        networks,
        chosen.blend,
        half=precision == "fp16",
        metadata=chosen.metadata(size, networks, precision),
    ).SerializeToString()
    session = script.open_model(built, torch.get_num_threads())
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    say(f"Checking it on {len(paths)} photos")
    difference = _difference(session, chosen, paths, bs, allowed)
    say("Timing it")
    rates = time_both(session, networks, script.read_meta(session), paths, bs)
    rounded = _rounded(chosen, networks, data, oof_photos, bs, images is not None, say) if precision == "fp16" else None
    with replacing(model) as beside:
        beside.write_bytes(built)
    write_text(model.with_name(SCRIPT), script_text())
    count = sum(1 for one in networks.values() for _ in one.weighted)
    return Exported(
        model=model,
        script=model.with_name(SCRIPT),
        precision=precision,
        nbytes=len(built),
        networks=count,
        heads=run.heads.names,
        size=size,
        photos=len(paths),
        difference=difference,
        tolerance=allowed,
        rates=rates,
        rounded=rounded,
    )


@dataclass(frozen=True)
class _Chosen:
    """What of a run is exported: the runs by name (one, or those of an ensemble) and which networks of them."""

    run: RunDirectory
    runs: Mapping[str, RunDirectory]
    blend: Blend | None
    members: Sequence[str] | None
    soup: bool
    refit: bool
    steps: Sequence[Step]

    def size(self, paths: Sequence[Path]) -> tuple[int, int]:
        """The (height, width) that photos have after the validation pipeline of every run."""
        sizes = check_photos(paths)
        pipelines = {f"the validation pipeline of {name}": augments_of(one)[1] for name, one in self.runs.items()}
        return check_fit({name: (augment, sizes) for name, augment in pipelines.items()}, paths)

    def load(self, size: tuple[int, int]) -> dict[str, Networks]:
        """The networks of each run."""
        from fastmask.export.graph import Networks

        return {
            name: Networks(
                one.heads,
                batch_stats(augments_of(one)),
                size,
                load_members(one, self.members, _CPU, size, self.soup, self.refit),
            )
            for name, one in self.runs.items()
        }

    def metadata(self, size: tuple[int, int], networks: Mapping[str, Networks], precision: str) -> dict[str, str]:
        """What the file says of itself, each a text; what is more than a word is JSON."""
        more = {
            "stats": {name: one.stats for name, one in networks.items()},
            "members": {name: list(one.members) for name, one in networks.items()},
        }
        return {
            **_described(self.run.heads, self.steps, size),
            "fastmask_version": version("fastmask"),
            "run": real(self.run.path).name,
            "identity": self.run.identity,
            "precision": precision,
            **{name: json.dumps(value) for name, value in more.items()},
        }


def _described(heads: Heads, steps: Sequence[Step], size: tuple[int, int]) -> dict[str, str]:
    """What the script must know of a file."""
    plain = {
        "heads": [{"name": head.name, "classes": list(head.classes)} for head in heads],
        "joint": list(heads.classified),
        "steps": list(steps),
        "size": list(size),
    }
    return {"fastmask_format": script.FORMAT, **{name: json.dumps(value) for name, value in plain.items()}}


def _choose(run: RunDirectory, fold: int | None, soup: bool, refit: bool) -> _Chosen:
    """What is to be exported; raises UsageError where it cannot be, before anything is loaded."""
    if run.is_ensemble and fold is not None:
        raise UsageError(f"{run.path} is an ensemble and has no folds of its own; export one of its runs with --fold.")
    blend = Blend.of(run) if run.is_ensemble else None
    runs = {real(run.path).name: run} if blend is None else open_members(run, blend)
    members = None if fold is None else [f"fold{fold}"]
    needed = 0
    steps: dict[str, list[Step]] = {}
    for name, one in runs.items():
        if one.config.boxes:
            raise UsageError(
                f"{one.path} was trained on faces (--boxes): the file would need a photo's face to be found first, "
                "which it cannot; export a run of whole photos, or predict with fastmask predict --boxes."
            )
        sizes = [
            [file.stat().st_size for file in files] for files in checkpoints_of(one, members, soup, refit).values()
        ]
        needed += sum(max(each) if soup else sum(each) for each in sizes)
        steps[name] = steps_of(augments_of(one)[1])
    first, *others = steps.values()
    if any(other != first for other in others):
        raise UsageError(
            f"The runs of {run.path} crop or scale photos differently, and one file takes one kind of photos; export "
            "each of them."
        )
    if needed > _MOST_BYTES:
        raise UsageError(
            f"The networks of {run.path} take {in_bytes(needed)}, and an ONNX file holds at most 2 GB; export each "
            "fold with --fold, or fewer networks with --soup."
        )
    return _Chosen(run, runs, blend, members, soup, refit, first)


def _photos(run: RunDirectory, images: str | Path | Sequence[str | Path] | None, data: str | None) -> list[Path]:
    """The photos to check on: those of `images`, or the run's own."""
    if images is not None:
        return find_photos(images)[1]
    try:
        root = _root(run, data)
    except (UsageError, DataError) as error:
        raise UsageError(
            f"There are no photos to check the file on ({one_line(error)}); name some by --images DIR."
        ) from error
    return find_photos([root / path for path in run.folds["path"]])[1]


def _root(run: RunDirectory, data: str | None) -> Path:
    """The folder that the paths of a run's own photos start from."""
    return photos_of(run, data).root


def _spread(photos: Sequence[Any], most: int | None) -> list[Any]:
    """At most so many of a list, evenly dealt over it."""
    if most is None or len(photos) <= most:
        return list(photos)
    return [photos[i] for i in np.linspace(0, len(photos) - 1, most).round().astype(int)]


def _difference(session: Any, chosen: _Chosen, paths: Sequence[Path], bs: int, allowed: float) -> float:
    """The greatest difference in probability to PyTorch; raises FastmaskError where it is more than is allowed.

    The file is asked by the script that goes with it, from the photo's bytes on, PyTorch by `predict`.
    """
    with warnings.catch_warnings():
        # said when they were loaded
        warnings.simplefilter("ignore", FastmaskWarning)
        options: dict[str, Any] = {"members": chosen.members, "soup": chosen.soup, "refit": chosen.refit}
        want = predict(chosen.run, paths, bs=bs, device="cpu", precision="fp32", **options).probabilities
    gaps = np.abs(asked(session, paths, bs) - want)
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    row, column = divmod(int(gaps.argmax()), gaps.shape[1])
    if not gaps.max() <= allowed:
        raise FastmaskError(
            f"The file answers {paths[row]} with a probability of {chosen.run.heads.columns[column]} that is "
            f"{gaps.max():.2g} from PyTorch's, more than {allowed:.2g}; nothing is written."
        )
    return float(gaps.max())


def asked(session: Any, paths: Sequence[Path], bs: int) -> np.ndarray:
    """(N, classes of all heads) the probabilities that a file gives photos, by its own script."""
    try:
        return np.concatenate(list(script.predict(session, script.read_meta(session), paths, bs)))
    except script.WrongError as error:
        raise FastmaskError(f"predict_onnx.py: {error}") from error


def time_both(
    session: Any, networks: Mapping[str, Networks], meta: dict[str, Any], paths: Sequence[Path], bs: int
) -> Rates:
    """Photos a second from a decoded batch to probabilities, ONNX Runtime and PyTorch in turns, by their medians."""
    kept = [script.checked(script.read_photo(path), meta, path) for path in paths[:bs]]
    batch = np.stack([kept[i % len(kept)] for i in range(bs)])
    ways: tuple[Callable[[], object], ...] = (
        partial(script.answers, session, meta, batch),
        partial(_by_torch, networks, batch),
    )
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < _WARM + _TURNS or (
        time.perf_counter() - start < _SECONDS and len(times[0]) < _WARM + _MOST_TURNS
    ):
        for way, seconds in zip(ways, times, strict=True):
            before = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - before)
    onnx, plain = (bs / statistics.median(seconds[_WARM:]) for seconds in times)
    return Rates(onnx, plain, bs, torch.get_num_threads())


@torch.inference_mode()
def _by_torch(networks: Mapping[str, Networks], batch: np.ndarray) -> None:
    for one in networks.values():
        x = NormalizeBatch(*one.stats).encodes(channels_first(batch)).as_subclass(torch.Tensor)
        loss = FocalLoss(one.heads)
        for network, _ in one.weighted:
            loss.activation(network(x))


def _rounded(
    chosen: _Chosen,
    networks: Mapping[str, Networks],
    data: str | None,
    most: int | None,
    bs: int,
    optional: bool,
    say: Say,
) -> Rounded | None:
    """What fp16 changes, by the run's own photos; None, with a warning, where they are gone and others are checked."""
    try:
        root = _root(chosen.run, data)
    except (UsageError, DataError) as error:
        why = f"What fp16 changes of the OOF macro-F1 is not known: the run's photos are needed ({one_line(error)})"
        if not optional:
            raise UsageError(f"{why}.") from error
        warnings.warn(f"{why}.", FastmaskWarning, stacklevel=3)
        return None
    return round_off(chosen, networks, root, most, bs, say)


def round_off(
    chosen: _Chosen, networks: Mapping[str, Networks], root: Path, most: int | None, bs: int, say: Say = lambda _: None
) -> Rounded:
    """Macro-F1 of the OOF photos under `root` in float32 and in float16, each photo by its own fold's checkpoints."""
    run = chosen.run
    own = run.oof["fold"].to_numpy()
    there = (
        np.arange(len(own)) if chosen.members is None else np.flatnonzero([f"fold{f}" in chosen.members for f in own])
    )
    rows = np.array(_spread(there.tolist(), most))
    say(f"Predicting {len(rows)} OOF photos in fp32 and fp16, each by its own fold's networks")
    paths = run.oof["path"].to_numpy(dtype=object)[rows]
    each = [
        _of_folds(one, networks[name], paths, root, chosen.soup, bs, chosen.steps) for name, one in chosen.runs.items()
    ]
    codes = [run.heads.argmax(_mixed(chosen, answers)) for answers in zip(*each, strict=True)]
    scores = [score_heads(run.heads, one, run.true[rows], None, 0, run.y).joint.macro_f1 for one in codes]
    differ = int((run.heads.joint(codes[0]) != run.heads.joint(codes[1])).sum())
    full, half = scores
    return Rounded(len(rows), tuple(sorted(set(own[rows].tolist()))), full, half, differ, len(there))


def _mixed(chosen: _Chosen, each: Sequence[np.ndarray]) -> np.ndarray:
    """The answers of each run -> (N, classes of all heads) those of what is exported."""
    if chosen.blend is None:
        return each[0]
    heads = chosen.run.heads
    there = [[name for name in learned(one) if name in heads.names] for one in chosen.runs.values()]
    runs = zip(chosen.runs.values(), each, there, strict=True)
    return chosen.blend.mix([widen(heads, one.heads, answers, names) for one, answers, names in runs])


def _of_folds(
    run: RunDirectory, networks: Networks, paths: np.ndarray, root: Path, soup: bool, bs: int, steps: Sequence[Step]
) -> tuple[np.ndarray, np.ndarray]:
    """(N, classes of all heads) what the folds that have not seen them say of photos: by PyTorch, and in float16."""
    from fastmask.export.graph import build

    folds = run.oof.set_index("path")["fold"].loc[list(paths)].to_numpy()
    full, half = (np.empty((len(paths), run.heads.n_logits), np.float32) for _ in range(2))
    metadata = _described(run.heads, steps, networks.size)
    for fold in sorted(set(folds.tolist())):
        here, member = folds == fold, f"fold{fold}"
        files = [root / path for path in paths[here]]
        # never those of a refit, which have seen all photos
        options: dict[str, Any] = {"members": [member], "soup": soup, "refit": False}
        own = networks.of(load_members(run, device=_CPU, size=networks.size, **options))
        model = build(run.heads, {member: own}, half=True, metadata=metadata).SerializeToString()
        half[here] = asked(script.open_model(model, torch.get_num_threads()), files, bs)
        full[here] = predict(run, files, bs=bs, device="cpu", precision="fp32", **options).probabilities
    return full, half
