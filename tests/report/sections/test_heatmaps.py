"""Explained: which photos are looked at, by whom, and what stands beside their maps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.api import Run
from fastmask.data.photo import read_photo
from fastmask.report.blocks import RIGHT, WRONG, Album, Text
from fastmask.report.gradcam import explain
from fastmask.report.material import Material
from fastmask.report.sections import make_sections
from fastmask.report.sections.heatmaps import look, pick_rows, plot_explanation, section
from fastmask.report.sections.mistakes import mistakes
from fastmask.system.errors import UsageError
from fastmask.system.text import percent


def test_a_photo_of_the_run_is_explained_by_the_fold_that_has_not_seen_it(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmask.report.sections import heatmaps as explained

    asked = []
    monkeypatch.setattr(explained, "explain", lambda *args, **kw: asked.append(kw["fold"]) or explain(*args, **kw))
    row = int(np.flatnonzero(finished_run.oof["fold"] == 1)[0])
    figure = plot_explanation(finished_run, finished_run.oof["path"][row], ["mask", "age"])
    assert asked == [1, 1]
    assert len(figure.axes) == 3
    said = finished_run.heads["mask"].decode(finished_run.predicted[row, 0])
    assert any(text.get_text().startswith(f"mask: {said} ") for text in figure.texts)


def other_answers(run: Path) -> Run:
    """A run whose kept networks answer other than its OOF says, as where the other folds choose another epoch."""
    file = run / "oof.csv"
    oof, heads = pd.read_csv(file), Run.load(run).heads
    gender = [f"gender.{name}" for name in heads["gender"].classes]
    oof[gender] = oof[gender[::-1]].to_numpy()
    joint = heads.joint(heads.argmax(oof[heads.columns].to_numpy()))
    oof.assign(predicted=joint).to_csv(file, index=False)
    return Run.load(run)


def test_the_answer_out_of_fold_is_explained_and_another_one_of_the_network_told(run_copy: Path) -> None:
    run = other_answers(run_copy)
    path, answers = run.oof["path"][0], run.heads["gender"].classes
    table, fold = Material(run).table, int(run.oof["fold"][0])
    own = run.predict([table.root / path], members=[f"fold{fold}"])
    network, out_of_fold = answers[own.y[0, 1]], answers[run.predicted[0, 1]]
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


def test_a_photo_in_memory_is_explained_as_its_file(finished_run: Run, contest: Path) -> None:
    photo = sorted((contest / "eval" / "images").iterdir())[0]
    image = read_photo(photo)
    expected = [text.get_text() for text in finished_run.explain(photo, ["age", "joint"]).texts]
    for given in (image, Image.fromarray(image)):
        assert [text.get_text() for text in finished_run.explain(given, ["age", "joint"]).texts] == expected


@pytest.mark.parametrize(
    ("photo", "heads", "told"),
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
def test_what_cannot_be_explained_is_told(finished_run: Run, photo: Any, heads: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        finished_run.explain(photo, heads)


def test_the_mistakes_of_the_section_are_found_in_the_list_above(finished_run: Run) -> None:
    material = Material(finished_run)
    wrong, _ = pick_rows(material, 0)
    listed = mistakes(finished_run).drop_duplicates("person")["row"].tolist()
    numbers = [listed.index(row) + 1 for row in wrong]
    said = section(material)[0]
    assert isinstance(said, Text)
    *others, last = map(str, numbers)
    assert f"(numbers {', '.join(others)} and {last} of those shown above)" in said.text
    assert "by the network of fold 0, epoch " in said.text


def test_without_a_photo_the_sections_show_the_others(finished_run: Run, contest_copy: Path) -> None:
    material = Material(finished_run, str(contest_copy))
    wrong, right = pick_rows(material, 0)
    for row in (wrong[0], right[0]):
        (material.table.root / finished_run.oof["path"][row]).unlink()
    material = Material(finished_run, str(contest_copy))
    sections = make_sections(material, ["mistakes", "label-errors", "explained", "augmented"])
    assert {each.missing for each in sections} == {""}
    assert len(material.missing_photos) == 2
    assert not {wrong[0], right[0]} & {row for rows in pick_rows(material, 0) for row in rows}


def test_any_other_photo_is_explained_by_the_first_fold(finished_run: Run, contest: Path) -> None:
    photo = next((contest / "eval" / "images").iterdir())
    figure = finished_run.explain(photo)
    assert len(figure.axes) == 4
    assert not any(text.get_text().startswith("true:") for text in figure.texts)


def test_the_section_takes_mistakes_and_right_answers_of_one_fold(finished_run: Run) -> None:
    material = Material(finished_run)
    wrong, right = pick_rows(material, 0)
    oof = finished_run.oof
    assert (oof["fold"].iloc[[*wrong, *right]] == 0).all()
    assert (oof["true"].iloc[wrong] != oof["predicted"].iloc[wrong]).all()
    assert (oof["true"].iloc[right] == oof["predicted"].iloc[right]).all()
    assert len(set(oof["true"].iloc[right])) == len(right)
    album = next(block for block in section(material) if isinstance(block, Album))
    assert album.columns == 4
    assert len(album.photos) == 4 * (len(wrong) + len(right))
    kinds = [kind for one in album.photos for _, kind in one.lines]
    assert WRONG in kinds
    assert RIGHT in kinds


def test_of_many_heads_the_worst_are_explained(finished_run: Run) -> None:
    assert Material(finished_run).worst_heads(3) == ["mask", "gender", "age"]


def test_what_there_is_not_is_said(
    finished_run: Run, make_run: Callable[..., Run], labels: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="There is no head 'hat'"):
        finished_run.explain(finished_run.oof["path"][0], ["hat"])
    with pytest.raises(UsageError, match="No fold has a checkpoint"):
        section(Material(make_run(labels)))
