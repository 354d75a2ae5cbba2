"""One head of the joint class, a joint head next to the others, finer bands: compared with plain PyTorch and sums."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from fastmask.api import Run
from fastmask.heads import JOINT, UNKNOWN
from fastmask.model.losses import FocalLoss
from fastmask.model.metrics import Accuracy, MacroF1
from fastmask.model.network import build_network
from fastmask.system.errors import UsageError


@pytest.fixture(scope="module")
def made(train, tmp_path_factory):
    """A function that trains a run of a kind, once; for reading only."""
    folder, found = tmp_path_factory.mktemp("runs"), {}

    def run(name: str, **settings) -> Run:
        if name not in found:
            found[name] = train(folder / name, **settings)
        return found[name]

    return run


ONE, HALF, BANDS = {"one_head": True}, {"joint_head": 0.5}, {"bands": {"age": [20, 30, 45, 60]}}


def test_one_head_trains_as_a_plain_softmax_of_18_classes(table):
    joint = table.with_joint()
    torch.manual_seed(0)
    network = build_network("test_resnet", joint.heads).eval()
    plain = torch.nn.Sequential(copy.deepcopy(network.body), torch.nn.Linear(network.body.num_features, 18))
    plain[1].load_state_dict({name: copy.deepcopy(t) for name, t in network.heads[3].state_dict().items()})
    loss, y = FocalLoss(joint.heads, gamma=0.0), torch.from_numpy(joint.train_y)
    ours, theirs = (torch.optim.SGD(net.parameters(), 0.1) for net in (network, plain))
    for step in range(3):
        x, rows = torch.randn(8, 3, 32, 32), slice(8 * step, 8 * step + 8)
        classes = y[rows, 0] * 6 + y[rows, 1] * 3 + y[rows, 2]
        for optimizer, value in (
            (ours, loss(network(x), y[rows])),
            (theirs, F.cross_entropy(plain.eval()(x), classes)),
        ):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        torch.testing.assert_close(loss(network(x), y[rows]), F.cross_entropy(plain(x), classes))
    logits = network(x)
    torch.testing.assert_close(loss.activation(logits)[:, 8:], plain(x).softmax(1))
    assert (joint.heads.joint(loss.decodes(logits)) == plain(x).argmax(1)).all()
    assert (joint.heads.joint(loss.decodes(loss.activation(logits))) == plain(x).argmax(1)).all()


def test_a_photo_with_some_labels_trains_by_the_union_of_its_joint_classes(table):
    heads = table.with_joint().heads
    logits = torch.randn(3, heads.n_logits)
    network = build_network("test_resnet", heads)
    own = {3: logits[:, 8:]}
    parts = [network.heads[i](logits, own) for i in range(3)]
    logits = torch.cat([*parts, own[3]], dim=1)
    y = torch.tensor([[0, 1, 2, 5], [UNKNOWN, UNKNOWN, 2, UNKNOWN], [1, UNKNOWN, UNKNOWN, UNKNOWN]])
    cube = logits[:, 8:].softmax(1).reshape(3, 3, 2, 3)
    expected = -(cube[0, 0, 1, 2].log() + cube[1, :, :, 2].sum().log() + cube[2, 1].sum().log()) / 3
    torch.testing.assert_close(FocalLoss(heads, gamma=0.0)(logits, y), expected)
    each = FocalLoss(heads, gamma=0.0, reduction="none")(logits, y)
    torch.testing.assert_close(each.mean(), expected)
    nothing = FocalLoss(heads)(logits.requires_grad_(), torch.full((3, 4), UNKNOWN))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def test_the_probabilities_and_predictions_of_one_head_are_those_of_its_joint_classes(made):
    run = made("one", **ONE)
    p = run.oof[[f"joint.{name}" for name in run.heads.joint_names()]].to_numpy()
    assert (run.oof["predicted"] == p.argmax(1)).all()
    for i, column in enumerate(["mask.wear", "mask.incorrect", "mask.none"]):
        np.testing.assert_allclose(run.oof[column], p[:, 6 * i : 6 * i + 6].sum(1), atol=2e-3)
    counted = np.union1d(run.oof["true"], run.oof["predicted"])
    whole = f1_score(run.oof["true"], run.oof["predicted"], labels=counted, average="macro", zero_division=0)
    assert run.scores["joint"]["macro_f1"] == pytest.approx(whole)


def test_a_joint_head_is_averaged_with_the_product_of_the_others(made):
    run = made("half", **HALF)
    mask, gender, age, joint = run.heads.split(run.probabilities)
    product = np.einsum("ni,nj,nk->nijk", mask, gender, age).reshape(len(mask), 18)
    expected = (joint + product) / 2
    np.testing.assert_allclose(run.heads.joint_probabilities(run.probabilities), expected)
    assert (run.oof["predicted"] == expected.argmax(1)).all()


def test_the_score_sees_the_sums_of_finer_bands(made):
    run = made("bands", **BANDS)
    for name, bands in (("<30", ["<20", "20-30"]), ("30-59", ["30-45", "45-60"]), ("60+", ["60+"])):
        fine = run.oof[[f"age_bands.{band}" for band in bands]].sum(axis=1)
        np.testing.assert_allclose(run.oof[f"age.{name}"], fine, atol=2e-3)


@pytest.mark.parametrize("settings", [ONE, HALF, BANDS])
def test_the_metrics_of_training_count_what_oof_is_scored_by(table, settings):
    made = table.with_joint(settings.get("joint_head", 1.0)) if "bands" not in settings else table
    heads = made.heads if "bands" not in settings else table.with_bands("age", settings["bands"]["age"]).heads
    logits, y = 3 * torch.randn(400, heads.n_logits), torch.from_numpy(heads.unjoint(np.arange(400) % 18))
    loss = FocalLoss(heads)
    predicted = heads.argmax(loss.activation(logits).numpy())
    assert (loss.decodes(logits).numpy() == predicted).all()

    class Learn:
        pred, y = logits, None

    Learn.y = y
    for metric, expected in (
        (Accuracy(heads), (heads.joint(predicted) == heads.joint(y.numpy())).mean()),
        (Accuracy(heads, "age"), (predicted[:, 2] == y.numpy()[:, 2]).mean()),
        (MacroF1(heads), f1_score(heads.joint(y.numpy()), heads.joint(predicted), average="macro")),
    ):
        metric.reset()
        metric.accumulate(Learn)
        assert metric.value == pytest.approx(expected)


def test_a_submission_of_one_head_hands_in_the_most_probable_joint_class(made, contest, tmp_path):
    run = made("one", **ONE)
    found = run.predict(contest / "eval/images", device="cpu")
    assert (found.joint == found.probabilities[:, 8:].argmax(1)).all()
    found.to_submission(contest / "eval/info.csv", tmp_path / "out.csv")
    handed = pd.read_csv(tmp_path / "out.csv").set_index("ImageID")["ans"]
    by_name = dict(zip(found.names, found.probabilities[:, 8:].argmax(1), strict=True))
    assert handed.to_dict() == by_name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**ONE, "head_weights": {"age": 2}}, "head_weights of age has no effect: it merges the classes of joint"),
        ({**ONE, "alpha": {"age": [1, 1, 2]}}, r"alpha \(--class-weight\) of age has no effect"),
        ({**BANDS, "head_weights": {"age": 2}}, "it merges the classes of age_bands; give it of age_bands"),
        ({**HALF, "head_weights": {"age": 0}}, "head_weights of age is 0, but other heads' answers depend on it"),
        ({**ONE, **HALF}, "one_head and joint_head exclude each other"),
        ({**ONE, **BANDS}, "one_head and bands exclude each other"),
        ({"joint_head": 1.0}, "joint_head: found 1.0"),
    ],
)
def test_what_has_no_effect_is_refused(train, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "run", **settings)


def test_weights_of_the_joint_class_and_its_classes_are_taken(train, tmp_path):
    run = train(tmp_path / "run", **ONE, head_weights={JOINT: 2}, alpha={JOINT: {"wear male <30": 3.0}})
    assert run.heads[JOINT].weight == 2


@pytest.mark.slow
def test_a_run_of_three_heads_starts_from_one_of_one_head_and_the_other_way_round(made, train, tmp_path):
    three = train(tmp_path / "three", pretrained=False, weights=str(made("one", **ONE).path))
    assert train(tmp_path / "one", **ONE, pretrained=False, weights=str(three.path)).heads.joint_head == 3
