import re
from itertools import islice

import numpy as np
import pytest
import timm
import torch

from fastmask.model.archs import (
    ANY_SIZE,
    check_arch,
    describe_arch,
    list_archs,
    nearest_size,
    needs_size,
    size_flaw,
    size_options,
    sizes_around,
)
from fastmask.system.errors import UsageError


def body(arch, size):
    return timm.create_model(arch, num_classes=0, **size_options(arch, size)).eval()


def test_a_pattern_lists_matches_and_a_word_lists_names_that_contain_it():
    assert [row.name for row in list_archs("tf_efficientnet_b[0-2]")] == [f"tf_efficientnet_b{i}" for i in range(3)]
    assert [row.name for row in list_archs("timm/efficientnet_lite1")] == [
        "efficientnet_lite1",
        "tf_efficientnet_lite1",
    ]
    assert [row.name for row in list_archs("efficientnet_lite0")] == ["efficientnet_lite0", "tf_efficientnet_lite0"]
    assert next(list_archs()).name == timm.list_models()[0]


def test_a_row_describes_a_model_of_timm():
    row = describe_arch("tf_efficientnet_b4")
    assert (row.size, row.fixed, row.weights) == ((380, 380), False, True)
    assert row.tag == "tf_efficientnet_b4.ns_jft_in1k"
    assert row.parameters == sum(p.numel() for p in timm.create_model(row.name, num_classes=0).parameters())
    assert " ".join(str(row).split()) == "tf_efficientnet_b4 380x380 any size 17.5 M tf_efficientnet_b4.ns_jft_in1k"
    assert " ".join(str(describe_arch("test_vit4")).split()) == "test_vit4 160x160 one size 0.9 M no weights"


def test_pretrained_weights_are_those_of_timm():
    rows = list(list_archs("test_*"))
    assert {row.weights for row in rows} == {True, False}
    assert all(row.weights == timm.is_model_pretrained(row.name) for row in rows)


def test_a_list_is_lazy_and_draws_no_random_numbers(monkeypatch):
    built = []
    monkeypatch.setattr("fastmask.model.archs.describe_arch", built.append)
    list(islice(list_archs("vit"), 2))
    assert len(built) == 2
    monkeypatch.undo()
    state = torch.get_rng_state()
    describe_arch("test_vit")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pattern", ["efficientnet_b44", "efficientnet_b44*"])
def test_a_pattern_without_a_match_names_the_nearest(pattern):
    with pytest.raises(UsageError, match="has no arch that matches .*; the nearest are .*efficientnet_b4"):
        list_archs(pattern)
    with pytest.raises(UsageError, match="has no arch 'efficientnet_b44'; the nearest are .*efficientnet_b4"):
        check_arch("efficientnet_b44")


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("test_vit", ANY_SIZE),
        ("test_resnet", {}),
        ("xcit_nano_12_p8_224", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 40)}),
        ("nest_tiny", {}),
    ],
)
def test_a_body_takes_any_size_or_the_one_it_is_built_for(arch, options):
    assert size_options(arch, (64, 40)) == options
    assert needs_size(arch) == (timm.get_pretrained_cfg(arch).fixed_input_size and options != ANY_SIZE)


@pytest.mark.parametrize(
    ("arch", "size", "flaw", "nearest"),
    [
        ("test_vit_relpos", (64, 40), "cuts photos 64 high and 40 wide: it leaves out their last column", (64, 32)),
        pytest.param(
            *("convmixer_768_32", (64, 40), "cuts .*: it leaves out their last row and last column", (70, 42)),
            marks=pytest.mark.slow,
        ),
        ("dla46x_c", (48, 24), r"cannot take photos 48 high and 24 wide \(Sizes of tensors must match", (32, 32)),
        ("test_coatnet", (64, 40), "cannot take photos 64 high and 40 wide", (64, 32)),
    ],
)
def test_a_size_that_is_cut_or_refused_has_a_nearest_one_that_works(arch, size, flaw, nearest):
    assert re.match(flaw, size_flaw(body(arch, size), size))
    assert nearest_size(arch, size) == nearest
    assert size_flaw(body(arch, nearest), nearest) is None


def test_the_columns_that_are_cut_have_no_gradient():
    """By pixels instead of NaN: in a photo 40 wide, patches of 16 leave out 8 columns."""
    network = body("test_vit_relpos", (64, 40)).double()
    photo = torch.randn(1, 3, 64, 40, dtype=torch.float64, requires_grad=True)
    network(photo).square().sum().backward()
    seen = photo.grad.abs().amax((0, 1))
    assert (seen[:, :32] > 0).all()
    assert (seen[:, 32:] == 0).all()


def test_a_weight_of_zero_hides_no_cut():
    first = torch.nn.Conv2d(3, 4, 1)
    torch.nn.init.zeros_(first.weight)
    rest = torch.nn.ReLU6(), torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    network = torch.nn.Sequential(first, *rest)
    assert size_flaw(network, (8, 8)) is None
    assert size_flaw(network, (9, 8)) == "cuts photos 9 high and 8 wide: it leaves out their last row"


def test_likely_sizes_are_near_whole_steps():
    tries = sizes_around("swin_tiny_patch4_window7_224", (400, 200))
    distance = [abs(np.subtract(at, (400, 200))).sum() for at in tries]
    assert distance == sorted(distance)
    assert {(384, 192), (384, 256), (392, 196), (224, 224)} <= set(tries)
    assert (400, 200) not in tries


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("timm/test_resnet.r160_in1k", "test_resnet.r160_in1k"),
        ("hf-hub:timm/test_resnet", "test_resnet"),
        ("hf_hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("https://huggingface.co/timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("EfficientNet_B0", "efficientnet_b0"),
        ("efficientnet-b4", "efficientnet_b4"),
        ("ResNet50", "resnet50"),
        ("tf_efficientnet_b4_ns", "tf_efficientnet_b4_ns"),
    ],
)
def test_a_name_of_the_hub_or_in_another_spelling_is_timm_s(given, name):
    assert check_arch(given) == name
    assert timm.is_model(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet50.foo", "has no weights 'foo' of resnet50; expected one of a1_in1k, "),
        ("test_vit4.foo", "has no weights 'foo' of test_vit4; it has no pretrained weights"),
        ("facebook/dinov2-base", "facebook/dinov2-base is a repository or a folder; .* timm's name .* as --weights"),
        ("local-dir:/models/a", "local-dir:/models/a is a repository or a folder"),
        ("vit_b_16", "no arch 'vit_b_16'; the nearest are .*vit_base"),
        ("MobileNet-V3-Large", "no arch 'MobileNet-V3-Large'; the nearest are .*mobilenetv3_large_100"),
        ("dinov2", "no arch 'dinov2'; the nearest are vit_.*dinov2"),
    ],
)
def test_a_name_that_timm_lacks_is_refused_with_what_to_give(given, message):
    with pytest.raises(UsageError, match=message):
        check_arch(given)
