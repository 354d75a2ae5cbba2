"""fit, lr-find and merge: settings, what is refused, what is written."""

import functools
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from PIL import Image

from fastmask.api import Run
from fastmask.commands import fit
from fastmask.commands import main as cli
from fastmask.config import Config, make_config
from fastmask.data.contest import read_contest
from fastmask.evaluation import advice
from fastmask.report import write
from fastmask.system.fields import describe, option_name
from fastmask.training import finder

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]

# a value of every setting that has an option; the words of the command line follow from it
VALUES: dict[str, Any] = yaml.safe_load("""
{data: sample, images: photos, image_column: file, group_column: who, fixes: fixes.csv, age_bounds: [30, 58], folds: 3,
trust_links: store, folds_file: folds.csv, stratify: age, group: none, seed: 7, extra: more.csv,
extra_images: photos, extra_weight: 0.5,
pseudo: labels, pseudo_weight: 0.5, pseudo_least: 0.9, teacher: runs/wise, teacher_weight: 0.7, teacher_temperature: 2,
sampler: joint, boxes: boxes.csv, margin: 0.5, region: forehead, no_face: crop, fit: stretch, crop: [200, 100],
resize: [100, 50], crop_pct: 0.9, auto_resize: true, stats: pretrained, brightness_contrast: 0.2,
erase: 0.3, mixup: 0.4, cutmix: 1, mix_prob: 0.5, half_cutmix: 0.7, half_shares: [0.3, 0.6], half_partner: any,
arch: resnet18, pretrained: false, weights: body.pth, drop_rate: 0.2, drop_path: 0.1, freeze: 3, unfreeze: 2,
layer_decay: 0.8, loss: ce, focal_gamma: 1.5, class_weight: auto, label_smoothing: 0.1, f1_share: 0.5, order: age,
epochs: 3, bs: 8, lr: 0.01, wd: 0, sched: cosine, opt: adamw, warmup: 2, cycle: 0.2, cycle_mult: 2, poly_power: 2,
plateau_patience: 1, clip: 1, sam: 0.05, sam_adaptive: true,
opt_args: null, milestones: [4, 8], lr_gamma: 0.1, accumulate: 2, ema: 0.99,
swa: 0.75, refit: 2, monitor: age_macro_f1, patience: 0, top_k: 3, on_nan: skip, on_bad_photo: skip, precision: bf16,
tf32: false, compile: auto, cache: 'off', cache_dir: decoded, hours: 2, save_every: 5m, tensorboard: true, wandb: masks,
minutes: 90, validate_every: 2,
mlflow: masks, launcher: ray, address: auto, fetch: true, workers: 2, device: cpu, threads: 2,
heads: null, drop: null,
per_fold: null, per_head: null, per_person: 1, draw_weights: weight, mix_classes: null, mix_partner: age.60+,
augment: null, images_also: null, one_head: true, joint_head: 0.3, bands: null, feature_loss: arcface,
feature_weight: 0.2, feature_head: age, feature_args: null, flip: true, views: null, decision: f1, linear_probe: true,
freeze_bn: true, progressive: 0.6}
""")
# those with text of their own
TEXTS: dict[str, tuple[str, Any]] = {
    "heads": ("colour, shape", ["colour", "shape"]),
    "mix_classes": ("age.60+, mask.wear", ["age.60+", "mask.wear"]),
    "augment": ("flip, rotate(limit=(-5, 5), p=1)", ["flip", "rotate(limit=(-5, 5), p=1)"]),
    "images_also": ("cut, blurred", ["cut", "blurred"]),
    "bands": ("age=20,30,60", {"age": [20, 30, 60]}),
    "feature_args": ("margin=0.3", {"margin": 0.3}),
    "views": ("flip, scale", ["flip", "scale"]),
    "drop": ("27-29,57", {"age": [[27, 29], [57, 57]]}),
    "opt_args": ("betas=0.9,0.95", {"betas": [0.9, 0.95]}),
    "per_fold": ("gpu=0.5,cpu=4", {"gpu": 0.5, "cpu": 4}),
    "per_head": ("age.loss=coral,mask.gamma=1", {"age": {"loss": "coral"}, "mask": {"gamma": 1.0}}),
}
# the settings next to which others have an effect
NEEDED = {
    "boxes": "b.csv",
    "pseudo": "labels",
    "teacher": "runs/a",
    "extra": "a.csv",
    "half_cutmix": 0.5,
    "sam": 0.5,
    "feature_loss": "supcon",
}
NEXT_TO: dict[str, dict[str, Any]] = {
    "region": {"boxes": "b.csv", "crop": [112, 224]},
    "mix_prob": {"mixup": 1},
    "mix_classes": {"half_cutmix": 0.5},
    "mix_partner": {"cutmix": 1},
    "unfreeze": {"freeze": "body"},
    **{name: {"sched": "restarts"} for name in ("cycle", "cycle_mult")},
    "poly_power": {"sched": "poly"},
    "plateau_patience": {"sched": "plateau"},
    **{name: {"launcher": "ray"} for name in ("address", "per_fold", "fetch")},
}


def words_of(name: str, value: Any) -> list[Any]:
    """The words of the command line that give a setting a value."""
    option, _, negative = option_name(Config, name).partition("/")
    if isinstance(value, bool):
        return [option if value else negative]
    return [option, *(value if isinstance(value, list) else [value])]


@pytest.fixture
def printed(fastmask: Command) -> Callable[..., dict[str, Any]]:
    """The settings that `fit --print-config` prints."""

    def command(*arguments: Any) -> dict[str, Any]:
        answer = fastmask("fit", *arguments, "--print-config")
        assert (answer.code, answer.err) == (DONE, [])
        settings: dict[str, Any] = yaml.safe_load(answer.out)
        return settings

    return command


# --- settings -------------------------------------------------------------------------------------------------------


def test_every_option_of_fit_is_a_setting_and_the_reverse() -> None:
    fit = typer.main.get_command(cli.app).commands["fit"]  # type: ignore[attr-defined]
    run_options = {"out", "fold", "resume", "overwrite", "dry_run", "print_config", "report"}
    of_fit = {*run_options, "config", "recipe", "set_", "quiet", "help_all"}
    described = {name for name in Config.model_fields if describe(Config, name).panel}
    assert {parameter.name for parameter in fit.params} - of_fit == set(VALUES) == described
    words = {word for name in described for word in option_name(Config, name).split("/")}
    assert words <= {word for parameter in fit.params for word in (*parameter.opts, *parameter.secondary_opts)}


def test_a_list_of_words_may_be_repeated(printed: Command) -> None:
    given = printed("--augment", "flip,rotate(limit=3, p=1)", "--augment", "clahe")
    assert given["augment"] == ["flip", "rotate(limit=3, p=1)", "clahe"]
    assert printed()["augment"] is None


@pytest.mark.parametrize("name", VALUES)
def test_an_option_changes_its_setting_and_no_other(name: str, printed: Command) -> None:
    text, value = TEXTS.get(name, (VALUES[name], VALUES[name]))
    other = NEXT_TO.get(name) or {needed: NEEDED[needed] for needed in describe(Config, name).needs[:1]}
    before = functools.reduce(lambda words, one: [*words, *words_of(*one)], other.items(), [])
    # weights from a file replace those of the hub
    also = {"pretrained": False} if name == "weights" else {}
    defaults = make_config(other).to_plain()
    assert printed(*before, *words_of(name, text)) == {**defaults, name: value, **also} != defaults


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--stats", 0.5, 0.4, 0.3, 0.2, 0.1, 0.6], "stats", [0.5, 0.4, 0.3, 0.2, 0.1, 0.6]),
        (["--stats", "0.5,0.4,0.3,0.2,0.1,0.6"], "stats", [0.5, 0.4, 0.3, 0.2, 0.1, 0.6]),
        (["--stats", "report"], "stats", "report"),
        (["--milestones", 12], "milestones", [12]),
        (["--bs", "auto"], "bs", "auto"),
        (["--freeze", "body"], "freeze", "body"),
        (["--crop", 200, 100, "--stats", -0.1, 0, 0, 1, 1, 1, "--bs", 4], "stats", [-0.1, 0, 0, 1, 1, 1]),
        (["--set", "age_bounds=[30, 57]"], "age_bounds", [30, 57]),
        (["--set", "bs=2", "--set", "bs=3"], "bs", 3),
        (["--set", "focal-gamma=1"], "focal_gamma", 1),
        (
            ["--set", "alpha.age=[1, 1, 4]", "--set", "alpha.mask=[1, 2, 1]"],
            "alpha",
            {"age": [1, 1, 4], "mask": [1, 2, 1]},
        ),
        (["--set", "head_weights.age=2"], "head_weights", {"age": 2}),
        (["--recipe", "report"], "age_bounds", [30, 58]),
    ],
)
def test_lists_of_numbers_and_nested_settings(words: list[Any], name: str, expected: Any, printed: Command) -> None:
    assert printed(*words)[name] == expected


def test_class_weights_may_come_from_a_file(printed: Command, work: Path) -> None:
    (work / "weights.yaml").write_text("age: {60+: 4}\nmask: [1, 2, 1]\n")
    settings = printed("--class-weight", "weights.yaml")
    assert (settings["alpha"], settings["class_weight"]) == ({"age": {"60+": 4}, "mask": [1, 2, 1]}, "none")


def test_precedence_is_command_line_set_config_recipe_default(printed: Command, work: Path) -> None:
    (work / "mine.yaml").write_text("bs: 2\nlr: 2\nwd: 2\n")
    low = ["--recipe", "quick", "--config", "mine.yaml"]
    settings = printed("--lr", 4, *low, "--set", "lr=3", "--set", "wd=3")
    assert [settings[name] for name in ("lr", "wd", "bs", "epochs", "focal_gamma")] == [4, 3, 2, 9, 2]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--recipe quick --seed 3",
        "--recipe report",
        "--stats 0.5 0.5 0.5 0.5 0.5 0.5",
        "--weights body.pth",
        "--data 'Fotos von März' --device cuda:0",
    ],
)
def test_printed_settings_read_back_as_the_same(words: str, fastmask: Command, work: Path) -> None:
    first = fastmask("fit", *shlex.split(words), "--print-config")
    (work / "printed.yaml").write_text(first.out, encoding="utf-8")
    assert fastmask("fit", "--config", "printed.yaml", "--print-config").out == first.out


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "nowhere"], ["nowhere", "--data"]),
        (["--folds", 1], ["folds", "1", "2"]),
        (["--folds", 13], ["--folds is 13", "12 persons"]),
        (["--group", "none", "--folds", 85], ["--folds is 85", "84 photos"]),
        (["--drop-ages", "old"], ["--drop-ages old", "27-29,57-59"]),
        (["--drop-ages", "0-150"], ["drop", "fold 0", "nothing to train on"]),
        (["--set", "drop={mask: [[1, 2]]}"], ["drop", "mask", "bands of a number"]),
        (["--boxes", "nowhere.csv"], ["nowhere.csv", "path, x0, y0, x1, y1"]),
        (["--views", "up"], ["no views 'up'", "flip, shift, scale"]),
        (["--freeze", "\u00b2"], ["freeze"]),
        (["--freeze", 9], ["freeze is 9", "1 to 5"]),
        (["--pseudo", "nowhere"], ["nowhere", "pseudo.json", "fastmask pseudo"]),
        (["--extra", "nowhere.csv"], ["nowhere.csv"]),
        (["--half-cutmix", 0.5, "--half-partner", "old"], ["no class 'old'", "'mask.wear'", "'wear male <30'"]),
        (["--draw-weights", "none.yaml"], ["none.yaml", "draw weights"]),
        (["--draw-weights", "often"], ["draw_weights goes with a CSV"]),
        (["--set", "draw_weights={hat: 3}"], ["no class 'hat'"]),
        (["--set", "draw_weights={age.60+: 0}"], ["draw_weights", "above 0"]),
        (["--set", "draw_weights={age: [1, 1, 4]}"], ["draw_weights", "above 0"]),
        (["--set", "draw_weights={mask: {wear: 2, incorrect: 2, none: 2}}"], ["the same weight", "no effect"]),
        (["--mixup", 1, "--mix-classes", "60+"], ["no class '60+'", "'mask.wear'"]),
        (["--mixup", 1, "--mix-partner", "other"], ["no class 'other'"]),
        (["--mix-classes", "age.60+"], ["mix_classes has no effect without mixup or cutmix or half_cutmix"]),
        (["--half-cutmix", 1, "--mix-partner", "same"], ["mix_partner has no effect without mixup or cutmix"]),
        (["--mixup", 1, "--set", "mix_classes=[]"], ["mix_classes is empty"]),
        (["--per-person", 7], ["per_person is 7", "no person has more photos"]),
        (["--per-person", "mask.none=1"], ["per_person is 1 of mask.none", "no person has more"]),
        (["--per-person", "hat=1"], ["no class 'hat'", "'mask.wear'"]),
        (["--per-person", "mask.wear=1,age.60+=1"], ["'mask.wear' and 'age.60+'", "photos are of both"]),
        (["--per-person", "mask.wear"], ["--per-person mask.wear", "a whole number, or one per class"]),
        (["--per-person", "mask.wear=1,mask.wear=2"], ["a number, or one per class"]),
        (["--per-person", 0], ["per_person", "1"]),
        (["--set", "alpha={age: {old: 4}}"], ["--class-weight) of head age", "'old'", "60+"]),
        (["--set", "alpha.hair=[1, 1]"], ["hair", "mask, gender, age"]),
        (["--set", "alpha.age=[1, 1]"], ["age", "3"]),
        (["--set", "head_weights.hair=1"], ["hair", "mask, gender, age"]),
        (["--class-weight", "none.yaml"], ["none.yaml"]),
        (["--sampler", "hat"], ["no head 'hat'"]),
        (["--stratify", "hair"], ["hair", "mask, gender, age"]),
        (["--monitor", "f2"], ["f2", "macro_f1", "age_accuracy"]),
        (["--stats", "imagenet"], ["--stats", "imagenet"]),
        (["--milestones", "half"], ["--milestones", "half"]),
        (["--set", "lr"], ["lr", "name=value"]),
        (["--set", "lr=[1"], ["lr=[1"]),
        (["--set", "epoch=3"], ["epoch", "did you mean 'epochs'"]),
        (["--recipe", "best"], ["best", "quick", "report"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--config", "."], ["."]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["--arch", "tf_eficientnet_b4"], ["'tf_eficientnet_b4'", "tf_efficientnet_b4"]),
        (["--weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--set", "train_pipeline.transform.transforms=[{__class_fullname__: Crop3D}]"], ["Crop3D"]),
        (["--fold", "0,2"], ["no fold 2", "0, 1"]),
        (["--fold", "one"], ["--fold one", "whole numbers"]),
        (["--loss", "own"], ["own", "loss_func"]),
        (["--heads", "age"], ["heads", "CSV"]),
        (["--fixes", "nowhere.csv"], ["nowhere.csv"]),
        (["--folds-file", "nowhere.csv"], ["nowhere.csv"]),
        (["--resume", "--overwrite", "--out", "run"], ["--resume", "--overwrite"]),
        (["--resume"], ["--resume", "--out"]),
        (["--resume", "--out", "nowhere"], ["nowhere"]),
        (["--out", "../small.yaml"], ["small.yaml", "--out"]),
        (["--out", "../small.yaml/run"], ["small.yaml/run", "--out"]),
        (["--hours", 0.00001, "--out", "run"], ["--hours is too short: one epoch of all folds takes"]),
        (["--minutes", 0.0001, "--out", "run"], ["--minutes is too short: one epoch of all folds takes"]),
        (["--hours", 2, "--fold", 0, "--out", "run"], ["--hours chooses the epochs of a whole run"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_wrong_setting_is_refused_in_a_sentence_that_names_it(
    words: list[Any], named: list[str], small: list[str], invalid: Command
) -> None:
    invalid(*small, *words, named=named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch: 3\n", ["epoch", "did you mean 'epochs'"]),
        ("- epochs\n", ["['epochs']", "epochs: 20"]),
        ("epochs\n", ["'epochs'", "epochs: 20"]),
        ("epochs: [3\n", ["mine.yaml", "YAML", "line"]),
        ("lr: 3e-4x\n", ["lr", "3e-4x"]),
    ],
)
def test_a_wrong_settings_file_is_refused(text: str, named: list[str], work: Path, invalid: Command) -> None:
    (work / "mine.yaml").write_text(text)
    invalid("fit", "--config", "mine.yaml", named=named)


def test_an_output_folder_in_use_is_left_alone(small: list[str], work: Path, invalid: Command) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("years of work")
    invalid(*small, "--out", "mine", named=["mine exists"])
    invalid(*small, "--out", "mine", "--overwrite", named=["mine is not a run"])


@pytest.mark.parametrize("words", [["--folds", 99], ["--monitor", "f2"], ["--device", "tpu"], ["--crop", 900, 900]])
def test_overwrite_keeps_the_old_run_until_all_is_checked(
    words: list[Any], contest: Path, run_copy: Path, fastmask: Command, snapshot: Callable[..., Any]
) -> None:
    before = snapshot(run_copy)
    settings = ["--data", contest, "--arch", "test_resnet", "--no-pretrained", "--folds", 2]
    answer = fastmask("fit", *settings, "--out", run_copy, "--overwrite", *words)
    assert (answer.code != DONE, answer.err[0]) == (True, f"fastmask: error: {answer.errors[0]}")
    assert snapshot(run_copy) == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_weights_is_refused(content: bytes, small: list[str], work: Path, invalid: Command) -> None:
    (work / "body.pth").write_bytes(content)
    invalid(*small, "--weights", "body.pth", named=["body.pth"], code=FAILED)


def test_photos_that_do_not_fit_the_pipelines_are_refused(small: list[str], contest: Path, invalid: Command) -> None:
    settings = ["--data", contest, "--arch", "test_resnet", "--no-pretrained", "--folds", 2]
    images = str(contest / "train" / "images")
    named = [images, "512 high and 384 wide", "--crop"]
    invalid("fit", *settings, "--crop", 600, 200, named=named, code=FAILED)
    invalid(*small, "--set", "train_pipeline.transform.transforms=[]", named=["one size"], code=FAILED)


def damage_table(train: Path) -> None:
    frame = pd.read_csv(train / "train.csv", dtype=str)
    frame.assign(age=frame["age"].where(frame.index != 2, "1e9")).to_csv(train / "train.csv", index=False)


def insert_lines(train: Path) -> None:
    """Blank lines count."""
    header, first, *others = (train / "train.csv").read_text().splitlines()
    lines = [header, "", "", first.replace(",Asian,", ",Asian,x"), *others, ""]
    (train / "train.csv").write_text("\n".join(lines))


def damage_photo(train: Path) -> None:
    photo = next(train.glob("images/000001_*/normal.jpg"))
    photo.write_bytes(photo.read_bytes()[:5000])


def remove_person(train: Path) -> None:
    folder = next(train.glob("images/000001_*"))
    shutil.rmtree(folder)
    folder.write_text("no folder")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_table, ["train.csv, line 4, column age", "'1e9'"]),
        (damage_photo, ["normal.jpg", "cut short"]),
        (insert_lines, ["train.csv, line 4, column age"]),
        (remove_person, ["000001_", "train.csv"]),
        (lambda train: (train / "train.csv").write_bytes(bytes(range(256))), ["train.csv", "CSV"]),
        (lambda train: (train / "train.csv").write_bytes(b""), ["train.csv", "CSV"]),
    ],
)
def test_data_that_cannot_be_used_is_refused_by_name(
    damage: Callable[[Path], Any], named: list[str], small: list[str], contest_copy: Path, invalid: Command
) -> None:
    damage(contest_copy / "train")
    invalid(*small, "--data", contest_copy, named=named, code=FAILED)


# --- fit ------------------------------------------------------------------------------------------------------------


def test_fit_writes_a_run_directory_and_prints_the_score(small: list[str], fastmask: Command, work: Path) -> None:
    (work / "runs" / "test_resnet").mkdir(parents=True)
    answer = fastmask(*small)
    assert answer.code == DONE
    # the name is taken
    run = work / "runs" / "test_resnet-2"
    wanted = ["config.yaml", "heads.json", "environment.json", "folds.csv", "oof.csv", "scores.json"]
    wanted += [f"fold{fold}/{name}" for fold in (0, 1) for name in ("history.csv", "done.json")]
    assert [name for name in wanted if not (run / name).is_file()] == []
    assert [len(list(run.glob(f"fold{fold}/epoch*.safetensors"))) for fold in (0, 1)] == [1, 1]
    assert len(Run.load(run).oof) == 84
    assert answer.out == f"{Run.load(run).score()}\n"
    assert sum("fold 1/2 epoch" in line for line in answer.err) == 2
    assert any("fastmask predict runs/test_resnet-2" in line for line in answer.err)
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
def test_a_run_is_resumed_with_its_own_settings(contest: Path, run_copy: Path, fastmask: Command) -> None:
    before = (run_copy / "oof.csv").read_bytes()
    (run_copy / "fold1" / "done.json").unlink()
    settings = ["--config", run_copy / "config.yaml", "--data", contest, "--workers", 1]
    assert fastmask("fit", *settings, "--out", run_copy, "--resume", "--no-report").code == DONE
    assert (run_copy / "oof.csv").read_bytes() == before


# without the first person, a class has only one
@pytest.mark.filterwarnings("always:Classes with fewer persons")
def test_resume_with_other_settings_or_data_names_the_difference(
    small: list[str], run_copy: Path, contest_copy: Path, invalid: Command
) -> None:
    resume = [*small, "--out", run_copy, "--resume"]
    invalid(*resume, "--lr", 0.1, named=["lr 0.0003, now it is 0.1"])
    csv = contest_copy / "train" / "train.csv"
    frame = pd.read_csv(csv, dtype=str)
    frame.assign(gender=frame["gender"].iloc[::-1].to_numpy()).to_csv(csv, index=False)
    invalid(*resume, "--data", contest_copy, named=["labels"])
    frame.iloc[1:].to_csv(csv, index=False)
    invalid(*resume, "--data", contest_copy, named=["photos"])


def test_a_training_that_diverges_ends_in_a_sentence(small: list[str], fastmask: Command) -> None:
    answer = fastmask(*small, "--epochs", 1, "--lr", 1e30)
    assert (answer.code, answer.out, len(answer.errors)) == (FAILED, "", 1)


@pytest.mark.filterwarnings("always::fastmask.system.errors.FastmaskWarning")
def test_the_leaky_split_is_warned_of_and_noted_in_the_score(small: list[str], fastmask: Command) -> None:
    answer = fastmask(*small, "--epochs", 1, "--group", "none", "--out", "leaky")
    assert answer.code == DONE
    (warning,) = answer.warnings
    assert warning.startswith("--group none puts photos of one person on both sides of a split")
    assert "flatters" in answer.out
    assert "flatters" in fastmask("score", "leaky").out


def test_a_quiet_command_prints_its_result_and_warnings(small: list[str], fastmask: Command) -> None:
    loud, quiet = (fastmask(*small, "--epochs", 1, "--out", f"run{words}", *words) for words in ([], ["--quiet"]))
    assert quiet.out == loud.out != ""
    assert [line for line in quiet.err if not line.startswith("fastmask: warning: ")] == []
    assert len(loud.err) >= 5
    assert fastmask("score", "nobody", "-q").errors != []


def test_a_dry_run_says_what_a_run_costs_and_writes_nothing(
    small: list[str], fastmask: Command, work: Path, snapshot: Callable[..., Any]
) -> None:
    before = snapshot(work)
    answer = fastmask(*small, "--dry-run", "--fold", 1, "--out", "run")
    assert answer.code == DONE
    assert [line.split()[0] for line in answer.out.splitlines()] == ["step", "epoch", "run", "memory", "disk"]
    assert "1 fold of 2 epochs" in answer.out
    assert "2 folds of 2 epochs" in fastmask(*small, "--hours", 2, "--dry-run").out
    assert snapshot(work) == before


@pytest.mark.filterwarnings("always::fastmask.system.errors.FastmaskWarning")
def test_a_dry_run_says_who_shares_photos(small: list[str], fastmask: Command, contest_copy: Path) -> None:
    table = read_contest(contest_copy)
    table.photo(65).write_bytes(table.photo(2).read_bytes())
    image = Image.open(table.photo(9)).convert("RGB")
    for person in range(2, 10):
        # more persons than a fold has
        image.save(table.photo(7 * person), "JPEG", quality=50 + person)
    answer = fastmask(*small, "--data", contest_copy, "--dry-run")
    assert answer.code == DONE
    assert "2 persons share identical photos with others" in " ".join(answer.err)
    (warning,) = answer.warnings
    assert "pairs of persons in two folds have the same picture" in warning


def test_folds_trained_apart_are_merged(
    small: list[str],
    fastmask: Command,
    invalid: Command,
    work: Path,
    finished_run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write, "make_sections", lambda _: [])
    for fold in (0, 1):
        assert fastmask(*small, "--fold", fold, "--out", f"half{fold}").code == DONE
    merged = fastmask("merge", "half0", "half1", "--out", "whole")
    assert merged.code == DONE, merged.errors
    *_, written, report = merged.err
    assert written == (
        "Written to whole: oof.csv, scores.json, checkpoints. Next: fastmask predict whole IMAGES --out FILE"
    )
    assert report.startswith("Report: whole/report.html: ")
    assert (work / "whole" / "report.html").is_file()
    assert merged.out == fastmask("score", finished_run.path).out
    assert (work / "whole" / "oof.csv").read_bytes() == (finished_run.path / "oof.csv").read_bytes()
    invalid("merge", finished_run.path, "half0", "--out", "twice", named=["have both trained fold 0"])


def test_lr_find_suggests_draws_and_writes(
    small: list[str], fastmask: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fastmask("lr-find", *small[1:3], "--bs", 8)
    assert answer.code == DONE, answer.errors
    found = json.loads((work / "lr-find.json").read_text())
    assert answer.out.startswith(f"suggestion {found['suggestion']:.1e}")
    assert 1e-7 < found["suggestion"] < 10
    assert len(found["lrs"]) == len(found["losses"])
    assert Image.open(work / "lr-find.png").size[0] > 600
    # the name is taken
    monkeypatch.setattr(finder, "lr_find", lambda _: finder.Found(**found))
    assert fastmask("lr-find", *small[1:3]).code == DONE
    assert (work / "lr-find-2.png").is_file()
    assert json.loads((work / "lr-find-2.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "found.jpg"], ["found.jpg", ".png"]),
        (["--out", "found.png"], ["found.json exists", "--overwrite"]),
        (["--fold", 2], ["no fold 2", "0, 1"]),
    ],
)
def test_lr_find_refuses(words: list[Any], named: list[str], small: list[str], work: Path, invalid: Command) -> None:
    (work / "found.json").write_text("{}")
    invalid("lr-find", *small[1:3], *words, named=named)


# --- other data -----------------------------------------------------------------------------------------------------


def test_a_csv_with_other_heads(
    small: list[str], contest: Path, fastmask: Command, invalid: Command, work: Path
) -> None:
    images = contest / "train" / "images"
    photos = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.*") if not p.name.startswith("."))
    rows = [(p, p.split("/")[0], ("red", "green", "")[i % 3], f"s{i % 2}") for i, p in enumerate(photos)]
    pd.DataFrame(rows, columns=["file", "who", "colour", "shape"]).to_csv("mine.csv", index=False)
    data = ["--data", "mine.csv", "--images", images, "--group-column", "who", "--heads", "colour,shape"]
    answer = fastmask(*small, *data, "--epochs", 1, "--out", "run")
    assert answer.code == DONE, answer.errors
    assert any("colour (green, red); shape (s0, s1)" in line for line in answer.err)
    assert "28 of 84 photos lack a label" in answer.out
    oof = Run.load(work / "run").oof
    assert list(oof.columns[3:7]) == ["colour.green", "colour.red", "shape.s0", "shape.s1"]
    assert fastmask("predict", "run", contest / "eval" / "images", "--out", "p.csv").code == DONE
    predicted = pd.read_csv("p.csv")
    assert set(predicted["colour"]) <= {"red", "green"}
    assert set(predicted["shape"]) <= {"s0", "s1"}
    submission = ["--submission", contest / "eval" / "info.csv", "--out", "s.csv"]
    invalid("predict", "run", contest / "eval" / "images", *submission, named=["the run's are of colour, shape"])


@pytest.mark.filterwarnings("always::fastmask.system.errors.FastmaskWarning")
def test_a_folder_per_class(small: list[str], fastmask: Command, work: Path) -> None:
    for i in range(8):
        file = work / "pets" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((400, 200, 3), 30 * i, np.uint8)).save(file)
    answer = fastmask(*small, "--data", "pets", "--bs", 2, "--epochs", 1, "--out", "run")
    assert answer.code == DONE, answer.errors
    assert any("every photo counts as a different person" in w for w in answer.warnings)
    assert Run.load(work / "run").heads["class"].classes == ("cat", "dog")


def test_advice_is_printed_and_fails_no_finished_run(
    finished_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit._show(finished_run, report=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("To raise the score: ")]
    assert lines == [f"To raise the score: {each}" for each in finished_run.advice()]
    assert "To raise the score: The body started from random weights: try --pretrained" in lines

    def fail(run: Run) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(advice, "advise", fail)
    fit._show(finished_run, report=False)
    shown = capsys.readouterr()
    assert "warning: The run is complete, but there is no advice on it (the disk is gone)" in shown.err
    assert shown.out.startswith(" ")
