import numpy as np
import pytest
import torch
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropy
from fastai.metrics import F1Score, accuracy, accuracy_multi, error_rate
from fastai.optimizer import Adam, Optimizer
from sklearn.metrics import f1_score
from small_learners import VALID, small_dls
from torch import nn

from fastmask.heads import Head, Heads
from fastmask.model.losses import CrossEntropyLoss, FocalLoss
from fastmask.model.metrics import Accuracy
from fastmask.system.errors import UsageError
from fastmask.training.learner import check_loss, heads_of, mask_learner


@pytest.fixture(scope="module")
def learn(table):
    learn = mask_learner(small_dls(table, augments=(VALID, VALID)), "test_resnet", pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
    return learn


def test_it_is_a_plain_fastai_learner(learn):
    assert isinstance(learn, Learner)
    assert heads_of(learn.dls).names == ("mask", "gender", "age")


def test_validate_gives_scikit_learn_s_macro_f1(learn):
    with learn.no_bar():
        _, macro_f1, *_ = learn.validate()
        probabilities, y = learn.get_preds()
    heads = heads_of(learn.dls)
    true, guess = heads.joint(y.numpy()), heads.joint(heads.argmax(probabilities.numpy()))
    classes = np.unique(heads.joint(learn.dls.truth))
    assert macro_f1 == pytest.approx(f1_score(true, guess, labels=classes, average="macro", zero_division=0))


def test_every_weight_decays_as_the_package_does_it(learn):
    assert all(group["weight_decay"] == 1e-5 for group in learn.opt.opt.param_groups)
    assert not any("do_wd" in learn.opt.state[p] for p in learn.model.parameters())


def test_a_custom_network(learn):
    own = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8))
    other = mask_learner(learn.dls, own)
    with other.no_bar(), other.no_logging():
        other.fit(1)
    assert len(other.recorder.values) == 1


def test_the_start_depends_on_the_seed_alone(learn):
    def weights(noise):
        torch.manual_seed(noise)
        network = mask_learner(learn.dls, "test_resnet", pretrained=False).model
        return torch.cat([p.flatten() for p in network.parameters()]), torch.rand(1).item()

    (one, after), (other, later) = weights(1), weights(2)
    assert torch.equal(one, other)
    assert after != later  # the global generator is not affected


def test_loaders_without_heads_are_refused():
    with pytest.raises(UsageError, match="have no heads"):
        heads_of(DataLoaders([(torch.zeros(1),)], [(torch.zeros(1),)]))


def test_precision_and_averages_are_callbacks(learn):
    names = {"precision", "accumulation", "ema"}
    assert not names & set(learn.cbs.attrgot("name"))
    other = mask_learner(learn.dls, learn.model, precision="bf16", accumulate=2, ema=0.9, metrics=[])
    assert names < set(other.cbs.attrgot("name"))
    assert (other.precision.precision, other.accumulation.batches, other.ema.decay) == ("bf16", 2, 0.9)
    assert "precision" not in mask_learner(learn.dls, learn.model, precision="auto").cbs.attrgot("name")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        mask_learner(learn.dls, learn.model, precision="fp16")


def test_defaults_can_be_replaced(learn):
    other = mask_learner(learn.dls, "test_resnet", pretrained=False, opt_func=Adam, cbs=SaveModelCallback())
    other.create_opt()
    assert isinstance(other.opt, Optimizer)
    assert hasattr(other, "save_model")
    assert other.cbs[-1].name == "save_model"


@pytest.mark.parametrize(
    ("loss", "heads"),
    [
        (CrossEntropyLossFlat(), 3),
        (CrossEntropyLossFlat(), 1),
        (LabelSmoothingCrossEntropy(), 3),
        (LabelSmoothingCrossEntropy(), 1),
        (nn.CrossEntropyLoss(), 1),
        (lambda logits, y: logits.sum(), 3),
        (FocalLoss(Heads([Head("other", ("a", "b"))])), 3),
    ],
)
def test_a_loss_that_cannot_work_is_refused_before_training(learn, loss, heads):
    of = Heads(list(heads_of(learn.dls))[:heads])
    with pytest.raises(UsageError, match=rf"cannot be the loss of {heads} heads .* as FocalLoss") as error:
        check_loss(loss, of)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", [accuracy, error_rate, accuracy_multi, F1Score(average="macro")])
def test_a_metric_of_one_class_per_photo_is_refused_before_training(learn, metric):
    with pytest.raises(UsageError, match="cannot score 3 heads; take MacroF1"):
        mask_learner(learn.dls, learn.model, metrics=metric)


def test_a_custom_metric(learn):
    def masks_right(logits, y):
        return (logits[:, :3].argmax(-1) == y[:, 0]).float().mean()

    other = mask_learner(learn.dls, learn.model, metrics=[masks_right, Accuracy(heads_of(learn.dls), "mask")])
    with other.no_bar():
        _, own, ours = other.validate()
    assert own == pytest.approx(ours)


def test_a_custom_loss(learn):
    class Halved(CrossEntropyLoss):
        def forward(self, logits, y):
            return super().forward(logits, y) / 2

    heads = heads_of(learn.dls)
    other = mask_learner(learn.dls, learn.model, loss_func=Halved(heads))
    whole = mask_learner(learn.dls, learn.model, loss_func=CrossEntropyLoss(heads))
    with other.no_bar(), whole.no_bar():
        assert other.validate()[0] == pytest.approx(whole.validate()[0] / 2)
    assert other.loss_func.reduction == "mean"


def test_single_heads_have_a_loss_and_a_layer_of_their_own(learn):
    own = mask_learner(learn.dls, "test_resnet", pretrained=False, per_head={"age": {"loss": "coral", "hidden": 4}})
    assert type(own.model.heads[2].output).__name__ == "OrdinalLayer"
    assert [type(loss).__name__ for loss in own.loss_func.losses] == ["ClassLoss", "ClassLoss", "CoralLoss"]
    with pytest.raises(UsageError, match="There is no option 'units'"):
        mask_learner(learn.dls, "test_resnet", pretrained=False, per_head={"age": {"units": 4}})
