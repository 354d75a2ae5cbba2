"""The files of caches: what is listed, and what is removed."""

import hashlib
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fastmask.data.augment import Prefix
from fastmask.data.cache import photo_map
from fastmask.data.cache_files import clear_cache, features_file, list_caches, photos_folder
from fastmask.data.digests import digest_photos
from fastmask.preparation.near_copies import recall_near_copies, remember_near_copies

NAMES = ["0" * 32, "0123456789abcdef" * 2]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "decoded"


@pytest.fixture
def features(folder):
    """Two files of features as a screening writes them, the second forged."""
    files = [features_file(name, folder) for name in NAMES]
    files[0].parent.mkdir(parents=True)
    for file, body in zip(files, ("resnet50.a1_in1k", "\x1b]0;owned\x07"), strict=True):
        save_file({"features": np.zeros((7, 5), np.float32)}, file, {"body": body})
    return files


def test_features_are_listed_and_cleared_with_photos(folder, features, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    own = photo_map([tmp_path / "a.png"], digest_photos([tmp_path / "a.png"]), Prefix(), "disk", folder).file.stem
    listed = {c.path.stem: c for c in list_caches(folder)}
    assert set(listed) == {own, *NAMES}
    first, second = (listed[name] for name in NAMES)
    assert (first.photos, first.bytes, first.made) == (7, features[0].stat().st_size, features[0].stat().st_mtime)
    assert str(first).startswith(f"{NAMES[0]}        7 photos")
    assert str(first).endswith("  5 features of resnet50.a1_in1k")
    # metadata that may be forged is not printed
    assert str(second).endswith("  5 features of a body")
    assert [c.path for c in clear_cache([NAMES[0]], folder)] == [features[0]]
    assert {c.path.stem for c in list_caches(folder)} == {own, NAMES[1]}
    assert len(clear_cache(folder=folder)) == 2
    assert list(features[0].parent.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"\xff" * 300, pickle.dumps([1])])
def test_a_broken_file_of_features_is_listed_and_cleared(folder, features, data):
    features[0].write_bytes(data)
    broken = next(c for c in list_caches(folder) if c.path == features[0])
    assert str(broken).endswith("broken: it is made again when needed")
    assert len(clear_cache(folder=folder)) == 2


def test_clearing_leaves_all_other_files(folder, features, tmp_path):
    own = [features[0].with_name(name) for name in ("mine.safetensors", f"{NAMES[0]}.txt", f"{NAMES[0]}x.safetensors")]
    old, new = (features[0].with_name(f".{NAMES[0]}.safetensors.{number}.part") for number in (1, 2))
    for file in (*own, old, new):
        file.touch()
    os.utime(old, (0, 0))
    assert len(clear_cache(folder=folder)) == 2
    # those of others, and those that another process writes now, stay
    assert sorted(features[0].parent.iterdir()) == sorted([*own, new])
    # so do those behind a link
    elsewhere = tmp_path / "elsewhere"
    features[0].parent.rename(elsewhere)
    (elsewhere / features[0].name).touch()
    features[0].parent.symlink_to(elsewhere)
    assert clear_cache(folder=folder) == []
    assert (elsewhere / features[0].name).exists()


def test_the_default_folders_are_in_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features_file("a") == tmp_path / "fastmask" / "features" / "a.safetensors"
    assert photos_folder() == tmp_path / "fastmask" / "photos"
    assert list_caches() == []


def test_near_copies_are_listed_and_cleared_with_the_others(folder, features):
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    remember_near_copies(np.array(["a", "b", "c"]), digests, [(digests[0], digests[2])], folder)
    assert recall_near_copies(np.array(["c", "a", "b"]), [digests[2], *digests[:2]], folder) == [
        (digests[0], digests[2])
    ]
    assert recall_near_copies(np.array(["a", "b", "b"]), digests, folder) is None
    (own,) = [cache for cache in list_caches(folder) if cache.path.stem not in NAMES]
    assert (own.photos, str(own).partition("  near copies: ")[2]) == (3, "1 pair of persons")
    own.path.write_text('{"pairs": []}')
    assert str(next(c for c in list_caches(folder) if c.path == own.path)).endswith(
        "broken: it is made again when needed"
    )
    assert [cache.path for cache in clear_cache([own.path.stem], folder)] == [own.path]
    assert recall_near_copies(np.array(["a", "b", "c"]), digests, folder) is None
