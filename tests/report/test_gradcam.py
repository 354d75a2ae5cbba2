"""Grad-CAM against CAM (Zhou 2016), which it equals for networks with mean pooling before a linear head."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmask.config import HeadOptions
from fastmask.data.auxiliary import bands_head, joint_head
from fastmask.data.contest import contest_heads
from fastmask.heads import JOINT, Heads
from fastmask.model.network import build_network
from fastmask.report.gradcam import _grid, _places, explain, grad_cam
from fastmask.system.errors import UsageError

HEADS = contest_heads()
# 129 million parameters
VGG = pytest.param("vgg11", marks=pytest.mark.slow)


def columns_of(*codes):
    return torch.tensor([[offset + code for offset, code in zip(HEADS.offsets, codes, strict=False)]])


def network(arch="resnet18", **options):
    torch.manual_seed(0)
    return build_network(arch, HEADS, **options).eval()


@pytest.fixture
def path(finished_run, contest):
    """The first photo of the run."""
    return contest / "train" / "images" / finished_run.oof["path"][0]


def test_a_pooled_map_is_weighted_by_the_rows_of_the_heads():
    photos = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    net, columns = network(), columns_of(2, 1, 0)
    heat = grad_cam(net, photos, columns)
    with torch.no_grad():
        maps = net.body.forward_features(photos)
        rows = torch.cat([head.weight for head in net.heads])[columns[0]].sum(0)
        expected = torch.einsum("bchw,c->bhw", maps, rows).relu()[:, None]
        expected = F.interpolate(expected, size=(64, 48), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, expected / expected.max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", VGG])
def test_any_kind_of_body_has_a_map_of_the_size_of_the_photo(arch):
    net = network(arch, size=(224, 224))
    heat = grad_cam(net, torch.randn(1, 3, 224, 224), columns_of(0, 0, 0))
    assert heat.shape == (1, 224, 224)
    assert heat.min() >= 0
    assert heat.max() == 1
    assert heat.std() > 0.01


def test_a_head_that_pools_by_itself_has_the_same_map():
    photos = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    own = network(per_head={"age": HeadOptions(pool="avg")})
    for columns in (columns_of(2, 1, 0), torch.tensor([[6]])):
        torch.testing.assert_close(grad_cam(own, photos, columns), grad_cam(network(), photos, columns))


def test_it_is_bright_at_what_supports_the_class():
    """A head that reads the features that a half with content has more of than an empty photo."""
    net = network()
    upper, lower = torch.zeros(2, 1, 3, 224, 224)
    upper[..., :112, :] = torch.randn(1, 3, 112, 224)
    lower[..., 112:, :] = upper[..., :112, :]
    with torch.no_grad():
        net.heads[0].weight[0] = net.body(upper)[0] - net.body(torch.zeros_like(upper))[0]
    for photo, bright in ((upper, slice(0, 112)), (lower, slice(112, 224))):
        heat = grad_cam(net, photo, columns_of(0))[0]
        assert heat[bright].sum() > 0.8 * heat.sum()


def test_patches_have_the_aspect_ratio_of_the_photo():
    assert _grid(13 * 25, 400, 200) == (25, 13)
    assert _grid(196, 224, 224) == (14, 14)


def test_photos_are_explained_by_a_given_fold(finished_run, path):
    (made,) = explain(finished_run, path, "mask", fold=1)
    assert made.image.dtype == np.uint8
    assert (made.image.shape, made.heat.shape, made.overlay.shape) == ((64, 32, 3), (64, 32), (64, 32, 3))
    own = finished_run.predict([path], members=["fold1"])
    np.testing.assert_allclose(made.probabilities, own.probabilities[0], atol=1e-6)
    assert made.label == finished_run.heads["mask"].classes[own.y[0, 0]]
    assert made.probability == pytest.approx(own.probabilities[0, :3].max(), abs=1e-6)


def test_a_joint_class_is_explained_by_its_head_alone_only_if_that_replaces_the_others():
    bands = bands_head(HEADS["age"], [20, 30, 45, 60])
    assert _places(Heads([*HEADS, joint_head(HEADS, 1.0)]), JOINT) == (3,)
    for extra in ([], [bands]):
        assert _places(Heads([*HEADS, joint_head(HEADS, 0.5), *extra]), JOINT) == (0, 1, 2)
        assert _places(Heads([*HEADS, *extra]), JOINT) == (0, 1, 2)


def test_any_class_can_be_explained(finished_run, path):
    for label in HEADS["mask"].classes:
        (made,) = explain(finished_run, [path], "mask", label)
        column = finished_run.heads.columns.index(f"mask.{label}")
        assert (made.label, made.probability) == (label, pytest.approx(made.probabilities[column]))
    (joint,) = explain(finished_run, [path], label="none female 60+")
    parts = zip(HEADS.split(joint.probabilities), (2, 1, 2), strict=True)
    assert joint.probability == pytest.approx(np.prod([part[code] for part, code in parts]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "hat"}, "There is no head 'hat'"),
        ({"head": "mask", "label": "veil"}, "Head mask has no class 'veil'"),
        ({"label": "veil"}, "There is no joint class 'veil'"),
        ({"fold": 7}, "has no member 'fold7'"),
        ({"label": ["wear", "none"]}, "There are 2 classes to explain for 1 photos"),
    ],
)
def test_unknown_heads_and_classes_are_refused(finished_run, path, options, message):
    with pytest.raises(UsageError, match=message):
        explain(finished_run, path, **options)
