from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from fastmask.system.errors import UsageError
from fastmask.training.progressive import Progressive, check_progressive, mean_area, scaled_size
from fastmask.training.rehearsal import rehearse

# by hand, from half of 64 x 32 in five equal steps
SIZES = [(32, 16), (40, 20), (48, 24), (56, 28), (64, 32)]


def test_photos_grow_in_equal_steps():
    assert [scaled_size((64, 32), 0.5, step) for step in range(5)] == SIZES
    assert mean_area((64, 32), 0.5) == pytest.approx((0.25 + 0.390625 + 0.5625 + 0.765625 + 1) / 5)
    assert mean_area((64, 32), 1.0) == 1
    assert scaled_size((3, 1), 0.1, 0) == (1, 1)


def test_training_sees_each_size_equally_long_and_validation_the_full_one(plan_of, table):
    plan, seen = plan_of(table, progressive=0.5, epochs=5, bs=4), {True: [], False: []}
    learn = plan.learner(0)
    learn.model.register_forward_pre_hook(lambda network, x: seen[network.training].append(tuple(x[0].shape[-2:])))
    learn.fit(5)
    steps = len(learn.dls.train)
    assert seen[True] == [size for size in SIZES for _ in range(steps)]
    assert set(seen[False]) == {(64, 32)}


def test_a_small_batch_is_that_of_torch_and_channels_last():
    photos = torch.rand(2, 3, 64, 32)
    callback = Progressive(0.5)
    callback.learn = SimpleNamespace(xb=(photos,), epoch=0, n_epoch=10, iter=0, n_iter=3)
    callback.before_batch()
    (small,) = callback.learn.xb
    assert torch.equal(small, interpolate(photos, size=(32, 16), mode="bilinear", antialias=True))
    assert small.is_contiguous(memory_format=torch.channels_last)


def test_a_refit_sees_the_full_size(plan_of, table):
    learn = plan_of(table, progressive=0.5, refit=1).learner(0, whole=True)
    assert not any(isinstance(callback, Progressive) for callback in learn.cbs)


def test_the_cost_of_a_run_is_that_of_its_mean_size(plan_of, table, monkeypatch):
    monkeypatch.setattr("fastmask.training.rehearsal._Stopwatch.step", lambda watch, training: 1.0)
    assert rehearse(plan_of(table)).train_step == 1
    assert rehearse(plan_of(table, progressive=0.5)).train_step == pytest.approx(mean_area((64, 32), 0.5))


def test_a_body_for_one_size_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 32, 4))
    check_progressive(network, "mlp", (64, 32), 1.0)
    with pytest.raises(UsageError, match=r"progressive is 0.5, but mlp cannot take photos 32 high and 16 wide"):
        check_progressive(network, "mlp", (64, 32), 0.5)
