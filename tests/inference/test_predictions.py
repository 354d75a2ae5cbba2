import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from trained_runs import predict_by_hand

from fastmask.api import Run, blend_runs
from fastmask.data.contest import read_contest
from fastmask.evaluation.decisions import fit_run
from fastmask.inference.networks import load_network
from fastmask.inference.predictions import predict
from fastmask.model.views import make_views
from fastmask.run.tensors import read_oof
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_json, read_yaml, write_json, write_yaml


@pytest.fixture(scope="module")
def photos(contest):
    return sorted((contest / "eval" / "images").iterdir())


def predicted(run, images, **options):
    return predict(run, images, workers=0, device="cpu", **options)


def test_it_is_the_mean_of_the_fold_models(finished_run, photos):
    predictions = predicted(finished_run, photos)
    each = [predict_by_hand(finished_run, photos, fold) for fold in (0, 1)]
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(predictions.members["fold0"], each[0], atol=2e-5)
    np.testing.assert_allclose(predictions.probabilities, mean, atol=2e-5)
    assert predictions.joint.tolist() == finished_run.heads.joint(finished_run.heads.argmax(mean)).tolist()


def test_the_inference_transform_is_the_validation_transform(finished_run, contest):
    # a fold's model predicts the photos that it validated: exactly the numbers of training
    table = read_contest(contest)
    rows = np.flatnonzero(finished_run.folds["fold"] == 0)
    epoch = int(finished_run.checkpoints(0)[0].stem.removeprefix("epoch"))
    again = predicted(finished_run, [table.photo(r) for r in rows], members=["fold0"])
    np.testing.assert_allclose(again.probabilities, read_oof(finished_run.fold_path(0), epoch), atol=1e-5)


def test_more_views_are_training_augmentations_and_repeat(run_copy, photos):
    pipelines = read_yaml(run_copy / "pipelines.yaml")
    brightness = {"__class_fullname__": "RandomBrightnessContrast", "brightness_limit": 0.5, "p": 1.0}
    pipelines["train"]["transform"]["transforms"].insert(-2, brightness)
    write_yaml(run_copy / "pipelines.yaml", pipelines)
    two, four = (predicted(run_copy, photos[:5], tta=tta).probabilities for tta in (2, 4))
    assert (two != four).any()
    np.testing.assert_allclose(predicted(run_copy, photos[:5], tta=4, bs=2).probabilities, four, atol=1e-5)
    np.testing.assert_allclose(four.reshape(5, -1)[:, :3].sum(1), 1, atol=1e-5)
    found = Run.load(run_copy).predict(photos[:5], 2, workers=0, device=torch.device("cpu"))
    assert (found.probabilities == two).all()


@pytest.mark.bf16
def test_it_computes_in_the_given_precision(finished_run, photos):
    exact, rough = (predict(finished_run, photos, members=["fold0"], precision=p) for p in ("auto", "bf16"))
    assert np.array_equal(exact.probabilities, predict(finished_run, photos, members=["fold0"]).probabilities)
    gap = np.abs(exact.probabilities - rough.probabilities).max()
    assert 0 < gap < 0.05
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        predict(finished_run, photos, precision="fp16")


def test_a_precision_that_the_machine_gets_wrong_is_refused(finished_run, photos, wrong_bf16):
    with pytest.raises(UsageError, match="This CPU computes bf16 wrongly: .*; take --precision fp32"):
        predict(finished_run, photos, precision="bf16")


def test_photos_come_as_given(finished_run, photos):
    forth, back = predicted(finished_run, photos[:9], bs=4), predicted(finished_run, photos[:9][::-1], bs=4)
    assert back.names == forth.names[::-1]
    np.testing.assert_allclose(back.probabilities[::-1], forth.probabilities, atol=1e-5)


def test_members_can_be_chosen_and_each_keeps_its_columns(finished_run, photos):
    one = predicted(finished_run, photos[:3], members=["fold1"])
    assert list(one.members) == ["fold1"]
    frame = predicted(finished_run, photos[:3]).frame
    assert list(frame.columns[:6]) == ["path", "predicted", "mask", "gender", "age", "mask.wear"]
    named = [finished_run.heads.encode(row) for row in frame[["mask", "gender", "age"]].to_numpy()]
    assert finished_run.heads.joint(np.array(named)).tolist() == frame["predicted"].tolist()
    assert {"fold0:age.60+", "fold1:age.60+"} <= set(frame.columns)
    np.testing.assert_allclose(frame["fold1:mask.wear"], one.probabilities[:, 0], atol=1e-6)


def test_checkpoints_of_a_fold_are_averaged_or_their_weights(two_checkpoints, photos):
    def alone():
        return predicted(two_checkpoints, photos[:4], members=["fold0"]).probabilities

    both, (first, second) = alone(), two_checkpoints.checkpoints(0)
    soup = predicted(two_checkpoints, photos[:4], soup=True, members=["fold0"]).probabilities
    one, two = load_file(first), load_file(second)
    first.unlink()
    each = [alone()]
    save_file(one, first)
    second.unlink()
    each.append(alone())
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)
    mean = {name: (one[name] + two[name]) / 2 if one[name].is_floating_point() else one[name] for name in one}
    save_file(mean, first)
    np.testing.assert_allclose(soup, alone(), atol=1e-6)
    assert (soup != both).any()


def test_views_are_averaged_with_the_photo_itself(finished_run, photos):
    options = {"views": ["flip", "shift", "scale"], "members": ["fold1"]}
    averaged = predicted(finished_run, photos[:5], **options)
    each = [predict_by_hand(finished_run, photos[:5], 1, view) for view in make_views(options["views"])]
    assert len(each) == 8
    np.testing.assert_allclose(averaged.probabilities, np.mean(each, axis=0), atol=2e-5)
    back = predicted(finished_run, photos[:5][::-1], bs=2, **options)
    np.testing.assert_allclose(back.probabilities[::-1], averaged.probabilities, atol=1e-5)
    flipped = predicted(finished_run, photos[:5], views=["flip"])
    assert np.array_equal(flipped.probabilities, predicted(finished_run, photos[:5], tta=2).probabilities)


def with_views(run, place, views):
    """A copy of a run whose settings name views."""
    copied = shutil.copytree(run.path, place)
    write_yaml(copied / "config.yaml", {**read_yaml(copied / "config.yaml"), "views": views})
    return Run.load(copied)


def test_the_views_of_a_run_are_those_of_its_settings_unless_others_are_given(finished_run, photos, tmp_path):
    run, few = with_views(finished_run, tmp_path / "viewed", ["flip", "scale"]), photos[:3]
    one, wanted = (predicted(finished_run, few, views=views).probabilities for views in ([], ["flip", "scale"]))
    assert np.array_equal(predicted(run, few).probabilities, wanted)
    for given in ({"tta": 1}, {"views": "none"}):
        assert np.array_equal(predicted(run, few, **given).probabilities, one)


def test_each_run_of_an_ensemble_has_its_own_views(finished_run, other_run, photos, tmp_path):
    run, few = with_views(finished_run, tmp_path / "viewed", ["flip"]), photos[:3]
    both = predicted(blend_runs([run, other_run], out=tmp_path / "both", draws=0).run, few)
    assert np.array_equal(both.members["viewed"], predicted(finished_run, few, views=["flip"]).probabilities)
    assert np.array_equal(both.members["other"], predicted(other_run, few).probabilities)


@pytest.fixture
def both(finished_run, other_run, tmp_path):
    """An ensemble, to break things in."""
    return blend_runs([finished_run, other_run], out=tmp_path / "both", draws=0).run


@pytest.mark.parametrize("how", ["mean", "vote", "oof", "stack"])
def test_an_ensemble_blends_what_its_runs_predict(finished_run, other_run, photos, how, tmp_path):
    blended = blend_runs([finished_run, other_run], how, out=tmp_path / "both", draws=0)
    seen = []
    both = predicted(blended.run, photos[:5], views=["flip"], progress=lambda *done: seen.append(done), bs=3)
    each = [predicted(run, photos[:5], views=["flip"], bs=3).probabilities for run in (finished_run, other_run)]
    assert list(both.members) == ["small", "other"] == blended.members
    for member, own in zip(both.members.values(), each, strict=True):
        assert np.array_equal(member, own)
    np.testing.assert_allclose(both.probabilities, blended.blend.mix(each), rtol=1e-6)
    assert both.blend == how
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_rule_of_an_ensemble_is_of_its_blend(both, photos):
    rule, found = fit_run(both, "calibrated"), predicted(both, photos[:5])
    decided = found.decide(rule)
    np.testing.assert_allclose(decided.probabilities, rule.calibrated(found.probabilities))
    assert np.isfinite(decided.probabilities).all()


def test_a_member_has_columns_of_the_heads_that_it_has_learned(run_copy, other_run, photos, tmp_path):
    heads = read_json(run_copy / "heads.json")
    write_json(run_copy / "heads.json", [heads[0], *({**head, "weight": 0} for head in heads[1:])])
    run = blend_runs([run_copy, other_run], out=tmp_path / "both", draws=0).run
    both = predicted(run, photos[:3])
    assert np.isnan(both.members["run_copy"][:, 3:]).all()
    assert np.array_equal(both.probabilities[:, 3:], both.members["other"][:, 3:])
    columns = [c for c in both.frame.columns if c.startswith("run_copy:")]
    assert columns == ["run_copy:mask.wear", "run_copy:mask.incorrect", "run_copy:mask.none"]
    assert not both.frame.isna().any(axis=None)


def test_a_member_that_is_missing_or_has_changed_is_named(run_copy, other_run, photos, tmp_path):
    run = blend_runs([run_copy, other_run], out=tmp_path / "both", draws=0).run
    score, oof = str(run.score(0)), (run_copy / "oof.csv").read_text()
    (run_copy / "oof.csv").write_text(oof.replace(",0.3", ",0.4"))
    with pytest.raises(DataError, match="run_copy has changed since .*both was made of it; make the ensemble again"):
        predicted(run, photos[:2])
    (run_copy / "oof.csv").write_text(oof)
    assert len(predicted(run, photos[:2])) == 2
    config = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(config.replace("lr: 0.0003", "lr: 0.0004"))
    with pytest.raises(DataError, match="run_copy has changed since"):
        predicted(run, photos[:2])
    (run_copy / "config.yaml").write_text(config)
    shutil.rmtree(run_copy / "fold1")
    with pytest.raises(DataError, match="run_copy has changed since"):
        predicted(run, photos[:2])
    shutil.rmtree(run_copy)
    with pytest.raises(DataError, match="is made of .*run_copy, which does not exist; restore it"):
        predicted(run, photos[:2])
    # its score stays
    assert str(Run.load(run.path).score(0)) == score


def test_an_ensemble_and_its_runs_can_be_moved_together(finished_run, other_run, photos, tmp_path, monkeypatch):
    for run in (finished_run, other_run):
        shutil.copytree(run.path, tmp_path / "here" / run.path.name)
    monkeypatch.chdir(tmp_path / "here")
    before = predicted(blend_runs(["small", "other"], out="both", draws=0).run, photos[:2]).probabilities
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    assert np.array_equal(predicted("there/both", photos[:2]).probabilities, before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blend": "best"}, "does not hold one of the blends mean, vote, oof, stack"),
        ({"weights": {"mask": [0.5, 0.5]}}, "for each head, 2 weights"),
        ({"weights": {name: [0.9, 0.9] for name in ("mask", "gender", "age")}}, "that sum to 1"),
        ({"weights": {name: [2, -1] for name in ("mask", "gender", "age")}}, "2 weights of 0 or more"),
        ({"weights": {name: ["a", 1] for name in ("mask", "gender", "age")}}, "2 weights of 0 or more"),
        ({"blend": "oof", "weights": {"mask": {}, "gender": {}, "age": {}}}, "that sum to 1, with temperatures"),
        ({"blend": "stack"}, "with coefficients, intercepts and a penalty"),
        ({"members": [{"name": "a"}]}, "does not hold a blend, its weights, members and caveats"),
        ({"members": []}, "made of 2 to 100 runs; .*ensemble.json names 0"),
        ({"members": [dict.fromkeys(("name", "path", "identity", "oof"), "a")] * 101}, "ensemble.json names 101"),
        ({"caveats": [3]}, "does not hold a blend, its weights, members and caveats"),
    ],
)
def test_a_broken_ensemble_file_is_named(both, photos, change, match):
    write_json(both.path / "ensemble.json", {**both.ensemble, **change})
    with pytest.raises(DataError, match=match):
        predicted(both.path, photos[:2])


@pytest.mark.parametrize("same", ["name", "path"])
def test_a_duplicate_member_is_named(both, photos, same):
    one, other = both.ensemble["members"]
    taken = (same,) if same == "name" else ("path", "identity", "oof")
    members = [one, {**other, **{t: one[t] for t in taken}}]
    write_json(both.path / "ensemble.json", {**both.ensemble, "members": members})
    with pytest.raises(DataError, match=f"ensemble.json names {one['name'] if same == 'name' else 'other'} twice"):
        predicted(both.path, photos[:2])


def test_weights_that_predict_nan_are_named(run_copy, photos):
    file = Run.load(run_copy).checkpoints(1)[0]
    tensors = load_file(file)
    save_file({name: t * float("nan") if "heads.1" in name else t for name, t in tensors.items()}, file)
    with pytest.raises(DataError, match=rf"run_copy/fold1 predicts NaN or inf for .*{photos[0].name}"):
        predicted(run_copy, photos[:3])


def test_an_ensemble_predicts_with_all_its_runs_and_each_must_be_able_to(both, photos):
    with pytest.raises(UsageError, match="both is an ensemble and predicts with all its runs"):
        predicted(both, photos[:2], members=["other"])
    with pytest.raises(UsageError, match=r"Each fold of .*small keeps one checkpoint"):
        predicted(both, photos[:2], soup=True)
    with pytest.raises(UsageError, match="needs a run that was trained with boxes, and none of .*both was"):
        predicted(both, photos[:2], boxes="boxes.csv")


def test_a_csv_of_predictions_comes_back(finished_run, photos, tmp_path):
    predictions = predicted(finished_run, photos[0].parent)
    frame = pd.read_csv(predictions.to_csv(tmp_path / "p.csv"))
    assert frame["path"].tolist() == [p.name for p in photos]
    np.testing.assert_array_equal(frame[finished_run.heads.columns].to_numpy(np.float32), predictions.probabilities)


def test_what_cannot_be_predicted_is_refused(finished_run, run_copy, photos, tmp_path):
    with pytest.raises(UsageError, match="is not a run directory"):
        predicted(tmp_path, photos)
    with pytest.raises(UsageError, match="no member 'fold7'; expected some of fold0, fold1"):
        predicted(finished_run, photos, members=["fold7"])
    with pytest.raises(UsageError, match="There is no option 'tts'; did you mean 'tta'"):
        predicted(finished_run, photos, tts=2)
    checkpoint = Run.load(run_copy).checkpoints(0)[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(DataError, match="does not hold the weights of test_resnet"):
        predicted(run_copy, photos)


@pytest.fixture
def mixed(photos, tmp_path):
    """A folder of two good photos, and one of each kind that cannot be predicted."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, photo in zip(("b.jpg", "y.jpg"), photos, strict=False):
        shutil.copy(photo, folder / name)
    (folder / "a.jpg").write_bytes(photos[2].read_bytes()[:900])
    (folder / "c.jpg").write_bytes(b"")
    (folder / "d.png").write_text("no photo")
    (folder / "e.jpg").symlink_to(folder / "gone.jpg")
    Image.new("1", (1, 200_000)).save(folder / "f.png")
    return folder


BAD = {
    "a.jpg": "is damaged",
    "c.jpg": "is empty",
    "d.png": "is not an image",
    "e.jpg": "is a link",
    "f.png": "does not fit",
}


@pytest.mark.parametrize("views", [{}, {"tta": 4}, {"views": ["flip"]}], ids=str)
def test_photos_that_cannot_be_predicted_do_not_end_the_rest(finished_run, photos, mixed, views):
    found = predicted(finished_run, mixed, **views)
    assert found.names == ["b.jpg", "y.jpg"] == found.frame["path"].tolist()
    if "tta" not in views:
        # whose augmentation is counted by the place of a photo
        wanted = predicted(finished_run, photos[:2], **views).probabilities
        np.testing.assert_allclose(found.probabilities, wanted, atol=1e-6)
    assert list(found.failed) == list(BAD)
    for name, reason in BAD.items():
        assert name in found.failed[name]
        assert reason in found.failed[name]
        assert "row" not in found.failed[name]
    assert found.decide(fit_run(finished_run, "calibrated")).failed == found.failed


def test_the_ensemble_and_photos_in_memory_leave_out_what_fails(both, photos, mixed):
    found = predicted(both, mixed)
    assert (found.names, list(found.failed)) == (["b.jpg", "y.jpg"], list(BAD))
    np.testing.assert_allclose(found.probabilities, predicted(both, photos[:2]).probabilities, atol=1e-6)
    found = predicted(both, [b"", photos[0].read_bytes(), Image.open(photos[1])])
    assert found.names == ["photo 1", "photo 2"]
    assert found.failed == {"photo 0": "photo 0 is not an image that can be read"}


@pytest.mark.filterwarnings("default::fastmask.system.errors.FastmaskWarning")
def test_run_predict_warns_of_what_fails_and_what_is_enlarged(finished_run, mixed):
    Image.new("RGB", (320, 240)).save(mixed / "z.png")
    with pytest.warns(FastmaskWarning) as warned:
        found = finished_run.predict(mixed)
    enlarged, failed = (str(each.message) for each in warned)
    assert enlarged.startswith("1 of 8 photos is smaller than the crop")
    assert failed.startswith("5 of 8 photos could not be predicted; the first: ")
    assert found.names == ["b.jpg", "y.jpg", "z.png"]


def test_the_first_failure_is_an_error_on_request_and_where_nothing_is_left(finished_run, both, photos, mixed):
    for run in (finished_run, both):
        with pytest.raises(
            DataError, match=r"a\.jpg is damaged .*, and 4 more of 7 photos cannot .*--on-bad-photo skip"
        ):
            predicted(run, mixed, on_bad_photo="error")
    with pytest.raises(DataError, match=r"None of the 5 photos can be predicted: .*a\.jpg is damaged"):
        predicted(finished_run, [mixed / name for name in BAD])
    with pytest.raises(DataError, match=r"^\S+c\.jpg is empty"):
        predicted(finished_run, mixed / "c.jpg")


def test_a_photo_that_is_removed_while_others_are_predicted_is_left_out(finished_run, photos, mixed, monkeypatch):
    """Unless it is kept in memory since it was read."""

    def load(*given):
        (mixed / "b.jpg").unlink(missing_ok=True)
        return load_network(*given)

    both = predicted(finished_run, mixed, load=load)
    assert both.names == ["b.jpg", "y.jpg"]
    shutil.copy(photos[0], mixed / "b.jpg")
    monkeypatch.setattr("fastmask.inference.predictions.KEPT", 0)
    found = predicted(finished_run, mixed, load=load)
    assert found.names == ["y.jpg"]
    assert "b.jpg" in found.failed
    np.testing.assert_allclose(found.probabilities, predicted(finished_run, photos[1]).probabilities, atol=1e-6)


@pytest.mark.parametrize("views", [{}, {"tta": 4}, {"views": ["shift"]}], ids=str)
def test_a_small_photo_is_predicted_as_the_same_photo_enlarged_by_hand(finished_run, both, views):
    small = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    large = cv2.resize(small, (533, 400), interpolation=cv2.INTER_LINEAR)
    for run in (finished_run, both):
        found, wanted = (predicted(run, each, **views) for each in (small, large))
        assert np.array_equal(found.probabilities, wanted.probabilities)
        assert (len(found.notes), len(wanted.notes)) == (1, 0)


def test_the_usual_class_is_the_most_common_of_the_runs_labels(finished_run, photos, mixed):
    joint = finished_run.heads.joint(finished_run.y).tolist()
    assert predicted(finished_run, mixed).usual == max(sorted(set(joint)), key=joint.count)
    assert predicted(finished_run, photos[:1]).usual is None
