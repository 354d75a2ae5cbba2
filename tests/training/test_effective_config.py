from dataclasses import replace

import numpy as np
import pytest

from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.readers import read_csv
from fastmask.system.errors import UsageError
from fastmask.training.effective_config import describe_split, effective_config, resolve_folds, resolve_loss


def effective(table, **settings):
    return effective_config(table, make_config({"arch": "test_resnet", "pretrained": False}, settings))


def test_the_settings_that_the_table_was_read_with_are_kept_in_the_run(contest):
    config = effective(read_contest(contest))
    assert config.data == str(contest)
    assert make_config(config.to_plain()) == config


def test_an_effective_configuration_is_its_own_effective_configuration(contest):
    table = read_contest(contest)
    once = effective(table, crop=[300, 150], resize=[60, 30], stats="report")
    assert effective_config(table, once) == once


def test_photos_of_any_size_get_the_size_that_suits_the_body(contest, tmp_path):
    table = read_contest(contest)
    table.frame.to_csv(tmp_path / "my.csv", index=False)
    other = read_csv(tmp_path / "my.csv", ["mask"], images=table.root)
    assert (effective(other).fit, effective(other).resize) == ("pad", (160, 160))  # timm's for test_resnet
    assert effective(other, arch="tf_efficientnet_b4").resize == (380, 380)
    assert effective(other, resize=[64, 32]).resize == (64, 32)
    assert (effective(table).fit, effective(table).resize) == ("contest", None)
    assert effective_config(other, effective(other)) == effective(other)


def test_the_age_bounds_are_those_that_the_table_was_read_with(contest):
    table = read_contest(contest, age_bounds=(30, 58))
    assert effective(table).age_bounds == (30, 58)
    assert effective(table).data == str(contest)
    assert effective(table, data="sample").data == "sample"
    with pytest.raises(
        UsageError, match=r"age_bounds is \[30\.0, 59\.0\], but the table was read with \[30\.0, 58\.0\]"
    ):
        effective(table, age_bounds=[30, 59])


def test_the_run_has_timm_s_name_of_an_arch_in_another_spelling(contest):
    for given in ("hf-hub:timm/test_resnet", "Test-ResNet"):
        assert effective(read_contest(contest), arch=given).arch == "test_resnet"


@pytest.mark.parametrize(
    "settings", [{"fixes": "fixes.csv"}, {"heads": ["age"]}, {"images": "photos"}, {"score_age_bounds": [30, 59]}]
)
def test_settings_of_reading_must_be_those_that_the_table_was_read_with(contest, settings):
    with pytest.raises(UsageError, match=f"Setting {next(iter(settings))} is .*, but the table was read with"):
        effective(read_contest(contest), **settings)


def test_a_configuration_of_a_csv_is_its_own_effective_configuration(contest, tmp_path):
    table = read_contest(contest)
    table.frame.drop(columns="age").rename(columns={"age_value": "age"}).to_csv(tmp_path / "my.csv", index=False)
    bands = {"classes": ["young", "old"], "bounds": [40.0], "train_bounds": [38.0]}
    given = make_config({"heads": {"age": bands, "mask": ["wear", "incorrect", "none"]}, "arch": "test_resnet"})
    read = read_csv(tmp_path / "my.csv", given.to_plain()["heads"], images=table.root)
    once = effective_config(read, given)
    assert once.to_plain()["heads"]["age"] == {**bands, "limits": None}
    assert effective_config(read, make_config(once.to_plain())) == once
    by_name = effective_config(
        read_csv(tmp_path / "my.csv", ["gender"], images=table.root), make_config({"heads": ["gender"]})
    )
    assert by_name.heads == {"gender": ["female", "male"]}


def test_a_metric_without_labels_in_a_fold_cannot_be_monitored(table, train, tmp_path):
    """Half of the photos have a mask, the others a gender; none has both."""
    frame, even = table.frame.copy(), np.arange(len(table)) % 2 == 0
    frame.loc[even, ["gender"]] = ""
    frame.loc[~even, ["mask"]] = ""
    table = replace(table, frame=frame)
    with pytest.raises(
        UsageError, match="monitor is macro_f1, but no photo of fold 0 has a label of all heads; .* valid_loss"
    ):
        train(tmp_path / "run", table)
    run = train(tmp_path / "run", table, monitor="mask_macro_f1", epochs=1)
    assert np.isnan(run.score().joint.macro_f1)
    assert run.score().heads["mask"].n == 42
    assert run.scores["optimistic"]["joint"]["macro_f1"] is None


@pytest.mark.parametrize("setting", [{"focal_gamma": 3}, {"label_smoothing": 0.1}, {"alpha": {"age": [1, 1, 4]}}])
def test_settings_of_the_focal_loss_are_refused_with_a_custom_loss(setting):
    with pytest.raises(UsageError, match=f"Setting {next(iter(setting))} belongs to the focal loss"):
        resolve_loss(make_config(setting), custom=True)
    assert resolve_loss(make_config(setting), custom=False).loss == "focal"


def test_the_split_of_the_data_is_used_unless_folds_are_given(contest):
    table = read_contest(contest)
    validated = table.persons == table.persons[0]
    split = replace(table, frame=table.frame.assign(fold=np.where(validated, 0, -1)))
    config, folds = resolve_folds(split, make_config())
    assert (config.folds, folds.tolist()) == (1, split.frame["fold"].tolist())
    assert describe_split(split, config).startswith("train is trained on and val is validated")
    config, folds = resolve_folds(split, make_config({"folds": 2}))
    assert (config.folds, set(folds)) == (2, {0, 1})
    assert describe_split(split, config).startswith("train and val are cross-validated together")
    assert describe_split(table, make_config()) == ""
