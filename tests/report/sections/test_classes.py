"""Classes: against scikit-learn's F1, precision and recall."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from fastmask.report.sections.classes import class_scores, plot_classes
from fastmask.scoring import known_classes, target_of


@pytest.mark.parametrize("target", ["joint", "mask", "gender", "age"])
def test_figures_are_those_of_scikit_learn(finished_run, target):
    found, heads = class_scores(finished_run, target), finished_run.heads
    true, predicted = (target_of(heads, y, target) for y in (finished_run.true, finished_run.predicted))
    names, classes = heads.joint_names() if target == "joint" else heads[target].classes, known_classes(true)
    assert found["name"].tolist() == [names[code] for code in classes]
    expected = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=np.nan)
    for column, values in zip(("precision", "recall", "f1", "n"), expected, strict=True):
        np.testing.assert_allclose(found[column], np.nan_to_num(values) if column == "f1" else values)
    score = finished_run.score(0)
    assert found["f1"].mean() == pytest.approx((score.joint if target == "joint" else score.heads[target]).macro_f1)


def test_persons_are_counted_once(made):
    found = class_scores(made.run, "gender")
    assert found["persons"].sum() == 60
    assert found["n"].tolist() == [3 * n for n in found["persons"]]


def test_a_class_that_no_fold_has_yet_has_no_photos(make_run, labels):
    y = labels.copy()
    y[:, 2] = np.where(np.arange(len(y)) // 3 % 3 == 1, 1, 0)
    found = class_scores(make_run(y, only=0), "age")
    # nor has one that is only predicted
    assert found["n"].tolist() == [60, 0, 0]
    assert found["answers"][2] > 0
    assert found["f1"].tolist()[1:] == [0, 0]


def test_the_plot_has_a_bar_per_class(finished_run):
    scores = {name: class_scores(finished_run, name) for name in ("mask", "age")}
    widths = [bar.get_width() for bar in plot_classes(scores).axes[0].patches][1::2]
    np.testing.assert_allclose(widths, [*scores["mask"]["f1"], *scores["age"]["f1"]])
