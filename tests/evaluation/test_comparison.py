import json
from pathlib import Path

import pandas as pd
import pytest

from fastmask.evaluation.compare import compare
from fastmask.evaluation.comparison import Against, Comparison, Result
from fastmask.scoring import Difference, Score


def result(name, macro_f1, against=None):
    score = Score(macro_f1, 0.9, 50, (macro_f1 - 0.1, macro_f1 + 0.1), (0.8, 0.95))
    return Result(name, Path(name), score, {"hat": score}, {"red": macro_f1, "blue": 0.25}, against)


def made(difference, p_holm=0.01, comparisons=1):
    """A comparison of two results, of which the second is better by `difference`."""
    against = Against(
        Difference(difference, 0.01, (difference - 0.1, difference + 0.1), (0, 0)), 0.01, p_holm, comparisons
    )
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


def test_results_that_do_not_fit_beside_each_other_stand_below():
    lines = made(0.2).text(width=20).splitlines()
    assert lines[-9:] == [
        *("F1    photos  1", "hat           0.5000", "red   10      0.5000", "blue  40      0.2500", ""),
        *("F1    photos  2", "hat           0.7000", "red   10      0.7000", "blue  40      0.2500"),
    ]


@pytest.mark.parametrize(
    ("difference", "p_holm", "comparisons", "verdict"),
    [
        (0.05, 0.01, 1, "within noise"),
        (0.2, 0.01, 3, "beyond noise"),
        (0.2, 0.2, 3, "beyond noise alone, not among 3"),
        (0.2, 0.06, 1, "at the edge of noise"),
    ],
)
def test_the_verdict_is_of_the_interval_and_of_p_among_all(difference, p_holm, comparisons, verdict):
    assert made(difference, p_holm, comparisons).results[1].against.verdict == verdict


def test_what_is_better_is_beyond_noise_and_what_is_alike_within(three):
    found = compare(three)
    assert [r.against and r.against.verdict for r in found.results] == [None, "beyond noise", "within noise"]
    low, high = found.results[1].against.difference.macro_f1_interval
    gain = found.results[1].against.difference.macro_f1
    assert found.verdicts[0] == f"better is better than base by {gain:.4f}, 95 % {low:.4f} … {high:.4f}: beyond noise."
    turned = compare([three[1], three[0]])
    assert turned.verdicts[0].startswith(f"base is worse than better by {gain:.4f}, 95 % {low:.4f} … {high:.4f}")


def test_it_is_told_in_words_a_table_a_picture_and_plain_values(three, tmp_path):
    found = compare(three, draws=100)
    lines = str(found).splitlines()
    assert lines[1].startswith(f"1 base    {found.results[0].joint.macro_f1:.4f} (")
    difference = found.results[1].against.difference
    assert next(line for line in lines if line.startswith("2 better  +")).startswith(
        f"2 better  {difference.macro_f1:+.4f} ("
    )
    assert any(line.startswith("wear male <30") for line in lines)
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["baseline"] == "base"
    assert plain["differences"]["alike"]["better"]["macro_f1"] == found.differences["alike"]["better"].macro_f1
    assert plain["results"][1]["against"]["verdict"] == "beyond noise"
    found.to_csv(tmp_path / "c.csv")
    frame = pd.read_csv(tmp_path / "c.csv")
    assert frame["name"].tolist() == ["base", "better", "alike"]
    assert frame["difference"].iloc[1] == pytest.approx(difference.macro_f1)
    assert frame["f1 wear male <30"].iloc[2] == pytest.approx(found.results[2].classes["wear male <30"])
    found.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
