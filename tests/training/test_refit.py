import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fastmask.api import Run
from fastmask.system.errors import UsageError
from fastmask.training.callbacks import CountedSteps
from fastmask.training.plan import Plan
from fastmask.training.setup import prepare


@pytest.fixture(scope="module")
def refitted(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("refit") / "run", refit=2, workers=0)


@pytest.mark.slow
def test_the_score_is_that_of_the_run_without_it(refitted, finished_run):
    assert refitted.oof.equals(finished_run.oof)


def test_each_fold_starts_from_its_best_checkpoint_over_all_photos(refitted, monkeypatch, train):
    seen = []
    learner = Plan.learner

    def watched(plan, fold, cbs=(), whole=False):
        made = learner(plan, fold, cbs, whole)
        if whole:
            seen.append((fold, made))
        return made

    (refitted.fold_path(0) / "refit.safetensors").unlink()
    monkeypatch.setattr(Plan, "learner", watched)
    train(refitted.path, resume=True, refit=2)
    ((fold, learn),) = seen
    assert fold == 0
    assert len(learn.dls.train_ds) == 84
    history = refitted.history(0)
    best = int(refitted.checkpoints(0)[0].stem.removeprefix("epoch"))
    assert learn.opt.hypers[-1]["lr"] == pytest.approx(max(history["lr"][best], 3e-5))
    assert learn.train_iter == 2 * (84 // 16)
    # two passes after the fold's own
    assert learn.dls.train.passes.next == len(history) + 2


def test_it_is_the_plain_loop_on_all_photos(refitted, table):
    """fastai's loop against one written out: the same batches, from the same weights, by the same optimizer."""
    run = Run.load(refitted.path)
    learn = prepare(table, run.config).learner(1, whole=True)
    best = run.checkpoints(1)[0]
    learn.model.load_state_dict(load_file(best))
    dl, model = learn.dls.train, learn.model.train()
    dl.passes.next = len(run.history(1))
    lr = max(float(run.history(1)["lr"][int(best.stem.removeprefix("epoch"))]), 3e-5)
    learn.create_opt()
    learn.opt.set_hyper("lr", lr)
    assert any(isinstance(cb, CountedSteps) for cb in learn.cbs)
    for _ in range(2):
        for x, y in dl:
            learn.loss_func(model(x), y).backward()
            learn.opt.step()
            learn.opt.zero_grad()
    kept, before = load_file(run.fold_path(1) / "refit.safetensors"), load_file(best)
    off, moved = (
        torch.cat([(tensor - other[name]).flatten() for name, tensor in model.named_parameters()]).norm()
        for other in (kept, before)
    )
    # an adaptive optimizer's first steps amplify rounding, so relative to what the refit has changed
    assert off <= 0.01 * moved


def test_it_is_what_the_fold_predicts_with_unless_asked_otherwise(refitted, finished_run, contest):
    photos = sorted((contest / "eval" / "images").iterdir())[:6]
    new, old = refitted.predict(photos), refitted.predict(photos, refit=False)
    np.testing.assert_array_equal(old.probabilities, finished_run.predict(photos).probabilities)
    assert np.abs(new.probabilities - old.probabilities).max() > 1e-3
    with pytest.raises(Exception, match="one checkpoint"):
        refitted.predict(photos, soup=True)


def test_refitted_weights_are_refused_as_a_start(refitted, plan_of):
    with pytest.raises(UsageError, match=r"Fold 0 would be validated on .* \(the refit of fold 0"):
        plan_of(weights=str(refitted.fold_path(0) / "refit.safetensors"))


def test_a_run_that_is_half_refitted_says_so(refitted, contest, tmp_path):
    copy = Run.load(shutil.copytree(refitted.path, tmp_path / "copy"))
    (copy.fold_path(1) / "refit.safetensors").unlink()
    photos = sorted((contest / "eval" / "images").iterdir())[:2]
    with pytest.raises(UsageError, match="fold 0 refitted, and not all others"):
        copy.predict(photos)
    assert len(copy.predict(photos, refit=False)) == 2


def test_a_submission_by_refitted_networks_has_no_score_of_the_checkpoints(refitted, contest, tmp_path, fastmask):
    run = shutil.copytree(refitted.path, tmp_path / "runs" / "copy")
    words = ["predict", run, contest / "eval" / "images", "--submission", contest / "eval" / "info.csv", "--out"]
    answer = fastmask(*words, tmp_path / "refit.csv")
    assert answer.code == 0
    assert any("These models (refitted) have no out-of-fold predictions" in line for line in answer.err)
    assert fastmask(*words, tmp_path / "plain.csv", "--no-refit").code == 0
    ledger = pd.read_csv(tmp_path / "runs" / "ledger.csv")
    assert ledger["oof_macro_f1"].isna().tolist() == [True, False]
    assert "refitted" in ledger["note"][0]
