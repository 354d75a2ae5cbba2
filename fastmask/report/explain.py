"""Explain: where a network looks for an answer, by Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import TensorImage
from torch import Tensor, nn

from fastmask.data.augment import augmentations, check_fit
from fastmask.data.loaders import batch_stats, photo_loader, pick_device
from fastmask.data.photo import check_photos
from fastmask.data.transforms import NormalizeBatch
from fastmask.heads import JOINT, Heads
from fastmask.inference.networks import Load, load_members
from fastmask.inference.predictions import face_cut, find_photos
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet
from fastmask.report.material import chosen_epochs
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import FastmaskError, UsageError

_BATCH = 16
# of the photo in an overlay; the rest is the map
_PHOTO = 0.55


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the networks of a fold look on one photo for the class `label` of `head`.

    `image` is the photo as they see it, (height, width, 3) uint8, `heat` (height, width) float32 from 0 to 1, all 0
    where nothing speaks for the class. `probabilities` (classes of all heads) are their own: `probability` is that of
    `label`, `answer` the class of the greatest, `answer_probability`. That may be another class than is asked for, or
    than another epoch's network has answered out of fold. `by` says in words which networks they are.
    """

    name: str
    image: np.ndarray
    heat: np.ndarray
    head: str
    label: str
    probability: float
    probabilities: np.ndarray
    answer: str
    answer_probability: float
    by: str

    @property
    def overlay(self) -> np.ndarray:
        """(height, width, 3) uint8: the photo under the map, from blue (not at all) to red (most)."""
        import matplotlib

        colours = matplotlib.colormaps["jet"](self.heat)[..., :3] * 255
        return np.asarray(_PHOTO * self.image + (1 - _PHOTO) * colours).round().astype(np.uint8)


def explain(
    run: RunDirectory | str | Path,
    photos: str | Path | Sequence[str | Path],
    head: str = JOINT,
    label: str | Sequence[str] | None = None,
    *,
    fold: int | None = None,
    boxes: str | Path | None = None,
    root: str | Path | None = None,
    device: torch.device | str | None = None,
    refit: bool = False,
    load: Load | None = None,
) -> list[Explanation]:
    """Grad-CAM of each photo (a folder, a list, or one file) by the networks of one fold, the first by default.

    For the class `label` of `head`, or that of each photo, by default the one that they answer. Of the joint class it
    is what speaks for the classes of all its heads together. `boxes`, `root` and `load` are those of `predict`; `refit`
    explains the network that was trained on all photos at last, where there is one. Several checkpoints give the mean
    of their maps. Raises UsageError for a head or class that there is not, a fold that has not been trained, or a body
    without a map of features.
    """
    run = RunDirectory.of(run)
    run.check_trained()
    if head != JOINT:
        run.heads.position(head)
    one = isinstance(photos, str | Path) and Path(photos).is_file()
    names, paths = find_photos([photos] if one else photos, root)  # type: ignore[list-item]
    labels = [label] * len(paths) if label is None or isinstance(label, str) else list(label)
    if len(labels) != len(paths):
        raise UsageError(f"There are {len(labels)} classes to explain for {len(paths)} photos; expected one for each.")
    wanted = [None if name is None else _class_of(run.heads, head, name) for name in labels]
    fold = (run.trained_folds or [0])[0] if fold is None else fold
    member = f"fold{fold}"
    picked, augments = pick_device(device), augmentations(run.pipelines)
    faces = face_cut(run, boxes, dict(zip(map(str, paths), names, strict=True)))
    size = check_fit({"the validation pipeline": (augments[1], check_photos(paths, faces))}, paths)
    networks = load_members(run, [member], picked, size, refit=refit, load=load)[member]
    by = networks_of(run, fold, refit)
    stats, loss = batch_stats(augments), FocalLoss(run.heads)
    decoder = NormalizeBatch(*stats)
    found: list[Explanation] = []
    for (x,) in photo_loader(paths, augments, stats, faces=faces, bs=_BATCH, num_workers=0, device=picked):
        x = x.as_subclass(Tensor)
        with torch.no_grad():
            answers = torch.stack([loss.activation(network(x)) for network in networks]).mean(0)
        own = _columns(run.heads, head, answers)
        here = wanted[len(found) : len(found) + len(x)]
        columns = torch.stack(
            [o if w is None else _columns(run.heads, head, w[None])[0].to(o) for o, w in zip(own, here, strict=True)]
        )
        heat = torch.stack([grad_cam(network, x, columns) for network in networks]).mean(0)
        images = (decoder.decode(TensorImage(x)) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        chances, best = (answers.gather(1, c).prod(1).tolist() for c in (columns, own))
        for i, chance in enumerate(chances):
            text, said = (_name_of(run.heads, head, c[i].tolist()) for c in (columns, own))
            found.append(
                Explanation(
                    names[len(found)],
                    images[i],
                    heat[i].cpu().numpy(),
                    head,
                    text,
                    chance,
                    answers[i].cpu().numpy(),
                    said,
                    best[i],
                    by,
                )
            )
    return found


def networks_of(run: RunDirectory, fold: int, refit: bool = False) -> str:
    """In words, which networks of a fold explain: `fold 0, epoch 3`, folds from 0 as in the files, epochs from 1."""
    if refit and run.refitted:
        return f"fold {fold}, trained on all photos at last"
    epochs = [file.stem.removeprefix("epoch") for file in run.checkpoints(fold)]
    named = [str(int(epoch) + 1) if epoch.isdecimal() else epoch for epoch in epochs]
    return f"fold {fold}, epoch{'s' * (len(named) > 1)} {', '.join(named)}"


def scored_epochs(run: RunDirectory, fold: int) -> list[int]:
    """The epochs, from 1, whose answers to the photos of a fold are the out-of-fold ones; none where nobody knows."""
    with suppress(FastmaskError, OSError):
        return [epoch + 1 for epoch in chosen_epochs(run).get(fold, [])]
    return []


def answer_of(heads: Heads, head: str, probabilities: np.ndarray) -> tuple[str, float]:
    """(classes of all heads,) probabilities -> the answer to a head or the joint class, and its probability."""
    scores = torch.from_numpy(probabilities.copy())[None]
    columns = _columns(heads, head, scores)
    return _name_of(heads, head, columns[0].tolist()), float(scores.gather(1, columns).prod())


def grad_cam(network: MultiHeadNet, x: Tensor, columns: Tensor) -> Tensor:
    """(B, 3, H, W) photos, (B, n) columns of the logits -> (B, H, W) maps from 0 to 1 of what speaks for their sum.

    The features of the body's last map, each weighted by the mean of its gradient, where their sum is positive.
    """
    layer = _last_norm(network.body)
    with torch.enable_grad():
        features, logits = _at_the_end(network, x) if layer is None else _at(layer, network, x)
        (gradient,) = torch.autograd.grad(logits.gather(1, columns).sum(), features)
    features, gradient = (_as_map(network.body, t.detach().float(), x) for t in (features, gradient))
    heat = (features * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)


def _at_the_end(network: MultiHeadNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """The body's last features, and the logits that follow from them."""
    body: Any = network.body
    if not (hasattr(body, "forward_features") and hasattr(body, "forward_head")):
        raise _no_map(body)
    with torch.no_grad():
        features = body.forward_features(x)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise _no_map(body)
    features = features.detach().requires_grad_()
    pooled = body.forward_head(features)
    return features, torch.cat([head(pooled) for head in network.heads], dim=1)


def _at(layer: nn.Module, network: MultiHeadNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer in the body gives, and the logits that follow from it."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
        kept.append(features.detach().requires_grad_())
        return kept[-1]

    handle = layer.register_forward_hook(cut)
    try:
        logits = network(x)
    finally:
        handle.remove()
    return kept[-1], logits


def _no_map(body: nn.Module) -> UsageError:
    return UsageError(f"{type(body).__name__} has no map of features, so nobody can tell where it looks.")


def _last_norm(body: nn.Module) -> nn.Module | None:
    """What a transformer's last attention reads: after that its class token may go on alone, without the patches."""
    blocks: Any = getattr(body, "blocks", None)
    tokens = hasattr(body, "num_prefix_tokens") and isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks)
    norm = getattr(blocks[-1], "norm1", None) if tokens else None
    return norm if isinstance(norm, nn.Module) else None


def _as_map(body: nn.Module, features: Tensor, x: Tensor) -> Tensor:
    """Features as (B, channels, height, width), from tokens, or from maps with their channels last."""
    if features.ndim == 4:
        last = str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC") or (
            features.shape[-1] == getattr(body, "num_features", None) != features.shape[1]
        )
        return features.permute(0, 3, 1, 2) if last else features
    tokens = features[:, int(getattr(body, "num_prefix_tokens", 0)) :]
    rows, columns = _grid(tokens.shape[1], x.shape[-2], x.shape[-1])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)


def _grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of so many patches of a photo: the pair whose shape is nearest to the photo's."""
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(np.log(pair[0] * width / (pair[1] * height))))


def _class_of(heads: Heads, head: str, label: str) -> Tensor:
    """Something like probabilities, (classes of all heads), of which `label` of `head` is the greatest."""
    wanted = torch.zeros(heads.n_logits)
    if head == JOINT:
        names = heads.joint_names()
        if label not in names:
            raise UsageError(f"There is no joint class {label!r}; expected one of {', '.join(names)}.")
        codes = heads.unjoint(np.array([names.index(label)]))[0]
        places = [(i, int(codes[i])) for i in heads.joined]
    else:
        i = heads.position(head)
        if label not in heads[i].classes:
            raise UsageError(f"Head {head} has no class {label!r}; expected one of {', '.join(heads[i].classes)}.")
        places = [(i, heads[i].classes.index(label))]
    for i, code in places:
        wanted[heads.offsets[i] + code] = 1
    return wanted


def _columns(heads: Heads, head: str, scores: Tensor) -> Tensor:
    """(B, classes of all heads) -> (B, n) the columns of the greatest class of a head, or of each joined one."""
    places = heads.joined if head == JOINT else (heads.position(head),)
    parts = heads.split(scores)
    return torch.stack([parts[i].argmax(-1) + heads.offsets[i] for i in places], dim=1)


def _name_of(heads: Heads, head: str, columns: Sequence[int]) -> str:
    places = heads.joined if head == JOINT else (heads.position(head),)
    return " ".join(heads[i].classes[c - heads.offsets[i]] for i, c in zip(places, columns, strict=True))
