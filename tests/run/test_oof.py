import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from fastmask.api import Run, blend_runs, merge_runs
from fastmask.decision.rule import fit_rule
from fastmask.run.oof import best_epochs, choose_epochs, decide_oof, write_scores
from fastmask.system.files import read_yaml, write_yaml

NAN = float("nan")


@pytest.mark.parametrize(
    ("curves", "k", "chosen"),
    [
        # by hand: the mean of the other two is highest at epoch 1 for fold 0, at 0 for fold 1, at 0 for fold 2
        ([[0.9, 0.1, 0.2], [0.1, 0.8, 0.2], [0.1, 0.3, 0.5]], 1, [[1], [0], [0]]),
        # two folds choose for each other
        ([[0.1, 0.2, 0.9], [0.5, 0.2, 0.1]], 1, [[0], [2]]),
        ([[0.1, 0.2, 0.9], [0.5, 0.2, 0.1]], 2, [[0, 1], [1, 2]]),
        # a fold that stopped early keeps its last value, and takes no epoch that it did not reach
        ([[0.1, 0.2], [0.1, 0.2, 0.3, 0.9]], 1, [[1], [1]]),
        ([[0.1], [0.1, 0.2, 0.3, 0.9]], 3, [[0], [0, 1, 2]]),
        # epochs that were not validated have the value before, and are not chosen
        ([[NAN, 0.1, NAN, 0.2], [NAN, 0.3, 0.1]], 1, [[1], [1]]),
        ([[NAN, 0.1, NAN, 0.2, 0.3], [NAN, 0.3, NAN, 0.2, 0.4], [0.1]], 2, [[1, 4], [3, 4], [0]]),
        ([[NAN, 0.2, NAN, 0.1]], 3, [[1, 3]]),
        # a single fold: the last epochs
        ([[0.9, 0.1, 0.2]], 1, [[2]]),
        ([[0.9, 0.1, 0.2]], 2, [[1, 2]]),
    ],
)
def test_the_other_folds_choose_the_epochs(curves, k, chosen):
    assert choose_epochs([np.array(c) for c in curves], k) == chosen


def test_equal_values_give_the_earlier_epoch():
    assert best_epochs(np.array([0.1, 0.5, 0.5, 0.5])) == [1]
    assert best_epochs(np.array([0.1, 0.5, 0.5, 0.5]), 2) == [1, 2]
    assert best_epochs(np.array([NAN, -np.inf, NAN]), 2) == [1]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("patience", [0, 2, 5])
def test_scores_of_chosen_epochs_do_not_flatter_folds_that_stop_by_their_own(k, patience):
    """Epochs that differ by chance alone, with a mean of 0: the chosen ones score 0, a fold's own best far above."""
    rng, honest, own = np.random.default_rng(0), [], []
    for _ in range(1000):
        curves = [stop_early(rng.normal(size=20), patience) for _ in range(5)]
        honest += [curve[each].mean() for curve, each in zip(curves, choose_epochs(curves, k), strict=True)]
        own += [curve[best_epochs(curve, k)].mean() for curve in curves]
    assert np.mean(own) > 0.3
    assert abs(np.mean(honest)) < 0.06


def stop_early(curve, patience):
    best = 0
    for epoch, value in enumerate(curve):
        best = epoch if value > curve[best] else best
        if patience and epoch - best >= patience:
            return curve[: epoch + 1]
    return curve


def decide_by(path, decision):
    """The run at a path, scored again with another decision in its settings."""
    write_yaml(path / "config.yaml", {**read_yaml(path / "config.yaml"), "decision": decision})
    write_scores(Run.load(path))
    return Run.load(path)


def decide_by_hand(run, folds):
    """(N, heads) classes by f1, each fold by the rule fitted on the OOF probabilities of the other folds."""
    y = np.empty_like(run.true)
    for fold in set(folds):
        here = folds == fold
        rule = fit_rule("f1", run.heads, run.probabilities[~here], run.true[~here])
        y[here] = rule.decide(run.probabilities[here])
    return y


def macro(heads, true, y):
    joint = heads.joint(true)
    labels = sorted({*joint[joint >= 0], *heads.joint(y)[joint >= 0]})
    return f1_score(joint, heads.joint(y), labels=labels, average="macro", zero_division=0)


def test_the_score_is_of_classes_by_a_rule_that_is_fitted_on_other_persons(run_copy, finished_run):
    run = decide_by(run_copy, "f1")
    assert np.array_equal(run.probabilities, finished_run.probabilities)
    y = decide_by_hand(run, run.oof["fold"].to_numpy())
    assert (y != finished_run.predicted).any()
    assert np.array_equal(run.predicted, y)
    assert run.oof["predicted"].tolist() == run.heads.joint(y).tolist()
    assert run.score(draws=0).joint.macro_f1 == pytest.approx(macro(run.heads, run.true, y))
    assert run.scores["joint"]["macro_f1"] == pytest.approx(macro(run.heads, run.true, y))
    assert any("by the decision f1" in note for note in run.scores["notes"])


def test_the_plain_decision_writes_the_same_bytes(run_copy, finished_run):
    before = [(run_copy / name).read_bytes() for name in ("oof.csv", "scores.json")]
    decide_by(run_copy, "plain")
    assert [(run_copy / name).read_bytes() for name in ("oof.csv", "scores.json")] == before


def test_labels_that_were_dealt_anew_give_chance(run_of, draw_oof):
    probabilities, y = draw_oof(persons=150)
    rng, n = np.random.default_rng(0), len(y)
    run = run_of(probabilities, y, decision="f1")
    folds, dealt = run.oof["fold"].to_numpy(), y[rng.permutation(n)]
    decided = decide_oof(run, probabilities, dealt, folds, run.groups)
    chance = [macro(run.heads, y[rng.permutation(n)], decided) for _ in range(100)]
    assert abs(macro(run.heads, dealt, decided) - np.mean(chance)) < 3 * np.std(chance)
    assert macro(run.heads, y, decide_oof(run, probabilities, y, folds, run.groups)) > max(chance)


def test_merged_folds_are_decided_as_one_run(run_copy, tmp_path):
    whole = decide_by(run_copy, "f1")
    halves = []
    for fold in (0, 1):
        half = Run.load(shutil.copytree(run_copy, tmp_path / f"half{fold}"))
        shutil.rmtree(half.fold_path(1 - fold))
        halves.append(decide_by(half.path, "f1"))
        assert len(halves[-1].oof) == (whole.oof["fold"] == fold).sum()
    merged = merge_runs(halves, tmp_path / "merged")
    pd.testing.assert_frame_equal(merged.oof, whole.oof)


@pytest.mark.parametrize("other", ["f1", "plain"])
def test_an_ensemble_has_the_decision_of_all_its_runs_or_the_plain_one(run_of, draw_oof, other):
    probabilities, y = draw_oof(persons=60)
    runs = [run_of(probabilities, y, "one", decision="f1"), run_of(probabilities**0.5, y, "two", decision=other)]
    both = blend_runs(runs, out=runs[0].path.parent / "both", draws=0)
    assert both.run.config.decision == other
    wanted = both.run.heads.argmax(both.run.probabilities)
    if other == "f1":
        wanted = decide_by_hand(both.run, both.run.oof["fold"].to_numpy())
    assert np.array_equal(both.run.predicted, wanted)
    assert both.targets["joint"].score.macro_f1 == pytest.approx(macro(both.run.heads, both.run.true, wanted))
