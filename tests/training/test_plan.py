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
from fastmask.data.readers import read_data
from fastmask.model.losses import FocalLoss
from fastmask.scoring import score_heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.training import setup
from fastmask.training.budget import replan
from fastmask.training.description import describe_plan


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"folds": 13}, UsageError, "only 12 persons"),
        ({"arch": "resnet1000"}, UsageError, "no arch 'resnet1000'; the nearest are .*resnet101"),
        ({"monitor": "f1"}, UsageError, "no metric 'f1' to monitor; expected one of valid_loss, macro_f1"),
        ({"head_weights": {"hat": 1}}, UsageError, "no head 'hat'"),
        ({"alpha": {"age": [1.0]}}, UsageError, "of head age has 1 numbers for 3 classes"),
        ({"stratify": "hat"}, UsageError, "stratify names the head hat, and the heads are mask, gender, age; set"),
        ({"weights": "nowhere.pth"}, UsageError, "does not exist"),
        ({"device": "abacus"}, UsageError, "Device 'abacus'"),
        pytest.param(
            {"arch": "inception_v3"},
            UsageError,
            "inception_v3 cannot take photos 64 high and 32 wide .* whole: --resize 299 299",
            marks=pytest.mark.slow,
        ),
        (
            {"crop": (600, 200), "train_pipeline": None, "valid_pipeline": None},
            DataError,
            r"\w+\.\w+ is 512 high and 384 wide, and the pipeline does not fit",
        ),
    ],
)
def test_what_cannot_work_is_reported_before_a_directory_is_made(train, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_table_with_a_photo_twice_is_decoded_once(table, plan_of):
    assert plan_of(table.select([*range(len(table)), *range(len(table))])).size == (64, 32)


def test_half_precision_that_the_machine_gets_wrong_is_refused_before_training(train, tmp_path, wrong_bf16):
    with pytest.raises(UsageError, match="This CPU computes bf16 wrongly: .*; take --precision fp32"):
        train(tmp_path / "run", precision="bf16")
    assert not (tmp_path / "run").exists()


def test_where_the_default_is_such_a_precision_fp32_is_used(plan_of, monkeypatch, wrong_bf16):
    # as on a GPU
    monkeypatch.setattr(setup, "resolve_precision", lambda *_: "bf16")
    with pytest.warns(FastmaskWarning, match="computes bf16 wrongly: .*; fp32 is used"):
        plan = plan_of(precision="auto")
    assert plan.config.precision == "fp32"
    assert "precision" not in plan.learner(0).cbs.attrgot("name")


@pytest.mark.parametrize("asked", [True, False])
def test_compile_compiles_the_body_in_place(plan_of, asked, monkeypatch):
    compiled = []
    monkeypatch.setattr(setup, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    plan_of(compile=asked).learner(0)
    assert compiled == (["ResNet"] if asked else [])


def test_dropped_ages_are_validated_and_not_trained_on(plan_of):
    plan = plan_of(drop={"age": [[20, 29], [57, 57]]})
    ages = plan.table.frame["age_value"]
    dropped = ages.between(20, 29) | (ages == 57)
    assert 0 < dropped.sum() < len(plan.table)
    for fold in (0, 1):
        dls = plan.learner(fold).dls
        assert len(dls.valid_ds) == (plan.folds == fold).sum()
        expected = [str(plan.table.photo(row)) for row in np.flatnonzero(~dropped & (plan.folds != fold))]
        assert plan.training_set(fold).photos == expected
        assert len(dls.train_ds) == len(expected)
    assert f"{dropped.sum()} of them not trained on" in describe_plan(plan)


def test_class_weights_are_of_the_photos_that_a_fold_trains_on(plan_of):
    plan = plan_of(class_weight="auto")
    y = plan.table.train_y[plan.folds != 1][:, 0]
    expected = compute_class_weight("balanced", classes=np.unique(y), y=y)
    assert plan.loss(1).losses[0].alpha.tolist() == pytest.approx(expected, abs=1e-6)
    named = plan_of(alpha={"age": {"60+": 4}})
    assert named.loss().losses[2].alpha.tolist() == [1, 1, 4]
    assert named.loss().losses[0].alpha is None


def extra_csv(folder, contest):
    """Two photos of other people, and one of the data under another name."""
    table = read_contest(contest)
    for i in range(2):
        Image.new("RGB", (384, 512), (90 * i, 80, 200)).save(folder / f"{i}.png")
    (folder / "2.jpg").write_bytes(table.photo(0).read_bytes())
    (folder / "extra.csv").write_text("path,person,age,gender\n0.png,a,72,female\n1.png,b,,male\n2.jpg,c,20,\n")
    return str(folder / "extra.csv")


def test_extra_photos_are_trained_on_but_never_in_the_fold_that_they_leak_into(contest, plan_of, tmp_path):
    plan = plan_of(extra=extra_csv(tmp_path, contest), extra_weight=0.5)
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
    assert "3 extra photos to train on, 1 of them not in every fold" in describe_plan(plan)


def test_extra_photos_without_labels_are_counted_and_refused_where_there_are_no_others(contest, plan_of, tmp_path):
    file = extra_csv(tmp_path, contest)
    rows = ["0.png,a,72,female", "1.png,b,,"]
    (tmp_path / "extra.csv").write_text("\n".join(["path,person,age,gender", *rows]))
    plan = plan_of(extra=file)
    assert "1 extra photos to train on (1 without labels left out)" in describe_plan(plan)
    (tmp_path / "extra.csv").write_text("\n".join(["path,person,age,gender", rows[1]]))
    with pytest.raises(UsageError, match="No photo of those below .* has a label, and a weight, to learn from"):
        plan_of(extra=file)


def test_a_run_with_extra_photos_resumes_only_with_the_same(contest, train, table, tmp_path):
    settings = {"extra": extra_csv(tmp_path, contest), "epochs": 1}
    run = train(tmp_path / "run", fold=[0], **settings)
    assert len(run.oof) == (run.folds["fold"] == 0).sum()
    assert run.extra["person"].tolist() == ["a", "b", "c"]
    assert run.extra["without"].tolist() == ["", "", str(run.folds["fold"][0])]
    assert set("ab") <= set(run.seen_by(0)["person"])
    # with the file that the run names
    cross_validate(table, out=tmp_path / "run", resume=True, log=io.StringIO())
    text = (tmp_path / "extra.csv").read_text()
    (tmp_path / "extra.csv").write_text(text.replace("72", "27"))
    with pytest.raises(UsageError, match="another extra photos or labels"):
        train(tmp_path / "run", resume=True, **settings)


def test_extra_photos_must_have_the_same_size_after_augmentation(contest, plan_of, tmp_path):
    file = extra_csv(tmp_path, contest)
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png is 100 high and 100 wide, and the .*pipeline does not fit it"):
        plan_of(extra=file)


def test_a_custom_loss_that_cannot_take_soft_labels_is_refused_where_there_are_some(plan_of):
    class Strict(FocalLoss):
        def forward(self, logits, y):
            if y.is_floating_point():
                raise TypeError("class numbers only")
            return super().forward(logits, y)

    class Blind(FocalLoss):
        def forward(self, logits, y):
            return super().forward(logits, y[:, :3].long())

    with pytest.raises(UsageError, match="Blind cannot take soft labels .of the same labels it gives"):
        plan_of(loss_func=Blind, mixup=1.0)
    plan_of(loss_func=Strict)
    with pytest.raises(UsageError, match="Strict cannot take soft labels"):
        plan_of(loss_func=Strict, mixup=1.0)
    with pytest.raises(UsageError, match="label_smoothing belongs to the focal loss"):
        plan_of(loss_func=Strict, label_smoothing=0.1)
    with pytest.raises(UsageError, match=r"per_head age.loss has no effect with a custom loss"):
        plan_of(loss_func=Strict, per_head={"age": {"loss": "coral"}})
    plan = plan_of(loss_func=Strict, per_head={"age": {"hidden": 4}})
    assert "age (<30, 30-59, 60+; hidden 4);" in describe_plan(plan)


def test_how_often_each_class_was_drawn_is_saved(train, tmp_path):
    run = train(tmp_path / "run", sampler="joint", fold=[0], epochs=3)
    drawn = pd.read_csv(run.path / "fold0" / "drawn.csv")
    assert drawn["epoch"].tolist() == [0, 1, 2]
    counts = drawn.drop(columns="epoch")
    y = run.y[(run.folds["fold"] != 0).to_numpy()]
    assert set(counts.columns) == {run.heads.joint_name(c) for c in np.unique(run.heads.joint(y))}
    # as many as the whole batches of a pass have, and about the same number of each class
    assert counts.sum(1).tolist() == [len(y) // 16 * 16] * 3
    expected = counts.to_numpy().sum() / counts.shape[1]
    assert chisquare(counts.sum()).pvalue > 1e-4
    assert expected > 4


def test_with_a_head_s_sampler_its_classes_are_counted(train, tmp_path):
    run = train(tmp_path / "run", sampler="gender", fold=[0], epochs=1)
    drawn = pd.read_csv(run.path / "fold0" / "drawn.csv")
    assert drawn.columns.tolist() == ["epoch", "male", "female"]
    assert (drawn[["male", "female"]].sum(axis=1) == (run.folds["fold"] != 0).sum() // 16 * 16).all()


def test_a_half_partner_that_a_fold_lacks_is_refused(table, plan_of):
    person = table.persons[0]
    partner = f"none {' '.join(table.frame.iloc[0][['gender', 'age']])}"
    alone = table.select(np.flatnonzero((table.persons == person) | (table.y[:, 0] != 2)))
    message = rf"half_partner names '{re.escape(partner)}', but fold [01] has no photo of it"
    with pytest.raises(UsageError, match=message):
        plan_of(alone, half_cutmix=0.5, half_partner=partner, stratify="gender")
    with pytest.raises(UsageError, match=message.replace("half_partner", "mix_classes")):
        plan_of(alone, half_cutmix=0.5, mix_classes=["gender.male", partner], stratify="gender")


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # six persons are few
def test_weights_of_a_run_that_has_seen_a_person_as_an_extra_photo_are_refused(
    contest, train, plan_of, table, tmp_path
):
    run = train(tmp_path / "first", table.select(range(42)), extra=extra_csv(tmp_path, contest), epochs=1)
    renamed = replace(table, frame=table.frame.assign(person=table.frame["person"].replace(table.persons[42], "a")))
    with pytest.raises(UsageError, match=r"validated on person a, which the weights .*first/fold0"):
        plan_of(renamed.select(range(42, 84)), weights=str(run.path))


def test_a_balanced_sampler_and_balanced_weights_do_not_balance_twice(plan_of):
    plan = plan_of(class_weight="auto", sampler="gender")
    assert plan.loss(0).losses[1].alpha.tolist() == pytest.approx([1, 1], abs=1e-3)


@pytest.fixture
def copied(contest_copy):
    """The contest, person 9 with a photo of person 0."""
    table = read_contest(contest_copy)
    table.photo(65).write_bytes(table.photo(2).read_bytes())
    return table


def test_persons_who_share_a_photo_are_in_one_fold_whatever_the_seed(copied, plan_of, table):
    one, other = copied.persons[0], copied.persons[65]
    of_one, of_other = copied.persons == one, copied.persons == other
    apart = 0
    for seed in range(4):
        plan = plan_of(copied, seed=seed)
        assert set(plan.folds[of_one]) == set(plan.folds[of_other])
        frame = plan.folds_frame
        assert set(frame["same_as"][of_other]) == {one}
        assert (frame["same_as"] == frame["person"]).sum() == len(frame) - 7
        assert frame["person"].tolist() == copied.persons.tolist()
        said = f"2 persons share identical photos with others, such as {other} with {one}, and are in one fold"
        assert said in describe_plan(plan)
        plain = plan_of(seed=seed)
        assert "same_as" not in plain.folds_frame
        assert "identical" not in str(plain)
        apart += int(set(plain.folds[of_one]) != set(plain.folds[of_other]))
    assert apart > 0


def test_folds_that_are_dealt_again_warn_once(copied, plan_of):
    with pytest.warns(FastmaskWarning) as warned:
        plan_of(copied, folds=6, stratify="joint")
    assert sum(str(each.message).startswith("Classes with fewer persons") for each in warned) == 1


def test_a_file_of_folds_that_separates_identical_photos_is_refused(copied, plan_of, tmp_path):
    plan = plan_of(copied)
    file = tmp_path / "folds.csv"
    frame = plan.folds_frame
    frame.to_csv(file, index=False)
    assert plan_of(copied, folds_file=str(file)).folds.tolist() == plan.folds.tolist()
    frame["fold"] = frame["fold"].where(frame["person"] != copied.persons[65], 1 - frame["fold"])
    frame.to_csv(file, index=False)
    paths = copied.frame["path"]
    with pytest.raises(UsageError, match=f"{paths[2]} and {paths[65]} are identical, .* give both persons the same"):
        plan_of(copied, folds_file=str(file))
    # the leaky split is asked for
    assert "same_as" not in plan_of(copied, folds_file=str(file), group="none").folds_frame
    with pytest.warns(FastmaskWarning, match="--group none"):
        assert "share identical" not in describe_plan(plan_of(copied, group="none"))


def test_a_fixed_split_does_not_train_on_copies_of_validated_photos(copied, plan_of):
    folds = np.where(copied.persons == copied.persons[0], 0, -1)
    split = replace(copied, frame=copied.frame.assign(fold=folds))
    # photo 65 of person 9 is photo 2 of person 0
    own, paths = copied.persons == copied.persons[65], copied.frame["path"]
    with pytest.warns(FastmaskWarning, match=f"7 photos to train on will be left out, such as {paths[63]}: identical"):
        plan = plan_of(split, folds=1)
    assert plan.table.frame["path"].tolist() == paths[~own].tolist()
    assert plan.folds.tolist() == folds[~own].tolist()
    assert len(plan.digests) == 77
    assert [path for path, _ in plan.skipped] == paths[own].tolist()
    assert plan_of(split, folds=2).config.folds == 2


def test_identical_photos_are_found_where_others_cannot_be_read(copied, plan_of):
    copied.photo(30).write_bytes(b"broken")
    plan = plan_of(copied, on_bad_photo="skip")
    assert len(plan.digests) == len(plan.table) == len(plan.folds) == 83
    assert plan.table.groups[64] == copied.persons[0]
    assert plan.folds[64] == plan.folds[0]


def test_a_class_of_which_no_photo_can_be_read_is_named(copied, plan_of):
    genders = copied.frame["gender"]
    for row in np.flatnonzero(genders == "female"):
        copied.photo(row).write_bytes(b"broken")
    lost = int((genders == "female").sum())
    with pytest.warns(
        FastmaskWarning, match=f"^{lost} of 84 photos cannot be read .* among them all of gender female: rest"
    ):
        plan = plan_of(copied, on_bad_photo="skip")
    assert len(plan.skipped) == lost


def test_identical_photos_with_other_labels_are_said(copied, plan_of):
    assert "photos are identical to others with another label, such as " in describe_plan(plan_of(copied))


def test_a_recipe_s_settings_that_do_not_fit_the_data_name_the_recipe(plan_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="boxes of recipe winner: boxes.csv is not a file; .*faces .*--set boxes=null"):
        plan_of(boxes="boxes.csv")
    with pytest.raises(UsageError, match="Setting boxes: mine.csv is not a file; expected a CSV with the col"):
        plan_of(boxes="mine.csv")


def test_fewer_folds_for_the_hours_left_keep_identical_photos_together(copied, plan_of):
    for seed in range(4):
        shorter = replan(plan_of(copied, folds=3, seed=seed, stratify="gender"), 1, 2)
        assert len({*shorter.folds[:7], *shorter.folds[63:70]}) == 1


@pytest.mark.slow
def test_the_run_says_who_shares_photos_and_draws_them_together(copied, train, tmp_path):
    run = train(tmp_path / "run", copied, epochs=1)
    one, other = copied.persons[0], copied.persons[65]
    note = f"2 persons share identical photos with others, such as {other} with {one}, and are in one fold with them."
    assert note in run.scores["notes"]
    assert note in str(run.score())
    assert run.caveats == []
    assert len(set(run.groups)) == 11
    # independently: the bootstrap over persons of which two have one name
    named = np.where(run.persons == other, one, run.persons)
    expected = score_heads(run.heads, run.predicted, run.true, named, 200, run.classes)
    assert run.score(200).joint.macro_f1_interval == expected.joint.macro_f1_interval
    resumed = train(tmp_path / "run", copied, epochs=1, resume=True)
    assert resumed.oof.equals(run.oof)
    # a run of an earlier version
    file = run.path / "folds.csv"
    pd.read_csv(file, dtype=str).drop(columns="same_as").to_csv(file, index=False)
    with pytest.raises(UsageError, match="of a person with photos identical to another's, which the run does not"):
        train(tmp_path / "run", copied, epochs=1, resume=True)


def test_an_epoch_has_some_photos_per_person(train, plan_of, tmp_path):
    plan = plan_of(per_person={"mask.wear": 1}, bs=8)
    # of six persons three photos each: a worn one, and both others
    assert plan.count_trained() == [18, 18]
    assert "18 photos per epoch" in describe_plan(plan)
    assert len(plan.training_set(0)) == 42
    run = train(tmp_path / "run", per_person={"mask.wear": 1}, bs=6, fold=[0], epochs=3)
    drawn = pd.read_csv(run.path / "fold0" / "drawn.csv").drop(columns="epoch")
    masks = drawn.T.groupby(lambda name: name.split()[0]).sum()
    assert masks.to_numpy().tolist() == [[6] * 3] * 3


def test_persons_of_extra_photos_are_those_of_the_data(contest, plan_of, table, tmp_path):
    file = extra_csv(tmp_path, contest)
    plan = plan_of(extra=file, per_person=1)
    persons = {*table.persons[plan.folds != 0], *plan.extras[0].table.persons[plan.extras[0].trained_rows(0)]}
    assert plan.training_set(0).photos_per_epoch == len(persons)


def test_weights_of_classes_are_by_the_photos_of_an_epoch(plan_of):
    plan = plan_of(class_weight="auto", per_person={"mask.wear": 1})
    assert plan.loss(0).losses[0].alpha.tolist() == pytest.approx([1, 1, 1], abs=1e-3)


def weighted(table, folder):
    """The table as a CSV with a column of draw weights, and photos for training only with one of their own."""
    weights = np.where(np.arange(len(table)) % 5 == 0, 8.0, 0.5)
    frame = table.frame[["path", "person", "gender"]].assign(often=weights)
    frame.to_csv(folder / "my.csv", index=False)
    extra = pd.DataFrame({"path": ["0.png", "1.png"], "person": ["x", "y"], "gender": "male", "often": [4, 1]})
    extra.to_csv(folder / "extra.csv", index=False)
    for i in range(2):
        Image.new("RGB", (384, 512), (90 * i, 80, 200)).save(folder / f"{i}.png")
    return {"data": str(folder / "my.csv"), "images": str(table.root), "draw_weights": "often"}, weights


def test_photos_are_drawn_by_a_column_of_the_data(table, train, plan_of, tmp_path):
    given, weights = weighted(table, tmp_path)
    read = read_data(make_config(given))
    plan = plan_of(read, draw_weights="often", monitor="valid_loss", extra=str(tmp_path / "extra.csv"))
    rows = plan.folds != 0
    expected = np.concatenate([weights[rows], [4, 1]])
    assert plan.training_set(0).sampler.expected() == pytest.approx(expected / expected.sum() * len(expected))
    run = train(tmp_path / "run", read, draw_weights="often", epochs=1, fold=[0], monitor="valid_loss")
    assert pd.read_csv(run.path / "fold0" / "drawn.csv").columns.tolist() == ["epoch", "female", "male"]
    assert run.folds["often"].tolist() == weights.tolist()
    # other weights are another run
    frame = pd.read_csv(given["data"])
    frame.assign(often=frame["often"] + 1).to_csv(given["data"], index=False)
    other = read_data(make_config(given))
    with pytest.raises(UsageError, match="83 more are of another person, label or draw weight"):
        train(tmp_path / "run", other, draw_weights="often", epochs=1, fold=[0], monitor="valid_loss", resume=True)
    with pytest.raises(UsageError, match="names the column 'often', which the table does not have"):
        plan_of(draw_weights="often")


def test_other_versions_of_photos_have_their_persons_and_their_draw_weights(table, plan_of, tmp_path):
    given, weights = weighted(table, tmp_path)
    for path in table.frame["path"]:
        (tmp_path / "also" / path).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(table.root / path) as photo:
            photo.rotate(180).save(tmp_path / "also" / path)
    settings = {"draw_weights": "often", "images_also": str(tmp_path / "also"), "monitor": "valid_loss"}
    plan = plan_of(read_data(make_config(given)), per_person=2, **settings)
    train = plan.training_set(0)
    rows = weights[plan.folds != 0]
    assert (len(train), train.photos_per_epoch) == (84, 12)
    assert train.sampler.weights.tolist() == [*rows, *rows]


def test_photos_are_drawn_by_the_weights_of_classes_next_to_balanced_ones(plan_of):
    plan = plan_of(draw_weights={"mask.incorrect": 3}, sampler="mask", class_weight="auto")
    train = plan.training_set(0)
    often = train.sampler.expected()
    assert [often[train.labels[:, 0] == code].sum() for code in range(3)] == pytest.approx([42 / 5, 42 * 3 / 5, 42 / 5])
    assert plan.loss(0).losses[0].alpha.tolist() == pytest.approx([5 / 3, 5 / 9, 5 / 3], abs=1e-3)


def test_a_decision_that_cannot_be_fitted_is_refused_before_training(plan_of, table):
    half = np.arange(len(table)) % 2 == 0
    frame = table.frame.assign(mask=table.frame["mask"].where(half, ""), gender=table.frame["gender"].where(~half, ""))
    with pytest.raises(UsageError, match="No photo has a label of every head, which the decision f1 is fitted on"):
        plan_of(replace(table, frame=frame), decision="f1", monitor="valid_loss", stratify="age")
    with pytest.raises(UsageError, match="Setting decision: found 'best', expected plain, calibrated or f1"):
        plan_of(decision="best")
    assert "classes by the decision f1" in describe_plan(plan_of(decision="f1"))
