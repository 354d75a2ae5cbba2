import io
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.sample import write_sample
from fastmask.run.lineage import best_checkpoint, digest_weights
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.files import read_json, read_yaml, write_csv, write_json, write_yaml
from fastmask.training.build import build_initial_network
from fastmask.training.plan import prepare


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
    assert any("this score flatters a little" in note for note in run.score().notes)


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


def test_ancestors_of_the_weights_count(contest, settings, tmp_path):
    """The first run learnt from its people, the second only from others, the third is judged on people of the first."""
    others = renamed(read_contest(write_sample(tmp_path / "others", persons=12, seed=5)))
    second = cross_validate(others, out=tmp_path / "second", log=io.StringIO(), **{**settings, "epochs": 1})
    third = make_config(settings, {"weights": str(second.path), "seed": 1})
    with pytest.raises(UsageError, match=r"Fold 0 would be validated on photo .* of .*small/fold0 were trained on"):
        prepare(read_contest(contest), third)


def test_a_missing_ancestor_is_refused(contest, settings, run_copy):
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "weights": str(run_copy / "gone")})
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
