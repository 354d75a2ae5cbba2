import gc
import hashlib
import io
import os
import shutil
import weakref
from dataclasses import replace

import adamp
import albumentations as A
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.augment import augmentations
from fastmask.data.contest import read_contest
from fastmask.data.loaders import dataloaders
from fastmask.data.photo_dl import columns_of
from fastmask.decision.bound import bound_curve
from fastmask.heads import Heads
from fastmask.model.losses import FocalLoss
from fastmask.run.tensors import read_oof
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.lock import held
from fastmask.training import crossval
from fastmask.training import plan as plan_module
from fastmask.training.build import build
from fastmask.training.plan import prepare


def quiet(table, out, **settings):
    return cross_validate(table, out=out, log=io.StringIO(), **settings)


def hashes(folder):
    """The bytes of every file that holds a result, not the time of day."""
    names = ("oof.csv", "folds.csv", "scores.json", "config.yaml", "pipelines.yaml", "heads.json")
    files = [folder / name for name in names] + sorted(folder.glob("fold*/*.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_run_directory_is_as_designed(finished_run, contest):
    table = read_contest(contest)
    files = {"config.yaml", "pipelines.yaml", "heads.json", "environment.json", "folds.csv", "oof.csv", "scores.json"}
    assert {p.name for p in finished_run.path.iterdir()} == files | {"fold0", "fold1"}
    oof = finished_run.oof
    assert oof["path"].tolist() == table.frame["path"].tolist()
    assert list(oof.columns) == ["path", "person", "fold", *table.heads.columns, "true", "predicted"]
    assert oof["true"].tolist() == table.heads.joint(table.y).tolist()
    np.testing.assert_allclose(oof[["gender.male", "gender.female"]].sum(axis=1), 1, atol=1e-6)
    assert finished_run.folds.groupby("person")["fold"].nunique().max() == 1


def test_the_score_is_scikit_learn_s_on_oof_csv(finished_run):
    oof, scores = finished_run.oof, finished_run.score()
    classes = sorted(set(oof["true"]))
    expected = f1_score(oof["true"], oof["predicted"], labels=classes, average="macro", zero_division=0)
    assert scores.joint.macro_f1 == pytest.approx(expected)
    assert finished_run.scores["joint"]["macro_f1"] == pytest.approx(expected)
    low, high = scores.joint.macro_f1_interval
    assert low <= expected <= high


def test_each_fold_is_judged_on_photos_of_persons_it_has_not_seen(finished_run, contest):
    # the probabilities in oof.csv are those of the fold that validated the photo
    oof = finished_run.oof
    for fold in (0, 1):
        (epoch,) = finished_run.scores["folds"][fold]["epochs"]
        rows = (oof["fold"] == fold).to_numpy()
        np.testing.assert_allclose(
            finished_run.probabilities[rows], read_oof(finished_run.fold_path(fold), epoch), rtol=1e-6
        )


def test_the_optimistic_figure_stands_beside_and_is_each_fold_s_own_best(finished_run):
    own = [finished_run.history(f)["macro_f1"].to_numpy() for f in (0, 1)]
    folds = finished_run.scores["folds"]
    assert [f["own_best_epochs"] for f in folds] == [[int(c.argmax())] for c in own]
    assert [f["epochs"] for f in folds] == [[int(own[1].argmax())], [int(own[0].argmax())]]
    assert "flatters" in finished_run.scores["optimistic"]["why"]


def test_the_same_seed_gives_the_same_bytes(finished_run, contest, small_settings, tmp_path):
    again = quiet(read_contest(contest), tmp_path / "again", **small_settings)
    assert hashes(again.path) == hashes(finished_run.path)


@pytest.mark.semaphores
def test_workers_and_order_of_runs_do_not_change_a_bit(finished_run, contest, small_settings, tmp_path):
    torch.rand(5)
    again = quiet(read_contest(contest), tmp_path / "again", **small_settings, workers=2)
    mine, theirs = hashes(again.path), hashes(finished_run.path)
    assert mine.pop("config.yaml") != theirs.pop("config.yaml")
    assert mine == theirs


def test_a_fold_is_what_a_plain_pytorch_loop_makes(contest, small_settings, tmp_path):
    table = read_contest(contest)
    run = quiet(table, tmp_path / "run", **{**small_settings, "epochs": 1, "sched": "constant", "lr": 1e-2})
    network = build(run.config, run.heads, fold=0)
    # the package's own AdamP, which needs the default memory format
    network = network.to(memory_format=torch.contiguous_format)
    dls = dataloaders(
        table,
        0,
        run.folds["fold"].to_numpy(),
        augments=augmentations(run.pipelines),
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


def test_training_uses_its_own_age_bounds_and_the_score_the_official_ones(contest, small_settings, tmp_path):
    table = read_contest(contest, age_bounds=(20, 40))
    run = quiet(table, tmp_path / "run", **{**small_settings, "epochs": 1})
    official = read_contest(contest)
    assert run.oof["true"].tolist() == official.heads.joint(official.y).tolist()
    assert run.true.tolist() == official.y.tolist()
    assert run.scores["scored_by"] == {"age": [30.0, 60.0]}
    assert run.scores["trained_by"] == {"age": [20.0, 40.0]}
    assert Run.load(run.path).heads == table.heads


def test_the_leaky_split_is_warned_of_and_marked(contest, small_settings, tmp_path):
    with pytest.warns(FastmaskWarning, match="will flatter"):
        run = quiet(read_contest(contest), tmp_path / "run", **{**small_settings, "epochs": 1, "group": "none"})
    assert "Leaky split" in str(run.score())
    assert any("Leaky split" in note for note in run.scores["notes"])


def test_memory_of_a_fold_is_given_back(contest, small_settings, tmp_path, monkeypatch):
    networks = []
    make = plan_module.build

    def remembered(*args, **kwargs):
        network = make(*args, **kwargs)
        networks.append(weakref.ref(network))
        return network

    monkeypatch.setattr(plan_module, "build", remembered)
    alive = []

    class Log(io.StringIO):
        def write(self, text):
            gc.collect()
            alive.append(sum(ref() is not None for ref in networks))
            return super().write(text)

    cross_validate(read_contest(contest), out=tmp_path / "run", log=Log(), **{**small_settings, "epochs": 1})
    assert max(alive) == 1
    assert len(networks) == 3  # one to check, and one a fold


def test_a_stopped_run_goes_on_to_the_same_bytes(finished_run, contest, small_settings, tmp_path, monkeypatch):
    table, out = read_contest(contest), tmp_path / "run"
    train_fold = crossval.train_fold

    def dies_in_fold_1(run, plan, fold, *options):
        if fold == 1:
            (run.fold_path(1)).mkdir()
            (run.fold_path(1) / "epoch000.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        train_fold(run, plan, fold, *options)

    monkeypatch.setattr(crossval, "train_fold", dies_in_fold_1)
    with pytest.raises(KeyboardInterrupt):
        quiet(table, out, **small_settings)
    monkeypatch.undo()
    done = {f: f.stat().st_mtime_ns for f in (out / "fold0").iterdir()}
    run = quiet(table, out, resume=True, **small_settings)
    assert hashes(run.path) == hashes(finished_run.path)
    assert done == {f: f.stat().st_mtime_ns for f in (out / "fold0").iterdir()}


def test_resume_refuses_what_would_change_the_result(run_copy, contest, small_settings, tmp_path):
    table = read_contest(contest)
    with pytest.raises(UsageError, match=r"was started with lr 0\.0003, now it is 0\.1"):
        quiet(table, run_copy, resume=True, **small_settings, lr=0.1)
    with pytest.raises(UsageError, match="other photos or labels"):
        quiet(table.select(np.arange(7, 84)), run_copy, resume=True, **small_settings)
    assert quiet(table, run_copy, resume=True, **small_settings, cache="off").path == run_copy
    shutil.copytree(contest, tmp_path / "contest")
    photos = sorted((tmp_path / "contest" / "train" / "images").rglob("*.jpg"))
    shutil.copy(photos[0], photos[1])
    with pytest.raises(UsageError, match="started with another content of the photos than there is now"):
        quiet(read_contest(tmp_path / "contest"), run_copy, resume=True, **small_settings)


@pytest.mark.parametrize("cache", ["off", "ram"])
def test_the_cache_changes_no_bit_of_a_run(contest, small_settings, finished_run, tmp_path, cache):
    assert finished_run.config.cache == "auto"
    run = quiet(read_contest(contest), tmp_path / "run", **small_settings, cache=cache)
    assert (run.path / "oof.csv").read_bytes() == (finished_run.path / "oof.csv").read_bytes()


def test_a_run_is_never_written_over_by_chance(run_copy, contest, small_settings):
    before = hashes(run_copy)
    with pytest.raises(UsageError, match="exists; name another folder with --out"):
        quiet(read_contest(contest), run_copy, **small_settings)
    assert hashes(run_copy) == before


def test_overwrite_replaces_a_run_and_nothing_else(run_copy, contest, small_settings, tmp_path):
    quiet(read_contest(contest), run_copy, overwrite=True, **{**small_settings, "epochs": 1})
    assert len(Run.load(run_copy).history(0)) == 1
    for foreign in (tmp_path / "thesis", run_copy):
        foreign.mkdir(exist_ok=True)
        (foreign / "config.yaml").touch()
        (foreign / "thesis.tex").write_text("years")
        with pytest.raises(
            UsageError, match=r"is not a run \(it holds thesis\.tex\), so --overwrite does not replace it"
        ):
            quiet(read_contest(contest), foreign, overwrite=True, **small_settings)
        assert (foreign / "thesis.tex").read_text() == "years"


def test_two_cannot_write_one_run(contest, small_settings, tmp_path):
    out = tmp_path / "run"
    with (
        held(out),
        pytest.raises(UsageError, match=rf"is being written by process {os.getpid()} on .* since 20"),
    ):
        quiet(read_contest(contest), out, **small_settings)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_appeared_in_the_meantime_is_left_alone(finished_run, run_copy, contest, small_settings):
    plan = prepare(read_contest(contest), make_config(small_settings))
    before = hashes(run_copy)
    with pytest.raises(UsageError, match="exists"):
        crossval.create(run_copy, plan, overwrite=False)
    assert hashes(run_copy) == before


@pytest.mark.semaphores
def test_resume_takes_other_loading_processes(run_copy, contest, small_settings):
    again = quiet(read_contest(contest), run_copy, resume=True, **small_settings, workers=1, cache="off")
    assert again.path == run_copy


@pytest.mark.semaphores
def test_resume_runs_on_the_machine_that_it_is_told(run_copy, contest, small_settings, monkeypatch):
    (run_copy / "fold1" / "done.json").unlink()
    seen = []
    make = plan_module.dataloaders
    monkeypatch.setattr(plan_module, "dataloaders", lambda *a, **k: seen.append(k["num_workers"]) or make(*a, **k))
    quiet(read_contest(contest), run_copy, resume=True, **small_settings, workers=1)
    assert seen == [1]


def test_a_pipeline_may_be_given_as_an_object(contest, small_settings, tmp_path):
    own = A.Compose([A.CenterCrop(300, 150), A.Resize(32, 16), A.Normalize((0.5,) * 3, (0.5,) * 3), A.ToTensorV2()])
    settings = {**small_settings, "epochs": 1, "train_pipeline": own, "valid_pipeline": own}
    run = quiet(read_contest(contest), tmp_path / "run", **settings)
    assert run.pipelines["valid"]["transform"]["transforms"][0]["height"] == 300
    assert augmentations(run.pipelines)[1].stats == ((0.5,) * 3, (0.5,) * 3)


def test_persons_of_training_and_validation_are_others(contest, small_settings, tmp_path, monkeypatch):
    seen = []
    make = plan_module.dataloaders
    monkeypatch.setattr(plan_module, "dataloaders", lambda *a, **k: seen.append(make(*a, **k)) or seen[-1])
    table = read_contest(contest)
    quiet(table, tmp_path / "run", **{**small_settings, "epochs": 1})
    validated = []
    person_of = {str(table.photo(row)): person for row, person in enumerate(table.persons)}
    for dls in seen:
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


def test_it_learns(contest, small_settings, tmp_path):
    settings = {**small_settings, "epochs": 12, "bs": 4, "lr": 1e-2, "sched": "onecycle", "patience": 0}
    losses = quiet(read_contest(contest), tmp_path / "run", **settings).history(0)["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0] / 2


def test_folds_csv_names_every_label(finished_run):
    folds = pd.read_csv(finished_run.path / "folds.csv")
    assert list(folds.columns) == ["path", "person", "mask", "gender", "age", "age_value", "fold"]


def test_folds_can_be_trained_apart_and_then_the_rest(finished_run, contest, small_settings, tmp_path):
    table = read_contest(contest)
    run = quiet(table, tmp_path / "run", fold=[1], **small_settings)
    assert run.trained_folds == [1]
    assert set(run.oof["fold"]) == {1}
    assert "Of 2 folds only fold 1 is trained: a part of the photos." in run.score().notes
    assert run.scores["folds"][0]["epochs"] == [1]  # nobody to ask: the last
    # over the classes of the whole table, as everywhere
    assert run.score().joint.macro_f1 == run.scores["folds"][0]["joint"]["macro_f1"]
    run = quiet(table, tmp_path / "run", resume=True, **small_settings)
    assert hashes(run.path) == hashes(finished_run.path)


@pytest.mark.parametrize("fold", [[2], [-1], [0, 7], []])
def test_a_fold_that_there_is_not_is_refused(fold, contest, small_settings, tmp_path):
    with pytest.raises(UsageError, match="There is no fold .*; expected some of 0, 1"):
        quiet(read_contest(contest), tmp_path / "run", fold=fold, **small_settings)
    assert not (tmp_path / "run").exists()


def test_a_file_of_folds_is_shared(finished_run, contest, small_settings, tmp_path):
    shared = tmp_path / "split.csv"
    folds = finished_run.folds.assign(fold=1 - finished_run.folds["fold"])
    folds[["person", "fold"]].drop_duplicates().to_csv(shared, index=False)
    settings = {k: v for k, v in small_settings.items() if k != "folds"} | {"epochs": 1}
    run = quiet(read_contest(contest), tmp_path / "run", folds_file=str(shared), **settings)
    assert run.config.folds == 2
    assert run.folds["fold"].tolist() == folds["fold"].tolist()
    with pytest.raises(UsageError, match="Setting folds is 3, but .*split.csv has 2"):
        quiet(read_contest(contest), tmp_path / "other", folds_file=str(shared), folds=3, **settings)


def test_the_best_k_are_averaged(contest, small_settings, tmp_path):
    run = quiet(read_contest(contest), tmp_path / "run", **{**small_settings, "epochs": 4, "top_k": 2})
    assert [len(run.checkpoints(f)) for f in (0, 1)] == [2, 2]
    for scores in run.scores["folds"]:
        fold, epochs = scores["fold"], scores["epochs"]
        assert len(epochs) == 2
        mean = (read_oof(run.fold_path(fold), epochs[0]) + read_oof(run.fold_path(fold), epochs[1])) / 2
        np.testing.assert_allclose(run.probabilities[run.oof["fold"] == fold], mean, rtol=1e-6)


def test_a_loss_of_one_s_own(contest, small_settings, tmp_path):
    class HalfFocal(FocalLoss):
        def forward(self, logits, y):
            return super().forward(logits, y) / 2

    settings = {**small_settings, "epochs": 1, "lr": 1e-9}
    whole = quiet(read_contest(contest), tmp_path / "whole", **settings)
    half = quiet(read_contest(contest), tmp_path / "half", loss_func=HalfFocal, **settings)
    assert half.config.loss == "own"
    assert half.history(0)["valid_loss"][0] == pytest.approx(whole.history(0)["valid_loss"][0] / 2, rel=1e-4)
    with pytest.raises(UsageError, match="loss is own, which needs the loss_func"):
        quiet(read_contest(contest), tmp_path / "run", **{**settings, "loss": "own"})


def test_a_head_s_name_does_not_turn_its_metric_round(contest, small_settings, tmp_path):
    table = read_contest(contest)
    heads = Heads([replace(h, name="gloss" if h.name == "mask" else h.name) for h in table.heads])
    table = replace(table, heads=heads, frame=table.frame.rename(columns={"mask": "gloss"}))
    settings = {**small_settings, "epochs": 4, "monitor": "gloss_macro_f1", "patience": 0, "lr": 1e-2}
    run = quiet(table, tmp_path / "run", **settings)
    for fold in (0, 1):
        best = int(run.history(fold)["gloss_macro_f1"].to_numpy().argmax())
        assert [c.name for c in run.checkpoints(fold)] == [f"epoch{best:03d}.safetensors"]
        assert run.scores["folds"][fold]["own_best_epochs"] == [best]


def test_resume_refuses_other_weights_under_the_same_name(contest, small_settings, tmp_path):
    table = read_contest(contest)
    body, settings = tmp_path / "body.safetensors", {**small_settings, "epochs": 1}
    del settings["pretrained"]
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), body)
        if seed == 0:
            quiet(table, tmp_path / "run", weights=str(body), fold=[0], **settings)
            moved = shutil.copy(body, tmp_path / "moved.safetensors")
    with pytest.raises(UsageError, match="started with another weights than there is now"):
        quiet(table, tmp_path / "run", weights=str(body), resume=True, **settings)
    assert quiet(table, tmp_path / "run", weights=str(moved), resume=True, **settings).trained_folds == [0, 1]


def test_the_number_behind_a_head_is_learned_beside_it(contest, small_settings, tmp_path):
    run = cross_validate(read_contest(contest), out=tmp_path / "run", order="age", **{**small_settings, "epochs": 1})
    years = run.probabilities[:, run.heads.offsets[3] :]
    assert years.sum(1) == pytest.approx(1, abs=1e-4)
    assert set(run.score().heads) == {"mask", "gender", "age"}
    assert "age_number_macro_f1" not in run.history(0)
    assert bound_curve(run).official == 60
    images = contest / "eval" / "images"
    written = run.predict(images).to_submission(contest / "eval" / "info.csv", tmp_path / "s.csv")
    assert pd.read_csv(written)["ans"].between(0, 17).all()


def test_a_run_on_labels_that_a_model_proposed_says_that_its_score_flatters(contest, small_settings, tmp_path):
    table = replace(read_contest(contest), proposed=3)
    run = cross_validate(table, out=tmp_path / "run", **{**small_settings, "epochs": 1})
    note = "3 corrections of labels are a model's own and nobody has looked at them: this score flatters."
    assert note in run.score(draws=0).notes
    assert note in run.scores["notes"]
