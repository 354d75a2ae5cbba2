import gc
import hashlib
import io
import os
import re
import shutil
import weakref
from dataclasses import replace
from functools import partial

import adamp
import albumentations as A
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score

import fastmask as fm
from fastmask.api import Run
from fastmask.data.augment import build_augmentations
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders
from fastmask.data.photo_dl import columns_of
from fastmask.evaluation.bound import bound_curve
from fastmask.heads import Heads
from fastmask.model.losses import FocalLoss
from fastmask.run.oof import check_fold
from fastmask.run.tensors import read_oof
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.files import read_strings
from fastmask.system.lock import lock_run
from fastmask.training import crossval, effective_config, setup
from fastmask.training import plan as plan_module
from fastmask.training.build import build_initial_network


def hashes(folder):
    """The bytes of every file that holds a result, not the time of day."""
    names = ("oof.csv", "folds.csv", "scores.json", "config.yaml", "pipelines.yaml", "heads.json")
    files = [folder / name for name in names] + sorted(folder.glob("fold*/*.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_run_directory_is_as_designed(finished_run, table):
    files = {"config.yaml", "pipelines.yaml", "heads.json", "environment.json", "folds.csv", "oof.csv", "scores.json"}
    assert {p.name for p in finished_run.path.iterdir()} == files | {"fold0", "fold1"}
    oof = finished_run.oof
    assert oof["path"].tolist() == table.frame["path"].tolist()
    assert list(oof.columns) == ["path", "person", "fold", *table.heads.columns, "true", "predicted"]
    assert oof["true"].tolist() == table.heads.joint(table.y).tolist()
    np.testing.assert_allclose(oof[["gender.male", "gender.female"]].sum(axis=1), 1, atol=1e-6)
    assert finished_run.folds.groupby("person")["fold"].nunique().max() == 1
    folds = pd.read_csv(finished_run.path / "folds.csv")
    assert list(folds.columns) == ["path", "person", "mask", "gender", "age", "age_value", "fold"]
    assert not (finished_run.path / "skipped.csv").exists()


def test_the_score_is_scikit_learn_s_on_oof_csv(finished_run):
    oof, scores = finished_run.oof, finished_run.score()
    classes = sorted(set(oof["true"]))
    expected = f1_score(oof["true"], oof["predicted"], labels=classes, average="macro", zero_division=0)
    assert scores.joint.macro_f1 == pytest.approx(expected)
    assert finished_run.scores["joint"]["macro_f1"] == pytest.approx(expected)
    low, high = scores.joint.macro_f1_interval
    assert low <= expected <= high


def test_oof_probabilities_are_those_of_the_fold_that_validated_the_photo(finished_run):
    oof = finished_run.oof
    for fold in (0, 1):
        (epoch,) = finished_run.scores["folds"][fold]["epochs"]
        rows = (oof["fold"] == fold).to_numpy()
        np.testing.assert_allclose(
            finished_run.probabilities[rows], read_oof(finished_run.fold_path(fold), epoch), rtol=1e-6
        )


def test_the_optimistic_figure_is_of_each_fold_s_own_best_epoch(finished_run):
    own = [finished_run.history(f)["macro_f1"].to_numpy() for f in (0, 1)]
    folds = finished_run.scores["folds"]
    assert [f["own_best_epochs"] for f in folds] == [[int(c.argmax())] for c in own]
    assert [f["epochs"] for f in folds] == [[int(own[1].argmax())], [int(own[0].argmax())]]
    assert "flatters" in finished_run.scores["optimistic"]["why"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache": "ram"},
        pytest.param({"cache": "off"}, marks=pytest.mark.slow),
        pytest.param({"workers": 2}, marks=[pytest.mark.semaphores, pytest.mark.slow]),
    ],
)
def test_a_seed_gives_the_same_bytes_whatever_the_machine_s_settings(finished_run, train, tmp_path, settings):
    assert finished_run.config.cache == "auto"
    torch.rand(5)
    mine, theirs = hashes(train(tmp_path / "again", **settings).path), hashes(finished_run.path)
    assert (mine.pop("config.yaml") != theirs.pop("config.yaml")) == bool(settings)
    assert mine == theirs


def test_a_fold_is_what_a_plain_pytorch_loop_makes(train, table, tmp_path):
    run = train(tmp_path / "run", epochs=1, sched="constant", lr=1e-2, fold=[0])
    network = build_initial_network(run.config, run.heads, fold=0)
    # the package's own AdamP, which needs the default memory format
    network = network.to(memory_format=torch.contiguous_format)
    dls = dataloaders(
        table,
        0,
        run.folds["fold"].to_numpy(),
        augments=build_augmentations(run.pipelines),
        bs=16,
        num_workers=0,
        device="cpu",
    )
    loss, optimizer = FocalLoss(run.heads), adamp.AdamP(network.parameters(), lr=1e-2, weight_decay=1e-5)
    network.train()
    for x, y in dls.train:
        optimizer.zero_grad()
        loss(network(x.contiguous()), y).backward()
        optimizer.step()
    saved = load_file(run.checkpoints(0)[0])
    for name, tensor in network.state_dict().items():
        # two steps of 1e-2 each; a gradient of almost 0 has its sign from rounding, and Adam makes a whole step of it,
        # so single weights may differ where all others agree to a hundredth of a step
        assert (saved[name] - tensor).abs().float().mean() < 1e-4, name


def test_training_uses_its_own_age_bounds_and_the_score_the_official_ones(contest, train, table, tmp_path):
    own = read_contest(contest, age_bounds=(20, 40))
    run = train(tmp_path / "run", own, epochs=1)
    assert run.oof["true"].tolist() == table.heads.joint(table.y).tolist()
    assert run.true.tolist() == table.y.tolist()
    assert run.scores["scored_by"] == {"age": [30.0, 60.0]}
    assert run.scores["trained_by"] == {"age": [20.0, 40.0]}
    assert Run.load(run.path).heads == own.heads


def test_a_score_that_flatters_says_so(train, table, tmp_path):
    with pytest.warns(FastmaskWarning, match="the score is too good"):
        run = train(tmp_path / "run", replace(table, proposed=3), epochs=1, group="none")
    assert "Leaky split" in str(run.score())
    assert any("Leaky split" in note for note in run.scores["notes"])
    note = "3 corrections of labels were proposed by a model and not checked by a person: this score flatters."
    assert note in run.score(draws=0).notes
    assert note in run.scores["notes"]


def test_memory_of_a_fold_is_given_back(train, tmp_path, monkeypatch):
    networks = []
    make = plan_module.build_initial_network

    def remembered(*args, **kwargs):
        network = make(*args, **kwargs)
        networks.append(weakref.ref(network))
        return network

    for module in (setup, plan_module):
        monkeypatch.setattr(module, "build_initial_network", remembered)
    alive = []

    class Log(io.StringIO):
        def write(self, text):
            gc.collect()
            alive.append(sum(ref() is not None for ref in networks))
            return super().write(text)

    train(tmp_path / "run", log=Log(), epochs=1)
    assert max(alive) == 1
    assert len(networks) == 3  # one to check, and one per fold


def test_a_stopped_run_resumes_to_the_same_bytes(finished_run, train, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train_fold = crossval.train_fold

    def dies_in_fold_1(run, plan, fold, *options):
        if fold == 1:
            (run.fold_path(1)).mkdir()
            (run.fold_path(1) / "epoch000.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        train_fold(run, plan, fold, *options)

    monkeypatch.setattr(crossval, "train_fold", dies_in_fold_1)
    with pytest.raises(KeyboardInterrupt):
        train(out)
    monkeypatch.undo()
    done = {f: f.stat().st_mtime_ns for f in (out / "fold0").iterdir()}
    run = train(out, resume=True)
    assert hashes(run.path) == hashes(finished_run.path)
    assert done == {f: f.stat().st_mtime_ns for f in (out / "fold0").iterdir()}


def test_resume_refuses_what_would_change_the_result(run_copy, table, contest_copy, train):
    with pytest.raises(UsageError, match=r"was started with lr 0\.0003, now it is 0\.1"):
        train(run_copy, resume=True, lr=0.1)
    with pytest.raises(
        UsageError, match=r"epochs 2, now it is 5; lr 0\.0003, now it is 0\.1; --resume needs"
    ) as caught:
        train(run_copy, resume=True, lr=0.1, epochs=5)
    assert f"start a new run: --weights {run_copy} --folds-file {run_copy / 'folds.csv'} --out" in str(caught.value)
    first = re.escape(table.frame["path"].iloc[0])
    with pytest.raises(UsageError, match=f"other photos or labels than are there now: {first} is missing or left out"):
        train(run_copy, table.select(np.arange(1, 84)), resume=True)
    assert train(run_copy, resume=True, cache="off").path == run_copy
    photos = sorted((contest_copy / "train" / "images").rglob("*.jpg"))
    shutil.copy(photos[0], photos[1])
    with pytest.raises(UsageError, match="started with another content of the photos than there is now"):
        train(run_copy, read_contest(contest_copy), resume=True)


def test_a_run_is_never_overwritten_by_accident(run_copy, train, plan_of):
    before = hashes(run_copy)
    with pytest.raises(UsageError, match="exists; name another folder with --out"):
        train(run_copy)
    # nor one that appeared while the photos were decoded
    with pytest.raises(UsageError, match="exists"):
        crossval.create_run(run_copy, plan_of(), overwrite=False)
    assert hashes(run_copy) == before


def test_overwrite_replaces_a_run_and_nothing_else(run_copy, train, tmp_path):
    train(run_copy, overwrite=True, epochs=1)
    assert len(Run.load(run_copy).history(0)) == 1
    for foreign in (tmp_path / "thesis", run_copy):
        foreign.mkdir(exist_ok=True)
        (foreign / "config.yaml").touch()
        (foreign / "thesis.tex").write_text("years")
        with pytest.raises(
            UsageError, match=r"is not a run \(it holds thesis\.tex\), so --overwrite does not replace it"
        ):
            train(foreign, overwrite=True)
        assert (foreign / "thesis.tex").read_text() == "years"


def test_two_processes_cannot_write_the_same_run(train, tmp_path):
    out = tmp_path / "run"
    with (
        lock_run(out),
        pytest.raises(UsageError, match=rf"is being written by process {os.getpid()} on .* since 20"),
    ):
        train(out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.semaphores
def test_a_run_resumes_with_its_own_folds_where_others_are_made_now(run_copy, train, monkeypatch):
    """Such as those of another version of scikit-learn."""
    monkeypatch.setattr(effective_config, "assign_folds", lambda *args: 1 - assign_folds(*args))
    with pytest.raises(UsageError, match=f"other folds than are made now.*--folds-file {run_copy / 'folds.csv'}"):
        train(run_copy, resume=True)
    assert train(run_copy, resume=True, folds_file=str(run_copy / "folds.csv")).path == run_copy


def test_resume_may_change_the_loading_processes(run_copy, train, monkeypatch):
    assert train(run_copy, resume=True, workers=1, cache="off").path == run_copy
    (run_copy / "fold1" / "done.json").unlink()
    seen = []
    make = plan_module.dataloaders
    monkeypatch.setattr(plan_module, "dataloaders", lambda *a, **k: seen.append(k["num_workers"]) or make(*a, **k))
    train(run_copy, resume=True, workers=1)
    assert seen == [1]


def test_a_pipeline_may_be_given_as_an_object(train, tmp_path):
    own = A.Compose([A.CenterCrop(300, 150), A.Resize(32, 16), A.Normalize((0.5,) * 3, (0.5,) * 3), A.ToTensorV2()])
    run = train(tmp_path / "run", epochs=1, fold=[0], train_pipeline=own, valid_pipeline=own)
    assert run.pipelines["valid"]["transform"]["transforms"][0]["height"] == 300
    assert build_augmentations(run.pipelines)[1].stats == ((0.5,) * 3, (0.5,) * 3)


def test_persons_of_training_and_validation_are_disjoint(table, plan_of):
    plan, validated = plan_of(), []
    person_of = {str(table.photo(row)): person for row, person in enumerate(table.persons)}
    for dls in (plan.learner(fold).dls for fold in (0, 1)):
        train, valid = ({person_of[path] for path in columns_of(ds)[0]} for ds in (dls.train_ds, dls.valid_ds))
        assert not train & valid
        assert train | valid == set(table.persons)
        validated += sorted(valid)
    assert sorted(validated) == sorted(set(table.persons))


def test_scores_of_a_fold_are_over_the_classes_of_the_whole_table(finished_run):
    oof, heads = finished_run.oof, finished_run.heads
    rows = (oof["fold"] == 0).to_numpy()
    expected = f1_score(
        finished_run.true[rows, 2], finished_run.predicted[rows, 2], labels=[0, 1, 2], average="macro", zero_division=0
    )
    assert len(heads["age"].classes) == 3
    assert finished_run.scores["folds"][0]["heads"]["age"]["macro_f1"] == pytest.approx(expected)


def test_it_learns(train, tmp_path):
    settings = {"epochs": 10, "bs": 6, "lr": 1e-2, "sched": "onecycle", "patience": 0, "fold": [0]}
    losses = train(tmp_path / "run", **settings).history(0)["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0] / 2


def test_folds_can_be_trained_one_by_one(finished_run, train, tmp_path):
    run = train(tmp_path / "run", fold=[1])
    assert run.trained_folds == [1]
    assert set(run.oof["fold"]) == {1}
    assert "Of 2 folds only fold 1 is trained: a part of the photos." in run.score().notes
    assert run.scores["folds"][0]["epochs"] == [1]  # no other fold to choose by: the last
    # over the classes of the whole table, as everywhere
    assert run.score().joint.macro_f1 == run.scores["folds"][0]["joint"]["macro_f1"]
    run = train(tmp_path / "run", resume=True)
    assert hashes(run.path) == hashes(finished_run.path)


@pytest.mark.parametrize("fold", [[2], [-1], [0, 7], []])
def test_an_unknown_fold_is_refused(fold, train, tmp_path):
    with pytest.raises(UsageError, match="There is no fold .*; expected some of 0, 1"):
        train(tmp_path / "run", fold=fold)
    assert not (tmp_path / "run").exists()


def test_folds_can_be_read_from_a_file(finished_run, plan_of, tmp_path):
    shared = tmp_path / "split.csv"
    folds = finished_run.folds.assign(fold=1 - finished_run.folds["fold"])
    folds[["person", "fold"]].drop_duplicates().to_csv(shared, index=False)
    plan = plan_of(folds_file=str(shared))
    assert plan.config.folds == 2
    assert plan.folds.tolist() == folds["fold"].tolist()
    with pytest.raises(UsageError, match="Setting folds is 3, but .*split.csv has 2"):
        plan_of(folds_file=str(shared), folds=3)


def test_the_best_k_are_averaged(train, tmp_path):
    run = train(tmp_path / "run", epochs=3, top_k=2)
    assert [len(run.checkpoints(f)) for f in (0, 1)] == [2, 2]
    for scores in run.scores["folds"]:
        fold, epochs = scores["fold"], scores["epochs"]
        assert len(epochs) == 2
        mean = (read_oof(run.fold_path(fold), epochs[0]) + read_oof(run.fold_path(fold), epochs[1])) / 2
        np.testing.assert_allclose(run.probabilities[run.oof["fold"] == fold], mean, rtol=1e-6)


def test_a_custom_loss(train, plan_of, tmp_path):
    class HalfFocal(FocalLoss):
        def forward(self, logits, y):
            return super().forward(logits, y) / 2

    settings = {"epochs": 1, "lr": 1e-9, "fold": [0]}
    whole = train(tmp_path / "whole", **settings)
    half = train(tmp_path / "half", loss_func=HalfFocal, **settings)
    assert half.config.loss == "own"
    assert half.history(0)["valid_loss"][0] == pytest.approx(whole.history(0)["valid_loss"][0] / 2, rel=1e-4)
    with pytest.raises(UsageError, match="loss is own, which needs the loss_func"):
        plan_of(loss="own")


def test_a_custom_optimizer_is_that_of_its_name_and_needed_again(train, plan_of, tmp_path):
    settings = {"epochs": 1, "fold": [0], "wd": 0.1, "layer_decay": 0.7}
    named = train(tmp_path / "named", opt="sgd", opt_args={"nesterov": False, "momentum": 0.5}, **settings)
    sgd = partial(torch.optim.SGD, momentum=0.5)
    custom = train(tmp_path / "custom", opt_func=sgd, **settings)
    assert custom.config.opt == "own"
    assert custom.environment["start"]["optimizer"] == "torch.optim.sgd.SGD(momentum=0.5)"
    for one, other in zip(named.checkpoints(0), custom.checkpoints(0), strict=True):
        assert one.read_bytes()[-4096:] == other.read_bytes()[-4096:]
    with pytest.raises(UsageError, match="opt is own, which needs the opt_func"):
        train(tmp_path / "custom", resume=True, **settings)
    with pytest.raises(UsageError, match="started with another optimizer than there is now"):
        train(tmp_path / "custom", resume=True, opt_func=torch.optim.SGD, **settings)
    with pytest.raises(UsageError, match="opt has no effect with a custom optimizer"):
        plan_of(opt_func=sgd, opt="sgd")


def test_a_head_s_name_does_not_reverse_its_metric(train, table, tmp_path):
    """fastai takes a metric with "loss" in its name for one of which less is better."""
    heads = Heads([replace(h, name="gloss" if h.name == "mask" else h.name) for h in table.heads])
    table = replace(table, heads=heads, frame=table.frame.rename(columns={"mask": "gloss"}))
    settings = {"epochs": 4, "monitor": "gloss_macro_f1", "patience": 0, "lr": 1e-2, "fold": [0]}
    run = train(tmp_path / "run", table, **settings)
    best = int(run.history(0)["gloss_macro_f1"].to_numpy().argmax())
    assert [c.name for c in run.checkpoints(0)] == [f"epoch{best:03d}.safetensors"]
    assert run.scores["folds"][0]["own_best_epochs"] == [best]


def test_resume_refuses_other_weights_under_the_same_name(train, tmp_path):
    body, settings = tmp_path / "body.safetensors", {"epochs": 1}
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), body)
        if seed == 0:
            train(tmp_path / "run", weights=str(body), fold=[0], **settings)
            moved = shutil.copy(body, tmp_path / "moved.safetensors")
    with pytest.raises(UsageError, match="started with another weights than there is now"):
        train(tmp_path / "run", weights=str(body), resume=True, **settings)
    assert train(tmp_path / "run", weights=str(moved), resume=True, **settings).trained_folds == [0, 1]


def test_a_head_s_number_is_learned_in_addition(train, contest, tmp_path):
    run = train(tmp_path / "run", order="age", epochs=1)
    years = run.probabilities[:, run.heads.offsets[3] :]
    assert years.sum(1) == pytest.approx(1, abs=1e-4)
    assert set(run.score().heads) == {"mask", "gender", "age"}
    assert "age_number_macro_f1" not in run.history(0)
    assert bound_curve(run).official == 60
    images = contest / "eval" / "images"
    written = run.predict(images).to_submission(contest / "eval" / "info.csv", tmp_path / "s.csv")
    assert pd.read_csv(written)["ans"].between(0, 17).all()


def test_a_fixed_split_is_one_fold_and_the_others_are_only_trained_on(train, table, tmp_path):
    persons = sorted(set(table.persons))
    words = dict(zip(persons, ["val", "train", "test"] * 4, strict=True))
    rows = "".join(f"{person},{words[person]}\n" for person in persons)
    (tmp_path / "split.csv").write_text(f"person,split\n{rows}")
    with pytest.warns(FastmaskWarning, match="leaves out 28 photos, such as .*: neither trained on nor validated"):
        run = train(tmp_path / "run", folds_file=str(tmp_path / "split.csv"))
    split = table.frame["person"].map(words)
    assert run.config.folds == 1
    assert run.folds["path"].tolist() == table.frame["path"][split != "test"].tolist()
    assert run.oof["path"].tolist() == table.frame["path"][split == "val"].tolist()
    assert set(run.oof["fold"]) == {0}
    assert (
        read_strings(tmp_path / "run" / "skipped.csv", ())["path"].tolist()
        == table.frame["path"][split == "test"].tolist()
    )
    seen = run.seen_by(0)
    assert seen["path"].tolist() == table.frame["path"][split == "train"].tolist()
    assert "28 of 56 photos are only trained on: the score is of the others." in run.score().notes
    # its folds.csv makes the same split again
    with pytest.warns(FastmaskWarning, match="leaves out 28 photos"):
        again = train(tmp_path / "again", folds_file=str(tmp_path / "run" / "folds.csv"))
    assert again.oof.equals(run.oof)


@pytest.mark.slow
def test_a_path_or_a_frame_is_trained_on_as_the_table_of_it(finished_run, contest, small_settings, tmp_path):
    from_path = fm.cross_validate(str(contest), out=tmp_path / "path", **small_settings)
    assert from_path.oof.equals(finished_run.oof)
    table = read_contest(contest)
    heads = {"gender": ["male", "female"]}
    frame = table.frame[["path", "person", "gender"]]
    settings = {**small_settings, "epochs": 1, "heads": heads, "images": str(table.root)}
    from_frame = fm.cross_validate(frame, out=tmp_path / "frame", **settings)
    resumed = fm.cross_validate(frame, out=tmp_path / "frame", resume=True, log=io.StringIO())
    assert resumed.oof.equals(from_frame.oof)
    assert from_frame.config.heads == heads
    assert from_frame.oof["path"].tolist() == frame["path"].tolist()


def test_only_validated_epochs_are_scored_and_kept(train, tmp_path):
    run = train(tmp_path / "run", epochs=3, validate_every=2, patience=0, top_k=3)
    for fold in (0, 1):
        history = pd.read_csv(run.fold_path(fold) / "history.csv")
        assert history["valid_loss"].isna().tolist() == [True, False, False]
        assert [file.stem for file in run.checkpoints(fold)] == ["epoch001", "epoch002"]
        check_fold(run, fold)
    assert [entry["epochs"] for entry in run.scores["folds"]] == [[1, 2], [1, 2]]
    assert len(run.oof) == len(run.folds)
