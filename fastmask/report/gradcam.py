"""Grad-CAM (Selvaraju et al. 2017): where a network looks for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import TensorImage
from torch import Tensor, nn

from fastmask.data.loaders import pick_device
from fastmask.data.transforms import NormalizeBatch
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.inference.networks import Load, load_members
from fastmask.inference.options import NetworkOptions
from fastmask.inference.photos import Photos
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet
from fastmask.model.pooling import is_channels_last
from fastmask.model.views import make_views
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError

_BATCH = 16
# the weight of the photo in an overlay; the rest is the map
_PHOTO = 0.55


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the networks of a fold look on one photo for the class `label` of `head`.

    `image` is the photo as they see it, (height, width, 3) uint8, `heat` (height, width) float32 from 0 to 1, all 0 if
    nothing supports the class. `probabilities` (classes of all heads) are those of the networks, `probability` is that
    of `label`, `prediction` the most probable class. It may differ from `label`, and from the out-of-fold prediction of
    another epoch. `by` says in words which networks these are.
    """

    name: str
    image: np.ndarray
    by: str
    heat: np.ndarray
    head: str
    label: str
    probability: float
    probabilities: np.ndarray
    prediction: str
    prediction_probability: float

    @property
    def overlay(self) -> np.ndarray:
        """(height, width, 3) uint8: the photo under the map, from blue (0) to red (1)."""
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
    """Grad-CAM of each photo (a folder, a list, or one file) by the networks of one fold, by default the first.

    For the class `label` of `head`, or one label per photo; by default the predicted class. For the joint class the map
    shows what supports the classes of all its heads together. `boxes`, `root` and `load` are those of `predict`;
    `refit` uses the network trained on all photos, if there is one. Several checkpoints give the mean of their maps.
    Raises UsageError for an unknown head or class, an untrained fold, or a body without a feature map.

    >>> [explanation] = fm.explain(run, photos[0], head="mask")
    >>> explanation.heat.shape, explanation.overlay.shape
    ((64, 32), (64, 32, 3))
    """
    run = RunDirectory.of(run)
    run.check_trained()
    if head != JOINT:
        run.heads.position(head)
    one = isinstance(photos, str | Path) and Path(photos).is_file()
    given = Photos.find(run, [str(photos)] if one else photos, boxes, root)
    labels = [label] * len(given) if label is None or isinstance(label, str) else list(label)
    if len(labels) != len(given):
        raise UsageError(f"There are {len(labels)} classes to explain for {len(given)} photos; expected one per photo.")
    columns = [None if label is None else _columns_of(run.heads, head, label) for label in labels]
    fold = (run.trained_folds or [0])[0] if fold is None else fold
    member, picked = f"fold{fold}", pick_device(device)
    networks = load_members(run, [member], NetworkOptions(refit=refit), picked, given.size, load)[member]
    by = networks_of(run, fold, refit)
    found: list[Explanation] = []
    for (x,) in given.loader(bs=_BATCH, num_workers=0, device=picked):
        images = NormalizeBatch(*given.stats).decode(TensorImage(x)) * 255
        images = images.round().byte().permute(0, 2, 3, 1).cpu().numpy()
        here = columns[len(found) : len(found) + len(x)]
        maps = _explain_batch(networks, x.as_subclass(Tensor), run, head, here)
        found += [
            Explanation(name, image, by, **fields)
            for name, image, fields in zip(given.names[len(found) :], images, maps, strict=False)
        ]
    return found


def _explain_batch(
    networks: Sequence[MultiHeadNet], x: Tensor, run: RunDirectory, head: str, columns: Sequence[list[int] | None]
) -> list[dict[str, Any]]:
    """The fields of Explanation that follow from the photos, for the columns of a class or the predicted ones.

    The probabilities are the mean over the run's views, the maps of the photos themselves.
    """
    heads, loss = run.heads, FocalLoss(run.heads)
    with torch.no_grad():
        each = [loss.activation(network(view(x))) for view in make_views(run.config.views) for network in networks]
    probabilities = torch.stack(each).mean(0).cpu().numpy()
    wanted = [_argmax(heads, head, row) if of is None else of for row, of in zip(probabilities, columns, strict=True)]
    at = torch.tensor(wanted, device=x.device)
    heat = torch.stack([grad_cam(network, x, at) for network in networks]).mean(0).cpu().numpy()
    maps = []
    for row, of, map_ in zip(probabilities, wanted, heat, strict=True):
        prediction, chance = class_of(heads, head, row)
        label = {"label": _name_of(heads, head, of), "probability": _chance(heads, head, row, of)}
        own = {"probabilities": row, "prediction": prediction, "prediction_probability": chance}
        maps.append({"heat": map_, "head": head, **label, **own})
    return maps


def networks_of(run: RunDirectory, fold: int, refit: bool = False) -> str:
    """The networks of a fold in words: `fold 0, epoch 3`; folds count from 0 as in the files, epochs from 1."""
    if refit and run.refitted:
        return f"fold {fold}, refitted on all photos"
    epochs = [file.stem.removeprefix("epoch") for file in run.checkpoints(fold)]
    named = [str(int(epoch) + 1) if epoch.isdecimal() else epoch for epoch in epochs]
    return f"fold {fold}, epoch{'s' * (len(named) > 1)} {', '.join(named)}"


def class_of(heads: Heads, head: str, probabilities: np.ndarray) -> tuple[str, float]:
    """(classes of all heads,) probabilities -> the predicted class of a head or the joint class, its probability."""
    columns = _argmax(heads, head, probabilities)
    return _name_of(heads, head, columns), _chance(heads, head, probabilities, columns)


def _chance(heads: Heads, head: str, probabilities: np.ndarray, columns: Sequence[int]) -> float:
    """The probability of the class of `columns`, of a head or of the joint class."""
    if head != JOINT or heads.joint_head is None:
        return float(probabilities[columns].prod())
    y, places = np.full(len(heads), UNKNOWN), _places(heads, head)
    y[list(places)] = [column - heads.offsets[i] for i, column in zip(places, columns, strict=True)]
    joint = y[heads.joint_head] if heads.joint_head in places else heads.joint(y)
    return float(heads.joint_probabilities(probabilities)[joint])


def grad_cam(network: MultiHeadNet, x: Tensor, columns: Tensor) -> Tensor:
    """(B, 3, H, W) photos, (B, n) columns of the logits -> (B, H, W) maps from 0 to 1 of what supports their sum.

    The channels of the body's last feature map, weighted by the mean of their gradients; negative values are 0.
    """
    layer = _last_norm(network.body)
    with torch.enable_grad():
        features, logits = _last_features(network, x) if layer is None else _features_of_layer(layer, network, x)
        (gradient,) = torch.autograd.grad(logits.gather(1, columns).sum(), features)
    features, gradient = (_as_map(network.body, t.detach().float(), x) for t in (features, gradient))
    heat = (features * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)


def _last_features(network: MultiHeadNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """The body's last features, and the logits that follow from them."""
    body: Any = network.body
    features = None
    if hasattr(body, "forward_features") and hasattr(body, "forward_head"):
        with torch.no_grad():
            features = body.forward_features(x)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise UsageError(f"{type(body).__name__} has no feature map, so Grad-CAM cannot explain it.")
    features = features.detach().requires_grad_()
    return features, torch.cat(network.classify_features(*network.pool_map(features)), dim=1)


def _features_of_layer(layer: nn.Module, network: MultiHeadNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a layer of the body, and the logits that follow from it."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
        kept.append(features.detach().requires_grad_())
        return kept[-1]

    handle = layer.register_forward_hook(keep)
    try:
        logits = torch.cat(network.classify_features(*network.pool(x)), dim=1)
    finally:
        handle.remove()
    return kept[-1], logits


def _last_norm(body: nn.Module) -> nn.Module | None:
    """The input of a transformer's last attention; after it, the output may depend on the class token alone."""
    blocks: Any = getattr(body, "blocks", None)
    tokens = hasattr(body, "num_prefix_tokens") and isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks)
    norm = getattr(blocks[-1], "norm1", None) if tokens else None
    return norm if isinstance(norm, nn.Module) else None


def _as_map(body: nn.Module, features: Tensor, x: Tensor) -> Tensor:
    """Features as (B, channels, height, width), from tokens, or from maps with their channels last."""
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if is_channels_last(body, features) else features
    tokens = features[:, int(getattr(body, "num_prefix_tokens", 0)) :]
    rows, columns = _grid(tokens.shape[1], x.shape[-2], x.shape[-1])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)


def _grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a number of patches: the pair with the aspect ratio closest to the photo's."""
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(np.log(pair[0] * width / (pair[1] * height))))


def _places(heads: Heads, head: str) -> tuple[int, ...]:
    """The heads whose logits support a class: those of the joint class together, or one head of it."""
    if head != JOINT:
        return (heads.position(head),)
    return (heads.joint_head,) if heads.joint_head is not None and heads.joint_share == 1 else heads.joined


def _columns_of(heads: Heads, head: str, label: str) -> list[int]:
    """The columns of the logits of a class: one, or one per head of a joint class."""
    names = heads.joint_names() if head == JOINT else heads[head].classes
    if label not in names:
        owner = "There is no joint class" if head == JOINT else f"Head {head} has no class"
        raise UsageError(f"{owner} {label!r}; expected one of {', '.join(names)}.")
    code = names.index(label)
    codes = heads.unjoint(np.array([code]))[0][list(_places(heads, head))] if head == JOINT else [code]
    return [heads.offsets[i] + int(code) for i, code in zip(_places(heads, head), codes, strict=True)]


def _argmax(heads: Heads, head: str, probabilities: np.ndarray) -> list[int]:
    """The columns of the predicted class of a head, or of each head of the joint class."""
    codes = heads.choose(probabilities)
    return [heads.offsets[i] + int(codes[i]) for i in _places(heads, head)]


def _name_of(heads: Heads, head: str, columns: Sequence[int]) -> str:
    places = _places(heads, head)
    return " ".join(heads[i].classes[c - heads.offsets[i]] for i, c in zip(places, columns, strict=True))
