import io
import os

import pytest
import torch

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.model.losses import FocalLoss
from fastmask.system.errors import FastmaskError
from fastmask.training.plan import prepare
from fastmask.training.rehearsal import _Stopwatch, fitted, rehearse


@pytest.fixture
def plan(contest, small_settings):
    return prepare(read_contest(contest), make_config(small_settings, {"bs": 4, "epochs": 7, "top_k": 2}))


def test_it_reckons_with_what_a_run_would_do(plan):
    cost = rehearse(plan)
    # 84 photos, two folds of 42
    assert (cost.train_steps, cost.valid_steps, cost.epochs, cost.folds) == (10, 11, 7, 2)
    assert cost.run_seconds == pytest.approx(2 * 7 * (10 * cost.train_step + 11 * cost.valid_step))
    assert rehearse(plan, [1]).run_seconds > 0
    assert 1.0 < cost.loss < 1.5  # focal losses of three untrained heads, by hand: 0.25 ln 2 + 2 * 0.44 ln 3 = 1.14
    assert cost.memory > 1e8


@pytest.mark.parametrize("more", [{}, {"ema": 0.9, "accumulate": 2, "top_k": 2, "epochs": 4}])
def test_the_disk_is_the_most_that_a_real_run_takes(contest, small_settings, tmp_path, monkeypatch, more):
    settings = {**small_settings, **more}
    table, taken = read_contest(contest), []
    cost = rehearse(prepare(table, make_config(settings)))
    replace = os.replace

    def replacing(*paths):
        # when a file is there twice, whole beside whole
        taken.append(sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file()))
        replace(*paths)

    monkeypatch.setattr(os, "replace", replacing)
    cross_validate(table, out=tmp_path / "run", log=io.StringIO(), **settings)
    # names and settings take their place too, which shows beside so small a network
    assert 0.6 * cost.disk < max(taken) < 1.1 * cost.disk


class Hungry(FocalLoss):
    """Has no memory for more photos than `room`."""

    room = 0

    def forward(self, logits, y):
        if len(y) > Hungry.room and logits.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return super().forward(logits, y)


@pytest.mark.parametrize(("room", "bs", "batches"), [(99, 32, 1), (20, 16, 2), (3, 2, 16)])
def test_bs_auto_is_the_largest_that_fits_with_the_same_photos_a_step(
    contest, small_settings, monkeypatch, room, bs, batches
):
    monkeypatch.setattr(Hungry, "room", room)
    said = []
    auto = make_config(small_settings, {"bs": "auto"})
    plan = fitted(prepare(read_contest(contest), auto, Hungry), said.append)
    assert (plan.config.bs, plan.config.accumulate) == (bs, batches)
    assert said == [f"--bs auto: {bs} photos a batch" + (f", {batches} batches a step" if batches > 1 else "")]


def test_bs_auto_keeps_what_is_accumulated_anyway(contest, small_settings, monkeypatch):
    monkeypatch.setattr(Hungry, "room", 8)
    auto = make_config(small_settings, {"bs": "auto", "accumulate": 1})
    plan = fitted(prepare(read_contest(contest), auto, Hungry))
    assert (plan.config.bs, plan.config.accumulate) == (8, 4)


def test_no_memory_for_one_photo_is_told(contest, small_settings, monkeypatch):
    monkeypatch.setattr(Hungry, "room", 0)
    auto = make_config(small_settings, {"bs": "auto"})
    with pytest.raises(FastmaskError, match="Not even one photo fits into memory; take fewer pixels"):
        fitted(prepare(read_contest(contest), auto, Hungry))


@pytest.mark.parametrize(
    ("room", "told"),
    [
        (
            5,
            "another --out and --bs 4 --accumulate 4, or --bs auto; where other work took the memory: fastmask fit ",
        ),
        (0, "and no smaller one fits; take fewer pixels"),
    ],
)
def test_a_fold_without_memory_says_what_fits(contest, small_settings, tmp_path, monkeypatch, room, told):
    monkeypatch.setattr(Hungry, "room", room)
    with pytest.raises(FastmaskError) as error:
        cross_validate(
            read_contest(contest), out=tmp_path / "run", log=io.StringIO(), loss_func=Hungry, **small_settings
        )
    assert str(error.value).startswith("Fold 1/2 ran out of memory with --bs 16 (CUDA out of memory. Tried")
    assert told in str(error.value)


def test_a_run_of_bs_auto_keeps_what_it_found(contest, small_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Hungry, "room", 20)
    settings = {**small_settings, "bs": "auto", "epochs": 1}
    table, log = read_contest(contest), io.StringIO()
    run = cross_validate(table, out=tmp_path / "run", log=log, loss_func=Hungry, fold=[0], **settings)
    assert (run.config.bs, run.config.accumulate) == (16, 2)
    # with more memory it would find another
    monkeypatch.setattr(Hungry, "room", 99)
    run = cross_validate(table, out=tmp_path / "run", log=log, loss_func=Hungry, resume=True, **settings)
    assert run.trained_folds == [0, 1]
    assert Run.load(run.path).config.bs == 16


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
