"""The command line: what it reads, prints, writes and refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from PIL import Image
from safetensors.numpy import save_file
from sklearn.metrics import accuracy_score, f1_score

from fastmask.api import Run
from fastmask.commands import main as cli
from fastmask.config import Config, describe, option_name
from fastmask.run.directory import RunDirectory
from fastmask.training.crossval import saying_how_to_go_on
from fastmask.training.progress.display import Log

DONE, FAILED, ASKED_WRONGLY, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
ERROR = "fastmask: error: "
Command = Callable[..., Any]


@pytest.fixture
def small(work: Path, small_settings: dict[str, Any], contest: Path) -> list[str]:
    """`fit` with settings that train in two seconds, and without a report, which would take as long."""
    file = work.parent / "small.yaml"
    file.write_text(yaml.safe_dump({**small_settings, "data": str(contest)}))
    return ["fit", "--config", str(file), "--no-report"]


def first_photo(contest: Path, stem: str = "normal") -> Path:
    return next(iter(sorted((contest / "train" / "images").iterdir()))) / f"{stem}.jpg"


def edit_csv(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(file, dtype=str)).to_csv(file, index=False)


def rows_of(run: Path) -> int:
    return len((run / "oof.csv").read_text().splitlines()) - 1


# --- settings -------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[Sequence[Any], Any]] = {
    "data": (["sample"], "sample"),
    "heads": (["colour, shape"], ["colour", "shape"]),
    "images": (["photos"], "photos"),
    "image_column": (["file"], "file"),
    "group_column": (["who"], "who"),
    "fixes": (["fixes.csv"], "fixes.csv"),
    "age_bounds": ([30, 58], [30, 58]),
    "folds": ([3], 3),
    "folds_file": (["folds.csv"], "folds.csv"),
    "stratify": (["joint"], "joint"),
    "group": (["none"], "none"),
    "crop": ([200, 100], [200, 100]),
    "resize": ([100, 50], [100, 50]),
    "stats": (["pretrained"], "pretrained"),
    "seed": ([7], 7),
    "boxes": (["boxes.csv"], "boxes.csv"),
    "margin": ([0.5], 0.5),
    "region": (["forehead"], "forehead"),
    "extra": (["more.csv"], "more.csv"),
    "extra_images": (["photos"], "photos"),
    "extra_weight": ([0.5], 0.5),
    "pseudo": (["labels"], "labels"),
    "pseudo_weight": ([0.5], 0.5),
    "pseudo_least": ([0.9], 0.9),
    "teacher": (["runs/wise"], "runs/wise"),
    "teacher_weight": ([0.7], 0.7),
    "teacher_temperature": ([2], 2.0),
    "drop": (["27-29,57"], {"age": [[27, 29], [57, 57]]}),
    "sampler": (["joint"], "joint"),
    "erase": ([0.3], 0.3),
    "mixup": ([0.4], 0.4),
    "cutmix": ([1], 1),
    "mix_prob": ([0.5], 0.5),
    "half_cutmix": ([0.7], 0.7),
    "half_shares": ([0.3, 0.6], [0.3, 0.6]),
    "half_partner": (["any"], "any"),
    "arch": (["resnet18"], "resnet18"),
    "pretrained": (None, False),
    "weights": (["body.pth"], "body.pth"),
    "drop_rate": ([0.2], 0.2),
    "drop_path": ([0.1], 0.1),
    "freeze": ([3], 3),
    "unfreeze": ([2], 2),
    "layer_decay": ([0.8], 0.8),
    "epochs": ([3], 3),
    "hours": ([2], 2.0),
    "refit": ([2], 2),
    "bs": ([8], 8),
    "lr": (["1e-2"], 0.01),
    "wd": ([0], 0),
    "sched": (["cosine"], "cosine"),
    "milestones": ([4, 8], [4, 8]),
    "lr_gamma": ([0.1], 0.1),
    "accumulate": ([2], 2),
    "ema": ([0.99], 0.99),
    "swa": ([0.75], 0.75),
    "order": (["age"], "age"),
    "f1_share": ([0.5], 0.5),
    "label_smoothing": ([0.1], 0.1),
    "class_weight": (["auto"], "auto"),
    "loss": (["ce"], "ce"),
    "focal_gamma": ([1.5], 1.5),
    "monitor": (["age_macro_f1"], "age_macro_f1"),
    "patience": ([0], 0),
    "top_k": ([3], 3),
    "on_nan": (["skip"], "skip"),
    "on_bad_photo": (["skip"], "skip"),
    "save_every": (["5m"], "5m"),
    "tensorboard": ([], True),
    "wandb": (["masks"], "masks"),
    "mlflow": (["masks"], "masks"),
    "launcher": (["ray"], "ray"),
    "address": (["auto"], "auto"),
    "per_fold": (["gpu=0.5,cpu=4"], {"gpu": 0.5, "cpu": 4}),
    "fetch": ([], True),
    "precision": (["bf16"], "bf16"),
    "tf32": (None, False),
    "compile": ([], True),
    "cache": (["off"], "off"),
    "cache_dir": (["decoded"], "decoded"),
    "workers": ([2], 2),
    "device": (["cpu"], "cpu"),
}


# the word on the command line where it is not the setting's, and what an option does nothing without
NAMES = {"drop": "drop_ages"}
BESIDE: dict[str, Sequence[Any]] = {
    "margin": ["--boxes", "boxes.csv"],
    "pseudo_weight": ["--pseudo", "labels"],
    "pseudo_least": ["--pseudo", "labels"],
    "teacher_weight": ["--teacher", "runs/wise"],
    "teacher_temperature": ["--teacher", "runs/wise"],
    "region": ["--boxes", "boxes.csv", "--crop", "112", "224"],
    "extra_images": ["--extra", "more.csv"],
    "extra_weight": ["--extra", "more.csv"],
    "mix_prob": ["--mixup", 1],
    "half_shares": ["--half-cutmix", 0.5],
    "half_partner": ["--half-cutmix", 0.5],
    "unfreeze": ["--freeze", "body"],
    "address": ["--launcher", "ray"],
    "per_fold": ["--launcher", "ray"],
    "fetch": ["--launcher", "ray"],
}


def printed(fastmask: Command, *arguments: Any) -> dict[str, Any]:
    answer = fastmask("fit", *arguments, "--print-config")
    assert (answer.code, answer.err) == (DONE, [])
    settings: dict[str, Any] = yaml.safe_load(answer.out)
    return settings


def test_every_option_of_fit_is_a_setting_and_is_tried_below() -> None:
    fit = typer.main.get_command(cli.app).commands["fit"]  # type: ignore[attr-defined]
    about_the_run = {
        "out",
        "fold",
        "resume",
        "overwrite",
        "config",
        "recipe",
        "set_",
        "dry_run",
        "print_config",
        "report",
        "quiet",
        "help_all",
    }
    options = {parameter.name for parameter in fit.params} - about_the_run
    described = {name for name in Config.model_fields if describe(Config, name).panel}
    assert options == set(OPTIONS) == described
    words = {f"/{option_name(Config, name)}".split("/")[1] for name in described}
    assert words <= {word for parameter in fit.params for word in parameter.opts}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_its_setting_and_no_other(name: str, fastmask: Command) -> None:
    words, expected = OPTIONS[name]
    option = [f"--no-{name}"] if words is None else [f"--{NAMES.get(name, name).replace('_', '-')}", *words]
    beside = BESIDE.get(name, [])
    defaults, changed = printed(fastmask, *beside), printed(fastmask, *beside, *option)
    # weights from a file take the place of the hub's
    also = {"pretrained": False} if name == "weights" else {}
    assert changed == {**defaults, name: expected, **also}
    assert changed != defaults


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--stats", 0.5, 0.4, 0.3, 0.2, 0.1, 0.6], "stats", [0.5, 0.4, 0.3, 0.2, 0.1, 0.6]),
        (["--stats", "0.5,0.4,0.3,0.2,0.1,0.6"], "stats", [0.5, 0.4, 0.3, 0.2, 0.1, 0.6]),
        (["--stats", "report"], "stats", "report"),
        (["--milestones", 0.5, 0.75], "milestones", [0.5, 0.75]),
        (["--milestones", 12], "milestones", [12]),
        (["--bs", "auto"], "bs", "auto"),
        (["--crop", 200, 100, "--stats", -0.1, 0, 0, 1, 1, 1, "--bs", 4], "stats", [-0.1, 0, 0, 1, 1, 1]),
        (["--set", "age_bounds=[30, 57]"], "age_bounds", [30, 57]),
        (["--set", "focal-gamma=1"], "focal_gamma", 1),
        (
            ["--set", "alpha.age=[1, 1, 4]", "--set", "alpha.mask=[1, 2, 1]"],
            "alpha",
            {"age": [1, 1, 4], "mask": [1, 2, 1]},
        ),
        (["--set", "head_weights.age=2"], "head_weights", {"age": 2}),
    ],
)
def test_lists_of_numbers_and_nested_settings(words: list[Any], name: str, expected: Any, fastmask: Command) -> None:
    assert printed(fastmask, *words)[name] == expected


def test_class_weights_may_come_from_a_file(fastmask: Command, work: Path) -> None:
    (work / "weights.yaml").write_text("age: {60+: 4}\nmask: [1, 2, 1]\n")
    settings = printed(fastmask, "--class-weight", "weights.yaml")
    assert settings["alpha"] == {"age": {"60+": 4}, "mask": [1, 2, 1]}
    assert settings["class_weight"] == "none"
    assert printed(fastmask, "--freeze", "body")["freeze"] == "body"


def test_precedence_is_command_line_set_config_recipe_default(fastmask: Command, work: Path) -> None:
    (work / "mine.yaml").write_text("bs: 2\nlr: 2\nwd: 2\n")
    low = ["--recipe", "quick", "--config", "mine.yaml"]
    settings = printed(fastmask, "--lr", 4, *low, "--set", "lr=3", "--set", "wd=3")
    assert [settings[name] for name in ("lr", "wd", "bs", "epochs", "focal_gamma")] == [4, 3, 2, 9, 2]


def test_the_last_set_wins(fastmask: Command) -> None:
    assert printed(fastmask, "--set", "bs=2", "--set", "bs=3")["bs"] == 3


def test_the_recipe_report_is_the_reports_last_step(fastmask: Command) -> None:
    settings = printed(fastmask, "--recipe", "report")
    assert settings["age_bounds"] == [30, 58]
    assert settings["arch"] == "tf_efficientnet_b4"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--recipe", "quick", "--seed", 3],
        ["--recipe", "report"],
        ["--stats", 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        ["--weights", "body.pth"],
        ["--data", "Fotos von März", "--device", "cuda:0"],
    ],
    ids=lambda words: " ".join(map(str, words)) or "defaults",
)
def test_printed_settings_read_back_as_the_same(words: list[Any], fastmask: Command, work: Path) -> None:
    first = fastmask("fit", *words, "--print-config")
    (work / "printed.yaml").write_text(first.out, encoding="utf-8")
    assert fastmask("fit", "--config", "printed.yaml", "--print-config").out == first.out


# --- what is asked wrongly ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "nowhere"], ["nowhere", "--data"]),
        (["--folds", 1], ["folds", "1", "2"]),
        (["--folds", 13], ["--folds is 13", "12 persons"]),
        (["--group", "none", "--folds", 85], ["--folds is 85", "84 photos"]),
        (["--epochs", 0], ["epochs", "0"]),
        (["--lr", "nan"], ["lr"]),
        (["--lr", 0], ["lr", "0"]),
        (["--drop-rate", 1], ["drop_rate", "1"]),
        (["--drop-ages", "old"], ["--drop-ages old", "27-29,57-59"]),
        (["--drop-ages", "29-27"], ["drop", "29 to 27", "rise"]),
        (["--drop-ages", "0-150"], ["drop", "fold 0", "nothing to train on"]),
        (["--set", "drop={mask: [[1, 2]]}"], ["drop", "mask", "no number"]),
        (["--boxes", "nowhere.csv"], ["nowhere.csv", "path, x0, y0, x1, y1"]),
        (["--margin", 0.5], ["margin", "without boxes"]),
        (["--boxes", "boxes.csv", "--region", "ear"], ["region", "ear"]),
        (["--refit", 2, "--swa", 0.5], ["refit and swa", "exclude"]),
        (["--epochs", 3, "--swa", 0.75], ["swa 0.75 of 3 epochs", "under two"]),
        (["--freeze", "body", "--unfreeze", 1], ["unfreeze is epoch 1", "2 to"]),
        (["--freeze", "body", "--unfreeze", 9], ["unfreeze is epoch 9", "2 to the last"]),
        (["--freeze", "\u00b2"], ["freeze"]),
        (["--refit", 2, "--hours", 1], ["refit and hours", "exclude"]),
        (["--pseudo", "nowhere"], ["nowhere", "pseudo.json", "fastmask pseudo"]),
        (["--pseudo-least", 0.9], ["pseudo_least", "without pseudo"]),
        (["--unfreeze", 3], ["unfreeze", "without freeze"]),
        (["--freeze", 9], ["freeze is 9", "1 to 5"]),
        (["--freeze", "head"], ["freeze", "head"]),
        (["--extra-weight", 2], ["extra_weight", "without extra"]),
        (["--extra", "nowhere.csv"], ["nowhere.csv"]),
        (["--mix-prob", 0.5], ["mix_prob", "mixup or cutmix"]),
        (["--half-partner", "any"], ["half_partner", "without half_cutmix"]),
        (["--half-cutmix", 0.5, "--half-partner", "old"], ["joint class 'old'", "same, any"]),
        (["--half-cutmix", 0.5, "--half-shares", 0.5, 1], ["half_shares", "between 0 and 1"]),
        (["--ema", 0.9, "--swa", 0.2, "--epochs", 9], ["ema and swa", "exclude"]),
        (["--set", "alpha.age=[1, 1, 4]", "--class-weight", "auto"], ["alpha and class_weight", "exclude"]),
        (["--set", "alpha={age: {old: 4}}"], ["alpha of head age", "'old'", "60+"]),
        (["--class-weight", "none.yaml"], ["none.yaml"]),
        (["--sampler", "hat"], ["no head 'hat'"]),
        (["--erase", 0.5], ["erase", "train_pipeline", "Erasing"]),
        (["--seed", -1], ["seed", "-1"]),
        (["--seed", 2**32], ["seed", str(2**32)]),
        (["--crop", 300, 150], ["crop", "train_pipeline"]),
        (["--age-bounds", 60, 30], ["age_bounds", "60 30"]),
        (["--loss", "hinge"], ["loss", "hinge", "focal", "ce"]),
        (["--sched", "linear"], ["sched", "linear", "multistep"]),
        (["--group", "photo"], ["group", "photo", "person", "none"]),
        (["--stats", "imagenet"], ["--stats", "imagenet"]),
        (["--stats", 0.5, 0.5], ["stats", "0.5"]),
        (["--stats", 0.5, 0.5, 0.5, 0.5, 0.5, 0], ["stats", "deviations"]),
        (["--milestones", "half"], ["--milestones", "half"]),
        (["--milestones", 0, 4], ["milestones", "0"]),
        (["--set", "epoch=3"], ["epoch", "did you mean 'epochs'"]),
        (["--set", "lr"], ["lr", "name=value"]),
        (["--set", "lr=[1"], ["lr=[1"]),
        (["--set", "lr=fast"], ["lr", "fast"]),
        (["--set", "alpha.age.x=1"], ["alpha"]),
        (["--set", "lr.x=1"], ["lr"]),
        (["--recipe", "best"], ["best", "quick", "report"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--config", "."], ["."]),
        (["--monitor", "f2"], ["f2", "macro_f1", "age_accuracy"]),
        (["--stratify", "hair"], ["hair", "mask, gender, age"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["--weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--weights", "body.pth", "--pretrained"], ["weights", "pretrained"]),
        (["--set", "alpha.hair=[1, 1]"], ["hair", "mask, gender, age"]),
        (["--set", "alpha.age=[1, 1]"], ["age", "3"]),
        (["--set", "head_weights.hair=1"], ["hair", "mask, gender, age"]),
        (["--set", "train_pipeline=null"], ["train_pipeline", "valid_pipeline"]),
        (["--set", "train_pipeline=3"], ["train_pipeline", "3"]),
        (["--set", "train_pipeline.transform.transforms=[{__class_fullname__: Crop3D}]"], ["Crop3D"]),
        (["--fold", "0,2"], ["no fold 2", "0, 1"]),
        (["--loss", "own"], ["own", "loss_func"]),
        (["--heads", "age"], ["heads", "CSV"]),
        (["--fixes", "nowhere.csv"], ["nowhere.csv"]),
        (["--folds-file", "nowhere.csv"], ["nowhere.csv"]),
        (["--resume", "--overwrite", "--out", "run"], ["--resume", "--overwrite"]),
        (["--resume"], ["--resume", "--out"]),
        (["--resume", "--out", "nowhere"], ["nowhere"]),
        (["--out", "../small.yaml"], ["small.yaml", "--out"]),
        (["--out", "../small.yaml/run"], ["small.yaml/run", "--out"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_wrong_setting_is_refused_in_a_sentence_that_names_it(
    words: list[Any], named: list[str], small: list[str], refused: Callable[..., str]
) -> None:
    sentence = refused(ASKED_WRONGLY, *small, *words)
    assert [part for part in named if part not in sentence] == []


def test_an_arch_that_timm_does_not_know_is_told_the_nearest(small: list[str], refused: Callable[..., str]) -> None:
    sentence = refused(ASKED_WRONGLY, *small, "--arch", "tf_eficientnet_b4")
    assert "'tf_eficientnet_b4'" in sentence
    assert "tf_efficientnet_b4" in sentence


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch: 3\n", ["epoch", "did you mean 'epochs'"]),
        ("- epochs\n", ["list", "epochs: 20"]),
        ("epochs\n", ["str", "epochs: 20"]),
        ("epochs: [3\n", ["mine.yaml", "YAML", "line"]),
        ("lr: 3e-4x\n", ["lr", "3e-4x"]),
    ],
)
def test_a_wrong_settings_file_is_refused(
    text: str, named: list[str], small: list[str], work: Path, refused: Callable[..., str]
) -> None:
    (work / "mine.yaml").write_text(text)
    sentence = refused(ASKED_WRONGLY, "fit", "--config", "mine.yaml")
    assert [part for part in named if part not in sentence] == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fit", "--folds", "three"], ["--folds", "integer"]),
        (["fit", "--crop", "400"], ["--crop"]),
        (["fit", "--fold", "one"], ["--fold one", "whole numbers"]),
        (["merge", "run"], ["--out"]),
        (["predict", "run"], ["images"]),
        (["predict", "run", "images"], ["--out"]),
        (["predict", "run", "images", "--out", "p.csv", "--tta", "many"], ["--tta", "integer"]),
        (["learn"], ["learn"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_option_is_named_and_exits_2(words: list[str], named: list[str], fastmask: Command) -> None:
    answer = fastmask(*words)
    assert (answer.code, answer.out) == (ASKED_WRONGLY, "")
    assert [part for part in named if part not in " ".join(answer.err)] == []


def test_a_refusal_says_nothing_but_its_sentence(small: list[str], fastmask: Command) -> None:
    assert fastmask(*small, "--monitor", "f2").err[0].startswith(ERROR)


def test_an_output_folder_in_use_is_left_alone(small: list[str], work: Path, refused: Callable[..., str]) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("years of work")
    assert "mine exists" in refused(ASKED_WRONGLY, *small, "--out", "mine")
    assert "mine is not a run" in refused(ASKED_WRONGLY, *small, "--out", "mine", "--overwrite")


@pytest.mark.parametrize("words", [["--folds", 99], ["--monitor", "f2"], ["--device", "tpu"], ["--crop", 900, 900]])
def test_overwrite_keeps_the_old_run_until_all_is_checked(
    words: list[Any], contest: Path, run_copy: Path, fastmask: Command, snapshot: Callable[..., Any]
) -> None:
    before = snapshot(run_copy)
    settings = ["--data", contest, "--arch", "test_resnet", "--no-pretrained", "--folds", 2]
    answer = fastmask("fit", *settings, "--out", run_copy, "--overwrite", *words)
    assert answer.code != DONE
    assert snapshot(run_copy) == before


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_no_weights_is_refused(
    content: bytes, suffix: str, small: list[str], work: Path, refused: Callable[..., str]
) -> None:
    (work / f"body.{suffix}").write_bytes(content)
    assert f"body.{suffix}" in refused(FAILED, *small, "--weights", f"body.{suffix}")


def test_weights_of_another_arch_are_refused(small: list[str], work: Path, refused: Callable[..., str]) -> None:
    save_file({"layer.weight": np.zeros(3, np.float32)}, work / "other.safetensors")
    sentence = refused(ASKED_WRONGLY, *small, "--weights", "other.safetensors")
    assert "other.safetensors fits 0 of" in sentence


def test_a_crop_larger_than_a_photo_names_the_photo_and_the_option(contest: Path, refused: Callable[..., str]) -> None:
    settings = ["--data", contest, "--arch", "test_resnet", "--no-pretrained", "--folds", 2]
    sentence = refused(FAILED, "fit", *settings, "--crop", 600, 200)
    assert str(contest / "train" / "images") in sentence
    assert "512 high and 384 wide" in sentence
    assert "--crop" in sentence


def test_pipelines_that_end_in_two_sizes_are_refused(small: list[str], refused: Callable[..., str]) -> None:
    sentence = refused(FAILED, *small, "--set", "train_pipeline.transform.transforms=[]")
    assert "one size" in sentence


# --- what the data holds --------------------------------------------------------------------------------------------


def set_cell(column: str, text: str, row: int = 2) -> Callable[[Path], None]:
    def change(contest: Path) -> None:
        edit_csv(contest / "train" / "train.csv", lambda f: f.assign(**{column: f[column].where(f.index != row, text)}))

    change.__name__ = f"{column}={text!r}"
    return change


def drop_column(contest: Path) -> None:
    edit_csv(contest / "train" / "train.csv", lambda frame: frame.drop(columns="gender"))


def repeat_row(contest: Path) -> None:
    edit_csv(contest / "train" / "train.csv", lambda frame: pd.concat([frame, frame.iloc[[0]]]))


def no_rows(contest: Path) -> None:
    edit_csv(contest / "train" / "train.csv", lambda frame: frame.iloc[:0])


def empty_csv(contest: Path) -> None:
    (contest / "train" / "train.csv").write_text("")


def binary_csv(contest: Path) -> None:
    (contest / "train" / "train.csv").write_bytes(bytes(range(256)))


def photo_missing(contest: Path) -> None:
    first_photo(contest).unlink()


def photo_empty(contest: Path) -> None:
    first_photo(contest).write_bytes(b"")


def photo_cut_short(contest: Path) -> None:
    photo = first_photo(contest)
    photo.write_bytes(photo.read_bytes()[:5000])


def photo_is_text(contest: Path) -> None:
    first_photo(contest).write_text("no image")


def photo_twice(contest: Path) -> None:
    shutil.copy(first_photo(contest), first_photo(contest).with_suffix(".png"))


def photo_of_no_kind(contest: Path) -> None:
    shutil.copy(first_photo(contest), first_photo(contest).with_name("mask6.jpg"))


def person_missing(contest: Path) -> None:
    shutil.rmtree(first_photo(contest).parent)


def person_is_a_file(contest: Path) -> None:
    person_missing(contest)
    first_photo(contest).parent.write_text("no folder")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop_column, ["train.csv", "no column 'gender'"]),
        (set_cell("gender", "woman"), ["train.csv, line 4, column gender", "'woman'", "male or female"]),
        (set_cell("gender", ""), ["train.csv, line 4, column gender", "''"]),
        (set_cell("age", "old"), ["train.csv, line 4, column age", "'old'"]),
        (set_cell("age", ""), ["train.csv, line 4, column age", "''"]),
        (set_cell("age", "nan"), ["train.csv, line 4, column age", "'nan'"]),
        (set_cell("age", "-3"), ["train.csv, line 4, column age", "'-3'"]),
        (set_cell("age", "1e9"), ["train.csv, line 4, column age", "'1e9'"]),
        (set_cell("path", "../images"), ["train.csv, line 4, column path", "'../images'"]),
        (set_cell("path", ""), ["train.csv, line 4, column path", "''"]),
        (set_cell("path", "nobody"), ["nobody", "train.csv"]),
        (repeat_row, ["train.csv, line 14, column path", "is duplicated"]),
        (no_rows, ["train.csv", "no rows"]),
        (empty_csv, ["train.csv", "CSV"]),
        (binary_csv, ["train.csv", "CSV"]),
        (person_missing, ["000001_", "train.csv"]),
        (photo_missing, ["000001_", "normal", "seven photos"]),
        (photo_empty, ["normal.jpg", "empty"]),
        (photo_cut_short, ["normal.jpg", "cut short"]),
        (photo_is_text, ["normal.jpg", "not an image"]),
        (photo_twice, ["normal.jpg and normal.png"]),
        (photo_of_no_kind, ["mask6.jpg"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_data_that_cannot_be_used_is_refused_by_name(
    damage: Callable[[Path], None], named: list[str], small: list[str], contest_copy: Path, refused: Callable[..., str]
) -> None:
    damage(contest_copy)
    sentence = refused(FAILED, *small, "--data", contest_copy)
    assert [part for part in named if part not in sentence] == []


def test_a_line_is_counted_as_an_editor_counts_it(
    small: list[str], contest_copy: Path, refused: Callable[..., str]
) -> None:
    csv = contest_copy / "train" / "train.csv"
    header, first, *others = csv.read_text().splitlines()
    csv.write_text("\n".join([header, "", "", first.replace(",Asian,", ",Asian,x"), *others, ""]))
    assert "train.csv, line 4, column age" in refused(FAILED, *small, "--data", contest_copy)


# --- fit ------------------------------------------------------------------------------------------------------------


def test_fit_writes_a_run_directory_and_prints_the_score(small: list[str], fastmask: Command, work: Path) -> None:
    answer = fastmask(*small)
    assert answer.code == DONE
    run = work / "runs" / "test_resnet"
    wanted = ["config.yaml", "heads.json", "environment.json", "folds.csv", "oof.csv", "scores.json"]
    wanted += [f"fold{fold}/{name}" for fold in (0, 1) for name in ("history.csv", "done.json")]
    assert [name for name in wanted if not (run / name).is_file()] == []
    assert [len(list(run.glob(f"fold{fold}/epoch*.safetensors"))) for fold in (0, 1)] == [1, 1]
    assert rows_of(run) == 84
    assert answer.out == f"{Run.load(run).score()}\n"
    assert sum("fold 1/2 epoch" in line for line in answer.err) == 2
    assert any("fastmask predict runs/test_resnet" in line for line in answer.err)


def test_a_second_fit_takes_another_name(small: list[str], fastmask: Command, work: Path) -> None:
    (work / "runs" / "test_resnet").mkdir(parents=True)
    fastmask(*small, "--epochs", 1)
    assert rows_of(work / "runs" / "test_resnet-2") == 84
    assert list((work / "runs" / "test_resnet").iterdir()) == []


def test_overwrite_replaces_a_run(small: list[str], run_copy: Path, fastmask: Command) -> None:
    assert fastmask(*small, "--epochs", 1, "--out", run_copy, "--overwrite").code == DONE
    assert Run.load(run_copy).config.epochs == 1
    assert len(Run.load(run_copy).history(0)) == 1


def test_resume_trains_what_is_missing_and_gives_the_same_bytes(
    small: list[str], run_copy: Path, fastmask: Command, snapshot: Callable[..., Any]
) -> None:
    before = snapshot(run_copy)
    kept = {p: p.stat().st_mtime_ns for p in (run_copy / "fold0").iterdir()}
    shutil.rmtree(run_copy / "fold1")
    for name in ("oof.csv", "scores.json"):
        (run_copy / name).unlink()
    answer = fastmask(*small, "--out", run_copy, "--resume")
    assert answer.code == DONE
    assert not any("fold 1/2" in line for line in answer.err)
    assert sum("fold 2/2" in line for line in answer.err) == 2
    for name in ("oof.csv", "scores.json", "config.yaml", "folds.csv"):
        assert (run_copy / name).read_bytes() == before[name]
    assert {p: p.stat().st_mtime_ns for p in (run_copy / "fold0").iterdir()} == kept


@pytest.mark.semaphores
def test_a_run_goes_on_from_its_own_settings(contest: Path, run_copy: Path, fastmask: Command) -> None:
    before = (run_copy / "oof.csv").read_bytes()
    (run_copy / "fold1" / "done.json").unlink()
    settings = ["--config", run_copy / "config.yaml", "--data", contest, "--workers", 1]
    assert fastmask("fit", *settings, "--out", run_copy, "--resume", "--no-report").code == DONE
    assert (run_copy / "oof.csv").read_bytes() == before


def test_resume_with_other_settings_names_the_difference(
    small: list[str], run_copy: Path, refused: Callable[..., str]
) -> None:
    sentence = refused(ASKED_WRONGLY, *small, "--lr", 0.1, "--out", run_copy, "--resume")
    assert "lr 0.0003, now it is 0.1" in sentence


def test_resume_with_other_labels_is_refused(
    small: list[str], run_copy: Path, contest_copy: Path, refused: Callable[..., str]
) -> None:
    edit_csv(contest_copy / "train" / "train.csv", lambda f: f.assign(gender=f["gender"].iloc[::-1].to_numpy()))
    assert "labels" in refused(ASKED_WRONGLY, *small, "--data", contest_copy, "--out", run_copy, "--resume")


def test_resume_with_a_person_less_is_refused(
    small: list[str], run_copy: Path, contest_copy: Path, refused: Callable[..., str]
) -> None:
    edit_csv(contest_copy / "train" / "train.csv", lambda frame: frame.iloc[1:])
    assert "photos" in refused(ASKED_WRONGLY, *small, "--data", contest_copy, "--out", run_copy, "--resume")


def test_a_training_that_diverges_ends_in_a_sentence(small: list[str], fastmask: Command) -> None:
    answer = fastmask(*small, "--epochs", 1, "--lr", 1e30)
    assert (answer.code, answer.out, len(answer.errors)) == (FAILED, "", 1)


@pytest.mark.filterwarnings("always::fastmask.system.errors.FastmaskWarning")
def test_the_leaky_split_is_warned_of_and_noted_in_the_score(small: list[str], fastmask: Command) -> None:
    answer = fastmask(*small, "--epochs", 1, "--group", "none", "--out", "leaky")
    assert answer.code == DONE
    assert len(answer.warnings) == 1
    assert answer.warnings[0].startswith("--group none puts photos of one person on both sides of a split")
    assert "flatters" in answer.out
    assert "flatters" in fastmask("score", "leaky").out


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), INTERRUPTED), (SystemExit(TERMINATED), TERMINATED)])
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_an_interruption_is_told_once_with_the_line_to_resume_also_to_the_quiet(
    fastmask: Command, finished_run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, quiet: Any
) -> None:
    def interrupt(*_: Any) -> None:
        with saying_how_to_go_on("fastmask fit", Log(sys.stderr)):
            raise error

    monkeypatch.setattr(RunDirectory, "load", interrupt)
    answer = fastmask("score", finished_run.path, *quiet)
    assert (answer.code, answer.out, answer.err) == (code, "", ["Interrupted. To go on: fastmask fit"])


def test_an_interruption_exits_130_with_a_word_and_no_traceback(
    fastmask: Command, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "load", interrupt)
    answer = fastmask("score", finished_run.path)
    assert (answer.code, answer.out, answer.err) == (INTERRUPTED, "", ["fastmask: interrupted"])


# --- predict --------------------------------------------------------------------------------------------------------


def test_predict_writes_probabilities_of_a_folder(finished_run: Run, contest: Path, fastmask: Command) -> None:
    answer = fastmask("predict", finished_run.path, contest / "eval" / "images", "--out", "new/p.csv")
    assert answer.code == DONE
    assert answer.out == "new/p.csv: 28 photos, mean of fold0, fold1, 1 view per photo\n"
    frame = pd.read_csv("new/p.csv")
    assert sorted(frame["path"]) == sorted(p.name for p in (contest / "eval" / "images").iterdir())
    assert frame[["mask.wear", "mask.incorrect", "mask.none"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert frame["age.60+"].to_numpy() == pytest.approx(frame[["fold0:age.60+", "fold1:age.60+"]].mean(axis=1))


def test_predict_by_one_member_and_several_views(finished_run: Run, contest: Path, fastmask: Command) -> None:
    images = contest / "eval" / "images"
    answer = fastmask("predict", finished_run.path, images, "--out", "p.csv", "--members", "fold1", "--tta", 3)
    assert answer.out == "p.csv: 28 photos, mean of fold1, 3 views per photo\n"


def test_predict_fills_in_a_submission_in_its_order(finished_run: Run, contest: Path, fastmask: Command) -> None:
    info, images = contest / "eval" / "info.csv", contest / "eval" / "images"
    fastmask("predict", finished_run.path, images, "--out", "p.csv")
    answer = fastmask("predict", finished_run.path, images, "--submission", info, "--out", "s.csv")
    assert answer.code == DONE
    submission = pd.read_csv("s.csv")
    assert list(submission["ImageID"]) == list(pd.read_csv(info)["ImageID"])
    predicted = pd.read_csv("p.csv").set_index("path")["predicted"]
    assert list(submission["ans"]) == list(predicted[submission["ImageID"]])


def test_predict_leaves_an_existing_file_alone_unless_told(
    finished_run: Run, contest: Path, work: Path, fastmask: Command, refused: Callable[..., str]
) -> None:
    (work / "p.csv").write_text("mine")
    command = ["predict", finished_run.path, contest / "eval" / "images", "--out", "p.csv"]
    assert "p.csv exists" in refused(ASKED_WRONGLY, *command)
    assert fastmask(*command, "--overwrite").code == DONE
    assert len(pd.read_csv("p.csv")) == 28


@pytest.mark.parametrize("words", [["file/p.csv"], ["folder", "--overwrite"]], ids=" ".join)
def test_predict_to_where_no_file_can_be_is_refused(
    words: list[str], finished_run: Run, contest: Path, work: Path, refused: Callable[..., str]
) -> None:
    (work / "file").write_text("mine")
    (work / "folder").mkdir()
    command = ["predict", finished_run.path, contest / "eval" / "images", "--out"]
    assert words[0] in refused(ASKED_WRONGLY, *command, *words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--members", "fold7"], ["fold7", "fold0, fold1"]),
        (["--members", "fold0,"], ["''"]),
        (["--tta", 0], ["--tta is 0"]),
        (["--bs", 0], ["--bs", "0"]),
        (["--bs", -4], ["--bs", "-4"]),
        (["--workers", -1], ["--workers", "-1"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--submission", "nowhere.csv"], ["nowhere.csv"]),
        (["--submission", "."], ["."]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_predict_asked_wrongly_is_refused(
    words: list[Any], named: list[str], finished_run: Run, contest: Path, refused: Callable[..., str]
) -> None:
    images = contest / "eval" / "images"
    sentence = refused(ASKED_WRONGLY, "predict", finished_run.path, images, "--out", "p.csv", *words)
    assert [part for part in named if part not in sentence] == []


def test_predict_from_a_folder_that_is_no_run_is_refused(
    contest: Path, work: Path, refused: Callable[..., str]
) -> None:
    (work / "empty").mkdir()
    for folder in ("nowhere", "empty", contest):
        sentence = refused(ASKED_WRONGLY, "predict", folder, contest / "eval" / "images", "--out", "p.csv")
        assert f"{folder} is not a run directory" in sentence


def test_predict_without_photos_is_refused(finished_run: Run, work: Path, refused: Callable[..., str]) -> None:
    (work / "empty").mkdir()
    command = ["predict", finished_run.path]
    assert "nowhere is not a folder" in refused(ASKED_WRONGLY, *command, "nowhere", "--out", "p.csv")
    assert "empty holds no photos" in refused(ASKED_WRONGLY, *command, "empty", "--out", "p.csv")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ImageID\na.jpg\n", ["info.csv", "no column 'ans'"]),
        ("image,ans\na.jpg,0\n", ["info.csv", "no column 'ImageID'", "image"]),
        ("ImageID,ans\nREAL,0\nnobody.jpg,0\n", ["info.csv, line 3", "nobody.jpg does not exist"]),
        ("ImageID,ans\nREAL,0\nREAL,0\n", ["info.csv, line 3", "is duplicated"]),
        ("ImageID,ans\n,0\n", ["info.csv, line 2", "is empty"]),
        ("ImageID,ans\n../info.csv,0\n", ["info.csv, line 2", "'../info.csv'"]),
        ("ImageID,ans\n", ["info.csv", "no rows"]),
        ("", ["info.csv", "CSV"]),
    ],
)
def test_predict_refuses_a_broken_submission_file(
    text: str, named: list[str], finished_run: Run, contest: Path, work: Path, refused: Callable[..., str]
) -> None:
    images = contest / "eval" / "images"
    (work / "info.csv").write_text(text.replace("REAL", next(images.iterdir()).name))
    sentence = refused(FAILED, "predict", finished_run.path, images, "--submission", "info.csv", "--out", "s.csv")
    assert [part for part in named if part not in sentence] == []


def test_predict_names_a_photo_that_cannot_be_read(
    finished_run: Run, contest_copy: Path, refused: Callable[..., str]
) -> None:
    images = contest_copy / "eval" / "images"
    photo = sorted(images.iterdir())[3]
    photo.write_bytes(photo.read_bytes()[:3000])
    assert photo.name in refused(FAILED, "predict", finished_run.path, images, "--out", "p.csv")


def test_predict_names_a_photo_that_is_too_small(
    finished_run: Run, contest_copy: Path, refused: Callable[..., str]
) -> None:
    images = contest_copy / "eval" / "images"
    Image.new("RGB", (30, 40)).save(images / "tiny.png")
    assert "tiny.png" in refused(FAILED, "predict", finished_run.path, images, "--out", "p.csv")


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_predict_names_a_broken_checkpoint(
    content: bytes, run_copy: Path, contest: Path, refused: Callable[..., str]
) -> None:
    checkpoint = next((run_copy / "fold1").glob("epoch*.safetensors"))
    checkpoint.write_bytes(content)
    sentence = refused(FAILED, "predict", run_copy, contest / "eval" / "images", "--out", "p.csv")
    assert checkpoint.name in sentence


@pytest.mark.parametrize("name", ["config.yaml", "heads.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "{a: 1}", '{"a": 1}', "\x00"])
def test_a_run_with_a_broken_file_is_refused_by_name(
    name: str, text: str, run_copy: Path, refused: Callable[..., str]
) -> None:
    (run_copy / name).write_text(text)
    assert str(run_copy) in refused(FAILED, "score", run_copy)


# --- score ----------------------------------------------------------------------------------------------------------


def test_score_of_a_run_is_that_of_its_fit(finished_run: Run, fastmask: Command) -> None:
    answer = fastmask("score", finished_run.path)
    assert (answer.code, answer.err) == (DONE, [])
    oof = pd.read_csv(finished_run.path / "oof.csv")
    expected = f1_score(oof["true"], oof["predicted"], labels=oof["true"].unique(), average="macro", zero_division=0)
    assert answer.out.splitlines()[1].split()[:2] == ["joint", f"{expected:.4f}"]


def test_score_as_json_is_what_scores_json_holds(finished_run: Run, fastmask: Command) -> None:
    scores = json.loads(fastmask("score", finished_run.path, "--json").out)
    written = json.loads((finished_run.path / "scores.json").read_text())
    assert scores == {name: written[name] for name in ("joint", "heads", "notes")}


@pytest.mark.parametrize("submission", [True, False], ids=["submission", "probabilities"])
def test_score_of_predictions_against_answers_is_scikit_learns(
    submission: bool, finished_run: Run, contest: Path, fastmask: Command
) -> None:
    info = ["--submission", contest / "eval" / "info.csv"] if submission else []
    fastmask("predict", finished_run.path, contest / "eval" / "images", "--out", "p.csv", *info)
    answers = contest / "eval" / "answers.csv"
    scores = json.loads(fastmask("score", "p.csv", answers, "--json").out)
    true = pd.read_csv(answers).set_index("ImageID")["ans"]
    predicted = pd.read_csv("p.csv", index_col=0)["ans" if submission else "predicted"][true.index]
    expected = f1_score(true, predicted, labels=true.unique(), average="macro", zero_division=0)
    assert scores["joint"]["macro_f1"] == pytest.approx(expected)
    assert scores["joint"]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert scores["joint"]["n"] == 28


def test_right_answers_score_1_in_whatever_order(contest: Path, work: Path, fastmask: Command) -> None:
    answers = contest / "eval" / "answers.csv"
    pd.read_csv(answers).iloc[::-1].to_csv("s.csv", index=False)
    scores = json.loads(fastmask("score", "s.csv", answers, "--json").out)
    assert (scores["joint"]["macro_f1"], scores["heads"]["age"]["accuracy"]) == (1, 1)


@pytest.mark.parametrize("answer", ["18", "-1", "", "1.5", "wear", "nan", "²", "99999999999999999999"])
def test_an_answer_that_is_no_class_is_refused(
    answer: str, contest: Path, work: Path, refused: Callable[..., str]
) -> None:
    answers = contest / "eval" / "answers.csv"
    shutil.copy(answers, work / "s.csv")
    edit_csv(work / "s.csv", lambda frame: frame.assign(ans=frame["ans"].where(frame.index != 4, answer)))
    sentence = refused(FAILED, "score", "s.csv", answers)
    assert "s.csv, line 6, column ans" in sentence
    assert f"found {answer!r}, expected a class from 0 to 17" in sentence


def test_score_refuses_missing_and_repeated_photos(contest: Path, work: Path, refused: Callable[..., str]) -> None:
    answers = contest / "eval" / "answers.csv"
    frame = pd.read_csv(answers)
    frame.iloc[2:].to_csv("few.csv", index=False)
    pd.concat([frame, frame.iloc[:1]]).to_csv("twice.csv", index=False)
    assert "lacks 2 of the 28 photos" in refused(FAILED, "score", "few.csv", answers)
    assert "is duplicated" in refused(FAILED, "score", "twice.csv", answers)


@pytest.mark.parametrize(
    ("paths", "named"),
    [(["nowhere"], ["nowhere"]), (["nowhere.csv", "nowhere.csv"], ["nowhere.csv"]), (["a", "b", "c"], ["3 paths"])],
    ids=lambda value: " ".join(value),
)
def test_score_asked_wrongly_is_refused(paths: list[str], named: list[str], refused: Callable[..., str]) -> None:
    sentence = refused(ASKED_WRONGLY, "score", *paths)
    assert [part for part in named if part not in sentence] == []


def test_score_of_a_run_that_has_not_finished_says_so(run_copy: Path, refused: Callable[..., str]) -> None:
    (run_copy / "oof.csv").unlink()
    assert "has not finished" in refused(ASKED_WRONGLY, "score", run_copy)


# --- sample ---------------------------------------------------------------------------------------------------------


def test_sample_writes_a_folder_that_fit_can_read(fastmask: Command, work: Path) -> None:
    answer = fastmask("sample", "drawn", "--persons", 6, "--seed", 1)
    assert (answer.code, answer.err) == (DONE, [])
    assert answer.out.startswith(f"{work / 'drawn'}: 42 photos of 6 persons in train")
    assert len(pd.read_csv(work / "drawn" / "train" / "train.csv")) == 6


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["full"], ["full", "not an empty folder"]),
        (["full/file"], ["full/file", "not an empty folder"]),
        (["new", "--persons", 2], ["6 persons", "2"]),
        (["new", "--seed", -1], ["-1"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_sample_asked_wrongly_is_refused(
    words: list[Any], named: list[str], work: Path, refused: Callable[..., str]
) -> None:
    (work / "full").mkdir()
    (work / "full" / "file").write_text("mine")
    sentence = refused(ASKED_WRONGLY, "sample", *words)
    assert [part for part in named if part not in sentence] == []


# --- the process ----------------------------------------------------------------------------------------------------


GROUPS = {
    "Train": ["fit", "lr-find", "merge", "tune"],
    "Predict": ["predict", "ensemble", "pseudo", "export", "app"],
    "Judge": ["score", "decide", "bound", "label-errors", "diff", "compare", "ledger", "report"],
    "Data": ["check", "sample", "faces", "paint"],
    "Models": ["archs", "screen"],
    "This machine": ["bench", "doctor", "cache"],
}


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands_in_groups_a_line_each(
    option: str, fastmask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = fastmask(option)
    assert answer.code == DONE
    listed: dict[str, list[str]] = {}
    for line in answer.out.splitlines():
        if line.startswith("╭─ "):
            rows = listed.setdefault(line.strip("╭─╮ "), [])
        elif line.startswith("│"):
            # a second line of a row would begin with a space
            rows.append(line[2:].split(" ")[0])
    assert {group: rows for group, rows in listed.items() if group != "Options"} == GROUPS


def options_in(shown: str) -> set[str]:
    """The options that begin a row of a help."""
    return set(re.findall(r"^│ (--[a-z0-9-]+)", shown, re.MULTILINE))


def test_fit_shows_what_most_people_set_and_all_if_asked(fastmask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    common, every = (options_in(fastmask("fit", option).out) for option in ("--help", "--help-all"))
    of_all = {"--quiet", "--help", "--help-all"}
    assert {"--data", "--arch", "--folds", "--epochs", "--out", "--resume", "--recipe"} < common - of_all
    assert len(common - of_all) == 20
    names = {f"--{NAMES.get(name, name).replace('_', '-')}" for name in OPTIONS}
    assert names <= every
    assert common < every


def test_version(fastmask: Command) -> None:
    answer = fastmask("--version")
    assert (answer.code, answer.out) == (DONE, f"fastmask {version('fastmask')}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    def completed(line: str) -> str:
        typed = {"_FASTMASK_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        fish_and_zsh = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['fastmask']; from fastmask.commands.main import main; main()",
        ]
        environment = {**os.environ, **typed, **fish_and_zsh}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout

    assert "predict" in completed("fastmask ")
    assert "--sampler" in completed("fastmask fit --")


def test_a_quiet_command_prints_its_result_and_warnings(fastmask: Command, small: list[str]) -> None:
    loud = fastmask(*small, "--out", "loud")
    quiet = fastmask(*small, "--quiet", "--out", "quiet")
    assert quiet.out == loud.out != ""
    assert [line for line in quiet.err if not line.startswith("fastmask: warning: ")] == []
    assert len(loud.err) > 5
    assert fastmask("score", "nobody", "-q").errors != []


HEAVY = {"torch", "fastai", "timm", "pandas", "numpy", "sklearn", "albumentations", "cv2", "matplotlib"}


@pytest.mark.parametrize(
    "code",
    ["import fastmask.commands.main", "cli.main(['fit', '--print-config'])"],
    ids=["import", "print-config"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, tmp_path: Path) -> None:
    lines = [
        "import atexit, sys",
        f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr))",
        "from fastmask.commands import main as cli",
        code,
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (DONE, "[]\n")


def test_the_installed_command_keeps_stdout_for_results(finished_run: Run, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("fastmask")
    command = [script, "score", finished_run.path, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert set(json.loads(done.stdout)) == {"joint", "heads", "notes"}


# --- folds apart, any data, costs -----------------------------------------------------------------------------------


def test_folds_trained_apart_are_merged(small: list[str], fastmask: Command, work: Path, finished_run: Run) -> None:
    for fold in (0, 1):
        assert fastmask(*small, "--fold", fold, "--out", f"half{fold}").code == DONE
    merged = fastmask("merge", "half0", "half1", "--out", "whole")
    assert merged.code == DONE, merged.errors
    assert "Written to whole: oof.csv, scores.json, checkpoints. Next: fastmask predict whole IMAGES --out FILE" in (
        merged.err
    )
    assert merged.err[-1].startswith("Report: whole/report.html: ")
    assert (work / "whole" / "report.html").is_file()
    assert merged.out == fastmask("score", finished_run.path).out
    assert (work / "whole" / "oof.csv").read_bytes() == (finished_run.path / "oof.csv").read_bytes()


def test_runs_that_do_not_belong_together_are_not_merged(
    finished_run: Run, run_copy: Path, refused: Callable[..., str]
) -> None:
    sentence = refused(ASKED_WRONGLY, "merge", finished_run.path, run_copy, "--out", "whole")
    assert "have both trained fold 0" in sentence


def test_a_dry_run_says_what_a_run_costs_and_writes_nothing(
    small: list[str], fastmask: Command, work: Path, snapshot: Callable[..., Any]
) -> None:
    before = snapshot(work)
    answer = fastmask(*small, "--dry-run", "--fold", 1, "--out", "run")
    assert answer.code == DONE
    assert [line.split()[0] for line in answer.out.splitlines()] == ["step", "epoch", "run", "memory", "disk"]
    assert "1 fold of 2 epochs" in answer.out
    assert snapshot(work) == before


def test_a_csv_with_other_heads(small: list[str], contest: Path, fastmask: Command, work: Path) -> None:
    images = contest / "train" / "images"
    photos = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.*") if not p.name.startswith("."))
    rows = [(p, p.split("/")[0], ("red", "green", "")[i % 3], f"s{i % 2}") for i, p in enumerate(photos)]
    pd.DataFrame(rows, columns=["file", "who", "colour", "shape"]).to_csv("mine.csv", index=False)
    data = ["--data", "mine.csv", "--images", images, "--group-column", "who", "--heads", "colour,shape"]
    answer = fastmask(*small, *data, "--folds", 2, "--out", "run")
    assert answer.code == DONE, answer.errors
    assert any("colour (green, red); shape (s0, s1)" in line for line in answer.err)
    assert "28 of 84 photos lack a label" in answer.out
    oof = Run.load(work / "run").oof
    assert list(oof.columns[3:7]) == ["colour.green", "colour.red", "shape.s0", "shape.s1"]
    assert fastmask("predict", "run", images / rows[0][1], "--out", "p.csv").code == DONE
    info = contest / "eval" / "info.csv"
    handed_in = fastmask("predict", "run", contest / "eval" / "images", "--submission", info, "--out", "s.csv")
    assert handed_in.code == ASKED_WRONGLY
    assert "the run's are of colour, shape" in handed_in.errors[0]
    predicted = pd.read_csv("p.csv")
    assert set(predicted["colour"]) <= {"red", "green"}
    assert set(predicted["shape"]) <= {"s0", "s1"}


@pytest.mark.filterwarnings("always::fastmask.system.errors.FastmaskWarning")
def test_a_folder_a_class(small: list[str], fastmask: Command, work: Path) -> None:
    for i in range(8):
        file = work / "pets" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((400, 200, 3), 30 * i, np.uint8)).save(file)
    answer = fastmask(*small, "--data", "pets", "--bs", 2, "--epochs", 1, "--out", "run")
    assert answer.code == DONE, answer.errors
    assert any("every photo counts as a different person" in w for w in answer.warnings)
    assert Run.load(work / "run").heads["class"].classes == ("cat", "dog")


def test_doctor(fastmask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.commands import doctor

    monkeypatch.setattr(doctor, "examine", lambda: iter(["CPU 2 cores", "run works"]))
    assert fastmask("doctor").out == "CPU 2 cores\nrun works\n"


def test_check_finds_nothing_in_the_sample(contest: Path, fastmask: Command) -> None:
    answer = fastmask("check", contest, "--folds", 2)
    assert (answer.code, answer.out) == (DONE, "Nothing wrong found.\n")


def test_check_says_all_at_once_and_exits_1(contest_copy: Path, fastmask: Command, work: Path) -> None:
    first_photo(contest_copy).write_bytes(b"")
    first_photo(contest_copy, "mask1").unlink()
    answer = fastmask("check", contest_copy, "--folds", 2, "--out", "found.csv")
    assert answer.code == FAILED
    assert answer.errors == []
    assert pd.read_csv("found.csv")["kind"].tolist() == ["bad table", "unreadable"]
    assert "unreadable" in answer.out
    again = fastmask("check", contest_copy, "--out", "found.csv")
    assert again.code == ASKED_WRONGLY
    assert "found.csv exists" in again.errors[0]
    warnings_only = fastmask(
        "check", contest_copy, "--folds", 2, "--crop", 600, 200, "--out", "found.csv", "--overwrite"
    )
    assert warnings_only.code == FAILED


def test_check_of_no_data(refused: Callable[..., str]) -> None:
    assert "nowhere is not a contest folder" in refused(ASKED_WRONGLY, "check", "nowhere")


def test_lr_find_suggests_draws_and_writes(small: list[str], fastmask: Command, work: Path) -> None:
    answer = fastmask("lr-find", *small[1:3], "--bs", 8)
    assert answer.code == DONE, answer.errors
    found = json.loads((work / "lr-find.json").read_text())
    assert answer.out.startswith(f"suggestion {found['suggestion']:.1e}")
    assert 1e-7 < found["suggestion"] < 10
    assert len(found["lrs"]) == len(found["losses"])
    assert Image.open(work / "lr-find.png").size[0] > 600
    assert fastmask("lr-find", *small[1:3]).code == DONE
    assert (work / "lr-find-2.png").is_file()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "found.jpg"], ["found.jpg", ".png"]),
        (["--out", "found.png"], ["found.json exists", "--overwrite"]),
        (["--fold", 2], ["no fold 2", "0, 1"]),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_lr_find_refuses(
    words: list[Any], named: list[str], small: list[str], work: Path, refused: Callable[..., str]
) -> None:
    (work / "found.json").write_text("{}")
    sentence = refused(ASKED_WRONGLY, "lr-find", *small[1:3], *words)
    assert [part for part in named if part not in sentence] == []


def test_archs_lists_what_matches(fastmask: Command) -> None:
    lines = fastmask("archs", "resnet1*t*").out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    (line,) = (line for line in lines if line.startswith("resnet10t "))
    assert "5.4 M" not in line  # that is with a classifier of 1000 classes
    assert "4.9 M" in line
    assert "resnet10t.c3_in1k" in line
    assert fastmask("archs", "test_vit3").code == DONE
    assert "nearest" in fastmask("archs", "resnett18").errors[0]


def test_a_member_without_a_checkpoint_is_named(run_copy: Path, contest: Path, refused: Callable[..., str]) -> None:
    next((run_copy / "fold1").glob("epoch*")).unlink()
    sentence = refused(FAILED, "predict", run_copy, contest / "eval" / "images", "--out", "p.csv")
    assert "fold1 has no checkpoint" in sentence


def test_bench_says_what_limits_a_run(
    small: list[str], fastmask: Command, work: Path, snapshot: Callable[..., Any]
) -> None:
    before = snapshot(work)
    answer = fastmask("bench", *small[1:3], "--seconds", 1)
    assert answer.code == DONE, answer.errors
    rows = ["loading", "bare", "training", "limit", "step", "epoch", "run", "memory", "disk"]
    # advice follows where there is any
    assert [line.split()[0] for line in answer.out.splitlines()][: len(rows)] == rows
    plain = json.loads(fastmask("bench", *small[1:3], "--seconds", 1, "--json").out)
    assert plain["bs"] == 16
    assert plain["load_seconds_a_batch"] < plain["train_seconds_a_batch"]
    assert fastmask("bench", *small[1:3], "--seconds", "nan").code == ASKED_WRONGLY
    assert snapshot(work) == before


def test_photos_are_decoded_once_and_caches_can_be_listed_and_cleared(
    small: list[str], fastmask: Command, work: Path
) -> None:
    here = ["--cache-dir", "decoded"]
    first = fastmask(*small, *here, "--cache", "disk", "--dry-run")
    assert any(line.startswith("Decoded 84 different photos in") for line in first.err)
    assert not any("Decoded" in line for line in fastmask(*small, *here, "--dry-run").err)
    listed = fastmask("cache", "list", *here)
    assert listed.out.split()[1:3] == ["84", "photos"]
    assert listed.err == ["decoded: caches 1, 516 kB"]
    name = listed.out.split()[0]
    assert fastmask("cache", "clear", "other", *here).code == ASKED_WRONGLY
    assert fastmask("cache", "clear", name, *here).out == "caches removed: 1, 516 kB\n"
    assert fastmask("cache", "list", *here).out == ""


def test_a_name_that_no_system_takes_is_not_shown_whole(fastmask: Command) -> None:
    answer = fastmask("fit", "--config", "x" * 6000)
    assert answer.code == FAILED
    assert answer.errors == [f"File name too long: {'x' * 999}…."]


def test_hours_choose_the_epochs(small: list[str], fastmask: Command) -> None:
    answer = fastmask(*small, "--hours", 2, "--dry-run")
    assert answer.code == DONE
    assert "2 folds of 2 epochs" in answer.out
    refused = fastmask(*small, "--hours", 0.00001, "--out", "run")
    assert refused.code == ASKED_WRONGLY
    assert "--hours is too short: one epoch of all folds takes" in refused.errors[0]
    apart = fastmask(*small, "--hours", 2, "--fold", 0, "--out", "run")
    assert apart.code == ASKED_WRONGLY
    assert "--hours chooses the epochs of a whole run" in apart.errors[0]
    assert not Path("run").exists()


def test_a_fault_of_the_data_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from fastmask.commands.main import main\ntry: main(['fit', '--data', 'nowhere'])\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ASKED_WRONGLY, "False\n")
