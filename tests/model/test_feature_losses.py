"""Losses on features: against the formulas of the papers, computed photo by photo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastmask.model.feature_losses import ArcFace, SupervisedContrastive, make_feature_loss
from fastmask.system.errors import UsageError

GENERATOR = torch.Generator().manual_seed(3)
FEATURES = torch.randn(8, 5, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1])


def normal(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("centres", [1, 3])
def test_arcface_is_the_cross_entropy_of_cosines_with_an_enlarged_angle(centres: int):
    loss = ArcFace(5, 3, margin=0.4, scale=16.0, centres=centres)
    x, w = normal(FEATURES.numpy()), normal(loss.weight.detach().numpy())
    wanted = []
    for row, label in zip(x, Y.tolist(), strict=True):
        if label >= 0:
            cosines = (w @ row).reshape(3, centres).max(1)
            angle = math.acos(cosines[label])
            assert angle + 0.4 < math.pi
            cosines[label] = math.cos(angle + 0.4)
            wanted.append(np.log(np.exp(16 * cosines).sum()) - 16 * cosines[label])
    assert loss(FEATURES, Y).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_the_contrastive_loss_is_the_mean_over_photos_of_the_mean_over_photos_of_their_class():
    x, wanted = normal(FEATURES.numpy().astype(np.float64)), []
    labels = Y.tolist()
    known = [i for i, label in enumerate(labels) if label >= 0]
    for i in known:
        others = [j for j in known if j != i]
        total = sum(math.exp(x[i] @ x[j] / 0.1) for j in others)
        alike = [j for j in others if labels[j] == labels[i]]
        wanted.append(-np.mean([math.log(math.exp(x[i] @ x[j] / 0.1) / total) for j in alike]))
    assert SupervisedContrastive(5, 3)(FEATURES, Y).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_a_photo_alone_in_its_class_does_not_count():
    loss = SupervisedContrastive(5, 4)
    y = Y.clone()
    y[1] = 3
    pairs = [0, 3, 6, 2, 5]
    each = [loss(FEATURES, torch.where(torch.arange(8) == i, y, -1)) for i in range(8)]
    assert all(one == 0 for one in each)
    assert loss(FEATURES, y) > 0
    # class 1 has one photo left, and class 3 one: both only push others away
    rows, weights = loss.of_each(torch.nn.functional.normalize(FEATURES), y.clamp(min=0), y >= 0)
    assert (weights * (y >= 0)).nonzero().flatten().tolist() == sorted(pairs)
    assert rows.isfinite().all()


@pytest.mark.parametrize("loss", [ArcFace(5, 3), SupervisedContrastive(5, 3)])
def test_without_a_label_there_is_no_loss_and_no_gradient(loss: torch.nn.Module):
    x = FEATURES.clone().requires_grad_()
    value = loss(x, torch.full((8,), -1))
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()


def test_the_gradient_is_finite_at_a_centre():
    loss = ArcFace(5, 3)
    x = loss.weight.detach().clone().requires_grad_()
    loss(x, torch.arange(3)).backward()
    assert x.grad.isfinite().all()


def test_arguments_are_checked():
    with pytest.raises(UsageError, match=r"arcface takes no 'marign'; expected some of margin, scale, centres"):
        make_feature_loss("arcface", 5, 3, {"marign": 0.5})
    with pytest.raises(UsageError, match="centres of arcface is 1.5; expected a whole number"):
        make_feature_loss("arcface", 5, 3, {"centres": 1.5})
    with pytest.raises(UsageError, match="temperature above 0"):
        make_feature_loss("supcon", 5, 3, {"temperature": 0})
