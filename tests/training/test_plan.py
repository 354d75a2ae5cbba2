import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmask.config import make_config
from fastmask.data.augment import REPORT_STATS, augmentations, effective_pipelines, report_pipelines, to_plain
from fastmask.data.contest import read_contest
from fastmask.data.readers import read_csv
from fastmask.errors import DataError, UsageError
from fastmask.training import plan as plan_module
from fastmask.training.crossval import cross_validate
from fastmask.training.plan import effective_config, prepare, resolve_stats


def quiet(table, out, **settings):
    return cross_validate(table, out=out, log=io.StringIO(), **settings)


def effective(table, **settings):
    return effective_config(table, make_config({"arch": "test_resnet", "pretrained": False}, settings))


def pipelines_of(config):
    return effective_pipelines(config, resolve_stats(config))


def test_the_environment_says_what_made_the_run(finished_run):
    environment = json.loads((finished_run.path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["body"]["tag"].startswith("test_resnet")
    assert environment["photos"]["count"] == 84


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"folds": 13}, UsageError, "only 12 persons"),
        ({"arch": "resnet1000"}, UsageError, "no arch 'resnet1000'; the nearest are .*resnet101"),
        ({"monitor": "f1"}, UsageError, "no metric 'f1' to monitor; expected one of valid_loss, macro_f1"),
        ({"head_weights": {"hat": 1}}, UsageError, "no head 'hat'"),
        ({"alpha": {"age": [1.0]}}, UsageError, "alpha of head age has 1 numbers for 3 classes"),
        ({"stratify": "hat"}, UsageError, "no head 'hat'"),
        ({"weights": "nowhere.pth"}, UsageError, "does not exist"),
        ({"device": "abacus"}, UsageError, "Device 'abacus'"),
    ],
)
def test_what_cannot_work_is_said_before_a_directory_is_made(
    contest, small_settings, tmp_path, settings, error, message
):
    settings = {**small_settings, **settings}
    if "weights" in settings:
        del settings["pretrained"]
    with pytest.raises(error, match=message):
        quiet(read_contest(contest), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_photo_that_a_crop_does_not_fit_is_said_before_a_directory_is_made(contest, small_settings, tmp_path):
    settings = {k: v for k, v in small_settings.items() if not k.endswith("pipeline")}
    with pytest.raises(DataError, match=r"\w+\.\w+ is 512 high and 384 wide, and the pipeline does not fit"):
        quiet(read_contest(contest), tmp_path / "run", **settings, crop=(600, 200))
    assert not (tmp_path / "run").exists()


def test_more_batches_a_step_than_an_epoch_has_are_refused(contest, small_settings, tmp_path):
    with pytest.raises(UsageError, match="Setting accumulate is 64, but an epoch has 2 batches of 16"):
        quiet(read_contest(contest), tmp_path / "run", **small_settings, accumulate=64)
    assert not (tmp_path / "run").exists()


def test_a_table_that_has_a_photo_twice_can_be_decoded_once(contest, small_settings):
    table = read_contest(contest)
    twice = table.select([*range(len(table)), *range(len(table))])
    plan = prepare(twice, make_config(small_settings))
    assert plan.size == (64, 32)


@pytest.mark.parametrize("asked", [True, False])
def test_compile_compiles_the_network_in_place(contest, small_settings, asked, monkeypatch):
    compiled = []
    monkeypatch.setattr(plan_module, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    prepare(read_contest(contest), make_config(small_settings, {"compile": asked})).learner(0)
    assert compiled == (["MultiHeadNet"] if asked else [])


def test_defaults_that_depend_on_the_table_are_kept_in_the_run(contest):
    config = effective(read_contest(contest))
    assert config.stratify == "age"
    assert make_config(config.to_plain()) == config


def test_statistics_can_be_the_report_s_the_body_s_or_six_numbers():
    def stats(value):
        return resolve_stats(make_config({"arch": "tf_efficientnet_lite0", "stats": value}))

    assert stats(None) is None
    assert stats("report") == ((0.548, 0.504, 0.479), (0.237, 0.247, 0.246))
    assert stats("pretrained") == ((0.5,) * 3, (0.5,) * 3)
    assert stats([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_crop_resize_and_statistics_end_in_the_pipelines():
    config = make_config({"crop": [300, 150], "resize": [60, 30], "stats": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]})
    for plain in pipelines_of(config).values():
        crop, resize, *_, normalize, _ = plain["transform"]["transforms"]
        assert (crop["height"], crop["width"], resize["height"], resize["width"]) == (300, 150, 60, 30)
        assert list(normalize["mean"]) + list(normalize["std"]) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_statistics_reach_a_pipeline_of_one_s_own(small_settings):
    pipelines = {name: small_settings[name] for name in ("train_pipeline", "valid_pipeline")}
    for stats, expected in (([0.5] * 6, ((0.5,) * 3, (0.5,) * 3)), (None, REPORT_STATS)):
        made = pipelines_of(make_config({"stats": stats, **pipelines}))
        assert [a.stats for a in augmentations(made)] == [expected] * 2
    own = to_plain(report_pipelines(stats=((0.1,) * 3, (0.9,) * 3))[1])
    both = {"train_pipeline": own, "valid_pipeline": own}
    assert augmentations(pipelines_of(make_config(both)))[0].stats == ((0.1,) * 3, (0.9,) * 3)
    with pytest.raises(UsageError, match="give the statistics once"):
        pipelines_of(make_config({**both, "stats": "report"}))


@pytest.mark.parametrize("crop", [[100, 50], [400, 200]])
def test_a_crop_over_pipelines_of_one_s_own_is_refused(small_settings, crop):
    with pytest.raises(UsageError, match="A crop or a resize beside train_pipeline"):
        pipelines_of(make_config(small_settings, {"crop": crop}))


def test_a_saved_configuration_can_be_varied(finished_run, contest):
    saved = effective(read_contest(contest), crop=[300, 150]).to_plain()
    varied = pipelines_of(make_config(saved, {"crop": [400, 200]}))
    assert varied["train"]["transform"]["transforms"][0]["height"] == 400


def test_a_network_that_cannot_take_the_photos_is_refused_before_anything_starts(contest, small_settings, tmp_path):
    with pytest.raises(
        UsageError, match="inception_v3 cannot take photos 64 high and 32 wide .* whole: --resize 299 299"
    ):
        quiet(read_contest(contest), tmp_path / "run", **{**small_settings, "arch": "inception_v3"})
    assert not (tmp_path / "run").exists()


def test_the_environment_says_which_weights_a_run_starts_from(finished_run):
    environment = json.loads((finished_run.path / "environment.json").read_text())
    assert environment["body"]["initial_weights"] == "random"


def test_an_effective_configuration_is_its_own_effective_configuration(contest):
    table = read_contest(contest)
    once = effective(table, crop=[300, 150], resize=[60, 30], stats="report")
    assert effective_config(table, once) == once


def test_the_age_bounds_are_those_that_the_table_was_read_with(contest):
    table = read_contest(contest, age_bounds=(30, 58))
    assert effective(table).age_bounds == (30, 58)
    assert effective(table).data == str(contest)
    assert effective(table, data="sample").data == "sample"
    with pytest.raises(
        UsageError, match=r"age_bounds is \[30\.0, 59\.0\], but the table was read with \[30\.0, 58\.0\]"
    ):
        effective(table, age_bounds=[30, 59])


@pytest.mark.parametrize(
    "settings", [{"fixes": "fixes.csv"}, {"heads": ["age"]}, {"images": "photos"}, {"score_age_bounds": [30, 59]}]
)
def test_settings_of_reading_must_be_those_that_the_table_was_read_with(contest, settings):
    with pytest.raises(UsageError, match=f"Setting {next(iter(settings))} is .*, but the table was read with"):
        effective(read_contest(contest), **settings)


def table_of_halves(contest):
    """Half of the photos know their mask, the others their gender; none both."""
    table = read_contest(contest)
    frame, even = table.frame.copy(), np.arange(len(table)) % 2 == 0
    frame.loc[even, ["gender"]] = ""
    frame.loc[~even, ["mask"]] = ""
    return replace(table, frame=frame)


def test_a_metric_that_no_photo_of_a_fold_can_be_judged_by_is_not_watched(contest, small_settings, tmp_path):
    table = table_of_halves(contest)
    with pytest.raises(
        UsageError, match="monitor is macro_f1, but no photo of fold 0 has a label of all heads; .* valid_loss"
    ):
        quiet(table, tmp_path / "run", **small_settings)
    run = quiet(table, tmp_path / "run", **{**small_settings, "monitor": "mask_macro_f1", "epochs": 1})
    assert np.isnan(run.score().joint.macro_f1)
    assert run.score().heads["mask"].n == 42
    assert run.scores["optimistic"]["joint"]["macro_f1"] is None


def test_a_configuration_of_a_csv_is_its_own_effective_configuration(contest, tmp_path):
    table = read_contest(contest)
    table.frame.drop(columns="age").rename(columns={"age_value": "age"}).to_csv(tmp_path / "my.csv", index=False)
    bands = {"classes": ["young", "old"], "bounds": [40.0], "train_bounds": [38.0]}
    given = make_config({"heads": {"age": bands, "mask": ["wear", "incorrect", "none"]}, "arch": "test_resnet"})
    read = read_csv(tmp_path / "my.csv", given.to_plain()["heads"], images=table.root)
    once = effective_config(read, given)
    assert once.to_plain()["heads"]["age"] == bands
    assert effective_config(read, make_config(once.to_plain())) == once
    by_name = effective_config(
        read_csv(tmp_path / "my.csv", ["gender"], images=table.root), make_config({"heads": ["gender"]})
    )
    assert by_name.heads == {"gender": ["female", "male"]}
