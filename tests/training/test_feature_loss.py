"""A loss on features: added to that of the heads in training, with the classes that labels of any kind have."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmask.config import make_config
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.labels import soft_labels
from fastmask.model.feature_losses import ArcFace, feature_loss_of
from fastmask.system.errors import UsageError
from fastmask.training.feature_loss import AddFeatureLoss, clear_classes

HEADS = contest_heads()
Y = torch.tensor([[0, 1, 2], [2, 0, 0], [1, 1, -1]])


def test_class_numbers_and_soft_labels_have_the_same_classes():
    for y in (Y, soft_labels(Y, HEADS), 0.3 * soft_labels(Y, HEADS)):
        assert clear_classes(y, HEADS, "joint").tolist() == [5, 12, -1]
        assert clear_classes(y, HEADS, "age").tolist() == [2, 0, -1]


def test_a_mixed_photo_has_the_class_of_more_than_half_of_it():
    a, b = soft_labels(Y[:2], HEADS), soft_labels(Y[[1, 0]], HEADS)
    shares = torch.tensor([[0.4], [0.5]])
    assert clear_classes(torch.lerp(a, b, shares), HEADS, "joint").tolist() == [5, -1]


def test_of_a_teacher_s_label_the_photo_s_own_part_counts():
    own, taught = soft_labels(Y, HEADS), soft_labels(Y.roll(1, 0).clamp(min=0), HEADS)
    assert clear_classes(torch.stack([0.3 * own, 0.7 * taught], 1), HEADS, "mask").tolist() == [0, 2, 1]


def test_training_is_that_of_a_plain_loop(plan_of):
    """A few steps of SGD on the batches of the loader, written without fastai."""
    plan = plan_of(
        feature_loss="arcface",
        feature_weight=0.5,
        opt="sgd",
        opt_args={"momentum": 0.0, "nesterov": False},
        lr=0.01,
        wd=0.0,
        epochs=1,
    )
    learn, twin = plan.learner(0), plan.learner(0)
    network, loss_func = twin.model, twin.loss_func
    network.load_state_dict(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    network.train()
    for x, y in twin.dls.train:
        x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
        features = network.body(x)
        logits = torch.cat([layer(features, {}) for layer in network.heads], 1)
        cosines = F.linear(F.normalize(features), F.normalize(network.feature_loss.weight))
        joint, rows = y[:, 0] * 6 + y[:, 1] * 3 + y[:, 2], torch.arange(len(y))
        angles = cosines[rows, joint].clamp(-1, 1).acos() + 0.5
        cosines[rows, joint] = angles.cos()
        loss = loss_func(logits, y) + 0.5 * F.cross_entropy(30 * cosines, joint)
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    there = dict(learn.model.named_parameters())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, there[name], rtol=1e-3, atol=1e-5)


def test_a_run_with_centres_predicts_what_its_oof_says(train, table, tmp_path):
    run = train(tmp_path / "run", feature_loss="arcface", epochs=1)
    own = run.oof["fold"] == 0
    said = run.predict([table.root / path for path in run.oof["path"][own]], members=["fold0"])
    np.testing.assert_allclose(said.probabilities, run.probabilities[own], rtol=1e-4, atol=1e-5)


def test_what_has_no_effect_is_refused(plan_of):
    for settings, message in (
        ({"feature_weight": 0.5}, "feature_weight has no effect without feature_loss"),
        ({"feature_loss": "supcon", "freeze": "body"}, "feature_loss has no effect with a body that is frozen"),
        ({"feature_loss": "supcon", "feature_args": {"margin": 1}}, "supcon takes no 'margin'; expected some of temp"),
        ({"feature_loss": "supcon", "feature_head": "colour"}, "There is no head 'colour'"),
        ({"feature_loss": "supcon", "bs": 1}, "feature_loss has no effect with one photo per step"),
        ({"feature_loss": "arcface", "feature_args": {"centres": math.inf}}, "feature_args: found .*inf"),
        ({"feature_loss": "arcface", "feature_args": {"centres": math.nan}}, "feature_args: found .*nan"),
        ({"feature_loss": "arcface", "feature_args": {"centres": 10**12}}, "1 to 1000 centres; found margin 0.5"),
        ({"opt": "sgd", "opt_args": {"momentum": math.inf}}, "opt_args: found .*inf"),
        ({"opt": "adamw", "opt_args": {"betas": [0.9, math.nan]}}, "opt_args: found .*nan"),
    ):
        with pytest.raises(UsageError, match=message):
            plan_of(**settings)


def test_its_module_has_a_centre_per_joint_class(plan_of):
    loss = plan_of(feature_loss="arcface").learner(0).model.feature_loss
    assert isinstance(loss, ArcFace)
    assert loss.weight.shape[0] == HEADS.n_joint


def test_centres_for_countless_joint_classes_are_refused():
    heads = Heads([Head(f"h{number}", tuple("abcdef")) for number in range(12)])
    config = make_config({"feature_loss": "arcface"})
    with pytest.raises(UsageError, match=r"make 2,176,782,336 joint classes, .* name one of the heads"):
        feature_loss_of(config, heads)
    # which has no weights of its own
    assert feature_loss_of(make_config({"feature_loss": "supcon"}), heads)(5).classes == 6**12
    assert feature_loss_of(make_config({"feature_loss": "arcface", "feature_head": "h3"}), heads)(5).classes == 6


def test_it_takes_what_several_processes_have_gathered():
    distributed = pytest.importorskip("fastmask.training.distributed")
    assert AddFeatureLoss.order > distributed.WholeBatchTrainer.order
