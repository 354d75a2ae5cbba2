import pytest
import torch
from fastai.callback.schedule import combined_cos

from fastmask.model.schedule import lr_schedule, multistep
from fastmask.system.errors import UsageError


@pytest.mark.parametrize(
    ("milestones", "epochs", "by_hand"),
    [([10, 15], 20, [10, 15]), ([0.5, 0.75], 20, [10, 15]), ([1, 2, 19], 20, [1, 2, 19]), ([0.5, 0.75], 4, [2, 3])],
)
def test_multistep_is_that_of_pytorch(milestones, epochs, by_hand):
    steps = 7
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, by_hand, gamma=0.5)
    ours = multistep(3e-4, milestones, 0.5, epochs)
    for epoch in range(epochs):
        done = epoch / epochs
        for _ in range(steps):
            assert ours(done) == pytest.approx(optimizer.param_groups[0]["lr"])
            done += 1.0 / (steps * epochs)  # as fastai counts
        optimizer.step()
        theirs.step()


def test_a_milestone_can_be_within_an_epoch():
    one = multistep(1.0, [0.5, 0.75], 0.5, 1)
    assert [one(done) for done in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    three = multistep(1.0, [0.5, 0.75], 0.5, 3)
    assert [three(epoch / 3) for epoch in (0, 1, 2)] == [1, 1, 0.5]


def test_onecycle_is_that_of_fastai():
    rates = lr_schedule("onecycle", 1e-3, 4)[0].scheds
    theirs = combined_cos(0.25, 1e-3 / 25, 1e-3, 1e-3 / 1e5)
    for done in (0, 0.1, 0.25, 0.6, 0.99):
        assert rates["lr"](done) == theirs(done)
    assert rates["mom"](0.25) == pytest.approx(0.85)


def test_cosine_ends_at_zero_and_constant_stays():
    rate = lr_schedule("cosine", 1e-3, 4)[0].scheds["lr"]
    assert (rate(0), rate(0.5), rate(1)) == (1e-3, pytest.approx(5e-4), pytest.approx(0, abs=1e-12))
    assert lr_schedule("constant", 1e-3, 4) == []


def test_invalid_schedules_are_refused():
    with pytest.raises(UsageError, match="no schedule 'steps'; expected one of multistep"):
        lr_schedule("steps", 1e-3, 4)
    with pytest.raises(UsageError, match="Milestones"):
        multistep(1e-3, [0], 0.5, 4)
