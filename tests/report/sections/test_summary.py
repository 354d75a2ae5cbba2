"""Summary: the section, and a run in a notebook."""

import re
import shutil

import numpy as np

from fastmask.api import Run, blend_runs
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.material import Material
from fastmask.report.page import headline
from fastmask.report.sections.fold_scores import section as fold_section
from fastmask.report.sections.summary import section
from fastmask.run.oof import write_scores


def words(material):
    return " ".join(getattr(block, "text", "") or getattr(block, "caption", "") for block in section(material))


def test_a_notebook_shows_the_scores_the_heads_and_the_path(finished_run, leaky):
    html, scores = finished_run._repr_html_(), finished_run.score()
    assert str(finished_run.path) in html
    assert "test_resnet" in html
    for score in (scores.joint, scores.heads["age"]):
        assert f">{score.macro_f1:.4f}<" in html
        assert f"{score.macro_f1_interval[0]:.4f} … {score.macro_f1_interval[1]:.4f}" in html
    assert "&lt;30, 30-59, 60+" in html
    assert "Leaky split" in leaky.run._repr_html_()


def test_an_unfinished_or_broken_run_is_still_shown(run_copy):
    (run_copy / "oof.csv").unlink()
    (run_copy / "scores.json").unlink()
    assert "not scored yet" in Run.load(run_copy)._repr_html_()
    (run_copy / "scores.json").write_text("{")
    assert "cannot be read as JSON" in Run.load(run_copy)._repr_html_()
    (run_copy / "scores.json").write_text('{"joint": 3, "heads": {"mask": [], "age": {"macro_f1": "<b>"}}}')
    assert "<b>" not in Run.load(run_copy)._repr_html_()


def test_names_are_escaped(make_run, labels):
    heads = Heads([Head("<b>x", ("<script>", "b", "c")), *list(contest_heads())[1:]])
    html = make_run(labels, heads, name="<i>")._repr_html_()
    assert not [tag for tag in ("<b>", "<script>", "<i>") if tag in html]


def test_a_leaky_split_is_not_called_unseen(made, leaky):
    unseen = "have not seen its person"
    assert unseen in words(made)
    assert unseen in fold_section(made)[0].text
    for said in (words(leaky), fold_section(leaky)[0].text):
        assert unseen not in said
        assert "may have seen its person" in said
    assert headline(made)["what"] == "of the joint class, out of fold"
    assert headline(leaky)["what"] == "of the joint class, out of fold by a leaky split"


def test_an_ensemble_with_a_leaky_run_is_leaky(made, leaky, tmp_path):
    said = words(Material(blend_runs([made.run, leaky.run], out=tmp_path / "both", draws=20).run))
    assert "have not seen its person" not in said
    # a mean fits nothing
    assert "Optimistic" not in said


def test_the_optimistic_figure_is_explained(finished, make_run, labels):
    said = words(finished)
    assert "The joint class, one of 18, is right if all 3 heads are." in said
    assert re.search(
        r"Optimistic figure: a joint macro-F1 of 0\.\d{4}, [+-]0\.\d{4} compared with the score\. Each fold's epochs "
        r"are chosen by the fold's own score, which flatters; the headline's are chosen by the other folds\. It is",
        said,
    )
    single = make_run(labels[:, 2:], Heads([contest_heads()["age"]]))
    assert "Optimistic figure: a macro-F1 of 0.9900" in words(Material(single))


def test_with_a_single_fold_the_last_epoch_is_scored(run_copy):
    shutil.rmtree(run_copy / "fold1")
    write_scores(Run.load(run_copy))
    said = words(Material(Run.load(run_copy)))
    assert "the headline's are the last ones, because with one fold no other can choose" in said
    assert "the other folds" not in said


def test_an_interval_is_wide_if_classes_have_few_persons(make_run):
    rng = np.random.default_rng(0)
    # ten of twelve classes have one person
    classes = np.r_[np.arange(10), rng.integers(10, 12, 20)].repeat(3)
    heads = Heads([Head("kind", tuple("abcdefghijkl"))])
    material = Material(make_run(classes[:, None], heads))
    low, high = material.score("kind").macro_f1_interval
    assert high - low > 0.3
    assert "The interval of kind is very wide because half of its 12 classes have at most 1 person:" in words(material)
    many = make_run(rng.integers(12, size=400).repeat(3)[:, None], heads, name="many", photos=False)
    assert "very wide" not in words(Material(many))
