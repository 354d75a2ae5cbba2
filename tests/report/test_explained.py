"""Explained: which photos are looked at, by whom, and what stands beside their maps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmask.errors import UsageError
from fastmask.report.blocks import RIGHT, WRONG, Album
from fastmask.report.explain import explain
from fastmask.report.explained import picked, plot_explanation, section, worst_heads
from fastmask.report.material import Material
from fastmask.run import Run


def test_a_photo_of_the_run_is_explained_by_the_fold_that_has_not_seen_it(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmask.report import explained

    asked = []
    monkeypatch.setattr(explained, "explain", lambda *args, **kw: asked.append(kw["fold"]) or explain(*args, **kw))
    row = int(np.flatnonzero(finished_run.oof["fold"] == 1)[0])
    figure = plot_explanation(finished_run, finished_run.oof["path"][row], ["mask", "age"])
    assert asked == [1, 1]
    assert len(figure.axes) == 3
    said = finished_run.heads["mask"].decode(finished_run.predicted[row, 0])
    assert any(text.get_text().startswith(f"mask: {said} ") for text in figure.texts)


def test_any_other_photo_is_explained_by_the_first_fold(finished_run: Run, contest: Path) -> None:
    photo = next((contest / "eval" / "images").iterdir())
    figure = finished_run.explain(photo)
    assert len(figure.axes) == 4
    assert not any(text.get_text().startswith("true:") for text in figure.texts)


def test_the_section_takes_mistakes_and_right_answers_of_one_fold(finished_run: Run) -> None:
    material = Material(finished_run)
    wrong, right = picked(material, 0)
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
    assert worst_heads(Material(finished_run)) == ["mask", "gender", "age"]


def test_what_there_is_not_is_said(
    finished_run: Run, make_run: Callable[..., Run], labels: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="There is no head 'hat'"):
        finished_run.explain(finished_run.oof["path"][0], ["hat"])
    with pytest.raises(UsageError, match="No fold has a network"):
        section(Material(make_run(labels)))
