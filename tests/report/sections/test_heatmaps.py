"""Heatmaps: which photos are explained, by which networks, and the lines under their maps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmask.data.photo import read_photo
from fastmask.report.blocks import RIGHT, WRONG
from fastmask.report.gradcam import explain
from fastmask.report.material import Material
from fastmask.report.sections import heatmaps, make_sections
from fastmask.report.sections.heatmaps import look, pick_rows, plot_explanation, section
from fastmask.report.sections.mistakes import mistakes
from fastmask.system.errors import UsageError
from fastmask.system.text import percent


def test_a_photo_of_the_run_is_explained_by_the_fold_that_has_not_seen_it(finished_run, monkeypatch):
    asked = []
    monkeypatch.setattr(heatmaps, "explain", lambda *args, **kw: asked.append(kw["fold"]) or explain(*args, **kw))
    row = int(np.flatnonzero(finished_run.oof["fold"] == 1)[0])
    figure = plot_explanation(finished_run, finished_run.oof["path"][row], ["mask", "age"])
    assert asked == [1, 1]
    assert len(figure.axes) == 3
    predicted = finished_run.heads["mask"].decode(finished_run.predicted[row, 0])
    assert any(text.get_text().startswith(f"mask: {predicted} ") for text in figure.texts)


def test_the_out_of_fold_prediction_is_explained_and_a_different_one_of_the_network_is_shown(run_copy, swap_genders):
    run = swap_genders(run_copy)
    path, classes = run.oof["path"][0], run.heads["gender"].classes
    table, fold = Material(run).table, int(run.oof["fold"][0])
    own = run.predict([table.root / path], members=[f"fold{fold}"])
    network, out_of_fold = classes[own.y[0, 1]], classes[run.predicted[0, 1]]
    assert network != out_of_fold
    texts = [text.get_text() for text in run.explain(path, "gender").texts]
    chances = run.heads.split(run.probabilities[0])[1], run.heads.split(own.probabilities[0])[1]
    assert f"gender: {out_of_fold} {percent(chances[0].max())}" in texts
    assert f"this network: {network} {percent(chances[1].max())}" in texts
    epochs = [int(file.stem[5:]) + 1 for file in run.checkpoints(fold)]
    assert f"fold {fold}, epoch {epochs[0]}" in texts
    (made,) = look(run, [table.root / path], ["gender"], fold, rows=[0])[0]
    assert (made.label, made.prediction) == (out_of_fold, network)
    assert made.probability == pytest.approx(chances[1].min(), abs=1e-5)


def test_any_other_photo_may_be_a_file_or_in_memory(finished_run, contest):
    photo = sorted((contest / "eval" / "images").iterdir())[0]
    figure = finished_run.explain(photo)
    assert len(figure.axes) == 4
    assert not any(text.get_text().startswith("true:") for text in figure.texts)
    expected = [text.get_text() for text in finished_run.explain(photo, ["age", "joint"]).texts]
    image = read_photo(photo)
    for given in (image, Image.fromarray(image)):
        assert [text.get_text() for text in finished_run.explain(given, ["age", "joint"]).texts] == expected


@pytest.mark.parametrize(
    ("photo", "heads", "message"),
    [
        (6, None, "The photo is 6; expected a file"),
        (None, None, "The photo is None; expected a file"),
        (np.zeros((4, 4)), None, r"The photo is an array of float64 \(4, 4\); expected"),
        (np.zeros((0, 4, 3), np.uint8), None, r"The photo is an array of uint8 \(0, 4, 3\)"),
        ("", None, "The name of the photo is empty"),
        (Path(), None, "The name of the photo is empty"),
        ("a.jpg", [], r"heads is \[\]; expected one or several of mask, gender, age, joint"),
        ("a.jpg", 3, "heads is 3; expected one or several of"),
        ("a.jpg", "a", "There is no head 'a'"),
        ("a.jpg", [3], "There is no head 3"),
    ],
)
def test_invalid_photos_and_heads_are_refused(finished_run, photo, heads, message):
    with pytest.raises(UsageError, match=message):
        finished_run.explain(photo, heads)


def test_the_section_has_mistakes_and_right_predictions_of_one_fold(finished):
    wrong, right = pick_rows(finished, 0)
    oof = finished.run.oof
    assert (oof["fold"].iloc[[*wrong, *right]] == 0).all()
    assert (oof["true"].iloc[wrong] != oof["predicted"].iloc[wrong]).all()
    assert (oof["true"].iloc[right] == oof["predicted"].iloc[right]).all()
    assert len(set(oof["true"].iloc[right])) == len(right)
    said, album = section(finished)
    assert album.columns == 4
    assert len(album.photos) == 4 * (len(wrong) + len(right))
    assert {RIGHT, WRONG} <= {kind for one in album.photos for _, kind in one.lines}
    listed = mistakes(finished.run).drop_duplicates("person")["row"].tolist()
    *others, last = (str(listed.index(row) + 1) for row in wrong)
    assert f"(numbers {', '.join(others)} and {last} of those shown above)" in said.text
    assert "by the network of fold 0, epoch " in said.text


def test_missing_photos_are_replaced_by_others(finished_run, contest_copy):
    material = Material(finished_run, str(contest_copy))
    gone = [rows[0] for rows in pick_rows(material, 0)]
    for row in gone:
        (material.table.root / finished_run.oof["path"][row]).unlink()
    material = Material(finished_run, str(contest_copy))
    sections = make_sections(material, ["mistakes", "label-errors", "explained", "augmented"])
    assert {each.missing for each in sections} == {""}
    assert len(material.missing_photos) == 2
    assert not set(gone) & {row for rows in pick_rows(material, 0) for row in rows}


def test_a_fold_without_mistakes_has_right_predictions_alone(finished, monkeypatch):
    none = mistakes(finished.run).head(0)
    monkeypatch.setattr("fastmask.report.sections.heatmaps.mistakes", lambda run, target: none)
    wrong, right = pick_rows(finished, 0)
    assert (wrong, len(right) > 0) == ([], True)


def test_of_many_heads_the_worst_are_explained(finished):
    accuracy = {head: score.accuracy for head, score in finished.scores.heads.items()}
    for most in (1, 2, 3):
        expected = sorted(accuracy, key=accuracy.get)[:most]
        assert finished.worst_heads(most) == [head for head in accuracy if head in expected]


def test_without_checkpoints_there_is_no_section(made):
    with pytest.raises(UsageError, match="No fold has a checkpoint"):
        section(made)
