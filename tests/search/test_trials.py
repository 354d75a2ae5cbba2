import numpy as np
from sklearn.metrics import f1_score

from fastmask.search.trials import COMPLETE, TrialResult, Tuned, judge


def test_the_best_is_judged_by_persons_that_did_not_choose_it(run_of, tmp_path):
    rng = np.random.default_rng(0)
    y = np.stack([rng.integers(0, 3, 140), rng.integers(0, 2, 140), rng.integers(0, 3, 140)], axis=1)
    # random answers: the best of them is best by chance
    runs = [run_of(rng.dirichlet(np.ones(8), 140), y, f"trial{i}") for i in range(4)]
    trials = [
        TrialResult(i, COMPLETE, {}, run.path, f1_score(run.oof["true"], run.oof["predicted"], average="macro"))
        for i, run in enumerate(runs)
    ]
    tuned = Tuned(tmp_path, trials, {})
    assert tuned.best.macro_f1 == max(one.macro_f1 for one in trials)
    judged, oof = judge(tuned.ranked, draws=100), tuned.run.oof
    folds, true = oof["fold"].to_numpy(), oof["true"].to_numpy()
    answers = [runs[one.number].oof["predicted"].to_numpy() for one in tuned.ranked]
    chosen = np.empty_like(true)
    for fold in range(5):
        others, options = folds != fold, {"labels": np.unique(true), "average": "macro", "zero_division": 0}
        best = max(answers, key=lambda one: f1_score(true[others], one[others], **options))
        chosen[~others] = best[~others]
    assert np.isclose(judged.honest.macro_f1, f1_score(true, chosen, average="macro"))
    assert np.isclose(judged.best.macro_f1, tuned.best.macro_f1)
    assert np.isclose(judged.less.macro_f1, judged.honest.macro_f1 - judged.best.macro_f1)
    assert judge(trials[:1]) is None
