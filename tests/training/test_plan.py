import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from sklearn.utils.class_weight import compute_class_weight

from fastmask.config import make_config
from fastmask.data.augment import REPORT_STATS, augmentations, effective_pipelines, report_pipelines, to_plain
from fastmask.data.contest import read_contest
from fastmask.data.readers import read_csv
from fastmask.errors import DataError, UsageError
from fastmask.model.losses import FocalLoss
from fastmask.training import plan as plan_module
from fastmask.training.crossval import cross_validate
from fastmask.training.plan import effective_config, prepare, resolve_stats


def quiet(table, out, **settings):
    return cross_validate(table, out=out, log=io.StringIO(), **settings)


def effective(table, **settings):
    return effective_config(table, make_config({"arch": "test_resnet", "pretrained": False}, settings))


def pipelines_of(config):
    return effective_pipelines(config, resolve_stats(config))


@pytest.mark.parametrize("setting", [{"focal_gamma": 3}, {"label_smoothing": 0.1}, {"alpha": {"age": [1, 1, 4]}}])
def test_settings_of_the_focal_loss_are_refused_beside_a_loss_of_one_s_own(contest, small_settings, setting):
    with pytest.raises(UsageError, match=f"Setting {next(iter(setting))} is of the focal loss"):
        prepare(read_contest(contest), make_config(small_settings, setting), loss_func=FocalLoss)


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


# --- what a fold trains on ----------------------------------------------------------------------------------------


def plan_of(contest, small_settings, **settings):
    table = read_contest(contest)
    return prepare(table, make_config(small_settings, settings))


def test_dropped_ages_are_validated_and_not_trained_on(contest, small_settings):
    plan = plan_of(contest, small_settings, drop={"age": [[20, 29], [57, 57]]})
    ages = plan.table.frame["age_value"]
    dropped = ages.between(20, 29) | (ages == 57)
    assert 0 < dropped.sum() < len(plan.table)
    for fold in (0, 1):
        dls = plan.learner(fold).dls
        assert len(dls.valid_ds) == (plan.folds == fold).sum()
        expected = [str(plan.table.photo(row)) for row in np.flatnonzero(~dropped & (plan.folds != fold))]
        assert plan.training_set(fold).photos == expected
        assert len(dls.train_ds) == len(expected)
    assert f"{dropped.sum()} of them not trained on" in str(plan)


def test_class_weights_are_of_the_photos_that_a_fold_trains_on(contest, small_settings):
    plan = plan_of(contest, small_settings, class_weight="auto")
    y = plan.table.train_y[plan.folds != 1][:, 0]
    expected = compute_class_weight("balanced", classes=np.unique(y), y=y)
    assert plan.loss(1).alpha0.tolist() == pytest.approx(expected, abs=1e-6)
    named = plan_of(contest, small_settings, alpha={"age": {"60+": 4}})
    assert named.loss().alpha2.tolist() == [1, 1, 4]
    assert named.loss().alpha0 is None


def extra_csv(folder, contest):
    """Two photos of other people, and one of the data's own under another name."""
    table = read_contest(contest)
    for i in range(2):
        Image.new("RGB", (384, 512), (90 * i, 80, 200)).save(folder / f"{i}.png")
    (folder / "2.jpg").write_bytes(table.photo(0).read_bytes())
    (folder / "extra.csv").write_text("path,person,age,gender\n0.png,a,72,female\n1.png,b,,male\n2.jpg,c,20,\n")
    return str(folder / "extra.csv")


def test_extra_photos_train_beside_the_others_but_never_in_the_fold_that_they_leak_into(
    contest, small_settings, tmp_path
):
    plan = plan_of(contest, small_settings, extra=extra_csv(tmp_path, contest), extra_weight=0.5)
    own = plan.folds[0]
    for fold in (0, 1):
        rows = int((plan.folds != fold).sum())
        made = plan.training_set(fold)
        assert len(made) == rows + (2 if fold == own else 3)
        assert made.labels[rows].tolist() == [0, 0, 0, 0, 0.5, 0, 0, 0.5]
        dls = plan.learner(fold).dls
        assert len(dls.train_ds) == len(made)
        assert len(dls.valid_ds) == len(plan.table) - rows
        # decoded once, as the photos of the data
        assert sum(len(kept) for kept in plan.maps) == len(plan.table) + 3
    assert "3 extra photos to train on, 1 of them not in every fold" in str(plan)


def test_a_run_with_extra_photos_goes_on_only_with_the_same(contest, small_settings, tmp_path):
    settings = {**small_settings, "extra": extra_csv(tmp_path, contest), "epochs": 1}
    run = quiet(read_contest(contest), tmp_path / "run", fold=[0], **settings)
    assert len(run.oof) == (run.folds["fold"] == 0).sum()
    assert run.extra["person"].tolist() == ["a", "b", "c"]
    assert run.extra["without"].tolist() == ["", "", str(run.folds["fold"][0])]
    assert set("ab") <= set(run.seen_by(0)["person"])
    quiet(read_contest(contest), tmp_path / "run", resume=True)
    text = (tmp_path / "extra.csv").read_text()
    (tmp_path / "extra.csv").write_text(text.replace("72", "27"))
    with pytest.raises(UsageError, match="another extra photos or labels"):
        quiet(read_contest(contest), tmp_path / "run", resume=True)


def test_extra_photos_must_come_out_in_the_same_size(contest, small_settings, tmp_path):
    file = extra_csv(tmp_path, contest)
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png is 100 high and 100 wide, and the .*pipeline does not fit it"):
        plan_of(contest, small_settings, extra=file)


def test_a_loss_of_ones_own_that_cannot_take_soft_labels_is_refused_where_there_are_some(contest, small_settings):
    class Strict(FocalLoss):
        def forward(self, logits, y):
            if y.is_floating_point():
                raise TypeError("class numbers only")
            return super().forward(logits, y)

    class Blind(FocalLoss):
        def forward(self, logits, y):
            return super().forward(logits, y[:, :3].long())

    table = read_contest(contest)
    with pytest.raises(UsageError, match="Blind cannot take soft labels .of the same labels it gives"):
        prepare(table, make_config(small_settings, {"mixup": 1.0}), Blind)
    prepare(table, make_config(small_settings), Strict)
    with pytest.raises(UsageError, match="Strict cannot take soft labels"):
        prepare(table, make_config(small_settings, {"mixup": 1.0}), Strict)
    with pytest.raises(UsageError, match="label_smoothing is of the focal loss"):
        prepare(table, make_config(small_settings, {"label_smoothing": 0.1}), Strict)


def test_how_often_each_class_was_drawn_is_kept(contest, small_settings, tmp_path):
    run = quiet(read_contest(contest), tmp_path / "run", sampler="joint", fold=[0], **small_settings)
    drawn = pd.read_csv(run.path / "fold0" / "drawn.csv")
    assert drawn["epoch"].tolist() == [0, 1]
    counts = drawn.drop(columns="epoch")
    y = run.y[(run.folds["fold"] != 0).to_numpy()]
    assert set(counts.columns) == {run.heads.joint_name(c) for c in np.unique(run.heads.joint(y))}
    # as many as a pass has in whole batches, of each class about alike
    assert counts.sum(1).tolist() == [len(y) // 16 * 16] * 2
    expected = counts.to_numpy().sum() / counts.shape[1]
    assert chisquare(counts.sum()).pvalue > 1e-4
    assert expected > 4


@pytest.mark.filterwarnings("ignore::fastmask.errors.FastmaskWarning")  # six persons are few
def test_weights_of_a_run_that_has_seen_a_person_as_an_extra_photo_are_refused(contest, small_settings, tmp_path):
    file = extra_csv(tmp_path, contest)
    table = read_contest(contest)
    run = quiet(table.select(range(42)), tmp_path / "first", extra=file, **{**small_settings, "epochs": 1})
    renamed = replace(table, frame=table.frame.assign(person=table.frame["person"].replace(table.persons[42], "a")))
    late = renamed.select(range(42, 84))
    with pytest.raises(UsageError, match=r"judged on person a, which the weights of .* were trained on"):
        quiet(late, tmp_path / "second", weights=str(run.path), **{**small_settings, "pretrained": False})


def test_a_balanced_sampler_and_balanced_weights_do_not_balance_twice(contest, small_settings):
    plan = plan_of(contest, small_settings, class_weight="auto", sampler="gender")
    assert plan.loss(0).alpha1.tolist() == pytest.approx([1, 1], abs=1e-3)
