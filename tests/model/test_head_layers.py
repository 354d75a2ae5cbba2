"""Head layers: each kind of layer against its formula, and what heads cannot have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmask.config import HeadOptions
from fastmask.data.contest import contest_heads
from fastmask.heads import JOINT, Head, Heads
from fastmask.model.head_layers import build_head_layers, layer_order
from fastmask.model.losses import FocalLoss
from fastmask.model.network import build_network
from fastmask.system.errors import UsageError

MASK, GENDER = Head("mask", ("wear", "none")), Head("gender", ("male", "female"))
AGE = Head("age", ("young", "middle", "old"), bounds=(30.0, 60.0))
JOINED = Heads([MASK, GENDER])
ONE = Heads([MASK, GENDER, Head(JOINT, tuple(JOINED.joint_names()), joint_share=1.0)])
BANDED = Heads([AGE, Head("age_bands", ("a", "b", "c", "d"), bands_of="age", finer_bounds=(20.0, 30.0, 60.0))])


def classify(heads: Heads, features: torch.Tensor) -> list[torch.Tensor]:
    """The probabilities of each head from its layer."""
    layers, logits = build_head_layers(heads, features.shape[1]), {}
    for position in layer_order(heads):
        logits[position] = layers[position](features, logits)
    return [logits[position].softmax(-1) for position in range(len(heads))]


def test_heads_of_a_joint_head_are_the_sums_of_its_probabilities():
    mask, gender, joint = classify(ONE, torch.randn(5, 7))
    table = joint.reshape(5, 2, 2)
    torch.testing.assert_close(mask, table.sum(2))
    torch.testing.assert_close(gender, table.sum(1))


def test_a_head_with_finer_bands_has_the_sums_of_theirs():
    age, bands = classify(BANDED, torch.randn(5, 7))
    torch.testing.assert_close(age, torch.stack([bands[:, :2].sum(1), bands[:, 2], bands[:, 3]], 1))


def test_a_joint_head_next_to_the_others_leaves_them_their_own_layers():
    beside = Heads([MASK, GENDER, Head(JOINT, tuple(JOINED.joint_names()), joint_share=0.5)])
    assert [beside.merges(position) for position in range(3)] == [None, None, None]
    assert beside.joined == (0, 1)
    assert beside.joint_head == 2


def test_merged_heads_have_no_loss_of_their_own():
    logits, y = torch.randn(6, ONE.n_logits), torch.tensor([[0, 1, 1], [1, 1, 3], [0, 0, 0]] * 2)
    joint = torch.nn.functional.cross_entropy(logits[:, 4:], y[:, 2])
    torch.testing.assert_close(FocalLoss(ONE, gamma=0.0)(logits, y), joint)


def test_heads_with_bands_and_a_joint_head_are_read_back():
    for heads in (ONE, BANDED):
        assert Heads.from_plain(heads.to_plain()) == heads


HEADS = contest_heads()


def network(arch: str = "test_resnet", drop_rate: float = 0.0, **options: dict[str, object]) -> torch.nn.Module:
    """A network with options of single heads."""
    per_head = {name: HeadOptions(**own) for name, own in options.items()}
    torch.manual_seed(0)
    return build_network(arch, HEADS, drop_rate=drop_rate, per_head=per_head).eval()


X = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def test_ordinal_probabilities_are_differences_of_sigmoids():
    net = network(age={"loss": "cumulative"})
    layer = net.heads[2]
    with torch.no_grad():
        layer.weight.normal_()
        layer.steps.copy_(torch.tensor([-1.5]))
        score = (net.body(X) @ layer.weight.T).double().numpy()
        found = HEADS.split(net(X))[2].softmax(1)
    first = float(layer.first.detach())
    thresholds = np.array([first, first + np.log1p(np.exp(-1.5))])
    below = np.hstack([np.zeros((4, 1)), 1 / (1 + np.exp(score - thresholds)), np.ones((4, 1))])
    np.testing.assert_allclose(found.numpy(), np.diff(below), atol=1e-6)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "first", "steps"}


def test_it_learns_what_statsmodels_fits():
    models = pytest.importorskip("statsmodels.miscmodels.ordinal_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = np.digitize(x @ [1.0, -0.5, 0.2] + rng.logistic(size=400), [-1, 0.5, 2])
    model = models.OrderedModel(y, x, distr="logit")
    fitted = model.fit(method="bfgs", disp=0)
    heads, options = Heads([Head("grade", tuple("abcd"))]), {"grade": HeadOptions(loss="cumulative")}
    (layer,), loss = build_head_layers(heads, 3, options), FocalLoss(heads, per_head=options)
    photos, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)[:, None]
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(layer(photos, {}), labels)
        value.backward()
        return value

    optimizer.step(closure)
    assert closure().item() == pytest.approx(-fitted.llf / 400, abs=1e-5)
    np.testing.assert_allclose(layer.weight.detach()[0], fitted.params[:3], atol=1e-2)
    thresholds = model.transform_threshold_params(fitted.params)[1:-1]
    np.testing.assert_allclose(layer.thresholds()[0].detach(), thresholds, atol=1e-2)


@pytest.mark.parametrize("score", [-300.0, 0.0, 300.0])
def test_ordinal_logarithms_and_gradients_are_finite(score):
    layer = network(age={"loss": "coral"}).heads[2]
    with torch.no_grad():
        layer.weight.fill_(1.0)
        # two thresholds as near as they can be
        layer.steps.fill_(-1e4)
    features = torch.full((1, layer.weight.shape[1]), score / layer.weight.shape[1], requires_grad=True)
    found = layer(features, {})
    found.sum().backward()
    assert found.isfinite().all()
    assert features.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()
    torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))


def test_at_first_a_score_of_0_gives_all_classes_the_same_probability():
    heads = Heads([Head("grade", tuple("abcde"))])
    (layer,) = build_head_layers(heads, 7, {"grade": HeadOptions(loss="coral")})
    torch.testing.assert_close(layer(torch.zeros(1, 7), {}).exp(), torch.full((1, 5), 0.2))


def test_a_hidden_layer_is_two_linear_ones_with_relu():
    net = network(age={"hidden": 5})
    layer = net.heads[2]
    features = net.body(X)
    inside = F.relu(F.linear(features, layer.hidden.weight, layer.hidden.bias))
    expected = F.linear(inside, layer.output.weight, layer.output.bias)
    torch.testing.assert_close(HEADS.split(net(X))[2], expected)
    assert layer.hidden.weight.shape[0] == 5


def test_a_routed_head_is_the_mean_of_its_experts_by_the_router_s_probabilities():
    net = network(age={"router": "gender"}, mask={"router": "age"})
    features = net.body(X)
    gender = F.linear(features, net.heads[1].weight, net.heads[1].bias).softmax(1)
    age = sum(
        gender[:, i : i + 1] * F.linear(features, expert.weight, expert.bias).softmax(1)
        for i, expert in enumerate(net.heads[2].experts)
    )
    found = HEADS.split(net(X))
    torch.testing.assert_close(found[2].softmax(1), age)
    mask = sum(
        age[:, i : i + 1] * F.linear(features, expert.weight, expert.bias).softmax(1)
        for i, expert in enumerate(net.heads[0].experts)
    )
    torch.testing.assert_close(found[0].softmax(1), mask)
    # the router learns from its own label alone
    found[2].sum().backward()
    assert (net.heads[1].weight.grad == 0).all()
    assert net.heads[2].experts[1].weight.grad is not None


def test_an_own_dropout_replaces_that_of_all_heads():
    net = network(drop_rate=0.5, age={"drop_rate": 0.0}, mask={"hidden": 4})
    net.dropout.train()
    net.heads.train()
    first, second = (HEADS.split(net(X)) for _ in range(2))
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert net.heads[0].dropout.p == 0.5
    rates = network(age={"drop_rate": 0.3, "hidden": 4}).heads[2]
    assert (rates.input.dropout.p, rates.dropout.p) == (0.3, 0.3)


def test_other_heads_keep_their_layers_names_and_random_weights():
    plain, own = network(), network(age={"loss": "coral", "hidden": 4, "pool": "gem"})
    for position in (0, 1):
        for name, tensor in plain.heads[position].state_dict().items():
            assert torch.equal(own.heads[position].state_dict()[name], tensor)
    assert {name for name in plain.state_dict() if name.startswith("heads")} == {
        f"heads.{i}.{name}" for i in range(3) for name in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("heads", "options", "expected"),
    [
        (HEADS, {"ages": {"hidden": 4}}, "per_head names the head 'ages', and the heads are mask, gender, age"),
        (HEADS, {"gender": {"loss": "coral"}}, "gender.loss is coral, which is for three or more classes in order"),
        (HEADS, {"age": {"router": "age"}}, "age.router is age; expected another head"),
        (HEADS, {"age": {"router": "sex"}}, "per_head names the head 'sex'"),
        (HEADS, {"age": {"router": "mask"}, "mask": {"router": "age"}}, "in a circle: .* by .* by .*; leave one"),
        (ONE, {"mask": {"hidden": 4}}, "per_head of mask has no effect: mask merges the classes of joint; name joint"),
        (ONE, {"joint": {"loss": "coral"}}, "joint.loss is coral"),
        (BANDED, {"age": {"hidden": 4}}, "age merges the classes of age_bands; name age_bands"),
        (BANDED, {"age_bands": {"router": "age"}}, "in a circle: age"),
    ],
)
def test_what_a_head_cannot_have_is_refused(heads, options, expected):
    given = {name: HeadOptions(**own) for name, own in options.items()}
    with pytest.raises(UsageError, match=expected):
        build_head_layers(heads, 7, given)
    with pytest.raises(UsageError, match=expected):
        FocalLoss(heads, per_head=given)


def test_a_number_has_no_loss_of_its_own_but_a_layer():
    heads = Heads([*HEADS, Head("age_number", tuple(map(str, range(18, 61))), spread=2.0)])
    with pytest.raises(UsageError, match=r"age_number.gamma has no effect: age_number is learned as a distribution"):
        build_head_layers(heads, 7, {"age_number": HeadOptions(gamma=1)})
    layers = build_head_layers(heads, 7, {"age_number": HeadOptions(hidden=4)})
    assert layers[3].output.weight.shape == (43, 4)
