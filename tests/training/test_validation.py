"""Validation by the mean over views: what is scored is what predict answers, and what a plain loop over views gives."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from trained_runs import predict_by_hand

from fastmask.api import Run
from fastmask.inference.predictions import predict
from fastmask.model.losses import FocalLoss
from fastmask.model.network import MultiHeadNet
from fastmask.model.views import make_views
from fastmask.run.tensors import read_oof
from fastmask.system.errors import UsageError
from fastmask.training.rehearsal import rehearse
from fastmask.training.validation import MeanOfViews

VIEWS = ["flip", "scale"]
# all that changes what a network is, computes or answers with
MORE = {"order": "age", "joint_head": 0.5, "ema": 0.9, "accumulate": 2, "feature_loss": "arcface", "top_k": 2}


@pytest.fixture(scope="module", params=[{}, pytest.param(MORE, marks=pytest.mark.slow)], ids=["plain", "more"])
def viewed(request, train, tmp_path_factory):
    """A run whose validation averages four views of each photo."""
    return train(tmp_path_factory.mktemp("viewed") / "viewed", views=VIEWS, **request.param)


def validated(run, table, fold):
    """The rows, the photos and the last kept epoch of a fold."""
    rows = np.flatnonzero(run.folds["fold"] == fold)
    return rows, [table.photo(row) for row in rows], int(run.checkpoints(fold)[0].stem.removeprefix("epoch"))


@pytest.mark.parametrize("fold", [0, 1])
def test_the_oof_of_a_fold_is_what_predict_gives_and_a_plain_loop_over_views(viewed, table, fold):
    if viewed.config.top_k > 1:
        for file in viewed.checkpoints(fold)[1:]:
            file.rename(file.with_suffix(".kept"))
    _, photos, epoch = validated(viewed, table, fold)
    oof = read_oof(viewed.fold_path(fold), epoch)
    answers = predict(viewed, photos, members=[f"fold{fold}"], workers=0, device="cpu")
    np.testing.assert_allclose(answers.probabilities, oof, atol=1e-5)
    if not viewed.config.feature_loss:
        each = [predict_by_hand(viewed, photos, fold, view) for view in make_views(VIEWS)]
        assert len(each) == 4
        np.testing.assert_allclose(np.mean(each, axis=0), oof, atol=2e-5)
    one = predict(viewed, photos, members=[f"fold{fold}"], views=[], workers=0, device="cpu")
    assert abs(one.probabilities - oof).max() > 1e-3


def test_the_loss_and_the_metrics_of_an_epoch_are_of_the_mean(viewed, table):
    if viewed.heads.joint_head is not None:
        pytest.skip("the loss of more heads is not written down here")
    rows, _, epoch = validated(viewed, table, 0)
    probabilities, y = torch.from_numpy(read_oof(viewed.fold_path(0), epoch)), table.y[rows]
    row = viewed.history(0).iloc[epoch]
    loss = FocalLoss(viewed.heads)(probabilities.log(), torch.from_numpy(y))
    assert row["valid_loss"] == pytest.approx(float(loss), rel=1e-4)
    true, joint = viewed.heads.joint(y), viewed.heads.joint(viewed.heads.argmax(probabilities.numpy()))
    labels = sorted(set(viewed.heads.joint(table.y)))
    expected = f1_score(true, joint, labels=labels, average="macro", zero_division=0)
    assert row["macro_f1"] == pytest.approx(expected)
    assert row["accuracy"] == pytest.approx((true == joint).mean())


def test_training_is_that_of_a_run_without_views(viewed, finished_run):
    if viewed.heads.joint_head is not None:
        pytest.skip("the other run is of the plain settings")
    for fold in (0, 1):
        assert viewed.history(fold)["train_loss"].tolist() == finished_run.history(fold)["train_loss"].tolist()
    assert viewed.identity != finished_run.identity


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.bf16)])
def test_it_computes_in_the_precision_of_the_batch_and_answers_in_float32(make, precision):
    learn = make(views=VIEWS, precision=precision)
    found, _ = learn.get_preds(dl=learn.dls.valid, with_loss=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        batches = [x.as_subclass(torch.Tensor) for x, _ in learn.dls.valid]
        each = [torch.cat([learn.model.eval()(view(x)).float() for x in batches]) for view in make_views(VIEWS)]
    heads = learn.loss_func.heads
    wanted = torch.stack([torch.cat([p.softmax(1) for p in heads.split(one)], dim=1) for one in each]).mean(0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_rehearsal_validates_as_the_run_will(plan_of, monkeypatch):
    forward, photos = MultiHeadNet.forward, []
    monkeypatch.setattr(MultiHeadNet, "forward", lambda net, x: photos.append(net.training) or forward(net, x))
    counts = []
    for views in ([], ["flip"]):
        plan, before = plan_of(views=views), len(photos)
        rehearse(plan, [0], steps=1)
        counts.append(photos[before:].count(False))
    # two batches of a validation, each of two views
    assert counts[1] - counts[0] == 2


def test_without_views_there_is_no_callback(plan_of):
    learn = plan_of().learner(0)
    assert not any(isinstance(callback, MeanOfViews) for callback in learn.cbs)


@pytest.mark.parametrize(
    ("views", "message"),
    [(["up"], "There are no views 'up'; expected some of flip, shift, scale"), (["flip", "flip"], "named twice")],
)
def test_wrong_views_are_one_sentence(plan_of, views, message):
    with pytest.raises(UsageError, match=message):
        plan_of(views=views)


def test_none_is_the_word_for_no_views(plan_of):
    assert plan_of(views="none").config.views == plan_of(views=["none"]).config.views == []


def test_a_run_reads_its_views_again(viewed):
    assert Run.load(viewed.path).config.views == VIEWS
