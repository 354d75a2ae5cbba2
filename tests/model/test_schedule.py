import pytest
import torch
from fastai.callback.schedule import combined_cos
from torch.optim import lr_scheduler

from fastmask.config import Config, make_config
from fastmask.model.schedule import multistep, restarts, schedule_of
from fastmask.system.errors import UsageError

STEPS = 10


def rates(steps=STEPS, **settings):
    """The rate in each step of a training, with the fraction that is done as fastai adds it up."""
    config = make_config({"lr": 0.1, **settings})
    (callback,) = schedule_of(config)
    done, found = 0.0, []
    for _ in range(config.epochs * steps):
        found.append(float(callback.scheds["lr"](done)))
        done += 1 / (config.epochs * steps)
    return found


def of_torch(made, steps):
    """The rates of a torch scheduler that is stepped after each step of an optimizer; `made` makes it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler, found = made(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("milestones", "epochs", "by_hand"),
    [([10, 15], 20, [10, 15]), ([0.5, 0.75], 20, [10, 15]), ([1, 2, 19], 20, [1, 2, 19]), ([0.5, 0.75], 4, [2, 3])],
)
def test_multistep_is_that_of_pytorch(milestones, epochs, by_hand):
    expected = of_torch(lambda opt: lr_scheduler.MultiStepLR(opt, by_hand, gamma=0.5), epochs)
    found = rates(7, milestones=milestones, epochs=epochs)
    assert found == pytest.approx([rate for rate in expected for _ in range(7)])


def test_a_milestone_can_be_within_an_epoch():
    one = multistep(1.0, [0.5, 0.75], 0.5, 1)
    assert [one(done) for done in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    three = multistep(1.0, [0.5, 0.75], 0.5, 3)
    assert [three(epoch / 3) for epoch in (0, 1, 2)] == [1, 1, 0.5]


def cosine(steps):
    return lambda opt: lr_scheduler.CosineAnnealingLR(opt, steps)


CASES = [
    ({"sched": "cosine"}, 0, cosine),
    ({"sched": "poly"}, 0, lambda steps: lambda opt: lr_scheduler.PolynomialLR(opt, steps)),
    ({"sched": "poly", "poly_power": 2.5}, 0, lambda steps: lambda opt: lr_scheduler.PolynomialLR(opt, steps, 2.5)),
    ({"sched": "restarts"}, 0, lambda steps: lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, steps // 4)),
    (
        {"sched": "restarts", "cycle": 2, "cycle_mult": 3},
        0,
        lambda _: lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 2 * STEPS, 3),
    ),
    (
        {"sched": "restarts", "cycle": 1, "cycle_mult": 2, "warmup": 1},
        1,
        lambda _: lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, STEPS, 2),
    ),
    ({"sched": "cosine", "warmup": 0.25}, 2, cosine),
    ({"sched": "poly", "warmup": 3}, 3, lambda steps: lambda opt: lr_scheduler.PolynomialLR(opt, steps)),
    ({"sched": "constant", "warmup": 2}, 2, lambda _: lambda opt: lr_scheduler.ConstantLR(opt, 1.0)),
    ({"sched": "plateau", "warmup": 0.5}, 4, lambda _: lambda opt: lr_scheduler.ConstantLR(opt, 1.0)),
]


@pytest.mark.parametrize(("settings", "warm", "theirs"), CASES)
def test_schedules_are_those_of_pytorch_after_its_linear_warm_up(settings, warm, theirs):
    epochs = 8
    after = of_torch(theirs((epochs - warm) * STEPS), (epochs - warm) * STEPS)
    linear = lambda opt: lr_scheduler.LinearLR(opt, 1e-3, total_iters=warm * STEPS)  # noqa: E731
    expected = [*(of_torch(linear, warm * STEPS) if warm else []), *after]
    assert rates(epochs=epochs, **settings) == pytest.approx(expected, abs=1e-12)


def test_a_warm_up_leaves_milestones_where_they_are():
    found = rates(epochs=4, milestones=[2], warmup=1)
    assert found[:2] == pytest.approx([1e-4, 1e-4 + 0.1 * (1 - 1e-3) / STEPS])
    assert found[STEPS : 3 * STEPS] == pytest.approx([0.1] * STEPS + [0.05] * STEPS)


def test_a_restart_starts_at_the_full_rate():
    rate = restarts(1.0, 0.1)
    done = 0.0
    for step in range(100):
        assert (rate(done) == pytest.approx(1.0)) == (step % 10 == 0)
        done += 0.01


def test_onecycle_is_that_of_fastai():
    (callback,) = schedule_of(Config(sched="onecycle", lr=1e-3))
    theirs = combined_cos(0.25, 1e-3 / 25, 1e-3, 1e-3 / 1e5)
    for done in (0, 0.1, 0.25, 0.6, 0.99):
        assert callback.scheds["lr"](done) == theirs(done)
    assert callback.scheds["mom"](0.25) == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sched": "cosine", "milestones": [3]}, "milestones has no effect with sched cosine"),
        ({"lr_gamma": 0.1, "sched": "restarts"}, "lr_gamma has no effect with sched restarts"),
        ({"cycle": 3}, "cycle has no effect with sched multistep"),
        ({"plateau_patience": 1}, "plateau_patience has no effect with sched multistep"),
        ({"poly_power": 2, "sched": "cosine"}, "poly_power has no effect with sched cosine"),
        ({"sched": "onecycle", "warmup": 2}, "warmup has no effect with sched onecycle"),
        ({"sched": "cosine", "warmup": 20}, "warmup takes 20 of 20 epochs"),
        ({"sched": "restarts", "cycle": 19, "warmup": 1}, "cycle takes all 19 epochs, so that there is no restart"),
        ({"sched": "plateau", "plateau_patience": 4}, "patience 5 stops the fold by then"),
        ({"sched": "onecycle", "opt_args": {"momentum": 0.5}}, "momentum has no effect with sched onecycle"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        make_config(settings)
    with pytest.raises(UsageError, match="Milestones"):
        multistep(1e-3, [0], 0.5, 4)


def test_a_plateau_without_early_stopping_may_wait_long():
    assert make_config({"sched": "plateau", "plateau_patience": 9, "patience": 0}).plateau_patience == 9
    assert make_config({"sched": "plateau", "plateau_patience": 3}).plateau_patience == 3
