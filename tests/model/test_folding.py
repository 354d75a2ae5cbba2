"""Batch norms folded into convolutions: the same logits, and what is not folded."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from fastmask.model.folding import fold_batch_norms

SIZE = (64, 48)


def with_statistics(network):
    """The network in evaluation mode, with batch norms as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def photos():
    return torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arch", "left"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("mobilenetv3_small_050", 0),
        ("tf_efficientnet_lite0", 0),
        # batch norms of identity branches have no convolution before them
        ("repvgg_a0", 17),
        # normalised by layer, or by their weights
        ("test_convnext", 0),
        ("nf_resnet26", 0),
    ],
)
@torch.no_grad()
def test_a_folded_network_has_the_same_logits(arch, left):
    network = with_statistics(timm.create_model(arch, num_classes=4))
    before, count = network(photos()), norms(network)
    assert fold_batch_norms(network, SIZE) == count - left
    assert norms(network) == left
    assert torch.allclose(network(photos()), before, rtol=0, atol=1e-5 * max(1, before.abs().max()))
    # a second time there is nothing to do
    assert fold_batch_norms(network, SIZE) == 0


@torch.no_grad()
def test_it_is_what_torch_fx_makes_of_a_traced_network():
    network = with_statistics(timm.create_model("resnet18", num_classes=4, norm_layer=nn.BatchNorm2d))
    traced = fuse(copy.deepcopy(network))
    fold_batch_norms(network, SIZE)
    assert torch.allclose(network(photos()), traced(photos()), rtol=0, atol=1e-5)
    weights = [module.weight for module in traced.modules() if isinstance(module, nn.Conv2d)]
    own = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(own, weights, strict=True))


class _Used(nn.Module):
    """A convolution whose output is normalised, and used as it is; or that is used twice; or normalised twice."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.other, self.how = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3), how

    def forward(self, x):
        seen = self.conv(x)
        if self.how == "two norms":
            return self.norm(seen) + self.other(seen)
        return self.norm(self.conv(seen) if self.how == "twice" else seen) + seen


@pytest.mark.parametrize("how", ["as it is", "twice", "two norms"])
@torch.no_grad()
def test_what_would_change_is_left_as_it_is(how):
    network = with_statistics(_Used(how))
    before = network(photos())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert fold_batch_norms(network, SIZE) == 0
    assert torch.equal(network(photos()), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@torch.no_grad()
def test_a_network_in_training_mode_is_left():
    network = with_statistics(timm.create_model("test_resnet", num_classes=4)).train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert fold_batch_norms(network, SIZE) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
