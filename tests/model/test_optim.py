from torch import nn

from fastmask.data.contest import contest_heads
from fastmask.model.network import body_and_heads, build_network
from fastmask.model.optim import adamp_opt


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


def test_one_rate_for_all_groups_is_scaled_and_one_per_group_is_not():
    layers = [[nn.Linear(2, 2).weight] for _ in range(3)]
    opt = adamp_opt(lr_scales=(0.25, 0.5, 1.0))(layers, lr=0.4)
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
