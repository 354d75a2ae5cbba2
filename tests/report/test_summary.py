"""Summary: a run as a notebook shows it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.run import Run


def test_a_run_shows_its_score_its_heads_and_where_it_lies(finished_run: Run) -> None:
    html = finished_run._repr_html_()
    scores = finished_run.score()
    assert str(finished_run.path) in html
    assert "test_resnet" in html
    for score in (scores.joint, scores.heads["age"]):
        assert f">{score.macro_f1:.4f}<" in html
        assert f"{score.macro_f1_interval[0]:.4f} … {score.macro_f1_interval[1]:.4f}" in html
    assert "&lt;30, 30-59, 60+" in html


def test_what_flatters_is_said_there_too(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    assert "Leaky split" in make_run(labels, group="none")._repr_html_()


def test_a_run_that_has_not_finished_or_is_broken_still_shows(run_copy: Path) -> None:
    (run_copy / "oof.csv").unlink()
    (run_copy / "scores.json").unlink()
    assert "not scored yet" in Run.load(run_copy)._repr_html_()
    (run_copy / "scores.json").write_text("{")
    assert "cannot be read as JSON" in Run.load(run_copy)._repr_html_()
    (run_copy / "scores.json").write_text('{"joint": 3, "heads": {"mask": [], "age": {"macro_f1": "<b>"}}}')
    assert "<b>" not in Run.load(run_copy)._repr_html_()


def test_names_are_text(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    heads = Heads([Head("<b>x", ("<script>", "b", "c")), *list(contest_heads())[1:]])
    html = make_run(labels, heads, name="<i>")._repr_html_()
    assert not [tag for tag in ("<b>", "<script>", "<i>") if tag in html]
