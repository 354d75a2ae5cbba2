import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from small_learners import rehearsal

from fastmask.training import bench as bench_module
from fastmask.training.bench import Bench, advice, bare_step, bench, loading_seconds


@pytest.fixture(scope="module")
def plan(plan_of):
    return plan_of()


def measured(**given):
    numbers = {"bs": 10, "load": 0.001, "bare": 0.1, "train": 0.102, "efficiency": 0.98, "advice": ["rest"]}
    return Bench(**{**numbers, **given}, rehearsal=rehearsal())


def test_a_bench_gives_times_of_all_three_and_a_whole_run(plan):
    made = bench(plan, seconds=0.3)
    assert made.bs == 16
    assert 0 < made.load < made.train
    assert made.bare > 0
    assert 0.2 < made.efficiency < 2
    assert made.efficiency == made.bare / made.train
    plain = json.loads(json.dumps(made.to_plain()))
    assert plain["run_seconds"] == pytest.approx(made.rehearsal.run_seconds)
    assert made.rehearsal.train_step == made.train
    assert plain["limit"] == made.limit


@pytest.mark.slow
def test_the_share_of_the_floor_tells_slow_training(plan, monkeypatch):
    """A callback that takes as long again as the step must show as half of the bare step's speed."""

    class Burden(Callback):
        def __init__(self, step):
            self.step = step

        def before_batch(self):
            if self.training:
                for _ in range(4):
                    self.step()

    step, learner = bare_step(plan, plan.learner(0).dls.train.one_batch()), type(plan).learner
    monkeypatch.setattr(type(plan), "learner", lambda self, fold, cbs=(): learner(self, fold, [*cbs, Burden(step)]))
    made = bench(plan, seconds=0.3)
    assert made.efficiency < 0.4
    assert made.limit == "what is done around the network's step"


def test_the_bare_step_trains_on_one_batch(plan):
    torch.manual_seed(0)
    batch = plan.learner(0).dls.train.one_batch()
    losses = []
    monitor = plan.loss()

    class Kept(type(monitor)):
        def forward(self, logits, y):
            loss = super().forward(logits, y)
            losses.append(float(loss.detach()))
            return loss

    own = replace(plan, loss_func=lambda heads: Kept(heads), config=plan.config.model_copy(update={"lr": 0.01}))
    step = bare_step(own, batch)
    for _ in range(12):
        step()
    assert losses[-1] < losses[0] / 2


def test_the_bare_step_has_the_optimizer_of_the_plan_and_its_passes(plan):
    batch, calls = plan.learner(0).dls.train.one_batch(), []

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            calls.append("step")
            return super().step(closure)

    class Kept(type(plan.loss())):
        def forward(self, logits, y):
            calls.append("pass")
            return super().forward(logits, y)

    sam = plan.config.model_copy(update={"opt": "own", "sam": 0.05})
    bare_step(replace(plan, loss_func=Kept, opt_func=Counted, config=sam), batch)()
    assert calls == ["pass", "pass", "step"]
    assert any("without --sam" in tip for tip in advice(replace(plan, config=sam), 0.001, 1.0, 1.0, 0))


def test_the_loader_s_time_is_per_batch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow:
        num_workers = 0

        def __iter__(self):
            for _ in range(4):
                now[0] += 0.02
                yield (torch.zeros(1),)

    assert loading_seconds(Slow(), 0.1) == pytest.approx(0.02)


def test_words_and_limits():
    text = str(measured())
    assert "loading      0.100 ms per photo,  10000.0 photos/s" in text
    assert "training    10.200 ms per photo,     98.0 photos/s: 98.0% of the bare step's speed" in text
    assert "limit     the network itself" in text
    rows = ["loading", "bare", "training", "limit", "step", "epoch", "run", "memory", "disk", "change"]
    assert [line.split()[0] for line in text.splitlines()] == rows
    assert text.splitlines()[-1] == "change    rest"
    assert measured(efficiency=0.5, load=0.09).limit == "loading"
    assert measured(efficiency=0.5).limit == "what is done around the network's step"


def test_advice_is_of_what_was_measured(plan):
    assert any("fewer pixels" in tip for tip in advice(plan, 0.001, 1.0, 1.0, 0))
    assert any(
        "loading is as slow as the network: more than --workers 0" in tip for tip in advice(plan, 1.0, 1.0, 2.0, 0)
    )
    slow = replace(plan, config=plan.config.model_copy(update={"augment": ["augmix", "clahe"]}))
    assert any(tip.endswith("a lighter augmentation than augmix, clahe") for tip in advice(slow, 1.0, 1.0, 2.0, 0))
    assert any("--cache disk" in tip for tip in advice(replace(plan, maps=()), 0.001, 1.0, 1.0, 0))
