from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from fastcore.utils import class2attr
from safetensors.torch import save_file

from fastmask.model.network import build_body, stages
from fastmask.system.errors import UsageError
from fastmask.training.freeze import Freeze, frozen_part


@pytest.fixture
def make(plan_of):
    return lambda **settings: partial(plan_of(**{"lr": 1e-2, **settings}).learner, 0)


class Epochs(Callback):
    """Keeps the network after each epoch of the training, and the names of what was trained."""

    def before_fit(self):
        self.states = [self.state()]
        self.trains = []

    def state(self):
        return {name: t.clone() for name, t in self.learn.model.state_dict().items()}

    def before_step(self):
        self.trains.append({name for name, p in self.learn.model.named_parameters() if p.grad is not None})

    def after_train(self):
        self.states.append(self.state())


def changed(one, other):
    return {name for name, t in one.items() if not t.equal(other[name])}


def test_a_frozen_body_keeps_every_weight_and_statistic(make):
    epochs = Epochs()
    learn = make(freeze="body")([epochs])
    learn.fit(1)
    moved = changed(*epochs.states)
    assert moved
    assert all(name.startswith("heads.") for name in moved)
    # the optimizer is not asked to, and the body computes as in validation
    assert epochs.trains[0] == {name for name, _ in learn.model.named_parameters() if name.startswith("heads.")}
    assert all(p.requires_grad for p in learn.model.parameters())


class Stops(Callback):
    """Ends the fit in the middle of an epoch."""

    def __init__(self, error):
        self.error = error

    def after_step(self):
        raise self.error("here")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_after_a_fit_everything_is_trainable_again(make, error):
    learn = make(freeze="body")()
    with nullcontext() if error is CancelFitException else pytest.raises(error):
        learn.fit(1, cbs=Stops(error))
    assert all(p.requires_grad for p in learn.model.parameters())
    # one that is given for a fit alone
    learn = make()()
    with nullcontext() if error is CancelFitException else pytest.raises(error):
        learn.fit(1, cbs=[Freeze("body"), Stops(error)])
    assert all(p.requires_grad for p in learn.model.parameters())
    assert not any(isinstance(cb, Freeze | Stops) for cb in learn.cbs)


def test_the_first_stages_stay_until_the_epoch_of_unfreeze(make):
    epochs = Epochs()
    learn = make(freeze=2, unfreeze=3, epochs=3)([epochs])
    learn.fit(3)
    lowest = ("body.conv1", "body.bn1", "body.layer1")
    stem_and_first = {name for name in epochs.states[0] if name.startswith(lowest)}
    for before, after in ((0, 1), (1, 2)):
        moved = changed(epochs.states[before], epochs.states[after])
        assert not moved & stem_and_first
        assert {"body.layer2.0.conv1.weight", "body.layer4.0.bn1.running_mean"} <= moved
    assert stem_and_first <= changed(epochs.states[2], epochs.states[3])


def test_what_is_frozen_is_what_timm_calls_the_stages(make):
    network = make()().model
    groups = stages(network.body)
    assert len(groups) == 5
    assert sum(map(len, groups)) == len(list(network.body.parameters()))
    names = {id(p): name for name, p in network.body.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in frozen_part(network, 2)} == {"conv1", "bn1", "layer1"}
    assert len(frozen_part(network, "body")) == len(list(network.body.parameters()))


@pytest.mark.parametrize("part", [0, 6, "head"])
def test_an_unknown_part_is_refused(make, part):
    with pytest.raises(UsageError, match=f"freeze is {part}; expected body, or 1 to 5"):
        frozen_part(make()().model, part)


def test_another_network_has_no_stages():
    with pytest.raises(UsageError, match="network of build_network"):
        frozen_part(torch.nn.Linear(2, 2), "body")


def test_layer_decay_gives_each_block_its_rate_under_any_schedule(make):
    learn = make(layer_decay=0.5)()
    seen = []

    class Rates(Callback):
        def before_step(self):
            seen.append([group["lr"] for group in self.learn.opt.opt.param_groups])

    learn.fit_one_cycle(1, 1e-2, cbs=Rates())
    # five blocks of the body, then the heads
    assert len(seen[0]) == 6
    for rates in seen:
        assert rates == pytest.approx([rates[-1] * 0.5**n for n in (5, 4, 3, 2, 1, 0)])
    assert learn.opt.hypers[-1]["lr"] == seen[-1][-1]


def test_a_step_moves_a_lower_block_less(make):
    class One(Callback):
        def after_step(self):
            raise CancelFitException

    weights = {}
    for decay in (1.0, 0.1):
        learn = make(layer_decay=decay, wd=0)()
        before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
        learn.fit(1, cbs=One())
        weights[decay] = {name: (p - before[name]).norm() for name, p in learn.model.named_parameters()}
    # AdamP's first step is as long as the rate, whatever the gradient; the stem is the fifth block below the heads
    for name, expected in (("body.conv1.0.weight", 1e-5), ("heads.0.weight", 1.0)):
        assert (weights[0.1][name] / weights[1.0][name]).item() == pytest.approx(expected, rel=0.05)


def statistics(state):
    return {name for name in state if "running_" in name or "num_batches" in name}


@pytest.mark.parametrize("pretrained", [True, False])
def test_batch_norm_keeps_the_statistics_of_pretrained_weights_alone(make, tmp_path, pretrained):
    torch.manual_seed(0)
    save_file(build_body("test_resnet").state_dict(), tmp_path / "body.safetensors")
    epochs = Epochs()
    start = {"weights": str(tmp_path / "body.safetensors")} if pretrained else {}
    learn = make(freeze_bn=True, **start)([epochs])
    learn.fit(1)
    moved = changed(*epochs.states)
    assert statistics(epochs.states[0])
    assert bool(statistics(dict.fromkeys(moved))) is not pretrained
    # scales and shifts, and all other weights, are trained
    assert {name for name, _ in learn.model.named_parameters()} <= moved


def test_a_step_with_frozen_statistics_is_that_of_torch_in_evaluation_mode(make, tmp_path):
    torch.manual_seed(0)
    save_file(build_body("test_resnet").state_dict(), tmp_path / "body.safetensors")
    learn = make(freeze_bn=True, weights=str(tmp_path / "body.safetensors"))()
    seen = []
    learn.add_cb(Seen(seen))
    learn.fit(1)
    x, pred, network = seen[0]
    # test_resnet has no dropout, so evaluation mode differs in batch norm alone
    assert torch.allclose(pred, network.eval()(x), atol=1e-5)


class Seen(Callback):
    """Keeps the first batch, its predictions, and a copy of the network that made them."""

    def __init__(self, seen):
        self.seen = seen

    def after_pred(self):
        if self.training and not self.seen:
            self.seen.append((self.x.clone(), self.pred.detach().clone(), deepcopy(self.learn.model)))


def test_no_callback_hides_a_method_of_the_learner(make):
    """fastai stores a callback on the learner under its name."""

    def subclasses(kind):
        for one in kind.__subclasses__():
            yield one
            yield from subclasses(one)

    own = [kind for kind in subclasses(Callback) if kind.__module__.startswith("fastmask.")]
    assert Freeze in own
    names = {
        kind: kind.name if isinstance(kind.name, str) else class2attr(object.__new__(kind), "Callback") for kind in own
    }
    assert [kind for kind, name in names.items() if hasattr(Learner, name)] == []
    learn = make(freeze="body", unfreeze=2)()
    learn.freeze()
    assert learn.opt.frozen_idx == 1
