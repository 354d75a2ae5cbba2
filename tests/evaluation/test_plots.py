from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from fastmask.evaluation.comparison import Result
from fastmask.evaluation.ledger import Entry
from fastmask.evaluation.plots import _apart, plot_comparison, plot_ledger
from fastmask.scoring import Score
from fastmask.system.errors import UsageError


def entry(i: int, oof: float | None = None, public: float | None = None) -> Entry:
    low, high = (None, None) if oof is None else (oof - 0.03, oof + 0.03)
    date = "2026-01-31T12:00:00+00:00"
    scores = {"oof_macro_f1": oof, "oof_low": low, "oof_high": high, "public": public}
    return Entry(date, f"{i}.csv", f"{i:064x}", f"runs/{i}", **scores)


FOUR = [entry(i, 0.7 + i / 100, 0.69 + i / 80) for i in range(4)]


def test_the_picture_is_drawn_without_a_window(tmp_path: Path) -> None:
    backend = mpl.rcParams._get_backend_or_none()
    # a dollar does not make a formula, and an interval may be missing
    odd = [replace(FOUR[0], run="runs/a$\\frac$"), replace(FOUR[1], oof_low=None, oof_high=None), entry(5, 0.7)]
    for count, rows in enumerate((FOUR, odd, FOUR[:1], FOUR * 20)):
        plot_ledger(rows, tmp_path / f"{count}.png")
        assert Image.open(tmp_path / f"{count}.png").width >= 800
    assert mpl.rcParams._get_backend_or_none() == backend
    with pytest.raises(UsageError, match="No submission has both an OOF score and a public one"):
        plot_ledger([entry(1, 0.7), entry(2, public=0.8)], tmp_path / "none.png")


def test_results_are_drawn_in_rows_with_an_interval_or_without(tmp_path: Path) -> None:
    # a dollar does not make a formula
    scores = {"a$\\frac$": Score(0.5, 0.9, 50, (0.4, 0.6)), "b": Score(0.7, 0.9, 50)}
    results = [Result(name, Path(name), score, {}, {}) for name, score in scores.items()]
    for count in (1, 2):
        plot_comparison(results[:count], tmp_path / f"{count}.png")
    one, two = (Image.open(tmp_path / f"{count}.png") for count in (1, 2))
    assert two.height > one.height


def test_labels_stand_apart_and_in_order() -> None:
    # worked by hand: three at one height part around it, one far away stays
    assert _apart(np.array([0.5, 0.5, 0.5, 0.9])) == pytest.approx([0.445, 0.5, 0.555, 0.9])
    assert _apart(np.array([0.0, 0.0])) == pytest.approx([0.0, 0.055])
    assert max(_apart(np.array([1.0] * 40))) <= 1
