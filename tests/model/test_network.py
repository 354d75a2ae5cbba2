import pytest
import timm
import torch

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.model.network import MultiHeadNet, build_network
from fastmask.system.errors import UsageError

HEADS = contest_heads()


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_any_body_gives_one_logit_per_class_of_all_heads(arch):
    network = build_network(arch, HEADS).eval()
    assert network(torch.randn(2, 3, 160, 160)).shape == (2, 8)


def test_each_head_is_a_linear_layer_on_the_pooled_features():
    network = build_network("test_resnet", HEADS).eval()
    x = torch.randn(2, 3, 64, 32)
    features = network.body(x)
    for i, part in enumerate(HEADS.split(network(x))):
        torch.testing.assert_close(part, features @ network.heads[i].weight.T + network.heads[i].bias)


def test_weights_are_in_channels_last_format():
    weights = [p for p in build_network("test_resnet", HEADS).parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_the_full_tag_and_statistics_are_kept():
    network = build_network("tf_efficientnet_lite0", HEADS)
    assert network.tag == "tf_efficientnet_lite0.in1k"
    assert network.stats == ((0.5,) * 3, (0.5,) * 3)


def test_an_unknown_arch_names_the_nearest():
    with pytest.raises(UsageError, match="no arch 'efficientnet_b44'; the nearest are .*efficientnet_b4"):
        build_network("efficientnet_b44", HEADS)


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "levit_128s", "rexnet_100"])
def test_dropout_is_only_before_the_heads(arch):
    network = build_network(arch, HEADS, drop_rate=0.5)
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout) and m.p] == [0.5]
    features = network.dropout(torch.ones(1000))
    assert 400 < int((features == 0).sum()) < 600
    x = torch.randn(1, 3, 224, 224)
    network.eval().dropout.train()
    assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "levit_128s", "tf_efficientnet_lite0"])
def test_drop_path_reaches_the_body(arch):
    rates = [getattr(m, "drop_prob", 0) for m in build_network(arch, HEADS, drop_path_rate=0.3).body.modules()]
    assert 0.2 < max(rates) < 0.31


@pytest.mark.parametrize("arch", ["vgg11", "densenet121"])
def test_a_body_without_drop_path_is_refused(arch):
    with pytest.raises(UsageError, match=f"'{arch}' takes no drop-path rate; leave --drop-path at 0"):
        build_network(arch, HEADS, drop_path_rate=0.1)


def test_a_body_that_ignores_its_drop_path_rate_is_refused(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda *args, drop_path_rate=0, **kwargs: create(*args, **kwargs))
    with pytest.raises(UsageError, match="'test_resnet' takes no drop-path rate"):
        build_network("test_resnet", HEADS, drop_path_rate=0.1)


@pytest.mark.parametrize("size", [None, (64, 32)])
def test_finding_the_options_for_a_size_draws_no_random_numbers(size):
    arch = "swin_tiny_patch4_window7_224"
    torch.manual_seed(3)
    drawn = build_network(arch, HEADS, size=size).heads[0].weight
    torch.manual_seed(3)
    timm.create_model(arch, num_classes=0, **({"img_size": size} if size else {}))
    assert torch.equal(drawn, torch.nn.Linear(768, 3).weight)


def test_one_head_and_seven_heads():
    for count in (1, 7):
        heads = Heads([Head(f"h{i}", ("a", "b", "c")) for i in range(count)])
        assert build_network("test_resnet", heads).eval()(torch.randn(1, 3, 64, 32)).shape == (1, 3 * count)


def test_a_body_with_a_3d_convolution_is_built_and_photos_weights_are_channels_last():
    network = build_network("lambda_resnet26t", HEADS)
    assert any(each.ndim == 5 for each in network.parameters())
    stem = next(each for each in network.parameters() if each.ndim == 4)
    assert stem.is_contiguous(memory_format=torch.channels_last)


def test_networks_of_learners_that_earlier_versions_exported_are_loaded():
    network = build_network("test_resnet", HEADS).eval()
    linear = torch.nn.ModuleList([torch.nn.Linear(layer.weight.shape[1], len(layer.weight)) for layer in network.heads])
    linear.load_state_dict(network.heads.state_dict())
    state = {name: value for name, value in vars(network).items() if name not in ("_order", "_pools", "feature_loss")}
    state["_modules"] = {**state["_modules"], "heads": linear}
    loaded = MultiHeadNet.__new__(MultiHeadNet)
    loaded.__setstate__(state)
    x = torch.randn(2, 3, 64, 32)
    assert torch.equal(loaded(x), network(x))
    assert loaded.state_dict().keys() == network.state_dict().keys()
