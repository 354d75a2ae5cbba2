"""The recipes of teams in examples/recipes: each is a configuration, trains, and is in the table."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fastmask.config import Config, make_config, read_recipe, read_settings
from fastmask.model.network import build_body

FOLDER = Path(__file__).parents[1] / "examples" / "recipes"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
# what a test's machine needs; photos of the drawn sample have the contest's size
SMALL = {"arch": "test_resnet", "pretrained": False, "epochs": 1, "folds": 2, "bs": 8, "workers": 0}
# one with the most kinds of settings, and one with pipelines of its own and SAM
FAST = ["cohort5-team14-a"]


def teams(text):
    """The names of teams, such as cohort4-team05, in names of recipes."""
    return {re.match(r"cohort\d-(team\d+|[a-z0-9]+)", name)[0] for name in text}


def test_the_table_names_every_recipe_and_the_source_of_each_team():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([\w-]+)\.yaml\)", table)
    assert sorted(named) == sorted(FILES)
    assert len(teams(FILES)) >= 8
    sources = {
        re.search(r"Source: (github\.com/\S+)", file.read_text())[1]
        for name, file in FILES.items()
        if "14th" not in name
    }
    assert all(f"https://{source}" in table for source in sources)


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_has_settings_alone_and_printed_it_is_the_same(name, fastmask):
    settings = read_settings(FILES[name])
    paths = {"data", "boxes", "extra", "images_also", "pseudo", "teacher", "weights", "fixes", "out"}
    assert not paths & set(settings)
    assert FILES[name].read_text().startswith("# Cohort ")
    printed = fastmask("fit", "--config", FILES[name], "--print-config")
    assert printed.code == 0
    Path("printed.yaml").write_text(printed.out)
    assert fastmask("fit", "--config", "printed.yaml", "--print-config").out == printed.out
    config = make_config(settings)
    assert make_config(yaml.safe_load(printed.out)) == config
    # a value that is the default anyway is only written where the team named it
    assert sum(config.is_set(key) for key in settings) >= len(settings) - 4


def test_the_winner_is_what_its_team_published():
    winner = make_config(read_recipe("winner"))
    assert (winner.opt, winner.lr, winner.wd, winner.f1_share, winner.one_head) == ("adam", 1e-4, 5e-4, 1, True)
    assert (winner.epochs + winner.refit, winner.no_face, winner.half_shares) == (10, "crop", (0.46, 0.54))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A CSV of 48 photos of 40 x 40 pixels, dark or light, of which one half is lighter."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    levels, rows = {"dark": 60, "light": 180}, []
    for number in range(48):
        tone, side = list(levels)[number % 2], number // 2 % 2
        photo = rng.normal(levels[tone], 20, (40, 40, 3)).clip(0, 255)
        photo[:, 20 * side : 20 * side + 20] += 40
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "person": number, "tone": tone, "side": ["left", "right"][side]})
    pd.DataFrame(rows).to_csv(folder / "my.csv", index=False)
    return folder / "my.csv"


def test_strong_trains_on_photos_of_any_heads(fastmask, tones):
    """Random weights cannot tell whether to mirror and get no probe; the score is of the recipe's decision."""
    small = ("--arch", "test_resnet", "--no-pretrained", "--resize", 32, 32, "--epochs", 2, "--folds", 2, "--bs", 8)
    done = fastmask("fit", "--recipe", "strong", *small, "--data", tones, "--out", "run", "--no-report")
    assert done.code == 0, done.err
    assert any("not mirrored: random weights cannot tell" in line for line in done.err)
    assert "classes by the decision f1" in str(done.out)


def test_strong_within_a_time_limit_is_resumed_as_it_was_measured(fastmask, tones, tmp_path):
    torch.manual_seed(0)
    save_file(build_body("test_resnet").state_dict(), tmp_path / "body.safetensors")
    given = ("--recipe", "strong", "--minutes", 1, "--arch", "test_resnet", "--weights", tmp_path / "body.safetensors")
    words = ("fit", *given, "--folds", 2, "--bs", 8, "--data", tones, "--out", "run", "--no-report")
    done = fastmask(*words)
    assert done.code == 0, done.err
    settings = ("resize", "crop_pct", "auto_resize", "flip", "views", "epochs", "linear_probe")
    first = Config(**yaml.safe_load(Path("run/config.yaml").read_text()))
    assert first.resize is not None
    assert (first.crop_pct, first.auto_resize, first.linear_probe) == (0.875, False, True)
    (Path("run/fold1") / "done.json").unlink()
    done = fastmask(*words, "--resume")
    assert done.code == 0, done.err
    again = Config(**yaml.safe_load(Path("run/config.yaml").read_text()))
    assert [getattr(again, name) for name in settings] == [getattr(first, name) for name in settings]


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # twelve persons are few
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FILES])
def test_a_recipe_trains_an_epoch_of_a_fold(name, fastmask, contest):
    settings = read_settings(FILES[name])
    small = dict(SMALL)
    if "train_pipeline" not in settings:
        small["resize"] = [64, 48]
    sets = [
        word
        for key, value in small.items()
        for word in ("--set", f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    ]
    done = fastmask(
        "fit", "--config", FILES[name], *sets, "--data", contest, "--fold", 0, "--out", "run", "--no-report"
    )
    assert done.code == 0, done.err
    kept = Config(**yaml.safe_load(Path("run/config.yaml").read_text()))
    expected = make_config(settings, small)
    assert [key for key in settings if getattr(kept, key) != getattr(expected, key)] == []
    assert len(Path("run/fold0/history.csv").read_text().splitlines()) == 2
