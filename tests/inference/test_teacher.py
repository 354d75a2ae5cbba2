"""Distillation: the soft labels of a student, compared with plain PyTorch, without leaks from the judged fold."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from trained_runs import predict_by_hand, scale_weights

from fastmask.api import Run, blend_runs, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.seen import Validation
from fastmask.heads import Head, Heads
from fastmask.inference.blend import fit_blend
from fastmask.inference.teacher import Teacher, open_teacher
from fastmask.model.losses import FocalLoss
from fastmask.run.lineage import lineage_of
from fastmask.system.errors import DataError, UsageError
from fastmask.training.crossval import add_soft_labels
from fastmask.training.learner import check_soft
from fastmask.training.setup import prepare


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


def student(table, small_settings, teacher, **settings):
    config = make_config({**small_settings, "teacher": str(teacher), **settings})
    return prepare(table, config, open_teacher=open_teacher)


def quietly(_):
    pass


def forward(run, fold, table):
    return predict_by_hand(run, [table.photo(row) for row in range(len(table))], fold)


def one_hot(table):
    return np.concatenate(
        [np.eye(len(head.classes))[y] for head, y in zip(table.heads, table.train_y.T, strict=True)], axis=1
    )


def test_a_fold_learns_from_labels_and_the_network_of_the_same_fold(table, small_settings, finished_run):
    plan = student(table, small_settings, finished_run.path, teacher_weight=0.25)
    plan = plan.soften_labels(plan.teacher.predict(plan, quietly))
    for fold in (0, 1):
        rows = plan.folds != fold
        expected = (0.75 * one_hot(table) + 0.25 * forward(finished_run, fold, table))[rows]
        train = plan.training_set(fold)
        assert train.photos == [str(table.photo(row)) for row in np.flatnonzero(rows)]
        np.testing.assert_allclose(train.labels, expected, atol=1e-5)
        # labels that are scored are the table's own
        assert len(plan.learner(fold).dls.valid_ds) == (~rows).sum()
    both = np.mean([forward(finished_run, fold, table) for fold in (0, 1)], axis=0)
    np.testing.assert_allclose(plan.training_set(0, whole=True).labels, 0.75 * one_hot(table) + 0.25 * both, atol=1e-5)


def test_no_fold_learns_from_the_network_of_another(table, small_settings, finished_run, run_copy):
    """Another network in fold 1 of the teacher changes the labels of fold 1, and not a bit of those of fold 0."""
    plan = student(table, small_settings, finished_run.path)
    before = plan.teacher.predict(plan, quietly)
    scale_weights(Run.load(run_copy).checkpoints(1)[0], 1.1)
    swapped = student(table, small_settings, run_copy)
    after = swapped.teacher.predict(swapped, quietly)
    assert np.array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1])
    assert swapped.environment["start"]["teacher"] != plan.environment["start"]["teacher"]


def test_labels_that_are_unknown_and_heads_that_the_teacher_lacks(finished_run):
    heads = Heads([Head("mask", ("wear", "incorrect", "normal")), Head("hat", ("no", "yes"))])
    theirs = Heads([finished_run.heads["gender"], Head("mask", ("wear", "incorrect", "normal"))])
    teacher = Teacher(replace(finished_run, heads=theirs), {}, weight=0.5, temperature=1)
    own = np.array([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0]], np.float32)
    answers = np.array([[0.9, 0.1, 0.2, 0.2, 0.6], [0.9, 0.1, 0.5, 0.3, 0.2]], np.float32)
    mixed = teacher.mix(own, answers, heads)
    np.testing.assert_allclose(mixed, [[0.1, 0.6, 0.3, 0, 1], [0.5, 0.3, 0.2, 1, 0]], atol=1e-6)
    assert own[0].tolist() == [0, 1, 0, 0, 1]
    # the two parts, for a loss at a temperature
    parts = replace(teacher, temperature=4).mix(own, answers, heads)
    np.testing.assert_allclose(parts[:, 0], [[0, 0.5, 0, 0, 1], [0, 0, 0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(parts[:, 1], [[0.1, 0.1, 0.3, 0, 0], [0.5, 0.3, 0.2, 0, 0]], atol=1e-6)


@pytest.mark.slow
def test_a_student_trains_and_resumes_with_the_same_soft_labels(
    table, small_settings, run_copy, finished_run, tmp_path
):
    out, given = tmp_path / "student", {**small_settings, "epochs": 1, "teacher": str(run_copy), "refit": 1}
    run = cross_validate(table, out=out, log=io.StringIO(), **given)
    assert run.refitted == [0, 1]
    assert not run.oof.equals(finished_run.oof)
    assert "Each fold learned from a teacher's epoch chosen by its own photos (--teacher)" in str(run.score())
    plan = student(table, given, run_copy)
    answers = load_file(out / "teacher.safetensors")["answers"]
    assert np.array_equal(answers, plan.teacher.predict(plan, quietly))
    # saved with the run, and not predicted again
    save_file({"answers": answers[:, ::-1].copy()}, out / "teacher.safetensors")
    expected = plan.teacher.mix(one_hot(table), answers[0, ::-1], table.heads)
    assert np.array_equal(add_soft_labels(plan, run, quietly).soft_labels[0], expected)
    save_file({"answers": answers[:, 1:].copy()}, out / "teacher.safetensors")
    with pytest.raises(DataError, match=r"teacher.safetensors does not hold the teacher's probabilities"):
        add_soft_labels(plan, run, quietly)
    scale_weights(Run.load(run_copy).checkpoints(0)[0], 2)
    with pytest.raises(UsageError, match="started with another teacher than there is now"):
        cross_validate(table, out=out, resume=True, log=io.StringIO())


def test_a_fold_at_a_temperature_starts_with_the_loss_of_hinton(table, small_settings, finished_run):
    given = {**small_settings, "teacher_temperature": 4.0, "teacher_weight": 0.7, "loss": "ce"}
    plan = student(table, given, finished_run.path)
    plan = plan.soften_labels(plan.teacher.predict(plan, quietly))
    train, theirs = plan.training_set(0), forward(finished_run, 0, table)[plan.folds != 0]
    assert (
        train.classes(table.heads).tolist()
        == table.heads.argmax(0.3 * one_hot(table)[plan.folds != 0] + 0.7 * theirs).tolist()
    )
    learn = plan.learner(0)
    x, y = learn.dls.train.one_batch()
    rows = [train.photos.index(photo) for photo in learn.dls.train.photos_of(0)]
    logits = learn.model.train()(x)
    expected = 0
    for i in range(len(table.heads)):
        part = table.heads.split(logits)[i]
        teacher = torch.from_numpy(table.heads.split(theirs)[i][rows]).float()
        softened = (teacher.log() / 4).softmax(1)
        expected += 0.3 * F.cross_entropy(part, torch.from_numpy(table.train_y[plan.folds != 0][rows, i]))
        expected += 0.7 * 16 * F.kl_div((part / 4).log_softmax(1), softened, reduction="batchmean")
    torch.testing.assert_close(learn.loss_func(logits, y), expected, atol=1e-4, rtol=1e-4)
    names = learn.dls.train.decode_batch((x, y))[0][1]
    assert tuple(names) == table.heads.decode(train.classes(table.heads)[rows[0]])


@pytest.mark.slow
def test_a_temperature_with_all_that_changes_labels(table, small_settings, finished_run, tmp_path):
    extra = tmp_path / "extra.csv"
    extra.write_text(f"path,person,gender\n{table.frame['path'][0]},new,male\n")
    given = {
        **small_settings,
        "teacher": str(finished_run.path),
        "teacher_temperature": 4.0,
        "extra": str(extra),
        "extra_images": str(table.root),
        "mixup": 0.4,
        "half_cutmix": 0.5,
        "half_partner": "any",
        "sampler": "joint",
        "class_weight": "auto",
        "f1_share": 0.3,
        "label_smoothing": 0.1,
        "on_bad_photo": "skip",
        "epochs": 1,
        "refit": 1,
    }
    run = cross_validate(table, out=tmp_path / "all", log=io.StringIO(), **given)
    assert run.refitted == [0, 1]
    assert np.isfinite(run.probabilities).all()
    # an extra photo has only a label of its own
    plan = student(table, given, finished_run.path)
    plan = plan.soften_labels(plan.teacher.predict(plan, quietly))
    last = plan.training_set(1 - plan.folds[0]).labels[-1]
    assert last.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]
    with pytest.raises(UsageError, match="teacher_temperature belongs to the focal loss"):
        prepare(
            table,
            make_config(small_settings, {"teacher": str(finished_run.path), "teacher_temperature": 2}),
            FocalLoss,
            open_teacher=open_teacher,
        )


def test_an_ensemble_teaches_by_its_runs_and_no_label_of_the_judged_fold(
    table, small_settings, finished_run, other_run, tmp_path
):
    blend_runs([finished_run, other_run], "oof", out=tmp_path / "both", draws=0)
    plan = student(table, small_settings, tmp_path / "both")
    answers = plan.teacher.predict(plan, quietly)
    runs = [finished_run, other_run]
    other = runs[0].oof["fold"].to_numpy() != 0
    weights = fit_blend(
        "oof", table.heads, [r.probabilities[other] for r in runs], runs[0].true[other], runs[0].groups[other]
    )
    expected = weights.mix([forward(run, 0, table) for run in runs])
    np.testing.assert_allclose(answers[0], expected, atol=1e-5)


def test_teachers_that_were_trained_on_the_judged_fold_are_refused(
    table, small_settings, finished_run, run_copy, tmp_path
):
    def refused(teacher=finished_run.path, **settings):
        with pytest.raises(UsageError) as caught:
            student(table, small_settings, teacher, **settings)
        return str(caught.value)

    seen = refused(seed=5)
    assert "Fold 0 validates photo" in seen
    assert "have been trained on, so its score would be too good; use the teacher's folds: --folds-file" in seen
    other = refused(folds=3, stratify="gender")
    assert f"has 2 folds, here are 3; use the teacher's folds: --folds-file {finished_run.path}" in other
    # the same split from a file is no leak
    settings = {k: v for k, v in small_settings.items() if k != "folds"}
    split = str(finished_run.path / "folds.csv")
    assert student(table, settings, finished_run.path, folds_file=split, seed=5).teacher is not None
    assert "is not a run directory" in refused(tmp_path)
    file = run_copy / "config.yaml"
    file.write_text(file.read_text().replace("group: person", "group: none"))
    assert refused(run_copy, seed=5).endswith("use a teacher with whole persons in each fold.")
    shutil.rmtree(run_copy / "fold1")
    assert "lacks fold 1, which the same fold of the student needs" in refused(run_copy)


def test_a_student_has_seen_what_its_teacher_has(table, small_settings, finished_run, tmp_path):
    plan = student(table, small_settings, finished_run.path)
    for fold in (0, 1):
        assert plan.lineage(fold).seen == lineage_of(str(finished_run.path), fold).seen
    # with persons that only the teacher knows
    some = np.flatnonzero(np.isin(table.persons, sorted(set(table.persons))[::2]))
    finished_run.folds.iloc[some].to_csv(tmp_path / "folds.csv", index=False)
    given = {k: v for k, v in small_settings.items() if k != "folds"} | {"folds_file": str(tmp_path / "folds.csv")}
    plan = student(table.select(some), given, finished_run.path)
    for fold in (0, 1):
        assert plan.lineage(fold).seen == lineage_of(str(finished_run.path), fold).seen
    whole = plan.lineage(0, whole=True).seen
    assert whole == lineage_of(str(finished_run.path), 0).seen | lineage_of(str(finished_run.path), 1).seen


def test_teachers_of_other_heads_are_refused(table, small_settings, finished_run):
    config = make_config({**small_settings, "teacher": str(finished_run.path)})
    folds, digests = finished_run.folds["fold"].to_numpy(), [""] * len(table)
    others = Heads([Head("gender", ("female", "male")), *[h for h in table.heads if h.name != "gender"]])
    with pytest.raises(UsageError, match="has other classes of gender"):
        open_teacher(config, Validation(replace(table, heads=others), folds, digests))
    hats = replace(table, frame=table.frame.assign(hat="no"), heads=Heads([Head("hat", ("no", "yes"))]))
    with pytest.raises(UsageError, match="has learned none of hat"):
        open_teacher(config, Validation(hats, folds, digests))


def test_a_loss_that_takes_no_soft_labels_is_refused(table, small_settings, finished_run):
    class Hard(torch.nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads = heads

        def forward(self, logits, y):
            parts = self.heads.split(logits)
            return sum(torch.nn.functional.cross_entropy(p, y[:, i].long()) for i, p in enumerate(parts))

    with pytest.raises(UsageError, match="cannot take soft labels .* extra and teacher make"):
        check_soft(Hard(table.heads), table.heads)
    with pytest.raises(UsageError, match="cannot take soft labels"):
        config = make_config({**small_settings, "teacher": str(finished_run.path)})
        prepare(table, config, Hard, open_teacher=open_teacher)
