"""Alignment: ensembles of runs whose photos, labels, persons and folds differ, scored on what all of them have."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from fastmask.api import Run, blend_runs
from fastmask.data.contest import contest_heads
from fastmask.evaluation.comparison import compare
from fastmask.heads import Heads
from fastmask.inference.blend import fit_blend
from fastmask.system.errors import DataError, UsageError

HEADS = contest_heads()


def rewrite(run, names=("folds.csv", "oof.csv"), **columns):
    """The run with other cells: for each column a function of the frame."""
    for name in names:
        frame = pd.read_csv(run.path / name, dtype=str, keep_default_na=False)
        write = frame.assign(**{column: make(frame) for column, make in columns.items()})
        write.to_csv(run.path / name, index=False)
    return Run.load(run.path)


def joined_by_hand(*runs):
    """The paths that all runs have, in the order of the first, and each run's probabilities of them."""
    paths = [path for path in runs[0].oof["path"] if all(path in set(run.oof["path"]) for run in runs)]
    return paths, [run.oof.set_index("path").loc[paths, HEADS.columns].to_numpy() for run in runs]


def true_by_hand(run, paths):
    names = run.folds.set_index("path").loc[paths]
    return HEADS.encode_frame(names)


def by_sklearn(true, probabilities, whole):
    """Macro-F1 over the joint classes of the first run's table and of the predictions."""
    true, predicted = HEADS.joint(true), HEADS.joint(HEADS.argmax(probabilities))
    classes = np.unique([*HEADS.joint(whole), *predicted])
    return f1_score(true, predicted, labels=classes, average="macro", zero_division=0)


@pytest.fixture
def differing(run_of, guess, labels):
    """Runs of the same photos with other labels, without some persons in another order, and in three folds."""
    fixed = labels.copy()
    fixed[:7, 1], fixed[3, 0] = 1 - fixed[:7, 1], 2
    order = np.random.default_rng(1).permutation(np.flatnonzero(np.arange(len(labels)) // 7 % 6 != 2))
    return [
        run_of(guess(labels, 1), labels, "base"),
        run_of(guess(labels, 2), fixed, "fixed"),
        run_of(guess(labels, 3), labels, "less", order=order),
        run_of(guess(labels, 4), labels, "three", folds=3),
    ]


def test_what_all_have_is_scored_by_the_first_runs_labels(differing, tmp_path):
    blended = blend_runs(differing, out=tmp_path / "all", draws=100)
    paths, members = joined_by_hand(*differing)
    base = differing[0]
    assert blended.run.oof["path"].tolist() == paths
    assert len(paths) == 350
    np.testing.assert_allclose(blended.run.probabilities, np.mean(members, axis=0), atol=1e-7)
    true = true_by_hand(base, paths)
    expected = by_sklearn(true, np.mean(members, axis=0), base.y)
    joint = blended.targets["joint"]
    assert joint.score.macro_f1 == pytest.approx(expected) == Run.load(blended.run.path).score(0).joint.macro_f1
    for gain, member in zip(joint.members, members, strict=True):
        assert gain.score.macro_f1 == pytest.approx(by_sklearn(true, member, base.y))
    assert blended.notes[-2:] == [
        "fixed has other labels than base for 7 photos (mask 1, gender 7); all are scored by the labels of base.",
        "The ensemble has the folds of base; those of three differ.",
    ]
    photos = "Scored on the 350 photos that all runs have; runs with more photos: base 420, fixed 420, three 420."
    assert photos in blended.notes
    assert photos in str(Run.load(blended.run.path).score(0))
    # of the whole table, as compare counts them
    found = compare([base, blended.run], draws=100)
    assert found.photos == 350
    assert found.results[1].joint.macro_f1 == pytest.approx(expected)


def test_the_labels_are_those_of_whichever_run_is_first(differing, tmp_path):
    run = blend_runs([differing[1], differing[0]], out=tmp_path / "both", draws=0).run
    assert (run.true == differing[1].true).all()
    assert (run.true != differing[0].true).any()


def test_weights_of_a_part_of_the_first_run_are_fitted_on_the_others(differing, tmp_path):
    base, *others = differing
    run = blend_runs([others[1], base, others[2]], "oof", out=tmp_path / "all", draws=0).run
    paths, members = joined_by_hand(others[1], base, others[2])
    true, fold = true_by_hand(base, paths), others[1].oof["fold"].to_numpy()
    for part in range(5):
        here = fold == part
        blend = fit_blend("oof", HEADS, [member[~here] for member in members], true[~here])
        np.testing.assert_allclose(run.probabilities[here], blend.mix([m[here] for m in members]), atol=1e-7)


def test_the_labels_of_a_head_are_those_of_the_first_run_that_has_it(run_of, guess, labels, tmp_path):
    mask, rest = Heads([HEADS["mask"]]), Heads([HEADS["gender"], HEADS["age"]])
    other = labels.copy()
    other[:, 2] = (other[:, 2] + 1) % 3
    half = np.arange(210)
    runs = [
        run_of(guess(labels[:, :1], 1, heads=mask), labels[:, :1], "mask", heads=mask),
        run_of(guess(labels[:, 1:], 2, heads=rest), labels[:, 1:], "rest", heads=rest, order=half),
        run_of(guess(labels, 3), other, "other"),
    ]
    blended = blend_runs(runs, out=tmp_path / "all", draws=0)
    assert blended.run.folds["age"].tolist() == [HEADS["age"].classes[y] for y in labels[:210, 2]] + [""] * 210
    assert "other has other labels than rest for 210 photos (age 210); all are scored by the labels of rest." in (
        blended.notes
    )


def test_a_photo_is_never_scored_by_a_member_that_was_trained_on_its_person(run_of, guess, labels, tmp_path):
    """p0000 and p0001 are one person to `knows`, and in two folds of `base`: 14 photos leak."""
    base, other = (run_of(guess(labels, seed), labels, name) for seed, name in ((1, "base"), (2, "other")))

    def one(frame):
        return frame["person"].replace("p0001", "p0000")

    def fold(frame):
        return frame["fold"].where(one(frame) != "p0000", "0")

    def left_out(name, **columns):
        knows = rewrite(run_of(guess(labels, 3), labels, name), **{"fold": fold, **columns})
        # oof.csv has no groups
        frame = pd.read_csv(knows.path / "oof.csv").drop(columns="same_as", errors="ignore")
        frame.to_csv(knows.path / "oof.csv", index=False)
        run = blend_runs([knows.path, other, base], "oof", out=tmp_path / f"of-{name}", draws=0).run
        assert set(base.oof["path"]) - set(run.oof["path"]) == {f"{i:05}.jpg" for i in range(14)}
        return run

    # identical photos, and a correction that merged two persons
    for run in (left_out("same", same_as=one), left_out("merged", person=one)):
        assert run.caveats[0].startswith("14 photos are left out of the score, such as 00000.jpg: ")
        assert "/other was trained on photos of persons who are the same by another run." in run.caveats[0]
        assert (run.folds["fold"].iloc[:14] == -1).all()
        assert len(run.score(0).joint.texts)
    # without the run that knows, nothing shows that they are one
    assert len(blend_runs([base, other], out=tmp_path / "two", draws=0).run.oof) == 420


def test_extra_photos_and_those_that_are_only_trained_on_leak_too(run_of, guess, labels, tmp_path):
    base = run_of(guess(labels, 1), labels, "base")
    merged = rewrite(
        run_of(guess(labels, 3), labels, "merged"), person=lambda frame: frame["person"].replace("p0009", "p0004")
    )
    assert len(blend_runs([base, merged], out=tmp_path / "same-fold", draws=0).run.oof) == 420
    # fold 4 is only trained on, but p0004 is validated
    fixed = run_of(guess(labels, 2), labels, "fixed", folds=1, order=np.arange(420))
    rewrite(fixed, fold=lambda frame: np.where(frame["person"].isin(["p0009", "p0014"]), -1, 0), names=("folds.csv",))
    oof = pd.read_csv(fixed.path / "oof.csv")
    oof[~oof["person"].isin(["p0009", "p0014"])].to_csv(fixed.path / "oof.csv", index=False)
    run = blend_runs([base, merged, fixed.path], out=tmp_path / "fixed-e", draws=0).run
    assert len(run.oof) == 420 - 14 - 7
    assert {"p0004", "p0009", "p0014"}.isdisjoint(run.persons)
    # an extra photo of p0009, on which the fold that validates p0004 was trained, too
    extra = run_of(guess(labels, 5), labels, "extra", order=np.flatnonzero(np.arange(420) // 7 != 9))
    pd.DataFrame({"path": ["x.jpg"], "person": ["p0009"], "without": [""]}).to_csv(
        extra.path / "extra.csv", index=False
    )
    run = blend_runs([extra.path, merged, base], out=tmp_path / "extra-e", draws=0).run
    assert len(run.oof) == 413 - 7
    assert "p0004" not in run.persons


def test_runs_without_a_photo_to_score_are_refused(run_of, guess, labels, tmp_path):
    halves = [
        run_of(guess(labels, seed), labels, name, order=np.arange(*rows))
        for seed, name, rows in ((1, "one", (0, 210)), (2, "two", (210, 420)))
    ]
    with pytest.raises(DataError, match=r"two shares no photo with the results before it, such as '00000\.jpg'"):
        blend_runs(halves, out=tmp_path / "no")
    base = run_of(guess(labels[:14], 1), labels[:14], "base", folds=2)
    both = rewrite(
        run_of(guess(labels[:14], 1), labels[:14], "both", folds=2),
        ("folds.csv",),
        same_as=lambda frame: frame["person"].replace("p0001", "p0000"),
    )
    with pytest.raises(UsageError, match=r"There is no photo to score these runs on\. 14 photos are left out"):
        blend_runs([base, both], out=tmp_path / "no")
    assert not (tmp_path / "no").exists()
