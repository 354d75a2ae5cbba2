import hashlib
import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from fastmask.api import cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.pseudo import read_pseudo
from fastmask.data.seen import hash_names, hashes_to_text, text_to_hashes
from fastmask.heads import Head, Heads
from fastmask.inference.predictions import predict
from fastmask.inference.teacher import make_pseudo
from fastmask.run.lineage import lineage_of
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_json, write_json
from fastmask.training.setup import prepare


@pytest.fixture(scope="module")
def made(finished_run, contest, tmp_path_factory):
    out = tmp_path_factory.mktemp("pseudo") / "labels"
    make_pseudo(finished_run, contest / "eval" / "images", out)
    return out


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "labels")


def student(contest, small_settings, finished_run, folder, **settings):
    split = str(finished_run.path / "folds.csv")
    given = {**small_settings, "folds_file": split, "pseudo": str(folder), **settings}
    given.pop("folds")
    return prepare(read_contest(contest), make_config(given))


def test_the_student_of_a_fold_learns_from_the_model_of_that_fold_alone(contest, small_settings, finished_run, made):
    plan = student(contest, small_settings, finished_run, made, pseudo_weight=0.5)
    photos = sorted((contest / "eval" / "images").iterdir())
    for fold in (0, 1):
        own = predict(finished_run, photos, members=[f"fold{fold}"]).probabilities
        train = plan.training_set(fold)
        assert train.photos[-len(photos) :] == [str(photo) for photo in photos]
        np.testing.assert_allclose(train.labels[-len(photos) :], own * 0.5, atol=1e-6)
        # they are not validated on
        assert len(plan.learner(fold).dls.valid_ds) == (plan.folds == fold).sum()


def test_what_the_teacher_and_its_weights_have_seen_is_kept_from_the_fold_that_validates_it(
    contest, small_settings, finished_run, made, copy
):
    table = read_contest(contest)
    pseudo, plan = read_pseudo(made), student(contest, small_settings, finished_run, made)
    photos = sorted((contest / "eval" / "images").iterdir())
    digests = [hashlib.sha256(photo.read_bytes()).hexdigest() for photo in photos]
    own = hash_names(photos=digests, persons=[photo.name for photo in photos])
    for fold in (0, 1):
        seen = lineage_of(str(finished_run.path), fold).seen
        assert pseudo.seen_by(fold) == seen
        assert plan.lineage(fold).seen == seen | own
    # a photo that no table names, such as one of the weights that the teacher started from
    plain = read_json(copy / "pseudo.json")
    earlier = hash_names(persons=[table.persons[plan.folds == 1][0]])
    text = hashes_to_text(text_to_hashes(plain["seen"][1]) | earlier)
    write_json(copy / "pseudo.json", {**plain, "seen": [plain["seen"][0], text]})
    with pytest.raises(UsageError, match="The teacher of fold 1, which validates person .*, has seen it"):
        student(contest, small_settings, finished_run, copy)
    # a folder of an earlier version has the names alone
    write_json(copy / "pseudo.json", {name: value for name, value in plain.items() if name != "seen"})
    assert student(contest, small_settings, finished_run, copy)


def test_unsure_pseudo_labels_are_unknown(contest, small_settings, finished_run, made):
    labels = student(contest, small_settings, finished_run, made, pseudo_least=0.5).training_set(0).labels[-28:]
    soft = read_pseudo(made).probabilities[0]
    for part, whole in zip(finished_run.heads.split(labels), finished_run.heads.split(soft), strict=True):
        sure = whole.max(1) >= 0.5
        np.testing.assert_allclose(part[sure], whole[sure], atol=1e-6)
        assert (part[~sure] == 0).all()
    assert (labels == 0).any()


def test_a_student_trains_and_is_judged_on_its_own_photos(contest, small_settings, finished_run, made, tmp_path):
    given = {**small_settings, "folds_file": str(finished_run.path / "folds.csv"), "pseudo": str(made)}
    given.pop("folds")
    run = cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), **given)
    assert run.oof["path"].tolist() == finished_run.oof["path"].tolist()
    assert not run.oof.equals(finished_run.oof)


def test_a_teacher_with_other_folds_is_refused(contest, small_settings, finished_run, made, tmp_path):
    folds = finished_run.folds[["path", "person", "fold"]].copy()
    person = folds["person"][0]
    folds.loc[folds["person"] == person, "fold"] = 1 - folds["fold"][0]
    folds.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UsageError, match="The teacher of fold [01], which validates photo .*, has seen it"):
        student(contest, small_settings, finished_run, made, folds_file=str(tmp_path / "other.csv"))
    # the same photos under other names do not hide a person, also in a folder of an earlier version
    copied = shutil.copytree(made, tmp_path / "copied")
    write_json(copied / "pseudo.json", {k: v for k, v in read_json(made / "pseudo.json").items() if k != "seen"})
    named = pd.read_csv(copied / "folds.csv", dtype=str).assign(path=lambda f: "x" + f["path"])
    named.to_csv(copied / "folds.csv", index=False)
    with pytest.raises(UsageError, match=f"person {person}"):
        student(contest, small_settings, finished_run, copied, folds_file=str(tmp_path / "other.csv"))
    with pytest.raises(UsageError, match="have 2 folds, this run 3"):
        prepare(
            read_contest(contest), make_config(small_settings, {"folds": 3, "stratify": "gender", "pseudo": str(made)})
        )


def test_photos_of_the_data_are_kept_out_of_the_fold_that_validates_them(
    contest, small_settings, finished_run, tmp_path
):
    images = contest / "train" / "images"
    make_pseudo(finished_run, images, tmp_path / "own")
    plan = student(contest, small_settings, finished_run, tmp_path / "own")
    for fold in (0, 1):
        assert set(plan.training_set(fold).photos) == {
            str(plan.table.photo(row)) for row in np.flatnonzero(plan.folds != fold)
        } | {str(images / path) for path in plan.table.frame["path"][plan.folds != fold]}


def test_a_teacher_needs_all_folds_and_an_honest_split(finished_run, run_copy, contest, tmp_path):
    (run_copy / "fold1" / "done.json").unlink()
    with pytest.raises(UsageError, match="lacks fold 1"):
        make_pseudo(run_copy, contest / "eval" / "images", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = (finished_run.path / "config.yaml").read_text().replace("group: person", "group: none")
    (run_copy / "config.yaml").write_text(text)
    (run_copy / "fold1" / "done.json").write_text("{}")
    with pytest.raises(UsageError, match="its models have seen all persons"):
        make_pseudo(run_copy, contest / "eval" / "images", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UsageError, match="name a new or an empty folder"):
        make_pseudo(finished_run, contest / "eval" / "images", tmp_path / "out")


def test_heads_must_be_the_teachers(made):
    pseudo = read_pseudo(made)
    with pytest.raises(UsageError, match="none of hat"):
        pseudo.soft(Heads([Head("hat", ("a", "b"))]), 0)
    with pytest.raises(UsageError, match="other classes of mask"):
        pseudo.soft(Heads([Head("mask", ("a", "b"))]), 0)
    # a head that the teacher lacks is unknown
    both = pseudo.soft(Heads([Head("hat", ("a", "b")), pseudo.heads["gender"]]), 0)
    assert (both[..., :2] == 0).all()
    np.testing.assert_allclose(both[..., 2:], pseudo.probabilities[..., 3:5], atol=1e-6)


def test_a_photo_in_two_folds_of_the_teacher_was_trained_on(contest, small_settings, finished_run, copy):
    folds = pd.read_csv(copy / "folds.csv", dtype=str)
    again = folds.iloc[:1].assign(fold=str(1 - int(folds["fold"][0])))
    for rows in ([folds, again], [again, folds]):
        pd.concat(rows).to_csv(copy / "folds.csv", index=False)
        with pytest.raises(UsageError, match=f"photo {folds['path'][0]}, has seen it"):
            student(contest, small_settings, finished_run, copy)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("pseudo.json", ".+", "[]", "does not name its photos"),
        ("pseudo.json", '"folds": 2', '"folds": 0', "has 0 folds"),
        ("pseudo.json", '"mask"', '""', "needs a name"),
        ("pseudo.json", '"photos": "[^"]*"', '"photos": "/no"', "is missing; put"),
        ("pseudo.json", r'"seen": \[', '"seen": ["", ', "does not say what the teacher has seen"),
        ("pseudo.json", r'"seen": \[\s*"', '"seen": ["!', "does not say what the teacher has seen"),
        ("pseudo.json", r'"seen": \[', '"seen": 1, "x": [', "does not say what the teacher has seen"),
        ("labels.csv", r"0\.", "2.", "line 2, column fold0:mask"),
        ("labels.csv", r"fold1:age\.60\+", "age", r"fold1:age\.60\+"),
        ("labels.csv", "\n.+", "\n", "labels.csv has no rows; expected one per photo"),
        ("labels.csv", r"\n([^\n]+\n)", r"\n\1\1", "line 3, column path: .* second time"),
        ("labels.csv", r"\n[^,]+", "\n/etc/passwd", "'/etc/passwd', expected a photo below"),
        ("labels.csv", r"\n[^,]+", "\n../x.jpg", "'../x.jpg', expected a photo below"),
        ("labels.csv", r"\n[^,]+", "\n", "found '', expected a photo below"),
        ("labels.csv", r"\n[^,]+", "\n.", "is missing; put the photos"),
        ("labels.csv", None, None, "labels.csv is missing or not a plain file; restore it"),
        ("folds.csv", ",0\n", ",x\n", "column fold: found 'x'"),
        ("folds.csv", ",0\n", ",2\n", "found '2', expected a fold from 0 to 1"),
        ("folds.csv", ",0\n", ",-2\n", "found '-2'"),
        ("folds.csv", "\n.+", "\n", "folds.csv has no rows; expected one per photo"),
        ("folds.csv", None, None, "folds.csv is missing or not a plain file; restore it"),
    ],
)
def test_what_is_broken_is_named(copy, file, old, new, message):
    text = (copy / file).read_text()
    (copy / file).unlink()
    if old is not None:
        (copy / file).write_text(re.sub(old, new, text, count=1, flags=re.DOTALL))
    with pytest.raises(DataError, match=message):
        read_pseudo(copy)


def test_an_unfinished_folder_is_refused(copy):
    (copy / "pseudo.json").unlink()
    with pytest.raises(UsageError, match=r"has no pseudo\.json"):
        read_pseudo(copy)


def test_the_command_prints_the_next_one(run_copy, contest, tmp_path, fastmask):
    answer = fastmask("pseudo", run_copy, contest / "eval" / "images", "--out", tmp_path / "labels")
    assert answer.code == 0, answer.err
    assert "28 photos, labelled by each of 2 folds separately" in answer.out
    assert any("--folds-file" in line for line in answer.err)
    assert len(read_pseudo(tmp_path / "labels").paths) == 28


def test_photos_that_cannot_be_labelled_are_left_out_and_listed(finished_run, contest, tmp_path):
    images = shutil.copytree(contest / "eval" / "images", tmp_path / "images")
    first, *others = sorted(path.name for path in images.iterdir())
    (images / first).write_bytes(b"")
    pseudo = make_pseudo(finished_run, images, tmp_path / "labels")
    assert pseudo.paths == others == read_pseudo(tmp_path / "labels").paths
    failed = pd.read_csv(tmp_path / "labels" / "failed.csv")
    assert failed["path"].tolist() == [first] == list(pseudo.failed)
    with pytest.raises(UsageError, match=f"{first} is not a folder"):
        make_pseudo(finished_run, images / first, tmp_path / "more")
