import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fastmask.decision.calibration import calibration_error
from fastmask.decision.crossfit import choose_by_others
from fastmask.decision.rule import fit_rule
from fastmask.decision.temperature import apply_temperature, fit_temperature
from fastmask.evaluation.decisions import (
    Decisions,
    RuleScore,
    answers_of,
    cross_fit_run,
    decide,
    fit_run,
    score_of,
)
from fastmask.heads import Head, Heads
from fastmask.run.oof import parts_of
from fastmask.scoring import Difference, Score
from fastmask.system.errors import UsageError


@pytest.fixture
def run(run_of, draw_oof):
    return run_of(*draw_oof(persons=200))


def macro(run, y):
    true = run.heads.joint(run.true)
    return f1_score(true, run.heads.joint(y), labels=np.unique(true), average="macro", zero_division=0)


def test_each_part_is_answered_by_the_rule_fitted_on_the_other_persons(run):
    answers = cross_fit_run(run, "f1")[1]
    folds, i = run.oof["fold"].to_numpy(), run.heads.position("age")
    assert (parts_of(run) == folds).all()
    p, y = run.heads.split(run.probabilities)[i], run.true[:, i]
    after = np.empty_like(p)
    for fold in range(5):
        others, here = folds != fold, folds == fold
        rule = fit_rule("f1", run.heads, run.probabilities[others], run.true[others])
        assert (answers[here] == rule.decide(run.probabilities[here])).all()
        after[here] = apply_temperature(p[here], fit_temperature(p[others], y[others]))
    calibration = decide(run, draws=10).calibration["age"]
    assert calibration.error_after == pytest.approx(calibration_error(after, y))
    assert calibration.error_after < calibration.error_before / 2
    assert calibration.temperature == pytest.approx(2, rel=0.3)
    assert sum(row["n"] for row in calibration.to_plain()["before"]) == 1400


def test_labels_of_the_part_that_is_scored_change_no_answer_to_it(run_of, draw_oof):
    probabilities, y = draw_oof(persons=60)
    swapped = y.copy()
    first = (np.arange(len(y)) // 7) % 5 == 0
    swapped[first] = y[first][::-1]
    runs = run_of(probabilities, y, "before"), run_of(probabilities, swapped, "after")
    before, after = (cross_fit_run(run, "f1")[1] for run in runs)
    assert (before[first] == after[first]).all()
    assert (before[~first] != after[~first]).any()


def test_f1_gains_what_scikit_learn_sees_and_is_taken(run_of, draw_oof, monkeypatch):
    run = run_of(*draw_oof(persons=1000, seed=2))
    decisions = decide(run, draws=300)
    f1 = next(row for row in decisions.rows if row.rule == "f1")
    assert f1.score.macro_f1 == pytest.approx(macro(run, answers_of(run, "f1")))
    assert f1.gain.macro_f1 == pytest.approx(f1.score.macro_f1 - macro(run, run.predicted))
    assert f1.gain.macro_f1_interval[0] > 0
    assert decisions.best == "f1"
    assert "Take f1. It is chosen by these same scores, so its gain is slightly optimistic." in str(decisions)
    monkeypatch.setattr("fastmask.evaluation.decisions.decide", lambda run, same_person: decisions)
    assert fit_run(run).name == fit_run(run, "auto").name == "f1"


def test_plain_stays_where_no_gain_is_beyond_noise(run_of, draw_oof):
    # every photo is certain, so nothing can be gained
    y = draw_oof(persons=60)[1]
    heads = [np.eye(k)[labels] * 0.9 + 0.1 / k for k, labels in zip((3, 2, 3), y.T, strict=True)]
    decisions = decide(run_of(np.concatenate(heads, axis=1), y), draws=300)
    assert decisions.best == "plain"
    assert "No rule gains beyond noise: plain stays." in str(decisions)
    assert all(row.gain.is_noise for row in decisions.rows[1:])


def test_persons_are_averaged_only_if_asked_for(run):
    plain, *others = decide(run, draws=50).rows
    assert (plain.name, plain.score, plain.gain) == ("plain", run.score(50).joint, None)
    assert [row.name for row in others] == ["calibrated", "f1"]
    rows = {row.name: row for row in decide(run, same_person=True, draws=50).rows}
    assert [*rows][3:] == [f"{rule}, persons averaged" for rule in ("plain", "calibrated", "f1")]
    averaged = answers_of(run, "plain, persons averaged")
    assert all(len(set(averaged[i : i + 7, 2])) == 1 for i in range(0, len(averaged), 7))
    gain = rows["plain, persons averaged"].gain.macro_f1
    assert gain == pytest.approx(macro(run, averaged) - macro(run, run.predicted))
    over = rows["f1, persons averaged"]
    assert over.gain.macro_f1 == pytest.approx(macro(run, answers_of(run, over.name)) - macro(run, averaged))
    assert score_of(run, over.name, draws=50) == over.score
    assert score_of(run, "plain", draws=50) == plain.score


@pytest.mark.parametrize("torn", [False, True])
def test_one_fold_or_torn_persons_are_split_again_with_persons_whole(run_of, draw_oof, torn):
    run = run_of(*draw_oof(persons=30), folds=5 if torn else 1)
    if torn:
        run.oof["fold"] = np.arange(210) % 5
    parts = parts_of(run)
    assert sorted(set(parts)) == [0, 1, 2, 3, 4]
    assert all(len(set(parts[run.persons == person])) == 1 for person in set(run.persons))
    assert [row.rule for row in decide(run, draws=10).rows] == ["plain", "calibrated", "f1"]


def test_one_person_is_not_enough(run_of, draw_oof):
    with pytest.raises(UsageError, match="has only one person"):
        decide(run_of(*draw_oof(persons=1)))


def test_the_gain_of_averaging_persons_is_separate_from_that_of_a_rule(run_of, draw_oof):
    # photos of a person are noisy, their mean is not, and the mask is certain
    rng = np.random.default_rng(0)
    y = draw_oof(persons=200)[1]
    parts = [np.eye(k)[labels] for k, labels in zip((3, 2, 3), y.T, strict=True)]
    noisy = [parts[0] + 0.01, *(part + rng.gamma(1.0, 1.0, part.shape) for part in parts[1:])]
    run = run_of(np.concatenate([part / part.sum(1, keepdims=True) for part in noisy], axis=1), y)
    decisions = decide(run, same_person=True, draws=300)
    averaged = decisions.rows[3]
    assert (averaged.rule, averaged.averaged, averaged.gain.is_noise) == ("plain", True, False)
    assert "Averaging over persons gains." in str(decisions)
    best = [row for row in decisions.rows if row.averaged and row.rule != "plain" and row.gain.macro_f1_interval[0] > 0]
    assert decisions.best == (best[0].rule if best else "plain")


@pytest.mark.parametrize(
    ("interval", "loses", "words"),
    [
        ((-0.3, -0.1), True, "loses: leave it out"),
        ((-0.3, 0.1), False, "changes nothing"),
        ((0.1, 0.3), False, "gains"),
    ],
)
def test_averaging_persons_is_left_out_only_if_it_loses_beyond_noise(interval, loses, words):
    gain = Difference(sum(interval) / 2, 0.0, interval, (0.0, 0.0))
    rows = [RuleScore("plain", False, Score(0.5, 0.5, 9)), RuleScore("plain", True, Score(0.4, 0.4, 9), gain)]
    decisions = Decisions(rows, {}, "plain")
    assert decisions.averaging_loses is loses
    assert f"Averaging over persons {words}" in decisions.verdicts[0]


def test_a_class_that_oof_lacks_counts_as_in_the_runs_score(run_of, draw_oof):
    run = run_of(*draw_oof(persons=60))
    old = np.unique(run.folds["person"][run.folds["age"] == "60+"])
    run.__dict__["oof"] = run.oof[~np.isin(run.persons, old)].reset_index(drop=True)
    expected = run.score(draws=0).joint.macro_f1
    assert decide(run, draws=10).rows[0].score.macro_f1 == score_of(run, "plain", draws=0).macro_f1 == expected


def test_a_rule_for_new_photos_is_fitted_on_all(run):
    whole = fit_rule("f1", run.heads, run.probabilities, run.true)
    assert fit_run(run.path, "f1").temperatures == pytest.approx(whole.temperatures)
    assert fit_run(run, "plain", same_person=True).shared == ("gender", "age")
    with pytest.raises(UsageError, match="no decision 'best'; expected one of auto, plain, calibrated, f1"):
        fit_run(run, "best")


def test_heads_with_too_many_joint_classes_are_decided_without_f1(run_of):
    heads = Heads([Head(f"h{i}", ("a", "b")) for i in range(11)])
    rng = np.random.default_rng(0)
    one = rng.random((140, 11))
    y = (rng.random((140, 11)) < one).astype(int)
    decisions = decide(run_of(np.stack([1 - one, one], axis=2).reshape(140, 22), y, heads=heads), draws=20)
    assert [row.rule for row in decisions.rows] == ["plain", "calibrated"]
    assert any("2048 joint classes" in note for note in decisions.notes)


def test_each_photo_is_answered_by_the_answers_that_are_best_on_the_other_parts():
    true, parts = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    # the first is right on part 0 alone, the second on part 1 alone: each is chosen where it is wrong
    assert choose_by_others(np.array([[0, 1, 1, 0], [1, 0, 0, 1]]), true, parts, [0, 1]).tolist() == [1, 0, 1, 0]
    # one that is right on both is chosen for both
    assert choose_by_others(np.array([[1, 0, 1, 1], [0, 1, 0, 1]]), true, parts, [0, 1]).tolist() == true.tolist()


@pytest.mark.slow
def test_a_contests_worth_of_photos_is_decided_in_seconds(run_of, draw_oof):
    run = run_of(*draw_oof(persons=2700))
    # CPU time of this process, since other processes may be busy
    start = time.process_time()
    decide(run, same_person=True)
    assert time.process_time() - start < 30
