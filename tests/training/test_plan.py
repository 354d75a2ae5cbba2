import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from sklearn.utils.class_weight import compute_class_weight

from fastmask.api import cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.model.losses import FocalLoss
from fastmask.system.errors import DataError, UsageError
from fastmask.training import plan as plan_module
from fastmask.training.plan import prepare


def quiet(table, out, **settings):
    return cross_validate(table, out=out, log=io.StringIO(), **settings)


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


def test_extra_photos_that_teach_nothing_are_counted_and_refused_where_there_are_no_others(
    contest, small_settings, tmp_path
):
    file = extra_csv(tmp_path, contest)
    rows = ["0.png,a,72,female", "1.png,b,,"]
    (tmp_path / "extra.csv").write_text("\n".join(["path,person,age,gender", *rows]))
    plan = plan_of(contest, small_settings, extra=file)
    assert "1 extra photos to train on (1 that teach nothing left out)" in str(plan)
    (tmp_path / "extra.csv").write_text("\n".join(["path,person,age,gender", rows[1]]))
    with pytest.raises(UsageError, match="No photo of those below .* has a label, and a weight, to learn from"):
        plan_of(contest, small_settings, extra=file)


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


def test_of_a_sampler_of_a_head_its_classes_are_counted(contest, small_settings, tmp_path):
    run = quiet(read_contest(contest), tmp_path / "run", sampler="gender", fold=[0], **small_settings)
    drawn = pd.read_csv(run.path / "fold0" / "drawn.csv")
    assert drawn.columns.tolist() == ["epoch", "male", "female"]
    # whole batches of the photos that the fold trains on
    assert (drawn[["male", "female"]].sum(axis=1) == (run.folds["fold"] != 0).sum() // 16 * 16).all()


def test_a_named_partner_that_a_fold_lacks_is_refused(contest, small_settings):
    table = read_contest(contest)
    person = table.persons[0]
    partner = f"none {' '.join(table.frame.iloc[0][['gender', 'age']])}"
    alone = table.select(np.flatnonzero((table.persons == person) | (table.y[:, 0] != 2)))
    with pytest.raises(UsageError, match=rf"half_partner is '{re.escape(partner)}', of which fold [01] has no photo"):
        prepare(alone, make_config(small_settings, {"half_cutmix": 0.5, "half_partner": partner}))


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # six persons are few
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
