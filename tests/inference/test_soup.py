"""Greedy soups: chosen on the other folds, never judged by photos that a member has seen."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trained_runs import predict_by_hand

import fastmask as fm
from fastmask.api import Run
from fastmask.inference.candidates import find_candidates
from fastmask.inference.soup import choose_greedily
from fastmask.run.lineage import read_lineage
from fastmask.run.tensors import read_oof
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_csv


def relabel(path):
    """Make the labels of a run its own OOF predictions, so that its macro-F1 is 1 and any other answer is worse."""
    run = Run.load(path)
    rows = pd.Index(run.folds["path"]).get_indexer(pd.Index(run.oof["path"]))
    folds = run.folds.copy()
    for head, codes in zip(run.heads, run.predicted.T, strict=True):
        folds.loc[rows, head.name] = head.decode_all(codes)
    write_csv(path / "folds.csv", folds)


def copy(path, name, change=lambda tensor: tensor):
    """A copy of a run whose weights are changed."""
    made = shutil.copytree(path, path.parent / name)
    for file in made.glob("fold*/epoch*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = {n: change(t) if t.is_floating_point() else t for n, t in load_file(file).items()}
        save_file(tensors, file, metadata)
    return made


def noise(tensor):
    torch.manual_seed(tensor.numel())
    return tensor * (1 + 1e-5 * torch.randn_like(tensor))


@pytest.fixture
def run(run_copy):
    relabel(run_copy)
    return run_copy


def test_a_candidate_is_kept_if_the_score_does_not_fall():
    scores = {(0, 2): 0.7, (1, 2): 0.6, (0, 2, 3): 0.8, (0, 1, 2, 3): 0.8}
    steps = list(choose_greedily([0.6, 0.5, 0.7, 0.55], scores.__getitem__))
    assert steps == [(2, 0.7, True), (0, 0.7, True), (3, 0.8, True), (1, 0.8, True)]
    scores[0, 1, 2, 3] = 0.79
    assert list(choose_greedily([0.6, 0.5, 0.7, 0.55], scores.__getitem__))[-1] == (1, 0.79, False)
    # of equal ones the first comes first
    assert next(choose_greedily([0.5, 0.5], lambda chosen: 0.4)) == (0, 0.5, True)


def test_the_soup_of_identical_checkpoints_is_that_checkpoint(run, tmp_path):
    lines = []
    made = fm.soup_runs([run, copy(run, "b"), copy(run, "c")], out=tmp_path / "soup", say=lines.append)
    assert made.members == {fold: ["run_copy", "b", "c"] for fold in (0, 1)}
    assert len(lines) == len(made.steps) == 6
    for fold in (0, 1):
        (file,), (own,) = made.run.checkpoints(fold), Run.load(run).checkpoints(fold)
        tensors = load_file(own)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(file).items())
    np.testing.assert_allclose(made.run.probabilities, Run.load(run).probabilities, atol=1e-5)
    assert made.score.macro_f1 == made.run.score(0).joint.macro_f1 == 1
    assert [one.gain.macro_f1 for one in made.singles] == [0, 0, 0]


def test_the_weights_are_the_mean_and_the_oof_is_that_of_a_plain_network(run, contest, tmp_path):
    runs = [run, copy(run, "b", noise)]
    made = fm.soup_runs(runs, out=tmp_path / "soup").run
    images = contest / "train" / "images"
    for fold in (0, 1):
        a, b = (load_file(Run.load(one).checkpoints(fold)[0]) for one in runs)
        soup = load_file(made.checkpoints(fold)[0])
        for name, tensor in soup.items():
            mean = (a[name].double() + b[name].double()) / 2
            assert torch.equal(tensor, mean.to(tensor.dtype) if tensor.is_floating_point() else a[name])
        paths = made.folds["path"][made.folds["fold"] == fold]
        by_hand = predict_by_hand(made, [images / path for path in paths], fold)
        np.testing.assert_allclose(read_oof(made.fold_path(fold), 0), by_hand, atol=1e-5)
    assert read_lineage(made.checkpoints(0)[0]).run == made.identity != Run.load(run).identity


def test_a_bad_candidate_is_left_out(run, tmp_path):
    # its logits have the other sign, ten times as large
    bad = copy(run, "bad", lambda tensor: -10 * tensor if tensor.ndim == 2 else tensor)
    made = fm.soup_runs([run, bad, copy(run, "good", noise)], out=tmp_path / "soup")
    assert made.members == {0: ["run_copy", "good"], 1: ["run_copy", "good"]}
    assert [step.kept for step in made.steps if step.candidate == "bad"] == [False, False]
    assert "fold 0: run_copy, good" in str(made)


def test_the_members_of_a_fold_do_not_depend_on_its_own_labels(run, tmp_path):
    runs = [run, copy(run, "bad", lambda tensor: -10 * tensor if tensor.ndim == 2 else tensor)]
    before = fm.soup_runs(runs, out=tmp_path / "soup")
    for path in runs:
        folds = Run.load(path).folds
        folds.loc[folds["fold"] == 0, "mask"] = "incorrect"
        folds.loc[folds["fold"] == 0, "gender"] = "male"
        write_csv(path / "folds.csv", folds)
    after = fm.soup_runs(runs, out=tmp_path / "soup", overwrite=True)
    kept = [[(step.candidate, step.kept) for step in one.steps if step.fold == 0] for one in (before, after)]
    assert kept[0] == kept[1]
    assert after.score.macro_f1 < before.score.macro_f1


def test_a_checkpoint_that_has_seen_a_photo_of_its_fold_is_refused(run, tmp_path):
    leak = copy(run, "leak")
    (own,), (other,) = (Run.load(leak).checkpoints(fold) for fold in (0, 1))
    shutil.copy(other, own)
    with pytest.raises(UsageError, match=r"leak.fold0.epoch00\d.safetensors has been trained on photo .*fold 0 valid"):
        fm.soup_runs([run, leak], out=tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_runs_of_other_folds_are_refused(run, tmp_path):
    other = copy(run, "other")
    for name in ("folds.csv", "oof.csv"):
        frame = pd.read_csv(other / name, dtype=str, keep_default_na=False)
        frame["fold"] = frame["fold"].map({"0": "1", "1": "0"})
        frame.to_csv(other / name, index=False)
    with pytest.raises(UsageError, match=r"trained on it; train it with --folds-file .*run_copy.folds.csv"):
        fm.soup_runs([run, other], out=tmp_path / "soup")


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("config.yaml", "arch: test_resnet", "arch: test_vit", "its body is test_vit, in the first test_resnet"),
        ("config.yaml", "views: []", "views: [flip]", "its views are flip, in the first none"),
        ("heads.json", '"male"', '"man"', "it has other classes or bounds of gender"),
        ("pipelines.yaml", "height: 64", "height: 32", "it has another validation pipeline"),
        ("environment.json", '"photos": "', '"photos": "0', "it has another content of the photos"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(run, tmp_path, file, old, new, named):
    other = copy(run, "other")
    text = (other / file).read_text()
    assert old in text
    (other / file).write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=named):
        fm.soup_runs([run, other], out=tmp_path / "soup")


@pytest.mark.parametrize(
    ("settings", "tensor", "cause"),
    [
        ({"per_head": {"age": {"hidden": 8}}}, "heads.2.hidden.bias", "per_head .*hidden.*, in the first none"),
        ({"feature_loss": "arcface"}, "feature_loss.weight", r"feature_loss \(arcface, in the first none"),
    ],
)
def test_runs_whose_networks_have_other_layers_are_refused(run, tmp_path, settings, tensor, cause):
    other = copy(run, "other")
    config = Run.load(other).config.to_plain()
    (other / "config.yaml").write_text(json.dumps({**config, **settings}))
    for file in other.glob("fold*/epoch*.safetensors"):
        save_file({**load_file(file), tensor: torch.zeros(8)}, file)
    with pytest.raises(UsageError, match=f"cannot be averaged with .*: its networks have other layers by {cause}"):
        fm.soup_runs([run, other], out=tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_one_fold_or_one_checkpoint_is_not_enough(run, tmp_path):
    with pytest.raises(UsageError, match="one checkpoint per fold to average"):
        fm.soup_runs([run], out=tmp_path / "soup")
    with pytest.raises(UsageError, match="named twice"):
        fm.soup_runs([run, run], out=tmp_path / "soup")
    with pytest.raises(UsageError, match="is one of the runs"):
        fm.soup_runs([run, copy(run, "b")], out=run, overwrite=True)
    other = copy(run, "c")
    for path in (run, other):
        (path / "fold1" / "done.json").unlink()
    with pytest.raises(UsageError, match="has finished 1; expected two or more"):
        fm.soup_runs([run, other], out=tmp_path / "soup")


def test_candidates_are_the_epochs_that_other_folds_choose_if_they_are_kept(run):
    for fold, scores in ((0, [0.3, 0.5]), (1, [0.3, 0.5])):
        history = pd.read_csv(run / f"fold{fold}/history.csv")
        history.assign(macro_f1=scores).to_csv(run / f"fold{fold}/history.csv", index=False)
        for file in (run / f"fold{fold}").glob("epoch*"):
            file.rename(file.with_name("epoch001.safetensors"))
    loaded = [Run.load(run), Run.load(copy(run, "b"))]
    assert [one.flatters for one in find_candidates(loaded)] == [False, False]
    # now each fold would choose the epoch that the other has not kept
    history.assign(macro_f1=[0.5, 0.3]).to_csv(run / "fold1/history.csv", index=False)
    (run / "fold1/epoch001.safetensors").rename(run / "fold1/epoch000.safetensors")
    loaded[0] = Run.load(run)
    one = find_candidates(loaded)[0]
    assert one.flatters
    assert {fold: file.name for fold, file in one.files.items()} == {
        0: "epoch001.safetensors",
        1: "epoch000.safetensors",
    }


@pytest.mark.slow
def test_a_soup_is_a_run_that_everything_else_reads(run, contest, tmp_path):
    made = fm.soup_runs([run, copy(run, "b")], out=tmp_path / "soup").run
    made.predict(contest / "eval" / "images")
    assert made.models(0) == made.checkpoints(0)
    again = fm.soup_runs([made, run], out=tmp_path / "again").run
    assert again.soup["members"] == {"0": ["soup", "run_copy"], "1": ["soup", "run_copy"]}
    assert fm.blend_runs([run, made], out=tmp_path / "both", draws=0).run.score(0).joint.macro_f1 == 1
    with pytest.raises(UsageError, match="is a soup, which is not trained"):
        from fastmask.data.contest import read_contest

        fm.cross_validate(read_contest(contest), out=made.path, resume=True)
    environment = json.loads((made.path / "environment.json").read_text())
    (made.path / "environment.json").write_text(json.dumps({**environment, "soup": {"runs": 3}}))
    with pytest.raises(DataError, match="does not say what soup this is"):
        Run.load(made.path).caveats  # noqa: B018
