"""Flip: whether mirroring photos changes the labels of heads, such as left and right, found before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from fastmask.data.loaders import pick_device
from fastmask.heads import UNKNOWN
from fastmask.model.network import MultiHeadNet
from fastmask.model.views import flip
from fastmask.system.text import join_some
from fastmask.training.features import compute_features
from fastmask.training.plan import Plan

FLIP = "flip"
# photos to measure on, and the penalty of the ridge regression, whose features outnumber them
_PHOTOS, _PENALTY = 240, 100.0
# mirroring changes a head's labels if at least this share of its predictions gets worse, and by so many deviations
_LEAST_WORSE, _DEVIATIONS = 0.05, 3.0


def resolve_flip(plan: Plan, network: MultiHeadNet, say: Callable[[str], None]) -> Plan:
    """The plan with the augmentation and the view flip in place of the setting, unless mirroring changes labels.

    Random weights find no difference between left and right, so that nothing is mirrored with them.
    """
    update: dict[str, Any] = {"flip": False}
    added = {name: [*(getattr(plan.config, name) or ())] for name in ("augment", "views")}
    if all(FLIP in found for found in added.values()):
        return replace(plan, config=plan.config.model_copy(update=update))
    why = "random weights cannot tell whether mirror images have other labels"
    if plan.config.starts_pretrained:
        changed = changed_by_mirror(plan, network)
        why = f"mirror images have other labels of {join_some(changed)}" if changed else ""
    if why:
        say(f"Photos are not mirrored: {why}. To mirror them anyway: --augment flip --views flip")
    else:
        update |= {name: found if FLIP in found else [FLIP, *found] for name, found in added.items()}
    config = plan.config.model_copy(update=update)
    return plan.with_config(config)


def changed_by_mirror(plan: Plan, network: MultiHeadNet) -> list[str]:
    """The heads that a linear model, trained on photos, predicts worse on the mirror images of other photos.

    Its features are those of the untrained body for each half of a photo alone, so that left and right differ. It is
    fitted on each half of the persons, and predicts the other half.
    """
    rows = plan.table.sample_rows(_PHOTOS, plan.config.seed)
    plain, mirrored = _features(plan, network, rows)
    y, part = plan.table.y[rows], np.unique(plan.table.groups[rows], return_inverse=True)[1] % 2
    return [
        head.name
        for i, head in enumerate(plan.table.heads)
        if i in plan.table.heads.joined and is_worse(plain, mirrored, y[:, i], part)
    ]


def _features(plan: Plan, network: MultiHeadNet, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2 x features) of the left and the right half of photos, and of their mirror images."""
    device = pick_device(plan.processes.device or plan.config.device)
    body = network.body.eval().to(device)
    paths = [str(plan.table.photo(row)) for row in rows]
    both = compute_features(plan, lambda x: torch.cat([_halves(body, x), _halves(body, flip(x))], dim=1), paths, device)
    plain, mirrored = np.split(both, 2, axis=1)
    return plain, mirrored


def _halves(body: torch.nn.Module, x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 2 x features): those of each half, the other one in the mean colour."""
    left = torch.arange(x.shape[-1], device=x.device) < x.shape[-1] // 2
    return torch.cat([body(x * half).float() for half in (left, ~left)], dim=1)


def is_worse(plain: np.ndarray, mirrored: np.ndarray, y: np.ndarray, part: np.ndarray) -> bool:
    """Whether mirroring makes more right answers wrong than wrong ones right, beyond noise (McNemar 1947)."""
    lost = gained = 0
    for here in (part == 0, part == 1):
        train, valid = ~here & (y != UNKNOWN), here & (y != UNKNOWN)
        if len(set(y[train])) < 2 or not valid.any():
            continue
        scaler = StandardScaler().fit(plain[train])
        model = RidgeClassifier(alpha=_PENALTY).fit(scaler.transform(plain[train]), y[train])
        right, still = (model.predict(scaler.transform(x[valid])) == y[valid] for x in (plain, mirrored))
        lost, gained = lost + int((right & ~still).sum()), gained + int((~right & still).sum())
    known = int((y != UNKNOWN).sum())
    return bool(lost - gained > max(_LEAST_WORSE * known, _DEVIATIONS * np.sqrt(lost + gained)))
