import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from fastmask.api import Run
from fastmask.decision.crossfit import fit_run
from fastmask.evaluation.shift import Member, distances, judge, shift
from fastmask.heads import Head, Heads
from fastmask.inference.predictions import Predictions, predict
from fastmask.run.tensors import read_oof
from fastmask.system.errors import DataError, UsageError


def probabilities(rng, persons, sure=1.0, moved=0.0):
    """(persons * 7, 3): of the variance of photos four fifths are between persons."""
    z = 2 * rng.normal(size=(persons, 1, 3)) + rng.normal(size=(persons, 7, 3)) + moved
    return 1 / (1 + np.exp(-sure * z.reshape(-1, 3)))


def members(rng, persons=60, new=40, folds=3, moved=0.0):
    """Models of different confidence, all on the same new photos."""
    shared = probabilities(rng, new, moved=moved)
    return [
        Member(
            probabilities(rng, persons // folds, sure),
            np.repeat(np.arange(persons // folds) + 1000 * fold, 7),
            shared**sure / (shared**sure + (1 - shared) ** sure),
        )
        for fold, sure in enumerate(np.linspace(0.5, 2, folds))
    ]


def p_value(members, draws=100):
    observed, null = distances(members, draws)
    return judge(float(observed.mean()), null.mean(axis=1)).p


def simulated(n, **options):
    return np.array([p_value(members(np.random.default_rng(seed), **options)) for seed in range(n)])


@pytest.mark.parametrize("moved", [0.0, 0.5, 5.0])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(moved):
    rng = np.random.default_rng(0)
    member = Member(probabilities(rng, 50), np.repeat(np.arange(50), 7), probabilities(rng, 130, moved=moved))
    expected = [ks_2samp(a, b).statistic for a, b in zip(member.oof.T, member.new.T, strict=True)]
    assert distances([member], draws=1)[0] == pytest.approx(expected, abs=0.01)


def test_it_is_the_mean_over_members_by_their_rows():
    rng = np.random.default_rng(0)
    new = probabilities(rng, 30)
    pair = [Member(probabilities(rng, n), np.repeat(np.arange(n) + n, 7), new) for n in (10, 30)]
    small, large = (distances([member], 1)[0] for member in pair)
    assert distances(pair, 1)[0] == pytest.approx(0.25 * small + 0.75 * large)


@pytest.mark.parametrize("folds", [1, 3])
def test_chance_gives_a_false_alarm_about_once_in_twenty(folds):
    p = simulated(100, folds=folds)
    # the chance of more than 11 of 100 at one in twenty is 0.4 %
    assert (p <= 0.05).sum() <= 11
    assert 0.3 < np.median(p) < 0.75


def test_a_shift_is_found():
    assert (simulated(20, moved=1.5) <= 0.05).mean() >= 0.9


def test_neither_the_order_of_the_rows_nor_copies_of_them_matter():
    rng = np.random.default_rng(0)
    drawn, mixed = members(rng), []
    for member in drawn:
        rows = rng.permutation(len(member.oof))
        mixed.append(Member(member.oof[rows], member.persons[rows], rng.permutation(member.new)))
    for one, other in zip(distances(drawn), distances(mixed), strict=True):
        np.testing.assert_array_equal(one, other)
    seven = [Member(*(np.repeat(part, 7, axis=0) for part in (m.oof, m.persons, m.new))) for m in drawn]
    assert p_value(seven) == p_value(drawn)


def test_the_whole_contest_takes_a_second():
    rng = np.random.default_rng(0)
    # CPU time of this process, since other processes may be busy
    start = time.process_time()
    observed, null = distances(members(rng, 2700, 1800, 5))
    assert time.process_time() - start < 3
    assert null.shape == (500, 3)
    assert observed.mean() < 0.06


@pytest.fixture(scope="module")
def new(finished_run, contest):
    return predict(finished_run, contest / "eval" / "images", workers=0, device="cpu")


def test_predictions_of_a_run_are_compared(finished_run, new):
    found = shift(finished_run, new)
    assert list(found.heads) == ["mask", "gender", "age"]
    assert found.distance == pytest.approx(np.mean([d.distance for d in found.heads.values()]))
    assert found.shares["class"].tolist() == finished_run.heads.columns
    by_head = found.shares.groupby(found.shares["class"].str.split(".").str[0])[["oof", "new"]].sum()
    assert by_head.to_numpy() == pytest.approx(1)
    assert "28 photos count as 4 persons of 7.0 each" in str(found)
    assert "OOF has 12 persons in 2 folds: too few" in str(found)
    assert found.to_plain()["heads"]["age"]["p"] == found.heads["age"].p
    assert shift(finished_run, new).to_plain() == found.to_plain()


def test_the_oof_rows_are_those_of_the_model_that_predicts(finished_run, contest, new):
    # a fold's own photos have the same probabilities, whichever epoch oof.csv is of
    folds = finished_run.folds
    own = [contest / "train" / "images" / path for path in folds["path"][folds["fold"] == 0]]
    again = predict(finished_run, own, workers=0, device="cpu", members=["fold0"])
    epoch = int(finished_run.checkpoints(0)[0].stem.removeprefix("epoch"))
    assert again.members["fold0"] == pytest.approx(read_oof(finished_run.fold_path(0), epoch), abs=1e-5)
    found = shift(finished_run, again)
    assert found.distance < 0.03
    assert found.p > 0.9
    assert found.shares["oof"].tolist() == pytest.approx(found.shares["new"].tolist())


def test_a_shift_of_a_run(finished_run, new):
    flat = np.tile(np.eye(8)[[0, 3, 7]].sum(0), (700, 1))
    moved = Predictions([f"{i}.jpg" for i in range(700)], new.heads, flat, {"fold0": flat, "fold1": flat})
    found = shift(finished_run, moved)
    assert found.p == pytest.approx(1 / 501)
    assert "differ from OOF's by" in str(found)
    assert f"may not hold there; most: {found.shifted[0]}" in found.verdict
    assert found.shares.set_index("class")["new"]["age.60+"] == 1


def test_calibrated_predictions_are_refused(finished_run, new):
    decided = new.decide(fit_run(finished_run, "calibrated"))
    with pytest.raises(UsageError, match="calibrated by a rule"):
        shift(finished_run, decided)
    with pytest.raises(UsageError, match="decided already"):
        decided.decide(fit_run(finished_run, "calibrated"))


def test_members_that_the_run_does_not_have_are_left_out(finished_run, new):
    some = replace(new, members={"fold1": new.members["fold1"], "other": new.members["fold0"]})
    assert "Left out, because the run has no OOF predictions of them: other." in str(shift(finished_run, some))
    for message, other, options in (
        ("no photos predicted by a fold of", {"members": {"other": new.members["fold0"]}}, {}),
        ("other heads", {"heads": Heads([Head("a", ("x", "y"))])}, {}),
        ("0 draws", {}, {"draws": 0}),
    ):
        with pytest.raises(UsageError, match=message):
            shift(finished_run, replace(new, **other), **options)


def test_a_fold_without_a_checkpoint_is_named(run_copy, new):
    for file in (run_copy / "fold1").glob("epoch*"):
        file.unlink()
    with pytest.raises(DataError, match="fold1 has no checkpoint"):
        shift(Run.load(run_copy), new)
