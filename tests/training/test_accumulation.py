"""Several batches per step: the step of one batch that many times as large, for every loss."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from small_learners import SGD, TINIEST, assert_close, batches, small_dls, small_learner
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmask.model.losses import CrossEntropyLoss, FocalLoss
from fastmask.system.errors import UsageError
from fastmask.system.randomness import Counted, Stream
from fastmask.training.finder import lr_find
from fastmask.training.learner import heads_of
from fastmask.training.mix import Mix

WEIGHTS = [[1.0, 9.0, 2.0], [4.0, 1.0], [1.0, 2.0, 8.0], None]


@pytest.fixture(scope="module")
def partly(table):
    """The photos with a third of each head's labels unknown, and the age as a distribution in addition."""
    random, frame = np.random.default_rng(0), table.frame.copy()
    for name in table.heads.names:
        frame[name] = frame[name].where(random.random(len(frame)) < 2 / 3, "")
    frame["age_value"] = frame["age_value"].where(random.random(len(frame)) < 2 / 3)
    return type(table)(frame, table.heads, table.root).with_number("age", 2.0)


class Curved(FocalLoss):
    """A custom loss that is no mean over photos."""

    def forward(self, logits, y):
        return torch.log1p(super().forward(logits, y) ** 2)


def by_torch(logits, y, heads):
    """Cross-entropy of the three heads with classes, by PyTorch alone."""
    pairs = zip(heads.split(logits), y.T, WEIGHTS[:3], strict=False)
    return sum(F.cross_entropy(p, t, torch.tensor(w), ignore_index=-1) for p, t, w in pairs)


LOSSES = {
    "focal": FocalLoss,
    "cross-entropy": CrossEntropyLoss,
    "class weights": partial(FocalLoss, alpha=WEIGHTS),
    "label smoothing": partial(FocalLoss, alpha=WEIGHTS, label_smoothing=0.2),
    "soft F1": partial(FocalLoss, f1_share=1.0),
    "some soft F1": partial(FocalLoss, alpha=WEIGHTS, f1_share=0.4),
    "custom": Curved,
}


def learner(table, bs, *cbs, loss=FocalLoss, layers=None, **settings):
    """42 photos of 16 x 8 pixels to train on, and a few layers without batch norm."""
    dls = small_dls(table, augments=(TINIEST, TINIEST), bs=bs)
    torch.manual_seed(0)
    heads = heads_of(dls)
    layers = [nn.Linear(384, 16), nn.Tanh()] if layers is None else layers(16)
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, heads.n_logits))
    return small_learner(
        dls, network, cbs, loss_func=loss(heads), **{"opt_func": SGD, "lr": 0.1, "wd": 0.0, **settings}
    )


class Gradients(Callback):
    """Keeps the gradients of each step."""

    def __init__(self):
        self.steps = []

    def before_step(self):
        self.steps.append([p.grad.clone() for p in self.learn.model.parameters()])


def plain_loop(learn, loss_func, epochs, lr=0.1):
    """The network and the gradients of a plain PyTorch loop over the learner's batches."""
    drawn, network = batches(learn, epochs)
    opt, steps = torch.optim.SGD(network.parameters(), lr=lr), []
    for x, y in drawn:
        loss_func(network(x), y).backward()
        steps.append([p.grad.clone() for p in network.parameters()])
        opt.step()
        opt.zero_grad()
    return network, steps


def assert_same_steps(learn, kept, network, steps):
    assert len(kept.steps) == len(steps) > 0
    for ours, theirs in zip(kept.steps, steps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_four_batches_of_8_are_one_of_32_in_a_plain_loop(partly, name):
    big, learn = learner(partly, 32), learner(partly, 8, kept := Gradients(), loss=LOSSES[name], accumulate=4)
    network, steps = plain_loop(big, learn.loss_func, epochs=3)
    learn.fit(3)
    assert_same_steps(learn, kept, network, steps)


def test_class_weights_and_unknown_labels_are_pytorch_s(table, partly):
    """Whose mean divides by the weights of the known labels, of all 32 photos."""
    partly = type(table)(partly.frame, table.heads, table.root)
    loss = partial(CrossEntropyLoss, alpha=WEIGHTS[:3])
    big, learn = learner(partly, 32), learner(partly, 8, kept := Gradients(), loss=loss, accumulate=4)
    network, steps = plain_loop(big, partial(by_torch, heads=table.heads), epochs=3)
    learn.fit(3)
    assert_same_steps(learn, kept, network, steps)


def test_mixed_photos_and_soft_labels_are_those_of_the_large_batch(partly):
    """Photos of one part are mixed with those of another."""
    mixes = (Mix(heads_of(small_dls(partly)), 0.4, 1.0) for _ in range(2))
    big = learner(partly, 32, theirs := Gradients(), next(mixes))
    learn = learner(partly, 8, ours := Gradients(), next(mixes), accumulate=4)
    for each in (big, learn):
        each.fit(3)
    assert_same_steps(learn, ours, big.model, theirs.steps)
    torch.testing.assert_close(learn.recorder.losses, big.recorder.losses, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("bs", "accumulate"), [(32, 2), (16, 64), (41, 9)])
def test_a_step_takes_at_most_all_photos(partly, bs, accumulate):
    loss = partial(FocalLoss, alpha=WEIGHTS)
    network, steps = plain_loop(learner(partly, 42), loss(partly.heads), epochs=2)
    learn = learner(partly, bs, kept := Gradients(), loss=loss, accumulate=accumulate)
    learn.fit(2)
    assert_same_steps(learn, kept, network, steps)


def test_a_batch_that_is_all_photos_is_computed_at_once(partly):
    learn = learner(partly, 64, accumulate=4)
    assert learn.dls.train.bs == 42
    assert not hasattr(learn, "accumulation")


def test_batch_norm_and_dropout_are_those_of_each_part_computed_once(table):
    """The second computation has the same dropout, and leaves the running statistics as they are."""

    def layers(width):
        return [nn.Linear(384, width), nn.BatchNorm1d(width), nn.Dropout(0.4), nn.Tanh()]

    big = learner(table, 20, layers=layers)
    learn = learner(table, 5, layers=layers, accumulate=4)
    drawn, network = batches(big, epochs=2)
    opt = torch.optim.SGD(network.parameters(), lr=0.1)
    for number, (x, y) in enumerate(drawn):
        torch.manual_seed(Counted(Stream.STEP, 0, 0).seed_at(*divmod(number, 2), 0))
        logits = torch.cat([network(part) for part in x.split(5)])
        learn.loss_func(logits, y).backward()
        opt.step()
        opt.zero_grad()
    learn.fit(2)
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=0)
    assert learn.model[2].num_batches_tracked == 2 * 2 * 4


def test_a_frozen_batch_norm_keeps_its_statistics(table):
    def layers(width):
        return [nn.Linear(384, width), nn.BatchNorm1d(width), nn.Tanh()]

    class Frozen(Callback):
        order = -9

        def before_train(self):
            self.learn.model[2].eval()

    small, big = (
        learner(table, *each, Frozen(), layers=layers, **more) for *each, more in ((5, {"accumulate": 4}), (20, {}))
    )
    for each in (small, big):
        each.model[2].running_mean += 0.3
        each.fit(2)
    assert_close(small.model.state_dict(), big.model.state_dict(), atol=1e-6, rtol=0)
    assert small.model[2].num_batches_tracked == 0


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it take at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {storage: size for storage, size in self.alive.items() if not storage.expired()}
        self.most = max(self.most, sum(self.alive.values()))
        return made


def test_only_one_part_s_activations_are_in_memory(table):
    def peak(bs, **settings):
        learn = learner(table, bs, layers=lambda width: [nn.Linear(384, width), *[nn.Tanh()] * 100], **settings)
        x, _ = learn.dls.train.one_batch()
        with Peak() as peak:
            learn.fit(1)
        assert len(x) == 40
        return peak.most

    activations = 40 * 16 * 4 * 100
    at_once = peak(40)
    assert at_once > activations
    assert at_once - peak(4, accumulate=10) > 0.8 * activations


def test_learning_rate_and_passes_count_steps(table):
    small, big = learner(table, 4, accumulate=2), learner(table, 8)
    for learn in (small, big):
        learn.fit_one_cycle(2, 1e-2)
    assert small.recorder.lrs == big.recorder.lrs
    assert len(set(small.recorder.lrs)) == 10
    assert [len(learn.dls.valid) for learn in (small, big)] == [11, 6]
    # the finder tries as many rates as are asked for
    assert len(lr_find(small, num_it=20).lrs) == 20
    for wrong in (0, 2.5):
        with pytest.raises(UsageError, match="a whole number of batches, 1 or more"):
            learner(table, 8, accumulate=wrong)


def test_the_photos_of_a_step_are_named(table):
    small, big = learner(table, 4, accumulate=4), learner(table, 16)
    for learn in (small, big):
        learn.fit(1)
    assert small.dls.train.photos_of(1) == big.dls.train.photos_of(1)
    assert len(small.dls.train.photos_of(1)) == 16


def test_the_given_loaders_stay_as_they_are(table):
    dls = small_dls(table, bs=8)
    learn = small_learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(32 * 16 * 3, 8)), accumulate=2)
    assert (dls.train.bs, learn.dls.train.bs, learn.dls.valid.bs) == (8, 16, 8)
    assert learn.dls.truth is dls.truth


class FailsOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.failed = False

    def forward(self, x):
        if not self.failed:
            self.failed = True
            raise KeyboardInterrupt
        return x


def test_an_interruption_leaves_no_hook_in_the_network(table):
    learn = learner(table, 8, layers=lambda width: [FailsOnce(), nn.Linear(384, width)], accumulate=4)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert not learn.model._forward_hooks
    assert not learn.model._forward_pre_hooks
    learn.fit(1)
    assert not learn.model._forward_hooks


@pytest.mark.slow
def test_a_compiled_body_is_computed_in_parts(table, monkeypatch):
    """torch's tracing without its code generation, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    def layers(width):
        return [nn.Sequential(nn.Linear(384, width), nn.BatchNorm1d(width), nn.Tanh())]

    plain, compiled = (learner(table, 5, layers=layers, accumulate=4) for _ in range(2))
    compiled.model[1].compile()
    for learn in (plain, compiled):
        learn.fit(2)
    assert_close(compiled.model.state_dict(), plain.model.state_dict(), atol=1e-6, rtol=0)
