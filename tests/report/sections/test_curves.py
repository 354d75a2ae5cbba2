"""Curves: against the files of the folds, read by pandas and json."""

import json

import pandas as pd
import pytest

from fastmask.api import blend_runs
from fastmask.report.sections import curves as module
from fastmask.report.sections.curves import curves, plot_curves
from fastmask.system.errors import UsageError


def test_curves_are_the_histories_with_kept_and_chosen_epochs(finished_run):
    found, scores = curves(finished_run), json.loads((finished_run.path / "scores.json").read_text())
    for fold in (0, 1):
        history = pd.read_csv(finished_run.path / f"fold{fold}" / "history.csv")
        of = found[found["fold"] == fold]
        assert of["epoch"].tolist() == [1, 2]
        for name in ("train_loss", "valid_loss", "macro_f1"):
            assert of[name].tolist() == pytest.approx(history[name].tolist())
        done = json.loads((finished_run.path / f"fold{fold}" / "done.json").read_text())
        assert (of["epoch"][of["kept"]] - 1).tolist() == done["checkpoints"]
        assert (of["epoch"][of["chosen"]] - 1).tolist() == scores["folds"][fold]["epochs"]


def test_the_plot_has_a_line_per_fold_and_marks_epochs(finished_run):
    losses, scores = plot_curves(finished_run).axes
    frame = curves(finished_run)
    assert len(losses.lines) == 4
    assert losses.lines[1].get_ydata().tolist() == frame["valid_loss"][frame["fold"] == 0].tolist()
    marks = [line for line in scores.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in marks) == frame["kept"].sum() + frame["chosen"].sum()


def test_lines_cross_epochs_without_validation(finished_run, monkeypatch):
    frame = curves(finished_run)
    frame.loc[frame["epoch"] == 1, ["valid_loss", "macro_f1"]] = float("nan")
    monkeypatch.setattr(module, "curves", lambda run: frame)
    losses, scores = plot_curves(finished_run).axes
    assert [line.get_xdata().tolist() for line in losses.lines[:2]] == [[1, 2], [2]]
    assert scores.lines[0].get_xdata().tolist() == [2]


def test_many_folds_have_different_colours(finished_run, monkeypatch):
    frame = curves(finished_run)
    many = pd.concat([frame.assign(fold=fold) for fold in range(12)])
    monkeypatch.setattr(module, "curves", lambda run: many)
    colours = {str(line.get_color()) for line in plot_curves(finished_run).axes[0].lines}
    assert len(colours) == 12


def test_an_ensemble_has_none(finished_run, run_copy, swap_genders):
    ensemble = blend_runs([finished_run, swap_genders(run_copy)], out=run_copy.parent / "both", draws=0).run
    with pytest.raises(UsageError, match="is an ensemble, which has no models"):
        plot_curves(ensemble)
