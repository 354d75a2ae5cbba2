import json

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, cross_val_predict

from fastmask.data.contest import contest_heads
from fastmask.decision.temperature import apply_temperature, fit_temperature
from fastmask.heads import Head, Heads
from fastmask.inference.blend import BLENDS, cross_blend, fit_blend, widen
from fastmask.inference.mixture import Arrays, Vote, Weighted, fit_weights
from fastmask.inference.stack import PENALTIES, choose_penalty, features
from fastmask.system.errors import UsageError

HEADS = contest_heads()


def votes(members):
    """Equal votes of (members, N, classes)."""
    return Vote(np.full(len(members), 1 / len(members))).mix(Arrays(), list(members), members.shape[-1])


def by_slsqp(likelihoods):
    """The same weights by another way: scipy's constrained minimiser on the log loss itself."""
    count = likelihoods.shape[1]
    found = minimize(
        lambda w: -np.log(likelihoods @ w).mean(),
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12},
    )
    return found.x


def test_the_mean_is_the_mean_of_probabilities(labels, guess):
    members = [guess(labels, seed) for seed in range(3)]
    blend = fit_blend("mean", HEADS, members, labels)
    np.testing.assert_allclose(blend.mix(members), np.mean(members, axis=0))
    assert blend.to_plain()["weights"]["mask"] == pytest.approx([1 / 3] * 3)


def test_weights_by_hand_are_for_all_heads_or_by_head(labels, guess):
    members = [guess(labels, seed) for seed in range(3)]
    blend = fit_blend("mean", HEADS, members, labels, weights=[2, 1, 1])
    np.testing.assert_allclose(blend.mix(members), np.average(members, axis=0, weights=[2, 1, 1]))
    # the first outvotes no two others, and decides where they differ
    chosen = HEADS.argmax(fit_blend("vote", HEADS, members, labels, weights=[3, 2, 2]).mix(members))
    first, second, third = map(HEADS.argmax, members)
    assert (chosen == np.where(second == third, second, first)).all()
    blend = fit_blend("mean", HEADS, members, labels, weights={"age": [0, 0, 5]})
    assert blend.mixtures["age"].members == [2]
    assert blend.mixtures["mask"].members == [0, 1, 2]
    no_age = widen(HEADS, Heads([HEADS["mask"], HEADS["gender"]]), members[2][:, :5])
    with pytest.raises(UsageError, match="The runs that have learned age have weights of 0"):
        fit_blend("mean", HEADS, [*members[:2], no_age], labels, weights=[0, 0, 1])
    for weights, match in (
        ([1, 2], "The weights are 1, 2; expected 3 numbers of 0 or more"),
        ([1, 2, -1], "The weights are 1, 2, -1; expected 3"),
        ([1, 2, np.nan], "expected 3 numbers"),
        (["a", "b", "c"], "expected 3 numbers, one per run"),
        ({"age": 1}, "The weights are 1; expected 3 numbers, one per run"),
        ({"hat": [1, 1, 1]}, "weights of hat; the heads that are blended are mask, gender, age"),
    ):
        with pytest.raises(UsageError, match=match):
            fit_blend("mean", HEADS, members, labels, weights=weights)
    with pytest.raises(UsageError, match="The blend stack fits its own weights; .* or use --blend mean or vote"):
        fit_blend("stack", HEADS, members, labels, weights=[1, 1, 1])


def test_a_stack_is_scikit_learns_regression_with_the_best_penalty_of_other_persons(labels, guess):
    members = [guess(labels, seed, knows=1 + seed / 4).clip(0, 1) for seed in range(3)]
    persons = np.arange(len(labels)) // 7
    unknown = labels.copy()
    unknown[:21, 2] = -1
    blend = fit_blend("stack", HEADS, members, unknown, persons)
    mixed = HEADS.split(blend.mix(members))
    for place, name in enumerate(HEADS.names):
        x = np.log(np.concatenate([HEADS.split(member)[place] for member in members], axis=1).clip(1e-7))
        y, known = unknown[:, place], unknown[:, place] >= 0
        losses = []
        for c in PENALTIES:
            model, folds = LogisticRegression(C=c, max_iter=1000), GroupKFold(5).split(x[known], groups=persons[known])
            each = cross_val_predict(model, x[known], y[known], cv=list(folds), method="predict_proba")
            losses.append(log_loss(y[known], each))
        stack = blend.mixtures[name]
        assert stack.penalty == PENALTIES[int(np.argmin(losses))]
        by_hand = LogisticRegression(C=stack.penalty, max_iter=1000).fit(x[known], y[known])
        np.testing.assert_allclose(mixed[place], by_hand.predict_proba(x), atol=1e-6)


@pytest.mark.slow
def test_a_stack_is_cross_fitted_and_written_as_plain_numbers(labels, guess):
    members, parts = [guess(labels, 0), guess(labels, 1, knows=2)], np.arange(len(labels)) // 7 % 3
    persons = np.arange(len(labels)) // 7
    mixed = cross_blend("stack", HEADS, members, labels, parts, persons)
    other = labels.copy()
    other[parts == 2] = (other[parts == 2] + 1) % [3, 2, 3]
    again = cross_blend("stack", HEADS, members, other, parts, persons)
    np.testing.assert_array_equal(mixed[parts == 2], again[parts == 2])
    assert (mixed[parts == 1] != again[parts == 1]).any()
    # better than chance, and than a mean that a useless member spoils
    useless = np.concatenate([np.full((len(labels), size), 1 / size) for size in HEADS.sizes], axis=1)
    spoilt = [members[1], useless, useless]
    losses = [
        log_loss(labels[:, 0], cross_blend(how, HEADS, spoilt, labels, parts, persons)[:, :3])
        for how in ("stack", "mean")
    ]
    assert losses[0] < losses[1]
    stack = fit_blend("stack", HEADS, members, labels, persons).mixtures["mask"]
    plain = json.loads(json.dumps(stack.to_plain()))
    back = type(stack).from_plain(plain, 2, 3)
    parts_of_mask = [member[:, :3] for member in members]
    np.testing.assert_array_equal(*(one.mix(Arrays(), parts_of_mask, 3) for one in (stack, back)))
    for change in ({"coefficients": [[1]]}, {"intercepts": ["a", 1, 2]}, {"penalty": None}, {"weights": [2, -1]}):
        with pytest.raises(ValueError, match=r"."):
            type(stack).from_plain({**plain, **change}, 2, 3)


def test_a_stack_of_too_few_labels_is_a_geometric_mean_and_an_unseen_class_has_no_chance(labels, guess):
    members, none = [guess(labels, 0), guess(labels, 1)], np.full_like(labels, -1)
    mixed = fit_blend("stack", HEADS, members, none).mix(members)
    geometric = np.exp(np.mean(np.log(members), axis=0))
    expected = [part / part.sum(1, keepdims=True) for part in HEADS.split(geometric)]
    np.testing.assert_allclose(HEADS.split(mixed)[2], expected[2])
    few = labels.copy()
    few[few[:, 2] == 2, 2] = -1
    age = HEADS.split(fit_blend("stack", HEADS, members, few).mix(members))[2]
    assert age[:, 2].max() < 1e-12
    np.testing.assert_allclose(age.sum(1), 1)
    assert choose_penalty(features([members[0][:, :3]]), labels[:, 0], np.zeros(len(labels)), 3) == 1


def test_oof_weights_are_of_members_at_their_own_temperatures(labels, guess):
    members = [guess(labels, 0, knows=1.5), guess(labels, 1, knows=1.5)]
    sharp = np.concatenate([apply_temperature(part, 0.2) for part in HEADS.split(members[1])], axis=1)
    blend = fit_blend("oof", HEADS, [members[0], sharp], labels)
    calm = fit_blend("oof", HEADS, members, labels)
    for name, place in zip(HEADS.names, range(3), strict=True):
        one, other = blend.mixtures[name], calm.mixtures[name]
        part = HEADS.split(sharp)[place]
        assert one.temperatures[1] == pytest.approx(fit_temperature(part, labels[:, place]))
        assert one.temperatures[1] == pytest.approx(other.temperatures[1] * 5, rel=1e-3)
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-3)
    # a member that is too sure is worth as much as when it is not
    np.testing.assert_allclose(blend.mix([members[0], sharp]), calm.mix(members), atol=1e-3)
    old = Weighted.from_plain([0.25, 0.75], 2, 3)
    np.testing.assert_allclose(
        old.mix(Arrays(), [m[:, :3] for m in members], 3)[0], members[0][0, :3] / 4 + members[1][0, :3] * 0.75
    )


def test_a_vote_is_a_share_and_the_mean_decides_a_tie():
    one, two, three = [0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.0, 0.4, 0.6]
    # two votes for class 1 against one, though the mean of the probabilities is highest for 0
    won = votes(np.array([[[0.9, 0.1, 0.0]], [[0.4, 0.6, 0.0]], [[0.45, 0.55, 0.0]]]))
    mean = np.array([1.75, 1.25, 0]) / 3
    np.testing.assert_allclose(won, [(np.array([1, 2, 0]) / 3 + mean / 1000) / 1.001])
    assert won.argmax() == 1
    # a vote each: by the mean 0.233, 0.567, 0.2
    tied = votes(np.array([[one], [two], [three]]))
    assert tied.argmax() == 1
    assert tied.sum() == pytest.approx(1)


def test_votes_are_counted_photo_by_photo(labels, guess):
    members = [guess(labels, seed) for seed in range(3)]
    mean = HEADS.split(np.mean(members, axis=0))
    chosen = HEADS.argmax(fit_blend("vote", HEADS, members, labels).mix(members))
    for i, size in enumerate(HEADS.sizes):
        counts = np.stack([(np.stack([HEADS.argmax(m)[:, i] for m in members]) == c).sum(0) for c in range(size)], 1)
        clear = counts.max(1) > 1
        assert (chosen[:, i] == np.where(clear, counts.argmax(1), mean[i].argmax(1))).all()
    assert not clear.all()


def test_no_mean_outweighs_a_vote_of_a_hundred_members():
    rng = np.random.default_rng(0)
    for _ in range(50):
        members = rng.dirichlet([0.3] * 3, size=(100, 20))
        counts = np.stack([(members.argmax(-1) == c).sum(0) for c in range(3)], axis=1)
        chosen = votes(members).argmax(1)
        assert (counts[np.arange(20), chosen] == counts.max(1)).all()


@pytest.mark.parametrize("members", [2, 3, 6])
def test_the_weights_are_those_of_the_least_log_loss(labels, guess, members):
    whole = [guess(labels, seed, knows=0.5 + seed / 2) for seed in range(members)]
    parts = [each[:, 5:] for each in whole]
    likelihoods = np.stack([part[np.arange(len(labels)), labels[:, 2]] for part in parts], axis=1)
    weights = fit_weights(likelihoods)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    ours, theirs = (log_loss(labels[:, 2], np.tensordot(w, parts, axes=1)) for w in (weights, by_slsqp(likelihoods)))
    assert ours <= theirs + 1e-6
    softened = [apply_temperature(part, fit_temperature(part, labels[:, 2])) for part in parts]
    expected = fit_weights(np.stack([part[np.arange(len(labels)), labels[:, 2]] for part in softened], axis=1))
    np.testing.assert_allclose(fit_blend("oof", HEADS, whole, labels).mixtures["age"].weights, expected, atol=1e-12)


def test_a_useless_member_has_no_weight_and_equal_ones_share():
    likelihoods = np.random.default_rng(0).uniform(0.5, 0.9, 200)
    np.testing.assert_allclose(fit_weights(np.stack([likelihoods, likelihoods], axis=1)), [0.5, 0.5])
    np.testing.assert_allclose(fit_weights(np.stack([likelihoods, likelihoods / 3], axis=1)), [1, 0], atol=1e-5)
    # half precision rounds to a likelihood of 0
    assert np.isfinite(fit_weights(np.zeros((3, 2)))).all()


def test_weights_of_a_head_without_labels_are_equal(labels, guess):
    unknown = labels.copy()
    unknown[:, 1] = -1
    mixtures = fit_blend("oof", HEADS, [guess(labels, 0), guess(labels, 1, knows=3)], unknown).mixtures
    assert mixtures["gender"].weights.tolist() == [0.5, 0.5]
    assert mixtures["age"].weights[1] > 0.8


def test_a_head_is_blended_of_the_members_that_have_it(labels, guess):
    mask, age = Heads([HEADS["mask"]]), Heads([HEADS["gender"], HEADS["age"]])
    one = widen(HEADS, mask, guess(labels[:, :1], 0, heads=mask))
    two = widen(HEADS, age, guess(labels[:, 1:], 1, heads=age))
    both = guess(labels, 2)
    assert np.isnan(one[:, 3:]).all()
    for how in BLENDS:
        blend = fit_blend(how, HEADS, [one, two, both], labels)
        assert [blend.mixtures[n].members for n in HEADS.names] == [[0, 2], [1, 2], [1, 2]]
        mixed = blend.mix([one, two, both])
        np.testing.assert_allclose([part.sum(1) for part in HEADS.split(mixed)], 1)
    np.testing.assert_allclose(fit_blend("mean", HEADS, [one, two], labels).mix([one, two])[:, :3], one[:, :3])


@pytest.mark.parametrize("how", BLENDS)
def test_a_distribution_is_averaged_whatever_the_blend(how):
    heads = Heads([Head("mask", ("wear", "none")), Head("age_number", ("20", "21", "22"), spread=1.0)])
    rng = np.random.default_rng(0)
    members = [np.hstack([rng.dirichlet([1, 1], 50), rng.dirichlet([1, 1, 1], 50)]) for _ in range(3)]
    y = np.stack([rng.integers(2, size=50), rng.integers(3, size=50)], axis=1)
    mixed = fit_blend(how, heads, members, y).mix(members)
    np.testing.assert_allclose(mixed[:, 2:], np.mean(members, axis=0)[:, 2:])


def test_no_row_is_blended_by_weights_fitted_on_its_own_label(labels, guess):
    members, parts = [guess(labels, 0), guess(labels, 1, knows=2)], np.arange(len(labels)) // 7 % 5
    mixed = cross_blend("oof", HEADS, members, labels, parts)
    other = labels.copy()
    other[parts == 2] = (other[parts == 2] + 1) % [3, 2, 3]
    again = cross_blend("oof", HEADS, members, other, parts)
    np.testing.assert_array_equal(mixed[parts == 2], again[parts == 2])
    assert (mixed[parts == 1] != again[parts == 1]).any()
    by_hand = fit_blend("oof", HEADS, [m[parts != 2] for m in members], labels[parts != 2])
    np.testing.assert_allclose(mixed[parts == 2], by_hand.mix([m[parts == 2] for m in members]))


def test_an_unknown_blend_is_refused(labels, guess):
    with pytest.raises(UsageError, match="no blend 'median'; expected one of mean, vote, oof, stack"):
        fit_blend("median", HEADS, [guess(labels, 0)], labels)
