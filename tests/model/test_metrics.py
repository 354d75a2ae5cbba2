from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.model.metrics import Accuracy, MacroF1, default_metrics

HEADS = contest_heads()


def truth(n=300, seed=0, unknown=0.1):
    rng = np.random.default_rng(seed)
    y = np.stack([rng.integers(0, k, n) for k in HEADS.sizes], axis=1)
    y[rng.random(y.shape) < unknown] = -1
    return torch.randn(n, HEADS.n_logits, generator=torch.Generator().manual_seed(seed)), y


def value(metric, logits, y, bs=32, order=None):
    metric.reset()
    order = np.arange(len(y)) if order is None else order
    for start in range(0, len(y), bs):
        rows = order[start : start + bs]
        metric.accumulate(SimpleNamespace(pred=logits[rows], y=torch.from_numpy(y[rows])))
    return metric.value


@pytest.mark.parametrize("target", ["joint", "mask", "gender", "age"])
def test_they_equal_scikit_learn_over_the_known_labels(target):
    logits, y = truth()
    predicted = HEADS.argmax(logits.numpy())
    true, guess = (
        (HEADS.joint(y), HEADS.joint(predicted))
        if target == "joint"
        else (y.T[HEADS.position(target)], predicted.T[HEADS.position(target)])
    )
    true, guess = true[(known := true >= 0)], guess[known]
    expected = f1_score(true, guess, labels=np.unique(true), average="macro", zero_division=0)
    assert value(MacroF1(HEADS, target), logits, y) == pytest.approx(expected)
    assert value(Accuracy(HEADS, target), logits, y) == pytest.approx(accuracy_score(true, guess))


def test_the_order_of_validation_does_not_change_the_score():
    logits, y = truth()
    order = np.random.default_rng(1).permutation(len(y))
    for metric in default_metrics(HEADS, y):
        assert value(metric, logits, y) == value(metric, logits, y, bs=7, order=order)


def test_the_mean_is_over_the_classes_of_the_whole_table():
    logits, y = truth()
    part = y[:20]
    classes = np.unique(HEADS.joint(y)[HEADS.joint(y) >= 0])
    true, guess = HEADS.joint(part), HEADS.joint(HEADS.argmax(logits[:20].numpy()))
    known = true >= 0
    expected = f1_score(true[known], guess[known], labels=classes, average="macro", zero_division=0)
    metric = default_metrics(HEADS, y)[0]
    assert value(metric, logits[:20], part) == pytest.approx(expected)
    assert value(MacroF1(HEADS), logits[:20], part) > expected


def test_names_say_what_they_measure():
    names = [m.name for m in default_metrics(HEADS)]
    assert names[:4] == ["macro_f1", "accuracy", "mask_macro_f1", "mask_accuracy"]
    assert len(names) == 8
    one = Heads([Head("colour", ("red", "green"))])
    assert [m.name for m in default_metrics(one)] == ["macro_f1", "accuracy"]


def test_without_a_known_label_there_is_no_value():
    logits, y = truth()
    y[:] = -1
    assert np.isnan([value(m, logits, y) for m in default_metrics(HEADS)]).all()
