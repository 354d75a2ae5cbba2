"""Pooling: the body's own one, timm's others and GeM, of maps and of tokens."""

import pytest
import timm
import torch

from fastmask.config import HeadOptions
from fastmask.data.contest import contest_heads
from fastmask.model.network import build_network
from fastmask.model.pooling import POOLS, GeM, build_pool, pooled_features, to_places
from fastmask.system.errors import UsageError

HEADS = contest_heads()


@pytest.mark.parametrize("name", [name for name in POOLS if name != "gem"])
def test_pools_are_timm_s(name):
    x = torch.randn(3, 5, 4, 2)
    expected = timm.layers.SelectAdaptivePool2d(pool_type=name, flatten=True)(x)
    torch.testing.assert_close(build_pool(name)(x), expected)
    assert expected.shape[1] == pooled_features(name, 5)


def test_gem_is_the_generalized_mean():
    x = torch.tensor([[[[1.0, 2.0], [3.0, -9.0]]]])
    torch.testing.assert_close(GeM()(x), torch.tensor([[((1 + 8 + 27 + 1e-18) / 4) ** (1 / 3)]]))
    positive = torch.rand(2, 3, 4, 4) + 0.1
    torch.testing.assert_close(GeM(1.0)(positive), positive.mean((2, 3)))
    torch.testing.assert_close(GeM(200.0)(positive), positive.amax((2, 3)), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "arch", ["test_resnet", "test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_a_head_pools_the_map_that_the_other_heads_share(arch):
    torch.manual_seed(0)
    net = build_network(arch, HEADS, size=(64, 64), per_head={"age": HeadOptions(pool="max")}).eval()
    torch.manual_seed(0)
    plain = build_network(arch, HEADS, size=(64, 64)).eval()
    plain.body.load_state_dict(net.body.state_dict())
    for position in (0, 1):
        plain.heads[position].load_state_dict(net.heads[position].state_dict())
    x = torch.randn(2, 3, 64, 64)
    features = net.body.forward_features(x)
    if arch == "test_vit":
        features = features[:, net.body.num_prefix_tokens :].transpose(1, 2)[..., None]
    if arch.startswith("swin"):
        features = features.permute(0, 3, 1, 2)
    found, others = HEADS.split(net(x)), HEADS.split(plain(x))
    own = net.heads[2]
    torch.testing.assert_close(found[2], features.amax((2, 3)) @ own.weight.T + own.bias)
    for position in (0, 1):
        torch.testing.assert_close(found[position], others[position])


def test_a_body_without_a_map_is_refused():
    body = torch.nn.Flatten()
    with pytest.raises(UsageError, match="Flatten has no feature map, so no head can pool it"):
        to_places(body, torch.zeros(2, 5))
    with pytest.raises(UsageError, match="Flatten has no feature map"):
        to_places(body, [torch.zeros(2, 5, 1, 1)])


def test_the_power_of_gem_is_a_parameter_of_the_heads():
    net = build_network("test_resnet", HEADS, per_head={"age": HeadOptions(pool="gem")})
    assert "heads.2.input.pool.power" in net.state_dict()
    net(torch.randn(2, 3, 64, 32)).sum().backward()
    assert net.heads[2].input.pool.power.grad.abs() > 0
