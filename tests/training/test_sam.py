from copy import deepcopy

import pytest
import torch
from fastai.callback.training import GradientClip
from small_learners import SGD, Weights, assert_close, batches, tensors
from torch import nn

from fastmask.model.optim import named_opt
from fastmask.system.errors import UsageError
from fastmask.training.callbacks import CountedSteps
from fastmask.training.mix import Mix
from fastmask.training.sam import SAM, ascend
from fastmask.training.step import Precision


def sam_step(network, optimizer, loss_of, rho, adaptive=False, clip=None, frozen=()):
    """A step as github.com/davda54/sam makes it, written by hand."""
    loss_of(network).backward()
    grads = [p for p in network.parameters() if p.grad is not None]
    norm = torch.stack([((p.abs() if adaptive else 1.0) * p.grad).norm(2) for p in grads]).norm(2)
    old = [p.detach().clone() for p in grads]
    with torch.no_grad():
        for p in grads:
            p.add_((p**2 if adaptive else 1.0) * p.grad * (rho / (norm + 1e-12)))
    optimizer.zero_grad()
    kept = [(norm, norm.momentum) for norm in network.modules() if isinstance(norm, nn.BatchNorm1d)]
    for layer, _ in kept:
        layer.momentum = 0.0
        layer.num_batches_tracked -= 1
    loss_of(network).backward()
    for layer, momentum in kept:
        layer.momentum = momentum
    with torch.no_grad():
        for p, before in zip(grads, old, strict=True):
            p.copy_(before)
    if clip:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_the_plain_loop(make, adaptive, parts):
    """Over three steps, with batch norm, a clipped norm, SGD with momentum, and several parts per batch."""
    rho, clip = (2.0 if adaptive else 0.5), 0.05
    opt_func = torch.optim.SGD
    cbs = [SAM(rho, adaptive), GradientClip(clip)]
    learn = make(*cbs, bn=parts == 1, bs=14 // parts, accumulate=parts, opt_func=opt_func, lr=0.1)
    drawn, network = batches(learn)
    assert len(drawn) == 3
    optimizer = opt_func(network.parameters(), lr=0.1)
    start = tensors(network)
    for x, y in drawn:
        sam_step(network, optimizer, lambda net, x=x, y=y: learn.loss_func(net(x), y), rho, adaptive, clip)
    learn.fit(1)
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=1e-5)
    plain = make(GradientClip(clip), bn=parts == 1, bs=14 // parts, accumulate=parts, opt_func=opt_func, lr=0.1)
    plain.fit(1)
    moved = [float((network.state_dict()[n] - t).abs().max()) for n, t in start.items() if t.is_floating_point()]
    name = next(iter(start))
    assert max(moved) > 1e-3
    assert not torch.allclose(plain.model.state_dict()[name], network.state_dict()[name], atol=1e-5)


def test_it_is_around_any_optimizer_in_bf16(make):
    learn = make(SAM(0.5), precision="bf16", opt_func=named_opt("adan"), lr=0.01)
    drawn, network = batches(learn)
    optimizer = named_opt("adan")(network.parameters(), lr=0.01)

    def loss_of(net, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return learn.loss_func(net(x).float(), y)

    for x, y in drawn:
        sam_step(network, optimizer, lambda net, x=x, y=y: loss_of(net, x, y), 0.5)
    learn.fit(1)
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-5, rtol=1e-4)


def test_fp16_scales_both_passes_and_skips_overflows(make):
    """A plain loop with torch's own scaler; its first scales overflow in either pass."""
    weights = Weights()
    learn = make(Precision("fp16"), SAM(0.5), weights, lr=1e-3)
    drawn, network = batches(learn, epochs=4)
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=65536.0)

    class Scaled:
        def zero_grad(self):
            optimizer.zero_grad()

        def step(self):
            scaler.step(optimizer)
            scaler.update()

    def loss_of(net, x, y):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = learn.loss_func(net(x).float(), y)
        return scaler.scale(loss)

    for x, y in drawn:
        sam_step(network, Scaled(), lambda net, x=x, y=y: loss_of(net, x, y), 0.5)
    learn.fit(4)
    assert weights.steps
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=1e-4)


class Passes(nn.Module):
    """Keeps what each pass in training gets, after dropout."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, x):
        x = nn.functional.dropout(x, 0.5, self.training)
        if self.training:
            self.seen.append(x.detach().clone())
        return self.network(x)


def test_both_passes_have_the_same_mixed_batch_and_random_numbers(make):
    learn = make(SAM(0.1), opt_func=SGD)
    learn.add_cb(Mix(learn.loss_func.heads, mixup=0.4))
    learn.model = Passes(deepcopy(learn.model))
    learn.fit(1)
    seen = learn.model.seen
    assert len(seen) == 2 * len(learn.dls.train)
    assert all(torch.equal(one, other) for one, other in zip(seen[::2], seen[1::2], strict=True))
    assert not torch.equal(seen[0], seen[2])


def test_the_recorded_loss_is_that_of_the_first_pass(make):
    learns = make(SAM(5.0), opt_func=SGD, lr=1e-12), make(opt_func=SGD, lr=1e-12)
    for learn in learns:
        learn.fit(1)
    one, other = (torch.stack(learn.recorder.losses) for learn in learns)
    torch.testing.assert_close(one, other)


def test_frozen_weights_stay(make):
    learn = make(SAM(0.5), opt_func=SGD)
    first = learn.model[1]
    for weight in first.parameters():
        weight.requires_grad_(False)
    before, others = first.weight.clone(), learn.model[-1].weight.clone()
    learn.fit(1)
    assert torch.equal(first.weight, before)
    assert not torch.equal(learn.model[-1].weight, others)


def test_the_way_has_the_length_rho_whatever_the_scale_of_the_gradients():
    for scale in (1.0, 65536.0):
        weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
        for weight in weights:
            weight.grad = scale * torch.ones_like(weight)
        ascend(weights, 0.7)
        assert torch.cat([weight.flatten() for weight in weights]).norm().item() == pytest.approx(0.7)


def test_it_is_not_in_validation_and_its_distance_is_checked(make):
    assert not SAM(0.1).run_valid
    assert SAM.order > CountedSteps.order
    with pytest.raises(UsageError, match="above 0, found rho 0"):
        SAM(0)
