"""Parity: an exported file compared with PyTorch: probabilities, speed, and the effect of half precision."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmask.data.photo_dl import channels_first
from fastmask.data.transforms import NormalizeBatch
from fastmask.export import predict_onnx as script
from fastmask.export.result import Rates, Rounded
from fastmask.export.selection import CPU, Selection, spread
from fastmask.inference.networks import load_members
from fastmask.inference.predictions import predict
from fastmask.model.losses import FocalLoss
from fastmask.model.views import make_views
from fastmask.run.directory import RunDirectory
from fastmask.run.source import photos_of
from fastmask.scoring import score_heads, scored_classes
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, UsageError, one_line

if TYPE_CHECKING:
    from fastmask.export.graph import Networks

# timed turns of ONNX Runtime and PyTorch on one batch: minimum, maximum, seconds, and the number of warm-up turns
_TURNS, _MOST_TURNS, _SECONDS, _WARM = 3, 30, 3.0, 1
# a difference in probability that rounding to 16 bits does not make
_WILD = 0.5


def measure_difference(session: Any, selection: Selection, paths: Sequence[Path]) -> float:
    """The largest difference in probability from PyTorch; raises FastmaskError if it exceeds the tolerance.

    The script of the file and PyTorch's `predict` both start from the photos' files.
    """
    allowed = selection.options.allowed
    with warnings.catch_warnings():
        # already shown when the networks were loaded
        warnings.simplefilter("ignore", FastmaskWarning)
        want = _predict_by_torch(selection.run, paths, selection, selection.options.members)
    gaps = np.abs(predict_by_script(session, paths, selection.options.bs) - want)
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    row, column = divmod(int(gaps.argmax()), gaps.shape[1])
    if not gaps.max() <= allowed:
        half = " ONNX Runtime computes fp16 wrongly here, or the networks overflow in it; take --precision fp32."
        wild = selection.options.half and gaps.max() > _WILD
        raise FastmaskError(
            f"The file's probability of {selection.run.heads.columns[column]} for {paths[row]} differs by "
            f"{gaps.max():.2g} from PyTorch's, more than {allowed:.2g}; nothing is written.{half if wild else ''}"
        )
    return float(gaps.max())


def predict_by_script(session: Any, paths: Sequence[Path], bs: int) -> np.ndarray:
    """(N, classes of all heads): a file's probabilities of photos, from its own script."""
    try:
        return np.concatenate(list(script.predict(session, script.read_meta(session), paths, bs)))
    except script.WrongError as error:
        raise FastmaskError(f"predict_onnx.py: {error}") from error


def _predict_by_torch(
    run: RunDirectory, paths: Sequence[Path], selection: Selection, members: Sequence[str] | None, refit: bool = True
) -> np.ndarray:
    """(N, classes of all heads): the probabilities of `predict` in float32."""
    options = selection.options
    refit = refit and options.refit
    how: dict[str, Any] = {"device": "cpu", "precision": "fp32", "on_bad_photo": "error"}
    return predict(run, paths, members=members, soup=options.soup, refit=refit, bs=options.bs, **how).probabilities


def time_both(session: Any, networks: Mapping[str, Networks], paths: Sequence[Path], bs: int) -> Rates:
    """Median photos per second from a decoded batch to probabilities, of ONNX Runtime and PyTorch in turns."""
    meta = script.read_meta(session)
    kept = [script.prepare_photo(script.read_photo(path), meta, path) for path in paths[:bs]]
    batch = np.stack([kept[i % len(kept)] for i in range(bs)])
    ways: tuple[Callable[[], object], ...] = (
        partial(script.run_model, session, meta, batch),
        partial(_forward, networks, batch),
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
def _forward(networks: Mapping[str, Networks], batch: np.ndarray) -> None:
    for one in networks.values():
        x = NormalizeBatch(*one.stats).encodes(channels_first(batch)).as_subclass(torch.Tensor)
        loss, views = FocalLoss(one.heads), make_views(one.views)
        for network, _ in one.weighted:
            for view in views:
                loss.activation(network(view(x)))


def measure_rounding(
    selection: Selection, networks: Mapping[str, Networks], say: Callable[[str], None]
) -> Rounded | None:
    """Macro-F1 of the run's OOF photos in float32 and in float16, each photo by its own fold's checkpoints.

    None, with a warning, if the run's photos are missing.
    """
    run, options = selection.run, selection.options
    try:
        root = photos_of(run, options.data).root
    except (UsageError, DataError) as error:
        warnings.warn(
            f"The effect of fp16 on the OOF macro-F1 is unknown: it needs the run's photos ({one_line(error)}).",
            FastmaskWarning,
            stacklevel=3,
        )
        return None
    fold_of = run.oof["fold"].to_numpy()
    usable = np.arange(len(fold_of)) if options.fold is None else np.flatnonzero(fold_of == options.fold)
    rows = np.array(spread(usable.tolist(), options.oof_photos))
    say(f"Predicting {len(rows)} OOF photos in fp32 and fp16, each by its own fold's networks")
    paths = run.oof["path"].to_numpy(dtype=object)[rows]
    each = [_predict_by_fold(selection, one, networks[name], paths, root) for name, one in selection.runs.items()]
    predicted = [run.heads.argmax(selection.blended(found)) for found in zip(*each, strict=True)]
    classes = scored_classes(run.heads, predicted, run.true[rows], run.y)
    full, half = (score_heads(run.heads, y, run.true[rows], None, 0, classes).joint.macro_f1 for y in predicted)
    differ = int((run.heads.joint(predicted[0]) != run.heads.joint(predicted[1])).sum())
    folds = tuple(sorted(set(fold_of[rows].tolist())))
    return Rounded(full, half, half - full, len(rows), len(usable), folds, differ)


def _predict_by_fold(
    selection: Selection, run: RunDirectory, networks: Networks, paths: np.ndarray, root: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(N, classes of all heads) probabilities of photos by the folds that validated them, in PyTorch and in float16."""
    from fastmask.export.graph import build

    folds = run.oof.set_index("path")["fold"].loc[list(paths)].to_numpy()
    full, half = (np.empty((len(paths), run.heads.n_logits), np.float32) for _ in range(2))
    metadata = selection.described(run.heads, networks.size)
    # without refitted networks, which were trained on all photos
    options = selection.options.model_copy(update={"refit": False})
    for fold in sorted(set(folds.tolist())):
        here, members = folds == fold, [f"fold{fold}"]
        files = [root / path for path in paths[here]]
        own = replace(networks, members=load_members(run, members, options, CPU, networks.size))
        model = build(run.heads, {members[0]: own}, half=True, metadata=metadata).SerializeToString()
        half[here] = predict_by_script(script.open_model(model, torch.get_num_threads()), files, options.bs)
        full[here] = _predict_by_torch(run, files, selection, members, refit=False)
    return full, half
