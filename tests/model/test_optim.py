import adamp
import pytest
import timm
import torch
from torch import nn

from fastmask.model.optim import AdamP, adamp_opt


def networks():
    """The same small network in the default and in the channels-last memory format."""
    torch.manual_seed(0)
    one = timm.create_model("test_resnet", num_classes=5)
    other = timm.create_model("test_resnet", num_classes=5)
    other.load_state_dict(one.state_dict())
    return one, other.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options", [{"weight_decay": 1e-2}, {"weight_decay": 1e-5, "nesterov": True, "betas": (0.8, 0.9)}]
)
def test_steps_on_channels_last_weights_are_the_package_s_on_contiguous_ones(options):
    one, other = networks()
    theirs, ours = adamp.AdamP(one.parameters(), lr=1e-2, **options), AdamP(other.parameters(), lr=1e-2, **options)
    for step in range(20):
        g = torch.Generator().manual_seed(step)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            # every third step a gradient across the weights, which the projection acts on
            grad = torch.randn(p.shape, generator=g)
            p.grad = grad - (grad * p.data).sum() / p.data.pow(2).sum().clamp(min=1e-12) * p.data if step % 3 else grad
            q.grad = p.grad.clone().to(memory_format=torch.channels_last) if p.ndim == 4 else p.grad.clone()
        theirs.step()
        ours.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.data, p.data, atol=1e-6, rtol=1e-6)


def test_the_package_itself_refuses_channels_last():
    # the reason for the subclass: if this passes one day, ours can go
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    conv(torch.randn(1, 4, 8, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        adamp.AdamP(conv.parameters()).step()


def test_fastai_can_schedule_it_and_give_each_group_its_rate():
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    opt = adamp_opt()([list(body.parameters()), list(head.parameters())], lr=1.0)
    opt.set_hyper("lr", [0.1, 0.2])
    opt.set_hyper("mom", 0.7)
    opt.set_hyper("wd", 0.3)
    groups = opt.opt.param_groups
    assert [g["lr"] for g in groups] == [0.1, 0.2]
    assert groups[0]["betas"] == (0.7, 0.999)
    assert groups[1]["weight_decay"] == 0.3
