"""The graph: parity with plain networks, blends, batches, other bodies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")

from fastmask.config import HeadOptions
from fastmask.export.graph import Networks, build
from fastmask.export.predict_onnx import open_model
from fastmask.heads import Head, Heads
from fastmask.inference.blend import BLENDS, fit_blend
from fastmask.model.network import MultiHeadNet
from fastmask.system.errors import UsageError

HEADS = Heads([Head("colour", ("red", "green", "blue")), Head("size", ("small", "large"))])
SIZE, STATS = (32, 16), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class Body(nn.Sequential):
    """A convolution, a batch norm with statistics and a mean: what is traced in a second."""

    num_features = 64

    def __init__(self):
        super().__init__(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        nn.init.normal_(self[1].running_mean)


def networks(count, heads=HEADS, body=Body, per_head=None):
    made = [MultiHeadNet(body(), heads, options=per_head).eval() for _ in range(count)]
    for network in made:
        # heads that answer more than the middle of everything
        for name, tensor in network.heads.named_parameters():
            if name.endswith(("weight", "steps")):
                nn.init.normal_(tensor)
    return made


def photos(count):
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), np.uint8)


def by_torch(network, heads, batch):
    """Plain PyTorch, as `A.Normalize` has it: the probabilities of each head."""
    mean, std = (torch.tensor(values) for values in STATS)
    x = ((torch.from_numpy(batch) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return [part.softmax(1).numpy() for part in heads.split(network(x))]


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    first, second, third = networks(3)
    return Networks(HEADS, STATS, SIZE, {"fold0": [first, second], "fold1": [third]})


def answered(model, batch):
    return open_model(model.SerializeToString()).run(None, {"photos": batch})


@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_mean_over_folds_of_the_mean_over_their_networks(run, count):
    batch = photos(count)
    (a, b), (c,) = ([by_torch(net, HEADS, batch) for net in nets] for nets in run.members.values())
    model = build(HEADS, {"run": run})
    assert [output.name for output in model.graph.output] == ["colour", "size"]
    for head, got in enumerate(answered(model, batch)):
        np.testing.assert_allclose(got, a[head] / 4 + b[head] / 4 + c[head] / 2, atol=1e-5)
        assert got.std(axis=1).max() > 0.05


@pytest.fixture(scope="module")
def other():
    """A run that knows colours only."""
    torch.manual_seed(1)
    heads = Heads([HEADS["colour"]])
    return Networks(heads, STATS, SIZE, {"fold0": networks(1, heads)})


@pytest.mark.parametrize("how", BLENDS)
def test_runs_are_blended_as_predict_blends_them(run, other, how):
    """As the members of `other` have no size."""
    rng = np.random.default_rng(0)
    drawn = [rng.dirichlet([1] * 3, 60) for _ in range(2)], rng.dirichlet([1] * 2, 60)
    both = [np.hstack([drawn[0][0], drawn[1]]), np.hstack([drawn[0][1], np.full((60, 2), np.nan)])]
    y = np.stack([rng.integers(3, size=60), rng.integers(2, size=60)], axis=1)
    weights = [0.3, 0.7] if how in ("mean", "vote") else None
    blend, batch = fit_blend(how, HEADS, both, y, weights=weights), photos(5)
    each = [np.concatenate(answered(build(one.heads, {"one": one}), batch), axis=1) for one in (run, other)]
    wide = np.concatenate([each[1], np.full((5, 2), np.nan)], axis=1)
    got = answered(build(HEADS, {"a": run, "b": other}, blend), batch)
    np.testing.assert_allclose(np.concatenate(got, axis=1), blend.mix([each[0], wide]), atol=1e-5)


class MapBody(Body):
    """The same, with a map that heads can pool."""

    def forward_features(self, x):
        return self[2](self[1](self[0](x)))

    def forward_head(self, x):
        return self[4](self[3](x))


OWN = {
    "ordinal and pooled": {"loss": "coral", "drop_rate": 0.5, "pool": "gem"},
    "hidden": {"hidden": 5, "drop_rate": 0.5},
    "routed": {"router": "size"},
    "all": {"loss": "cumulative", "hidden": 5, "router": "size", "pool": "catavgmax"},
}


# the last one has a hidden layer, a router, an order and a pool
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name != "all" else name for name in OWN]
)
def test_layers_of_single_heads_are_exported(name):
    torch.manual_seed(0)
    first, second = networks(2, body=MapBody, per_head={"colour": HeadOptions(**OWN[name])})
    batch = photos(3)
    a, b = (by_torch(network, HEADS, batch) for network in (first, second))
    run = Networks(HEADS, STATS, SIZE, {"fold0": [first], "fold1": [second]})
    for head, got in enumerate(answered(build(HEADS, {"run": run}), batch)):
        np.testing.assert_allclose(got, (a[head] + b[head]) / 2, atol=1e-5)
    assert a[0].std(axis=1).max() > 0.05
    half = answered(build(HEADS, {"run": run}, half=True), batch)
    np.testing.assert_allclose(half[0], (a[0] + b[0]) / 2, atol=2e-2)


def test_half_precision_is_half_the_size_and_near(run):
    batch, one = photos(3), replace(run, members={"fold0": run.members["fold0"][:1]})
    full, half = build(HEADS, {"run": one}), build(HEADS, {"run": one}, half=True)
    weights = [sum(len(kept.raw_data) for kept in model.graph.initializer) for model in (full, half)]
    assert weights[1] < 0.51 * weights[0]
    gap = max(np.abs(a - b).max() for a, b in zip(answered(full, batch), answered(half, batch), strict=True))
    assert 0 < gap < 1e-2
    # the networks themselves stay as they were
    assert {p.dtype for p in run.members["fold0"][0].parameters()} == {torch.float32}


def test_a_head_of_the_inputs_name_is_refused():
    heads = Heads([Head("photos", ("one", "many"))])
    with pytest.raises(UsageError, match="'photos', as the file's input is"):
        build(heads, {})
