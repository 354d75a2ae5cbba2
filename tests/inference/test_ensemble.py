import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

import fastmask as fm
from fastmask.api import Run, blend_runs, merge_runs
from fastmask.data.contest import contest_heads
from fastmask.data.folds import person_parts
from fastmask.evaluation.decisions import decide
from fastmask.evaluation.diff import expected_change
from fastmask.evaluation.label_errors import find_label_errors
from fastmask.heads import Heads
from fastmask.inference.blend import Blend, cross_blend, fit_blend
from fastmask.scoring import make_target, score_differences
from fastmask.system.errors import UsageError

HEADS = contest_heads()


@pytest.fixture
def pair(run_of, guess, labels):
    """Two runs of the same photos, the second of them in another order."""
    order = np.random.default_rng(5).permutation(len(labels))
    return (
        run_of(guess(labels, 1), labels, "a"),
        run_of(guess(labels, 2, knows=1.8), labels, "b", order=order),
    )


def in_rows_of(first, run):
    return run.oof.set_index("path").loc[first.oof["path"]][list(run.heads.columns)].to_numpy()


def test_the_ensemble_is_a_run_that_everything_downstream_reads(pair, tmp_path):
    blended = fm.blend_runs(pair, out=tmp_path / "both")
    run = Run.load(tmp_path / "both")
    mean = (pair[0].probabilities + in_rows_of(*pair)) / 2
    np.testing.assert_allclose(run.probabilities, mean, atol=1e-8)
    assert run.oof["path"].tolist() == pair[0].oof["path"].tolist()
    expected = f1_score(HEADS.joint(pair[0].true), HEADS.joint(HEADS.argmax(mean)), average="macro")
    assert run.score().joint.macro_f1 == pytest.approx(expected) == blended.targets["joint"].score.macro_f1
    assert run.scores["joint"]["macro_f1"] == pytest.approx(expected)
    assert decide(run, draws=100).rows[0].score.macro_f1 == pytest.approx(expected)
    assert find_label_errors(run)
    gain = expected_change(pair[0], run, draws=100).difference.macro_f1
    assert gain == pytest.approx(expected - pair[0].score(0).joint.macro_f1)
    assert run.trained_folds == []
    assert sorted(p.name for p in run.path.iterdir()) == sorted(
        ["config.yaml", "heads.json", "environment.json", "folds.csv", "oof.csv", "scores.json", "ensemble.json"]
    )


@pytest.mark.parametrize("how", ["vote", "oof", pytest.param("stack", marks=pytest.mark.slow)])
def test_oof_rows_are_blended_by_weights_of_other_folds_and_kept_weights_are_of_all(pair, how, tmp_path):
    run = blend_runs(pair, how, out=tmp_path / "both", draws=0).run
    members, y = [pair[0].probabilities, in_rows_of(*pair)], pair[0].true
    persons = pair[0].persons
    crossed = cross_blend(how, HEADS, members, y, pair[0].oof["fold"].to_numpy(), persons)
    np.testing.assert_allclose(run.probabilities, crossed, atol=1e-8)
    fitted = fit_blend(how, HEADS, members, y, persons)
    np.testing.assert_allclose(Blend.of(run).mix(members), fitted.mix(members), atol=1e-8)
    # the optimistic score is that of the kept weights
    predicted = HEADS.joint(HEADS.argmax(fitted.mix(members)))
    flattering = f1_score(HEADS.joint(y), predicted, average="macro")
    assert run.scores["optimistic"]["joint"]["macro_f1"] == pytest.approx(flattering)


def test_weights_by_hand_are_kept(pair, tmp_path):
    blended = blend_runs(pair, out=tmp_path / "both", weights=[3, 1], draws=0)
    mean = 0.75 * pair[0].probabilities + 0.25 * in_rows_of(*pair)
    np.testing.assert_allclose(blended.run.probabilities, mean, atol=1e-8)
    assert json.loads((tmp_path / "both" / "ensemble.json").read_text())["weights"]["age"] == [0.75, 0.25]
    assert "weights of age: a 0.750, b 0.250" in str(blended)
    assert blended.to_plain()["weights"]["age"] == {"a": 0.75, "b": 0.25}
    with pytest.raises(UsageError, match="The blend oof fits its own weights"):
        blend_runs(pair, "oof", out=tmp_path / "no", weights=[3, 1])


def test_gains_are_paired_by_person(pair, tmp_path):
    blended = blend_runs(pair, out=tmp_path / "both")
    joint = blended.targets["joint"]
    assert [one.member for one in joint.members] == ["a", "b"]
    members = [pair[0].predicted, HEADS.argmax(in_rows_of(*pair))]
    for one, predicted in zip(joint.members, members, strict=True):
        both = (predicted, blended.run.predicted)
        targets = [make_target(HEADS, y, pair[0].true, "joint", pair[0].classes) for y in both]
        assert [one.gain] == score_differences(targets, pair[0].persons)
    assert joint.best.member == max(joint.members, key=lambda one: one.score.macro_f1).member
    assert f"{joint.best.member} is the best run by these same OOF predictions" in str(blended)
    assert blended.to_plain()["best"] == joint.best.member


def test_runs_of_one_head_each_form_an_ensemble(run_of, guess, labels, tmp_path):
    mask, age = Heads([HEADS["mask"]]), Heads([HEADS["age"], HEADS["gender"]])
    runs = [
        run_of(guess(labels[:, :1], 1, heads=mask), labels[:, :1], "mask", heads=mask),
        run_of(guess(labels[:, [2, 1]], 2, heads=age), labels[:, [2, 1]], "rest", heads=age),
    ]
    blended = blend_runs(runs, "oof", out=tmp_path / "whole", draws=0)
    # in the order of the run with the most heads, then of the others
    assert blended.run.heads.names == ("age", "gender", "mask")
    np.testing.assert_allclose(blended.run.probabilities[:, 5:], runs[0].probabilities)
    np.testing.assert_allclose(blended.run.probabilities[:, :5], runs[1].probabilities)
    assert blended.targets["joint"].members == []
    assert [one.member for one in blended.targets["mask"].members] == ["mask"]
    assert "lacks a head" in str(blended)
    assert blended.to_plain()["best"] is None
    assert list(blended.run.folds.columns) == ["path", "person", "age", "gender", "mask", "fold"]


def test_a_head_of_weight_0_was_never_learned_and_is_not_blended(run_of, guess, labels, tmp_path):
    def learned(seed, *names):
        heads = Heads([replace(head, weight=float(head.name in names)) for head in HEADS])
        return run_of(guess(labels, seed, heads=heads), labels, "-".join(names), heads=heads)

    runs = [learned(0, "mask"), learned(1, "gender", "age"), learned(2, "mask", "age")]
    assert "Heads gender, age (weight 0) were never learned" in str(runs[0].score(draws=0))
    run = blend_runs(runs, out=tmp_path / "whole", draws=0).run
    assert run.heads.names == HEADS.names
    assert run.caveats == []
    parts = [HEADS.split(one.probabilities) for one in (run, *runs)]
    for place, own in enumerate(((0, 2), (1,), (1, 2))):
        np.testing.assert_allclose(parts[0][place], np.mean([parts[1 + i][place] for i in own], axis=0), atol=1e-8)


def test_caveats_of_members_are_those_of_the_ensemble(run_of, guess, labels, tmp_path):
    runs = [
        run_of(guess(labels, 1), labels, "honest"),
        run_of(guess(labels, 2), labels, "leaky", group="none"),
        run_of(guess(labels, 3), labels, "chosen", environment={"start": {"chosen_weights": True}}),
        run_of(guess(labels, 4), labels, "proposed", environment={"proposed_fixes": 3}),
    ]
    run = Run.load(blend_runs(runs, out=tmp_path / "all", draws=0).run.path)
    assert [c.split(": ")[0] for c in run.caveats] == [str(r.path) for r in runs[1:]]
    for words in ("Leaky split", "chosen by their own photos", "3 corrections of labels"):
        assert any(words in note for note in run.score(0).notes)
        assert any(words in note for note in run.scores["notes"])
    assert run.config.group == "none"


def test_parts_of_runs_are_blended_where_they_are_the_same_part(run_of, guess, labels, tmp_path):
    runs = []
    for name, seed in (("a", 1), ("b", 2)):
        run = run_of(guess(labels, seed), labels, name)
        oof = pd.read_csv(run.path / "oof.csv")
        oof[oof["fold"] < 2].to_csv(run.path / "oof.csv", index=False)
        runs.append(run)
    run = blend_runs([Run.load(run.path) for run in runs], out=tmp_path / "both", draws=0).run
    assert len(run.oof) == 2 * len(labels) // 5
    assert all("Of 5 folds only folds 0, 1 are trained: a part of the photos." in caveat for caveat in run.caveats)
    whole = run_of(guess(labels, 3), labels, "whole")
    run = blend_runs([whole, runs[0].path], out=tmp_path / "part", draws=0).run
    assert len(run.oof) == 168
    assert "Scored on the 168 photos that all runs have; runs with more photos: whole 420." in run.caveats


def test_folds_may_differ_and_persons_are_kept_whole(run_of, guess, labels, tmp_path):
    one = run_of(guess(labels, 1), labels, "five")
    two = run_of(guess(labels, 2), labels, "three", folds=3)
    blended = blend_runs([one, two], "oof", out=tmp_path / "both", draws=0)
    assert (blended.run.folds["fold"] == one.folds["fold"]).all()
    assert any("three differ" in note for note in blended.notes)
    torn = run_of(guess(labels, 3), labels, "torn", group="none")
    frames = {name: pd.read_csv(torn.path / name) for name in ("folds.csv", "oof.csv")}
    for name, frame in frames.items():
        frame.assign(fold=np.arange(len(frame)) % 5).to_csv(torn.path / name, index=False)
    run = blend_runs([torn.path, one], "oof", out=tmp_path / "dealt", draws=0).run
    # the seven photos of a person lie in several folds, and are in one part
    members = [Run.load(torn.path).probabilities, in_rows_of(run, one)]
    parts = person_parts(run.oof["fold"].to_numpy(), run.persons)
    assert pd.Series(parts).groupby(run.persons).nunique().max() == 1
    assert len(set(parts)) == 5
    crossed = cross_blend("oof", HEADS, members, run.true, parts)
    np.testing.assert_allclose(run.probabilities, crossed, atol=1e-8)


def test_persons_who_share_photos_in_any_run_are_one_group(run_of, guess, labels, tmp_path):
    runs = [run_of(guess(labels, seed), labels, f"run{seed}") for seed in (1, 2, 3)]
    for run, (one, other) in zip(runs[1:], (("p0000", "p0005"), ("p0005", "p0010")), strict=True):
        frame = pd.read_csv(run.path / "folds.csv", dtype=str)
        frame.insert(2, "same_as", frame["person"].replace(other, one))
        frame.to_csv(run.path / "folds.csv", index=False)
    run = blend_runs([run.path for run in runs], out=tmp_path / "all", draws=0).run
    assert run.folds["same_as"].tolist() == run.folds["person"].replace(["p0005", "p0010"], "p0000").tolist()
    assert run.groups.tolist() == run.folds["same_as"].tolist()
    assert run.persons.tolist() == runs[0].persons.tolist()
    assert not run.caveats


def test_unknown_labels_are_left_out(run_of, guess, labels, tmp_path):
    some = labels.copy()
    some[::3, 2] = -1
    runs = [run_of(guess(labels, seed), some, name) for name, seed in (("a", 1), ("b", 2))]
    run = blend_runs(runs, "oof", out=tmp_path / "both", draws=0).run
    assert run.score(0).joint.n == (some[:, 2] >= 0).sum()


def test_heads_may_be_trained_by_other_bounds_and_not_scored_by_others(pair, run_of, guess, labels, tmp_path):
    def with_age(**changed):
        return Heads([HEADS["mask"], HEADS["gender"], replace(HEADS["age"], **changed)])

    trained = run_of(guess(labels, 3), labels, "58", heads=with_age(train_bounds=(30.0, 58.0)))
    assert blend_runs([pair[0], trained], out=tmp_path / "both", draws=0).run.heads == HEADS
    other = run_of(guess(labels, 4), labels, "50", heads=with_age(bounds=(30.0, 50.0), train_bounds=None))
    blended = blend_runs([pair[0], other], out=tmp_path / "fifty", draws=0)
    assert blended.run.heads == HEADS
    assert "Bounds of age in 50 are 30, 50; all are scored by those of a, 30, 60." in blended.notes


def test_runs_that_do_not_fit_together_are_refused(pair, run_of, guess, labels, tmp_path):
    def refused(match, *runs, out="no", **options):
        with pytest.raises(UsageError, match=match):
            blend_runs(runs, out=tmp_path / out, **options)
        assert not (tmp_path / "no").exists()

    def odd(name, y=labels, **options):
        return run_of(guess(y, 7, heads=options.get("heads")), y, name, **options)

    moved = np.arange(420) // 7 + 1
    classes = Heads([replace(HEADS["mask"], classes=("on", "wrong", "off")), HEADS["gender"], HEADS["age"]])
    refused(
        r"420 of 420 photos have other persons, such as 00000\.jpg, of person p0000 in the first, of p0001",
        pair[0],
        odd("p", persons=moved),
    )
    named = "the classes of head mask are wear, incorrect, none in the first, on, wrong, off"
    refused(named, pair[0], odd("c", heads=classes))
    refused("2 to 100 runs; found 1", pair[0])
    refused("a is named twice", pair[0], pair[1], tmp_path / "b" / ".." / "a")
    refused("both is an ensemble, which has no models", blend_runs(pair, out=tmp_path / "both", draws=0).run, pair[0])
    refused("a is one of the runs; name another --out", *pair, out="a", overwrite=True)
    refused("no blend 'median'", *pair, how="median")
    (tmp_path / "b" / "oof.csv").unlink()
    refused("b has no oof.csv: the run has not finished", pair[0], tmp_path / "b")


def test_one_person_cannot_be_fitted_and_scored(run_of, guess, labels, tmp_path):
    runs = [run_of(guess(labels[:7], 1), labels[:7], name, persons=np.zeros(7, int)) for name in ("a", "b")]
    with pytest.raises(UsageError, match="a has only one person"):
        blend_runs(runs, out=tmp_path / "no")


def test_an_ensemble_is_replaced_only_with_overwrite(pair, tmp_path):
    blend_runs(pair, out=tmp_path / "both", draws=0)
    with pytest.raises(UsageError, match="both exists"):
        blend_runs(pair, "vote", out=tmp_path / "both")
    blend_runs(pair, "vote", out=tmp_path / "both", overwrite=True, draws=0)
    assert json.loads((tmp_path / "both" / "ensemble.json").read_text())["blend"] == "vote"


def test_it_has_no_models_of_its_own(pair, tmp_path):
    run = blend_runs(pair, out=tmp_path / "both", draws=0).run
    for ask in (lambda: merge_runs([run, pair[0]], tmp_path / "m"), lambda: run.history(0), lambda: run.checkpoints(0)):
        with pytest.raises(UsageError, match="both is an ensemble, which has no models"):
            ask()


def test_its_identity_is_that_of_its_members_and_their_blend(pair, tmp_path):
    one, same = (blend_runs(pair, out=tmp_path / name, draws=0).run for name in ("one", "same"))
    assert one.identity == same.identity != blend_runs(pair, "vote", out=tmp_path / "vote", draws=0).run.identity
