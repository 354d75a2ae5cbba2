import math
from collections import Counter
from copy import deepcopy

import adamp
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmask.model import adamp as adamp_module
from fastmask.model.adamp import AdamP
from fastmask.model.optim import live_opt

STEPS = 50


class CountedAdamP(adamp.AdamP):
    """The package's optimizer, which counts its projections by view."""

    projected = None

    def _projection(self, p, grad, perturb, delta, wd_ratio, eps):
        self.views = []
        perturb, ratio = super()._projection(p, grad, perturb, delta, wd_ratio, eps)
        self.projected = self.projected or Counter()
        self.projected[self.views[-1] if ratio == wd_ratio else "none"] += 1
        return perturb, ratio

    def _cosine_similarity(self, x, y, eps, view_func):
        self.views.append("channel" if view_func == self._channel_view else "layer")
        return super()._cosine_similarity(x, y, eps, view_func)


def network():
    """Weights whose scale a norm removes, by channel or as a whole, and others."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(1, 24), nn.ReLU()),
        *(nn.Conv2d(24, 24, 1, bias=False), nn.GroupNorm(1, 24), nn.ReLU()),
        *(nn.Unflatten(1, (24, 1)), nn.Conv3d(24, 8, (1, 3, 3)), nn.Flatten(), nn.Linear(8 * 6 * 6, 5)),
    )


@pytest.fixture(scope="module")
def training():
    """Of a training with the package: the initial weights, the gradients of each step, and the optimizer at the end."""
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = CountedAdamP(net.parameters(), lr=1e-3, weight_decay=1e-2)
    photos, y = torch.randn(5, 3, 12, 12), torch.arange(16) % 5
    grads = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(photos[y] + torch.randn(16, 3, 12, 12)), y).backward()
        grads.append([p.grad.clone() for p in net.parameters()])
        optimizer.step()
    return start, grads, optimizer


def default(tensor):
    return tensor.clone()


def channels_last(tensor):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.clone(memory_format=formats.get(tensor.ndim, torch.preserve_format))


def turned(tensor):
    """The same numbers in memory with the first dimension innermost."""
    return tensor.clone() if tensor.ndim < 2 else tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def sparse(tensor):
    """The same numbers in every other place of a larger memory."""
    return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]


def parameters(start, layout=default):
    return [nn.Parameter(layout(tensor)) for tensor in start]


def replay(optimizer, grads, layout=default):
    """Step the optimizer with recorded gradients; weights without one, or with None, are left out."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for each in grads:
        for p in weights:
            p.grad = None
        for p, grad in zip(weights, each, strict=False):
            p.grad = None if grad is None else layout(grad)
        optimizer.step()
    return [p.detach() for p in weights]


def assert_same(ours, theirs, atol=1e-5):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=atol, rtol=0)


def both(start, grads, layout=default, atol=1e-5, **options):
    """Replay with the package and with ours, assert that they agree, and return the two optimizers."""
    theirs = adamp.AdamP(parameters(start), **options)
    ours = AdamP(parameters(start, layout), **options)
    assert_same(replay(ours, grads, layout), replay(theirs, grads), atol)
    return theirs, ours


def test_the_recorded_training_has_all_kinds_of_projection(training):
    counts = training[2].projected
    assert set(counts) == {"channel", "layer", "none"}
    assert min(counts.values()) > STEPS / 2


@pytest.mark.parametrize("layout", [default, channels_last, turned, sparse])
def test_weights_equal_those_of_the_package_in_any_memory_format(training, layout):
    start, grads, optimizer = training
    theirs, ours = both(start, grads, layout, lr=1e-3, weight_decay=1e-2)
    assert_same(theirs.param_groups[0]["params"], optimizer.param_groups[0]["params"], 0)
    for p, q in zip(start, ours.param_groups[0]["params"], strict=True):
        assert layout(p).stride() == q.stride()
        if layout in (default, channels_last):
            # or each step would copy
            assert ours.state[q]["exp_avg"].stride() == q.stride()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1e-3, "nesterov": True, "weight_decay": 0.1},
        {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-2},
        {"lr": 1e-3, "delta": 10.0, "wd_ratio": 0.5, "weight_decay": 1.0},
        {"lr": 1e-3, "delta": 0.0, "weight_decay": 1.0},
    ],
)
def test_weights_equal_those_of_the_package_for_any_options(training, options):
    both(*training[:2], channels_last, **options)


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_neither_chunks_nor_a_gpu_s_blocks_change_the_weights(training, chunk, on_gpu, monkeypatch):
    monkeypatch.setattr(adamp_module, "_CPU_CHUNK", chunk)
    if on_gpu:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    start, grads = training[:2]
    both(start * 2, [each * 2 for each in grads], channels_last, lr=1e-3, weight_decay=1e-2)


def test_weights_of_any_shape():
    torch.manual_seed(0)
    shapes = [(), (1,), (7,), (1, 1), (5, 1), (1, 5), (0, 3), (4, 3), (4, 2, 3), (4, 3, 1, 1), (1, 3, 2, 2, 2)]
    start = [torch.randn(shape) for shape in shapes]
    grads = [[torch.randn(shape) for shape in shapes] for _ in range(5)]
    filled = [i for i, shape in enumerate(shapes) if math.prod(shape)]
    ours = replay(AdamP(parameters(start), lr=0.1), grads)
    theirs = adamp.AdamP(parameters([start[i] for i in filled]), lr=0.1)
    assert_same([ours[i] for i in filled], replay(theirs, [[each[i] for i in filled] for each in grads]))


def test_zeros_and_nan_in_weights_and_gradients():
    start = [torch.zeros(3, 4), torch.ones(3, 4), torch.ones(3, 4), torch.eye(3, 4)]
    grads = [torch.ones(3, 4), torch.zeros(3, 4), torch.full((3, 4), math.nan), torch.eye(3, 4).flip(0) * 1e-9]
    theirs, ours = adamp.AdamP(parameters(start), weight_decay=0.1), AdamP(parameters(start), weight_decay=0.1)
    replay(theirs, [grads] * 3), replay(ours, [grads] * 3)
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=0, equal_nan=True)


def test_double_precision(training):
    start, grads = training[:2]
    both([p.double() for p in start], [[g.double() for g in each] for each in grads], channels_last, 1e-12, lr=1e-3)


@pytest.mark.parametrize(("first", "second"), [(adamp.AdamP, AdamP), (AdamP, adamp.AdamP), (AdamP, AdamP)])
def test_each_loads_the_state_of_the_other(training, first, second):
    start, grads = training[:2]
    # the package steps the default memory format only
    layouts = [channels_last if each is AdamP else default for each in (first, second)]
    before = first(parameters(start, layouts[0]), lr=1e-3, weight_decay=1e-2)
    middle = replay(before, grads[:20], layouts[0])
    state = deepcopy(before.state_dict())
    assert {type(each["step"]) for each in state["state"].values()} == {int}
    assert {name for each in state["state"].values() for name in each} == {"step", "exp_avg", "exp_avg_sq"}
    after = second(parameters(middle, lambda tensor: layouts[1](tensor.contiguous())), lr=1.0)
    after.load_state_dict(state)
    whole = replay(adamp.AdamP(parameters(start), lr=1e-3, weight_decay=1e-2), grads)
    assert_same(replay(after, grads[20:], layouts[1]), whole)


def test_frozen_weights_are_kept_and_late_ones_count_their_own_steps(training):
    start, grads = training[:2]
    frozen = {0, 6, 9}
    late = [[None if i in frozen else grad for i, grad in enumerate(each)] for each in grads[:20]]
    _, ours = both(start, late + grads[20:], channels_last, lr=1e-3, weight_decay=1e-2)
    weights = ours.param_groups[0]["params"]
    assert [ours.state[p]["step"] for p in weights] == [30 if i in frozen else 50 for i in range(len(weights))]
    stayed = AdamP(parameters(start), lr=1e-3)
    assert_same([replay(stayed, late)[i] for i in frozen], [start[i] for i in frozen], 0)


def test_groups_and_schedules(training):
    start, grads = training[:2]
    optimizers = []
    for cls, layout in ((adamp.AdamP, default), (AdamP, channels_last)):
        weights = parameters(start, layout)
        groups = [
            {"params": weights[:5], "lr": 1e-3, "weight_decay": 0.1, "betas": (0.5, 0.9)},
            {"params": weights[5:], "eps": 1e-4, "delta": 0.5, "wd_ratio": 0.3, "weight_decay": 0.5},
        ]
        optimizers.append(cls(groups, lr=1e-2))
        for step, each in enumerate(grads):
            for group in optimizers[-1].param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(step / 10))
                group["weight_decay"] *= 0.97
                group["betas"] = (0.9 - step / 100, group["betas"][1])
            replay(optimizers[-1], [each], layout)
    theirs, ours = ([p for group in each.param_groups for p in group["params"]] for each in optimizers)
    assert_same(ours, theirs)


def test_weights_whose_memory_is_replaced_between_steps(training):
    start, grads = training[:2]
    ours = AdamP(parameters(start), lr=1e-3)
    replay(ours, grads[:5])
    for p in ours.param_groups[0]["params"]:
        p.data = channels_last(p.data)
    assert_same(replay(ours, grads[5:10], channels_last), replay(adamp.AdamP(parameters(start), lr=1e-3), grads[:10]))
    assert_same(replay(deepcopy(ours), grads[10:20]), replay(ours, grads[10:20]), 0)


@pytest.mark.parametrize("layout", [default, channels_last, sparse])
def test_weights_that_are_changed_in_place_between_steps(training, layout):
    start, grads = training[:2]
    both = adamp.AdamP(parameters(start), lr=1e-3), AdamP(parameters(start, layout), lr=1e-3)
    for optimizer, how in zip(both, (default, layout), strict=True):
        replay(optimizer, grads[:3], how)
        with torch.no_grad():
            for p in optimizer.param_groups[0]["params"]:
                p.mul_(0.5)
        replay(optimizer, grads[3:6], how)
    theirs, ours = (optimizer.param_groups[0]["params"] for optimizer in both)
    assert_same(ours, theirs)


class NoWaiting(TorchDispatchMode):
    """Fails on operations that sync with a GPU: values or shapes taken from tensors, and copies."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "_to_copy", "equal", "unique", "item", "lift_fresh")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.waiting, func
        indices = [i for i in args[1] if i is not None] if name in ("index", "index_put_") else []
        assert all(i.dtype != torch.bool for i in indices), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_never_syncs_with_the_device(training, nesterov, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    start, grads = training[:2]
    ours = AdamP(parameters(start, channels_last), lr=1e-3, weight_decay=1e-2, nesterov=nesterov)
    replay(ours, grads[:1])  # the indices of the channels are made once
    with NoWaiting():
        replay(ours, grads[1:3])
    theirs = adamp.AdamP(parameters(start), lr=1e-3)
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        replay(theirs, grads[:1])


def test_the_closure_has_gradients_and_its_loss_is_returned():
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = AdamP([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9
    assert p.item() == pytest.approx(2.5)
    assert p.requires_grad


def test_a_grad_scaler_unscales_and_skips():
    start = [torch.eye(3), torch.ones(3)]
    grads = [torch.full((3, 3), 0.5), torch.tensor([1.0, -2.0, 3.0])]
    plain, scaled = AdamP(parameters(start), lr=0.1), AdamP(parameters(start), lr=0.1)
    replay(plain, [grads])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, math.inf):
        scaler.scale(torch.zeros(()))
        for p, grad in zip(scaled.param_groups[0]["params"], grads, strict=True):
            p.grad = grad * 1024 * factor
        scaler.step(scaled)
        scaler.update()
    assert_same(scaled.param_groups[0]["params"], plain.param_groups[0]["params"], 0)


def test_the_package_itself_refuses_channels_last():
    # one of the reasons for our own optimizer
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    conv(torch.randn(1, 4, 8, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        adamp.AdamP(conv.parameters()).step()


def test_fastai_s_wrapper_loads_the_package_s_state(training):
    start, grads = training[:2]
    theirs = adamp.AdamP(parameters(start), lr=1e-3)
    middle = replay(theirs, grads[:10])
    opt = live_opt()(parameters(middle), lr=1.0)
    opt.load_state_dict(deepcopy(theirs.state_dict()))
    assert_same(replay(opt.opt, grads[10:]), replay(theirs, grads[10:]))
    assert opt.state_dict()["state"][0]["step"] == STEPS
