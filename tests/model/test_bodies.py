"""Every body of the report, and one of each other family, trains, is saved, loaded and predicts at 400 x 200."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders

from fastmask.config import Config
from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.loaders import dataloaders
from fastmask.inference.networks import load_network
from fastmask.model.archs import size_flaw
from fastmask.model.network import build_network
from fastmask.run.tensors import save_network
from fastmask.training.learner import mask_learner

SIZE = (400, 200)
HEADS = contest_heads()
REPORT = (
    "vgg19",
    "resnet18",
    "resnet50",
    "resnext101_32x4d",
    "vit_small_patch16_224",
    "vit_small_patch16_384",
    "tf_efficientnet_b0",
    "tf_efficientnet_b3",
    "tf_efficientnet_b4",
)
FAST = ("resnet18", "mobilenetv3_large_100")
OTHERS = ("convnext_tiny", "swin_tiny_patch4_window7_224", "tf_efficientnetv2_s", "mobilenetv3_large_100")


@pytest.fixture(scope="module")
def loaders(contest) -> DataLoaders:
    """Two photos to train on and two to validate, 400 x 200."""
    table = read_contest(contest).select([0, 10, 20, 30])
    return dataloaders(table, 0, np.array([0, 0, 1, 1]), bs=2, num_workers=0, device="cpu")


@pytest.fixture(autouse=True)
def freed():
    """A Learner and its callbacks point at each other, and thirteen bodies with their optimizers are many gigabytes."""
    yield
    gc.collect()


ARCHS = [arch if arch in FAST else pytest.param(arch, marks=pytest.mark.slow) for arch in REPORT + OTHERS]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_body_trains_is_saved_and_predicts(arch, loaders, tmp_path):
    learn = mask_learner(loaders, arch, pretrained=False, lr=1e-4)
    stem = next(learn.model.body.parameters())
    before = [p.detach().clone() for p in (stem, *learn.model.heads.parameters())]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        expected, _ = learn.get_preds()
    assert not any(map(torch.equal, before, (stem, *learn.model.heads.parameters())))
    save_network(learn.model, tmp_path / "network.safetensors")
    run = SimpleNamespace(config=Config(arch=arch), heads=HEADS)
    network = load_network(run, tmp_path / "network.safetensors", torch.device("cpu"), SIZE)
    assert size_flaw(network, SIZE) is None
    x, _ = loaders.valid.one_batch()
    with torch.inference_mode():
        given = learn.loss_func.activation(network(torch.Tensor(x)))
    torch.testing.assert_close(given, torch.Tensor(expected), atol=1e-5, rtol=1e-4)


# vgg19, which takes as long as all others together, could cut a photo only as resnet18 could
@pytest.mark.parametrize("arch", ARCHS[1:])
def test_a_body_sees_each_corner_of_a_photo(arch):
    network = build_network(arch, HEADS, size=SIZE)
    photos = torch.randn(1, 3, *SIZE, dtype=torch.float64).repeat(5, 1, 1, 1)
    for photo, (y, x) in zip(photos[1:], ((0, 0), (0, -1), (-1, 0), (-1, -1)), strict=True):
        photo[:, y, x] += 10
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim < 2:  # a weight that starts at 0, or a scale of 1e-6, would hide what is seen
            torch.nn.init.uniform_(parameter, 0.5, 1)
    with torch.inference_mode():
        plain, *changed = network.double().eval()(photos)
    assert torch.isfinite(plain).all()
    assert all((logits - plain).abs().max() > 0 for logits in changed)
