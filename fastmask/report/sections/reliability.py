"""Reliability: how often the predictions of a head are right, by their probability."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastmask.decision.calibration import Calibration, calibrations
from fastmask.decision.rule import CALIBRATED
from fastmask.evaluation.decisions import cross_fit_run
from fastmask.evaluation.plots import reliability_figure
from fastmask.heads import JOINT
from fastmask.report.blocks import Block, Drawing, Table, Text, rounded, subset_note
from fastmask.report.material import Material
from fastmask.report.style import Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError

_HEADS = 6


def calibration_of(run: RunDirectory) -> dict[str, Calibration]:
    """The calibration of each head with labels, before and after a temperature fitted on other persons.

    Raises UsageError if there are no other persons.
    """
    found = calibrations(run.heads, run.probabilities, cross_fit_run(run, CALIBRATED)[0], run.true)
    return {head: one for head, one in found.items() if len(one.before)}


@styled()
def plot_reliability(calibration: dict[str, Calibration]) -> Figure:
    """The accuracy of each head by its probability, before and after the temperature."""
    return reliability_figure(calibration, Picture)


def section(material: Material) -> list[Block]:
    """The reliability of the heads, or of the least reliable ones."""
    every = calibration_of(material.run)
    if not every:
        raise UsageError("No photo has a label.")
    worst = sorted(every, key=lambda head: -every[head].error_before)[:_HEADS]
    shown = {head: one for head, one in every.items() if head in worst}
    rows = [
        [head, f"{one.temperature:.3f}", rounded(one.error_before), rounded(one.error_after)]
        for head, one in shown.items()
    ]
    columns = ["", "temperature", "calibration error", "after the temperature"]
    table = Table("Expected calibration error: the mean distance from the diagonal", columns, rows)
    largest = f"{every[worst[0]].error_before:.3f} of {worst[0]}"
    alt = f"Reliability curves per head; the largest calibration error is {largest}; the figures follow."
    said = (
        "On the diagonal a head is right as often as its probability says; below it, it is overconfident. A "
        "temperature above 1 lowers probabilities without changing predictions; for each person it is fitted on others."
    )
    if 0 < material.run.heads.joint_share < 1:
        said += f" The answers also use the product of the heads: of {JOINT}, this is the head alone."
    return [
        Text(said),
        *subset_note(len(shown), len(every), "with the largest error"),
        Drawing("reliability", plot_reliability(shown), alt, table=table),
    ]
