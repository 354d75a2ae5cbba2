import os

import pytest
import torch

from fastmask.api import Run
from fastmask.model.network import MultiHeadNet
from fastmask.system.errors import FastmaskError
from fastmask.training.rehearsal import _Stopwatch, fit_batch_size, rehearse


@pytest.fixture
def plan(plan_of):
    return plan_of(bs=4, epochs=7, top_k=2)


def test_it_reckons_with_what_a_run_would_do(plan):
    cost = rehearse(plan)
    # 84 photos, two folds of 42
    assert (cost.train_steps, cost.valid_steps, cost.epochs, cost.folds) == (10, 11, 7, 2)
    assert cost.run_seconds == pytest.approx(2 * 7 * (10 * cost.train_step + 11 * cost.valid_step))
    assert rehearse(plan, [1]).run_seconds > 0
    assert 1.0 < cost.loss < 1.5  # focal losses of three untrained heads, by hand: 0.25 ln 2 + 2 * 0.44 ln 3 = 1.14
    assert cost.memory > 1e8


def test_a_rehearsal_of_some_seconds_has_more_steps(plan, monkeypatch):
    steps, step = [], _Stopwatch.step
    monkeypatch.setattr(_Stopwatch, "step", lambda watch, on: steps.append(watch.seconds[on][1:]) or step(watch, on))
    rehearse(plan)
    assert [len(each) for each in steps] == [3, 3]
    least, steps[:] = 2 * max(map(sum, steps)), []
    rehearse(plan, least=least)
    # 10 steps of training and 11 of validation are in an epoch
    assert all(sum(each) >= least or len(each) > 8 for each in steps)
    assert min(map(len, steps)) > 3


MORE = {"ema": 0.9, "accumulate": 2, "top_k": 2, "epochs": 3}


@pytest.mark.parametrize("more", [{}, pytest.param(MORE, marks=pytest.mark.slow)])
def test_the_disk_is_the_most_that_a_real_run_takes(train, plan_of, tmp_path, monkeypatch, more):
    cost, taken, replace = rehearse(plan_of(**more)), [], os.replace

    def replacing(*paths):
        # at this moment a file is on the disk twice
        taken.append(sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file()))
        replace(*paths)

    monkeypatch.setattr(os, "replace", replacing)
    train(tmp_path / "run", **more)
    # names and settings take space, too, which is visible with so small a network
    assert 0.6 * cost.disk < max(taken) < 1.1 * cost.disk


@pytest.fixture
def room(request, monkeypatch):
    """How many photos at once a network has memory for in training."""
    forward = MultiHeadNet.forward

    def hungry(self, x):
        if len(x) > request.param and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(self, x)

    monkeypatch.setattr(MultiHeadNet, "forward", hungry)


@pytest.mark.parametrize(
    ("room", "settings", "bs", "batches"),
    # in the last case a step takes all 42 photos, in parts of 14
    [(99, {}, 32, 1), (20, {}, 16, 2), (3, {}, 2, 16), (8, {"accumulate": 1}, 8, 4), (20, {"accumulate": 2}, 16, 4)],
    indirect=["room"],
)
def test_bs_auto_is_the_largest_that_fits_with_the_same_photos_per_step(plan_of, room, settings, bs, batches):
    said = []
    plan = fit_batch_size(plan_of(bs="auto", **settings), said.append)
    assert (plan.config.bs, plan.config.accumulate) == (bs, batches)
    assert said == [f"--bs auto: {bs} photos per batch" + (f", {batches} batches per step" if batches > 1 else "")]


@pytest.mark.parametrize("room", [0], indirect=True)
@pytest.mark.slow
def test_too_little_memory_for_one_photo_is_reported(plan_of, room):
    with pytest.raises(FastmaskError, match="Not even one photo fits into memory; take fewer pixels"):
        fit_batch_size(plan_of(bs="auto"))


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (
            5,
            "another --out and --bs 4 --accumulate 4, or --bs auto; if another program took the memory: fastmask fit ",
        ),
        (0, "and no smaller one fits; take fewer pixels"),
    ],
    indirect=["room"],
)
@pytest.mark.slow
def test_a_fold_without_memory_says_what_fits(train, tmp_path, room, message):
    with pytest.raises(FastmaskError) as error:
        train(tmp_path / "run")
    assert str(error.value).startswith("Fold 1/2 ran out of memory with --bs 16 (CUDA out of memory. Tried")
    assert message in str(error.value)


@pytest.mark.parametrize("room", [20], indirect=True)
@pytest.mark.slow
def test_a_run_of_bs_auto_keeps_the_size_that_it_found(train, tmp_path, monkeypatch, room):
    settings = {"bs": "auto", "epochs": 1}
    run = train(tmp_path / "run", fold=[0], **settings)
    assert (run.config.bs, run.config.accumulate) == (16, 2)
    # with more memory it would find another
    monkeypatch.undo()
    run = train(tmp_path / "run", resume=True, **settings)
    assert run.trained_folds == [0, 1]
    assert Run.load(run.path).config.bs == 16


def test_a_refit_is_on_all_photos(plan_of):
    # steps of 16 photos of 42, and of 84
    cost = rehearse(plan_of(refit=3, bs=4))
    assert (cost.train_steps, cost.refit, cost.refit_steps) == (10, 3, 20)
    assert cost.run_seconds == pytest.approx(2 * (cost.epochs * cost.epoch_seconds + 60 * cost.train_step))
    assert "then 3 epochs of each on all photos" in str(cost)


def test_it_says_so_in_words_and_leaves_nothing(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = str(rehearse(plan))
    assert [line.split()[0] for line in words.splitlines()] == ["step", "epoch", "run", "memory", "disk"]
    assert "2 folds of 7 epochs" in words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("warm", "seconds", "expected"), [(1, [9, 1, 2, 3], 2), (3, [90, 0, 0, 1, 2, 3], 2), (1, [5], 5)]
)
def test_steps_that_warm_up_do_not_count(warm, seconds, expected):
    watch = _Stopwatch(3)
    watch.warm, watch.seconds[True] = warm, seconds
    assert watch.step(True) == expected
