"""Summary: a run as a notebook shows it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmask.api import Run, blend_runs
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.material import Material
from fastmask.report.page import headline
from fastmask.report.sections.fold_scores import section as fold_section
from fastmask.report.sections.summary import section
from fastmask.run.oof import finish


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


def _words(material: Material) -> str:
    return " ".join(getattr(block, "text", "") or getattr(block, "caption", "") for block in section(material))


def test_a_leaky_split_is_not_called_unseen(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    honest, leaky = Material(make_run(labels)), Material(make_run(labels, name="leaky", group="none"))
    unseen = "have not seen its person"
    assert unseen in _words(honest)
    assert unseen in fold_section(honest)[0].text
    for words in (_words(leaky), fold_section(leaky)[0].text):
        assert unseen not in words
        assert "may have seen its person" in words
    assert headline(honest)["what"] == "of the joint class, out of fold"
    assert headline(leaky)["what"] == "of the joint class, out of fold by a leaky split"


def test_an_ensemble_with_a_leaky_run_is_leaky(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    runs = [make_run(labels, name="honest"), make_run(labels, name="leaky", group="none")]
    run = blend_runs(runs, out=runs[0].path.parent / "both", draws=20).run
    words = _words(Material(run))
    assert "have not seen its person" not in words
    # a mean fits nothing that could flatter
    assert "Optimistic" not in words


def test_the_joint_class_is_one_of_all_combinations(finished_run: Run) -> None:
    assert "The joint class, one of 18, is right if all 3 heads are." in _words(Material(finished_run))


def test_the_optimistic_figure_says_what_it_is(
    finished_run: Run, make_run: Callable[..., Run], labels: np.ndarray
) -> None:
    words = _words(Material(finished_run))
    assert re.search(
        r"Optimistic figure: a joint macro-F1 of 0\.\d{4}, [+-]0\.\d{4} compared with the score\. Each fold's epochs "
        r"are chosen by the fold's own score, which flatters; the headline's are chosen by the other folds\. It is",
        words,
    )
    one = make_run(labels[:, 2:], Heads([contest_heads()["age"]]), name="one")
    assert "Optimistic figure: a macro-F1 of 0.9900" in _words(Material(one))


def test_of_a_single_fold_nobody_else_chooses(finished_run: Run, run_copy: Path) -> None:
    shutil.rmtree(run_copy / "fold1")
    finish(Run.load(run_copy))
    words = _words(Material(Run.load(run_copy)))
    assert "the headline's are the last ones, because with one fold no other can choose" in words
    assert "the other folds" not in words


def test_an_interval_is_wide_where_persons_are_few(make_run: Callable[..., Run]) -> None:
    rng = np.random.default_rng(0)
    # of ten of twelve classes one person
    classes = np.r_[np.arange(10), rng.integers(10, 12, 20)].repeat(3)
    heads = Heads([Head("kind", tuple("abcdefghijkl"))])
    material = Material(make_run(classes[:, None], heads))
    low, high = material.scores.heads["kind"].macro_f1_interval
    assert high - low > 0.3
    assert "The interval of kind is very wide because half of its 12 classes have at most 1 person:" in (
        _words(material)
    )
    many = Material(make_run(rng.integers(12, size=400).repeat(3)[:, None], heads, name="many"))
    assert "very wide" not in _words(many)
