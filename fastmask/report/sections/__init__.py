"""Sections: the parts of a report, one file each.

To add a section, write a file with a function `(Material) -> list[Block]` here and give it a line in SECTIONS. It
raises UsageError if the run lacks what it needs; its pictures have names of their own, and each has its figures in a
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from fastmask.report.blocks import Block, Section
from fastmask.report.material import Material
from fastmask.system.errors import FastmaskError, one_line

# by id, in order: the title, and "file.function"; modules are imported on use, because some need torch
SECTIONS = {
    "score": ("Score", "summary.section"),
    "run": ("What was run", "facts.run_section"),
    "curves": ("Learning curves", "curves.section"),
    "folds": ("Score by fold", "fold_scores.section"),
    "confusion": ("Confusion", "confusion.section"),
    "classes": ("F1 by class", "classes.section"),
    "reliability": ("Reliability", "reliability.section"),
    "numbers": ("Errors by number, such as age", "numbers.section"),
    "mistakes": ("The most confident mistakes", "mistakes.section"),
    "label-errors": ("Suspicious labels", "suspects.section"),
    "explained": ("Where the networks look", "heatmaps.section"),
    "augmented": ("Training photos as the network sees them", "first_batch.section"),
    "cost": ("Cost", "facts.cost_section"),
    "environment": ("Environment", "facts.environment_section"),
}


def make_sections(material: Material, names: Iterable[str] = tuple(SECTIONS)) -> list[Section]:
    """Make sections of a report, by default all; a section that cannot be made says why."""
    return [_make(material, name, *SECTIONS[name]) for name in names]


def _make(material: Material, name: str, title: str, function: str) -> Section:
    module, _, function = function.partition(".")
    make: Callable[[Material], list[Block]] = getattr(import_module(f"{__name__}.{module}"), function)
    try:
        return Section(name, title, make(material))
    except FastmaskError as error:
        return Section(name, title, missing=f"{one_line(error)}.")
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        return Section(name, title, missing=f"{error.strerror or one_line(error)}{file}.")
