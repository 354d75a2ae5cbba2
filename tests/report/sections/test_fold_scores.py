"""Fold scores: against scikit-learn, over the classes of the whole table."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.report.material import Material
from fastmask.report.sections.fold_scores import fold_scores, plot_folds, section
from fastmask.scoring import Scores


def test_scores_of_folds_are_scikit_learns(finished_run):
    found = fold_scores(finished_run).set_index(["fold", "target"])
    options = {"average": "macro", "zero_division": 0}
    ages = np.unique(finished_run.folds["age"].map(list(finished_run.heads["age"].classes).index))
    for fold, of in finished_run.oof.groupby("fold"):
        joint = f1_score(of["true"], of["predicted"], labels=np.unique(finished_run.oof["true"]), **options)
        assert found["macro_f1"][fold, "joint"] == pytest.approx(joint)
        assert found["accuracy"][fold, "joint"] == pytest.approx(accuracy_score(of["true"], of["predicted"]))
        age = f1_score(finished_run.true[of.index, 2], finished_run.predicted[of.index, 2], labels=ages, **options)
        assert found["macro_f1"][fold, "age"] == pytest.approx(age)
    kept = {row["fold"]: row["joint"]["macro_f1"] for row in finished_run.scores["folds"]}
    assert {fold: found["macro_f1"][fold, "joint"] for fold in kept} == pytest.approx(kept)


def test_a_very_wide_interval_does_not_stretch_the_axis(made):
    frame, scores = fold_scores(made.run), made.run.score(50)
    low, high = plot_folds(frame, scores).axes[0].get_xlim()
    ends = [end for score in (scores.joint, *scores.heads.values()) for end in score.macro_f1_interval]
    assert low < min(frame["macro_f1"].min(), *ends)
    assert high > max(frame["macro_f1"].max(), *ends)
    close = frame.assign(macro_f1=0.02 + 0.001 * frame["fold"])
    whole = {name: replace(score, macro_f1=0.02) for name, score in scores.heads.items()}
    wide = Scores(replace(scores.joint, macro_f1=0.0268, macro_f1_interval=(0.0048, 0.9)), whole)
    low, high = plot_folds(close, wide).axes[0].get_xlim()
    assert high < 0.2
    assert low < 0.02


def test_folds_have_the_names_of_their_folders(finished):
    drawing = section(finished)[-1]
    assert [row[0] for row in drawing.table.rows] == ["fold 0", "fold 1"]
    assert [text.get_text() for text in drawing.picture.legends[0].get_texts()][:2] == ["fold 0", "fold 1"]


def test_the_plot_has_a_dot_per_fold_and_target(finished_run):
    frame = fold_scores(finished_run)
    axes = plot_folds(frame, finished_run.score(50)).axes[0]
    dots = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [of["macro_f1"].tolist() for _, of in frame.groupby("fold")]


def test_a_fold_that_lacks_classes_says_what_a_perfect_network_would_have(run_of, draw_oof):
    # with few of 60 and older
    run = run_of(*draw_oof(persons=20))
    classes = np.union1d(run.oof["true"], run.oof["predicted"])
    best = [
        f1_score(of["true"], of["true"], labels=classes, average="macro", zero_division=0)
        for _, of in run.oof.groupby("fold")
    ]
    assert min(best) < 1
    text = section(Material(run))[0].text
    assert all((f"{share:.3f} in fold {fold}" in text) == (share < 1) for fold, share in enumerate(best))
