import warnings

import pytest
import timm
import torch
from torch import nn

from fastmask.model.precision import autocast, check_compiler, resolve_precision, tf32, usable_precision
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "device", "fast_bf16", "expected"),
    [
        ("auto", CPU, False, "fp32"),
        ("bf16", CPU, False, "bf16"),
        ("auto", CUDA, True, "bf16"),
        ("auto", CUDA, False, "fp16"),
        ("fp16", CUDA, True, "fp16"),
        ("fp32", CUDA, True, "fp32"),
    ],
)
def test_auto_is_what_the_device_is_fast_in(monkeypatch, name, device, fast_bf16, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda d: asked.append(d) or torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast_bf16 or including_emulation)
    assert resolve_precision(name, device) == expected
    assert asked == ([CUDA] if (name, device) == ("auto", CUDA) else [])


@pytest.mark.parametrize(
    ("name", "message"),
    [("fp16", "fp16 needs a GPU; on a CPU use fp32 or bf16"), ("bf17", "no precision 'bf17'; expected auto, fp32")],
)
def test_an_unavailable_precision_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        resolve_precision(name, CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_block_of_autocast_is_torch_s(precision, dtype):
    x = torch.randn(4, 4)
    with autocast(CPU, precision):
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


class WrongInHalf(nn.Module):
    """A body whose outputs, or gradients, are multiplied under autocast."""

    def __init__(self, outputs=1.0, gradients=1.0):
        super().__init__()
        self.body = timm.create_model("test_resnet", num_classes=8)
        self.outputs, self.gradients = outputs, gradients

    def forward(self, x):
        out = self.body(x)
        if torch.is_autocast_enabled(x.device.type):
            out = out * self.outputs
            if out.requires_grad:
                out.register_hook(lambda grad: grad * self.gradients)
        return out


@pytest.mark.bf16
@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_half_precision_that_rounds_is_usable(arch):
    torch.manual_seed(0)
    network = (
        timm.create_model(arch, num_classes=8, dynamic_img_size=True) if "vit" in arch else timm.create_model(arch)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_precision(network, (64, 32), CPU, "bf16", auto=False) == "bf16"
    assert network.training
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"outputs": float("nan")}, "by nan times their size"),
        ({"outputs": 1e27}, r"by 1e\+27 times their size"),
        ({"outputs": -1.0}, "by 2 times their size"),
        ({"gradients": 1e20}, r"the gradients are (inf|\S+e\+\d+), in fp32 0\.\d+"),
    ],
)
def test_half_precision_that_is_computed_wrongly_is_refused(wrong, found):
    torch.manual_seed(0)
    network = WrongInHalf(**wrong).eval()
    with pytest.raises(UsageError, match=f"This CPU computes bf16 wrongly: .*{found}; take --precision fp32"):
        usable_precision(network, (64, 32), CPU, "bf16", auto=False)
    assert not network.training
    assert usable_precision(network, (64, 32), CPU, "fp32", auto=False) == "fp32"
    with pytest.warns(FastmaskWarning, match="computes bf16 wrongly.*; fp32 is used"):
        assert usable_precision(network, (64, 32), CPU, "bf16", auto=True) == "fp32"


@pytest.mark.bf16
def test_gradients_do_not_count_where_nothing_is_trained():
    network = WrongInHalf(gradients=1e20)
    assert usable_precision(network, (64, 32), CPU, "bf16", auto=False, trains=False) == "bf16"


def test_damaged_weights_are_not_the_precision_s_fault():
    network = timm.create_model("test_resnet", num_classes=8)
    nn.init.constant_(network.fc.weight, float("nan"))
    assert usable_precision(network, (64, 32), CPU, "bf16", auto=False) == "bf16"


@pytest.mark.parametrize("before", ["highest", "high"])
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_as_asked_in_a_fit_and_as_before_after_it(recwarn, before, allowed):
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = not allowed
        with pytest.raises(KeyError), tf32(CUDA, allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
            raise KeyError
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (before, not allowed)
        with tf32(CPU, allowed):
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
    assert not recwarn.list


def test_a_machine_that_cannot_compile_is_refused(monkeypatch):
    def broken(function, **options):
        def compiled(x):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(FastmaskError, match=r"cannot compile here \(Failed to find C compiler\); install a C\+\+"):
        check_compiler(CPU)
