"""What each process loads, and that two of them learn and write the same as one."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score

from fastmask.api import Run
from fastmask.config import make_config
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders
from fastmask.data.photo_dl import Share
from fastmask.system.errors import UsageError
from fastmask.system.terminal import launcher_rank
from fastmask.training.interrupts import SIGNALS, Interrupts
from fastmask.training.processes import ALONE, check_settings, join_processes

# a run, another that is resumed after a signal to the second process only, and one with such a signal at the end of its
# first fold
SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import torch

from fastmask.data.contest import read_contest
from fastmask.training.callbacks import CountedSteps
from fastmask.api import cross_validate
from fastmask.training.distributed import WholeBatchTrainer

contest, out, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
table = read_contest(contest)
cross_validate(table, out=out / "two", **settings)
steps, count = CountedSteps.before_batch, []

def ending(self):
    count.append(0)
    if len(count) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
    steps(self)

CountedSteps.before_batch = ending
try:
    cross_validate(table, out=out / "ended", **settings)
except KeyboardInterrupt:
    (out / f"ended-{os.environ['RANK']}").write_text(str(len(count)))
cross_validate(table, out=out / "ended", resume=True, **settings)

left = WholeBatchTrainer.after_fit

def late(self):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
    left(self)

WholeBatchTrainer.after_fit = late
try:
    cross_validate(table, out=out / "late", **settings)
except KeyboardInterrupt:
    (out / f"late-{os.environ['RANK']}").touch()
# gloo's threads can abort a process that ends with the group open
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def settings(small_settings, contest, tmp_path_factory):
    """A network without batch norm, steps of batches of odd sizes, a loss that is not a mean over photos.

    Some photos have a label of one head only.
    """
    images, file = contest / "eval" / "images", tmp_path_factory.mktemp("extra") / "partly.csv"
    names = sorted(path.name for path in images.iterdir())
    pd.DataFrame({"path": names, "person": names, "gender": "female"}).to_csv(file, index=False)
    loss = {
        "f1_share": 0.5,
        "feature_loss": "arcface",
        "class_weight": "auto",
        "extra": str(file),
        "extra_images": str(images),
        "per_head": {"age": {"router": "gender"}},
        "views": ["flip"],
    }
    # not AdamP, which divides by gradients and so enlarges the last digits
    step = {"opt": "sgd", "lr": 0.01, "sam": 0.05, "clip": 1.0, "sched": "plateau", "plateau_patience": 0}
    return {**small_settings, **loss, **step, "arch": "test_convnext", "bs": 5, "accumulate": 3, "save_every": "100"}


@pytest.fixture(scope="module")
def one(train, settings, tmp_path_factory):
    return train(tmp_path_factory.mktemp("one") / "one", **settings)


@pytest.fixture(scope="module")
def both(contest, settings, tmp_path_factory):
    """The folder of the runs of two processes, and their log."""
    out = tmp_path_factory.mktemp("two")
    (out / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(out / "script.py"), str(contest), str(out), json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def files(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


@pytest.mark.slow
def test_two_processes_learn_what_one_does(one, both):
    run = Run.load(both[0] / "two")
    assert run.environment["processes"] == 2
    for fold in range(2):
        (mine,), (theirs,) = one.checkpoints(fold), run.checkpoints(fold)
        assert mine.name == theirs.name
        a, b = load_file(mine), load_file(theirs)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=0)
        left, right = one.history(fold), run.history(fold)
        np.testing.assert_allclose(left.to_numpy(), right.to_numpy(), atol=1e-5, rtol=0)
    # their predictions are complete and in order
    pd.testing.assert_frame_equal(one.oof, run.oof, check_exact=False, atol=1e-5, rtol=0)
    expected = f1_score(run.oof["true"], run.oof["predicted"], average="macro")
    assert run.scores["joint"]["macro_f1"] == pytest.approx(expected)


@pytest.mark.slow
def test_only_the_first_writes_and_prints(one, both):
    out, said = both
    assert files(out / "two") == files(one.path)
    lines = [line for line in said.splitlines() if line.startswith("fold 1/2 epoch 1/2")]
    # in the three runs
    assert len(lines) == 3
    assert "2 processes together" in said


@pytest.mark.slow
def test_a_signal_to_one_ends_all_at_the_same_step_and_they_resume(both):
    out, _ = both
    assert [(out / f"ended-{number}").read_text() for number in range(2)] == ["2", "2"]
    for name in files(out / "two"):
        if name.endswith((".safetensors", "oof.csv", "history.csv", "scores.json")):
            assert (out / "two" / name).read_bytes() == (out / "ended" / name).read_bytes(), name


@pytest.mark.slow
def test_a_signal_at_the_end_of_a_fold_ends_all_before_the_next(both):
    out, _ = both
    assert all((out / f"late-{number}").exists() for number in range(2))
    assert Run.load(out / "late").trained_folds == [0]


@pytest.mark.parametrize(("photos", "of"), [(6, 2), (7, 2), (1, 3), (5, 4)])
def test_shares_are_of_one_size_and_begin_with_the_batch(photos, of):
    batch = list(range(photos))
    parts = [Share(number, of).part(batch) for number in range(of)]
    assert {len(part) for part in parts} == {-(-photos // of)}
    joined = [each for part in parts for each in part]
    assert joined[:photos] == batch
    assert set(joined) == set(batch)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.semaphores, pytest.mark.slow])])
def test_the_shares_of_a_loader_are_the_batches(table, workers):
    folds = assign_folds(table, 2)

    def loaded(share):
        dls = dataloaders(table, 0, folds, bs=10, num_workers=workers, share=share, device="cpu")
        return [*dls.train, *dls.valid], [dls.train.photos_in(0), dls.valid.photos_in(4)]

    whole, counts = loaded(ALONE.share)
    parts, more = zip(*(loaded(Share(number, 2)) for number in range(2)), strict=True)
    assert list(more) == [counts, counts] == [[10, 2], [10, 2]]
    for batch, *shares in zip(whole, *parts, strict=True):
        for tensor, *pieces in zip(batch, *shares, strict=True):
            assert torch.equal(tensor, torch.cat(pieces))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hours": 1.0}, "--hours"),
        ({"minutes": 1.0}, "--minutes"),
        ({"bs": "auto"}, "--bs auto"),
        ({"compile": "auto"}, "--compile auto"),
        ({"on_bad_photo": "skip"}, "--on-bad-photo skip"),
        ({"device": "cuda:1"}, "--device cuda:1"),
    ],
)
def test_settings_that_several_cannot_have_are_refused(settings, named):
    with pytest.raises(UsageError, match=named):
        check_settings(make_config(settings))


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert launcher_rank() == (0, 1)
    # as a scheduler sets it, without an address
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert join_processes(make_config()) is ALONE
    assert ALONE.highest(3) == 3


def test_without_accelerate_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fastmask.training.processes.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "fastmask\[parallel\]"'):
        check_settings(make_config())


def test_the_default_directory_is_refused(fastmask, contest, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    answer = fastmask("fit", "--data", contest)
    assert answer.code == 2
    assert answer.errors == ["Several processes that train together need --out, the run directory."]
    monkeypatch.setenv("RANK", "1")
    answer = fastmask("fit", "--data", contest)
    assert (answer.code, answer.errors) == (2, [])


def test_a_signal_that_a_launcher_passes_on_is_not_a_second_one():
    with Interrupts(passes_on=True) as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    """As under nohup and in background jobs of a script."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(number)
            signal.raise_signal(number)
        assert interrupts.received is None
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
