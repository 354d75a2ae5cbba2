"""Confusion: against scikit-learn's matrix, and pandas' counts for many classes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.sections.confusion import OTHERS, confusion, file_names, most_confused, pairs, plot_confusion
from fastmask.system.errors import UsageError


def test_the_joint_class_is_counted_as_scikit_learn_does(finished_run):
    found = confusion(finished_run)
    both = finished_run.oof["true"], finished_run.oof["predicted"]
    np.testing.assert_array_equal(found.counts, confusion_matrix(*both, labels=range(18)))
    np.testing.assert_allclose(found.shares, confusion_matrix(*both, labels=range(18), normalize="true"))
    assert list(found.names) == finished_run.heads.joint_names()
    assert found.group == 6


@pytest.mark.parametrize("head", ["mask", "gender", "age"])
def test_a_head_is_counted_as_scikit_learn_does(finished_run, head):
    classes = list(finished_run.heads[head].classes)
    true = finished_run.folds.set_index("path")[head].loc[finished_run.oof["path"]]
    predicted = finished_run.oof[[f"{head}.{c}" for c in classes]].to_numpy().argmax(1)
    expected = confusion_matrix(true, np.array(classes)[predicted], labels=classes)
    np.testing.assert_array_equal(confusion(finished_run, head).counts, expected)


def test_unknown_labels_are_left_out(make_run, labels):
    y = labels.copy()
    y[::4, 2] = -1
    run = make_run(y)
    assert confusion(run, "age").counts.sum() == confusion(run).counts.sum() == (y[:, 2] >= 0).sum()
    assert confusion(run, "mask").counts.sum() == len(y)


def test_of_many_classes_the_most_confused_are_shown_and_the_others_summed_up(make_run):
    y = np.random.default_rng(1).integers(0, 30, (600, 1))
    run = make_run(y, Heads([Head("kind", tuple(f"k{i:02}" for i in range(30)))]), photos=False)
    found = confusion(run, "kind", most=6)
    assert found.names[-1] == OTHERS
    assert len(found.names) == 7
    assert found.counts.sum() == 600
    table = pd.crosstab(run.true[:, 0], run.predicted[:, 0]).to_numpy()
    errors = table.sum(0) + table.sum(1) - 2 * np.diag(table)
    shown = [int(name[1:]) for name in found.names[:-1]]
    assert (errors > min(errors[shown])).sum() < 6
    assert found.counts[:6].sum(axis=1).tolist() == table[shown].sum(axis=1).tolist()


def test_the_most_frequent_mistakes_come_first(finished_run):
    found = most_confused(pairs(finished_run, "age"))
    table = confusion(finished_run, "age").counts
    off = table - np.diag(np.diag(table))
    first = found.iloc[0]
    assert (first["n"], found["n"].sum()) == (off.max(), off.sum())
    assert first["share"] == pytest.approx(first["n"] / table[int(first["true"])].sum())


def test_the_plot_has_every_count_in_its_cell(finished_run):
    axes = plot_confusion(finished_run, "age").axes[0]
    counts = confusion(finished_run, "age").counts
    written = {(t.get_position()[1] - 0.5, t.get_position()[0] - 0.5): t.get_text() for t in axes.texts}
    assert {place: int(text.split("\n")[0]) for place, text in written.items()} == {
        (row, column): counts[row, column] for row, column in np.argwhere(counts)
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<30", "30-59", "60+"]


def test_long_names_of_joint_classes_can_be_told_apart(make_run, labels):
    long = "a very long class name that goes on and on"
    heads = Heads([Head("a", (f"{long} 1", f"{long} 2", "short")), *list(contest_heads())[1:]])
    run = make_run(labels, heads)
    found = confusion(run)
    assert len(set(found.labels)) == len(found.names) == 18
    assert max(map(len, found.labels)) <= 24
    assert found.labels[-1] == "short female 60+"
    assert found.labels[0].endswith(" male <30")
    ticks = plot_confusion(run, "a").axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ["a very long clas…nd on 1", "a very long clas…nd on 2", "short"]


def test_an_unknown_head_and_one_without_labels_are_refused(make_run, labels):
    run = make_run(np.where([True, True, False], labels, -1))
    for head, message in (("hat", "There is no head 'hat'"), ("age", "No photo has a label of age")):
        with pytest.raises(UsageError, match=message):
            plot_confusion(run, head)


def test_file_names_are_plain_and_unique():
    assert file_names(["age", "Hair colour"]) == {"age": "age", "Hair colour": "hair-colour"}
    assert file_names(["a/b", "a b"]) == {"a/b": "head-1", "a b": "head-2"}
    assert file_names(["..", "한글", "x" * 99]) == {"..": "head-1", "한글": "head-2", "x" * 99: "x" * 40}
