import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from sklearn.metrics import f1_score

from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.table import Table
from fastmask.heads import Head, Heads
from fastmask.model.network import build_network
from fastmask.search import screen as module
from fastmask.search.screen import screen
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.training import features

ARCHS = ["test_resnet", "test_vit"]


@pytest.fixture(scope="module")
def rank(screening_settings):
    """A function that screens bodies, by default one, without a cache."""

    def rank(table, archs=("test_resnet",), **options):
        settings = {**screening_settings, "folds": 3, "stratify": "gender", "cache": "off", "workers": 0}
        return screen(table, archs, **{"draws": 100, **settings, **options})

    return rank


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


@pytest.fixture(scope="module")
def screening(rank, table):
    return rank(table, ARCHS)


@pytest.mark.slow
def test_copies_under_two_persons_are_noted(rank, contest_copy):
    table = read_contest(contest_copy)
    copy, near = table.photo(0).read_bytes(), table.photo(16)
    for row in range(7, 14):
        table.photo(row).write_bytes(copy)
    image = Image.open(near).convert("RGB")
    for row in range(21, 28):
        image.save(table.photo(row), "JPEG", quality=50)
    for seed in range(5):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", FastmaskWarning)
            notes = rank(table, seed=seed).notes
        assert any(note.startswith("2 persons share identical photos with others") for note in notes)
        said = [note for note in notes if note.startswith("1 pair of persons in two folds have the same")]
        assert said == [str(each.message) for each in warned if "same picture" in str(each.message)]
        if said:
            return
    pytest.fail("no seed separates the near copies")


def macro(true, predicted):
    return f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)


def test_the_ranking_is_of_scores_that_scikit_learn_sees(screening, table):
    true = table.heads.joint(table.y)
    for row in screening.rows:
        expected = macro(true, table.heads.joint(table.heads.argmax(row.probabilities)))
        assert row.scores.joint.macro_f1 == pytest.approx(expected)
        low, high = row.scores.joint.macro_f1_interval
        assert low <= expected <= high
    scores = [row.scores.joint.macro_f1 for row in screening.rows]
    assert scores == sorted(scores, reverse=True)
    assert {row.arch for row in screening.rows} == set(ARCHS)
    assert screening.rows[0].behind is None
    assert screening.rows[1].behind.macro_f1 == pytest.approx(scores[1] - scores[0])


def test_weights_from_a_file_are_named(rank, table, tmp_path):
    file = tmp_path / "w.safetensors"
    torch.manual_seed(5)
    body = build_network("test_resnet", contest_heads()).body
    save_file({n: t.contiguous().numpy() for n, t in body.state_dict().items()}, file)
    found = rank(table, ARCHS, weights={"test_resnet": file})
    said = {row.arch: row.initial_weights for row in found.rows}
    assert said["test_vit"] == "random"
    assert said["test_resnet"].startswith(f"{file}: ")
    assert any("Random weights" in note and note.endswith(": test_vit.") for note in found.notes)


def test_training_labels_are_by_the_training_bounds_and_scores_by_the_scores(rank, contest, screening):
    table = read_contest(contest, age_bounds=(20, 50))
    found = rank(table).rows[0]
    assert found.scores.heads["age"].macro_f1 == pytest.approx(
        macro(table.y[:, 2], table.heads.argmax(found.probabilities)[:, 2])
    )
    official = next(row for row in screening.rows if row.arch == "test_resnet")
    assert (table.train_y != table.y).any()
    assert np.abs(found.probabilities - official.probabilities).max() > 1e-3


def test_unknown_labels_are_left_out_of_fitting_and_score(rank, table):
    frame = table.frame.copy()
    frame.loc[::5, "gender"] = ""
    found = rank(replace(table, frame=frame))
    assert found.rows[0].scores.heads["gender"].n == 84 - 17
    assert any(note.startswith("17 of 84 photos lack a label") for note in found.notes)
    # each head has labels, and no photo has all
    frame.loc[::2, "gender"], frame.loc[1::2, "mask"] = "", ""
    with pytest.raises(DataError, match="No photo has a label of all of mask, gender, age"):
        rank(replace(table, frame=frame))


def test_as_text_a_table_and_plain_values(screening, tmp_path):
    lines = str(screening).splitlines()
    first, second = screening.rows
    assert lines[1].startswith(f"1 {first.arch}")
    assert f"{first.scores.joint.macro_f1:.4f} (" in lines[1]
    assert str(second.behind) in lines[2]
    assert "so its lead is optimistic" in str(screening)
    plain = json.loads(json.dumps(screening.to_plain()))
    assert [row["arch"] for row in plain["ranking"]] == [first.arch, second.arch]
    assert plain["ranking"][1]["behind"]["macro_f1"] == second.behind.macro_f1
    screening.to_csv(tmp_path / "s.csv")
    frame = pd.read_csv(tmp_path / "s.csv")
    assert frame["arch"].tolist() == [first.arch, second.arch]
    assert frame["age_macro_f1"].iloc[0] == pytest.approx(first.scores.heads["age"].macro_f1)
    assert frame["ms_a_photo"].iloc[1] == pytest.approx(1000 * second.seconds / 84)
    screening.write_oof(tmp_path / "oof")
    oof = pd.read_csv(tmp_path / "oof" / f"{first.arch}.csv")
    assert oof[screening.heads.columns].to_numpy() == pytest.approx(first.probabilities, abs=1e-8)


@pytest.mark.parametrize(
    ("archs", "weights", "message"),
    [
        (["test_resnet", "resnet1000"], {}, "no arch 'resnet1000'; the nearest are"),
        (["test_resnet", "test_resnet"], {}, "expected different names"),
        (["test_resnet", ""], {}, "expected different names"),
        (["test_resnet"], {"test_vit": "x.pth"}, "'test_vit' is not in --archs test_resnet"),
        (["test_resnet"], {"test_resnet": "nowhere.pth"}, "nowhere.pth does not exist"),
        (["test_resnet"], {"test_resnet": "."}, "is a directory"),
    ],
)
def test_invalid_arguments_are_refused_before_any_features(rank, table, archs, weights, message, monkeypatch):
    monkeypatch.setattr(features, "compute_features", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(UsageError, match=message):
        rank(table, archs, weights=weights)


def test_a_size_that_the_second_body_cuts_is_refused_before_any_features(rank, table, monkeypatch):
    def flawed(network, arch, size):
        if arch == "test_vit":
            raise UsageError("test_vit cuts photos")

    monkeypatch.setattr(module, "check_size", flawed)
    monkeypatch.setattr(features, "compute_features", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(UsageError, match="test_vit cuts photos"):
        rank(table, ARCHS)


@pytest.mark.parametrize("archs", [["test_resnet"], ["test_vit", "test_resnet"]])
def test_weights_that_have_seen_the_photos_are_refused(rank, table, finished_run, archs):
    with pytest.raises(UsageError, match="its score would be too good"):
        rank(table, archs, weights={"test_resnet": finished_run.checkpoints(0)[0]}, folds=2)


def test_heads_of_any_names(rank, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 2, 24)
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(24)], "person": [f"p{i}" for i in range(24)]})
    frame["colour"] = np.array(["red", "blue"])[colours]
    for name, colour in zip(frame["path"], colours, strict=True):
        photo = rng.integers(0, 60, (400, 200, 3)).astype(np.uint8)
        photo[..., 2 * colour] += 150
        Image.fromarray(photo).save(tmp_path / name)
    table = Table(frame.assign(source="made"), Heads([Head("colour", ("red", "blue"))]), tmp_path)
    found = rank(table, stratify="joint")
    assert found.rows[0].scores.heads["colour"].macro_f1 == 1
    assert found.heads.names == ("colour",)


def test_settings_of_training_alone_are_not_used(rank, table):
    assert rank(table, epochs=3, accumulate=64, order="age", monitor="age_macro_f1").heads.names == table.heads.names
