from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_learners import AtBatch, KilledError, kill

from fastmask.model.network import build_body
from fastmask.model.probe import ProbeWeights, StageFeatures, average_places, probed_heads
from fastmask.training import linear_probe
from fastmask.training import plan as plans
from fastmask.training.budget import replan
from fastmask.training.linear_probe import fit_probe


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "body.safetensors"
    save_file(build_body("test_resnet").state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def probe(plan_of, weights):
    """A function that prepares a plan with a linear probe on a body from a file of weights."""
    return lambda **settings: plan_of(**{"weights": weights, "linear_probe": True, **settings})


@pytest.fixture(scope="module")
def plan(probe):
    return probe()


def _photos(plan, fold):
    """The validation photos of a fold as the network gets them."""
    return torch.cat([x.as_subclass(torch.Tensor) for x, *_ in plan.loaders(fold).valid])


@pytest.mark.parametrize("sides", [(6, 4), (13, 9), (7, 5), (2, 1)])
def test_places_are_averaged_as_by_adaptive_pooling(sides):
    features = torch.randn(2, 5, *sides)
    assert torch.allclose(average_places(features), F.adaptive_avg_pool2d(features, (3, 2)), atol=1e-6)


def test_it_is_scikit_learns_logistic_regression_on_what_the_body_sees(plan, monkeypatch):
    monkeypatch.setattr(linear_probe, "STRENGTHS", (1.0,))
    body = plan.learner(0).model.body.eval()
    photos = [_photos(plan, fold) for fold in range(plan.config.folds)]
    with torch.no_grad():
        last, maps = body.forward_intermediates(torch.cat(photos))
    rows = np.concatenate([np.flatnonzero(plan.folds == f) for f in range(len(photos))])
    seen = [body.forward_head(last), *(F.adaptive_avg_pool2d(each, (3, 2)).flatten(1) for each in maps[-2:])]
    features = torch.cat(seen, dim=1).numpy()
    assert StageFeatures(body)(torch.cat(photos)).numpy() == pytest.approx(features, abs=1e-5)
    table = plan.table.select(rows)
    made = fit_probe(features, table, seed=0)
    logits = torch.from_numpy(features) @ made.weight.T + made.bias
    scaler = StandardScaler().fit(features)
    x = scaler.transform(features) / np.sqrt(features.shape[1])
    for i, part in enumerate(plan.table.heads.split(logits)):
        model = make_pipeline(PCA(), LogisticRegression(C=1.0, tol=1e-6)).fit(x, table.train_y[:, i])
        assert part.softmax(-1).numpy() == pytest.approx(model.predict_proba(x), abs=0.01)


def test_logits_are_of_the_geometric_mean_with_the_network(plan):
    x, network = _photos(plan, 0)[:4], plan.learner(0).model.eval()
    with torch.no_grad():
        both, probed = plan.table.heads.split(network(x)), network.probe(x)
        network.probe = None
        alone = plan.table.heads.split(network(x))
    for i, part in enumerate(both):
        mean = (alone[i].softmax(-1) * probed[i].softmax(-1)).sqrt()
        assert torch.allclose(part.softmax(-1), mean / mean.sum(-1, keepdim=True), atol=1e-6)


def test_no_label_of_the_fold_is_fitted(probe):
    # the folds stay, since they are not stratified on the mask
    plan = probe(stratify="age")
    frame = plan.table.frame.copy()
    frame.loc[plan.folds == 0, "mask"] = "none"
    other = probe(table=replace(plan.table, frame=frame), stratify="age")
    assert (other.folds == plan.folds).all()
    for fold, same in ((0, True), (1, False)):
        one, two = (each.learner(fold).model.probe.weight for each in (plan, other))
        assert torch.equal(one, two) is same


@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 3 folds")
@pytest.mark.parametrize("photos", [50, 6000])
def test_fewer_folds_in_a_time_limit_have_probes_of_their_own(probe, monkeypatch, photos):
    monkeypatch.setattr(plans, "MOST_PHOTOS", photos)
    plan = probe(folds=3)
    shorter = replan(plan, 1, 2)
    assert not (shorter.folds == plan.folds).all()
    rows = np.sort(np.random.default_rng(plan.config.seed).permutation(84)[:photos])
    assert len(plan.features[0]) == len(rows) == min(photos, 84)
    for fold in (0, 1):
        own = shorter.folds[rows] != fold
        made = fit_probe(plan.features[0][own], plan.table.select(rows[own]), plan.config.seed)
        assert torch.equal(shorter.learner(fold).model.probe.weight, made.weight)


def test_of_the_strengths_the_one_that_is_best_on_other_persons_is_taken(plan, monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(plan.table), 40)).astype(np.float32)
    # what has nothing to do with the labels is best weighed as little as possible, and the labels as much as possible
    heads, y = plan.table.heads, plan.table.y
    labels = np.concatenate([np.eye(size)[codes] for size, codes in zip(heads.sizes, y.T, strict=True)], axis=1)
    for given, best in ((features, 0), (np.concatenate([features, labels], 1).astype(np.float32), -1)):
        chosen = fit_probe(given, plan.table, 0)
        with monkeypatch.context() as patch:
            patch.setattr(linear_probe, "STRENGTHS", (linear_probe.STRENGTHS[best],))
            assert torch.equal(chosen.weight, fit_probe(given, plan.table, 0).weight)


def test_a_head_with_a_class_that_no_photo_shows_is_left_to_the_network(plan):
    """Other photos, of another source, may show it."""
    rows = np.flatnonzero(plan.table.frame["gender"] == "female")
    features = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
    made = fit_probe(features, plan.table.select(rows), 0)
    weights, heads = plan.table.heads.split(made.weight.T), plan.table.heads
    assert [bool(part.any()) for part in weights] == [True, False, True]
    network, x = plan.learner(0).model.eval(), _photos(plan, 0)[:4]
    with torch.no_grad():
        weight = made.weight.any(1, keepdim=True) * torch.ones_like(network.probe.weight)
        network.add_probe(heads, ProbeWeights(weight, made.bias))
        both = heads.split(network(x))
        network.probe = None
        alone = heads.split(network(x))
    assert [torch.equal(*pair) for pair in zip(both, alone, strict=True)] == [False, True, False]


def test_random_weights_have_no_probe(plan_of):
    plan = plan_of(linear_probe=True)
    assert plan.features == {}
    assert plan.learner(0).model.probe is None


def test_merged_heads_follow_from_the_heads_that_they_merge(probe):
    plan = probe(one_head=True)
    heads = plan.table.heads
    assert [heads[i].name for i in probed_heads(heads)] == [heads[heads.joint_head].name]
    network, x = plan.learner(0).model.eval(), _photos(plan, 0)[:4]
    with torch.no_grad():
        parts = heads.split(network(x))
    joint = parts[heads.joint_head].softmax(-1)
    shares = torch.stack([joint[:, heads.unjoint(np.arange(heads.n_joint))[:, 0] == k].sum(1) for k in range(3)], dim=1)
    assert torch.allclose(parts[0].softmax(-1), shares, atol=1e-5)


@pytest.mark.parametrize("average", [{}, {"ema": 0.9}, {"swa": 0.5}])
def test_training_is_as_without_and_the_probe_stays(train, weights, tmp_path, average):
    settings = {"weights": weights, "fold": [0], "epochs": 4, "top_k": 4, "patience": 0, **average}
    runs = [train(tmp_path / str(on), linear_probe=on, **settings) for on in (False, True)]
    files = sorted(file.name for file in runs[0].fold_path(0).glob("epoch*.safetensors"))
    assert len(files) == 4
    without, having = ([load_file(run.fold_path(0) / name) for name in files] for run in runs)
    own = [{name: tensor for name, tensor in each.items() if not name.startswith("probe.")} for each in having]
    assert all(_equal(*pair) for pair in zip(without, own, strict=True))
    start, prefix = load_file(weights), "probe.features.body."
    for each in having:
        assert _equal(start, {n.removeprefix(prefix): t for n, t in each.items() if n.startswith(prefix)})


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_predicts_as_it_was_validated(train, weights, tmp_path, contest):
    run = train(tmp_path / "run", weights=weights, linear_probe=True, fold=[0])
    said = run.predict([contest / "train/images" / path for path in run.oof["path"]], members=["fold0"], device="cpu")
    np.testing.assert_allclose(said.probabilities, run.probabilities, atol=1e-6)


def test_one_frozen_body_sees_each_view_for_all_folds(train, weights, tmp_path, contest, monkeypatch):
    run = train(tmp_path / "run", weights=weights, linear_probe=True, folds=2, epochs=1, patience=0, views=["flip"])
    photos = [contest / "train/images" / path for path in run.oof["path"]][:6]
    alone = [run.predict(photos, members=[fold], device="cpu").probabilities for fold in ("fold0", "fold1")]
    seen, forward = [], StageFeatures.forward
    monkeypatch.setattr(StageFeatures, "forward", lambda body, x: seen.append(len(x)) or forward(body, x))
    together = run.predict(photos, device="cpu").members
    # batch norms are folded with two photos first
    assert [count for count in seen if count != 2] == [6, 6]
    np.testing.assert_array_equal(list(together.values()), alone)


def test_a_killed_run_resumes_to_the_same_bytes(train, weights, tmp_path):
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
