"""Reliability: whether a head that is 80 % sure is right eight times in ten."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastmask.decision.calibration import Calibration, calibrations
from fastmask.decision.crossfit import cross_fit
from fastmask.decision.rule import CALIBRATED
from fastmask.evaluation.plots import reliability_figure
from fastmask.report.blocks import Block, Drawing, Table, Text, rounded
from fastmask.report.material import Material
from fastmask.report.style import Picture, styled
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError

_HEADS = 6


def calibration_of(run: RunDirectory) -> dict[str, Calibration]:
    """The calibration of each head that has labels, after the temperature that other persons' answers ask for.

    Raises UsageError where there are no other persons.
    """
    found = calibrations(run.heads, run.probabilities, cross_fit(run, CALIBRATED)[0], run.true)
    return {head: one for head, one in found.items() if len(one.before)}


@styled()
def plot_reliability(calibration: dict[str, Calibration]) -> Figure:
    """How often each head is right by how sure it is, as it is and at its temperature."""
    return reliability_figure(calibration, Picture)


def section(material: Material) -> list[Block]:
    """The reliability of the heads, of the least reliable where there are many."""
    every = calibration_of(material.run)
    if not every:
        raise UsageError("No photo has a label.")
    worst = sorted(every, key=lambda head: -every[head].error_before)[:_HEADS]
    shown = {head: one for head, one in every.items() if head in worst}
    blocks: list[Block] = [
        Text(
            "On the diagonal a head is as often right as it says; below it, it is too sure. A temperature above 1 "
            "makes answers less sure and changes none of them; each person's was fitted on other persons."
        )
    ]
    if len(shown) < len(every):
        blocks.append(Text(f"Of {len(every)} heads the {len(shown)} with the largest error are shown."))
    rows = [
        [head, f"{one.temperature:.3f}", rounded(one.error_before), rounded(one.error_after)]
        for head, one in shown.items()
    ]
    names = ["", "temperature", "calibration error", "and at that temperature"]
    table = Table("Expected calibration error: the mean distance from the diagonal", names, rows)
    worst_first = f"{worst[0]}: {every[worst[0]].error_before:.3f}"
    alt = f"Reliability curves a head; the largest calibration error has {worst_first}; the figures follow."
    return [*blocks, Drawing("reliability", plot_reliability(shown), alt, table=table)]
