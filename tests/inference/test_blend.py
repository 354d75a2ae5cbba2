import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import log_loss

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.inference.blend import cross_blend, fit_blend, fit_weights, votes, widen
from fastmask.system.errors import UsageError

HEADS = contest_heads()


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
    np.testing.assert_array_equal(fit_blend("oof", HEADS, whole, labels).weights["age"], weights)


def test_a_useless_member_has_no_weight_and_equal_ones_share():
    likelihoods = np.random.default_rng(0).uniform(0.5, 0.9, 200)
    np.testing.assert_allclose(fit_weights(np.stack([likelihoods, likelihoods], axis=1)), [0.5, 0.5])
    np.testing.assert_allclose(fit_weights(np.stack([likelihoods, likelihoods / 3], axis=1)), [1, 0], atol=1e-5)
    # half precision rounds to a likelihood of 0
    assert np.isfinite(fit_weights(np.zeros((3, 2)))).all()


def test_weights_of_a_head_without_labels_are_equal(labels, guess):
    unknown = labels.copy()
    unknown[:, 1] = -1
    weights = fit_blend("oof", HEADS, [guess(labels, 0), guess(labels, 1, knows=3)], unknown).weights
    assert weights["gender"].tolist() == [0.5, 0.5]
    assert weights["age"][1] > 0.8


def test_a_head_is_blended_of_the_members_that_have_it(labels, guess):
    mask, age = Heads([HEADS["mask"]]), Heads([HEADS["gender"], HEADS["age"]])
    one = widen(HEADS, mask, guess(labels[:, :1], 0, heads=mask))
    two = widen(HEADS, age, guess(labels[:, 1:], 1, heads=age))
    both = guess(labels, 2)
    assert np.isnan(one[:, 3:]).all()
    for how in ("mean", "vote", "oof"):
        blend = fit_blend(how, HEADS, [one, two, both], labels)
        assert [np.flatnonzero(blend.weights[n]).tolist() for n in HEADS.names] == [[0, 2], [1, 2], [1, 2]]
        mixed = blend.mix([one, two, both])
        np.testing.assert_allclose([part.sum(1) for part in HEADS.split(mixed)], 1)
    np.testing.assert_allclose(fit_blend("mean", HEADS, [one, two], labels).mix([one, two])[:, :3], one[:, :3])


@pytest.mark.parametrize("how", ["mean", "vote", "oof"])
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
    with pytest.raises(UsageError, match="no blend 'median'; expected one of mean, vote, oof"):
        fit_blend("median", HEADS, [guess(labels, 0)], labels)
