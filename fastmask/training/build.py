"""Build: the network, the loss, the heads, the statistics and the crops of faces of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import Tensor

from fastmask.config import REPORT_CROP, Config
from fastmask.data.augment import REPORT_STATS, Stats
from fastmask.data.boxes import Framing
from fastmask.heads import Head, Heads
from fastmask.model.archs import nearest_size, size_flaw
from fastmask.model.feature_losses import feature_loss_of
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet, build_network
from fastmask.model.weights import read_weights
from fastmask.run.directory import RunDirectory
from fastmask.run.lineage import best_checkpoint, weights_file
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some
from fastmask.training.learner import seeded


def build_initial_network(config: Config, heads: Heads, fold: int, size: tuple[int, int] | None = None) -> MultiHeadNet:
    """The initial network of a fold for photos of `size`; its random weights depend only on (seed, fold)."""
    with seeded(config.seed, fold):
        network = build_network(
            config.arch,
            heads,
            pretrained=config.pretrained,
            weights=weights_file(config.weights, fold),
            drop_rate=config.drop_rate,
            drop_path_rate=config.drop_path,
            size=size,
            per_head=config.per_head,
            feature_loss=feature_loss_of(config, heads),
        )
    load_heads(network, heads, config.weights, fold)
    return network


def check_size(network: MultiHeadNet, arch: str, size: tuple[int, int]) -> None:
    """Raise UsageError with a size that works if the network cannot take, or crops, photos of `size`."""
    flaw = size_flaw(network, size)
    if flaw is not None:
        sides = nearest_size(arch, size) or ("HEIGHT", "WIDTH")
        raise UsageError(f"{arch} {flaw}; give it a size that it takes whole: --resize {sides[0]} {sides[1]}.")


def build_loss(config: Config, heads: Heads, weights: Sequence[Sequence[float] | None] | None = None) -> FocalLoss:
    """The loss of a configuration; `weights` of the classes of each head replace its alpha."""
    alpha = weights or [class_row(head, (config.alpha or {}).get(head.name)) for head in heads]
    return FocalLoss(
        heads,
        config.focal_gamma,
        alpha,
        label_smoothing=config.label_smoothing,
        f1_share=config.f1_share,
        temperature=config.teacher_temperature,
        loss=config.loss,
        per_head=config.per_head,
    )


def class_row(head: Head, given: Sequence[float] | Mapping[str, float] | None) -> list[float] | None:
    """A weight per class, 1 for classes that are not named; raises UsageError for an unknown class."""
    if not isinstance(given, Mapping):
        return None if given is None else list(given)
    unknown = next((name for name in given if name not in head.classes), None)
    if unknown is not None:
        raise UsageError(
            f"alpha (--class-weight) of head {head.name} has the class {unknown!r}; expected some of "
            f"{', '.join(head.classes)}."
        )
    return [given.get(name, 1.0) for name in head.classes]


def apply_head_weights(heads: Heads, config: Config) -> Heads:
    """The heads with the configuration's weights in the loss."""
    weights = config.head_weights or {}
    for name in (*weights, *(config.alpha or {})):
        heads.position(name)
    for setting, named in (("head_weights", weights), ("alpha (--class-weight)", config.alpha or {})):
        idle = next((name for name in named if name in heads.merged), None)
        if idle is not None:
            raise UsageError(
                f"Setting {setting} of {idle} has no effect: it merges the classes of {heads.merged[idle]}; give it of "
                f"{heads.merged[idle]}."
            )
    if heads.joint_head is not None or config.bands:
        unlearned = next((name for name, weight in weights.items() if not weight and _is_needed(heads, name)), None)
        if unlearned is not None:
            raise UsageError(f"Setting head_weights of {unlearned} is 0, but other heads' answers depend on it.")
    weighted = Heads([replace(h, weight=weights.get(h.name, h.weight)) for h in heads])
    if not any(head.weight for head in weighted):
        raise UsageError("Setting head_weights is 0 for every head, so there is nothing to learn; leave one out.")
    return weighted


def _is_needed(heads: Heads, name: str) -> bool:
    """Whether other answers depend on a head: on a joint head and those that it is mixed with, and on finer bands."""
    return (heads.joint_head is not None and heads[name].spread is None) or name in heads.merged.values()


def resolve_stats(config: Config) -> Stats | None:
    """The channel statistics of a configuration; None leaves them to the pipelines."""
    if isinstance(config.stats, tuple):
        return config.stats[:3], config.stats[3:]
    if config.stats == "pretrained":
        cfg = timm.get_pretrained_cfg(config.arch)
        if cfg is None:
            raise UsageError(f"timm keeps no statistics for {config.arch!r}; give --stats six numbers.")
        return tuple(cfg.mean), tuple(cfg.std)
    return REPORT_STATS if config.stats == "report" else None


def make_framing(config: Config) -> Framing:
    """How a configuration crops photos to their faces."""
    return Framing(config.crop or REPORT_CROP, config.margin, config.region, config.no_face)


def load_heads(network: MultiHeadNet, heads: Heads, weights: str | None, fold: int) -> None:
    """Load the heads that the run `weights` has with the same classes and layers; a weights file has only a body.

    The heads with the same classes and another layer are named in `network.initial_weights`.
    """
    if weights is None or not Path(weights).is_dir():
        return
    run = RunDirectory.load(weights)
    tensors = read_weights(best_checkpoint(run, fold))
    others = []
    for number, head in enumerate(heads):
        if head.name in run.heads.names and run.heads[head.name].classes == head.classes:
            there = f"heads.{run.heads.position(head.name)}."
            state = {name.removeprefix(there): tensor for name, tensor in tensors.items() if name.startswith(there)}
            layer = network.heads[number]
            if _shapes(state) == _shapes(layer.state_dict()):
                layer.load_state_dict(state)
            elif layer.state_dict():
                others.append(head.name)
    if others:
        network.initial_weights += f", the layer of {join_some(others)} random"


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
