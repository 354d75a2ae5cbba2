"""What choosing the best of several trials is worth, by hand."""

import numpy as np
from sklearn.metrics import f1_score

from fastmask.search.result import COMPLETE, Tried, Tuned, cross_chosen, judge


def test_each_photo_is_answered_by_the_trial_that_is_best_on_the_others():
    true = np.array([0, 1, 0, 1])
    parts = np.array([0, 0, 1, 1])
    # the first is right on part 0 alone, the second on part 1 alone: each is chosen where it is wrong
    answers = np.array([[0, 1, 1, 0], [1, 0, 0, 1]])
    assert cross_chosen(answers, true, parts, [0, 1]).tolist() == [1, 0, 1, 0]
    # one that is right on both is chosen for both
    assert cross_chosen(np.array([[1, 0, 1, 1], [0, 1, 0, 1]]), true, parts, [0, 1]).tolist() == true.tolist()


def test_the_best_is_judged_by_persons_that_did_not_choose_it(run_of, tmp_path):
    rng = np.random.default_rng(0)
    y = np.stack([rng.integers(0, 3, 140), rng.integers(0, 2, 140), rng.integers(0, 3, 140)], axis=1)
    # answers that have nothing to do with the truth: the best of them is best by chance
    runs = [run_of(rng.dirichlet(np.ones(8), 140), y, f"trial{i}") for i in range(4)]
    trials = [
        Tried(i, COMPLETE, {}, run.path, f1_score(run.oof["true"], run.oof["predicted"], average="macro"))
        for i, run in enumerate(runs)
    ]
    tuned = Tuned(tmp_path, trials, {})
    assert tuned.best.macro_f1 == max(one.macro_f1 for one in trials)
    judged = judge(tuned.ranked, draws=100)
    oof = tuned.run.oof
    chosen = np.full(len(oof), -1)
    for fold in range(5):
        here = oof["fold"].to_numpy() == fold
        classes = np.unique(oof["true"])
        scores = [
            f1_score(
                one.oof["true"][~here], one.oof["predicted"][~here], labels=classes, average="macro", zero_division=0
            )
            for one in (Tuned(tmp_path, [t], {}).run for t in tuned.ranked)
        ]
        chosen[here] = Tuned(tmp_path, [tuned.ranked[int(np.argmax(scores))]], {}).run.oof["predicted"][here]
    assert np.isclose(judged.honest.macro_f1, f1_score(oof["true"], chosen, average="macro"))
    assert np.isclose(judged.best.macro_f1, tuned.best.macro_f1)
    assert np.isclose(judged.less.macro_f1, judged.honest.macro_f1 - judged.best.macro_f1)
    assert judge(trials[:1]) is None
