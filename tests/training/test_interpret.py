import matplotlib
import numpy as np
import pytest
import torch
from fastai.interpret import ClassificationInterpretation
from sklearn.metrics import classification_report, confusion_matrix
from small_learners import TRAIN, VALID, small_dls, small_learner

from fastmask.data.contest import read_contest
from fastmask.data.table import Table
from fastmask.heads import Heads
from fastmask.system.errors import UsageError
from fastmask.training.interpret import interpretation
from fastmask.training.state import ResumableLearner

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(scope="module")
def table(contest):
    """48 photos; the age of every fourth is unknown."""
    table = read_contest(contest).select(range(48))
    ages = ["" if i % 4 == 0 else age for i, age in enumerate(table.frame["age"])]
    return Table(table.frame.assign(age=ages), table.heads, table.root)


def learner(table):
    dls = small_dls(table, np.where(np.arange(len(table)) % 3 == 0, 0, 1), (TRAIN, VALID), bs=8)
    learn = small_learner(dls, "test_resnet", pretrained=False, seed=1)
    learn.fit(1, 1e-2)
    return learn


@pytest.fixture(scope="module")
def learn(table):
    return learner(table)


@pytest.fixture(scope="module")
def predicted(learn):
    """(N, classes) probabilities and (N, heads) truth of the validation photos."""
    found, y = learn.get_preds()
    return found.numpy(), y.numpy()


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def of_head(heads, predicted, head):
    """The photos with the label: their rows, true and predicted class, probability of the true class."""
    probabilities, y = predicted
    i = heads.position(head)
    rows = np.flatnonzero(y[:, i] >= 0)
    true, part = y[rows, i], heads.split(probabilities)[i][rows]
    return rows, true, part.argmax(-1), part[np.arange(len(rows)), true]


@pytest.mark.parametrize("head", ["mask", "gender", "age"])
def test_a_head_s_figures_are_scikit_learn_s(learn, table, predicted, head, capsys):
    heads = table.heads
    _, true, guess, p = of_head(heads, predicted, head)
    found, classes = interpretation(learn, head), heads[head].classes
    expected = confusion_matrix(true, guess, labels=range(len(classes)))
    assert isinstance(found, ClassificationInterpretation)
    assert found.confusion_matrix().tolist() == expected.tolist()
    confused = {(classes[i], classes[j]): n for (i, j), n in np.ndenumerate(expected) if i != j and n}
    assert {(a, b): n for a, b, n in found.most_confused()} == confused
    losses, rows = found.top_losses()
    np.testing.assert_allclose(losses, np.sort(-np.log(p))[::-1], rtol=1e-4)
    np.testing.assert_allclose(-np.log(p[rows]), losses, rtol=1e-4)
    found.print_classification_report()
    report = classification_report(true, guess, labels=range(len(classes)), target_names=classes, zero_division=0)
    assert capsys.readouterr().out.split() == report.split()


def test_the_joint_class_has_the_classes_that_occur(learn, table, predicted):
    heads, (probabilities, y) = table.heads, predicted
    known = (y >= 0).all(1)
    true, guess = heads.joint(y)[known], heads.joint(heads.argmax(probabilities))[known]
    classes = np.union1d(true, guess)
    found = interpretation(learn)
    assert list(found.vocab) == [heads.joint_names()[c] for c in classes]
    assert len(classes) < heads.n_joint
    assert found.confusion_matrix().tolist() == confusion_matrix(true, guess, labels=classes).tolist()
    p = heads.joint_probabilities(probabilities)[known][np.arange(len(true)), true]
    np.testing.assert_allclose(found.top_losses()[0], np.sort(-np.log(p))[::-1], rtol=1e-4)


def test_photos_without_the_label_are_left_out(learn, table, predicted):
    rows, *_ = of_head(table.heads, predicted, "age")
    assert 0 < len(rows) < len(learn.dls.valid_ds)
    assert interpretation(learn, "age").confusion_matrix().sum() == len(rows)


def test_the_pictures_are_of_the_head(learn, table, predicted):
    _, true, guess, p = of_head(table.heads, predicted, "gender")
    names, found = table.heads["gender"].classes, interpretation(learn, "gender")
    worst = np.argsort(p)[:2]
    found.plot_top_losses(2)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert [t.split(" / ")[0] for t in titles] == [f"{names[guess[i]]}/{names[true[i]]}" for i in worst]
    found.show_results([0, 3])
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
    assert titles == [f"{names[true[i]]}\n{names[guess[i]]}" for i in (0, 3)]
    found.plot_confusion_matrix()
    assert [t.get_text() for t in plt.gca().get_xticklabels()] == list(names)


def test_other_photos_and_training_photos(learn, table):
    found = interpretation(learn, "mask", learn.dls.test_dl([1, 2, 5], with_labels=True))
    assert found.confusion_matrix().sum() == 3
    passes = learn.dls.train.passes.next
    training = interpretation(learn, "mask", learn.dls.train)
    _, y = learn.get_preds(ds_idx=0)
    assert training.confusion_matrix().sum(1).tolist() == np.bincount(y[:, 0], minlength=3).tolist()
    assert training.top_losses()[0].tolist() == interpretation(learn, "mask", learn.dls.train).top_losses()[0].tolist()
    assert learn.dls.train.passes.next == passes + 1  # get_preds has walked once, interpretation none


def test_one_head(table):
    one = Table(table.frame.drop(columns=["gender", "age"]), Heads([table.heads["mask"]]), table.root)
    learn = learner(one)
    expected = interpretation(learn, "mask").confusion_matrix()
    assert expected.sum() == 16
    seen = expected.any(0) | expected.any(1)
    assert interpretation(learn).confusion_matrix().tolist() == expected[seen][:, seen].tolist()


def test_what_cannot_be_interpreted_is_refused(learn, table):
    with pytest.raises(UsageError, match=r"fm.interpretation\(learn, head\)"):
        ClassificationInterpretation.from_learner(learn)
    with pytest.raises(UsageError, match="no head 'agee'"):
        interpretation(learn, "agee")
    with pytest.raises(UsageError, match="no labels of mask, gender, age"):
        interpretation(learn, "age", learn.dls.test_dl([table.photo(0)]))
    with pytest.raises(UsageError, match="known age class"):
        interpretation(learn, "age", learn.dls.test_dl([0, 4], with_labels=True))


def test_the_learner_is_left_as_it_is(learn, predicted):
    interpretation(learn, "age").confusion_matrix()
    assert type(learn) is ResumableLearner
    found, _ = learn.get_preds()
    assert torch.equal(found, torch.from_numpy(predicted[0]))
