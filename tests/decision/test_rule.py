from itertools import product
from typing import get_args

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fastmask.config import Config
from fastmask.data.contest import contest_heads
from fastmask.decision.rule import PLAIN, RULES, expected_gains, fit_gains, fit_rule
from fastmask.decision.temperature import apply_temperature
from fastmask.heads import Head, Heads
from fastmask.system.errors import UsageError

HEADS = contest_heads()


def drawn(n=3000, seed=0):
    """Probabilities of a calibrated model of the contest's heads, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    rare = [(0.7, 0.15, 0.15), (0.5, 0.5), (0.5, 0.42, 0.08)]
    parts = [rng.dirichlet(3 * np.array(prior), n) for prior in rare]
    y = np.stack([(p.cumsum(1) > rng.random((n, 1))).argmax(1) for p in parts], axis=1)
    return np.concatenate(parts, axis=1), y


def expected(joint, choice):
    """The expected macro-F1 of answers: 2 tp / (true + answered)."""
    rows, classes = np.arange(len(choice)), range(joint.shape[1])
    hits = [joint[rows, choice][choice == c].sum() for c in classes]
    return np.mean([2 * hits[c] / (joint[:, c].sum() + (choice == c).sum()) for c in classes])


@pytest.mark.parametrize("seed", range(8))
def test_no_other_answers_have_a_higher_expectation(seed):
    # all 3^7 ways to answer seven photos
    joint = np.random.default_rng(seed).dirichlet([1.0, 0.6, 0.2], 7)
    best = max(expected(joint, np.array(choice)) for choice in product(range(3), repeat=7))
    weight, cost = expected_gains(joint, range(3))
    ours = expected(joint, (joint * weight - cost).argmax(1))
    assert ours == pytest.approx(best, abs=2e-3)
    assert best >= expected(joint, joint.argmax(1))


def test_a_rare_class_is_answered_where_it_is_not_the_most_probable():
    # worked by hand: class 1 holds a tenth; with F1 0.9 and 0.4 it is worth answering from a probability of about 0.23
    joint = np.array([[0.95, 0.05]] * 40 + [[0.6, 0.4]] * 5)
    weight, cost = expected_gains(joint, [0, 1])
    assert (joint * weight - cost).argmax(1).tolist() == [0] * 40 + [1] * 5
    all_common, rare_too = np.zeros(45, int), np.repeat([0, 1], [40, 5])
    assert expected(joint, all_common) < expected(joint, rare_too)


def test_a_class_whose_products_are_too_low_for_its_labels_is_raised_first():
    # worked by hand: the products say 20 of 100, the labels 45: (45 + 5) / (20 + 5); and 60 of 85
    joint, y = np.tile([0.8, 0.2], (100, 1)), np.repeat([0, 1], [55, 45])
    gains = fit_gains(joint, y)
    assert gains.share == pytest.approx([60 / 85, 2])


def test_f1_scores_better_on_new_photos_than_the_most_probable_classes():
    p, y = drawn(seed=0)
    rule = fit_rule("f1", HEADS, p, y)
    new, truth = drawn(seed=1)
    joint = [HEADS.joint(y) for y in (truth, HEADS.argmax(new), rule.decide(new))]
    assert f1_score(joint[0], joint[2], average="macro") > f1_score(joint[0], joint[1], average="macro") + 0.02


def test_a_class_that_no_label_has_is_never_answered():
    p, y = drawn()
    kept = y[:, 2] != 2
    rule = fit_rule("f1", HEADS, p[kept], y[kept])
    assert set(rule.decide(p)[:, 2]) == {0, 1}


def test_plain_is_the_most_probable_class_and_calibrated_answers_the_same():
    p, y = drawn()
    sharp = np.concatenate([apply_temperature(part, 0.5) for part in HEADS.split(p)], axis=1)
    plain, calibrated = (fit_rule(name, HEADS, sharp, y) for name in ("plain", "calibrated"))
    assert plain.temperatures == (1, 1, 1)
    assert calibrated.temperatures == pytest.approx((2, 2, 2), rel=0.1)
    assert (plain.decide(sharp) == HEADS.argmax(p)).all()
    assert (calibrated.decide(sharp) == HEADS.argmax(p)).all()
    assert calibrated.calibrated(sharp) == pytest.approx(p, abs=0.05)


def test_persons_are_averaged_in_the_heads_that_belong_to_them_where_persons_are_given():
    p, y = drawn(n=700)
    persons = np.repeat(np.arange(100), 7)
    y[:, 1] = y[::7, 1].repeat(7)
    rule = fit_rule("plain", HEADS, p, y, persons)
    assert rule.shared == ("gender",)
    answers = rule.decide(p, persons)
    assert all(len(set(answers[persons == person, 1])) == 1 for person in range(100))
    assert (answers[:, [0, 2]] == HEADS.argmax(p)[:, [0, 2]]).all()
    assert fit_rule("plain", HEADS, p, y).shared == ()
    with pytest.raises(UsageError, match="give the person of each photo"):
        rule.decide(p)


def test_photos_with_an_unknown_label_calibrate_their_other_heads():
    p, y = drawn()
    y[::2, 0] = -1
    assert fit_rule("f1", HEADS, p, y).temperatures == pytest.approx((1, 1, 1), rel=0.15)
    y[:, 0] = -1
    with pytest.raises(UsageError, match="No photo has a label of every head"):
        fit_rule("f1", HEADS, p, y)


def test_unknown_rules_and_too_many_joint_classes_are_refused():
    p, y = drawn()
    with pytest.raises(UsageError, match="no decision 'best'; expected one of plain, calibrated, f1"):
        fit_rule("best", HEADS, p, y)
    many = Heads([Head(f"h{i}", ("a", "b")) for i in range(11)])
    with pytest.raises(UsageError, match="2048 joint classes, and the decision f1 weighs at most 1000"):
        fit_rule("f1", many, np.full((4, 22), 0.5), np.zeros((4, 11), int))


def test_every_rule_can_be_the_decision_of_a_run():
    assert get_args(Config.model_fields["decision"].annotation) == RULES
    assert Config.default("decision") == PLAIN
