from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_learners import AtBatch, KilledError, kill

from fastmask.model.network import build_body
from fastmask.system.errors import UsageError
from fastmask.training.linear_probe import PENALTY


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "body.safetensors"
    save_file(build_body("test_resnet").state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def probe(plan_of, table, weights):
    """A function that prepares a plan with a linear probe on a body from a file of weights."""
    return lambda **settings: plan_of(table, **{"weights": weights, "linear_probe": True, **settings})


@pytest.fixture(scope="module")
def plan(probe):
    return probe()


def test_heads_start_as_scikit_learns_logistic_regressions_on_the_bodys_features(plan):
    learn, fold = plan.learner(1), 1
    network = learn.model.eval()
    rows = plan.trained_rows(fold)
    dl = learn.dls.valid
    with torch.no_grad():
        x = torch.cat([x.as_subclass(torch.Tensor) for x, *_ in dl])
        logits, features = network(x), network.body(x)
    parts = plan.table.heads.split(logits.softmax(-1) if len(plan.table.heads) == 1 else logits)
    for i, part in enumerate(parts):
        y = plan.table.train_y[rows, i]
        scaler = StandardScaler().fit(plan.features[rows])
        # scikit-learn has one row of weights for two classes, see `fit_linear`
        strength = (2 if len(set(y)) == 2 else 1) / (PENALTY * len(y))
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaler.transform(plan.features[rows]), y)
        expected = model.predict_proba(scaler.transform(features.numpy()))
        assert part.softmax(-1).numpy() == pytest.approx(expected, abs=0.02)


def test_no_label_of_the_fold_is_fitted(plan):
    frame = plan.table.frame.copy()
    frame.loc[plan.folds == 0, "mask"] = "none"
    other = replace(plan, table=replace(plan.table, frame=frame))
    for fold, same in ((0, True), (1, False)):
        one, two = (each.learner(fold).model.heads[0].weight for each in (plan, other))
        assert torch.equal(one, two) is same


def test_other_layers_start_as_without(probe):
    hidden = {"per_head": {"age": {"hidden": 8}}}
    with_probe, without = (probe(linear_probe=on, **hidden).learner(0).model.heads for on in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(with_probe[2].parameters(), without[2].parameters(), strict=True))
    assert not torch.equal(with_probe[0].weight, without[0].weight)


def test_without_a_linear_layer_it_is_refused(probe, table):
    hidden = {name: {"hidden": 8} for name in table.heads.names}
    with pytest.raises(UsageError, match="linear_probe has no effect: no head has a linear layer"):
        probe(per_head=hidden)


def test_random_weights_have_no_features_to_fit(plan_of, table):
    assert plan_of(table, linear_probe=True).features is None


def test_the_loss_of_the_training_photos_starts_lower(plan, probe):
    losses = [float(each.learner(0).validate(ds_idx=0)[0]) for each in (plan, probe(linear_probe=False))]
    assert losses[0] < losses[1]


def test_a_killed_run_resumes_to_the_same_bytes(train, weights, tmp_path):
    """The state replaces the probe, also with batch norm frozen."""
    settings = {"weights": weights, "linear_probe": True, "freeze_bn": True, "fold": [0]}
    whole = train(tmp_path / "whole", **settings)
    with pytest.raises(KilledError):
        train(tmp_path / "run", cbs=[AtBatch(3, kill)], save_every="1", **settings)
    resumed = train(tmp_path / "run", resume=True, **settings)
    files = sorted(file.name for file in whole.fold_path(0).glob("*.safetensors"))
    assert files
    one, two = ([(run.fold_path(0) / name).read_bytes() for name in files] for run in (whole, resumed))
    assert one == two
    assert resumed.oof.equals(whole.oof)
