import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from fastmask.api import Run
from fastmask.evaluation.decisions import fit_run
from fastmask.evaluation.shift import Member, distances, draw_photos, judge, shift
from fastmask.heads import Head, Heads
from fastmask.inference.predictions import Predictions, predict
from fastmask.run.tensors import read_oof
from fastmask.system.errors import DataError, UsageError


def draw_sizes(rng, kind, persons):
    """(persons,) photos of each: `kind` of them, or 1 to 20."""
    return np.minimum(rng.geometric(0.2, persons), 20) if kind == "unequal" else np.full(persons, kind)


def probabilities(rng, persons, sure=1.0, moved=0.0, each=7):
    """(photos, 3), and the person of each: of the variance of photos four fifths are between persons."""
    owner = np.repeat(np.arange(persons), draw_sizes(rng, each, persons))
    z = 2 * rng.normal(size=(persons, 3))[owner] + rng.normal(size=(len(owner), 3)) + moved
    return 1 / (1 + np.exp(-sure * z)), owner


def members(rng, persons=60, new=40, folds=3, moved=0.0, each=7, each_new=7):
    """Models of different confidence, all on the same new photos, and the persons of these."""
    shared, owner = probabilities(rng, new, moved=moved, each=each_new)
    made = []
    for fold, sure in enumerate(np.linspace(0.5, 2, folds)):
        oof, own = probabilities(rng, persons // folds, sure, each=each)
        made.append(Member(oof, own + 1000 * fold, shared**sure / (shared**sure + (1 - shared) ** sure)))
    return made, owner


def p_value(members, persons, draws=100):
    observed, null = distances(members, persons, draws)
    return judge(float(observed.mean()), null.mean(axis=1)).p


def simulated(n, **options):
    return np.array([p_value(*members(np.random.default_rng(seed), **options)) for seed in range(n)])


@pytest.mark.parametrize("moved", [0.0, 0.5, 5.0])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(moved):
    rng = np.random.default_rng(0)
    oof, owner = probabilities(rng, 50)
    new, persons = probabilities(rng, 130, moved=moved)
    expected = [ks_2samp(a, b).statistic for a, b in zip(oof.T, new.T, strict=True)]
    assert distances([Member(oof, owner, new)], persons, draws=1)[0] == pytest.approx(expected, abs=0.01)


def test_it_is_the_mean_over_members_by_their_rows():
    rng = np.random.default_rng(0)
    new, persons = probabilities(rng, 30)
    pair = [Member(*probabilities(rng, n), new) for n in (10, 30)]
    small, large = (distances([member], persons, 1)[0] for member in pair)
    assert distances(pair, persons, 1)[0] == pytest.approx(0.25 * small + 0.75 * large)


@pytest.mark.parametrize("folds", [1, 3, 6])
def test_chance_gives_a_false_alarm_about_once_in_twenty(folds):
    p = simulated(100, folds=folds)
    # the chance of more than 11 of 100 at one in twenty is 0.4 %
    assert (p <= 0.05).sum() <= 11
    assert 0.3 < np.median(p) < 0.75


@pytest.mark.parametrize(
    ("each", "each_new"), [(1, 7), (7, 1), (7, "unequal"), ("unequal", 7), ("unequal", "unequal"), (1, "unequal")]
)
def test_it_gives_no_more_whatever_photos_a_person_has(each, each_new):
    # where OOF has one photo per person, the draws of persons with as many as OOF's gave it in 61 %
    p = simulated(100, persons=90, new=60, each=each, each_new=each_new)
    assert (p <= 0.05).sum() <= 11
    # nor is it blind: a shift by two thirds of the deviation of persons
    assert (simulated(20, persons=90, new=60, each=each, each_new=each_new, moved=1.4) <= 0.05).mean() >= 0.8


def test_a_shift_is_found():
    assert (simulated(20, moved=1.5) <= 0.05).mean() >= 0.9


def test_a_draw_is_of_persons_with_as_many_photos():
    rng = np.random.default_rng(0)
    owner, sizes = np.repeat([0, 1, 2, 3], [1, 2, 4, 8]), np.array([1, 3, 4])
    counts = draw_photos(rng, owner, sizes, 20000)
    assert counts.shape == (20000, 15)
    assert (counts.sum(axis=1) == 8).all()
    # all photos are drawn as often
    assert counts.mean(axis=0) == pytest.approx(8 / 15, abs=0.03)
    # the photos of one draw of one person: never twice before all others were
    single = draw_photos(rng, owner, np.array([3]), 2000)
    persons = np.stack([single[:, owner == i].sum(axis=1) for i in range(4)])
    assert set(persons.ravel()) == {0, 3}
    assert {tuple(sorted(row[row > 0])) for row in single} == {(3,), (1, 2), (1, 1, 1)}


def test_neither_the_order_of_the_rows_nor_copies_of_them_matter():
    drawn, persons = members(np.random.default_rng(0))
    rng, mixed = np.random.default_rng(1), []
    rows = rng.permutation(len(persons))
    for member in drawn:
        own = rng.permutation(len(member.oof))
        mixed.append(Member(member.oof[own], member.persons[own], member.new[rows]))
    for one, other in zip(distances(drawn, persons), distances(mixed, persons[rows]), strict=True):
        np.testing.assert_array_equal(one, other)
    seven = [Member(*(np.repeat(part, 7, axis=0) for part in (m.oof, m.persons, m.new))) for m in drawn]
    assert p_value(seven, np.repeat(persons, 7)) == p_value(drawn, persons)


def test_the_whole_contest_takes_a_second():
    # CPU time of this process, since other processes may be busy
    drawn, persons = members(np.random.default_rng(0), 2700, 1800, 5)
    start = time.process_time()
    observed, null = distances(drawn, persons)
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
    assert found.p is found.heads["age"].p is found.to_plain()["p"] is None
    assert found.shifted == []
    assert "if new persons have as many photos each; they are unknown, so there is no p" in found.verdict
    assert "Assumed are 4 persons, with 7.0 photos each as in OOF" in str(found)
    assert "OOF has 12 persons in 2 folds: too few" in str(found)
    assert shift(finished_run, new).to_plain() == found.to_plain()


def test_the_persons_of_the_photos_give_a_p(finished_run, new):
    found = shift(finished_run, new, np.arange(28) // 7)
    assert 0 < found.p <= 1
    assert found.to_plain()["heads"]["age"]["p"] == found.heads["age"].p
    assert "The 28 photos are of 4 persons." in found.notes
    assert f"; p {found.p:.3f})" in found.verdict
    # with as many photos each as in OOF it is the distance that was assumed
    assert found.overall[::2] == shift(finished_run, new).overall[::2]
    one = shift(finished_run, new, np.zeros(28))
    assert "Those of OOF have only 7.0 photos each: the p is an upper limit." in one.notes
    assert one.p > found.p
    assert not any("of another person" in note for note in one.notes)
    with pytest.raises(UsageError, match="Found 3 persons for 28 photos"):
        shift(finished_run, new, np.arange(3))


def test_photos_that_count_as_persons_are_said(run_copy, new):
    folds = pd.read_csv(run_copy / "folds.csv", dtype=str, keep_default_na=False)
    folds.assign(person=folds["path"]).to_csv(run_copy / "folds.csv", index=False)
    notes = shift(Run.load(run_copy), new, np.arange(28) // 7).notes
    assert notes[1:3] == [
        "Those of OOF have only 1.0 photos each: the p is an upper limit.",
        "The p assumes that each photo of OOF is of another person.",
    ]


def test_the_oof_rows_are_those_of_the_model_that_predicts(finished_run, contest, new):
    # a fold's own photos have the same probabilities, whichever epoch oof.csv is of
    folds = finished_run.folds
    own = [contest / "train" / "images" / path for path in folds["path"][folds["fold"] == 0]]
    again = predict(finished_run, own, workers=0, device="cpu", members=["fold0"])
    epoch = int(finished_run.checkpoints(0)[0].stem.removeprefix("epoch"))
    assert again.members["fold0"] == pytest.approx(read_oof(finished_run.fold_path(0), epoch), abs=1e-5)
    found = shift(finished_run, again, folds["person"][folds["fold"] == 0].to_numpy())
    assert found.distance < 0.03
    assert found.p > 0.9
    assert found.shares["oof"].tolist() == pytest.approx(found.shares["new"].tolist())


def test_a_shift_of_a_run(finished_run, new):
    flat = np.tile(np.eye(8)[[0, 3, 7]].sum(0), (700, 1))
    moved = Predictions([f"{i}.jpg" for i in range(700)], new.heads, flat, {"fold0": flat, "fold1": flat})
    found = shift(finished_run, moved, np.arange(700) // 7)
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
