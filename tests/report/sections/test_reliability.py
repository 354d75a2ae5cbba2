from dataclasses import replace

import numpy as np

from fastmask.data.contest import contest_heads
from fastmask.evaluation.decisions import decide
from fastmask.heads import Heads
from fastmask.report.sections.reliability import calibration_of, plot_reliability


def test_it_is_the_calibration_of_decide(finished_run):
    expected = decide(finished_run, draws=10).calibration
    found = calibration_of(finished_run)
    assert {head: str(one) for head, one in found.items()} == {head: str(one) for head, one in expected.items()}
    assert len(plot_reliability(found).axes) == 3


def test_heads_without_labels_are_left_out(make_run, labels):
    run = make_run(np.where([True, False, True], labels, -1))
    assert list(calibration_of(run)) == ["mask", "age"]


def test_heads_that_were_not_learned_are_left_out(make_run, labels):
    mask, gender, age = contest_heads()
    run = make_run(labels, Heads([mask, replace(gender, weight=0.0), age]))
    assert list(calibration_of(run)) == ["mask", "age"]
