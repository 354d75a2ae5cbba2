import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastmask.api import cross_validate
from fastmask.config import make_config
from fastmask.data.readers import read_csv
from fastmask.model.network import build_body
from fastmask.system.errors import UsageError
from fastmask.training.flip import is_worse
from fastmask.training.setup import prepare

ARCH = "test_resnet"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A CSV of grey photos with a brighter square on one side, dark or light."""
    folder, rng, rows = tmp_path_factory.mktemp("sides"), np.random.default_rng(0), []
    for number in range(120):
        right, light = rng.integers(0, 2, 2)
        photo = rng.normal(150 if light else 60, 10, (64, 64, 3))
        top, left = rng.integers(4, 44), rng.integers(2, 14) + 32 * right
        photo[top : top + 16, left : left + 16] += 70
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(
            {
                "path": f"{number}.png",
                "person": number,
                "side": ["left", "right"][right],
                "tone": ["dark", "light"][light],
            }
        )
    pd.DataFrame(rows).to_csv(folder / "photos.csv", index=False)
    return folder / "photos.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "body.safetensors"
    save_file(build_body(ARCH).state_dict(), file)
    return str(file)


def test_a_resumed_run_stays_as_it_was_measured(photos, weights, tmp_path):
    given = {"arch": ARCH, "heads": ["tone"], "resize": (32, 32), "device": "cpu", "folds": 2, "epochs": 1, "bs": 16}
    table = read_csv(photos, heads=["tone"])
    settings = {**given, "weights": weights, "flip": True, "out": tmp_path / "run", "patience": 0}
    first = cross_validate(table, **settings, fold=[0])
    assert first.config.views == ["flip"]
    whole = cross_validate(table, **settings, resume=True)
    assert (whole.config.flip, whole.config.augment, whole.config.views) == (False, ["flip"], ["flip"])
    assert whole.trained_folds == [0, 1]


def plan_of(photos, heads, said=None, **settings):
    start = {} if "weights" in settings else {"pretrained": False}
    given = {"arch": ARCH, "heads": heads, "resize": (64, 64), "device": "cpu", "folds": 2, "flip": True}
    config = make_config(start, given, settings)
    return prepare(read_csv(photos, heads=heads), config, say=lambda line: said is None or said.append(line))


def test_photos_are_mirrored_in_training_and_in_validation_where_labels_stay(photos, weights):
    config = plan_of(photos, ["tone"], weights=weights).config
    assert (config.flip, config.augment, config.views) == (False, ["flip"], ["flip"])


def test_what_is_mirrored_anyway_is_not_measured(photos):
    said = []
    config = plan_of(photos, ["tone"], said, augment=["flip"], views=["flip"]).config
    assert (config.flip, config.augment, config.views) == (False, ["flip"], ["flip"])
    assert not any("mirror" in line for line in said)


def test_what_is_mirrored_anyway_is_not_named_twice(photos, weights):
    config = plan_of(photos, ["tone"], weights=weights, augment=["rotate", "flip"], views=["flip"]).config
    assert (config.augment, config.views) == (["rotate", "flip"], ["flip"])


def test_photos_are_not_mirrored_where_a_head_names_their_side(photos, weights):
    said = []
    config = plan_of(photos, ["side", "tone"], said, weights=weights).config
    assert (config.flip, config.augment, config.views) == (False, None, [])
    assert any("not mirrored: mirror images have other labels of side. To mirror them" in line for line in said)


def test_random_weights_cannot_tell(photos):
    said = []
    assert plan_of(photos, ["tone"], said).config.augment is None
    assert any("not mirrored: random weights cannot tell" in line for line in said)


def test_custom_pipelines_mirror_by_themselves():
    pipeline = {"transform": {"__class_fullname__": "Compose", "transforms": []}}
    with pytest.raises(UsageError, match="flip has no effect with train_pipeline: add HorizontalFlip"):
        make_config({"flip": True, "train_pipeline": pipeline, "valid_pipeline": pipeline})


@pytest.mark.parametrize(("wrong", "worse"), [(0, False), (8, False), (100, True)])
def test_a_head_is_worse_if_more_answers_are_lost_than_by_chance(wrong, worse):
    rng = np.random.default_rng(0)
    y, part = rng.integers(0, 2, 200), np.arange(200) % 2
    plain = (y * 2.0 - 1)[:, None] + rng.normal(0, 0.1, (200, 3))
    mirrored = plain.copy()
    mirrored[:wrong] *= -1
    assert is_worse(plain, mirrored, y, part) is worse


def test_answers_that_get_wrong_and_right_alike_are_noise():
    rng = np.random.default_rng(0)
    y, part = rng.integers(0, 2, 400), np.arange(400) % 2
    # the sign says nothing of the label, so a mirrored one loses as many as it gains
    plain = rng.normal(0, 1, (400, 3))
    assert not is_worse(plain, -plain, y, part)


def test_photos_without_a_label_do_not_count():
    rng = np.random.default_rng(0)
    y, part = rng.integers(0, 2, 200), np.arange(200) % 2
    plain = (y * 2.0 - 1)[:, None] + rng.normal(0, 0.1, (200, 3))
    mirrored = plain.copy()
    mirrored[:100] *= -1
    assert is_worse(plain, mirrored, y, part)
    y[:100] = -1
    assert not is_worse(plain, mirrored, y, part)
