"""Other versions of the photos: pure red, each with the row of its photo in green and blue, so that a leak shows."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.config import make_config
from fastmask.data.photo import read_photo
from fastmask.data.photo_dl import columns_of
from fastmask.data.table import TRAIN_ONLY
from fastmask.report.material import Material
from fastmask.report.sections.facts import run_section
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, UsageError
from fastmask.training.description import describe_plan
from fastmask.training.setup import prepare

MANY = 100


@pytest.fixture(scope="module")
def red(table, tmp_path_factory):
    """A version of each photo of the table."""
    return mark(table, tmp_path_factory.mktemp("versions") / "red", 0)


def mark(table, folder, blue):
    for row, path in enumerate(table.frame["path"]):
        file = (folder / path).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (384, 512), (255, MANY + row, blue)).save(file)
    return folder


def alone(table, red):
    """The versions as a table, with other paths and other names of the persons."""
    paths = [f"{red.name}/{path.rpartition('.')[0]}.png" for path in table.frame["path"]]
    persons = [f"p{row // 7}" for row in range(len(table))]
    return replace(table, root=red.parent, frame=table.frame.assign(path=paths, person=persons))


def rows_shown(photos):
    """The rows of the photos whose versions are among `photos`, read from their pixels."""
    pixels = [read_photo(photo)[9, 9].tolist() for photo in photos]
    return sorted(green - MANY for red, green, _ in pixels if red == 255 and green >= MANY)


def test_a_fold_trains_on_the_versions_of_its_own_photos_only(plan_of, table, red):
    plan = plan_of(images_also=[str(red)], folds=3, stratify="gender")
    for fold in range(3):
        own = np.flatnonzero(plan.folds != fold)
        made = plan.training_set(fold)
        shown = rows_shown(made.photos)
        assert shown == own.tolist()
        assert not set(table.persons[shown]) & set(table.persons[plan.folds == fold])
        # labels are those of the photo
        y = made.classes(table.heads)
        assert len(y) == 2 * len(own)
        assert y[len(own) :].tolist() == table.train_y[own].tolist()
        # what is validated is the photos themselves
        dls = plan.learner(fold).dls
        assert len(dls.train_ds) == len(made)
        validated, _ = columns_of(dls.valid_ds)
        assert [*map(str, validated)] == [str(table.photo(row)) for row in np.flatnonzero(plan.folds == fold)]
    said = "1 other version to train on (84 photos), in the folds of the same photos"
    assert said in describe_plan(plan)


def test_versions_share_the_fold_of_persons_who_share_a_photo(plan_of, table, red, contest_copy, tmp_path):
    # the version of person 9's photo is, byte by byte, a photo of person 0
    own = tmp_path / "copied"
    shutil.copytree(red, own)
    place = (own / table.frame["path"][65]).with_suffix(".png")
    place.write_bytes(table.photo(2).read_bytes())
    plan = plan_of(images_also=[str(own)], folds=4, stratify="gender", seed=1)
    (extra,) = plan.extras
    assert plan.folds[65] != plan.folds[2]
    both = {int(plan.folds[65]), int(plan.folds[2])}
    assert set(np.flatnonzero(extra.excluded[65])) == both
    assert set(np.flatnonzero(extra.excluded[3])) == both


def test_an_extra_photo_that_is_a_version_of_a_validated_photo_is_kept_out(plan_of, table, red, tmp_path):
    # under the name of another person
    shutil.copy((red / table.frame["path"][0]).with_suffix(".png"), tmp_path / "x.png")
    (tmp_path / "extra.csv").write_text("path,person,gender\nx.png,somebody,male\n")
    settings = {"extra": str(tmp_path / "extra.csv"), "images_also": [str(red)]}
    plan = plan_of(**settings)
    assert np.flatnonzero(plan.extras[-1].excluded[0]).tolist() == [plan.folds[0]]
    assert plan.extras[-1].table.frame["path"].tolist() == ["x.png"]
    # without the versions it is a stranger's photo
    assert not plan_of(extra=settings["extra"]).extras[0].excluded.any()


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # six persons are few
def test_weights_that_have_seen_a_version_of_a_validated_photo_are_refused(train, plan_of, table, red, tmp_path):
    run = train(tmp_path / "first", alone(table, red).select(range(42)), fold=[0], epochs=1)
    file = next(run.fold_path(0).glob("epoch*.safetensors"))
    rest = {"weights": str(file)}
    plan_of(**rest)
    with pytest.raises(UsageError, match=r"validated on photo .*, which the weights"):
        plan_of(images_also=[str(red)], **rest)


@pytest.mark.slow
def test_a_run_with_versions_has_seen_both(train, table, red, tmp_path, plan_of):
    run = train(tmp_path / "run", images_also=[str(red)], epochs=1, refit=1)
    frame = run.extra
    assert len(frame) == 84
    assert frame["path"].iloc[0] == (red / table.frame["path"][0]).with_suffix(".png").as_posix()
    assert frame["without"].tolist() == [str(fold) for fold in run.folds["fold"]]
    assert run.environment["photos"]["versions"] == {str(red): 84}
    assert len(run.oof) == 84
    facts = dict(run_section(Material(RunDirectory.load(run.path)))[0].rows)
    assert facts["Other versions"] == f"{red}: 84 photos, only trained on, in the folds of the same photos"
    assert "Extra" not in facts
    # its lineage names the versions, so that a run on them alone cannot start from it
    file = next(run.fold_path(0).glob("epoch*.safetensors"))
    with pytest.raises(UsageError, match="validated on photo"):
        plan_of(alone(table, red), weights=str(file))


def test_a_refit_trains_on_all_versions(plan_of, red):
    plan = plan_of(images_also=[str(red)], refit=1)
    whole = plan.training_set(0, whole=True)
    assert rows_shown(whole.photos) == list(range(84))
    # what it has seen is hashes of all photos, all versions and all persons
    assert len(plan.lineage(0, whole=True).seen) == 84 + 84 + 12


def test_photos_that_are_only_trained_on_have_their_versions_in_every_fold(plan_of, table, red, tmp_path):
    never = table.persons == table.persons[0]
    others = [person for person in dict.fromkeys(table.persons) if person != table.persons[0]]
    rows = [f"{person},{number % 2}" for number, person in enumerate(others)]
    (tmp_path / "folds.csv").write_text("\n".join(["person,fold", f"{table.persons[0]},{TRAIN_ONLY}", *rows]))
    plan = plan_of(images_also=[str(red)], folds_file=str(tmp_path / "folds.csv"))
    assert (plan.folds[never] == TRAIN_ONLY).all()
    for fold in (0, 1):
        shown = rows_shown(plan.training_set(fold).photos)
        assert set(np.flatnonzero(never)) <= set(shown)
        assert shown == np.flatnonzero(plan.folds != fold).tolist()


def test_dropped_ages_are_dropped_from_the_versions(plan_of, table, red):
    ages = table.frame["age_value"]
    plan = plan_of(images_also=[str(red)], drop={"age": [(ages.min(), ages.min())]})
    kept = (ages > ages.min()).to_numpy()
    assert rows_shown(plan.training_set(0).photos) == np.flatnonzero(kept & (plan.folds != 0)).tolist()


def test_photos_without_a_version_and_stray_files_are_counted(table, red, tmp_path, small_settings):
    own, lines = tmp_path / "part", []
    shutil.copytree(red, own)
    for row in (0, 5):
        (own / table.frame["path"][row]).with_suffix(".png").unlink()
    (own / "notes.txt").touch()
    plan = prepare(table, make_config(small_settings, {"images_also": [str(own)]}), say=lines.append)
    assert lines[0] == (
        f"{own} has versions of 82 of 84 photos, lacking such as {table.frame['path'][0]}; 1 file of no photo, such as "
        "notes.txt"
    )
    assert not {0, 5} & set(rows_shown([*plan.training_set(0).photos, *plan.training_set(1).photos]))


def test_a_version_that_cannot_be_read_is_an_error_or_skipped(plan_of, table, red, tmp_path):
    own = tmp_path / "broken"
    shutil.copytree(red, own)
    file = (own / table.frame["path"][3]).with_suffix(".png")
    file.write_bytes(b"no photo")
    with pytest.raises(DataError, match=f"{file} is not an image"):
        plan_of(images_also=[str(own)])
    plan = plan_of(images_also=[str(own)], on_bad_photo="skip")
    assert [path for path, _ in plan.skipped] == [str(file)]
    assert len(plan.table) == 84
    assert set(range(84)) - set(rows_shown(plan.training_set(0).photos + plan.training_set(1).photos)) == {3}


def test_what_does_nothing_is_refused(plan_of, table, red, contest, tmp_path):
    with pytest.raises(UsageError, match="holds the photos themselves"):
        plan_of(images_also=[str(contest)])
    shutil.copytree(table.root, tmp_path / "copy")
    with pytest.raises(UsageError, match="holds the same photos as the data, byte by byte"):
        plan_of(images_also=[str(tmp_path / "copy")])
    with pytest.raises(UsageError, match=r"images_also has .*red twice: name each folder once"):
        plan_of(images_also=[str(red), f"{red}/"])
    with pytest.raises(UsageError, match="images_also"):
        plan_of(images_also=[])


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # a leaky split
def test_a_leaky_split_has_no_fold_for_versions(plan_of, red):
    with pytest.raises(UsageError, match=r"No fold can train on the versions in .*red: .*--group none"):
        plan_of(images_also=[str(red)], group="none")


@pytest.mark.slow
def test_a_run_resumes_only_with_the_same_versions_under_any_name(train, table, red, tmp_path):
    own = mark(table, tmp_path / "own", 7)
    settings = {"images_also": [str(own)], "epochs": 1}
    train(tmp_path / "run", fold=[0], **settings)
    moved = str(tmp_path / "moved")
    shutil.move(own, moved)
    run = train(tmp_path / "run", resume=True, **{**settings, "images_also": [moved]})
    assert run.trained_folds == [0, 1]
    Image.new("RGB", (384, 512), "blue").save((tmp_path / "moved" / table.frame["path"][3]).with_suffix(".png"))
    with pytest.raises(UsageError, match="another extra photos or labels"):
        train(tmp_path / "run", resume=True, **{**settings, "images_also": [moved]})


def test_two_versions_are_two_sources(plan_of, table, red, tmp_path):
    other = mark(table, tmp_path / "other", 200)
    plan = plan_of(images_also=[str(red), str(other)])
    own = np.flatnonzero(plan.folds != 0)
    assert rows_shown(plan.training_set(0).photos) == sorted([*own, *own])
    assert "2 other versions to train on (84 photos, 84 photos)" in describe_plan(plan)
    assert pd.Series(plan.extra_frame["path"]).is_unique
    assert plan.environment["photos"]["versions"] == {str(red): 84, str(other): 84}


def test_a_version_learns_what_the_teacher_says_of_its_photo(plan_of, table, red):
    plan = plan_of(images_also=[str(red)])
    said = np.random.default_rng(0).random((3, 84, table.heads.n_logits)).astype(np.float32)
    plan = replace(plan, soft_labels=said)
    for fold, whole in ((0, False), (1, False), (0, True)):
        rows = np.flatnonzero(whole | (plan.folds != fold))
        made = plan.training_set(fold, whole)
        assert rows_shown(made.photos) == rows.tolist()
        assert made.labels.tolist() == [*said[-1 if whole else fold][rows].tolist()] * 2
