from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_learners import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fastmask.config import make_config
from fastmask.training.plateau import Plateau, schedule_callbacks


def scales(values, monitor, **options):
    """The factors of the rate after each epoch with one of some values of the metric."""
    cb = Plateau(monitor, **options)
    learn = SimpleNamespace(recorder=SimpleNamespace(metric_names=["epoch", monitor, "time"], values=[]))
    cb.learn = learn
    cb.before_fit()
    found = []
    for value in values:
        learn.recorder.values.append([value])
        cb.after_trained_epoch()
        found.append(cb.scale)
    return found


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize(("monitor", "mode"), [("valid_loss", "min"), ("macro_f1", "max")])
def test_it_is_that_of_torch(monitor, mode, patience):
    random = np.random.default_rng(patience)
    # steps of 0.0001 of the value are around torch's threshold
    values = np.abs(1 + np.cumsum(random.choice([-1e-4, 0, 1e-4, 2e-4, -3e-4, 0.1, -0.1], 60)))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs, expected = ReduceLROnPlateau(optimizer, mode, factor=0.3, patience=patience, eps=0), []
    for value in values:
        theirs.step(float(value))
        expected.append(optimizer.param_groups[0]["lr"])
    assert scales(values.tolist(), monitor, factor=0.3, patience=patience) == pytest.approx(expected)
    assert len(set(expected)) > 3


def test_it_lowers_the_scheduled_rate_of_each_group(make):
    """Here the metric never improves on its first value, and the rate warms up in the first epoch."""
    plateau = {"sched": "plateau", "plateau_patience": 0, "lr_gamma": 0.1, "patience": 0}
    config = make_config({**plateau, "warmup": 1, "epochs": 4, "lr": 1e-9})
    learn = make(*schedule_callbacks(config), opt_func=SGD)
    learn.fit(4)
    steps = len(learn.dls.train)
    values = [row[learn.recorder.metric_names[1:].index("macro_f1")] for row in learn.recorder.values]
    assert values == [values[0]] * 4
    rates = learn.recorder.lrs
    assert rates[:steps] == pytest.approx([1e-9 * (1e-3 + 0.999 * step / steps) for step in range(steps)])
    for epoch in (1, 2, 3):
        assert rates[epoch * steps : (epoch + 1) * steps] == pytest.approx([1e-9 * 0.1 ** (epoch - 1)] * steps)
