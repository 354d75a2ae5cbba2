"""Classes: against scikit-learn's F1, precision and recall."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from fastmask.api import Run
from fastmask.report.sections.classes import class_scores, plot_classes
from fastmask.scoring import known_classes


@pytest.mark.parametrize("target", ["joint", "mask", "gender", "age"])
def test_figures_are_those_of_scikit_learn(finished_run: Run, target: str) -> None:
    found, heads = class_scores(finished_run, target), finished_run.heads
    if target == "joint":
        true, said = finished_run.oof["true"], finished_run.oof["predicted"]
        names = [heads.joint_names()[code] for code in known_classes(true.to_numpy())]
    else:
        place = heads.position(target)
        true, said = finished_run.true[:, place], finished_run.predicted[:, place]
        names = [heads[target].classes[code] for code in known_classes(true)]
    expected = precision_recall_fscore_support(true, said, labels=known_classes(np.asarray(true)), zero_division=np.nan)
    assert found["name"].tolist() == names
    np.testing.assert_allclose(found["precision"], expected[0])
    np.testing.assert_allclose(found["recall"], expected[1])
    np.testing.assert_allclose(found["f1"], np.nan_to_num(expected[2]))
    np.testing.assert_array_equal(found["n"], expected[3])
    score = finished_run.score(0)
    macro = score.joint.macro_f1 if target == "joint" else score.heads[target].macro_f1
    assert found["f1"].mean() == pytest.approx(macro)


def test_persons_are_counted_once(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    found = class_scores(make_run(labels), "gender")
    assert found["persons"].sum() == 60
    assert found["n"].tolist() == [3 * n for n in found["persons"]]


def test_a_class_that_no_fold_has_yet_has_no_photos(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    y = labels.copy()
    y[:, 2] = np.where(np.arange(len(y)) // 3 % 3 == 1, 1, 0)
    found = class_scores(make_run(y, only=0), "age")
    assert found["n"].tolist() == [60, 0]
    assert found["f1"].tolist()[1] == 0


def test_the_picture_has_a_bar_a_class(finished_run: Run) -> None:
    scores = {name: class_scores(finished_run, name) for name in ("mask", "age")}
    axes = plot_classes(scores).axes[0]
    widths = [bar.get_width() for bar in axes.patches][1::2]
    np.testing.assert_allclose(widths, [*scores["mask"]["f1"], *scores["age"]["f1"]])
