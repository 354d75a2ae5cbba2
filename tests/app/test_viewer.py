"""Viewer: what the page shows of runs that are whole, ensembles, or without their photos."""

import re

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run, blend_runs
from fastmask.app.viewer import LABEL, PREDICTION, open_viewer
from fastmask.system.errors import UsageError


def test_a_photo_is_shown_with_its_facts(viewer, words):
    large, facts = viewer.show(3, "mask")
    oof = viewer.run.oof.iloc[3]
    assert 'src="data:image/jpeg;base64,' in large
    assert f"Photo {oof['path']}" in words(facts)
    assert f"Person {oof['person']} (7 photos)" in words(facts)
    assert f"Fold {oof['fold']}, with networks that have not seen this person" in words(facts)


@pytest.mark.parametrize("row", [-1, 10**6, None, "1"])
def test_only_photos_of_the_run_are_shown(viewer, row):
    for work in (lambda: viewer.show(row, "mask"), lambda: viewer.heat(row, "mask", PREDICTION)):
        with pytest.raises(UsageError, match="There is no such photo"):
            work()


def test_a_map_is_for_the_out_of_fold_prediction_and_names_its_network(run_copy, swap_genders, words):
    """The out-of-fold prediction may be of another epoch than the kept weights; here its genders are swapped."""
    kept = Run.load(run_copy).predicted[0, 1]
    run = swap_genders(run_copy)
    viewer, fold = open_viewer(run_copy), run.oof["fold"][0]
    own = run.predict([viewer.photos.root / run.oof["path"][0]], members=[f"fold{fold}"])
    network, other = run.heads["gender"].classes[own.y[0, 1]], run.heads["gender"].classes[1 - kept]
    said = words(viewer.heat(0, "gender", PREDICTION))
    (epoch,) = [int(file.stem[5:]) + 1 for file in run.checkpoints(fold)]
    assert said.startswith(f"What supports {other} in the kept network, of fold {fold}, epoch {epoch}. ")
    if network == other:
        assert "Its own prediction is the same" in said
    else:
        assert f"It predicts {network}, " in said
        assert f"The out-of-fold prediction is {other}" in said
    same = own.y[0, 0] == run.predicted[0, 0]
    assert ("The out-of-fold prediction" not in words(viewer.heat(0, "mask", PREDICTION))) == same
    label = run.folds.set_index("path")["age"][run.oof["path"][0]]
    assert words(viewer.heat(0, "age", LABEL)).startswith(f"What supports {label} in")


def test_an_ensemble_predicts_but_has_no_map(finished_run, run_copy, photo):
    made = blend_runs([finished_run, run_copy], out=run_copy.parent / "both", draws=0)
    viewer = open_viewer(made.run.path)
    predictions, _ = viewer.trial.answer(photo)
    np.testing.assert_allclose(predictions.probabilities, finished_run.predict([photo]).probabilities, atol=1e-6)
    for work in (lambda: viewer.try_heat(str(photo), "mask"), lambda: viewer.heat(0, "mask", PREDICTION)):
        with pytest.raises(UsageError, match="is an ensemble, which has no models"):
            work()
    assert len(viewer.photos) == 84
    large, facts = viewer.show(0, "joint")
    assert "data:image/jpeg" in large
    assert "Fold" in facts


def test_without_its_photos_a_run_still_predicts(run_copy, photo, tmp_path):
    config = run_copy / "config.yaml"
    data = re.search(r"^data: (.*)$", config.read_text(), re.MULTILINE)
    assert data is not None
    config.write_text(config.read_text().replace(data[1], str(tmp_path / "gone")))
    viewer = open_viewer(run_copy)
    assert "which does not exist from here" in viewer.why_not
    assert "Joint class" in viewer.try_photo(str(photo))
    with pytest.raises(UsageError, match="does not exist from here"):
        viewer.show(0, "joint")
    assert open_viewer(run_copy, data=data[1]).why_not == ""
    with pytest.raises(UsageError):
        open_viewer(run_copy, data=str(tmp_path / "elsewhere"))


def test_joint_classes_are_told_apart_by_the_heads_that_differ(viewer):
    wrong = pd.Series(viewer.run.oof["true"] != viewer.run.oof["predicted"])
    row = int(np.flatnonzero(wrong)[0])
    true, predicted = (viewer.run.heads.joint_name(viewer.run.oof[column][row]) for column in ("true", "predicted"))
    shown = viewer._shortened("joint", true, predicted).split(" ")
    assert shown == [one for one, other in zip(true.split(" "), predicted.split(" "), strict=True) if one != other]
