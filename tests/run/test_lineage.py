import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.sample import write_sample
from fastmask.run.lineage import best_checkpoint, digest_weights, lineage_of
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_json, read_yaml, write_csv, write_json, write_yaml
from fastmask.training.build import build_initial_network
from fastmask.training.setup import prepare


def forget(folder):
    """Rewrite the checkpoints below a folder without metadata, as earlier versions wrote them."""
    for file in folder.rglob("*.safetensors"):
        save_file(load_file(file), file)


@pytest.fixture
def settings(small_settings, finished_run):
    return {k: v for k, v in small_settings.items() if k != "pretrained"} | {"weights": str(finished_run.path)}


def test_each_fold_starts_from_its_own_best_checkpoint(contest, settings, finished_run):
    plan = prepare(read_contest(contest), make_config(settings))
    for fold in (0, 1):
        (file,) = (finished_run.path / f"fold{fold}").glob("epoch*.safetensors")
        network = build_initial_network(plan.config, plan.table.heads, fold, plan.size).state_dict()
        assert {name for name, t in load_file(file).items() if not torch.equal(t, network[name])} == set()
    assert plan.environment["body"]["initial_weights"].startswith(str(finished_run.path / "fold0" / "epoch"))


def test_the_best_checkpoint_is_that_of_the_history(run_copy):
    folder = run_copy / "fold0"
    (kept,) = folder.glob("epoch*.safetensors")
    for epoch in (0, 1):
        if not (folder / f"epoch00{epoch}.safetensors").exists():
            shutil.copy(kept, folder / f"epoch00{epoch}.safetensors")
    history = pd.read_csv(folder / "history.csv")
    for values, best in (([0.1, 0.2], 1), ([0.2, 0.1], 0), ([0.2, 0.2], 0), ([float("nan"), 0.0], 1)):
        write_csv(folder / "history.csv", history.assign(macro_f1=values))
        assert best_checkpoint(Run.load(run_copy), 0).name == f"epoch00{best}.safetensors"


def test_heads_with_other_classes_start_from_random_weights(contest, settings, run_copy, finished_run):
    heads = read_json(run_copy / "heads.json")
    heads[0]["name"] = "cap"
    write_json(run_copy / "heads.json", heads)
    folds = pd.read_csv(run_copy / "folds.csv").rename(columns={"mask": "cap"})
    write_csv(run_copy / "folds.csv", folds)
    plan = prepare(read_contest(contest), make_config(settings, {"weights": str(run_copy)}))
    network = build_initial_network(plan.config, plan.table.heads, 0, plan.size).state_dict()
    (file,) = (finished_run.path / "fold0").glob("epoch*.safetensors")
    differing = {name for name, t in load_file(file).items() if not torch.equal(t, network[name])}
    assert differing == {"heads.0.weight", "heads.0.bias"}


def test_a_run_trains_from_the_weights_of_another_with_a_caveat(contest, settings, tmp_path):
    run = cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), **{**settings, "epochs": 1})
    assert run.trained_folds == [0, 1]
    assert run.start["weights"] == digest_weights(settings["weights"])
    # each fold starts from an epoch that its own photos have chosen
    assert any("weights of an epoch chosen by their own photos" in note for note in run.score().notes)


def test_weights_that_have_seen_validation_photos_are_refused(contest, settings, finished_run):
    table = read_contest(contest)
    with pytest.raises(UsageError, match=r"Fold 0 would be validated on (photo|person) .* --folds-file .*folds\.csv"):
        prepare(table, make_config(settings, {"seed": 1}))
    leaky = make_config(settings, {"seed": 1, "group": "none"})
    with pytest.warns(FastmaskWarning), pytest.raises(UsageError, match="Fold 0 would be validated on photo "):
        prepare(table, leaky)
    # one file of a run for all folds has seen all that it did not validate
    (file,) = (finished_run.path / "fold1").glob("epoch*.safetensors")
    with pytest.raises(UsageError, match="Fold 0 would be validated on photo "):
        prepare(table, make_config(settings, {"weights": str(file)}))
    alike = {"seed": 1, "folds_file": str(finished_run.path / "folds.csv")}
    plan = prepare(table, make_config({k: v for k, v in settings.items() if k != "folds"}, alike))
    np.testing.assert_array_equal(plan.folds, finished_run.folds["fold"])


@pytest.mark.slow
def test_ancestors_of_the_weights_count(contest, settings, tmp_path):
    """The first run learnt from its people, the second only from others, the third is judged on people of the first."""
    others = renamed(read_contest(write_sample(tmp_path / "others", persons=12, seed=5)))
    second = cross_validate(others, out=tmp_path / "second", log=io.StringIO(), **{**settings, "epochs": 1})
    third = make_config(settings, {"weights": str(second.path), "seed": 1})
    with pytest.raises(UsageError, match=r"Fold 0 would be validated on photo .* the weights .*second/fold0"):
        prepare(read_contest(contest), third)


def test_a_missing_ancestor_is_refused_if_the_checkpoints_do_not_say_what_it_has_seen(contest, settings, run_copy):
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "weights": str(run_copy / "gone")})
    assert prepare(read_contest(contest), make_config(settings, {"weights": str(run_copy)}))
    forget(run_copy)
    with pytest.raises(UsageError, match="gone does not exist, so the photos that it has seen are unknown"):
        prepare(read_contest(contest), make_config(settings, {"weights": str(run_copy)}))


def test_folds_that_are_trained_apart_need_only_their_own_weights(contest, settings, run_copy):
    (run_copy / "fold1" / "done.json").unlink()
    config = make_config(settings, {"weights": str(run_copy)})
    assert prepare(read_contest(contest), config, chosen=[0]).config.folds == 2
    with pytest.raises(UsageError, match="has not finished a fold 1"):
        prepare(read_contest(contest), config, chosen=[1])


def renamed(table):
    """The table with other names for photos and persons."""
    frame = table.frame.assign(
        person=[f"other {person}" for person in table.persons],
        path=[f"{table.root.name}/{path}" for path in table.frame["path"]],
    )
    return replace(table, root=table.root.parent, frame=frame)


def test_photos_of_other_persons_are_accepted(settings, tmp_path):
    others = renamed(read_contest(write_sample(tmp_path / "others", persons=12, seed=5)))
    assert len(prepare(others, make_config(settings)).table) == 84


def test_weights_of_a_run_without_the_fold_are_refused(contest, settings, run_copy):
    (run_copy / "fold1" / "done.json").unlink()
    with pytest.raises(UsageError, match="has not finished a fold 1, so fold 1 has no weights to start from"):
        prepare(read_contest(contest), make_config(settings, {"weights": str(run_copy)}))


def test_weights_of_a_folder_without_a_run_are_refused(contest, settings, tmp_path):
    with pytest.raises(UsageError, match="is not a run directory"):
        prepare(read_contest(contest), make_config(settings, {"weights": str(tmp_path)}))


def test_another_checkpoint_changes_the_digest(run_copy):
    before = digest_weights(str(run_copy))
    (file,) = (run_copy / "fold1").glob("epoch*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert digest_weights(str(run_copy)) != before


@pytest.fixture
def copied(finished_run, tmp_path):
    """The checkpoint of fold 0, elsewhere, under another name."""
    (file,) = finished_run.checkpoints(0)
    return Path(shutil.copy(file, tmp_path / "best.safetensors"))


def metadata(file):
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata()


def short_hashes(kind, texts):
    return {hashlib.blake2b(text.encode(), digest_size=8, person=kind.encode()).digest() for text in texts}


def packed(text):
    joined = base64.b64decode(text)
    return {joined[at : at + 8] for at in range(0, len(joined), 8)}


def test_a_checkpoint_says_what_it_was_trained_on_and_chosen_by(contest, finished_run, copied):
    said = json.loads(metadata(copied)["fastmask"])
    epoch = int(finished_run.checkpoints(0)[0].stem.removeprefix("epoch"))
    assert (said["run"], said["fold"], said["epoch"]) == (finished_run.identity, 0, epoch)
    own = finished_run.folds["fold"] == 0
    for name, rows in (("seen", finished_run.folds[~own]), ("chosen", finished_run.folds[own])):
        files = [contest / "train" / "images" / path for path in rows["path"]]
        photos = short_hashes("photo", [hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        assert packed(said[name]) == photos | short_hashes("person", rows["person"])
    # no name and no path
    assert set(said) == {"run", "fold", "epoch", "seen", "chosen"}
    assert set(timm.models.load_state_dict(copied)) == set(load_file(copied))


def test_a_copied_checkpoint_is_refused_for_the_folds_it_has_seen(contest, settings, finished_run, copied):
    table = read_contest(contest)
    config = make_config(settings, {"weights": str(copied)})
    run = finished_run.identity[:8]
    with pytest.raises(UsageError) as caught:
        prepare(table, config)
    assert re.fullmatch(
        rf"Fold 1 would be validated on photo \S+, which the weights {copied} \(epoch00. of fold 0 of the run {run}\) "
        r"have been trained on: its score would be too good \(see fastmask guide resume\). "
        r"Start each fold from the same fold of their run "
        r"\(--weights RUN --folds-file RUN/folds.csv\), or from weights that have not seen it.",
        str(caught.value),
    )
    # its own fold has not trained it, but has chosen its epoch
    assert prepare(table, config, chosen=[0]).environment["start"]["chosen_weights"]
    (file,) = finished_run.checkpoints(0)
    named = prepare(table, make_config(settings, {"weights": str(file)}), chosen=[0])
    assert named.environment["start"]["chosen_weights"]
    # without metadata it is like weights of another tool
    save_file(load_file(copied), copied)
    assert not prepare(table, config).environment["start"]["chosen_weights"]


def test_photos_are_recognized_by_content_and_persons_by_name(contest_copy, settings, copied):
    config = make_config(settings, {"weights": str(copied)})
    table = read_contest(contest_copy)
    with pytest.raises(UsageError, match="would be validated on photo images/"):
        prepare(renamed(table), config)
    for row in range(len(table)):
        # the same picture in another file
        Image.open(table.photo(row)).save(table.photo(row), quality=50)
    with pytest.raises(UsageError, match="would be validated on person "):
        prepare(table, config)
    assert len(prepare(renamed(table), config).table) == 84


def test_checkpoints_carry_what_the_weights_that_they_started_from_have_seen(contest, settings, tmp_path):
    others = renamed(read_contest(write_sample(tmp_path / "others", persons=12, seed=5)))
    second = cross_validate(others, out=tmp_path / "second", log=io.StringIO(), **{**settings, "epochs": 1})
    # of other photos, so no epoch was chosen by those that are scored
    assert not second.caveats
    before, after = (lineage_of(path, 1) for path in (settings["weights"], str(second.path)))
    assert before.seen < after.seen
    assert before.chosen_by < after.chosen_by
    copied = shutil.copy(second.checkpoints(1)[0], tmp_path / "copied.safetensors")
    with pytest.raises(UsageError, match="would be validated on photo "):
        prepare(read_contest(contest), make_config(settings, {"weights": str(copied)}), chosen=[0])
    assert prepare(read_contest(contest), make_config(settings, {"weights": str(copied)}), chosen=[1])


@pytest.mark.slow
def test_a_refit_has_seen_all_photos(contest, settings, small_settings, tmp_path):
    table = read_contest(contest)
    run = cross_validate(table, out=tmp_path / "run", log=io.StringIO(), **{**small_settings, "epochs": 1, "refit": 1})
    refit = str(shutil.copy(run.fold_path(0) / "refit.safetensors", tmp_path / "refit.safetensors"))
    for fold in (0, 1):
        with pytest.raises(UsageError, match=rf"Fold {fold} .* \(the refit of fold 0 of the run"):
            prepare(table, make_config(settings, {"weights": refit}), chosen=[fold])
    others = renamed(read_contest(write_sample(tmp_path / "others", persons=12, seed=5)))
    assert prepare(others, make_config(settings, {"weights": refit}))
    forget(run.path)
    with pytest.raises(UsageError, match="was refitted on all photos"):
        prepare(others, make_config(settings, {"weights": str(run.fold_path(0) / "refit.safetensors")}))


def test_extra_photos_have_been_seen_and_dropped_ones_have_not(contest, small_settings, tmp_path):
    table = read_contest(contest)
    ages = table.frame["age_value"]
    others = read_contest(write_sample(tmp_path / "others", persons=6, seed=5))
    frame = others.frame[["person", "mask"]].assign(path=[str(others.photo(row)) for row in range(len(others))])
    frame.assign(person="x" + frame["person"]).to_csv(tmp_path / "extra.csv", index=False)
    given = {"extra": str(tmp_path / "extra.csv"), "drop": {"age": [[ages.min(), ages.min()]]}}
    plan = prepare(table, make_config(small_settings, given))
    dropped = set(table.persons[ages == ages.min()])
    for fold in (0, 1):
        made = plan.lineage(fold)
        trained = set(table.persons[plan.folds != fold]) - dropped
        assert made.seen >= short_hashes("person", trained | set("x" + frame["person"]))
        assert not made.seen & short_hashes("person", dropped)
        assert len(made.seen) == len(plan.training_set(fold)) + len(trained) + 6


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 9999, "[]", "{}", '{"seen": 1}', "é", "1" * 9999]
    + [
        json.dumps({"run": "a", "fold": 0, "epoch": 1, "seen": "", "chosen": "", **odd})
        for odd in (
            {"seen": "AAAA"},
            {"seen": "é"},
            {"seen": "!!"},
            {"chosen": [1]},
            {"run": 1},
            {"fold": "x"},
            {"epoch": 1.5},
        )
    ],
)
def test_metadata_that_is_garbled_is_named(contest, settings, copied, text):
    save_file(load_file(copied), copied, {"fastmask": text})
    with pytest.raises(
        DataError, match=rf"{copied} has invalid metadata \(fastmask: .*\), so the photos that it has seen are unknown"
    ):
        prepare(read_contest(contest), make_config(settings, {"weights": str(copied)}))


def test_a_file_that_is_no_weights_is_named(contest, settings, copied):
    copied.write_bytes(b"no weights")
    with pytest.raises(DataError, match="is not a weights file that can be read safely"):
        prepare(read_contest(contest), make_config(settings, {"weights": str(copied)}))


def test_checkpoints_without_metadata_are_known_by_their_folder(contest, settings, run_copy, monkeypatch):
    forget(run_copy)
    (file,) = Run.load(run_copy).checkpoints(0)
    table = read_contest(contest)
    monkeypatch.chdir(file.parent)
    for weights in (str(file), file.name):
        config = make_config(settings, {"weights": weights})
        with pytest.raises(UsageError, match=rf"Fold 1 .* \(--weights {run_copy} --folds-file {run_copy}/folds.csv\)"):
            prepare(table, config)
        assert prepare(table, config, chosen=[0]).environment["start"]["chosen_weights"]
