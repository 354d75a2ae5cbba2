from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from fastmask.evaluation.comparison import Result
from fastmask.evaluation.ledger import Entry
from fastmask.evaluation.plots import _spread_apart, plot_comparison, plot_ledger
from fastmask.scoring import Score
from fastmask.system.errors import UsageError


def entry(i, oof=None, public=None):
    low, high = (None, None) if oof is None else (oof - 0.03, oof + 0.03)
    scores = {"oof_macro_f1": oof, "oof_low": low, "oof_high": high, "public": public}
    return Entry("2026-01-31T12:00:00+00:00", f"{i}.csv", f"{i:064x}", f"runs/{i}", **scores)


def test_a_picture_of_a_ledger_is_drawn_without_a_window(tmp_path):
    backend = mpl.rcParams._get_backend_or_none()
    four = [entry(i, 0.7 + i / 100, 0.69 + i / 80) for i in range(4)]
    # a dollar does not make a formula, and an interval may be missing
    odd = [replace(four[0], run="runs/a$\\frac$"), replace(four[1], oof_low=None, oof_high=None), entry(5, 0.7)]
    for count, rows in enumerate((odd, four[:1], four * 10)):
        plot_ledger(rows, tmp_path / f"{count}.png")
        assert Image.open(tmp_path / f"{count}.png").width >= 800
    assert mpl.rcParams._get_backend_or_none() == backend
    with pytest.raises(UsageError, match="No submission has both an OOF score and a public one"):
        plot_ledger([entry(1, 0.7), entry(2, public=0.8)], tmp_path / "none.png")


def test_results_are_rows_with_an_interval_or_without(tmp_path):
    scores = {"a$\\frac$": Score(0.5, 0.9, 50, (0.4, 0.6)), "b": Score(0.7, 0.9, 50)}
    results = [Result(name, Path(name), score, {}, {}) for name, score in scores.items()]
    for count in (1, 2):
        plot_comparison(results[:count], tmp_path / f"{count}.png")
    one, two = (Image.open(tmp_path / f"{count}.png") for count in (1, 2))
    assert two.height > one.height


def test_labels_have_space_between_them_and_stay_in_order():
    # worked by hand: three at one height spread around it, one far away stays
    assert _spread_apart(np.array([0.5, 0.5, 0.5, 0.9])) == pytest.approx([0.445, 0.5, 0.555, 0.9])
    assert _spread_apart(np.array([0.0, 0.0])) == pytest.approx([0.0, 0.055])
    assert max(_spread_apart(np.array([1.0] * 40))) <= 1
