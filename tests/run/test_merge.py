import io
import shutil

import pytest
from run_files import edit

from fastmask.api import Run, cross_validate, merge_runs
from fastmask.data.contest import read_contest
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError
from fastmask.system.files import read_json


@pytest.fixture(scope="module")
def halves(contest, small_settings, tmp_path_factory):
    """The two folds of `small_settings`, trained apart; for reading only."""
    folder = tmp_path_factory.mktemp("halves")
    table = read_contest(contest)
    return [
        cross_validate(table, out=folder / f"half{fold}", fold=[fold], log=io.StringIO(), **small_settings).path
        for fold in (0, 1)
    ]


def test_two_halves_are_the_whole(halves, finished_run, tmp_path):
    merged = merge_runs(halves, tmp_path / "merged")
    for name in ("oof.csv", "scores.json", "folds.csv", "config.yaml"):
        assert (merged.path / name).read_bytes() == (finished_run.path / name).read_bytes()
    assert merged.score() == finished_run.score()
    assert len(read_json(merged.path / "environment.json")["merged"]) == 2
    # the merged run predicts, and so is a run
    photo = finished_run.folds["path"][0]
    assert len(merged.checkpoints(0)) == len(merged.checkpoints(1)) == 1
    assert photo in set(merged.oof["path"])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("config.yaml", "epochs: 2", "epochs: 3"), r"other settings \(epochs\)"),
        (("folds.csv", "female", "male"), r"other photos, labels or folds \(folds.csv\)"),
        (("environment.json", '"weights": null', '"weights": "other"'), r"other weights to start from \(environment"),
    ],
)
def test_what_does_not_belong_together_is_refused(changed, named, halves, tmp_path):
    other = shutil.copytree(halves[1], tmp_path / "other")
    edit(other / changed[0], *changed[1:])
    with pytest.raises(UsageError, match=f"do not belong together: they have {named}"):
        merge_runs([halves[0], other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_caveat_of_the_weights_of_one_is_one_of_all(halves, tmp_path):
    other = shutil.copytree(halves[1], tmp_path / "other")
    edit(other / "environment.json", '"chosen_weights": false', '"chosen_weights": true')
    for runs in ([halves[0], other], [other, halves[0]]):
        merged = merge_runs(runs, tmp_path / "merged", overwrite=True)
        assert any("an epoch chosen by their own photos" in caveat for caveat in merged.caveats)


def test_a_fold_trained_twice_is_refused(halves, finished_run, tmp_path):
    with pytest.raises(UsageError, match="have both trained fold 0"):
        merge_runs([halves[0], finished_run.path], tmp_path / "merged")
    with pytest.raises(UsageError, match="two or more runs; found 1"):
        merge_runs(halves[:1], tmp_path / "merged")


@pytest.mark.slow
def test_missing_folds_and_other_versions_are_warned_of(contest, small_settings, tmp_path):
    settings = {**small_settings, "folds": 3, "epochs": 1, "stratify": "gender"}
    table = read_contest(contest)
    parts = [
        cross_validate(table, out=tmp_path / f"part{f}", fold=[f], log=io.StringIO(), **settings).path for f in (0, 2)
    ]
    edit(parts[1] / "environment.json", '"torch": "', '"torch": "1.')
    with pytest.warns(FastmaskWarning) as warned:
        merged = merge_runs(parts, tmp_path / "merged")
    said = " ".join(str(w.message) for w in warned)
    assert "No run has finished fold 1" in said
    assert "different versions: torch" in said
    assert merged.trained_folds == [0, 2]
    # the fold that is missing is trained into the merged run
    whole = cross_validate(table, out=tmp_path / "whole", log=io.StringIO(), **settings)
    filled = cross_validate(table, out=merged.path, resume=True, log=io.StringIO(), **settings)
    assert (filled.path / "oof.csv").read_bytes() == (whole.path / "oof.csv").read_bytes()


def test_merging_changes_neither_the_runs_nor_an_existing_one(halves, run_copy):
    with pytest.raises(UsageError, match="exists"):
        merge_runs(halves, run_copy)
    merged = merge_runs(halves, run_copy, overwrite=True)
    assert all(Run.load(half).trained_folds == [fold] for fold, half in enumerate(halves))
    assert merged.trained_folds == [0, 1]


def test_a_run_is_not_merged_into_itself(halves, run_copy, tmp_path):
    half = shutil.copytree(halves[0], tmp_path / "half")
    with pytest.raises(UsageError, match="is one of the runs to merge"):
        merge_runs([half, halves[1]], half, overwrite=True)
    assert Run.load(half).trained_folds == [0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: next(run.glob("fold1/oof-*")).unlink(), "fold1/oof-...\\.safetensors does not hold the probabil"),
        (lambda run: next(run.glob("fold1/epoch*")).unlink(), "fold1 has no checkpoint"),
        (lambda run: (run / "fold1/done.json").write_text("{"), "fold1/done.json cannot be read as JSON"),
        (
            lambda run: edit(run / "fold1/done.json", '"fold": 1', '"fold": 0'),
            "fold1/done.json belongs to other photos than .*folds.csv has in fold 1",
        ),
        (lambda run: (run / "folds.csv").unlink(), "has no folds.csv"),
    ],
)
def test_an_invalid_run_is_named_and_nothing_is_written(change, named, halves, tmp_path):
    other = shutil.copytree(halves[1], tmp_path / "other")
    change(other)
    with pytest.raises(FastmaskError, match=f"other.*{named}"):
        merge_runs([halves[0], other], tmp_path / "merged")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]
