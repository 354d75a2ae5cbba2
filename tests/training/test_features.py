import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from fastmask.data.cache_files import clear_cache, list_caches
from fastmask.data.contest import contest_heads, read_contest
from fastmask.model.network import build_network
from fastmask.search.screen import plan_bodies, screen
from fastmask.system.errors import FastmaskError
from fastmask.training import features
from fastmask.training.features import features_of, read_features


@pytest.fixture(scope="module")
def rank(contest, screening_settings):
    """A function that screens bodies on the contest's photos, with a cache in a folder."""

    def rank(folder, archs=("test_resnet",), **options):
        settings = {
            **screening_settings,
            "folds": 3,
            "stratify": "gender",
            "cache_dir": str(folder),
            "draws": 100,
            "workers": 0,
        }
        return screen(read_contest(contest), archs, **{**settings, **options})

    return rank


def test_features_are_the_bodys_own_on_the_validation_photos(contest, screening_settings, tmp_path):
    settings = {**screening_settings, "folds": 3, "stratify": "gender", "cache_dir": str(tmp_path), "workers": 0}
    (plan,) = plan_bodies(read_contest(contest), ["test_resnet"], None, {}, 16, print, settings)
    network = build_network("test_resnet", plan.table.heads).eval()
    found = features_of(plan, network.body, print).values
    for row in (0, 41, 83):
        photo = np.asarray(Image.open(plan.table.photo(row)).convert("RGB"))
        top, left = (photo.shape[0] - 400) // 2, (photo.shape[1] - 200) // 2
        cut = cv2.resize(photo[top : top + 400, left : left + 200], (32, 64), interpolation=cv2.INTER_AREA)
        x = (cut / 255 - np.array([0.548, 0.504, 0.479])) / np.array([0.237, 0.247, 0.246])
        with torch.no_grad():
            expected = network.body(torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None])[0].numpy()
        assert found[row] == pytest.approx(expected, abs=2e-2)


@pytest.mark.slow
def test_a_second_screening_computes_only_what_is_new(rank, tmp_path, monkeypatch):
    computed, real = [], features.compute_features

    def counted(plan, body, paths, *rest):
        computed.append((plan.config.arch, len(paths)))
        return real(plan, body, paths, *rest)

    monkeypatch.setattr(features, "compute_features", counted)
    first = rank(tmp_path).rows[0]
    assert computed == [("test_resnet", 84)]
    (file,) = (tmp_path / "features").iterdir()
    shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
    assert shapes == {"features": (84, first.features), "seconds": (1,)}
    computed.clear()
    second = rank(tmp_path, ["test_resnet", "test_vit"])
    # eight photos verify the kept features
    assert computed == [("test_resnet", 8), ("test_vit", 84)]
    kept = {row.arch: row for row in second.rows}
    assert (first.kept, kept["test_resnet"].kept, kept["test_vit"].kept) == (False, True, False)
    assert (kept["test_resnet"].probabilities == first.probabilities).all()
    assert kept["test_resnet"].seconds == pytest.approx(first.seconds)
    assert "(kept)" in str(second)
    # neither other weights nor a cache that is not on the disk have these features
    for options, files in (({"cache": "off"}, 2), ({"cache": "ram"}, 2), ({"cache": "disk", "seed": 1}, 3)):
        assert not rank(tmp_path, **options).rows[0].kept
        assert len(list((tmp_path / "features").iterdir())) == files
    # as fastmask cache shows and clears them
    said = [str(each).rsplit("  ", 1)[-1] for each in list_caches(tmp_path)]
    assert {f"{kept[arch].features} features of {arch}" for arch in ("test_vit", "test_resnet")} <= set(said)
    assert "near copies: 0 pairs of persons" in said
    assert len(said) == len(clear_cache(folder=tmp_path)) == 5
    computed.clear()
    rank(tmp_path)
    assert computed == [("test_resnet", 84)]


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


def test_features_of_nan_are_refused(rank, tmp_path):
    body = build_network("test_resnet", contest_heads()).body
    weights = {n: t.contiguous().numpy() for n, t in body.state_dict().items()}
    first = next(n for n, w in weights.items() if w.ndim == 4)
    weights[first] = np.full_like(weights[first], np.inf)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(FastmaskError, match="gives features that are NaN or inf"):
        rank(tmp_path, weights={"test_resnet": tmp_path / "w.safetensors"}, cache="off")
