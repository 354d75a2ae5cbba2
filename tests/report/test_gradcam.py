"""Explain: Grad-CAM against what it comes to by hand where features are averaged and then weighed (CAM, Zhou 2016)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.model.network import build_network
from fastmask.report.gradcam import _grid, explain, grad_cam
from fastmask.system.errors import UsageError

HEADS = contest_heads()


def columns_of(*codes: int) -> torch.Tensor:
    return torch.tensor([[offset + code for offset, code in zip(HEADS.offsets, codes, strict=False)]])


@pytest.fixture
def photos() -> torch.Tensor:
    return torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def test_a_pooled_map_is_weighed_by_the_rows_of_the_heads(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", HEADS).eval()
    columns = columns_of(2, 1, 0)
    heat = grad_cam(network, photos, columns)
    with torch.no_grad():
        maps = network.body.forward_features(photos)
        rows = torch.cat([head.weight for head in network.heads])[columns[0]].sum(0)
        expected = torch.einsum("bchw,c->bhw", maps, rows).relu()[:, None]
        expected = F.interpolate(expected, size=(64, 48), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, expected / expected.max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "vgg11"])
def test_any_kind_of_body_has_a_map_of_the_size_of_the_photo(arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, HEADS, size=(224, 224)).eval()
    heat = grad_cam(network, torch.randn(1, 3, 224, 224), columns_of(0, 0, 0))
    assert heat.shape == (1, 224, 224)
    assert heat.min() >= 0
    assert heat.max() == 1
    assert heat.std() > 0.01


def test_it_is_bright_where_what_speaks_for_the_class_is() -> None:
    """A head that reads what the features of a half that is not empty have more of than those of nothing."""
    torch.manual_seed(0)
    network = build_network("resnet18", HEADS).eval()
    upper, lower = torch.zeros(2, 1, 3, 224, 224)
    upper[..., :112, :] = torch.randn(1, 3, 112, 224)
    lower[..., 112:, :] = upper[..., :112, :]
    with torch.no_grad():
        network.heads[0].weight[0] = network.body(upper)[0] - network.body(torch.zeros_like(upper))[0]
    for photo, bright in ((upper, slice(0, 112)), (lower, slice(112, 224))):
        heat = grad_cam(network, photo, columns_of(0))[0]
        assert heat[bright].sum() > 0.8 * heat.sum()


def test_patches_are_laid_out_as_the_photo() -> None:
    assert _grid(13 * 25, 400, 200) == (25, 13)
    assert _grid(196, 224, 224) == (14, 14)


def test_a_run_explains_photos_by_the_fold_that_is_asked_for(finished_run: Run, contest: Path) -> None:
    path = contest / "train" / "images" / finished_run.oof["path"][0]
    (made,) = explain(finished_run, path, "mask", fold=1)
    assert made.image.shape == (64, 32, 3)
    assert made.image.dtype == np.uint8
    assert made.heat.shape == (64, 32)
    assert made.overlay.shape == (64, 32, 3)
    own = finished_run.predict([path], members=["fold1"])
    np.testing.assert_allclose(made.probabilities, own.probabilities[0], atol=1e-6)
    assert made.label == finished_run.heads["mask"].classes[own.y[0, 0]]
    assert made.probability == pytest.approx(own.probabilities[0, :3].max(), abs=1e-6)


def test_a_class_may_be_asked_for(finished_run: Run, contest: Path) -> None:
    path = contest / "train" / "images" / finished_run.oof["path"][0]
    for label in HEADS["mask"].classes:
        (made,) = explain(finished_run, [path], "mask", label)
        column = finished_run.heads.columns.index(f"mask.{label}")
        assert (made.label, made.probability) == (label, pytest.approx(made.probabilities[column]))
    (joint,) = explain(finished_run, [path], label="none female 60+")
    assert joint.probability == pytest.approx(np.prod([p[c] for p, c in zip(
        HEADS.split(joint.probabilities), (2, 1, 2), strict=True)]), rel=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": "hat"}, "There is no head 'hat'"),
        ({"head": "mask", "label": "veil"}, "Head mask has no class 'veil'"),
        ({"label": "veil"}, "There is no joint class 'veil'"),
        ({"fold": 7}, "has no member 'fold7'"),
    ],
)
def test_what_there_is_not_is_said(finished_run: Run, contest: Path, options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        explain(finished_run, contest / "train" / "images" / finished_run.oof["path"][0], **options)
