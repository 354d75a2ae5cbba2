import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.api import Run, blend_runs
from fastmask.data.contest import contest_heads
from fastmask.evaluation.comparison import Against, Comparison, Result, compare, holm, two_sided_p
from fastmask.evaluation.diff import expected_change
from fastmask.heads import Head, Heads
from fastmask.scoring import Difference, Score
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings


def result(name, macro_f1, against=None):
    score = Score(macro_f1, 0.9, 50, (macro_f1 - 0.1, macro_f1 + 0.1), (0.8, 0.95))
    return Result(name, Path(name), score, {"hat": score}, {"red": macro_f1, "blue": 0.25}, against)


def made(difference, p_holm=0.01, comparisons=1):
    """A comparison of two results, of which the second is better by `difference`."""
    interval = (difference - 0.1, difference + 0.1)
    against = Against(Difference(difference, 0.01, interval, (0, 0)), 0.01, p_holm, comparisons)
    return Comparison([result("a", 0.5), result("b", 0.5 + difference, against)], 50, {"red": 10, "blue": 40}, {})


def test_a_comparison_worked_by_hand():
    assert str(made(0.2)).splitlines() == [
        "     macro-F1                  accuracy",
        "1 a  0.5000 (0.4000 … 0.6000)  0.9000 (0.8000 … 0.9500)",
        "2 b  0.7000 (0.6000 … 0.8000)  0.9000 (0.8000 … 0.9500)",
        "",
        "less 1  macro-F1                     accuracy",
        "2 b     +0.2000 (+0.1000 … +0.3000)  +0.0100   beyond noise",
        "",
        "F1    photos  1       2",
        "hat           0.5000  0.7000",
        "red   10      0.5000  0.7000",
        "blue  40      0.2500  0.2500",
    ]


def test_results_that_do_not_fit_into_a_row_are_in_another_table():
    lines = made(0.2).text(width=20).splitlines()
    assert lines[-9:] == [
        *("F1    photos  1", "hat           0.5000", "red   10      0.5000", "blue  40      0.2500", ""),
        *("F1    photos  2", "hat           0.7000", "red   10      0.7000", "blue  40      0.2500"),
    ]


def test_persons_who_share_photos_in_either_run_are_drawn_together(three, tmp_path):
    """The runs of an earlier version do not know of them."""
    copy = Path(shutil.copytree(three[1].path, tmp_path / "joined"))
    frame = pd.read_csv(copy / "folds.csv", dtype=str)
    persons = frame["person"].unique()
    frame.insert(2, "same_as", frame["person"].replace(dict(zip(persons[1::2], persons[::2], strict=False))))
    frame.to_csv(copy / "folds.csv", index=False)
    one, other = (compare(runs, draws=500).results for runs in ([three[0], copy], [copy, three[0]]))
    assert one[0].joint == other[1].joint
    assert one[1].joint == other[0].joint
    assert one[1].joint != compare(three[:2], draws=500).results[1].joint
    joined, apart = (expected_change(three[0], other, draws=500) for other in (Run.load(copy), three[1]))
    assert joined.difference != apart.difference


def test_an_ensemble_has_no_cost(three, tmp_path):
    """It has no folds of its own: "0 of 5 folds" would look like a run that was stopped."""
    both = blend_runs(three[:2], out=tmp_path / "both", draws=0).run
    assert [each.cost is None for each in compare([three[0], both], draws=100).results] == [False, True]


def test_the_verdict_is_of_the_interval_and_of_p_among_all():
    for difference, p_holm, comparisons, verdict in (
        (0.05, 0.01, 1, "within noise"),
        (0.2, 0.01, 3, "beyond noise"),
        (0.2, 0.2, 3, "beyond noise alone, not among 3"),
        (0.2, 0.06, 1, "at the edge of noise"),
    ):
        assert made(difference, p_holm, comparisons).results[1].against.verdict == verdict


def test_p_is_twice_the_smaller_tail_and_agrees_with_the_interval():
    assert two_sided_p(np.array([1.0] * 99)) == pytest.approx(2 / 100)
    assert two_sided_p(np.array([1.0] * 94 + [-1.0] * 5)) == pytest.approx(12 / 100)
    assert two_sided_p(np.zeros(50)) == 1
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 4, 41):
        draws = rng.normal(shift, 1, 2000)
        outside = np.percentile(draws, 2.5) > 0 or np.percentile(draws, 97.5) < 0
        p = two_sided_p(draws)
        # but for one draw on the edge
        assert (p < 0.05) == outside or p == pytest.approx(0.05, abs=0.002)


def test_holms_adjustment_by_hand():
    # in order 0.01 x 4, 0.02 x 3, 0.03 x 2 (no less than before), 0.5
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.04]) == pytest.approx([0.04])
    assert holm([0.6, 0.7]) == [1, 1]


def macro(true, predicted):
    return f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)


def test_figures_are_scikit_learns_and_those_of_score_and_diff(three, tmp_path):
    found = compare(three)
    assert [(r.name, r.against and r.against.verdict) for r in found.results] == [
        *(("base", None), ("better", "beyond noise"), ("alike", "within noise"))
    ]
    heads, true = three[0].heads, three[0].heads.joint(three[0].true)
    for run, one in zip(three, found.results, strict=True):
        predicted = heads.joint(run.predicted)
        assert one.joint.macro_f1 == pytest.approx(macro(true, predicted))
        assert one.joint.accuracy == pytest.approx(accuracy_score(true, predicted))
        for i, name in enumerate(heads.names):
            assert one.heads[name].macro_f1 == pytest.approx(macro(run.true[:, i], run.predicted[:, i]))
        each = f1_score(true, predicted, labels=np.unique(true), average=None, zero_division=0)
        assert list(one.classes.values()) == pytest.approx(each)
    assert list(found.support) == [heads.joint_name(c) for c in np.unique(true)]
    assert list(found.support.values()) == np.unique(true, return_counts=True)[1].tolist()
    base, better, alike = found.results
    assert (base.joint, base.heads) == (three[0].score().joint, three[0].score().heads)
    difference = better.against.difference
    assert difference.macro_f1 == pytest.approx(better.joint.macro_f1 - base.joint.macro_f1)
    assert difference == expected_change(*three[:2]).difference
    gain, (low, high) = difference.macro_f1, difference.macro_f1_interval
    assert found.verdicts[0] == f"better is better than base by {gain:.4f}, 95 % {low:.4f} … {high:.4f}: beyond noise."
    # as text, a table, a picture and plain values
    lines = str(found).splitlines()
    assert lines[1].startswith(f"1 base    {base.joint.macro_f1:.4f} (")
    assert next(line for line in lines if line.startswith("2 better  +")).startswith(f"2 better  {gain:+.4f} (")
    assert any(line.startswith("wear male <30") for line in lines)
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["baseline"] == "base"
    assert plain["differences"]["alike"]["better"]["macro_f1"] == found.differences["alike"]["better"].macro_f1
    assert plain["results"][1]["against"]["verdict"] == "beyond noise"
    found.to_csv(tmp_path / "c.csv")
    frame = pd.read_csv(tmp_path / "c.csv")
    assert frame["name"].tolist() == ["base", "better", "alike"]
    assert frame["difference"].iloc[1] == pytest.approx(gain)
    assert frame["f1 wear male <30"].iloc[2] == pytest.approx(alike.classes["wear male <30"])
    found.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_all_pairs_are_compared(three):
    found = compare(three, draws=300)
    assert found.differences["base"]["base"] is None
    assert found.differences["base"]["better"] == found.results[1].against.difference
    alone = compare([three[2], three[1]], draws=300).results[1].against.difference
    assert found.differences["alike"]["better"] == alone
    back = compare([three[1], three[2]], draws=300)
    assert back.results[1].against.difference == found.differences["better"]["alike"]
    low, high = alone.macro_f1_interval
    assert back.results[1].against.difference.macro_f1_interval == pytest.approx((-high, -low))
    assert back.verdicts[0].startswith(
        f"alike is worse than better by {alone.macro_f1:.4f}, 95 % {low:.4f} … {high:.4f}"
    )


def test_many_comparisons_are_allowed_for(run_of, draw_oof, better_than):
    probabilities, y = draw_oof(persons=100)
    runs = [run_of(better_than(probabilities, y, 0.015 * i, seed=i), y, f"run{i}") for i in range(10)]
    found = compare(runs, draws=500)
    assert any("Of 9 comparisons with one baseline, one in twenty" in note for note in found.notes)
    against = [r.against for r in found.results[1:]]
    assert [a.p_holm for a in against] == pytest.approx(holm([a.p for a in against]))
    alone = [a for a in against if not a.difference.is_noise and a.p_holm >= 0.05]
    assert alone
    assert all(a.verdict == "beyond noise alone, not among 9" for a in alone)
    text = found.text(80)
    tables = [block for block in text.split("\n\n") if block.startswith("F1")]
    assert len(tables) == 2
    assert max(map(len, "\n".join(tables).splitlines())) <= 80
    assert [line.split()[1] for line in text.splitlines()[1:11]] == [f"run{i}" for i in range(10)]
    assert not any("comparisons" in note for note in compare(runs[:2], draws=100).notes)


def test_rows_in_any_order_give_the_same(three):
    before = compare(three[:2], draws=200)
    order = np.random.default_rng(0).permutation(2100)
    for name in ("oof.csv", "folds.csv"):
        read_strings(three[1].path / name, ()).iloc[order].to_csv(three[1].path / name, index=False)
    assert compare([three[0], three[1].path], draws=200).to_plain() == before.to_plain()


def cut(run, kept):
    """The run with some of its photos alone."""
    for name in ("oof.csv", "folds.csv"):
        frame = read_strings(run.path / name, ())
        frame[kept].to_csv(run.path / name, index=False)
    return Run.load(run.path)


def test_only_shared_photos_are_scored(three, tmp_path):
    kept = np.arange(2100) < 1400
    heads, true = three[0].heads, three[0].heads.joint(three[0].true)
    part = cut(three[1], kept)
    found = compare([three[0], part], draws=100)
    assert found.photos == 1400
    assert "Scored on the 1400 photos that all results have; results with more photos: base 2100." in found.notes
    assert found.results[0].joint.macro_f1 == pytest.approx(macro(true[kept], heads.joint(three[0].predicted)[kept]))
    (tmp_path / "x.csv").write_text("path,ans\nother.jpg,1\n")
    for other in (cut(three[2], ~kept), tmp_path / "x.csv"):
        with pytest.raises(DataError, match=r"(alike|x\.csv) shares no photo with .*, such as '00000\.jpg'"):
            compare([part, other])


def test_other_labels_are_counted_and_all_are_scored_by_the_first_runs(run_of, three, drawn):
    probabilities, y = drawn
    fixed = y.copy()
    fixed[:40, 1] = 1 - fixed[:40, 1]
    other = run_of(probabilities, fixed, "fixed")
    found = compare([three[0], other], draws=100)
    other_labels = "fixed has other labels than base for 40 photos (gender 40)"
    assert found.notes[0] == f"{other_labels}; all are scored by the labels of base."
    assert found.results[1].joint == found.results[0].joint
    assert found.results[1].against.p == 1
    assert compare([other, three[0]], draws=100).results[1].joint == other.score(100).joint


def test_heads_that_some_lack_are_left_out_and_classes_may_have_another_order(run_of, three, drawn):
    probabilities, y = drawn
    gender, age = contest_heads()[1:]
    turned = Heads([Head("age", age.classes[::-1]), Head("gender", gender.classes)])
    other = run_of(probabilities[:, [7, 6, 5, 3, 4]], np.stack([2 - y[:, 2], y[:, 1]], axis=1), "two", heads=turned)
    found = compare([three[0], other], draws=100)
    assert list(found.results[0].heads) == ["gender", "age"]
    assert "Compared on gender, age alone: not all results have mask with the same classes." in found.notes
    true, predicted = three[0].true[:, 1:], three[0].predicted[:, 1:]
    expected = macro(true[:, 0] * 3 + true[:, 1], predicted[:, 0] * 3 + predicted[:, 1])
    assert [r.joint.macro_f1 for r in found.results] == pytest.approx([expected, expected])
    hat = run_of(probabilities[:, :3], y[:, :1], "hat", heads=Heads([Head("hat", ("a", "b", "c"))]))
    with pytest.raises(DataError, match="no head with the same classes in common"):
        compare([three[0], hat])


def test_invalid_arguments_are_refused(three, files, tmp_path):
    for results, options, message in (
        ([three[0]], {}, "two or more results"),
        ([files["names"], files["classes"]], {}, "None of these is a run"),
        ([three[0], three[0].path], {}, "is named twice"),
        ([three[0], tmp_path / "gone"], {}, "does not exist"),
        (three[:2], {"names": ["a", "a"]}, "expected 2 different names"),
        (three[:2], {"draws": 5}, "expected 100 to 100000"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(results, **options)


def test_names_are_given_or_differ_by_their_paths_and_caveats_are_those_of_each(three, run_of, drawn):
    assert [r.name for r in compare(three[:2], ["one", "two"], draws=100).results] == ["one", "two"]
    twin = run_of(*drawn, "elsewhere/base", group="none")
    found = compare([three[0], twin], draws=100)
    assert [r.name for r in found.results] == [str(three[0].path), str(twin.path)]
    assert [len(r.caveats) for r in found.results] == [0, 1]
    assert f"2 {twin.path}: Leaky split (--group none)" in str(found)


def test_unknown_labels_are_left_out(three, run_of, drawn):
    probabilities, y = drawn
    y = y.copy()
    y[:21, 0] = -1
    found = compare([run_of(probabilities, y, "gaps"), three[1]], draws=100)
    assert "21 of 2100 photos lack a label and are left out." in found.notes
    assert (found.results[1].joint.n, found.results[1].heads["age"].n) == (2079, 2100)


@pytest.mark.slow
def test_ten_runs_of_a_contests_worth_of_photos_take_seconds(run_of, draw_oof, better_than):
    probabilities, y = draw_oof(persons=2700)
    runs = [run_of(better_than(probabilities, y, i / 50, seed=i), y, f"run{i}") for i in range(10)]
    # CPU time of this process, since other processes may be busy
    start = time.process_time()
    found = compare(runs)
    assert time.process_time() - start < 40
    assert found.photos == 18_900


def test_the_photos_of_a_file_may_be_in_another_folder(three, files, tmp_path):
    frame = pd.read_csv(files["classes"], dtype=str)
    frame.assign(path="/kaggle/input/photos/" + frame["path"]).to_csv(tmp_path / "theirs.csv", index=False)
    found = compare([three[0], files["classes"], tmp_path / "theirs.csv"], draws=100).results
    assert (found[2].joint, found[2].heads) == (found[1].joint, found[1].heads)
