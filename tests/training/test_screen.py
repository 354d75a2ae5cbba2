import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from fastmask.data.cache import clear_cache, list_caches
from fastmask.data.contest import contest_heads, read_contest
from fastmask.errors import DataError, FastmaskError, UsageError
from fastmask.heads import Head, Heads
from fastmask.model.network import build_network
from fastmask.training.screen import PENALTIES, features_of, oof_of_features, plan_bodies, read_features, screen

ARCHS = ["test_resnet", "test_vit"]


@pytest.fixture(scope="module")
def settings(small_settings):
    return {name: value for name, value in small_settings.items() if name not in ("arch", "epochs", "bs", "folds")}


@pytest.fixture(scope="module")
def screening(contest, settings, tmp_path_factory):
    return screen(read_contest(contest), ARCHS, folds=3, cache_dir=str(tmp_path_factory.mktemp("kept")), **settings)


@pytest.fixture
def drawn():
    """Features and labels of 90 persons of four photos in five folds."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(360, 10))
    scores = features @ rng.normal(size=(10, 8)) + rng.gumbel(size=(360, 8)) * 2
    heads = contest_heads()
    y = np.stack([part.argmax(1) for part in heads.split(scores)], axis=1)
    return features, y, heads, np.arange(360) // 4 % 5


def by_scikit_learn(features, y, head, rows, penalty, judged):
    mean, scale = features[rows].mean(0), features[rows].std(0)
    c = (2 if y[:, head].max() == 1 else 1) / (penalty * rows.sum())
    model = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit((features[rows] - mean) / scale, y[rows, head])
    return model.predict_proba((features[judged] - mean) / scale)


def test_oof_is_scikit_learns_fold_by_fold(drawn):
    features, y, heads, folds = drawn
    probabilities, penalties, unfinished = oof_of_features(*drawn)
    assert unfinished == 0
    for fold in range(5):
        here = folds == fold
        for head, part in enumerate(heads.split(probabilities[here])):
            expected = by_scikit_learn(features, y, head, ~here, penalties[fold, head], here)
            assert part == pytest.approx(expected, abs=1e-3)


def test_the_penalty_is_the_best_on_the_neighbours_by_models_without_the_fold(drawn):
    features, y, _, folds = drawn
    penalties = oof_of_features(*drawn)[1]
    for fold, head in ((0, 2), (3, 1)):
        losses = []
        for penalty in PENALTIES:
            loss = 0.0
            for neighbour in ((fold + 1) % 5, (fold - 1) % 5):
                here = folds == neighbour
                p = by_scikit_learn(features, y, head, ~here & (folds != fold), penalty, here)
                loss -= np.log(p[np.arange(here.sum()), y[here, head]]).sum()
            losses.append(loss)
        assert penalties[fold, head] == PENALTIES[int(np.argmin(losses))]


@pytest.mark.parametrize("fold", [0, 2])
def test_no_label_of_a_fold_reaches_its_own_predictions(drawn, fold):
    features, y, heads, folds = drawn
    here = folds == fold
    others = y.copy()
    others[here] = (y[here] + 1) % [3, 2, 3]
    before, after = (oof_of_features(features, labels, heads, folds) for labels in (y, others))
    assert (before[1][fold] == after[1][fold]).all()
    # torch sums them in another order, no more
    assert after[0][here] == pytest.approx(before[0][here], abs=1e-9)
    assert np.abs(after[0][~here] - before[0][~here]).max() > 0.01


def test_a_penalty_of_two_folds_is_not_chosen(drawn):
    features, y, heads, folds = drawn
    probabilities, penalties, _ = oof_of_features(features, y, heads, folds % 2)
    assert set(penalties.ravel()) == {0.1}
    here = folds % 2 == 0
    expected = by_scikit_learn(features, y, 0, ~here, 0.1, here)
    assert heads.split(probabilities[here])[0] == pytest.approx(expected, abs=1e-3)


def test_the_ranking_is_of_scores_that_scikit_learn_sees(screening, contest):
    table = read_contest(contest)
    true = table.heads.joint(table.y)
    for row in screening.rows:
        predicted = table.heads.joint(table.heads.argmax(row.probabilities))
        expected = f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
        assert row.scores.joint.macro_f1 == pytest.approx(expected)
        low, high = row.scores.joint.macro_f1_interval
        assert low <= expected <= high
    scores = [row.scores.joint.macro_f1 for row in screening.rows]
    assert scores == sorted(scores, reverse=True)
    assert {row.arch for row in screening.rows} == set(ARCHS)
    assert screening.rows[0].behind is None
    assert screening.rows[1].behind.macro_f1 == pytest.approx(scores[1] - scores[0])


def test_features_are_the_bodys_own_on_the_validation_photos(contest, settings, tmp_path):
    (plan,) = plan_bodies(
        read_contest(contest), ARCHS[:1], None, {}, 16, print, {**settings, "folds": 3, "cache_dir": str(tmp_path)}
    )
    network = build_network("test_resnet", plan.table.heads).eval()
    found = features_of(plan, network, print).values
    import cv2

    for row in (0, 41, 83):
        photo = np.asarray(Image.open(plan.table.photo(row)).convert("RGB"))
        top, left = (photo.shape[0] - 400) // 2, (photo.shape[1] - 200) // 2
        cut = cv2.resize(photo[top : top + 400, left : left + 200], (32, 64), interpolation=cv2.INTER_AREA)
        x = (cut / 255 - np.array([0.548, 0.504, 0.479])) / np.array([0.237, 0.247, 0.246])
        with torch.no_grad():
            expected = network.body(torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None])[0].numpy()
        assert found[row] == pytest.approx(expected, abs=2e-2)


def test_a_second_screening_computes_only_what_is_new(contest, settings, tmp_path, monkeypatch):
    from fastmask.training import screen as module

    computed, real = [], module._computed

    def counted(plan, body, paths, *rest):
        computed.append((plan.config.arch, len(paths)))
        return real(plan, body, paths, *rest)

    monkeypatch.setattr(module, "_computed", counted)
    table, where = read_contest(contest), {"folds": 3, "cache_dir": str(tmp_path), "draws": 100}
    first = screen(table, ["test_resnet"], **where, **settings)
    assert computed == [("test_resnet", 84)]
    assert (first.rows[0].kept, len(list((tmp_path / "features").iterdir()))) == (False, 1)
    computed.clear()
    second = screen(table, ["test_resnet", "test_vit"], **where, **settings)
    # eight photos tell whether what was kept is theirs
    assert computed == [("test_resnet", 8), ("test_vit", 84)]
    kept = {row.arch: row for row in second.rows}
    assert (kept["test_resnet"].kept, kept["test_vit"].kept) == (True, False)
    assert (kept["test_resnet"].probabilities == first.rows[0].probabilities).all()
    assert kept["test_resnet"].seconds == pytest.approx(first.rows[0].seconds)
    assert "(kept)" in str(second)
    # as fastmask cache shows and clears them
    said = [str(each).rsplit("  ", 1)[-1] for each in list_caches(tmp_path)]
    assert said[:2] == [f"{kept[arch].features} features of {arch}" for arch in ("test_vit", "test_resnet")]
    assert len(said) == len(clear_cache(folder=tmp_path)) == 3
    computed.clear()
    screen(table, ["test_resnet"], **where, **settings)
    assert computed == [("test_resnet", 84)]


@pytest.mark.parametrize(("cache", "seed"), [("off", 0), ("ram", 0), ("disk", 1)])
def test_features_of_other_weights_or_without_a_disk_are_not_taken(contest, settings, tmp_path, cache, seed):
    table, where = read_contest(contest), {"folds": 3, "cache_dir": str(tmp_path), "draws": 100}
    screen(table, ["test_resnet"], **where, **settings)
    again = screen(table, ["test_resnet"], **where, **settings, cache=cache, seed=seed)
    assert not again.rows[0].kept
    assert len(list((tmp_path / "features").iterdir())) == (2 if seed else 1)


@pytest.fixture
def kept(tmp_path):
    """A file of kept features of nine photos, and what it holds."""
    features = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    tensors = {"features": features, "seconds": np.array([2.0], np.float32)}
    save_file(tensors, tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors", tensors


def test_kept_features_are_read_back(kept):
    file, tensors = kept
    found = read_features(file, 9, tensors["features"][[0, 8]], [0, 8])
    assert (found.values == tensors["features"]).all()
    assert (found.seconds, found.kept) == (2.0, True)


@pytest.mark.parametrize(
    "spoil",
    [
        {"features": np.full((9, 4), np.nan, np.float32)},
        {"features": np.zeros((9, 4), np.float32)},
        {"features": np.zeros((4, 9), np.float32)},
        {"features": np.zeros((9, 4), np.int32)},
        {"features": np.zeros((90_000, 4), np.float32)},
        {"seconds": np.array([np.inf], np.float32)},
        {"seconds": np.zeros((2, 2), np.float32)},
    ],
)
def test_a_file_that_is_not_those_features_is_left(kept, spoil):
    file, tensors = kept
    save_file({**tensors, **spoil}, file)
    assert read_features(file, 9, tensors["features"][[0, 8]], [0, 8]) is None


def test_a_file_that_is_cut_or_a_link_is_left(kept, tmp_path):
    file, tensors = kept
    probe = tensors["features"][[0, 8]]
    (tmp_path / "link.safetensors").symlink_to(file)
    assert read_features(tmp_path / "link.safetensors", 9, probe, [0, 8]) is None
    file.write_bytes(file.read_bytes()[:-5])
    assert read_features(file, 9, probe, [0, 8]) is None
    file.write_bytes(b"\xff" * 300)
    assert read_features(file, 9, probe, [0, 8]) is None


def test_weights_from_a_file_make_other_features_than_random_ones(contest, settings, tmp_path):
    file = tmp_path / "w.safetensors"
    torch.manual_seed(5)
    body = build_network("test_resnet", contest_heads()).body
    save_file({n: t.contiguous().numpy() for n, t in body.state_dict().items()}, file)
    table, where = read_contest(contest), {"folds": 3, "cache": "off", "draws": 100}
    found = screen(table, ARCHS, weights={"test_resnet": file}, **where, **settings)
    said = {row.arch: row.initial_weights for row in found.rows}
    assert said["test_vit"] == "random"
    assert said["test_resnet"].startswith(f"{file}: ")
    assert any("Random weights" in note and note.endswith(": test_vit.") for note in found.notes)


def test_training_labels_are_by_the_training_bounds_and_scores_by_the_scores(contest, settings):
    table = read_contest(contest, age_bounds=(20, 50))
    found = screen(table, ["test_resnet"], folds=3, cache="off", draws=100, **settings).rows[0]
    expected = f1_score(table.y[:, 2], table.heads.argmax(found.probabilities)[:, 2], labels=np.unique(table.y[:, 2]),
                        average="macro", zero_division=0)  # fmt: skip
    assert found.scores.heads["age"].macro_f1 == pytest.approx(expected)
    trained, official = (
        screen(t, ["test_resnet"], folds=3, cache="off", draws=100, **settings).rows[0].probabilities
        for t in (table, read_contest(contest))
    )
    assert (table.train_y != table.y).any()
    assert np.abs(trained - official).max() > 1e-3


def test_unknown_labels_are_left_out_of_fitting_and_score(contest, settings):
    table = read_contest(contest)
    frame = table.frame.copy()
    frame.loc[::5, "gender"] = ""
    found = screen(replace(table, frame=frame), ["test_resnet"], folds=3, cache="off", draws=100, **settings)
    assert found.rows[0].scores.heads["gender"].n == 84 - 17
    assert any(note.startswith("17 of 84 photos lack a label") for note in found.notes)


def test_a_table_without_any_joint_label_is_refused(contest, settings):
    table = read_contest(contest)
    frame = table.frame.copy()
    frame.loc[::2, "gender"], frame.loc[1::2, "mask"] = "", ""
    with pytest.raises(DataError, match="No photo has a label of all of mask, gender, age"):
        screen(replace(table, frame=frame), ["test_resnet"], folds=3, cache="off", **settings)


def test_it_is_told_in_words_a_table_and_plain_values(screening, tmp_path):
    lines = str(screening).splitlines()
    first, second = screening.rows
    assert lines[1].startswith(f"1 {first.arch}")
    assert f"{first.scores.joint.macro_f1:.4f} (" in lines[1]
    assert str(second.behind) in lines[2]
    assert "so its lead flatters" in str(screening)
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
    ("archs", "options", "message"),
    [
        (["test_resnet", "resnet1000"], {}, "no arch 'resnet1000'; the nearest are"),
        (["test_resnet", "test_resnet"], {}, "expected different names"),
        (["test_resnet", ""], {}, "expected different names"),
        (["test_resnet"], {"weights": {"test_vit": "x.pth"}}, "'test_vit' is none of --archs test_resnet"),
        (["test_resnet"], {"weights": {"test_resnet": "nowhere.pth"}}, "nowhere.pth does not exist"),
        (["test_resnet"], {"weights": {"test_resnet": "."}}, "is a directory"),
    ],
)
def test_what_cannot_be_is_said_before_any_features(contest, settings, archs, options, message, monkeypatch):
    from fastmask.training import screen as module

    monkeypatch.setattr(module, "_computed", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(UsageError, match=message):
        screen(read_contest(contest), archs, **options, **settings)


def test_a_size_that_the_second_body_cuts_is_said_before_any_features(contest, settings, monkeypatch):
    from fastmask.training import screen as module

    def flawed(network, arch, size):
        if arch == "test_vit":
            raise UsageError("test_vit cuts photos")

    monkeypatch.setattr(module, "check_size", flawed)
    monkeypatch.setattr(module, "_computed", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(UsageError, match="test_vit cuts photos"):
        screen(read_contest(contest), ARCHS, folds=3, **settings)


def test_weights_that_have_seen_the_photos_are_refused(contest, settings, finished_run):
    file = finished_run.checkpoints(0)[0]
    for archs in (["test_resnet"], ["test_vit", "test_resnet"]):
        with pytest.raises(UsageError, match="its score would flatter"):
            screen(read_contest(contest), archs, weights={"test_resnet": file}, folds=2, **settings)


def test_features_that_are_no_numbers_are_refused(contest, settings, tmp_path):
    body = build_network("test_resnet", contest_heads()).body
    weights = {n: t.contiguous().numpy() for n, t in body.state_dict().items()}
    first = next(n for n, w in weights.items() if w.ndim == 4)
    weights[first] = np.full_like(weights[first], np.inf)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(FastmaskError, match="features of these photos that are no numbers"):
        screen(
            read_contest(contest),
            ["test_resnet"],
            weights={"test_resnet": tmp_path / "w.safetensors"},
            cache="off",
            folds=3,
            **settings,
        )


def test_heads_of_any_names(settings, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 2, 24)
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(24)], "person": [f"p{i}" for i in range(24)]})
    frame["colour"] = np.array(["red", "blue"])[colours]
    for name, colour in zip(frame["path"], colours, strict=True):
        photo = rng.integers(0, 60, (400, 200, 3)).astype(np.uint8)
        photo[..., 2 * colour] += 150
        Image.fromarray(photo).save(tmp_path / name)
    from fastmask.data.table import Table

    table = Table(frame.assign(source="made"), Heads([Head("colour", ("red", "blue"))]), tmp_path)
    found = screen(table, ["test_resnet"], folds=3, cache="off", draws=100, **settings)
    assert found.rows[0].scores.heads["colour"].macro_f1 == 1
    assert found.heads.names == ("colour",)


def test_what_is_kept_has_the_features_and_no_more(contest, settings, tmp_path):
    screen(read_contest(contest), ["test_resnet"], folds=3, cache_dir=str(tmp_path), draws=100, **settings)
    (file,) = (tmp_path / "features").iterdir()
    width = build_network("test_resnet", contest_heads()).heads[0].in_features
    shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
    assert shapes == {"features": (84, width), "seconds": (1,)}


def test_settings_of_training_alone_are_not_used(contest, settings):
    found = screen(
        read_contest(contest), ["test_resnet"], folds=3, cache="off", draws=100, epochs=3, accumulate=64, order="age",
        monitor="age_macro_f1", **settings,
    )  # fmt: skip
    assert found.heads.names == ("mask", "gender", "age")
