import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastmask.data.augment import REPORT_STATS
from fastmask.data.contest import read_contest
from fastmask.errors import DataError, FastmaskWarning, UsageError
from fastmask.inference.ensemble import find_photos, predict
from fastmask.model.network import build_network
from fastmask.run import Run
from fastmask.training.callbacks import read_oof

WHOLE = A.Compose(
    [A.CenterCrop(400, 200), A.Resize(64, 32, interpolation=3), A.Normalize(*REPORT_STATS), A.ToTensorV2()]
)


def by_hand(run, paths, fold, mirror=False):
    """Pillow, albumentations' own Normalize and ToTensorV2, a plain network: the probabilities of one fold."""
    network = build_network(run.config.arch, run.heads)
    network.load_state_dict(load_file(run.checkpoints(fold)[0]))
    x = torch.stack([WHOLE(image=np.asarray(Image.open(p).convert("RGB")))["image"] for p in paths])
    with torch.no_grad():
        logits = network.eval()(x.flip(3) if mirror else x)
    return torch.cat([part.softmax(1) for part in run.heads.split(logits)], dim=1).numpy()


@pytest.fixture(scope="module")
def photos(contest):
    return sorted((contest / "eval" / "images").iterdir())


def predicted(run, images, **options):
    return predict(run, images, workers=0, device="cpu", **options)


def test_it_is_the_mean_of_the_fold_models(finished_run, photos):
    predictions = predicted(finished_run, photos)
    each = [by_hand(finished_run, photos, fold) for fold in (0, 1)]
    np.testing.assert_allclose(predictions.members["fold0"], each[0], atol=2e-5)
    np.testing.assert_allclose(predictions.probabilities, np.mean(each, axis=0), atol=2e-5)
    assert (
        predictions.joint.tolist()
        == finished_run.heads.joint(finished_run.heads.argmax(np.mean(each, axis=0))).tolist()
    )


def test_the_inference_transform_is_the_validation_transform(finished_run, contest):
    # a fold's model predicts the photos that it validated: the very numbers of training come out
    table = read_contest(contest)
    rows = np.flatnonzero(finished_run.folds["fold"] == 0)
    epoch = int(finished_run.checkpoints(0)[0].stem.removeprefix("epoch"))
    again = predicted(finished_run, [table.photo(r) for r in rows], members=["fold0"])
    np.testing.assert_allclose(again.probabilities, read_oof(finished_run.fold_path(0), epoch), atol=1e-5)


def test_the_second_view_is_the_mirror_image(finished_run, photos):
    two = predicted(finished_run, photos[:5], tta=2, members=["fold1"])
    plain, mirrored = (by_hand(finished_run, photos[:5], 1, mirror) for mirror in (False, True))
    np.testing.assert_allclose(two.probabilities, (plain + mirrored) / 2, atol=2e-5)


def test_more_views_are_training_augmentations_and_repeat(finished_run, photos, contest, small_settings, tmp_path):
    import io

    from fastmask.training.crossval import cross_validate

    pipeline = small_settings["train_pipeline"]["transform"]
    flip = {"__class_fullname__": "RandomBrightnessContrast", "brightness_limit": 0.5, "p": 1.0}
    train = {"transform": {**pipeline, "transforms": [*pipeline["transforms"], flip]}}
    settings = {**small_settings, "epochs": 1, "train_pipeline": train}
    run = cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), **settings)
    two, four = (predicted(run, photos[:5], tta=tta).probabilities for tta in (2, 4))
    assert (two != four).any()
    np.testing.assert_allclose(predicted(run, photos[:5], tta=4, bs=2).probabilities, four, atol=1e-5)
    np.testing.assert_allclose(four.reshape(5, -1)[:, :3].sum(1), 1, atol=1e-5)


def test_it_computes_in_the_precision_asked_for(finished_run, photos):
    exact, rough = (predict(finished_run, photos, members=["fold0"], precision=p) for p in ("auto", "bf16"))
    assert np.array_equal(exact.probabilities, predict(finished_run, photos, members=["fold0"]).probabilities)
    gap = np.abs(exact.probabilities - rough.probabilities).max()
    assert 0 < gap < 0.05
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        predict(finished_run, photos, precision="fp16")


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


def test_checkpoints_of_a_fold_are_averaged(finished_run, contest, small_settings, photos, tmp_path):
    import io

    from fastmask.training.crossval import cross_validate

    run = cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), **small_settings, top_k=2)
    assert [len(run.checkpoints(f)) for f in (0, 1)] == [2, 2]
    both = predicted(run, photos[:4], members=["fold0"]).probabilities
    best, last = run.checkpoints(0)
    alone = []
    for drop, keep in ((best, last), (last, best)):
        kept = drop.read_bytes()
        drop.unlink()
        assert run.checkpoints(0) == [keep]
        alone.append(predicted(run, photos[:4], members=["fold0"]).probabilities)
        drop.write_bytes(kept)
    np.testing.assert_allclose(both, np.mean(alone, axis=0), atol=1e-6)


def test_a_fold_that_is_not_finished_predicts_nothing(run_copy, photos):
    (run_copy / "fold1" / "done.json").unlink()
    with pytest.warns(FastmaskWarning, match="has finished 1 of 2 folds"):
        assert list(predicted(run_copy, photos[:2]).members) == ["fold0"]
    (run_copy / "fold0" / "done.json").unlink()
    with pytest.raises(UsageError, match="has not finished a fold yet"):
        predicted(run_copy, photos[:2])


def test_a_csv_of_predictions_comes_back(finished_run, photos, tmp_path):
    predictions = predicted(finished_run, photos[0].parent)
    frame = pd.read_csv(predictions.to_csv(tmp_path / "p.csv"))
    assert frame["path"].tolist() == [p.name for p in photos]
    np.testing.assert_array_equal(frame[finished_run.heads.columns].to_numpy(np.float32), predictions.probabilities)


def test_junk_in_a_folder_is_left_out(tmp_path):
    for name in ("b.jpg", "a.png", "._a.png", ".ipynb_checkpoints/c.jpg", "notes.txt", "deep/d.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_photos(tmp_path)[0] == ["a.png", "b.jpg", "deep/d.jpeg"]


def test_what_cannot_be_predicted_is_said(finished_run, run_copy, photos, tmp_path):
    with pytest.raises(UsageError, match="is not a run directory"):
        predicted(tmp_path, photos)
    with pytest.raises(UsageError, match="holds no photos"):
        predicted(finished_run, tmp_path)
    with pytest.raises(UsageError, match="no member 'fold7'; expected some of fold0, fold1"):
        predicted(finished_run, photos, members=["fold7"])
    with pytest.raises(UsageError, match="--tta is 0; expected 1 to"):
        predicted(finished_run, photos, tta=0)
    with pytest.raises(DataError, match=r"none\.jpg does not exist"):
        predicted(finished_run, [tmp_path / "none.jpg"])
    checkpoint = Run.load(run_copy).checkpoints(0)[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(DataError, match="does not hold the weights of test_resnet"):
        predicted(run_copy, photos)


def test_a_run_that_names_an_enormous_network_is_refused_before_it_is_built(run_copy, photos, monkeypatch):
    config = (run_copy / "config.yaml").read_text()
    assert "arch: test_resnet\n" in config
    (run_copy / "config.yaml").write_text(config.replace("arch: test_resnet", "arch: eva02_enormous_patch14_clip_224"))
    monkeypatch.setattr("fastmask.inference.ensemble.build_network", pytest.fail)
    with pytest.raises(DataError, match=r"epoch00\d.safetensors is too short for the weights of eva02_enormous"):
        predicted(run_copy, photos[:2])


def test_a_pipeline_that_cannot_be_built_names_the_run(run_copy, photos):
    (run_copy / "pipelines.yaml").write_text("train: {transform: 3}\nvalid: {transform: 3}\n")
    with pytest.raises(DataError, match="run_copy/pipelines.yaml: train_pipeline is not a pipeline"):
        predicted(run_copy, photos[:2])
