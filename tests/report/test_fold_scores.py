"""Folds: against scikit-learn, over the classes of the whole table."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.report.fold_scores import fold_scores, plot_folds
from fastmask.run import Run


def test_scores_of_folds_are_scikit_learns(finished_run: Run) -> None:
    found = fold_scores(finished_run).set_index(["fold", "target"])
    classes = np.unique(finished_run.folds["age"].map(list(finished_run.heads["age"].classes).index))
    for fold, of in finished_run.oof.groupby("fold"):
        joint = f1_score(
            of["true"], of["predicted"], labels=np.unique(finished_run.oof["true"]), average="macro", zero_division=0
        )
        assert found["macro_f1"][fold, "joint"] == pytest.approx(joint)
        assert found["accuracy"][fold, "joint"] == pytest.approx(accuracy_score(of["true"], of["predicted"]))
        true, said = finished_run.true[of.index, 2], finished_run.predicted[of.index, 2]
        age = f1_score(true, said, labels=classes, average="macro", zero_division=0)
        assert found["macro_f1"][fold, "age"] == pytest.approx(age)
    kept = {row["fold"]: row["joint"]["macro_f1"] for row in finished_run.scores["folds"]}
    assert {fold: found["macro_f1"][fold, "joint"] for fold in kept} == pytest.approx(kept)


def test_the_picture_has_a_dot_a_fold_and_target(finished_run: Run) -> None:
    frame = fold_scores(finished_run)
    axes = plot_folds(frame, finished_run.score(50)).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata().tolist() for dot in dots] == [of["macro_f1"].tolist() for _, of in frame.groupby("fold")]
