from functools import partial

import fastai.optimizer
import pytest
import timm.optim
import torch
from fastai.optimizer import OptimWrapper
from torch import nn

from fastmask.data.contest import contest_heads
from fastmask.model.adamp import AdamP
from fastmask.model.network import body_and_heads, build_network
from fastmask.model.optim import (
    check_steps,
    list_optimizers,
    live_opt,
    named_opt,
    optimizer_arguments,
    optimizer_class,
)
from fastmask.system.errors import UsageError


def stepped(optimizer, weights, steps=3):
    """The weights after some steps of seeded gradients."""
    for number in range(steps):
        torch.manual_seed(number)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def some_weights():
    torch.manual_seed(7)
    return [nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (4,))]


def test_fastai_can_schedule_it_and_give_each_group_its_rate():
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    opt = live_opt()([list(body.parameters()), list(head.parameters())], lr=1.0)
    opt.set_hyper("lr", [0.1, 0.2])
    opt.set_hyper("mom", 0.7)
    opt.set_hyper("wd", 0.3)
    groups = opt.opt.param_groups
    assert [g["lr"] for g in groups] == [0.1, 0.2]
    assert groups[0]["betas"] == (0.7, 0.999)
    assert groups[1]["weight_decay"] == 0.3


def test_one_rate_for_all_groups_is_scaled_and_one_per_group_is_not():
    layers = [[nn.Linear(2, 2).weight] for _ in range(3)]
    opt = live_opt(lr_scales=(0.25, 0.5, 1.0))(layers, lr=0.4)
    assert [g["lr"] for g in opt.opt.param_groups] == [0.1, 0.2, 0.4]
    opt.set_hyper("lr", 4.0)
    opt.set_hyper("mom", 0.8)
    assert [g["lr"] for g in opt.opt.param_groups] == [1.0, 2.0, 4.0]
    assert [g["betas"][0] for g in opt.opt.param_groups] == [0.8] * 3
    opt.set_hyper("lr", [1.0, 1.0, 1.0])
    assert [h["lr"] for h in opt.hypers] == [1.0] * 3


def test_fastai_s_groups_are_the_body_and_the_heads():
    network = build_network("test_resnet", contest_heads())
    body, heads = body_and_heads(network)
    assert len(heads) == 2 * 3
    assert len(body) + len(heads) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("name", "arguments", "theirs"),
    [
        ("adamw", {"betas": [0.8, 0.9]}, partial(torch.optim.AdamW, betas=(0.8, 0.9))),
        ("adam", {}, torch.optim.Adam),
        ("radam", {}, torch.optim.RAdam),
        ("adamax", {}, torch.optim.Adamax),
        ("momentum", {}, partial(torch.optim.SGD, momentum=0.9)),
        ("sgd", {"nesterov": False, "momentum": 0.5}, partial(torch.optim.SGD, momentum=0.5)),
        ("lion", {}, timm.optim.Lion),
        ("adan", {}, timm.optim.Adan),
        ("nadamw", {}, timm.optim.NAdamW),
        ("rprop", {}, torch.optim.Rprop),
    ],
)
def test_a_named_optimizer_is_that_of_torch_or_timm(name, arguments, theirs):
    """With the same weight decay on every weight, biases included."""
    decay = {} if name == "rprop" else {"weight_decay": 0.1}
    ours, others = some_weights(), some_weights()
    opt = live_opt(named_opt(name, **arguments))([ours[:1], ours[1:]], lr=0.01)
    opt.set_hyper("wd", 0.1)
    expected = stepped(theirs(others, lr=0.01, **decay), others)
    for one, other in zip(stepped(opt, ours), expected, strict=True):
        assert torch.equal(one, other)


def test_adamp_is_ours():
    assert optimizer_class("adamp") is AdamP
    assert optimizer_arguments("adamp") == {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "delta": 0.1,
        "wd_ratio": 0.1,
        "nesterov": False,
    }


@pytest.mark.parametrize(
    ("name", "keys"),
    [("sgd", ["momentum"]), ("adan", ["betas"]), ("muon", ["momentum", "betas"]), ("rmsprop", ["momentum"])],
)
def test_a_scheduled_momentum_reaches_each_optimizer(name, keys):
    weights = some_weights()
    opt = live_opt(named_opt(name))([weights], lr=0.1)
    opt.set_hyper("mom", 0.42)
    (group,) = opt.opt.param_groups
    assert [group[key] if key == "momentum" else group[key][0] for key in keys] == [0.42] * len(keys)
    assert name != "adan" or group["betas"][1:] == timm.optim.Adan(some_weights()).param_groups[0]["betas"][1:]


def test_what_an_optimizer_lacks_is_left_out_of_its_schedule():
    opt = live_opt(named_opt("rprop"))([some_weights()], lr=0.1)
    before = dict(opt.hypers[0])
    opt.set_hyper("mom", 0.5)
    opt.set_hyper("wd", 0.5)
    assert dict(opt.hypers[0]) == before
    with pytest.raises(KeyError):
        opt.set_hyper("learning_rate", 0.5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adamq", {}, "no optimizer 'adamq'; expected adamp or one of timm's, such as adam"),
        ("sam", {}, "around any optimizer, by a setting of its own: --sam 0.05"),
        ("lbfgs", {}, "by a closure, which fastmask does not do"),
        ("sgd", {"momentun": 1}, "no argument 'momentun'; it takes momentum=0.9, dampening=0, nesterov=True"),
        ("adamw", {"lr": 1}, "is the setting lr: give --lr"),
        ("adamw", {"weight_decay": 1}, "is the setting wd: give --wd"),
        ("adamw", {"betas": 0.9}, "betas of optimizer adamw is 0.9; expected a value such as betas=0.9,0.999"),
        ("adamw", {"betas": [0.9, True]}, "betas of optimizer adamw"),
        ("adamw", {"amsgrad": 1}, "expected a value such as amsgrad=False"),
        ("adamw", {"foreach": "perhaps"}, "foreach of optimizer adamw is 'perhaps'"),
        ("sgd", {"momentum": "high"}, "momentum of optimizer sgd is 'high'"),
        ("bnbadam", {}, "cannot be used here"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        named_opt(name, **arguments)


def test_every_optimizer_of_timm_is_listed():
    assert {*timm.optim.list_optimizers(), "adamp", "asgd", "rprop"} == set(list_optimizers())


@pytest.mark.parametrize(
    "opt_func",
    [
        torch.optim.AdamW,
        partial(torch.optim.AdamW),
        partial(OptimWrapper, opt=torch.optim.AdamW),
        lambda params, lr: torch.optim.AdamW([p for group in params for p in group], lr=lr),
    ],
)
def test_a_custom_optimizer_is_a_class_or_fastai_s_opt_func(opt_func):
    ours, others = some_weights(), some_weights()
    opt = live_opt(opt_func)([ours], lr=0.01)
    opt.set_hyper("wd", 0.2)
    expected = stepped(torch.optim.AdamW(others, lr=0.01, weight_decay=0.2), others)
    assert all(map(torch.equal, stepped(opt, ours), expected))


def test_layer_decay_scales_custom_optimizers_but_not_fastai_s_own():
    layers = [[nn.Linear(2, 2).weight] for _ in range(2)]
    for opt_func in (torch.optim.SGD, partial(OptimWrapper, opt=torch.optim.SGD)):
        opt = live_opt(opt_func, lr_scales=(0.5, 1.0))(layers, lr=0.4)
        opt.set_hyper("lr", 2.0)
        assert [g["lr"] for g in opt.opt.param_groups] == [1.0, 2.0]
    with pytest.raises(UsageError, match="one of fastai's own"):
        live_opt(fastai.optimizer.Adam, lr_scales=(0.5, 1.0))(layers, lr=0.4)


class Switching(torch.optim.SGD):
    """As optimizers without schedules are, which train on other weights than they validate."""

    def train(self): ...

    def eval(self): ...


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (torch.optim.LBFGS(some_weights()), "by a closure"),
        (timm.optim.Adahessian(some_weights()), "gradients of gradients"),
        (Switching(some_weights(), lr=1.0), "a mode for training"),
    ],
)
def test_optimizers_that_need_another_loop_are_refused(made, why):
    with pytest.raises(UsageError, match=why):
        check_steps(made)
    check_steps(torch.optim.SGD(some_weights(), lr=1.0))
